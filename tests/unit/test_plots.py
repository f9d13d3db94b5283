"""What a picture promises: every seed is in it, labels can be read, and print and screen agree."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import recorded
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import get_data_path
from PIL import Image, ImageColor, ImageFont
from sweep_maker import draw_sweep, set_column

from skinjob.report.comparison import compare_sweep, read_all_predictions
from skinjob.report.figures import Figure
from skinjob.report.plots.canvas import DARK, LIGHT, Canvas, as_file, id_of
from skinjob.report.plots.chart import (
    LABEL_GAP,
    MOST_SEEDS,
    Panel,
    Scale,
    dodge,
    looks,
    span,
    tick_text,
)
from skinjob.report.plots.clinical import SHOWN_OF_MANY
from skinjob.report.plots.curves import (
    excess_figure,
    loss_figure,
    outcome_figure,
)
from skinjob.report.plots.gallery import figures, write_figures
from skinjob.report.plots.lines import common_scales, lines_of
from skinjob.report.tables import group_runs, read_sweep
from skinjob.sweeps.layout import Sweep

LOG_LOSS = {"primary": "log-loss"}
SVG = "{http://www.w3.org/2000/svg}"
FEWEST_GREY_STEPS = 25  # of 255, between the lines of two neighbouring batch sizes
LEAST_CONTRAST = 3.0  # of a line, by WCAG
FONT = Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"  # wider than other usual fonts


def drawn(*sweeps: Sweep) -> dict[str, Figure]:
    """Returns the figures of a report, by name."""
    tables = [read_sweep(sweep) for sweep in sweeps]
    every = group_runs(tables)
    results = []
    for table in tables:
        own = [series for series in every if series.table is table]
        predictions = read_all_predictions(own)
        results.append((compare_sweep(table, own, predictions), predictions))
    return {figure.name: figure for figure in figures(results, every)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    """Four batch sizes with three seeds each, whose AUC differ."""
    folder = tmp_path_factory.mktemp("runs")
    sweep = draw_sweep(folder / "plain", seeds=range(3), epochs=6, has_predictions=True)
    for n, run in enumerate(sweep.runs()):
        set_column(run, "test_auc", [f"{0.8 + 0.01 * epoch - 0.003 * n}" for epoch in range(6)])
    return drawn(sweep)


def test_a_report_has_one_picture_for_each_message(plain: dict[str, Figure]) -> None:
    """The page finds each picture by its section."""
    assert {name: figure.section for name, figure in plain.items()} == {
        "comparison": "curves",
        "accuracy": "curves",
        "splits": "curves",
        "forest": "comparison",
        "paired": "curves",
        "seeds": "stability",
        "roc": "clinical",
        "precision-recall": "clinical",
        "net-benefit": "clinical",
        "calibration": "probabilities",
    }


def test_every_picture_has_words_and_numbers(plain: dict[str, Figure]) -> None:
    """A reader who sees no picture gets its name, its description and the numbers behind it."""
    for name, figure in plain.items():
        svg = ElementTree.fromstring(figure.svg)
        title, description = svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")
        assert svg.get("role") == "img"
        assert title is not None
        assert title.text
        assert description is not None
        assert description.text == figure.description
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert figure.caption in figure.description
        assert figure.rows, name
        assert {len(row) for row in figure.rows} == {len(figure.columns)}


def test_no_id_comes_twice_on_a_page(tmp_path: Path) -> None:
    """Pictures of several sweeps share a page, whatever characters their names have."""
    sweeps = [draw_sweep(tmp_path / name, epochs=2) for name in ("a b", "a_20_b", "a.b", "<a>&")]
    pictures = drawn(*sweeps)
    ids = [key for figure in pictures.values() for key in re.findall(r'\bid="([^"]*)"', figure.svg)]
    assert len(ids) == 2 * len(pictures) > 10
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]+", key) for key in ids)
    assert id_of("a b") != id_of("a_20_b")


def test_every_seed_is_in_the_curves(plain: dict[str, Figure]) -> None:
    """Each run has its own thin line through all its tests, and its name under the mouse."""
    names = [f"{size}, seed {seed}" for size in (32, 64, 128, 256) for seed in range(3)]
    for name in ("comparison", "accuracy"):
        lines = titled(plain[name], "path")
        assert [len(lines[title]) for title in names] == [2] * 12  # in both panels
        assert {len(re.findall("[MLHV]", line.get("d", ""))) for line in lines[names[0]]} == {6}
    assert all(len(titled(plain["roc"], "path", ": ")[title]) == 1 for title in names)
    assert all(len(titled(plain["net-benefit"], "path")[title]) == 1 for title in names)


def test_every_seed_is_a_dot_with_its_value(plain: dict[str, Figure]) -> None:
    """The picture of the seeds has each of them, and its numbers are those of the table."""
    dots = [title for title in titles(plain["seeds"]) if "seed" in title]
    values = [f"{row[1]}, seed {row[2]}: {float(row[3]):.4g}" for row in plain["seeds"].rows]
    assert sorted(dots) == sorted(values)
    assert len(set(dots)) == 12


def test_an_outlier_is_named_beside_its_dot(tmp_path: Path) -> None:
    """A seed that makes most of the spread can be found and looked up."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32, 64], seeds=range(9), epochs=2)
    for n, run in enumerate(sweep.runs()):
        last = 0.54 if run.name == "bs0064-lr0.01-seed7" else 0.8 + 0.001 * n
        set_column(run, "test_auc", ["0.6", f"{last}"])
    figure = drawn(sweep)["seeds"]
    assert "seed 7" in texts(figure)
    assert "seed 7 of 64" in figure.caption


def test_of_many_seeds_there_are_quantiles(tmp_path: Path) -> None:
    """Above 50 runs, bands replace the single lines, and the caption says what they are."""
    sweep = draw_sweep(
        tmp_path / "s", batch_sizes=[32, 64], seeds=range(51), epochs=3, has_predictions=True
    )
    pictures = drawn(sweep)
    assert MOST_SEEDS == 50
    for name in ("comparison", "accuracy", "splits", "paired", "seeds"):
        assert not [title for title in titles(pictures[name]) if "seed" in title], name
    assert "bands: 50 % and 90 % of them" in pictures["comparison"].caption
    assert "Boxes: 50 %" in pictures["seeds"].caption
    assert len([title for title in titles(pictures["roc"]) if "seed" in title]) == 2 * SHOWN_OF_MANY
    assert f"{SHOWN_OF_MANY} of the seeds" in pictures["roc"].caption


LONG = "a-sweep-with-a-name-that-no-margin-of-a-picture-could-hold-however-wide-it-might-have-been"


@pytest.mark.parametrize(
    ("names", "kwargs"),
    [
        (["s"], {"seeds": range(3), "has_predictions": True}),
        (["s"], {"epochs": 1}),
        (["s"], {"epochs": 1000, "batch_sizes": [2, 4096]}),
        (["s"], {"batch_sizes": [2**n for n in range(12)], "epochs": 3, "has_predictions": True}),
        (["s"], {"lrs": (0.001, 0.003, 0.01, 0.03), "seeds": range(2), "epochs": 3}),
        (["s"], {"updates": 60, "seeds": range(2)}),
        ([LONG, "b"], {"batch_sizes": [32, 64], "epochs": 3}),
    ],
    ids=["plain", "one-epoch", "many-epochs", "many-sizes", "many-lrs", "updates", "long-names"],
)
def test_no_text_overlaps_another(
    tmp_path: Path, names: list[str], kwargs: dict[str, object]
) -> None:
    """In the widest usual font, all labels and numbers can be read, and none leaves the picture."""
    pictures = drawn(*(draw_sweep(tmp_path / name, **kwargs) for name in names))  # type: ignore[arg-type]
    for figure in pictures.values():
        width, height = map(float, figure.svg.split('viewBox="0 0 ')[1].split('"')[0].split())
        boxes = text_boxes(figure)
        assert len(boxes) > 3
        for box in boxes:
            assert -0.5 <= box.left < box.right <= width + 0.5, (figure.name, box)
            assert 0 <= box.top < box.bottom <= height, (figure.name, box)
        for first, other in itertools.combinations(boxes, 2):
            assert not first.meets(other), (figure.name, first, other)


@given(st.lists(st.floats(0, 200), max_size=12))
def test_labels_keep_their_distance_and_their_order(places: list[float]) -> None:
    """Wherever lines end, their labels are in the same order, apart, and beside the panel."""
    moved = dodge(places, LABEL_GAP, 0, 200)
    by_place = sorted(zip(places, moved, strict=True))
    assert all(b - a >= LABEL_GAP - 1e-6 for a, b in itertools.pairwise(sorted(moved)))
    assert [place for _, place in by_place] == sorted(moved)
    assert all(-1e-6 <= place <= 200 + 1e-6 for place in moved)
    far = [b - a >= LABEL_GAP for a, b in itertools.pairwise(sorted(places))]
    if all(far):
        assert moved == pytest.approx(places)


@pytest.mark.parametrize("num", [2, 3, 4])
def test_lines_can_be_told_apart_in_grey(num: int) -> None:
    """Printed in grey, batch sizes differ in lightness, dash and marker; on black, too."""
    own = looks(num)
    for inks, sign in ((LIGHT, 1), (DARK, -1)):
        greys = [sign * _grey(inks[look.ink]) for look in own]
        assert min(a - b for a, b in itertools.pairwise(greys)) >= FEWEST_GREY_STEPS
    assert len({look.dash for look in own}) == len({look.marker for look in own}) == num


def test_lines_stand_out_from_the_paper() -> None:
    """The lightest ink is dark enough on white, and the darkest light enough on a dark page."""
    for inks, paper in ((LIGHT, "#ffffff"), (DARK, "#121212")):
        for name, color in inks.items():
            if name not in ("text", "grid"):
                low, high = sorted((_luminance(color), _luminance(paper)))
                assert (high + 0.05) / (low + 0.05) >= LEAST_CONTRAST, (name, paper)


def test_a_file_of_its_own_has_plain_colors(plain: dict[str, Figure], tmp_path: Path) -> None:
    """On the page, colours follow a dark page; a file in a slide has none that need a browser."""
    svg = plain["comparison"].svg
    assert "prefers-color-scheme:dark" in svg
    assert set(re.findall(r'(?:fill|stroke)="(#[^"]*)"', svg)) == set()
    file = as_file(svg)
    assert not re.search("var|style>|currentColor", file)
    assert set(re.findall(r'(?:fill|stroke)="(#[^"]*)"', file)) <= {*LIGHT.values(), "#fff"}
    write_figures(tmp_path, list(plain.values()))
    assert (tmp_path / "comparison.svg").read_text("utf-8") == file
    assert {file.stem for file in tmp_path.iterdir()} == set(plain)
    assert len(list(tmp_path.iterdir())) == 3 * len(plain)


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    """A report made twice is the same byte for byte, so that it can be kept in git."""
    sweep = draw_sweep(tmp_path / "s", seeds=range(2), epochs=3)
    once, again = (drawn(sweep)["comparison"] for _ in range(2))
    assert once == again
    assert once.png == again.png
    picture = Image.open(io.BytesIO(once.png))
    assert "Software" not in picture.info
    assert picture.size[0] == 1440


def test_a_print_has_what_the_screen_has(plain: dict[str, Figure]) -> None:
    """The PNG has each batch size's colour, from the same shapes as the SVG."""
    picture = Image.open(io.BytesIO(plain["comparison"].png)).convert("RGB")
    counts = {color: num for num, color in picture.getcolors(1 << 20) or []}
    for look in looks(4):
        assert counts.get(ImageColor.getrgb(LIGHT[look.ink]), 0) > 300, look


@pytest.mark.filterwarnings("error")
def test_a_wide_band_stays_in_its_panel() -> None:
    """The interval of three seeds may be many times as wide as their differences."""
    canvas, edge = Canvas(200, 100), 1e-6
    panel = Panel(canvas, (20, 10, 150, 70), Scale(0, 2), Scale(-1, 1))
    panel.band([0, 1, 2], np.array([-9.0, -0.5, -9.0]), np.array([9.0, 0.5, 0.2]), "3", 0.2)
    (area,) = canvas.shapes
    assert len(area.points) == 6
    assert all(10 - edge <= y <= 80 + edge for _, y in area.points)


def test_two_losses_that_diverged_have_no_difference(tmp_path: Path) -> None:
    """Where both batch sizes of a pair have no loss, the difference is a gap, and nothing warns."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32, 64], seeds=range(2), epochs=3)
    info = recorded(sweep)
    sweep.sweep_file.write_text(json.dumps(info | {"recipe": info["recipe"] | LOG_LOSS}))
    for run in (sweep.runs()[0], sweep.runs()[2]):
        set_column(run, "test_loss", ["0.9", "inf", "0.8"])
    figure = drawn(sweep)["paired"]
    assert [row[2] == "-" for row in figure.rows] == [False, True, False]


def test_scales_hold_every_value(tmp_path: Path) -> None:
    """No curve leaves its panel, and a loss that diverged stretches none."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32, 64], seeds=range(2), epochs=3)
    set_column(sweep.runs()[0], "test_loss", ["0.9", "inf", ""])
    figure = drawn(sweep)["comparison"]
    assert not re.search(r"\b(nan|inf)\b", re.sub("<desc.*?</desc>", "", figure.svg))
    lines = titled(figure, "path")["32, seed 0"]
    assert {len(re.findall("[MLHV]", line.get("d", ""))) for line in lines} == {1}
    for line in figure.svg.split("\n"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", line):
            assert 0 <= float(x) <= 720
            assert 0 <= float(y) <= 360


@pytest.mark.parametrize("epochs", [1, 2, 7, 200])
def test_epochs_are_whole_numbers(tmp_path: Path, epochs: int) -> None:
    """No axis has an epoch 1.5, however short the runs."""
    figure = drawn(draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=epochs))["splits"]
    bottom = max(box.bottom for box in text_boxes(figure) if box.text.isdigit())
    ticks = [box.text for box in text_boxes(figure) if abs(box.bottom - bottom) < 1]
    assert ticks
    assert all(tick.isdigit() for tick in ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 12))
def test_ticks_are_few_and_inside(low: float, length: float, most: int) -> None:
    """Whatever its values, an axis has round numbers, and no more than fit."""
    scale = Scale(low, low + max(length, abs(low) * 1e-6))
    ticks = scale.ticks(most)
    slack = 1e-6 * (scale.high - scale.low)
    assert len(ticks) <= most + 1
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in ticks)


def test_an_axis_of_equal_values_has_a_length() -> None:
    """A curve that does not change is drawn as a line."""
    for values in ([0.0, 0.0], [1.0], [], [float("nan")]):
        scale = span(values)
        assert scale.low < scale.high
        assert np.isfinite([scale.low, scale.high]).all()


@pytest.mark.parametrize(("low", "high"), [(0.28, 0.75), (3.2, 616), (4, 5), (1, 1e6)])
def test_an_axis_of_powers_has_ticks_to_read(low: float, high: float) -> None:
    """Within a decade, too, at least two values of a log axis are written."""
    ticks = Scale(low, high, is_log=True).ticks(8)
    assert 2 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)


def test_differences_of_rounding_are_no_axis() -> None:
    """Where values are equal but for the last digit, ticks stay short enough to be read."""
    scale = span([0.93, 0.929999])
    ticks = scale.ticks(6)
    assert len(ticks) >= 3
    assert max(len(tick_text(tick, ticks[1] - ticks[0])) for tick in ticks) <= 5


def test_the_converged_head_is_a_level(tmp_path: Path) -> None:
    """Where it is known how far training can come, each curve has that line, with its name."""
    all_series = group_runs([read_sweep(draw_sweep(tmp_path / "s", epochs=3))])
    levels = {"test_loss": 0.2, "test_auc": 0.97, "test_accuracy": 0.9}
    scales = common_scales(all_series, levels)
    lines = lines_of(all_series, ["32", "64", "128", "256"])
    assert scales.loss.low < 0.2
    assert scales.auc.high > 0.97
    assert excess_figure(lines, scales, levels) is None
    levels["train_loss"] = 0.1
    for draw, num in ((loss_figure, 1), (outcome_figure, 2), (excess_figure, 0)):
        figure = draw(lines, scales, levels)
        assert figure
        assert texts(figure).count("converged") == num
        boxes = text_boxes(figure)
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].meets(pair[1])]


@pytest.mark.parametrize("exists", [True, False])
def test_only_a_converged_head_that_exists_is_drawn(tmp_path: Path, exists: bool) -> None:
    """Where a head tells all training images apart, there is no best one to come near to."""
    sweep = draw_sweep(tmp_path / "s", epochs=3)
    record = {"format": 2, "exists": exists, "metrics": {"train_loss": 0.1, "test_loss": 0.2}}
    sweep.converged_file.write_text(json.dumps(record))
    pictures = drawn(sweep)
    assert ("converged" in texts(pictures["comparison"])) is exists
    assert ("excess" in pictures) is exists


def test_runs_that_count_updates_are_drawn_by_updates(tmp_path: Path) -> None:
    """Where batch sizes end after the same updates, their ends and labels are side by side."""
    sweep = draw_sweep(tmp_path / "s", updates=60, seeds=range(2))
    pictures = drawn(sweep)
    assert "test AUC, by updates" in texts(pictures["accuracy"])
    assert pictures["paired"].columns[1] == "updates"
    points = read_sweep(sweep).tests[sweep.runs()[0].name]["update"]
    pair = [row[1] for row in pictures["paired"].rows if row[0] == "64 minus 32"]
    assert pair == [f"{point:g}" for point in points]
    panels = [text for text in texts(pictures["comparison"]) if ", by " in text]
    assert panels == ["test loss, by epochs", "test loss, by updates"]


def test_runs_that_are_behind_are_drawn(tmp_path: Path) -> None:
    """A run that is not yet in the mean is there, and the caption says which lines those are."""
    sweep = draw_sweep(
        tmp_path / "s",
        batch_sizes=[32],
        seeds=range(2),
        epochs=3,
        finished={"bs0032-lr0.01-seed1": 2},
    )
    figure = drawn(sweep)["comparison"]
    assert "bs0032-lr0.01-seed1, behind" in titles(figure)
    assert "a run that is behind" in figure.caption


class Box(NamedTuple):
    """Where a text is."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not beside and self.top < other.bottom and other.top < self.bottom


def text_boxes(figure: Figure) -> list[Box]:
    """Returns the box of each text, as high as its capital letters."""
    boxes = []
    for text in ElementTree.fromstring(figure.svg).iter(f"{SVG}text"):
        size, x, y = (float(text.get(key, "0")) for key in ("font-size", "x", "y"))
        bold = text.get("font-weight") == "bold"
        path = FONT.with_name("DejaVuSans-Bold.ttf") if bold else FONT
        width = ImageFont.truetype(str(path), 100).getlength(text.text or "") * size / 100
        left = (
            x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor", "start")]
        )
        boxes.append(Box(text.text or "", left, y - 0.73 * size, left + width, y + 0.1 * size))
    return boxes


def texts(figure: Figure) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")]


def titles(figure: Figure) -> list[str]:
    """Returns what is under the mouse somewhere."""
    svg = ElementTree.fromstring(figure.svg)
    return [title.text or "" for shape in svg for title in shape.findall(f"{SVG}title")]


def titled(figure: Figure, kind: str, end: str = "$") -> dict[str, list[ElementTree.Element]]:
    """Returns the shapes of a kind by their title, up to *end*."""
    shapes: dict[str, list[ElementTree.Element]] = {}
    for shape in ElementTree.fromstring(figure.svg).iter(SVG + kind):
        for title in shape.findall(f"{SVG}title"):
            shapes.setdefault((title.text or "").split(end)[0], []).append(shape)
    return shapes


def _grey(color: str) -> int:
    return Image.new("RGB", (1, 1), ImageColor.getrgb(color)).convert("L").getpixel((0, 0))


def _luminance(color: str) -> float:
    """Returns the relative luminance of WCAG."""
    parts = [part / 255 for part in ImageColor.getrgb(color)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    weights: Sequence[float] = (0.2126, 0.7152, 0.0722)
    return sum(weight * part for weight, part in zip(weights, linear, strict=True))
