"""A table of wrong input, and what the error says about each.

`PYTHONPATH=tests/support python tests/cli/test_bad_input.py` prints the table in Markdown, with the
errors that skinjob really prints.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import import_path, refusal
from state_dict_maker import write_old_layout
from trees import make_tree
from untrained import write_untrained

from skinjob.cli import main
from skinjob.commands.sources import JOB_TABLES, read_file
from skinjob.config import ClusterConfig, TrainConfig, grid
from skinjob.errors import ConfigError
from skinjob.submit.checks import ROW_BYTES, file_system
from skinjob.submit.folders import write_plan
from skinjob.submit.plan import Plan, make_plan, new_bytes
from skinjob.weights.backbones import RESNET18

ROOT = Path("/usr/share").resolve()  # on a disk of this machine, not in memory
HUGE = "9" * 5000
LONG = "x" * 300
SUBMIT = ("submit", "--batch-sizes", "4", "--cluster", "local")


@dataclass(frozen=True)
class Case:
    """A wrong input: how it is made, and what the error says."""

    id: str
    arguments: tuple[str, ...]
    says: str
    """Is in the first line of the error; {here} is the folder of the command."""
    code: int = 1
    make: Callable[[Path], None] = lambda here: None
    """Prepares that folder."""
    env: Mapping[str, str] = field(default_factory=dict)


def value(option: str, text: str, says: str, code: int = 1) -> Case:
    shown = repr(text) if len(text) < 40 else f"{text[:3]}... ({len(text)} characters)"
    return Case(f"{option} {shown}", (*SUBMIT, option, text), says, code)


def job_file(content: str | bytes, says: str, code: int = 1) -> Case:
    raw = content.encode() if isinstance(content, str) else content
    shown = raw.decode(errors="backslashreplace").replace("\n", "; ")
    return Case(
        f"job file: {shown}",
        ("submit", "--cluster", "local", "--job", "job.toml"),
        says,
        code,
        lambda here: _write(here / "job.toml", raw),
    )


def environment(name: str, text: str, says: str, code: int = 2) -> Case:
    return Case(f"{name}={text}", ("submit", "--cluster", "local"), says, code, env={name: text})


def weights(id: str, make: Callable[[Path], None], says: str, *, listed: bool = False) -> Case:  # noqa: A002
    """Returns a row about weights/resnet18.safetensors, which *make* may replace or change."""

    def prepare(here: Path) -> None:
        shared = (here / "weights").resolve()
        (here / "weights").unlink()
        shutil.copytree(shared, here / "weights")
        if not listed:
            (here / "weights/SHA256SUMS").unlink()
        make(here / "weights/resnet18.safetensors")

    return Case(f"weights: {id}", SUBMIT, says, make=prepare)


def images(id: str, make: Callable[[Path], None], says: str) -> Case:  # noqa: A002
    """Returns a row about skin_cancer/, which *make* may replace or change."""

    def prepare(here: Path) -> None:
        shared = (here / "skin_cancer").resolve()
        (here / "skin_cancer").unlink()
        shutil.copytree(shared, here / "skin_cancer")
        make(here / "skin_cancer")

    return Case(f"images: {id}", SUBMIT, says, make=prepare)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _other_architecture(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"resnet18"', b'"resnet99"', 1))


def _pickle(file: Path) -> None:
    write_old_layout(file, {})


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _file(tree: Path) -> None:
    shutil.rmtree(tree)
    tree.write_text("")


WHOLE = "is no list of whole numbers"
PLAIN = "is not a plain folder name"
IN_JOB = "job file job.toml: "

CASES = [
    value("--batch-sizes", "17", "batch size 17 is more than the 16 training images"),
    value("--batch-sizes", "9" * 25, f"batch size {'9' * 25} is more than the 16 training images"),
    value("--batch-sizes", HUGE, f"'{HUGE}' {WHOLE}", 2),
    value("--batch-sizes", "0", "batch size is 0, and must be at least 1"),
    value("--batch-sizes", "4,0", "batch size is 0, and must be at least 1"),
    value("--batch-sizes", "-4", f"'-4' in '-4' {WHOLE}", 2),
    value("--batch-sizes", "4,4", "--batch-sizes has a value twice: [4, 4]"),
    value("--batch-sizes", "4,many", f"'many' in '4,many' {WHOLE}", 2),
    value("--batch-sizes", "4.5", f"'4.5' in '4.5' {WHOLE}", 2),
    value("--batch-sizes", "", f"'' in '' {WHOLE}", 2),
    value("--epochs", "0", "epochs is 0, and must be 1 to 1000000"),
    value("--epochs", "-1", "epochs is -1, and must be 1 to 1000000"),
    value("--epochs", "2.5", "'2.5' is not a valid integer", 2),
    value("--epochs", "9" * 25, f"epochs is {'9' * 25}, and must be 1 to 1000000"),
    value("--epochs", HUGE, f"'{HUGE}' is not a valid integer", 2),
    value("--lr", "0", "lr is 0.0, and must be a number above 0"),
    value("--lr", "0.1,-0.1", "lr is -0.1, and must be a number above 0"),
    value("--lr", "nan", "lr is nan, and must be a number above 0"),
    value("--lr", "inf", "lr is inf, and must be a number above 0"),
    value("--lr", "1e400", "lr is inf, and must be a number above 0"),
    value("--lr", "0.1,,0.2", "'0.1,,0.2' is no list of numbers", 2),
    value("--lr", "0,1;0,2", "'0,1;0,2' is no list of numbers", 2),
    value("--lr", "0.1,0.10", "--lr has a value twice: [0.1, 0.1]"),
    value("--seeds", "0,,2", f"'' in '0,,2' {WHOLE}", 2),
    value("--seeds", "3-1", f"'3-1' in '3-1' {WHOLE}", 2),
    value("--seeds", "a", f"'a' in 'a' {WHOLE}", 2),
    value("--seeds", "-1", f"'-1' in '-1' {WHOLE}", 2),
    value("--seeds", "0-99999999", f"'0-99999999' in '0-99999999' {WHOLE}", 2),
    value("--seeds", str(2**64), f"seed is {2**64}, and must be 0 to 2**63 - 1"),
    value("--seeds", f"0,{2**63}", f"seed is {2**63}, and must be 0 to 2**63 - 1"),
    value("--seeds", "1,1", "--seeds has a value twice: [1, 1]"),
    value("--time", "0", "time is 0, and must be 5 to 525600 (minutes)"),
    value("--time", "-5", "time is -5, and must be 5 to 525600 (minutes)"),
    value("--time", "2:00:00", "'2:00:00' is not a valid integer", 2),
    value("--time", "99999999", "time is 99999999, and must be 5 to 525600 (minutes)"),
    value("--cpus", "0", "cpus is 0, and must be at least 1"),
    value("--cpus", "two", "'two' is not a valid integer", 2),
    value("--mem", "nan", "mem is nan, and must be 0.5 to 100000 (GB)"),
    value("--mem", "-8", "mem is -8.0, and must be 0.5 to 100000 (GB)"),
    value("--mem", "0.0001", "mem is 0.0001, and must be 0.5 to 100000 (GB)"),
    value("--mem", "8GB", "'8GB' is not a valid float", 2),
    value("--gpus", "2", "gpus is 2, and must be 0 or 1"),
    value("--gpus", "-1", "gpus is -1, and must be 0 or 1"),
    value("--gpus", "a100", "'a100' is not a valid integer", 2),
    value("--array-parallelism", "0", "array parallelism is 0, and must be at least 1"),
    value("--train", "half", "'half' is not one of 'head', 'all'", 2),
    value("--schedule", "linear", "'linear' is not one of 'constant', 'cosine'", 2),
    value("--precision", "fp64", "'fp64' is not one of 'auto', 'fp32', 'bf16', 'fp16'", 2),
    Case(
        "--precision 'fp16' --train 'all'",
        (*SUBMIT, "--precision", "fp16", "--train", "all"),
        "precision is fp16 and train is all",
    ),
    value("--cluster", "pbs", "'pbs' is not one of 'auto', 'slurm', 'local'", 2),
    value("--name", "..", f"sweep name '..' {PLAIN}"),
    value("--name", "a/b", f"sweep name 'a/b' {PLAIN}"),
    value("--name", "/etc", f"sweep name '/etc' {PLAIN}"),
    value("--name", "-x", f"sweep name '-x' {PLAIN}"),
    value("--name", ".hidden", f"sweep name '.hidden' {PLAIN}"),
    value("--name", "", f"sweep name '' {PLAIN}"),
    value("--name", "a\nb", f"sweep name 'a\\nb' {PLAIN}"),
    value("--name", "a\x1b[2Jb", f"sweep name 'a\\x1b[2Jb' {PLAIN}"),
    value("--name", "a\0b", f"sweep name 'a\\x00b' {PLAIN}"),
    value("--name", LONG, f"sweep name '{LONG}' {PLAIN}"),
    Case(
        "--name of a file",
        (*SUBMIT, "--name", "taken"),
        "runs/taken exists, and is not a sweep",
        make=lambda here: _write(here / "runs/taken", b"mine"),
    ),
    Case(
        "--name of a folder with other things in it",
        (*SUBMIT, "--name", "taken"),
        "runs/taken exists, and is not a sweep",
        make=lambda here: _write(here / "runs/taken/thesis.txt", b"mine"),
    ),
    value("--partition", "gpu\n#SBATCH --uid=0", "partition is 'gpu\\n#SBATCH --uid=0', and must"),
    value("--partition", "-gpu", "partition is '-gpu', and must be a name"),
    value("--partition", "gpu --uid=0", "partition is 'gpu --uid=0', and must be a name"),
    value("--partition", "$(touch pwned)", "partition is '$(touch pwned)', and must be a name"),
    value("--account", "lab\rx", "account is 'lab\\rx', and must be a name"),
    value("--account", "", "account is '', and must be a name"),
    value("--qos", "--help", "qos is '--help', and must be a name"),
    value("--setup", "module\0load", "setup is 'module\\x00load', and must be shell lines"),
    value("--python", "", "python is '', and must be shell words that start Python"),
    value("--python", "'/opt/my python", 'python is "\'/opt/my python", and must be shell words'),
    value("--python", "python\nrm x", "python is 'python\\nrm x', and must be shell words"),
    value("--data", "nowhere", "image folder nowhere: no such folder"),
    value("--data", "no\nwhere", "image folder no\\nwhere: no such folder"),
    value("--data", "no\0where", "--data no\\x00where: not a path in UTF-8 without NUL bytes"),
    value("--data", LONG, f"--data {LONG}: File name too long"),
    value("--weights", "nowhere", "nowhere: no such file"),
    value("--weights", "\udcff", "--weights \\udcff: not a path in UTF-8 without NUL bytes"),
    value("--runs", LONG, f"--runs {LONG}: File name too long"),
    Case(
        "--runs is a file",
        (*SUBMIT, "--runs", "taken"),
        "--runs taken: taken is a file",
        make=lambda here: _write(here / "taken", b"mine"),
    ),
    Case(
        "--runs below a file",
        (*SUBMIT, "--runs", "taken/runs", "--dry-run"),
        "--runs taken/runs: taken is a file",
        make=lambda here: _write(here / "taken", b"mine"),
    ),
    Case(
        "--runs open to everybody",
        (*SUBMIT, "--runs", "open/runs"),
        "{here}/open can be written by everybody, who could replace open/runs/",
        make=lambda here: (here / "open").mkdir() or (here / "open").chmod(0o777),
    ),
    weights("missing", Path.unlink, "weights/resnet18.safetensors: no such file"),
    weights("a folder", _folder, "weights/resnet18.safetensors: cannot be read: Is a directory"),
    weights(
        "empty",
        lambda file: file.write_bytes(b"") and None,
        "not a safetensors file, or incomplete",
    ),
    weights("cut", _cut, "weights/resnet18.safetensors: not a safetensors file, or incomplete"),
    weights("cut, SHA256SUMS beside it", _cut, "damaged: its SHA-256 is", listed=True),
    weights("a byte flipped", _flip, "damaged: its SHA-256 is", listed=True),
    weights("a .pth", _pickle, "weights/resnet18.safetensors: a torch file (.pth)"),
    weights(
        "a Git LFS pointer",
        lambda file: _write(file, b"version https://git-lfs.github.com/spec/v1\noid sha256:5c10\n"),
        "weights/resnet18.safetensors: a Git LFS pointer, not the weights",
        listed=True,
    ),
    weights(
        "an HTML page",
        lambda file: _write(file, b"<!DOCTYPE html><html><body>Log in</body></html>"),
        "weights/resnet18.safetensors: an HTML page, not weights",
    ),
    weights("another network", _other_architecture, "architecture resnet99, resnet18, resnet34,"),
    Case(
        "weights: not those of --arch",
        (*SUBMIT, "--arch", "resnet50", "--weights", "weights/resnet18.safetensors"),
        "weights/resnet18.safetensors: the weights of resnet18, but --arch is resnet50",
    ),
    Case(
        "weights: --arch is not fetched",
        (*SUBMIT, "--arch", "vit_b_16"),
        "weights/vit_b_16.safetensors: no such file",
    ),
    images("a file", _file, "skin_cancer: not a folder, a zip or a tar"),
    images(
        "no test/",
        lambda tree: shutil.rmtree(tree / "test"),
        "1 faulty folder: skin_cancer/test (no",
    ),
    images(
        "one is empty",
        lambda tree: _write(tree / "train/benign/0.jpg", b""),
        "1 of 24 images faulty: skin_cancer/train/benign/0.jpg (empty file)",
    ),
    images(
        "one is a page",
        lambda tree: _write(tree / "train/benign/0.jpg", b"<html>"),
        "1 of 24 images faulty: skin_cancer/train/benign/0.jpg (not an image",
    ),
    value("--job", "nowhere.toml", "job file nowhere.toml: no such file"),
    value("--job", "weights", "job file weights: Is a directory"),
    job_file("[train", IN_JOB),
    job_file(b"[train]\nlr = '\xff'", f"{IN_JOB}'utf-8' codec can't decode byte 0xff"),
    job_file("[trian]\nepochs = 3", f"{IN_JOB}unknown table: 'trian'"),
    job_file("epochs = 3", f"{IN_JOB}unknown table: 'epochs'"),
    job_file("train = 3", f"{IN_JOB}train is a value, not a table"),
    job_file("[train]\nepoch = 3", f"{IN_JOB}unknown key in [train]: 'epoch'"),
    job_file("[train]\npartition = 'x'", f"{IN_JOB}unknown key in [train]: 'partition'"),
    job_file("[train]\nepochs = '20'", f"{IN_JOB}epochs is '20', and must be a whole number"),
    job_file("[train]\nepochs = true", f"{IN_JOB}epochs is True, and must be a whole number"),
    job_file("[train]\nepochs = 2.9", f"{IN_JOB}epochs is 2.9, and must be a whole number"),
    job_file("[train]\nepochs = {a = 1}", f"{IN_JOB}epochs is {{'a': 1}}, and must be a whole"),
    job_file("[train]\nepochs = 0", f"{IN_JOB}epochs is 0, and must be 1 to 1000000"),
    job_file("[train]\nepochs = 3\nupdates = 9", f"{IN_JOB}epochs = 3 and updates = 9: keep only"),
    job_file("[train]\nupdates = 0", f"{IN_JOB}updates is 0, and must be 1 to 1000000"),
    job_file("[train]\nbatch_sizes = [4, 0]", f"{IN_JOB}batch size is 0, and must be at least 1"),
    job_file("[train]\nseeds = '9999999999999999999'", f"{IN_JOB}seed is 9999999999999999999, and"),
    job_file("[train]\nbatch_sizes = [32, 'x']", f"'x' in '32,x' {WHOLE}", 2),
    job_file("[train]\nbatch_sizes = [[32]]", f"{IN_JOB}batch_sizes is [[32]], and must be a list"),
    job_file("[train]\nbatch_sizes = 32.5", f"{IN_JOB}batch_sizes is 32.5, and must be a list"),
    job_file("[train]\nbatch_sizes = []", f"'' in '' {WHOLE}", 2),
    job_file("[train]\nlr = true", f"{IN_JOB}lr is True, and must be a list of numbers"),
    job_file("[train]\nlr = nan", f"{IN_JOB}lr is nan, and must be a number above 0"),
    job_file("[train]\ndata = 5", f"{IN_JOB}data is 5, and must be text in quotes"),
    job_file('[train]\ndata = "a\\u0000b"', "job file job.toml: data has a NUL byte in it"),
    job_file("[train]\ndevice = 'tpu'", f"{IN_JOB}Invalid value for '--device': 'tpu' is not", 2),
    job_file("[cluster]\nmem_gb = '8GB'", f"{IN_JOB}mem_gb is '8GB', and must be a number"),
    job_file("[cluster]\nmem_gb = true", f"{IN_JOB}mem_gb is True, and must be a number"),
    job_file("[cluster]\npartition = 5", f"{IN_JOB}partition is 5, and must be text in quotes"),
    job_file("[cluster]\nsetup = [1]", f"{IN_JOB}setup is [1], and must be a list of texts"),
    job_file('[cluster]\nsetup = "a\\u0000b"', "job file job.toml: setup has a NUL byte in it"),
    job_file("[cluster]\naccount = 'a b'", f"{IN_JOB}account is 'a b', and must be a name"),
    job_file("[cluster]\ngpus = 2", f"{IN_JOB}gpus is 2, and must be 0 or 1"),
    job_file("[cluster]\ntime_min = 4", f"{IN_JOB}time is 4, and must be 5 to 525600 (minutes"),
    job_file("[cluster]\nsbatch = ['--mem=4']", f"{IN_JOB}--sbatch=--mem=4 is not allowed"),
    job_file("[cluster]\nallow_node_local = 1", f"{IN_JOB}allow_node_local is 1, and must be true"),
    environment("SKINJOB_SUBMIT_EPOCHS", "many", "SKINJOB_SUBMIT_EPOCHS: Invalid value for"),
    environment("SKINJOB_SUBMIT_BATCH_SIZES", "4;8", "SKINJOB_SUBMIT_BATCH_SIZES: Invalid value"),
    environment(
        "SKINJOB_SUBMIT_MEM", "8GB", "SKINJOB_SUBMIT_MEM: Invalid value for '--mem': '8GB'"
    ),
    environment("SKINJOB_SUBMIT_TIME", "4", "SKINJOB_SUBMIT_TIME: time is 4, and must be 5 to", 1),
    environment("SKINJOB_SUBMIT_DEVICE", "tpu", "SKINJOB_SUBMIT_DEVICE: Invalid value for '--dev"),
    environment("SKINJOB_SUBMIT_DRY_RUN", "maybe", "SKINJOB_SUBMIT_DRY_RUN: Invalid value for"),
    environment("SKINJOB_SUBMIT_ALLOW_NODE_LOCAL", "x", "SKINJOB_SUBMIT_ALLOW_NODE_LOCAL: Invalid"),
    environment("SKINJOB_SUBMIT_JOB", "nowhere.toml", "job file nowhere.toml: no such file", 1),
    Case(
        "epochs and updates",
        ("submit", "--epochs", "3", "--updates", "9"),
        "--epochs 3 and --updates 9: give only one of them",
        2,
    ),
    Case("a misspelt option", ("submit", "--epoch", "3"), "No such option", 2),
    Case("an option without its value", ("submit", "--epochs"), "'--epochs' requires an arg", 2),
    Case("an extra word", ("submit", "now"), "Got unexpected extra argument (now)", 2),
    Case("a misspelt command", ("sumbit",), "No such command 'sumbit'", 2),
    Case("train without a run", ("train",), "Missing argument 'RUN...'", 2),
    Case("train of no run", ("train", "nowhere"), "nowhere is not a run: no config.json in it"),
    Case(
        "report of no sweep", ("report", "nowhere"), "nowhere: no sweep, neither here nor in runs/"
    ),
    Case("report without a sweep", ("report",), "no sweep in runs/"),
]


@dataclass(frozen=True)
class Answer:
    code: int
    errors: str


def answer(case: Case, here: Path) -> Answer:
    """Returns how `skinjob` answers a row in a folder; it runs in this process, to be fast."""
    errors = io.StringIO()
    with (
        contextlib.chdir(here) if sys.version_info >= (3, 11) else _chdir(here),
        _environment(case.env),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main(case.arguments)
        except SystemExit as end:
            return Answer(int(end.code or 0), errors.getvalue())
    raise AssertionError("main always exits")


@contextlib.contextmanager
def _chdir(here: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(here)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_project(here: Path) -> None:
    make_tree(here / "skin_cancer", num_train=8, num_test=4)
    write_untrained(here / "weights/resnet18.safetensors")


def borrow(shared: Path, here: Path) -> None:
    """Makes a project whose images and weights are links to those of *shared*."""
    here.mkdir(exist_ok=True)
    for name in ("skin_cancer", "weights"):
        (here / name).symlink_to(shared / name)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of everything in a folder, by its path in the folder."""
    paths = {p.relative_to(folder).as_posix(): p.lstat() for p in folder.rglob("*")}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in paths.items()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_project(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_wrong_input_gives_two_lines_and_changes_nothing(
    shared: Path, tmp_path: Path, case: Case
) -> None:
    """The error repeats the wrong value and has a fix; no file changes."""
    borrow(shared, tmp_path)
    case.make(tmp_path)
    before = listing(tmp_path)
    result = answer(case, tmp_path)
    lines = result.errors.splitlines()
    assert len(lines) == 2, result.errors
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("fix:   ")
    assert case.says.replace("{here}", str(tmp_path)) in lines[0]
    assert result.code == 1 or "--help" in lines[1], "of a wrong command line"
    assert result.code == case.code
    assert listing(tmp_path) == before


def test_every_row_of_the_table_is_different() -> None:
    """A repeated row would test nothing new."""
    assert len({case.id for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("table", JOB_TABLES)
def test_every_key_of_a_job_file_has_a_type(table: str, tmp_path: Path) -> None:
    """A value of the wrong type is refused for every key of a job file."""
    for key in JOB_TABLES[table]:
        file = tmp_path / f"{key}.toml"
        file.write_text(f"[{table}]\n{key} = {{a = 1}}\n")
        with pytest.raises(ConfigError, match=f"{key} is .*, and must be "):
            read_file("job file", file, JOB_TABLES)


@contextlib.contextmanager
def open_to_others(shared: Path) -> Iterator[Path]:
    """Yields a project that other users can read and write; pytest's own folders are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        here = Path(folder)
        shutil.copytree(shared, here, dirs_exist_ok=True)
        here.chmod(0o755)
        os.chown(here, 65534, 65534)
        yield here


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="being another user needs root")


@needs_root
@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (("--runs", "root/runs"), "--runs root/runs: root may not be written by you", 1),
        (("--runs", "closed/runs"), "--runs closed/runs: Permission denied", 1),
        (("--weights", "closed/file"), "--weights closed/file: Permission denied", 1),
        (("--weights", "root.toml"), "--weights root.toml: Permission denied", 1),
        (("--data", "closed"), "--data closed: Permission denied", 1),
        (("--job", "root.toml"), "job file root.toml: Permission denied", 1),
    ],
)
def test_a_path_without_permission_is_refused_by_name(
    shared: Path, arguments: tuple[str, ...], says: str, code: int
) -> None:
    """A user without permission sees which path it is, and nothing is queued."""
    with open_to_others(shared) as here:
        (here / "closed").mkdir(mode=0o700)
        (here / "root").mkdir(mode=0o755)
        _write(here / "root.toml", b"")
        (here / "root.toml").chmod(0o600)
        before = listing(here)
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        result = subprocess.run(
            [*drop, sys.executable, "-m", "skinjob", *SUBMIT, *arguments],
            cwd=here,
            env=os.environ | import_path() | {"HOME": str(here)},
            capture_output=True,
            text=True,
        )
        assert says in refusal(result, code)
        assert listing(here) == before


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Yields a folder on a separate file system, in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@needs_mount
def test_a_read_only_file_system_is_refused(shared: Path, tmp_path: Path) -> None:
    """A read-only file system is an error before any image is read, even for root."""
    borrow(shared, tmp_path)
    with mounted(tmp_path / "disk", "ro"):
        result = answer(Case("", (*SUBMIT, "--runs", "disk/runs"), ""), tmp_path)
    assert "error: --runs disk/runs: disk is on a read-only file system\n" in result.errors


@needs_mount
@pytest.mark.parametrize(
    ("arguments", "megabytes"),
    [
        # 16 + 8 images of 2 KB and as many decoded: 0.03 MB an epoch, and an eighth of the disk.
        (("--epochs", "2"), None),
        (("--epochs", "100"), 4),
        # 3 checkpoints of 3 times 46.8 MB, and a model.
        (("--train", "all", "--epochs", "1"), 469),
    ],
    ids=["it fits", "views", "checkpoints"],
)
def test_a_sweep_that_does_not_fit_the_disk_is_refused(
    shared: Path, tmp_path: Path, arguments: tuple[str, ...], megabytes: int | None
) -> None:
    """Before anything is queued, the error shows how much the sweep writes and how much is free."""
    borrow(shared, tmp_path)
    with mounted(tmp_path / "disk", "size=2m") as disk:
        case = Case("", (*SUBMIT, *arguments, "--runs", "disk", "--dry-run"), "")
        result = answer(case, tmp_path)
        assert list(disk.iterdir()) == []
    if megabytes is None:
        assert result.code == 0, result.errors
    else:
        wanted = f"error: --runs disk: the sweep writes up to {megabytes} MB, and 2 MB are free\n"
        assert result.errors.startswith(wanted)
        assert result.code == 1


def test_files_that_exist_need_no_new_space(shared: Path, tmp_path: Path) -> None:
    """The same submit again works on a full disk: existing rows and views need no new space."""

    def plan(batch_sizes: tuple[int, ...], train: str) -> Plan:
        return make_plan(
            configs=grid(
                TrainConfig(
                    data=str(shared / "skin_cancer"),
                    weights=str(shared / "weights/resnet18.safetensors"),
                    batch_size=4,
                    train=train,
                    epochs=100,
                    lr=0.1,
                ),
                batch_size=batch_sizes,
            ),
            cluster=ClusterConfig(cluster="local"),
            runs=tmp_path / "runs",
        )

    rows, views = (100 + 8) * ROW_BYTES, (16 * 100 + 8) * 2048
    assert new_bytes(plan((4,), "head"), free=0) == rows + views
    assert new_bytes(plan((4,), "head"), free=2**40) == rows + views + 24 * 224 * 224 * 3
    write_plan(plan((4,), "head"))
    assert new_bytes(plan((4,), "head"), free=0) == 0
    _write(tmp_path / "runs/.cache/views/0.safetensors", bytes(16 * 2048))
    assert new_bytes(plan((4, 8), "head"), free=0) == 2 * rows + views - 16 * 2048
    each = 10 * RESNET18.num_bytes
    assert new_bytes(plan((4, 8), "all"), free=0) == 2 * (rows + each)


@pytest.fixture
def slurm_node(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project on a machine that seems to have SLURM: sbatch is a fake that is never called."""
    borrow(shared, tmp_path)
    fake = tmp_path / "bin/sbatch"
    _write(fake, b"#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    monkeypatch.delenv("TMPDIR", raising=False)
    return tmp_path


def on_slurm(here: Path, *arguments: str, **env: str) -> Answer:
    command = ("submit", "--batch-sizes", "4", "--cluster", "slurm", "--dry-run", *arguments)
    return answer(Case("", command, "", env=env), here)


def test_on_slurm_a_path_that_nodes_cannot_see_is_refused(slurm_node: Path) -> None:
    """A path below /tmp, below $TMPDIR or in memory is refused with its option and the reason."""
    elsewhere = {"TMPDIR": str(ROOT)}
    data = str(ROOT / "data")
    for arguments, env, says in (
        ((), {}, "--data skin_cancer ("),
        (("--data", data, "--weights", "/var/tmp/w"), {}, "--weights /var/tmp/w is below /var/tmp"),
        (("--data", data, "--weights", "/dev/shm/w"), {}, "--weights /dev/shm/w is below /dev/shm"),
        (("--data", data), elsewhere, f"--data {data} is below $TMPDIR: compute nodes do not see"),
    ):
        result = on_slurm(slurm_node, *arguments, **env)
        assert result.code == 1
        assert says in result.errors
        assert "fix:   " in result.errors
        assert "--allow-node-local" in result.errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "the Python of jobs, {venv}/bin/python is below /tmp"),
        (("--python", "{venv}/bin/python"), "--python {venv}/bin/python is below /tmp"),
        (("--python", "env X=1 {venv}/bin/python"), "--python {venv}/bin/python is below /tmp"),
        (("--setup", ". {venv}/bin/activate", "--python", "env python3"), "--setup {venv}/bin/"),
        (("--python", "env python3", "--setup", "conda activate {venv}"), "--setup {venv} is"),
        (("--python", "env python3"), None),
    ],
)
def test_on_slurm_a_python_that_nodes_cannot_see_is_refused(
    slurm_node: Path, options: tuple[str, ...], says: str | None
) -> None:
    """A job's Python and the files that its set-up lines read are checked as well.

    The venv is real; its Python is a link to a file that the nodes may have.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        venv = Path(folder, "venv")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        command = [venv / "bin/python", "-m", "skinjob", "doctor", "--cluster", "slurm", "--json"]
        result = subprocess.run(
            [*command, *(word.format(venv=venv) for word in options)],
            cwd=slurm_node,
            env=os.environ | import_path(),
            capture_output=True,
            text=True,
        )
        checks = json.loads(result.stdout)["checks"]
        (check,) = [check for check in checks if check["name"] == "Python"]
        words = check["found"]
        assert ("compute nodes do not see it" in words) == bool(says)
        assert (says or "").format(venv=venv) in words
        assert not says or "--allow-node-local" in check["fix"]


def test_on_slurm_a_shared_tmp_can_be_allowed(slurm_node: Path) -> None:
    """If the nodes share /tmp, the user can say so with an option, a variable or the job file."""
    _write(slurm_node / "site.toml", b"[cluster]\nallow_node_local = true\n")
    for arguments, env in (
        (("--allow-node-local",), {}),
        ((), {"SKINJOB_SUBMIT_ALLOW_NODE_LOCAL": "1"}),
        (("--job", "site.toml"), {}),
    ):
        result = on_slurm(slurm_node, *arguments, **env)
        assert result.code == 0, result.errors


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ("100%j", "SLURM replaces % and removes"),
        ("back\\slash", "removes \\ in"),
        ("line\nbreak", "a control character such as a line break would end the #SBATCH line"),
    ],
)
def test_on_slurm_a_path_that_sbatch_would_change_is_refused(
    slurm_node: Path, runs: str, reason: str
) -> None:
    """A path that #SBATCH --output cannot contain is refused with the reason; no file is made."""
    result = on_slurm(slurm_node, "--runs", runs, "--allow-node-local")
    assert (result.code, reason in result.errors) == (1, True), result.errors
    assert not (slurm_node / runs).exists()


def test_on_slurm_a_gpu_run_without_a_gpu_is_refused(slurm_node: Path) -> None:
    """A request that cannot train is refused on the login node."""
    result = on_slurm(slurm_node, "--gpus", "0", "--device", "cuda", "--allow-node-local")
    assert result.code == 1
    assert "--device cuda needs a GPU, but --gpus is 0" in result.errors


def test_a_file_system_is_known_by_its_innermost_mount(tmp_path: Path) -> None:
    """A folder has the type of the last file system that is mounted at it or above it."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nnfs:/home /home nfs4 rw 0 0\n"
        "none /home/my\\040scratch tmpfs rw 0 0\nnone /home/twice tmpfs rw 0 0\n"
        "nfs:/b /home/twice nfs4 rw 0 0\n"
    )
    for path, kind in {
        "/data": "ext4",
        "/home/me": "nfs4",
        "/home/my scratch/runs": "tmpfs",
        "/home/twice/runs": "nfs4",
    }.items():
        assert file_system(Path(path), mounts) == kind
    assert file_system(Path("/data"), tmp_path / "none") == ""


def main_table() -> None:
    """Prints the table in Markdown."""
    print("| input | error | exit code |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder, "shared")
        make_project(shared)
        for number, case in enumerate(CASES):
            here = Path(folder, str(number))
            borrow(shared, here)
            case.make(here)
            result = answer(case, here)
            first = result.errors.splitlines()[0].removeprefix("error: ").replace(str(here), "HERE")
            cells = [case.id, _short(first), str(result.code)]
            print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:100]} ... {text[-50:]}"


@needs_root
def test_a_limit_of_threads_is_an_error(shared: Path) -> None:
    """If a login node allows too few threads, the user sees an error and not a traceback."""
    with open_to_others(shared) as here:
        os.chown(here, 54321, 54321)
        limits = ["prlimit", "--nproc=1", "setpriv", "--reuid=54321", "--clear-groups"]
        result = subprocess.run(
            [*limits, sys.executable, "-m", "skinjob", *SUBMIT, "--dry-run"],
            cwd=here,
            env=os.environ | import_path() | {"HOME": str(here)},
            capture_output=True,
            text=True,
        )
        words = "can't start new thread: the system's limit for one user is reached"
        assert refusal(result) == words


if __name__ == "__main__":
    main_table()
