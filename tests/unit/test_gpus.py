"""GPUs are counted without torch, so that the login node can plan with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from skinjob.queues.gpus import no_gpu_reason, visible_gpus


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, ("0", "1", "2", "3")),
        ("", ()),
        (" ", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("none", ()),
        ("void", ()),
        ("1,3", ("1", "3")),
        (" 01 , 3", ("1", "3")),
        ("0,-1,1", ("0",)),
        ("0,NoDevFiles,1", ("0",)),
        ("0,,1", ("0",)),
        ("4", ()),
        ("0,4,1", ("0",)),
        ("1.5", ()),
        ("0,0", ()),
        ("1,2,01", ()),
        ("GPU-8932, 0,-1,2", ("GPU-8932", "0")),
        ("GPU-8932,GPU-8932", ()),
        ("MIG-GPU-8932/1/0,MIG-41b3", ("MIG-GPU-8932/1/0", "MIG-41b3")),
        ("GPU-", ()),
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


@pytest.mark.parametrize(("file", "seen"), [("other", ()), ("dxg", ("0",)), ("kfd", ("0",))])
def test_a_machine_without_a_gpus_driver_has_no_gpu_whatever_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, seen: tuple[str, ...]
) -> None:
    """A `CUDA_VISIBLE_DEVICES=0` in a login script makes no GPU. WSL and AMD have other files."""
    (tmp_path / file).touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert visible_gpus(tmp_path) == seen


def test_why_no_gpu_is_seen_names_the_variable_that_hides_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever expected a GPU learns that a variable keeps it away."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    words = "CUDA_VISIBLE_DEVICES='NoDevFiles' names no GPU of this machine"
    assert no_gpu_reason(tmp_path) == words
