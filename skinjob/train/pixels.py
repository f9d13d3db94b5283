"""The pixels of images in the memory of a GPU: all of them if they fit, else as they are needed.

What does not fit comes through a ring of buffers: while the GPU works on a buffer, the next ones
are filled and copied. Where the device is "cpu", as in tests, the same code runs without pinned
memory and CUDA streams.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import chain, islice
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinjob.train.decoded import DecodedImages

log = logging.getLogger("skinjob")

RESIDENT_SHARE = 0.8  # of the GPU memory that is free once the network has seen a batch
SLOT_BYTES = 256 << 20  # a power of two: torch rounds pinned memory up to one
NUM_SLOTS = 3  # of a ring

Indices = NDArray[np.int64]


class Piece(NamedTuple):
    """Images in the memory of the device."""

    indices: Indices
    """(B,): which images of the split."""
    flat: Tensor
    """(bytes,) uint8, the pixels of these images and perhaps of others."""
    starts: Indices
    """(B,): where the pixels of each image begin."""


def is_resident(num_bytes: int, free_bytes: int) -> bool:
    """Returns whether pixels may stay in GPU memory; *free_bytes* without them."""
    return num_bytes <= RESIDENT_SHARE * free_bytes


def free_bytes(device: str) -> int:
    """Returns how much memory of a GPU is free; 0 on a CPU, where files are as near as memory."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else 0


class DevicePixels:
    """The pixels of images on a device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._resident: dict[DecodedImages, tuple[Tensor, Indices]] = {}
        """The pixels of a split, (bytes,) uint8, and where each image begins."""
        self._refused: set[DecodedImages] = set()
        self._lock = Lock()

    def batches(
        self,
        decoded: DecodedImages,
        parts: Sequence[Indices],
        make: Callable[[Piece], Tensor],
        *,
        may_stay: bool,
    ) -> Iterator[Tensor]:
        """Yields what *make* makes of each part of the images, (B, ...).

        *may_stay* says that the images are needed again. After the first batch the network has
        taken its memory: then they move in if they fit.

        Raises: ImagesError if an image has changed since the submit.
        """
        if decoded not in self._resident:
            num_first = 1 if may_stay and decoded not in self._refused else len(parts)
            yield from self._by_ring(decoded, parts[:num_first], make)
            parts = parts[num_first:]
            if parts:
                self._move_in(decoded)
        if decoded not in self._resident:
            yield from self._by_ring(decoded, parts, make)
            return
        flat, starts = self._resident[decoded]
        for part in parts:
            yield make(Piece(part, flat, starts[part]))

    def _by_ring(
        self, decoded: DecodedImages, parts: Sequence[Indices], make: Callable[[Piece], Tensor]
    ) -> Iterator[Tensor]:
        cut = [_fitting(decoded, part) for part in parts]
        with closing(_ring(decoded, [*chain(*cut)], self._device)) as ring:
            for pieces in cut:
                made = [make(piece) for piece in islice(ring, len(pieces))]
                yield made[0] if len(made) == 1 else torch.cat(made)

    def _move_in(self, decoded: DecodedImages) -> None:
        """Copies all images to the device, if their sizes are known and they fit."""
        with self._lock:
            if decoded in self._resident or decoded in self._refused or not decoded.sizes.all():
                return
            indices = np.arange(len(decoded.files))
            lengths = decoded.most_bytes(indices)
            ends, free = lengths.cumsum(), free_bytes(self._device)
            num_bytes, used = int(ends[-1]), sum(len(flat) for flat, _ in self._resident.values())
            may_stay = is_resident(used + num_bytes, used + free)
            log.info(
                "images: %.2f GB decoded, %.2f GB of GPU memory free: they %s",
                num_bytes / 1e9,
                free / 1e9,
                "stay there" if may_stay else "are copied there for each view",
            )
            if not may_stay:
                self._refused.add(decoded)
                return
            flat, end = _empty(num_bytes, self._device), 0
            for piece in _ring(decoded, _fitting(decoded, indices), self._device):
                start, end = end, int(ends[piece.indices[-1]])
                flat[start:end] = piece.flat
            if self._device == "cuda":
                torch.cuda.current_stream().synchronize()  # others read it in their own streams
            self._resident[decoded] = flat, ends - lengths


def _fitting(decoded: DecodedImages, part: Indices) -> list[Indices]:
    """Returns the part in pieces that fit into a slot."""
    most = decoded.most_bytes(part)
    slot = most.cumsum() // max(1, SLOT_BYTES - int(most.max()))
    return np.split(part, np.flatnonzero(np.diff(slot)) + 1)


def _ring(
    decoded: DecodedImages, parts: Sequence[Indices], device: str
) -> Generator[Piece, None, None]:
    """Yields each part of the images on the device; a piece is valid until the next is taken."""
    if not parts:
        return
    most = max(int(decoded.most_bytes(part).sum()) for part in parts)
    slots = [_Slot(device, 1 << (most - 1).bit_length()) for _ in parts[:NUM_SLOTS]]
    todo, pending = iter(parts), deque[tuple[_Slot, Future[Piece]]]()
    with ThreadPoolExecutor(1) as filler:
        try:
            for slot, part in zip(slots, todo, strict=False):
                pending.append((slot, filler.submit(slot.fill, decoded, part)))
            while pending:
                slot, filled = pending.popleft()
                piece = filled.result()
                slot.begin_use()
                yield piece
                slot.end_use()
                for part in islice(todo, 1):
                    pending.append((slot, filler.submit(slot.fill, decoded, part)))
        finally:
            filler.shutdown(cancel_futures=True)


@torch.inference_mode(False)
def _empty(num_bytes: int, device: str, *, is_pinned: bool = False) -> Tensor:
    """Returns memory that other threads may write to, though this one computes features."""
    return torch.empty(num_bytes, dtype=torch.uint8, device=device, pin_memory=is_pinned)


class _Slot:
    """A buffer on the host and one on the device. Copies have a CUDA stream of their own."""

    def __init__(self, device: str, num_bytes: int) -> None:
        self._is_cuda = device == "cuda"
        self._host = _empty(num_bytes, "cpu", is_pinned=self._is_cuda)
        self._there = _empty(num_bytes, device)
        if self._is_cuda:
            self._copies = torch.cuda.Stream()
            self._copies.wait_stream(torch.cuda.current_stream())  # this memory may be in use there
            self._there.record_stream(self._copies)
            self._copied, self._used = (torch.cuda.Event(blocking=True) for _ in range(2))

    def fill(self, decoded: DecodedImages, indices: Indices) -> Piece:
        """Returns images on the device, whose copy may not have ended. In the filler's thread."""
        if self._is_cuda:
            self._used.synchronize()
        starts = decoded.copy_to(self._host.numpy(), indices)
        num_bytes = int(decoded.most_bytes(indices).sum())
        flat = self._there[:num_bytes]
        with torch.cuda.stream(self._copies) if self._is_cuda else nullcontext():
            flat.copy_(self._host[:num_bytes], non_blocking=True)
            if self._is_cuda:
                self._copied.record()
        return Piece(indices, flat, starts)

    def begin_use(self) -> None:
        if self._is_cuda:
            torch.cuda.current_stream().wait_event(self._copied)

    def end_use(self) -> None:
        if self._is_cuda:
            self._used.record()
