"""The features of a view on disk: a safetensors file that is written and read in parts.

A job's memory does not grow with the images: batches are written where they belong as they come,
and rows of a large file are read when they are asked for.

Beside each row lies its CRC-32, taken before it left the memory. All of them are held against the
rows when a file is opened: a disk that gives back another bit would otherwise be a wrong number.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skinjob.train.model import NUM_FEATURES

ROW_BYTES = 4 * NUM_FEATURES
CHECK_BYTES = 4
HELD_BYTES = 64 << 20  # files up to here are held in memory: 32,768 images


class FeaturesWriter:
    """Takes the features of a view in any order."""

    def __init__(self, file: BinaryIO, num_images: int, metadata: dict[str, str]) -> None:
        middle = num_images * ROW_BYTES
        end = middle + num_images * CHECK_BYTES
        entries = {
            "features": {
                "dtype": "F32",
                "shape": [num_images, NUM_FEATURES],
                "data_offsets": [0, middle],
            },
            "crc32": {"dtype": "U32", "shape": [num_images], "data_offsets": [middle, end]},
        }
        header = json.dumps({"__metadata__": metadata} | entries).encode()
        header += b" " * (-len(header) % 8)
        self._start = 8 + len(header)
        self._checks_start = self._start + middle
        self._handle = file.fileno()
        os.pwrite(self._handle, len(header).to_bytes(8, "little") + header, 0)
        os.ftruncate(self._handle, self._start + end)

    def put(self, first: int, features: Tensor) -> None:
        """Writes the features of the images from *first* on, (B, 512) float32 on the CPU."""
        self._write(_bytes(features), self._start + first * ROW_BYTES)
        checks = row_checks(features).data.cast("B")
        self._write(checks, self._checks_start + first * CHECK_BYTES)

    def _write(self, content: memoryview, start: int) -> None:
        while content:  # a write may be cut short
            written = os.pwrite(self._handle, content, start)
            content, start = content[written:], start + written


class Features:
    """The features of a view, (num_images, 512) float32, row by row or all in turn."""

    def __init__(self, file: Path, num_images: int) -> None:
        self._file = file.open("rb")  # held open: it stays readable when the cache is cleared
        size = os.fstat(self._file.fileno()).st_size
        self._start = size - num_images * (ROW_BYTES + CHECK_BYTES)
        self._num_images = num_images
        is_held = num_images * ROW_BYTES <= HELD_BYTES
        self._held = self._read(0, num_images) if is_held else None

    def __len__(self) -> int:
        return self._num_images

    def rows(self, indices: Tensor) -> Tensor:
        """Returns the features of some images, (B, 512) float32; *indices* (B,) int64."""
        if self._held is not None:
            return self._held[indices]
        return torch.cat([self._read(index, 1) for index in indices.tolist()])

    def in_turn(self, size: int = 4096) -> Iterator[Tensor]:
        """Yields the features of all images, at most *size* at a time."""
        for first in range(0, len(self), size):
            count = min(size, len(self) - first)
            yield self._read(first, count) if self._held is None else self._held[first:][:count]

    def require_sound(self) -> None:
        """Changes nothing; reads all rows. Raises: ValueError when one is not as it was put."""
        checks = np.empty(len(self), "<u4")
        self._fill(checks, self._start + len(self) * ROW_BYTES)
        first = 0
        for rows in self.in_turn():
            wrong = np.flatnonzero(row_checks(rows) != checks[first : first + len(rows)])
            if len(wrong):
                raise ValueError(f"{self._file.name}: row {first + wrong[0]} is damaged")
            first += len(rows)

    def _read(self, first: int, count: int) -> Tensor:
        found = np.empty((count, NUM_FEATURES), np.float32)
        self._fill(found, self._start + first * ROW_BYTES)
        return torch.from_numpy(found)

    def _fill(self, array: NDArray[Any], start: int) -> None:
        if os.preadv(self._file.fileno(), [array.data], start) < array.nbytes:
            raise OSError(f"{self._file.name}: features cannot be read back")


def row_checks(features: Tensor) -> NDArray[np.uint32]:
    """Returns the CRC-32 of each row of (B, 512) float32, (B,) uint32."""
    content = _bytes(features)
    starts = range(0, len(content), ROW_BYTES)
    return np.array([zlib.crc32(content[start : start + ROW_BYTES]) for start in starts], "<u4")


def _bytes(features: Tensor) -> memoryview:
    return features.contiguous().numpy().data.cast("B")


def read_features(file: Path, num_images: int) -> Features:
    """Returns the features in *file*, having read and checked all of them.

    Raises: FileNotFoundError; ValueError when it does not hold those of *num_images* as they were
    put; OSError when it cannot be read.
    """
    wanted = {"features": ("F32", [num_images, NUM_FEATURES]), "crc32": ("U32", [num_images])}
    try:
        with safe_open(file, "pt") as content:  # checks the header against the file's size
            parts = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
            found = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: {error}") from None
    if found != wanted:
        raise ValueError(f"{file}: holds {found}")
    features = Features(file, num_images)
    features.require_sound()
    return features
