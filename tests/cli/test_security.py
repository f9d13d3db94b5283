"""Other users can do no harm through skinjob's files, names and shells.

`PYTHONPATH=tests/support python tests/cli/test_security.py` prints who may read and write each
path, in Markdown.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sweep_maker
from commands import only_sweep, recorded, refusal, skinjob, status_by_run
from safetensors.numpy import load_file
from state_dict_maker import write_old_layout
from trees import make_sweep, make_tree

from skinjob.errors import RunError
from skinjob.queues import local
from skinjob.report.build import build_report
from skinjob.sweeps.layout import Run, Sweep

ODD = """it's 100% "odd" \\ $(touch pwned) `touch pwned` ; touch pwned & ü"""
SCRIPT = "<script>alert(1)"  # a folder's name has no slash
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG",
    "HF_TOKEN": "hf_qpwoeirutyalskdjfhg",
    "https_proxy": "http://someone:pr0xyPassw0rd@127.0.0.1:9",
    "SKINJOB_TEST_SECRET": "mnbvcxz-0987654321",
}

FOLDER, FILE = 0o777, 0o666
BY_UMASK = "your umask decides"
INSIDE = f"{BY_UMASK}; the folder is closed"
MODES = [
    # path; its mode before the umask, or as text the mode that no umask changes; the reason
    ("weights", FOLDER, BY_UMASK),
    ("weights/resnet18.safetensors", FILE, f"{BY_UMASK}; its digest is checked at every use"),
    ("weights/SHA256SUMS", FILE, BY_UMASK),
    ("weights/.fetch.lock", "0600", "empty, locked by a fetch: who can read it can lock it"),
    ("runs", FOLDER, f"{BY_UMASK}; refused where everybody may write without a sticky bit"),
    ("runs/.submit-*.lock", "0600", "empty, locked by a submit: who can read it can lock it"),
    ("runs/.cache", FOLDER, BY_UMASK),
    ("runs/.cache/views", FOLDER, f"{BY_UMASK}; a group that may write shares its views"),
    ("runs/.cache/views/*.safetensors", FILE, f"{BY_UMASK}; numbers, which carry no code"),
    ("runs/.cache/decoded", FOLDER, f"{BY_UMASK}; a group that may write shares the images"),
    ("runs/.cache/decoded/*.pixels", FILE, f"{BY_UMASK}; pixels, which carry no code"),
    ("runs/SWEEP", FOLDER, f"{BY_UMASK}; refused where everybody may write"),
    ("runs/SWEEP/sweep.json", FILE, BY_UMASK),
    ("runs/SWEEP/images.csv", FILE, BY_UMASK),
    ("runs/SWEEP/converged.json", FILE, BY_UMASK),
    (
        "runs/SWEEP/submission",
        "0700",
        "jobs execute its pickles: who can write there runs code as you",
    ),
    ("runs/SWEEP/submission/*", FILE, INSIDE),
    ("runs/SWEEP/submission/*seed*.lock", "0600", "empty, locked while a run's state is changed"),
    ("runs/SWEEP/RUN", FOLDER, BY_UMASK),
    ("runs/SWEEP/RUN/*", FILE, BY_UMASK),
    ("runs/SWEEP/report", FOLDER, BY_UMASK),
    ("runs/SWEEP/report/*", FILE, f"{BY_UMASK}; the page is meant for others"),
    ("$TMPDIR/skinjob-UID", "0700", "locks of this machine's slots, in a place that all may write"),
    ("$TMPDIR/skinjob-UID/slot-*.lock", "0600", "the same: who can open it can hold your slot"),
]


def allowed(mode: int | str, umask: int) -> str:
    return mode if isinstance(mode, str) else f"{mode & ~umask:04o}"


def mode_of(path: Path) -> str:
    return f"{stat.S_IMODE(path.lstat().st_mode):04o}"


@dataclass(frozen=True)
class Story:
    """A project after fetch, submit, train and report, in which every name is odd."""

    folder: Path
    umask: int
    output: str

    @property
    def runs(self) -> Path:
        return self.folder / f"-runs {ODD}"

    @property
    def sweep(self) -> Sweep:
        return only_sweep(self.runs)


@pytest.fixture(scope="module", params=[0o022, 0o077, 0o002], ids=lambda umask: f"umask{umask:03o}")
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, weights: Path
) -> Iterator[Story]:
    """The whole way from fetch to report for each umask, with secrets in the environment."""
    before = os.umask(request.param)
    try:
        yield tell_story(tmp_path_factory.mktemp("story") / ODD, weights, request.param)
    finally:
        os.umask(before)


def tell_story(here: Path, weights: Path, umask: int) -> Story:
    here.mkdir()
    here.chmod(0o755)
    data = here / f"-data {ODD}"
    make_tree(data, num_train=4, num_test=2)
    for split in ("train", "test"):
        (data / split / "benign").rename(data / split / SCRIPT)
        (data / split / "malignant").rename(data / split / r"b$\frac{$")
    source = publish(here, weights)
    story = Story(here, umask, "")
    (here / "job.toml").write_text("[train]\nepochs = 2\n[cluster]\ncluster = 'local'\n")
    (here / "job.toml").rename(here / f"-job {ODD}")
    (here / "tmp").mkdir()
    outputs = [
        call(story, "fetch-weights", "--source", source.name, "--out", f"-weights {ODD}"),
        call(
            story, "submit", "--batch-sizes", "4", "--wait", "--setup", "export SEEN=1",
            "--job", f"-job {ODD}", "--data", data.name, "--runs", story.runs.name,
            "--weights", f"-weights {ODD}/resnet18.safetensors", "--name", f"{SCRIPT} {NAME}",
        ),
    ]  # fmt: skip
    outputs.append(call(story, "report", "--runs", story.runs.name))
    return Story(here, umask, "".join(outputs))


NAME = ODD.replace("/", "")


def publish(here: Path, weights: Path) -> Path:
    """Makes a .pth as torchvision publishes it, with the digest in its name."""
    made = write_old_layout(here / "made.pth", load_file(weights))
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    return made.rename(made.with_name(f"resnet18-{digest[:8]}.pth"))


def call(story: Story, *arguments: str) -> str:
    result = skinjob(*arguments, cwd=story.folder, TMPDIR=str(story.folder / "tmp"), **SECRETS)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.train
def test_odd_paths_train(story: Story) -> None:
    """Every path may contain spaces, quotes, %, backslashes and $, and begin with a dash."""
    assert set(status_by_run(story.sweep).values()) == {"done"}
    assert "\ufffd" not in story.output


@pytest.mark.train
def test_no_part_of_a_name_is_executed_by_a_shell(story: Story) -> None:
    """A command in a path or name is not executed, also if the user pastes a printed line."""
    assert "touch pwned" in str(story.sweep.folder)
    assert not list(story.folder.rglob("pwned"))
    (line,) = set(re.findall(r"^next: +skinjob report (.*)$", story.output, re.M))
    (word,) = shlex.split(line)
    assert (story.folder / word).resolve() == story.sweep.folder.resolve()
    assert not word.startswith("-")


@pytest.mark.train
def test_no_secret_of_the_environment_is_written_to_a_file(story: Story) -> None:
    """Tokens and passwords in the environment stay there."""
    files = [path for path in story.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        for name, secret in SECRETS.items():
            part = secret.split("@")[0].split(":")[-1].encode()
            assert part not in content, f"{name} in {path}"
            assert secret not in path.name


class Page(HTMLParser):
    """The scripts, attributes and text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.scripts: list[str | None] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += [dict(attrs).get("type")] if tag == "script" else []
        # The name of SVG's language looks like an address.
        self.attributes += [(name, value or "") for name, value in attrs if name != "xmlns"]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.train
def test_a_name_that_looks_like_a_script_is_only_text_on_the_page(story: Story) -> None:
    """The page shows a class or a sweep with such a name, and executes nothing."""
    page = Page(story.sweep.report_folder / "index.html")
    assert page.scripts == ["application/json"]  # data, which is not executed
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [v for _, v in page.attributes if v.lower().startswith(("javascript", "http"))]
    assert f"2 {SCRIPT}" in page.text  # test images of the class
    assert story.sweep.name in page.text
    for picture in story.sweep.report_folder.glob("*.svg"):
        assert not ElementTree.parse(picture).findall(".//{http://www.w3.org/2000/svg}script")


@pytest.mark.train
def test_every_path_has_its_permissions(story: Story) -> None:
    """The umask decides who may read, except for files that jobs execute and for locks."""
    made = story.folder
    names = {
        f"-weights {ODD}": "weights",
        story.runs.name: "runs",
        story.sweep.name: "SWEEP",
        story.sweep.runs()[0].name: "RUN",
        "tmp": "$TMPDIR",
        f"skinjob-{os.getuid()}": "skinjob-UID",
    }
    seen = set()
    for path in sorted(made.rglob("*")):
        shown = "/".join(names.get(part, part) for part in path.relative_to(made).parts)
        if not shown.startswith(("weights", "runs", "$TMPDIR/")):
            continue  # made by the test
        if shown.startswith("$TMPDIR/torchinductor_"):
            assert not list(path.iterdir())  # torch makes it, for a compiler that no job uses
            continue
        rule = next((r for r in reversed(MODES) if fnmatch.fnmatchcase(shown, r[0])), None)
        assert rule, f"{shown}: no rule"
        assert mode_of(path) == allowed(rule[1], story.umask), shown
        seen.add(rule[0])
    assert seen == {rule[0] for rule in MODES}


@pytest.fixture
def sweep(project: Path) -> Sweep:
    """The folders of a sweep, as submit makes them before it queues anything."""
    return make_sweep(project / "skin_cancer", project / "weights/resnet18.safetensors",
                      project / "runs", batch_sizes=(4,))  # fmt: skip


def submit_again(sweep: Sweep, *more: str) -> subprocess.CompletedProcess[str]:
    options = ("--batch-sizes", "4", "--epochs", "2", "--lr", "0.1", "--device", "cpu")
    return skinjob(
        "submit", *options, "--precision", "fp32", "--cluster", "local", "--name", "sweep", *more,
        cwd=sweep.folder.parent.parent,
    )  # fmt: skip


def link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def give_away(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a folder to another user needs root")
    os.chown(folder, 65534, 65534)


@pytest.mark.parametrize(
    "spoil",
    [lambda f: f.chmod(0o777), lambda f: f.chmod(0o770), link, give_away],
    ids=["open to all", "open to a group", "a link", "another user's"],
)
def test_a_submission_folder_that_others_can_write_is_refused(
    sweep: Sweep, spoil: Callable[[Path], None]
) -> None:
    """Neither submit nor the process of the local queue uses it."""
    spoil(sweep.submission_folder)
    written = sweep.sweep_file.stat().st_mtime_ns
    message = refusal(submit_again(sweep))
    assert message == "runs/sweep/submission is not a private folder of yours"
    assert sweep.sweep_file.stat().st_mtime_ns == written  # submit changed nothing
    for start in (local.start_queue, local.work):
        with pytest.raises(RunError, match="is not a private folder of yours"):
            start(sweep, ["local-1"])
    assert not list(sweep.submission_folder.iterdir())


@pytest.mark.parametrize("where", ["runs", "runs/sweep"])
def test_a_folder_that_everybody_can_replace_is_refused(sweep: Sweep, where: str) -> None:
    """A private folder is not safe if everybody may put another folder in its place."""
    folder = sweep.folder.parent.parent / where
    folder.chmod(0o777)
    assert f"{folder} can be written by everybody" in refusal(submit_again(sweep))


@pytest.mark.parametrize("mode", [0o1777, 0o775], ids=["sticky", "open to a group"])
def test_a_usual_shared_folder_is_accepted(sweep: Sweep, mode: int) -> None:
    """A sticky folder is accepted, and so is a folder that the user's group may write to."""
    sweep.folder.parent.chmod(mode)
    result = submit_again(sweep, "--dry-run")
    assert result.returncode == 0, result.stderr


def train(sweep: Sweep, run: Run) -> None:
    from skinjob.train.job import run_job

    run_job([run.folder])


@pytest.mark.parametrize("name", ["../../x", "/etc", "", "..", ".", "a/b", 5, None])
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(lambda sweep, _: build_report([sweep]), id="report"),
        pytest.param(train, id="train", marks=pytest.mark.train),
    ],
)
def test_names_in_a_strangers_sweep_do_not_lead_out_of_its_folder(
    sweep: Sweep, name: object, command: Callable[[Sweep, Run], object]
) -> None:
    """A sweep.json cannot make a command read or write outside the sweep's folder."""
    (run,) = sweep.runs()
    sweep.sweep_file.write_text(json.dumps(recorded(sweep) | {"runs": [name]}))
    here = sweep.folder.parent.parent
    run.lock_file.touch()
    before = {path for path in here.rglob("*") if run.folder not in path.parents}
    with pytest.raises(RunError) as error:
        command(sweep, run)
    message = f"{name!r} is no run of this sweep" if isinstance(name, str) else "runs[0] must be "
    assert message in error.value.message
    assert {path for path in here.rglob("*") if run.folder not in path.parents} == before


def test_a_sweep_that_lists_no_runs_is_refused(sweep: Sweep) -> None:
    """A sweep.json without runs is an error and no traceback."""
    for runs in ("bs0004", {"bs0004": 1}, None):
        sweep.sweep_file.write_text(json.dumps({"runs": runs}))
        with pytest.raises(RunError, match=r"field `recipe`|: runs must be array"):
            sweep.runs()


def test_a_sweeps_name_is_not_a_formula_in_pictures(tmp_path: Path) -> None:
    """Pictures show dollar signs and underscores in names as they are."""
    names = (r"a$\frac{$b", "_under")
    sweeps = [
        sweep_maker.draw_sweep(tmp_path / name, epochs=3, batch_sizes=(32,)) for name in names
    ]
    report = build_report(sweeps, tmp_path / "out")
    drawn = (tmp_path / "out/comparison.svg").read_text()
    assert report.folder == tmp_path / "out"
    for name in names:
        assert f"{name} 32" in re.sub(r"&amp;", "&", drawn)


def test_the_package_starts_no_shell() -> None:
    """Commands are lists of words; only submitit makes text for a shell, and quotes it."""
    package = Path(sys.modules["skinjob"].__file__ or "").parent
    for module in package.rglob("*.py"):
        text = module.read_text()
        for word in ("shell=True", "os.system", "os.popen", "getoutput"):
            assert word not in text, f"{word} in {module}"


def print_table() -> None:
    """Prints the mode of each path for each umask, in Markdown."""
    umasks = (0o022, 0o077, 0o002)
    print("| path |", " | ".join(f"umask {u:03o}" for u in umasks), "| why |")
    print("| --- |" + " --- |" * (len(umasks) + 1))
    for path, mode, why in MODES:
        print(f"| {path} |", " | ".join(allowed(mode, u) for u in umasks), f"| {why} |")


if __name__ == "__main__":
    print_table()
