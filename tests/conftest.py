"""Fixtures that more than one test file uses."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Slurm, SlurmMissingError
from trees import make_tree

from skinjob.fetch.weights import write_untrained


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real SLURM behind an air gap, with accounting, one for the session.

    Where there is none a test is skipped, and with SKINJOB_REQUIRE_SLURM=1 it fails: a machine
    that is meant to run these tests must not pass by leaving them out.
    """
    with contextlib.ExitStack() as undo:
        # A time limit's SIGTERM would end Python at once and leave the daemons running.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        undo.callback(signal.signal, signal.SIGTERM, before)
        try:
            cluster = Slurm.start(tmp_path_factory.mktemp("slurm"), accounting="dbd")
        except SlurmMissingError as missing:
            if os.environ.get("SKINJOB_REQUIRE_SLURM") == "1":
                pytest.fail(str(missing), pytrace=False)
            pytest.skip(str(missing))
        undo.callback(cluster.stop)
        yield cluster


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of random numbers, with the layout of the published one."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    return write_untrained(file).path


@pytest.fixture
def project(tmp_path: Path, weights: Path) -> Path:
    """A folder that is ready for `skinjob submit`: images and weights in their places."""
    make_tree(tmp_path / "skin_cancer", num_train=8, num_test=4)
    shutil.copytree(weights.parent, tmp_path / "weights")
    return tmp_path
