"""A damaged view is computed again: no number comes from a bit that a disk lost."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from trees import left, make_sweep, make_tree

torch = pytest.importorskip("torch")

from skinjob.train import features as features_module  # noqa: E402  (they import torch)
from skinjob.train.features import DIGEST_BYTES, ViewCache  # noqa: E402
from skinjob.train.job import run_job  # noqa: E402

KEY = {"what": "a test", "of": "0123456789" * 10}
NUM_IMAGES, NUM_FEATURES = 21, 512
ROW_BYTES = 4 * NUM_FEATURES


@pytest.fixture(params=["in memory", "on disk"])
def cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ViewCache:
    """A cache that reads its small files first like small files, then like large files."""
    monkeypatch.setattr(
        features_module, "MAX_HELD_BYTES", (1 << 30) * (request.param == "in memory")
    )
    return ViewCache(tmp_path, NUM_FEATURES)


def rows() -> torch.Tensor:
    return torch.randn(NUM_IMAGES, NUM_FEATURES, generator=torch.Generator().manual_seed(0))


def write(cache: ViewCache) -> bytes:
    """Writes a view in parts, not in order, and returns its file's bytes."""
    with cache.writing(KEY, NUM_IMAGES) as writer:
        for first in (16, 0, 8):
            writer.put(first, rows()[first : first + 8])
    return cache.file(KEY).read_bytes()


def judge(cache: ViewCache, content: bytes) -> str:
    """Returns what becomes of a view whose file holds *content*."""
    cache.file(KEY).write_bytes(content)
    view = cache.read(KEY, NUM_IMAGES)
    if view is None:
        return "kept" if cache.has(KEY) else "removed"
    return (
        "equal"
        if torch.equal(next(view.batches([torch.arange(NUM_IMAGES)])), rows())
        else "other numbers"
    )


def test_every_flipped_bit_is_noticed(cache: ViewCache) -> None:
    """A file with a single wrong bit anywhere is removed."""
    good = write(cache)
    start = len(good) - NUM_IMAGES * ROW_BYTES - DIGEST_BYTES
    draw = random.Random(0)
    assert judge(cache, good) == "equal"
    for at in [*range(start), *draw.sample(range(start, len(good)), 1000), len(good) - 1]:
        bad = good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :]
        assert judge(cache, bad) == "removed", at


@pytest.mark.parametrize(
    "damage",
    [
        lambda good, at, to: good[:at] + bytes(to - at) + good[to:],
        lambda good, at, to: good[:at] + good[to:],
        lambda good, at, to: good[:to] + good[at:to] + good[to:],
        lambda good, at, to: good[: -(to - at)],
        lambda good, at, to: good + bytes(to - at),
        lambda good, at, to: good[:at] + good[at + ROW_BYTES : to + ROW_BYTES] + good[to:],
    ],
    ids=["zeros", "gap", "twice", "cut", "longer", "other place"],
)
def test_damaged_blocks_are_noticed(
    cache: ViewCache, damage: Callable[[bytes, int, int], bytes]
) -> None:
    """A file with zeros, gaps or moved blocks is removed, also if whole rows are affected."""
    good = write(cache)
    start = len(good) - NUM_IMAGES * ROW_BYTES - DIGEST_BYTES
    for at in range(0, 16 * ROW_BYTES, 512):
        for size in (4, 512, ROW_BYTES, 3 * ROW_BYTES):
            assert judge(cache, damage(good, start + at, start + at + size)) == "removed"


def test_a_view_with_missing_rows_is_an_error(cache: ViewCache) -> None:
    """A part that was never written is not read as zeros."""
    with (
        pytest.raises(RuntimeError, match="no features of image 16"),
        cache.writing(KEY, NUM_IMAGES) as writer,
    ):
        writer.put(0, rows()[:16])
    assert not cache.has(KEY)


def test_a_disk_that_cannot_read_costs_only_time(
    cache: ViewCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view on a bad sector, here a fake, counts as missing."""
    write(cache)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    assert cache.read(KEY, NUM_IMAGES) is None
    assert not cache.has(KEY)


def test_a_job_trains_on_no_damaged_view(tmp_path: Path, weights: Path) -> None:
    """With a wrong bit in each view of the cache, a run still gives the same numbers."""
    data = make_tree(tmp_path / "skin_cancer")
    whole, damaged = (
        make_sweep(data, weights, tmp_path / name, batch_sizes=[4]).runs()[0]
        for name in ("whole", "damaged")
    )
    run_job([whole.folder])
    damaged.sweep.views_folder.mkdir(parents=True)
    for view in whole.sweep.views_folder.glob("*.safetensors"):
        content = bytearray(view.read_bytes())
        content[-5 * ROW_BYTES - 2] ^= 64  # a number's exponent
        (damaged.sweep.views_folder / view.name).write_bytes(content)
    run_job([damaged.folder])
    assert left(damaged) == left(whole)
    assert damaged.state().views_computed == whole.state().views_computed == 3
    assert "a view is damaged and will be computed again" in damaged.log_file.read_text()
