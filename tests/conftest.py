"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Slurm, running_slurm
from trees import make_tree
from untrained import write_untrained

GOLDENS = Path(__file__).parent / "golden"

collect_ignore = ["support"]  # pytest would put no_torch/, a fake torch, on the path

# Two test files run at the same time: jobs with a thread for every core would thrash.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Under nohup and in a shell's background, Python and its child processes ignore these signals.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with what its folder or its fixtures need, and puts the longest file first.

    A long file at the end would run alone, while the other process has nothing to do.
    """
    for item in items:
        folder = item.path.parent.name
        if folder == "slurm" or "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker("slurm")
        if folder == "train":
            item.add_marker("train")
    items.sort(key=lambda item: item.path.name != "test_slurm_resume.py")


@pytest.fixture(scope="session", autouse=True)
def no_own_profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hides the user's own site profile from the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_queue() -> Iterator[None]:
    """Gives each process of tests its own queue on this machine."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)  # some tests run as another user
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)  # Python caches it
        yield


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real SLURM with accounting, behind an air gap; all tests of a process share it."""
    with running_slurm(tmp_path_factory.mktemp("slurm"), accounting="dbd") as cluster:
        yield cluster


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-goldens", action="store_true", help="write the files of tests/golden again"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Returns a check that a text for people equals its file in tests/golden.

    After an intended change: make test-fast ARGS="--write-goldens -k golden"
    """

    def check(name: str, text: str) -> None:
        file = GOLDENS / name
        if request.config.getoption("--write-goldens"):
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8")

    return check


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of random numbers, with the layout of the published one."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    return write_untrained(file).path


@pytest.fixture
def project(tmp_path: Path, weights: Path) -> Path:
    """A folder that is ready for `skinjob submit`: it has images and weights."""
    make_tree(tmp_path / "skin_cancer", num_train=8, num_test=4)
    shutil.copytree(weights.parent, tmp_path / "weights")
    return tmp_path
