"""The decoded images of a split: kept in files that all jobs on the same images share.

A file has the pixels of a chunk of images, then their sizes, then a SHA-256 of both, which is
checked when a job opens the file. Jobs, and the processes of a job, divide the chunks by claims.
Images that do not fit are decoded at each use. Files are read, not mapped, so the memory of a job
does not grow with the number of images. torch is not imported: a process that decodes starts fast.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Event, Lock

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from skinjob.data.images import KEPT_MOST_BYTES, KEPT_SHARE, MAX_RATIO, ImageFile, ImageSet, Split
from skinjob.data.store import Store
from skinjob.files import replacing, sha256_start
from skinjob.train import claims

log = logging.getLogger("skinjob")

FORMAT = "1"
MOST_CHUNKS = 128  # of a split; a job keeps their files open
LEAST_IMAGES = 64  # of a chunk
HELPER_IMAGES = 400  # to decode, per further process, which starts in the time of so many
UNUSED_S = 30 * 24 * 3600  # a job removes the files that no job has opened for so long
POLL_S = 0.1
DIGEST_BYTES = 32

Pixels = NDArray[np.uint8]
"""An image, (height, width, 3) in RGB."""


def decode(file: ImageFile, store: Store, side: int) -> Pixels:
    """Returns an image with its shorter side scaled to *side* pixels.

    Raises: ImagesError if the image has changed since the submit.
    """
    return resize(file.read(store), side)


def resize(image: Image.Image, side: int) -> Pixels:
    """Returns the image with its shorter side scaled to *side* pixels."""
    width, height = image.size
    short = min(width, height)
    if short != side:
        size = (side * width // short, side * height // short)
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.array(image)


@dataclass(frozen=True)
class Chunks:
    """The files of a split's decoded images, and the images of each."""

    store: Store
    files: Sequence[ImageFile]
    side: int
    size: int
    """Images per chunk; the last may have fewer."""
    folder: Path
    key: str
    """A digest of all that the pixels depend on."""
    least_free: int = 0
    """Bytes that stay free on the disk."""

    def __len__(self) -> int:
        return -(-len(self.files) // self.size)

    def file(self, number: int) -> Path:
        return self.folder / f"{self.key}-{number:03d}.pixels"

    def images(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, len(self.files)))

    def write_missing(self, numbers: Sequence[int], report: Callable[[], None]) -> bool:
        """Writes the files of *numbers* that do not exist; returns whether others still write some.

        *report* is called before each image.

        Raises: ImagesError if an image has changed; OSError if a file cannot be written.
        """
        are_coming = False
        for number in numbers:
            file = self.file(number)
            if file.exists():
                continue
            if shutil.disk_usage(self.folder).free < self.least_free:
                return False
            if not claims.claim(file):
                are_coming = True
                continue
            try:
                if not file.exists():  # it may have been written between the two checks
                    self._write(number, report)
            finally:
                claims.release(file)
        return are_coming

    def _write(self, number: int, report: Callable[[], None]) -> None:
        sizes, digest, renewed = [], hashlib.sha256(), time.monotonic()
        with (
            replacing(self.file(number), is_durable=False, is_locked=True) as partial,
            partial.open("wb") as file,
        ):
            for index in self.images(number):
                report()
                pixels = decode(self.files[index], self.store, self.side)
                sizes.append(pixels.shape[:2])
                file.write(pixels.data)
                digest.update(pixels.data)
                if time.monotonic() - renewed > 1:
                    claims.renew(self.file(number))
                    renewed = time.monotonic()
            end = np.array(sizes, "<i4").tobytes()
            digest.update(end)
            file.write(end + digest.digest())

    def open(self, number: int) -> tuple[int, NDArray[np.int32]] | None:
        """Returns a file's handle and the sizes of its images (n, 2); None if there is no file.

        Removes a damaged file.
        """
        file = self.file(number)
        try:
            handle = os.open(file, os.O_RDONLY)
        except OSError:
            return None
        with suppress(OSError):  # another user's file; or not there any more
            os.utime(file)
        try:
            sizes = self._sizes(handle, len(self.images(number)))
        except (OSError, ValueError) as error:
            os.close(handle)
            log.warning("decoded images are damaged and will be decoded again: %s: %s", file, error)
            with suppress(OSError):
                file.unlink()
            return None
        return handle, sizes

    @staticmethod
    def _sizes(handle: int, count: int) -> NDArray[np.int32]:
        """Returns the sizes in an open file. Raises: ValueError if it is damaged; OSError."""
        end = os.fstat(handle).st_size - DIGEST_BYTES
        start = end - 8 * count
        if start < 0 or os.pread(handle, DIGEST_BYTES, end) != sha256_start(handle, end):
            raise ValueError("its SHA-256 does not match")
        sizes = np.frombuffer(os.pread(handle, 8 * count, start), "<i4").reshape(count, 2)
        if 3 * sizes.prod(axis=1, dtype=np.int64).sum() != start:
            raise ValueError("its sizes do not match")
        return sizes

    def room(self) -> tuple[int, int]:
        """Returns how many bytes further files may use in the folder, and how many are free."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            used = sum(file.stat().st_size for file in self.folder.glob(f"{self.key}-*.pixels"))
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return 0, 0
        return min(KEPT_MOST_BYTES, (free + used) // KEPT_SHARE) - used, free


class DecodedImages:
    """The images of a split, with their shorter side at *side* pixels."""

    def __init__(
        self,
        images: ImageSet,
        split: Split,
        folder: Path,
        side: int,
        num_cpus: int = 1,
    ) -> None:
        """*folder* is where jobs share the images."""
        files = images.split(split)
        key = {
            "format": FORMAT,
            "images": images.fingerprint(split),
            "side": side,
            "decoder": f"Pillow {PIL.__version__}, JPEG {features.version('libjpeg_turbo')}",
        }
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        chunk = max(LEAST_IMAGES, -(-len(files) // MOST_CHUNKS))
        self.files = files
        self.sizes = np.zeros((len(files), 2), np.int32)
        """Height and width of each image; 0 while unknown."""
        self._chunks = Chunks(images.store, files, side, chunk, folder, digest)
        self._is_prepared = False
        self._num_cpus = num_cpus
        self._handles: dict[int, int] = {}
        self._starts = np.full(len(files), -1, np.int64)  # in its file; -1: not kept
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(num_cpus)

    def __del__(self) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def prepare(self, report: Callable[[], None] = lambda: None) -> None:
        """Opens the files of other jobs, and decodes what is missing, with several processes.

        *report* is called often.

        Raises: ImagesError if an image has changed since the submit.
        """
        with self._lock:
            if self._is_prepared:
                return
            self._is_prepared = True
            if missing := self._open(self._chunks, range(len(self._chunks))):
                self._decode(missing, report)

    def get(self, index: int) -> Pixels:
        """Returns an image. Raises: ImagesError if it has changed since the submit."""
        start, chunks = int(self._starts[index]), self._chunks
        if start >= 0:
            pixels = np.empty((*self.sizes[index], 3), np.uint8)
            if self._read(index, start, pixels):
                return pixels
        pixels = decode(self.files[index], chunks.store, chunks.side)
        self.sizes[index] = pixels.shape[:2]
        return pixels

    def most_bytes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the bytes of each image's pixels, or the greatest number that is possible."""
        known = 3 * self.sizes[indices].prod(axis=1, dtype=np.int64)
        return np.where(known > 0, known, 3 * MAX_RATIO * self._chunks.side**2)

    def copy_to(self, buffer: Pixels, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Copies the pixels of images one after another; returns where each begins, (N,).

        *buffer* (bytes,) has room for `most_bytes`. Raises: as `get`.
        """
        starts, chunk = self._starts[indices], indices // self._chunks.size
        missing = indices[starts < 0].tolist()
        decoded = dict(zip(missing, self._pool.map(self.get, missing), strict=True))
        ends = self.most_bytes(indices).cumsum()
        follows = (starts[1:] == starts[:-1] + np.diff(ends, prepend=0)[:-1]) & (starts[1:] >= 0)
        breaks = np.flatnonzero(~follows | (chunk[1:] != chunk[:-1])) + 1
        begin = 0
        for run in np.split(np.arange(len(indices)), breaks):  # neighbours in a file: one read
            end, first = int(ends[run[-1]]), int(indices[run[0]])
            if first in decoded:
                buffer[begin:end] = decoded[first].ravel()
            elif not self._read(first, int(starts[run[0]]), buffer[begin:end]):
                buffer[begin:end] = np.concatenate([self.get(i).ravel() for i in indices[run]])
            begin = end
        return np.concatenate([[0], ends[:-1]])

    def _read(self, index: int, start: int, pixels: Pixels) -> bool:
        """Reads pixels from the file of an image; returns whether all of them were there."""
        handle = self._handles[index // self._chunks.size]
        with suppress(OSError):  # another job on another machine has removed the file
            return os.preadv(handle, [pixels.data], start) == pixels.nbytes
        return False

    def _open(self, chunks: Chunks, numbers: Sequence[int]) -> list[int]:
        """Opens files; returns the numbers of those that do not exist, or are damaged."""
        missing = []
        for number, file in zip(numbers, self._pool.map(chunks.open, numbers), strict=True):
            if file is None:
                missing.append(number)
                continue
            self._handles[number], sizes = file
            images = slice(number * chunks.size, number * chunks.size + len(sizes))
            self.sizes[images] = sizes
            self._starts[images] = 3 * np.cumsum([0, *sizes[:-1].prod(axis=1, dtype=np.int64)])
        return missing

    def _decode(self, missing: list[int], report: Callable[[], None]) -> None:
        start, num_helpers, chunks = time.perf_counter(), 0, self._chunks
        claims.clear_up(chunks.folder)
        _remove_unused(chunks.folder)
        try:
            with _with_room(chunks, missing) as (chunks, numbers):
                num_images = len(numbers) * chunks.size
                num_helpers = max(0, min(self._num_cpus - 2, num_images // HELPER_IMAGES))
                with _helpers(chunks, numbers, num_helpers):
                    for _ in range(2):  # again if a file is damaged
                        self._write(chunks, numbers, report)
                        numbers = self._open(chunks, numbers)
        except OSError as error:  # a full disk
            log.info("images: not all can be kept decoded: %s", error)
            self._open(chunks, [number for number in missing if number not in self._handles])
        log.info(
            "images: %d of %d decoded and kept in %s, processes: %d, %.1f s",
            (self._starts >= 0).sum(),
            len(self.files),
            chunks.folder,
            1 + num_helpers,
            time.perf_counter() - start,
        )

    def _write(self, chunks: Chunks, numbers: list[int], report: Callable[[], None]) -> None:
        """Writes files until all exist, with a second thread if there are two cores.

        More threads would not be faster: they share Python's lock.
        """
        is_over = Event()

        def stop() -> None:
            if is_over.is_set():
                raise CancelledError

        if self._num_cpus > 1:  # an error of this thread meets the other one, too
            second = self._pool.submit(chunks.write_missing, numbers, stop)
        try:
            while chunks.write_missing(numbers, report):  # other jobs are at work on the rest
                report()
                time.sleep(POLL_S)
        finally:
            is_over.set()
            if self._num_cpus > 1:
                wait([second])


@contextmanager
def _with_room(chunks: Chunks, missing: list[int]) -> Iterator[tuple[Chunks, list[int]]]:
    """Yields where to write missing files, and as many of their numbers as there is room for.

    Where the folder of the jobs has too little room, a folder of the node may have more. That is
    removed after the block: what is open can still be read.
    """
    chunk_bytes = 3 * chunks.side**2 * chunks.size
    room, free = chunks.room()
    with ExitStack() as stack:
        if room < len(missing) * chunk_bytes:
            name = stack.enter_context(TemporaryDirectory(prefix="skinjob-pixels-"))
            local = replace(chunks, folder=Path(name))
            if local.room() > (room, free):
                chunks, (room, free) = local, local.room()
        numbers = missing[: max(0, room) // chunk_bytes]
        files = chunks.files[: (numbers[-1] + 1) * chunks.size] if numbers else ()
        yield replace(chunks, files=files, least_free=free - room), numbers


@contextmanager
def _helpers(chunks: Chunks, numbers: list[int], count: int) -> Iterator[None]:
    """Has more processes write the same files during the block."""
    with ExitStack() as stack:
        if count > 0:
            task = stack.enter_context(TemporaryFile())
            pickle.dump((chunks, numbers, os.getpid()), task)
            task.flush()
        for _ in range(count):
            helper = subprocess.Popen(
                [sys.executable, "-c", f"import {__name__} as decoded; decoded.help_decoding()"],
                stdin=task,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # this process meets the same error
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
            stack.callback(helper.wait)
            stack.callback(helper.kill)
        yield


def help_decoding() -> None:
    """Writes the files that `_helpers` names on standard input, as long as its process lives."""
    task = os.pread(0, os.fstat(0).st_size, 0)  # the position is shared with other helpers
    chunks, numbers, parent = pickle.loads(task)

    def stop_alone() -> None:
        if os.getppid() != parent:
            raise SystemExit

    chunks.write_missing(numbers, stop_alone)


def _remove_unused(folder: Path) -> None:
    """Removes the files that no job has opened for UNUSED_S."""
    for file in folder.glob("*.pixels"):
        with suppress(OSError):  # another user's
            if time.time() - file.stat().st_mtime > UNUSED_S:
                file.unlink()
