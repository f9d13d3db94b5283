"""Fixtures that more than one test file uses."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Slurm, running_slurm
from commands import SMALL, only_sweep, skinjob
from trees import make_tree
from untrained import write_untrained

from skinjob.queues.local import LocalQueue

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
    """Marks each test with what its folder or its fixtures need, and puts files into their order.

    The longest is first: at the end it would run alone. Then files that mostly wait for SLURM take
    turns with files that compute, so that the processes share the cores well.
    """
    for item in items:
        folder = item.path.parent.name
        if folder == "slurm" or "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker("slurm")
        if folder == "train":
            item.add_marker("train")
    files = dict.fromkeys(item.path for item in items)
    waiting = [path for path in files if path.parent.name == "slurm"]
    waiting.sort(key=lambda path: path.name != "test_slurm_resume.py")
    computing = [path for path in files if path.parent.name != "slurm"]
    computing.sort(key=lambda path: path.parent.name != "train")
    pairs = itertools.zip_longest(waiting, computing)
    order = [path for pair in pairs for path in pair if path]
    items.sort(key=lambda item: order.index(item.path))


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
    """A weights file of random numbers, with the layout of the published one.

    Its input is small: with 224 pixels, the tests' many jobs would take a second more, each.
    """
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    return write_untrained(file, crop=64).path


@pytest.fixture
def project(tmp_path: Path, weights: Path) -> Path:
    """A folder that is ready for `skinjob submit`: it has images and weights."""
    make_tree(tmp_path / "skin_cancer", num_train=8, num_test=4)
    shutil.copytree(weights.parent, tmp_path / "weights")
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A project whose sweep of two runs has been trained by `submit`; tests do not change it."""
    folder = tmp_path_factory.mktemp("trained")
    make_tree(folder / "skin_cancer", num_train=8, num_test=4)
    shutil.copytree(weights.parent, folder / "weights")
    skinjob("submit", *SMALL, "--wait", cwd=folder, code=0)
    LocalQueue().require_free(only_sweep(folder / "runs"))  # its queue needs some seconds to end
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A copy of a project with a finished sweep; `submit` with SMALL continues that sweep."""
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
