"""The features of views on disk: the cache that runs share, and its files.

A view has a safetensors file. It is written and read in parts, so the memory of a job does not grow
with the number of images. The file ends with a SHA-256 of its content, which is checked at every
opening. A damaged file is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skinjob.files import replacing, sha256_start
from skinjob.train import claims

log = logging.getLogger("skinjob")

DIGEST_BYTES = 32
MAX_HELD_BYTES = 64 << 20  # of features in memory: 32,000 images of ResNet18


class FeaturesWriter:
    """Writes the features of a view, in any order and from several threads."""

    def __init__(self, handle: int, shape: tuple[int, int], metadata: dict[str, str]) -> None:
        """*shape* is (num_images, num_features)."""
        num_images, num_features = shape
        self._row_bytes = 4 * num_features
        end = num_images * self._row_bytes
        header = json.dumps(
            {
                "__metadata__": metadata,
                "features": _entry("F32", [num_images, num_features], 0, end),
                "sha256": _entry("U8", [DIGEST_BYTES], end, end + DIGEST_BYTES),
            }
        ).encode()
        header += b" " * (-len(header) % 8)
        self._handle = handle
        self._start = 8 + len(header)
        self._is_written = np.zeros(num_images, bool)
        self._write(len(header).to_bytes(8, "little") + header, 0)

    def put(self, first: int, features: Tensor) -> None:
        """Writes the features of the images from *first* on, (B, num_features) float32."""
        content = features.contiguous().numpy().data.cast("B")
        self._write(content, self._start + first * self._row_bytes)
        self._is_written[first : first + len(features)] = True

    def finish(self) -> None:
        """Writes the digest. Raises: RuntimeError when a row was not put."""
        if not self._is_written.all():
            raise RuntimeError(f"no features of image {self._is_written.argmin()}")
        end = self._start + len(self._is_written) * self._row_bytes
        self._write(sha256_start(self._handle, end), end)

    def _write(self, content: bytes | memoryview, start: int) -> None:
        while content:  # a write may be cut short
            written = os.pwrite(self._handle, content, start)
            content, start = content[written:], start + written


class Features:
    """The features of a view, (num_images, num_features) float32: the inputs of a head."""

    def __init__(self, file: Path, num_images: int, num_features: int) -> None:
        """Raises: ValueError if the file is damaged or has another shape; OSError."""
        self._file = file.open("rb")  # stays readable if the cache is cleared
        self._num_images, self._num_features = num_images, num_features
        end = os.fstat(self._file.fileno()).st_size - DIGEST_BYTES
        self._start = end - 4 * num_images * num_features
        header = int.from_bytes(self._read(0, 8), "little")
        digest = sha256_start(self._file.fileno(), end)
        if 8 + header != self._start or self._read(end, DIGEST_BYTES) != digest:
            raise ValueError(f"{file}: its SHA-256 does not match")
        self._held = self._rows(0, num_images) if end <= MAX_HELD_BYTES else None

    def __len__(self) -> int:
        return self._num_images

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the features of each part, (B, num_features); a part is (B,) int64 positions."""
        for part in parts:
            if self._held is not None:
                yield self._held.index_select(0, part)  # in half the time of self._held[part]
            elif torch.equal(part, torch.arange(int(part[0]), int(part[0]) + len(part))):
                yield self._rows(
                    int(part[0]), len(part)
                )  # consecutive, as in a test: a single read
            else:
                yield torch.cat([self._rows(index, 1) for index in part.tolist()])

    def _rows(self, first: int, count: int) -> Tensor:
        row_bytes = 4 * self._num_features
        content = self._read(self._start + first * row_bytes, count * row_bytes)
        return torch.frombuffer(content, dtype=torch.float32).view(count, -1)

    def _read(self, start: int, count: int) -> bytearray:
        content = bytearray(count)
        if start < 0 or os.preadv(self._file.fileno(), [content], start) < count:
            raise ValueError(f"{self._file.name}: the file is cut off")
        return content


def _entry(dtype: str, shape: Sequence[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@dataclass(frozen=True)
class ViewCache:
    """Features on disk. The key of a view holds all that its features depend on.

    The name of its file is a digest of the key.
    """

    folder: Path
    num_features: int

    def file(self, key: dict[str, str]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"

    def read(self, key: dict[str, str], num_images: int) -> Features | None:
        """Returns the features of a view, or None; removes a damaged file."""
        file = self.file(key)
        try:
            return Features(file, num_images, self.num_features)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            log.warning("a view is damaged and will be computed again: %s", error)
            with suppress(OSError):  # it is replaced later
                file.unlink()
            return None

    def has(self, key: dict[str, str]) -> bool:
        """Returns whether the file of a view exists and this user may read it."""
        return os.access(self.file(key), os.R_OK)

    @contextmanager
    def writing(self, key: dict[str, str], num_images: int) -> Iterator[FeaturesWriter]:
        """Yields a writer for the features; keeps the file if all of them were written.

        The metadata of the file show the key to people.
        """
        with replacing(self.file(key), is_locked=True) as partial, partial.open("r+b") as file:
            writer = FeaturesWriter(file.fileno(), (num_images, self.num_features), key)
            yield writer
            writer.finish()

    def clear_up(self) -> None:
        """Removes the partial files and the claims of processes that were killed."""
        claims.clear_up(self.folder)

    def claim(self, key: dict[str, str]) -> bool:
        """Claims a view for this process; returns False when another job computes it."""
        return claims.claim(self.file(key))

    def renew_claim(self, key: dict[str, str]) -> None:
        claims.renew(self.file(key))

    def release(self, key: dict[str, str]) -> None:
        claims.release(self.file(key))

    def claimed_by(self, key: dict[str, str]) -> str:
        """Returns host and process id of the job that computes a view, or ''."""
        return claims.claimed_by(self.file(key))
