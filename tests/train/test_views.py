"""How views are computed: fast in whatever way, and the same numbers in every way."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from commands import import_path, wait_until
from torch import Tensor
from torchvision.models import resnet18
from trees import make_sweep, make_tree

from skinjob import locks
from skinjob.data.images import ImageSet, Split
from skinjob.data.scan import scan
from skinjob.errors import ImagesError
from skinjob.train import features as features_module
from skinjob.train.device import Device, choose_device
from skinjob.train.extract import TRIALS, BatchSize, FeatureExtractor
from skinjob.train.features import Features, ViewCache
from skinjob.train.forward import Forward
from skinjob.train.images import ImageSource, View
from skinjob.train.job import run_job
from skinjob.train.model import build_backbone, build_model
from skinjob.train.views import Views
from skinjob.weights.backbones import DEFAULT

KEY = {"what": "a test"}
PREPROCESSING = DEFAULT.preprocessing
SIDE = PREPROCESSING.crop
TEST = View(Split.TEST)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("data") / "skin_cancer"
    return scan(make_tree(folder, num_train=20, num_test=4))


@pytest.fixture
def backbone(weights: Path) -> torch.nn.Module:
    """A backbone of this test alone: choosing how it computes changes its precision in place."""
    return build_backbone(DEFAULT, weights)


def features(
    backbone: torch.nn.Module, images: ImageSet, tmp_path: Path, device: Device, size: int
) -> Tensor:
    """Returns a view's features, (40, 512), computed with batches of *size*."""
    forward = Forward(backbone, torch.float32, (size,))
    source = ImageSource(images, 0, tmp_path, PREPROCESSING)
    found = torch.zeros(40, 512)

    def put(first: int, part: Tensor) -> None:
        found[first : first + len(part)] = part

    extractor = FeatureExtractor(lambda: forward, device, source)
    extractor.compute(View(Split.TRAIN, 1), put, lambda num_done: None)
    return found


def test_streams_and_batch_size_change_no_feature(
    backbone: torch.nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    """What is chosen for speed on one machine and not on another is no part of the result."""
    device = choose_device("cpu", "fp32")
    one = features(backbone, images, tmp_path, replace(device, num_threads=1), size=1)
    for num_threads, size in ((1, 40), (2, 3), (3, 16)):
        other = features(backbone, images, tmp_path, replace(device, num_threads=num_threads), size)
        assert torch.allclose(one, other, atol=1e-5)


def test_folded_batch_norm_changes_no_feature(backbone: torch.nn.Module, weights: Path) -> None:
    """The backbone is torchvision's ResNet18, though its batch norm is gone."""
    whole = resnet18(weights=None)
    whole.load_state_dict(build_model(DEFAULT, weights).state_dict())
    whole.fc = torch.nn.Identity()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    pictures = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, found = whole.eval()(pictures), backbone(pictures)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_quickest_batch_size_is_kept() -> None:
    """Each size is tried on the work itself, and the choice is told with the figures behind it."""
    sizes = BatchSize((4, 8))
    for _ in range(2 * TRIALS):
        assert sizes.chosen is None
        size = sizes.next()
        sizes.record(size, {4: 2.0, 8: 1.0}[size])
    sizes.record(4, 0.001)  # too late
    assert sizes.next() == sizes.chosen == 8
    assert sizes.describe() == (
        "8 images per forward pass (images/s of a stream by size: 4: 2.0, 8: 8.0)"
    )


@pytest.mark.parametrize("held_bytes", [0, 1 << 30])
def test_features_come_back_as_they_were_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    """In whatever order batches are written and rows are read, from memory or from disk."""
    monkeypatch.setattr(features_module, "MAX_HELD_BYTES", held_bytes)
    cache, put = ViewCache(tmp_path, DEFAULT.num_features), torch.randn(100, 512)
    with cache.writing(KEY, 100) as writer:
        for first in (60, 0, 30):
            writer.put(first, put[first : min(first + 30, 100)])
        writer.put(90, put[90:])
    found = read(cache, 100)
    assert torch.equal(whole(found), put)
    some = torch.tensor([99, 0, 50, 0])
    assert torch.equal(next(found.batches([some])), put[some])
    assert cache.read(KEY, 101) is None  # of other images: no view


def whole(features: Features) -> Tensor:
    return torch.cat(list(features.batches(torch.arange(len(features)).split(7))))


def read(cache: ViewCache, num_images: int) -> Features:
    found = cache.read(KEY, num_images)
    assert found is not None
    return found


def make_views(backbone: torch.nn.Module, images: ImageSet, cache: Path, epochs: int = 3) -> Views:
    source = ImageSource(images, 0, cache, PREPROCESSING)
    forward = Forward(backbone, torch.float32, (8,))
    return Views(
        FeatureExtractor(lambda: forward, choose_device("cpu", "fp32"), source),
        weights_sha256="0" * 64,
        epochs=epochs,
        cache=ViewCache(cache, DEFAULT.num_features),
        reporter=Mock(),
    )


def test_a_fault_in_one_stream_ends_them_all_and_leaves_nothing(
    backbone: torch.nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that has gone stops the view by its name; no half view, claim or thread goes on."""
    views = make_views(backbone, images, tmp_path / "cache")
    batch, at_work, bad = ImageSource.batch, [], ImagesError("train/benign/7.jpg", "a fix")

    def counted_batch(source: ImageSource, view: View, indices: range) -> Tensor:
        at_work.append(indices.start)
        time.sleep(0.02)
        if indices.start == 16:
            raise bad
        found = batch(source, view, indices)
        at_work.remove(indices.start)
        return found

    monkeypatch.setattr(ImageSource, "batch", counted_batch)
    with pytest.raises(ImagesError, match=bad.message):
        views.get(View(Split.TRAIN, 1))
    assert at_work == [16]
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    assert not list((tmp_path / "cache").glob("*.claim"))


def test_views_that_are_no_longer_wanted_are_not_finished(
    backbone: torch.nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends in the middle does not stay to compute the view that was on its way."""
    views = make_views(backbone, images, tmp_path, epochs=2)
    batch, begun, go_on = ImageSource.batch, threading.Event(), threading.Event()

    def slow_batch(source: ImageSource, view: View, indices: range) -> Tensor:
        if view.epoch == 1:
            begun.set()
            go_on.wait(1.6)  # 5 batches on 2 threads: without a stop, seconds
        return batch(source, view, indices)

    monkeypatch.setattr(ImageSource, "batch", slow_batch)
    coming = views.in_turn([TEST, View(Split.TRAIN, 1), View(Split.TRAIN, 2)])
    next(coming)
    assert begun.wait(60)
    coming.close()
    go_on.set()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # that of the test images
    assert not list(tmp_path.glob("*.claim"))


def test_views_come_in_turn_and_once(
    backbone: torch.nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    """What is computed ahead is what comes next, and the same as when it is asked for alone."""
    views = make_views(backbone, images, tmp_path / "ahead")
    alone = make_views(backbone, images, tmp_path / "alone")
    wanted = [TEST, *(View(Split.TRAIN, epoch) for epoch in (1, 2, 3))]
    for view, found in zip(wanted, views.in_turn(wanted), strict=True):
        assert torch.equal(whole(found), whole(alone.get(view)))


def test_what_a_killed_job_left_in_the_cache_is_removed_by_the_next(
    weights: Path, tmp_path: Path
) -> None:
    """Half a view may be as large as a view. What somebody may still be writing stays."""
    data = make_tree(tmp_path / "skin_cancer", num_train=30, num_test=2)
    run = make_sweep(data, weights, tmp_path / "runs", batch_sizes=[4], epochs=1).runs()[0]
    folder = run.sweep.views_folder
    job = subprocess.Popen(
        [sys.executable, "-m", "skinjob", "train", run.folder],
        env=os.environ | import_path(),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: list(folder.glob(".*.part")) and list(folder.glob("*.claim")))
    finally:
        job.kill()
        job.wait()
    (partial,) = folder.glob(".*.part")
    host, day = partial.name.split(".")[-3], 24 * 3600
    elsewhere, silent = (
        partial.with_name(f".1.safetensors.{name}.x.part") for name in ("host-1", "host-2")
    )
    marks = [folder / f".now..{name}.part" for name in ("new", "old")]
    now = time.time()
    for file, age_s in zip((elsewhere, silent, *marks), (0, day + 60, 0, day + 60), strict=True):
        file.touch()
        os.utime(file, (now - age_s, now - age_s))
    # Of a job that was killed when its view was there already: nobody claims that again.
    (folder / "1.claim").write_text(f"{socket.gethostname()} {job.pid}")
    cache = ViewCache(folder, DEFAULT.num_features)
    with cache.writing(KEY, 1) as writer:
        (written,) = folder.glob(f".{cache.file(KEY).name}.{host}.*.part")
        os.utime(written, (now - day - 60,) * 2)
        run_job([run.folder])
        assert {file for file in folder.iterdir() if file.suffix != ".safetensors"} == {
            elsewhere,
            written,
            marks[0],
        }
        writer.put(0, torch.ones(1, 512))
    assert cache.has(KEY)


@pytest.mark.parametrize("age_s", [0, 25 * 3600])
def test_where_there_are_no_locks_half_a_view_stays_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: int
) -> None:
    """Nobody can tell there whether it is being written, so only its age counts."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    cache = ViewCache(tmp_path, DEFAULT.num_features)
    with suppress(FileNotFoundError), cache.writing(KEY, 1) as writer:
        writer.put(0, torch.ones(1, 512))
        (partial,) = tmp_path.glob(".*.part")
        os.utime(partial, (time.time() - age_s,) * 2)
        cache.clear_up()
        assert partial.exists() == (age_s == 0)


def test_a_view_that_is_removed_before_it_is_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that clears up at the moment in which another begins to write does not stop it."""
    cache = ViewCache(tmp_path, DEFAULT.num_features)
    flock = locks.fcntl.flock

    def clear_up_first(handle: int, operation: int) -> None:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
        cache.clear_up()
        flock(handle, operation)

    monkeypatch.setattr(locks.fcntl, "flock", clear_up_first)
    with cache.writing(KEY, 1) as writer:
        writer.put(0, torch.ones(1, 512))
    assert cache.has(KEY)
