"""GPUs are counted without torch, so that the login node can plan with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from skinjob.submit.gpus import visible_gpus


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, ("0", "1", "2", "3")),
        ("", ()),
        ("-1", ()),
        ("1,10", ("1", "10")),
        ("GPU-8932, 0,-1,2", ("GPU-8932", "0")),
    ],
)
def test_gpus_are_the_drivers_files_that_cuda_may_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, seen: tuple[str, ...]
) -> None:
    """A run never gets a GPU that CUDA_VISIBLE_DEVICES keeps from it. (The files are fakes.)"""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus(tmp_path) == seen
