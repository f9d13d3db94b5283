"""The features of a view on disk: a safetensors file that is written and read in parts.

A job's memory does not grow with the images: batches are written where they belong as they come,
and rows of a large file are read when they are asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skinjob.train.model import NUM_FEATURES

ROW_BYTES = 4 * NUM_FEATURES
HELD_BYTES = 64 << 20  # files up to here are held in memory: 32,768 images


class FeaturesWriter:
    """Takes the features of a view in any order."""

    def __init__(self, file: BinaryIO, num_images: int, metadata: dict[str, str]) -> None:
        entry = {
            "dtype": "F32",
            "shape": [num_images, NUM_FEATURES],
            "data_offsets": [0, num_images * ROW_BYTES],
        }
        header = json.dumps({"__metadata__": metadata, "features": entry}).encode()
        header += b" " * (-len(header) % 8)
        self._start = 8 + len(header)
        self._handle = file.fileno()
        os.pwrite(self._handle, len(header).to_bytes(8, "little") + header, 0)
        os.ftruncate(self._handle, self._start + num_images * ROW_BYTES)

    def put(self, first: int, features: Tensor) -> None:
        """Writes the features of the images from *first* on, (B, 512) float32 on the CPU."""
        content = features.contiguous().numpy().data.cast("B")
        start = self._start + first * ROW_BYTES
        while content:  # a write may be cut short
            written = os.pwrite(self._handle, content, start)
            content, start = content[written:], start + written


class Features:
    """The features of a view, (num_images, 512) float32, row by row or all in turn."""

    def __init__(self, file: Path, num_images: int) -> None:
        self._file = file.open("rb")  # held open: it stays readable when the cache is cleared
        self._start = os.fstat(self._file.fileno()).st_size - num_images * ROW_BYTES
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

    def _read(self, first: int, count: int) -> Tensor:
        found = np.empty((count, NUM_FEATURES), np.float32)
        if (
            os.preadv(self._file.fileno(), [found.data], self._start + first * ROW_BYTES)
            < found.nbytes
        ):
            raise OSError(f"{self._file.name}: features cannot be read back")
        return torch.from_numpy(found)


def read_features(file: Path, num_images: int) -> Features:
    """Returns the features in *file*.

    Raises: FileNotFoundError; ValueError when it does not hold those of *num_images*.
    """
    try:
        with safe_open(file, "pt") as content:  # checks the header against the file's size
            part = content.get_slice("features")
            shape, dtype = part.get_shape(), part.get_dtype()
    except SafetensorError as fault:
        raise ValueError(f"{file}: {fault}") from None
    if shape != [num_images, NUM_FEATURES] or dtype != "F32":
        raise ValueError(f"{file}: features are {dtype} {shape}")
    return Features(file, num_images)
