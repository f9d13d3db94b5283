"""The report's page: what is on it, what it looks like in a browser, and what it can give back."""

from __future__ import annotations

import base64
import bz2
import filecmp
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import axe_script, browsing
from commands import recorded, refusal, skinjob
from local_server import Site, serving
from sweep_maker import draw_sweep, write_predictions
from trees import make_tree

from skinjob.data.audit import with_copies
from skinjob.data.images import write_index
from skinjob.data.scan import scan
from skinjob.errors import RunError
from skinjob.report import embedded
from skinjob.report.build import build_report, rebuild_report
from skinjob.report.embedded import read_files, restore, without_names
from skinjob.report.tables import read_sweep
from skinjob.sweeps.layout import Sweep

NUM_TEST = 5  # images of each class
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 375, "height": 800}
ODD = "=patient <Lovelace>.jpg"  # a test image that every run gets wrong


def draw(folder: Path) -> Sweep:
    """Makes a sweep of two batch sizes and six seeds with its images; one is always wrong."""
    data = make_tree(folder / "skin_cancer", num_train=3, num_test=NUM_TEST)
    (data / "test/malignant/0.jpg").rename(data / "test/malignant" / ODD)
    shutil.copy(data / "train/benign/0.jpg", data / "test/benign/1.jpg")
    images = with_copies(scan(data), ())
    sweep = draw_sweep(
        folder / "runs/s", batch_sizes=(4, 8), seeds=range(6), epochs=7, counts=images.counts()
    )
    write_index(images, sweep.images_file)
    info = recorded(sweep)
    info["images"]["root"] = info["recipe"]["data"] = str(data)
    info["images"]["skipped"] = [{"path": "train/benign/Bo.jpg", "fault": "empty"}]
    sweep.sweep_file.write_text(json.dumps(info))
    for number, run in enumerate(sweep.runs()):
        scores = {file.path: 0.2 + 0.6 * file.label for file in images.split("test")}
        scores[f"test/malignant/{ODD}"] = 0.03 + number / 1000
        if number % 2:
            scores["test/benign/3.jpg"] = 0.9
        if number < 2:
            scores["test/benign/4.jpg"] = 0.95
        write_predictions(run, scores, [path.split("/")[1] for path in scores])
    return sweep


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep, its images, and its report in report/."""
    folder = tmp_path_factory.mktemp("project")
    draw(folder)
    skinjob("report", "s", "--out", "report", cwd=folder, code=0)
    return folder


@pytest.fixture(scope="module")
def page(project: Path) -> Path:
    return project / "report/index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as browser:
        yield browser


def same_files(first: Path, other: Path) -> bool:
    names = sorted(path.name for path in first.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return filecmp.cmpfiles(first, other, names, shallow=False)[0] == names


def files_in(page: Path) -> str:
    """Returns the text of all files that a report.json holds."""
    values = json.loads((page.parent / "report.json").read_text())
    return bz2.decompress(base64.b64decode(values["files"])).decode()


# --- in a browser -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("viewport", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light")]
)
def test_the_page_can_be_read_by_anyone(
    browser: Any, page: Path, viewport: dict[str, int], scheme: str
) -> None:
    """axe-core finds no fault, nothing is cut off at the side, and the console stays empty."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    view, messages = context.new_page(), []
    view.on("console", lambda message: messages.append(message.text))
    view.on("pageerror", lambda error: messages.append(str(error)))
    view.goto(page.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    view.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    view.evaluate(axe_script())
    # A picture is a single image with a title to a reader of the page.
    run = "axe.run({exclude: ['svg > *']}, {resultTypes: ['violations']})"
    faults = view.evaluate(run)["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == []
    assert messages == []
    context.close()


@pytest.mark.slow
def test_the_page_asks_for_nothing(browser: Any, page: Path) -> None:
    """It makes no request, and what a stranger adds can make none and executes nothing."""
    view, requests = browser.new_page(), []
    view.on("request", lambda request: requests.append(request.url))
    view.goto(page.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    changed = page.with_name("changed.html")
    with serving(Site()) as site:
        evil = "".join(
            f"<{tag} {name}='{site.base}/{tag}'></{tag}>"
            for tag, name in (("img", "src"), ("script", "src"), ("iframe", "src"))
        )
        evil += f"<style>h1 {{ background: url({site.base}/style) }}</style>"
        evil += "<script>document.title = 'changed'</script>"
        changed.write_text(page.read_text().replace("</main>", f"{evil}</main>"))
        view.goto(changed.as_uri())
        view.wait_for_load_state("networkidle")
        assert view.title() != "changed"
        assert site.headers == []
    changed.unlink()
    view.close()


@pytest.mark.slow
def test_paper_shows_what_is_folded(browser: Any, page: Path) -> None:
    """The tables that the screen folds away are printed, without any script.

    The numbers of pictures are not: they would take 20 pages.
    """
    view = browser.new_page()
    view.goto(page.as_uri())
    tables = "[...document.querySelectorAll('section > details table')]"
    is_seen = f"{tables}.map(one => one.checkVisibility())"
    assert set(view.evaluate(is_seen)) == {False}
    view.emulate_media(media="print")
    assert set(view.evaluate(is_seen)) == {True}
    view.close()


@pytest.mark.slow
def test_the_page_is_whole_without_scripts(browser: Any, page: Path) -> None:
    """A browser with scripts off shows the same text."""
    texts = []
    for has_scripts in (True, False):
        context = browser.new_context(java_script_enabled=has_scripts)
        view = context.new_page()
        view.goto(page.as_uri())
        texts.append(view.locator("body").inner_text())
        context.close()
    assert texts[0] == texts[1]
    assert "The most confident mistakes" in texts[0]


# --- what is on it ------------------------------------------------------------------------------


def test_the_most_confident_mistakes_are_shown(page: Path) -> None:
    """Those of all runs come first, then the most frequent; the page says how many it shows."""
    text = page.read_text()
    assert "This page contains 3 test images." in text
    assert "1 test image of 10 has a copy in train" in text
    captions = re.findall(r"<b>(\w+)</b>, called (\w+) with (\d+) % in (\d+) of 12", text)
    assert captions == [
        ("malignant", "benign", "96", "12"),
        ("benign", "malignant", "90", "6"),
        ("benign", "malignant", "95", "2"),
    ]
    assert "=patient &lt;Lovelace&gt;.jpg</small>" in text
    assert "test/malignant/" not in text.partition("<script")[0]


def test_a_page_without_images_names_none(project: Path) -> None:
    """With --no-images no file of the report has a picture or the name of an image."""
    build_report([Sweep(project / "runs/s")], project / "blind", has_images=False)
    blind = project / "blind/index.html"
    seen = blind.read_text() + (project / "blind/report.json").read_text() + files_in(blind)
    for word in ("image/jpeg", "Lovelace", "Bo.jpg", ".jpg", "test/benign"):
        assert word not in seen
    assert "left out (<code>--no-images</code>)" in seen
    assert "Lovelace" in files_in(project / "report/index.html")
    rebuild_report(blind, project / "again")
    assert same_files(project / "blind", project / "again")


def test_the_checklist_has_what_is_stated_and_says_what_is_not(project: Path) -> None:
    """A row is filled from the sweep or from [study]; nothing is guessed."""
    sweep = draw_sweep(project / "stated", batch_sizes=(32,), epochs=1)
    info = recorded(sweep)
    info["study"] = {"ethics": "EK <17>"}
    info["images"]["shortcut"] = {"test_accuracy": 0.991}
    sweep.sweep_file.write_text(json.dumps(info))
    text = (build_report([sweep]).folder / "index.html").read_text()
    rows = dict(re.findall(r'<tr><th scope="row">(.+)</th><td>[^<]+</td><td>(.+)</td></tr>', text))
    assert rows["Ethics approval"] == "EK &lt;17&gt;"
    assert rows["Licence of the images"] == rows["Reference standard"] == "not stated"
    assert (
        rows["Patients or lesions"]
        == "not stated: images are treated as independent, but for copies"
    )
    assert "99.1 %" in rows["Simple baselines"]
    warnings = re.findall(r'<p class="notice">(.+)</p>', text)
    assert len(warnings) == 2
    assert "No batch size is\nbetter" in text or "No batch size is better" in text


# --- a page gives its report back ---------------------------------------------------------------


def test_a_page_gives_its_report_back(project: Path, tmp_path: Path) -> None:
    """Anywhere, without sweep and images, the same files are written, byte for byte."""
    shutil.copytree(project / "report", tmp_path / "report")
    printed = skinjob("report", "--from", "report/index.html", cwd=tmp_path, code=0).stdout
    assert "open: report-s/index.html" in printed
    assert same_files(project / "report", tmp_path / "report-s")
    data = tmp_path / "report/report.json"
    rebuild_report(data, tmp_path / "numbers")
    assert (tmp_path / "numbers/report.json").read_text() == data.read_text()
    assert "contains" not in (tmp_path / "numbers/index.html").read_text()
    skinjob(
        "report", "--from", "report/index.html", "--no-images", "--out", "blind",
        cwd=tmp_path, code=0,
    )  # fmt: skip
    assert "Lovelace" not in (tmp_path / "blind/index.html").read_text()


def test_a_run_that_cannot_be_read_stays_missing(tmp_path: Path) -> None:
    """What was missing when the page was made is missing in the copy, in the same words."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=(32, 64), seeds=range(2), epochs=3)
    runs = sweep.runs()
    runs[0].metrics_file.write_text("x")
    runs[1].config_file.unlink()
    shutil.rmtree(runs[2].folder)
    report = build_report([sweep], tmp_path / "report")
    assert len(report.missing) == 2
    shutil.rmtree(sweep.folder)
    rebuild_report(tmp_path / "report/index.html", tmp_path / "again")
    assert same_files(tmp_path / "report", tmp_path / "again")


def test_a_page_holds_no_more_than_a_report_needs(tmp_path: Path) -> None:
    """Other tables in the folders, the cluster's settings and where jobs ran do not travel."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=(32, 64), epochs=3, has_predictions=True)
    run = sweep.runs()[0]
    for folder in (sweep.folder, run.folder):
        (folder / "other.csv").write_text("patient,Lovelace")
        (folder / "notes.json").write_text('"Lovelace"')
    info = recorded(sweep)
    info |= {"cluster": {"setup": "TOKEN"}, "jobs": {run.name: "job4711"}, "folder": "/home/ada"}
    info["queue"] = "TOKEN"
    sweep.sweep_file.write_text(json.dumps(info))
    state = json.loads(run.state_file.read_text())
    state |= {"host": "node0815", "pid": 31415926, "job_id": "job4711", "fix": "cd /home/ada"}
    run.state_file.write_text(json.dumps(state))
    build_report([sweep], tmp_path / "report")
    held = files_in(tmp_path / "report/index.html")
    for word in ("Lovelace", "TOKEN", "job4711", "/home/ada", "node0815", "31415926"):
        assert word not in held
    assert "predictions.csv" in held
    rebuild_report(tmp_path / "report/index.html", tmp_path / "again")
    assert same_files(tmp_path / "report", tmp_path / "again")


def test_a_sentence_without_names_ends_after_the_status() -> None:
    """A name of an image with a colon inside is left out as a whole."""
    lines = [
        "s: bs0032-lr0.01-seed0: failed (exception) with 3 of 9 epochs: train/a/Ada: B.jpg is gone",
        "bs0032-lr0.01-seed0: not counted: Ada: B.png",
        "bs0032-lr0.01-seed0: failed with 3 of 9 epochs: no space: disk",
    ]
    assert without_names(lines) == [
        "s: bs0032-lr0.01-seed0: failed (exception) with 3 of 9 epochs",
        "bs0032-lr0.01-seed0: not counted",
        lines[2],
    ]


def test_a_damaged_list_of_images_does_not_end_the_report(project: Path, tmp_path: Path) -> None:
    """A cell that is too long for Python's csv counts as no list, also without names."""
    sweep = Sweep(shutil.copytree(project / "runs/s", tmp_path / "s"))
    text = sweep.images_file.read_text()
    sweep.images_file.write_text(text + '"' + "x" * 140_000)
    predictions = sweep.runs()[0].predictions_file
    predictions.write_text(predictions.read_text() + '"' + "x" * 140_000)
    for has_images in (True, False):
        out = tmp_path / f"report-{has_images}"
        build_report([sweep], out, has_images=has_images)
        rebuild_report(out / "index.html", tmp_path / f"again-{has_images}")
        assert same_files(out, tmp_path / f"again-{has_images}")


def test_the_list_of_images_counts_without_images_that_have_no_copy(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep of many images is in its page, however long the list is."""
    sweep = Sweep(shutil.copytree(project / "runs/s", tmp_path / "s"))
    header, *rows = sweep.images_file.read_text().splitlines()
    unique = ",".join(
        f"{n}" if name != "copies" else "" for n, name in enumerate(header.split(","))
    )
    many = "".join(f"x{n}{unique}\n" for n in range(20_000))
    sweep.images_file.write_text("\n".join([header, *rows, many]))
    monkeypatch.setattr(embedded, "MOST_BYTES", sweep.images_file.stat().st_size // 2)
    assert read_files(read_sweep(sweep))


def test_a_page_of_a_large_sweep_does_not_hold_its_files(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit the page has the results only, and --from says so."""
    monkeypatch.setattr(embedded, "MOST_BYTES", 10_000)
    build_report([Sweep(project / "runs/s")], tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "--from" not in text
    assert "The answer" in text
    with pytest.raises(RunError, match=r"index\.html does not hold its sweeps"):
        rebuild_report(tmp_path / "index.html", tmp_path / "again")


def changed_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        values = json.loads(text)
        change(values)
        return json.dumps(values)

    return apply


def packed(files: Any) -> str:
    return base64.b64encode(bz2.compress(json.dumps(files).encode())).decode()


BAD: dict[str, tuple[Callable[[str], str], str]] = {
    "a picture": (lambda text: "\x89PNG", "is no page of skinjob report"),
    "half a file": (lambda text: text[:-100], "is no page of skinjob report"),
    "a newer format": (changed_json(lambda v: v.update(format=99)), "made by a newer skinjob"),
    "a list": (lambda text: "[]", "is no page of skinjob report"),
    "no files": (changed_json(lambda v: v.update(files=None)), "does not hold its sweeps"),
    "another folder": (
        changed_json(lambda v: v.update(files=packed({"../x": {"sweep.json": ""}}))),
        "'../x' is no sweep",
    ),
    "another place": (
        changed_json(lambda v: v.update(files=packed({"x": {"sweep.json": "", "../a.csv": ""}}))),
        "'../a.csv' is no file of a sweep",
    ),
    "a program": (
        changed_json(lambda v: v.update(files=packed({"x": {"sweep.json": "", "r/a.pkl": ""}}))),
        "'r/a.pkl' is no file of a sweep",
    ),
    "a bomb": (
        changed_json(
            lambda v: v.update(files=base64.b64encode(bz2.compress(bytes(10_001))).decode())
        ),
        "too large",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_page_is_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A damaged, foreign or evil file is an error, and nothing is written outside a sweep."""
    monkeypatch.setattr(embedded, "MOST_UNPACKED", 10_000)
    change, words = BAD[kind]
    text = (project / "report/report.json").read_text()
    (tmp_path / "page.json").write_text(change(text))
    with pytest.raises(RunError) as raised:
        restore(tmp_path / "page.json", tmp_path / "in/sweeps")
    assert words in raised.value.message
    assert {path.name for path in tmp_path.iterdir()} <= {"page.json", "in"}
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_page_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error has the path; a sweep beside --from is a wrong command line."""
    assert "no.html: No such file" in refusal(skinjob("report", "--from", "no.html", cwd=tmp_path))
    assert skinjob("report", "s", "--from", "no.html", cwd=tmp_path).returncode == 2
