"""The decoded images that jobs share: decoded once, checked, bounded, and never waited for long."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import import_path
from PIL import Image
from trees import make_tree

from skinjob.data.images import ImageSet, Split
from skinjob.data.scan import scan
from skinjob.errors import ImagesError
from skinjob.train import claims, decoded
from skinjob.train.decoded import DecodedImages, Pixels

SIDE = 224


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("data") / "skin_cancer"
    return scan(make_tree(folder, num_train=20, num_test=4))


@pytest.fixture(scope="module")
def wanted(images: ImageSet) -> list[Pixels]:
    """The 40 training images, decoded without a cache."""
    return [decoded.decode(file, images.store, SIDE) for file in images.split("train")]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "LEAST_IMAGES", 7)  # 40 images are 6 files


def opened(images: ImageSet, folder: Path, num_cpus: int = 1) -> DecodedImages:
    found = DecodedImages(images, Split.TRAIN, folder, SIDE, num_cpus)
    found.prepare()
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def assert_same(found: DecodedImages, wanted: list[Pixels]) -> None:
    for index in range(40):
        assert np.array_equal(found.get(index), wanted[index])


def without_images(images: ImageSet, folder: Path) -> ImageSet:
    """Returns the same images in a folder that does not have them: whoever decodes fails."""
    return ImageSet(folder, images.classes, images.files)


def test_an_image_is_decoded_once_for_all_jobs(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path
) -> None:
    """A later job, or a sweep on the same images, needs no image file any more."""
    assert_same(opened(images, tmp_path / "kept"), wanted)
    assert len(files(tmp_path / "kept")) == 6
    assert_same(opened(without_images(images, tmp_path), tmp_path / "kept"), wanted)


def test_images_are_copied_one_after_another(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, from one file or several, kept or not: a GPU gets what a CPU does."""
    kept, unkept = opened(images, tmp_path), DecodedImages(images, Split.TRAIN, tmp_path, SIDE)
    gone = opened(images, tmp_path)
    monkeypatch.setattr(gone, "_read", lambda *_: False)  # files that another job has removed
    for found in (kept, unkept, gone):
        for indices in (np.arange(40), np.array([39, 3, 4, 5, 6, 7, 0, 20]), np.array([5])):
            buffer = np.zeros(int(found.most_bytes(indices).sum()), np.uint8)
            starts = found.copy_to(buffer, indices)
            for start, index in zip(starts.tolist(), indices.tolist(), strict=True):
                end = start + wanted[index].size
                assert np.array_equal(buffer[start:end], wanted[index].ravel())


def test_images_of_one_size_are_not_mixed_up(tmp_path: Path) -> None:
    """Two images may follow each other in the places of two different files."""
    draws = np.random.default_rng(0)
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(8):
            image = draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / folder / f"{number}.png")
    found = opened(scan(tmp_path / "data"), tmp_path / "kept")
    buffer = np.empty(2 * 3 * SIDE**2, np.uint8)
    found.copy_to(buffer, np.array([3, 11]))  # the fourth of the first, the fifth of the second
    assert np.array_equal(buffer, np.stack([found.get(3), found.get(11)]).ravel())


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty"])
def test_damaged_images_are_decoded_again(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path, damage: str
) -> None:
    """A file that a full disk cut off, or that a bit changed in, is replaced by the right one."""
    opened(images, tmp_path)
    file = files(tmp_path)[2]
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes({"cut off": content[:-999], "changed": content, "empty": b""}[damage])
    assert_same(opened(images, tmp_path), wanted)
    assert_same(opened(without_images(images, tmp_path), tmp_path), wanted)


@pytest.mark.parametrize(
    ("name", "value"), [("FORMAT", "0"), ("PIL.__version__", "0.0"), ("SIDE", 112)]
)
def test_other_sizes_and_decoders_do_not_meet(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    """What another version of Pillow decoded, or for another network, is decoded again."""
    opened(images, tmp_path)
    side = SIDE
    if isinstance(value, int):
        side = value
    else:
        monkeypatch.setattr(f"skinjob.train.decoded.{name}", value)
    DecodedImages(images, Split.TRAIN, tmp_path, side).prepare()
    assert len(files(tmp_path)) == 12


def test_processes_divide_the_work(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's lock does not stop a job's other cores; no chunk is decoded twice."""
    monkeypatch.setattr(decoded, "HELPER_IMAGES", 10)
    wrote, write = [], decoded.Chunks._write

    def slow_write(chunks: decoded.Chunks, number: int, report: object) -> None:
        wrote.append(number)
        while len(files(tmp_path)) < 5:  # the helpers' and this file's claims and parts
            time.sleep(0.01)
        write(chunks, number, lambda: None)

    monkeypatch.setattr(decoded.Chunks, "_write", slow_write)
    assert_same(opened(images, tmp_path, num_cpus=5), wanted)
    assert 0 < len(wrote) < 6
    assert len(files(tmp_path)) == 6


def test_two_threads_divide_the_work(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a process would not pay, two cores decode; an error of either is the job's."""
    at_work, write = set[int](), decoded.Chunks._write

    def slow_write(chunks: decoded.Chunks, number: int, report: Callable[[], None]) -> None:
        at_work.add(threading.get_ident())
        time.sleep(0.01)
        write(chunks, number, report)

    monkeypatch.setattr(decoded.Chunks, "_write", slow_write)
    assert_same(opened(images, tmp_path / "kept", num_cpus=2), wanted)
    assert len(at_work) == 2
    assert len(files(tmp_path / "kept")) == 6
    for number in (0, 39):
        gone = images.split("train")[number].path
        copy = shutil.copytree(images.root, tmp_path / str(number))
        (copy / gone).unlink()
        with pytest.raises(ImagesError, match=gone):
            opened(ImageSet(copy, images.classes, images.files), copy / "kept", num_cpus=2)
        assert all(file.suffix == ".pixels" for file in files(copy / "kept"))


def test_helpers_end_with_their_process(images: ImageSet, tmp_path: Path) -> None:
    """A job that is killed leaves no process that goes on decoding."""
    task = tmp_path / "task"
    chunks = DecodedImages(images, Split.TRAIN, tmp_path / "kept", SIDE)._chunks
    (tmp_path / "kept").mkdir()
    task.write_bytes(pickle.dumps((chunks, list(range(6)), 1 << 22)))  # not this process
    words = "from skinjob.train.decoded import help_decoding; help_decoding()"
    with task.open("rb") as stdin:
        command = [sys.executable, "-c", words]
        subprocess.run(command, stdin=stdin, env=os.environ | import_path(), check=True, timeout=60)
    assert files(tmp_path / "kept") == []


def test_jobs_divide_the_work_by_claims(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path
) -> None:
    """A job waits for what another is decoding, and takes over what a dead job has claimed."""
    job = DecodedImages(images, Split.TRAIN, tmp_path, SIDE)
    others, dead = job._chunks.file(1), job._chunks.file(2)
    claims.claim(others)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mark = dead.with_suffix(".claim")
    mark.write_text(others.with_suffix(".claim").read_text().split()[0] + f" {ended.pid}")
    waiting = threading.Event()

    def report() -> None:
        if len(list(tmp_path.glob("*.pixels"))) == 5:
            waiting.set()

    thread = threading.Thread(target=job.prepare, args=(report,))
    thread.start()
    assert waiting.wait(60)
    assert not others.exists()
    job._chunks._write(1, lambda: None)
    claims.release(others)
    thread.join(60)
    assert_same(job, wanted)
    assert len(files(tmp_path)) == 6


@pytest.mark.parametrize("room", [0, 20 * 3 * SIDE**2])
def test_what_does_not_fit_is_decoded_each_time(
    images: ImageSet,
    wanted: list[Pixels],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
) -> None:
    """A limit on what is kept costs time alone."""
    monkeypatch.setattr(decoded, "KEPT_MOST_BYTES", room)
    found = opened(images, tmp_path)
    assert_same(found, wanted)
    assert_same(found, wanted)
    assert len(files(tmp_path)) == room // (7 * 3 * SIDE**2)
    assert_same(opened(images, tmp_path), wanted)
    assert len(files(tmp_path)) == room // (7 * 3 * SIDE**2)  # a later job keeps no more


def test_others_that_fill_the_disk_end_the_writing(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eighth of the disk is the most, though images be long or other jobs write as well."""
    usage = shutil.disk_usage

    def shrinking(folder: Path) -> object:
        return usage(folder)._replace(free=10**9 * (5 - len(list(tmp_path.glob("*.pixels")))))

    monkeypatch.setattr(shutil, "disk_usage", shrinking)
    found = opened(images, tmp_path)
    assert_same(found, wanted)
    assert len(files(tmp_path)) == len(found._handles) == 1


def test_a_full_disk_costs_time_alone(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that could not be written whole is not there, and its images are decoded again."""
    write = decoded.Chunks._write

    def until_full(chunks: decoded.Chunks, number: int, report: object) -> None:
        if number == 2:
            raise OSError(28, "No space left on device")
        write(chunks, number, lambda: None)

    monkeypatch.setattr(decoded.Chunks, "_write", until_full)
    found = opened(images, tmp_path)
    assert_same(found, wanted)
    assert len(files(tmp_path)) == len(found._handles) == 2


def test_where_the_shared_disk_has_no_room_the_node_keeps_them(
    images: ImageSet, wanted: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go to the node's TMPDIR, for this job alone, and nothing stays there."""
    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(local))
    usage = shutil.disk_usage

    def full(folder: Path) -> object:
        found = usage(folder)
        return found if str(folder).startswith(str(local)) else found._replace(free=100_000)

    monkeypatch.setattr(shutil, "disk_usage", full)
    copy = shutil.copytree(images.root, tmp_path / "copy")
    found = opened(ImageSet(copy, images.classes, images.files), tmp_path / "shared")
    shutil.rmtree(copy)
    assert_same(found, wanted)
    assert files(tmp_path / "shared") == files(local) == []


def test_files_that_no_job_uses_any_more_are_removed(images: ImageSet, tmp_path: Path) -> None:
    """The folder does not grow with every data set of the past."""
    opened(images, tmp_path)
    old = tmp_path / "of-another-data-set-000.pixels"
    for file in (old, files(tmp_path)[1]):
        file.touch()
        os.utime(file, (time.time() - decoded.UNUSED_S - 60,) * 2)
    (tmp_path / "of-a-new-data-set-000.pixels").touch()
    files(tmp_path)[0].unlink()
    opened(images, tmp_path)
    assert not old.exists()
    assert len(files(tmp_path)) == 7


def test_an_image_that_has_changed_is_named(images: ImageSet, tmp_path: Path) -> None:
    """The job fails in words before it has trained on other pixels; no claim stays."""
    copy = shutil.copytree(images.root, tmp_path / "copy")
    gone = copy / images.split("train")[17].path
    gone.unlink()
    with pytest.raises(ImagesError, match=gone.name):
        opened(ImageSet(copy, images.classes, images.files), tmp_path / "kept")
    assert all(file.suffix == ".pixels" for file in files(tmp_path / "kept"))


def test_decoding_does_not_import_torch() -> None:
    """A process that helps to decode starts in a fraction of a second."""
    look = "import sys, skinjob.train.decoded; print('torch' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", look], env=os.environ | import_path())
    assert said == b"False\n"
