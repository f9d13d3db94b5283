"""`skinjob predict`, on any machine with torch."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path

import click

from skinjob.commands.arguments import find_results, runs_of, runs_option
from skinjob.commands.help import TaskCommand
from skinjob.config import ClusterConfig
from skinjob.console import print_table, printable, say
from skinjob.errors import ConfigError, RunError, WeightsError
from skinjob.files import csv_text, replacing, sha256_file
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import SweepInfo

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=TaskCommand)
@click.argument("sweep")
@click.argument("image", nargs=-1, required=True, type=FILE)
@click.option("--run", metavar="NAME", help="Run of the sweep, if it has several.")
@runs_option
@click.option(
    "--weights",
    type=FILE,
    show_default="the sweep's own file; else the file of the same name in weights/",
    help="Weights that the run began with.",
)
@click.option("--out", type=FILE, metavar="FILE.csv", help="Also write a CSV file.")
def predict(
    sweep: str,
    image: tuple[Path, ...],
    run: str | None,
    runs: Path,
    weights: Path | None,
    out: Path | None,
) -> None:
    """Print what a trained run says about other images.

    SWEEP is the folder of a run or a sweep, or a pack. Images are prepared as test images are, and
    computed on this machine's CPU. Needs torch. The numbers are for research.

    \b
    Example:
      skinjob predict my-sweep.tar --run bs0032-lr0.01-seed0 lesion.jpg
    """
    chosen = _choose_run(sweep, run, runs)
    info = chosen.sweep.info()
    trained = _trained_file(chosen)
    file = _checked_weights(weights, info)
    _require_libraries(file)
    from skinjob.train.predict import probabilities
    from skinjob.weights.file import KINDS

    classes = info.images.classes
    shares = probabilities(trained, file, image, classes).tolist()
    header = ("image", "predicted", *(f"p_{name}" for name in classes))
    rows = [
        (str(path), classes[p.index(max(p))], *(f"{value:.6f}" for value in p))
        for path, p in zip(image, shares, strict=True)
    ]
    if out:
        with replacing(out) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
            cells = [[csv_text(row[0]), csv_text(row[1]), *row[2:]] for row in rows]
            csv.writer(lines).writerows([header, *cells])
    print_table(header, [tuple(map(printable, row)) for row in rows], left=("predicted",))
    say("", "research software, not a medical device")
    if words := KINDS.get(info.weights_kind, info.weights_kind):
        say(f"the weights are {words}: these numbers say nothing about skin")


def _require_libraries(weights: Path) -> None:
    """Raises: ConfigError if this Python lacks what the network of the weights needs."""
    from skinjob.submit.checks import lacking_here, needed_packages
    from skinjob.weights.file import read_backbone

    if lacks := lacking_here(ClusterConfig(), needed_packages(read_backbone(weights))):
        words = f"predict needs {lacks}, which {sys.executable} does not have"
        raise ConfigError(words, "pip install 'skinjob[train]'")


def _choose_run(sweep: str, name: str | None, runs: Path) -> Run:
    """Returns the run that is meant. Raises: RunError if there are several, or none."""
    if Run(Path(sweep)).config_file.is_file():
        return Run(Path(sweep))
    chosen = find_results(sweep, runs)
    if name:
        return runs_of(chosen, [name])[0]
    choice = chosen.runs()
    if len(choice) != 1:
        first = choice[0].name if choice else "NAME"
        raise RunError(
            f"{sweep} has {len(choice)} runs: --run says which",
            f"skinjob predict {shlex.quote(sweep)} --run {first} IMAGE",
        )
    return choice[0]


def _trained_file(run: Run) -> Path:
    file = run.trained_file("model" if run.config().train == "all" else "head")
    if not file.is_file():
        raise RunError(
            f"{run.folder}: no {file.name}: the run is {run.state().status}",
            run.sweep.command("status"),
        )
    return file


def _checked_weights(weights: Path | None, info: SweepInfo) -> Path:
    """Returns the weights that the sweep began with. Raises: WeightsError."""
    recorded = Path(info.weights.path)
    places = [weights] if weights else [recorded, Path("weights") / recorded.name]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        names = " or ".join(map(str, places))
        fix = "skinjob fetch-weights   # or name the sweep's file with --weights"
        raise WeightsError(f"{names}: no such file", fix)
    if (actual := sha256_file(file)) != info.weights.sha256:
        raise WeightsError(
            f"{file} has SHA-256 {actual[:16]}..., the run began with "
            f"{info.weights.sha256[:16]}...",
            f"sha256sum {shlex.quote(str(file.parent))}/*   # name the same with --weights",
        )
    return file
