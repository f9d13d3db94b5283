"""Settings that the user has for other tools change no byte of a report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from commands import skinjob
from sweep_maker import draw_sweep

from skinjob.report.build import build_report
from skinjob.sweeps.layout import Sweep

pytestmark = pytest.mark.slow  # each test makes reports in new processes

SETTINGS = """\
font.family: monospace
font.size: 20
text.usetex: True
savefig.dpi: 300
savefig.bbox: tight
axes.facecolor: yellow
lines.markeredgewidth: 3
svg.fonttype: path
"""


def written(folder: Path) -> dict[str, str]:
    """Returns the digest of each file of a report, by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Runs of two seeds, so that the table has all of its columns."""
    runs = tmp_path_factory.mktemp("project") / "runs"
    return draw_sweep(runs / "s", batch_sizes=[32, 64], seeds=[0, 1], epochs=4)


@pytest.fixture(scope="module")
def plain(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """What `skinjob report` prints and writes without any settings."""
    empty = tmp_path_factory.mktemp("empty")
    result = skinjob("report", sweep.folder, cwd=empty, COLUMNS="", MPLBACKEND="", HOME=str(empty))
    assert result.returncode == 0, result.stderr
    return result.stdout, written(sweep.report_folder)


def _settings_file(folder: Path) -> dict[str, str]:
    """A file that MATPLOTLIBRC names, in a shell inside Jupyter."""
    (folder / "rc").write_text(SETTINGS)
    inline = "module://matplotlib_inline.backend_inline"
    return {"MPLBACKEND": inline, "MATPLOTLIBRC": str(folder / "rc")}


def _in_the_current_folder(folder: Path) -> dict[str, str]:
    """The settings file that wins over all others, and the width of a narrow terminal."""
    (folder / "matplotlibrc").write_text(SETTINGS)
    return {"COLUMNS": "30"}


def _in_the_home_folder(folder: Path) -> dict[str, str]:
    """A settings file in ~/.config, and warnings turned into errors."""
    file = folder / ".config/matplotlib/matplotlibrc"
    file.parent.mkdir(parents=True)
    file.write_text(SETTINGS)
    return {"HOME": str(folder), "XDG_CONFIG_HOME": "", "PYTHONWARNINGS": "error"}


def _damaged(folder: Path) -> dict[str, str]:
    """A settings file that is not text, and no folder for a cache."""
    (folder / "matplotlibrc").write_bytes(b"font.family: m\xe9\n")
    return {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": "/proc/none", "NO_COLOR": "1"}


@pytest.mark.parametrize(
    "leave", [_settings_file, _in_the_current_folder, _in_the_home_folder, _damaged]
)
def test_settings_for_other_tools_change_no_byte(
    sweep: Sweep,
    plain: tuple[str, dict[str, str]],
    tmp_path: Path,
    leave: Callable[[Path], dict[str, str]],
) -> None:
    """A shell inside Jupyter, or fonts chosen for a paper, give the same report."""
    result = skinjob("report", sweep.folder, cwd=tmp_path, **leave(tmp_path))
    assert (result.stdout, result.stderr) == (plain[0], "")
    assert written(sweep.report_folder) == plain[1]


@pytest.fixture
def set_in_this_process() -> Iterator[None]:
    with (
        matplotlib.rc_context({"font.size": 20, "savefig.dpi": 300, "text.usetex": True}),
        pd.option_context("display.precision", 1, "display.float_format", "{:.0f}".format),
    ):
        yield


def test_settings_of_the_calling_program_change_no_byte(
    sweep: Sweep, plain: tuple[str, dict[str, str]], set_in_this_process: None, tmp_path: Path
) -> None:
    """A program with its own settings of matplotlib and pandas gets the same report."""
    build_report([sweep], tmp_path / "out")
    assert written(tmp_path / "out") == plain[1]
    assert matplotlib.rcParams["font.size"] == 20  # the program keeps its settings
