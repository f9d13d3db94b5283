"""What a picture promises: the same axes, legible in grey, the same file from the same numbers."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import pytest
from PIL import Image, ImageColor
from sweep_maker import draw_sweep

from skinjob.report import plots
from skinjob.report.measures import ACCURACY, LOSS
from skinjob.report.plots import Scale, common_scale, draw_batch, draw_comparison, looks
from skinjob.report.tables import Series, group_runs, read_sweep
from skinjob.sweeps.records import METRICS

pytestmark = pytest.mark.slow  # each test draws figures

FEWEST_GREY_STEPS = 25  # of 255, between two lines that lie side by side
DARKEST_PAPER = 190  # a line on white paper is darker than this grey


def make_series(folder: Path, **kwargs: object) -> list[Series]:
    return group_runs([read_sweep(draw_sweep(folder, **kwargs))])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Series]:
    return make_series(tmp_path_factory.mktemp("runs") / "plain")


def test_batch_sizes_are_drawn_to_one_scale(series: list[Series], tmp_path: Path) -> None:
    """Pictures laid side by side can be compared by eye: all have the same ticks in one place."""
    scale = common_scale(series)
    ends = (series[0], series[-1])
    svgs = [draw_batch(one, scale, tmp_path / f"b{one.batch_size}")[1] for one in ends]
    smallest, largest = map(_ticks, svgs)
    assert len(smallest) > 10
    assert smallest == largest


def test_the_scale_holds_every_value(series: list[Series]) -> None:
    """No curve leaves its panel."""
    scale = common_scale(series)
    for one in series:
        for part in ("train", "test"):
            losses, accuracies = one.rows[f"{part}_loss"], 100 * one.rows[f"{part}_accuracy"]
            for axis, values in ((LOSS, losses), (ACCURACY, accuracies)):
                low, high = scale.limits[axis]
                assert low < values.min() <= values.max() < high
        assert scale.updates[0] < one.rows["updates"].min()
        assert one.rows["updates"].max() < scale.updates[1]
    assert scale.epochs == 20
    assert scale.majority == pytest.approx(100 * 360 / 660)


def test_lines_can_be_told_apart_in_grey() -> None:
    """Printed in grey, four batch sizes differ in lightness, and in line style and marker too."""
    greys = [_grey(look.color) for look in looks(4)]
    steps = [before - after for before, after in itertools.pairwise(greys)]
    assert min(steps) >= FEWEST_GREY_STEPS
    assert max(greys) <= DARKEST_PAPER
    assert len({str(look.line) for look in looks(4)}) == 4
    assert len({look.marker for look in looks(4)}) == 4


def test_train_and_test_can_be_told_apart_in_grey(series: list[Series], tmp_path: Path) -> None:
    """In the PNG, turned to grey, a dark line and a light one are both there."""
    png = draw_batch(series[0], common_scale(series), tmp_path / "b")[0]
    grey = Image.open(png).convert("L")
    counts = grey.histogram()
    light, dark = (_grey(look.color) for look in looks(2))
    assert sum(counts[dark - 4 : dark + 5]) > 500
    assert sum(counts[light - 4 : light + 5]) > 500
    assert light - dark >= 100


@pytest.mark.parametrize("draw", ["batch", "comparison"])
def test_the_same_numbers_give_the_same_files(
    series: list[Series], tmp_path: Path, draw: str
) -> None:
    """A report made twice is the same byte for byte, so that it can be kept in git."""
    scale = common_scale(series)
    contents = []
    for folder in ("once", "again"):
        stem = tmp_path / folder / "picture"
        if draw == "batch":
            files = draw_batch(series[0], scale, stem)
        else:
            files = draw_comparison(series, ["32", "64", "128", "256"], scale, stem)
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert b"<dc:date>" not in contents[0][1]
    assert "Software" not in Image.open(io.BytesIO(contents[0][0])).info


def test_a_comparison_names_its_axes_and_batch_sizes(series: list[Series], tmp_path: Path) -> None:
    """Epochs and updates, loss and percent are written on the axes; the legend names each line."""
    labels = [str(one.batch_size) for one in series]
    svg = draw_comparison(series, labels, common_scale(series), tmp_path / "comparison")[1]
    words = _words(svg)
    axes = {"epoch", "updates (log scale)", "test loss", "test accuracy (%)", "batch size"}
    assert axes <= set(words)
    assert set(labels) <= set(words)
    assert "comparison" not in words


def test_a_comparison_of_lrs_says_that_its_names_hold_them(tmp_path: Path) -> None:
    """Where lines differ in lr too, the legend's title says so."""
    series = make_series(tmp_path / "s", batch_sizes=[32], lrs=(0.01, 0.1), epochs=2)
    labels = ["32, lr 0.01", "32, lr 0.1"]
    svg = draw_comparison(series, labels, common_scale(series), tmp_path / "comparison")[1]
    assert {"batch size and lr", *labels} <= set(_words(svg))


def test_the_level_of_the_majority_class_is_marked(series: list[Series], tmp_path: Path) -> None:
    """What a model gets that always gives the commoner answer is written beside the accuracy."""
    svg = draw_batch(series[0], common_scale(series), tmp_path / "b")[1]
    assert "majority class 54.5 % (below)" in _words(svg)
    inside = Scale(20, (1, 1000), {LOSS: (0, 1), ACCURACY: (50, 100)}, 54.5)
    assert "majority class 54.5 %" in _words(draw_batch(series[0], inside, tmp_path / "c")[1])


def test_several_seeds_say_what_line_and_band_are(tmp_path: Path) -> None:
    """A line that is a mean is called one, and its band is explained in the picture."""
    series = make_series(tmp_path / "s", batch_sizes=[32], seeds=range(3), epochs=3)
    svg = draw_batch(series[0], common_scale(series), tmp_path / "b")[1]
    assert "mean of 3 seeds, band from lowest to highest" in _words(svg)
    series = make_series(
        tmp_path / "t",
        batch_sizes=[32],
        seeds=range(2),
        epochs=3,
        finished={"bs0032-lr0.01-seed1": 2},
    )
    svg = draw_batch(series[0], common_scale(series), tmp_path / "c")[1]
    assert "thin: a run that is behind" in _words(svg)


def test_many_runs_that_are_behind_do_not_bury_the_mean(tmp_path: Path) -> None:
    """Of more than ten the picture has no lines, and says how many there would be."""
    thin_lines = []
    for behind in (0, 10, 11):
        finished = {f"bs0032-lr0.01-seed{seed}": 2 for seed in range(behind)}
        series = make_series(
            tmp_path / str(behind), batch_sizes=[32], seeds=range(12), epochs=3, finished=finished
        )
        svg = draw_batch(series[0], common_scale(series), tmp_path / f"b{behind}")[1]
        colors = re.findall(r"stroke: (#\w+); stroke-width: 0.6", svg.read_text("utf-8"))
        thin_lines.append(sum(color in {look.color for look in looks(2)} for color in colors))
    assert thin_lines == [0, 4 * 10, 0]  # loss and accuracy, of train and test
    assert "11 runs that are behind: not drawn" in "; ".join(_words(svg))


@pytest.mark.parametrize("epochs", [1, 2, 200])
def test_epochs_are_whole_numbers(tmp_path: Path, epochs: int) -> None:
    """No epoch 1.5 on an axis, however short the run, and the picture is drawn."""
    series = make_series(tmp_path / "s", batch_sizes=[32], epochs=epochs)
    svg = draw_batch(series[0], common_scale(series), tmp_path / "b")[1]
    below = svg.read_text(encoding="utf-8").split("matplotlib.axis_2")[0]
    ticks = re.findall(r">(\d[\d.]*)</text>", below)
    assert ticks
    assert all(tick.isdigit() for tick in ticks)


@pytest.mark.parametrize(("epochs", "fewest"), [(5, 5), (20, 5), (100, 5), (1000, 4)])
def test_labels_of_updates_have_room(tmp_path: Path, epochs: int, fewest: int) -> None:
    """However many updates a run has, no two numbers below the axis run into each other."""
    series = make_series(tmp_path / "s", batch_sizes=[32, 256], epochs=epochs)
    labels = ["32", "256"]
    svg = draw_comparison(series, labels, common_scale(series), tmp_path / "comparison")[1]
    below = (
        svg.read_text(encoding="utf-8").split('id="axes_4"')[1].split('id="matplotlib.axis_8"')[0]
    )
    ticks = re.findall(r'<text[^>]* x="([\d.]+)"[^>]*>(\d+)</text>', below)
    assert len(ticks) >= fewest
    digit = 0.65 * 8.5  # points, generously
    for (left, one), (right, other) in itertools.pairwise(ticks):
        assert float(right) - float(left) > digit * (len(one) + len(other)) / 2


def test_the_last_epoch_always_has_a_marker() -> None:
    """The final value, which the table gives, can be found in the picture."""
    for number in (1, 7, 20, 21, 200):
        marked = plots._marked(number)
        assert marked[-1] == number - 1
        assert len(marked) <= plots.MOST_MARKERS


@pytest.mark.parametrize("loss", ["", "inf"])
def test_a_loss_that_diverged_leaves_the_others_legible(tmp_path: Path, loss: str) -> None:
    """A loss that is not a number is a gap, and stretches no axis."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=3)
    file = sweep.runs()[0].metrics_file
    lines = file.read_text(encoding="utf-8").split("\n")
    cells = lines[3].split(",")
    cells[list(METRICS).index("test_loss")] = loss
    file.write_text("\n".join([*lines[:3], ",".join(cells), ""]), encoding="utf-8")
    series = group_runs([read_sweep(sweep)])
    assert common_scale(series).limits[LOSS][1] < 1
    _draw_all(series, tmp_path / "out")


def _draw_all(series: list[Series], folder: Path) -> list[Path]:
    """Draws every picture of a report and returns the SVGs."""
    scale = common_scale(series)
    labels = [str(one.batch_size) for one in series]
    files = draw_comparison(series, labels, scale, folder / "comparison")
    for one in series:
        files += draw_batch(one, scale, folder / f"batch-{one.batch_size:04d}")
    return [file for file in files if file.suffix == ".svg"]


def _words(svg: Path) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg.read_text(encoding="utf-8"))


def _ticks(svg: Path) -> list[tuple[str, str]]:
    """Returns every number on an axis with its place."""
    number = r'<text[^>]* (x="[^"]+" y="[^"]+")[^>]*>([\d.]+)</text>'
    return re.findall(number, svg.read_text(encoding="utf-8"))


def _grey(color: str) -> int:
    return Image.new("RGB", (1, 1), ImageColor.getrgb(color)).convert("L").getpixel((0, 0))
