"""Makes torch state_dict files without torch, byte by byte: good, odd and hostile files.

The functions below return the parts of a pickle: instructions that leave a value on the stack of
the pickle machine.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

START = b"\x80\x02"  # protocol 2
STOP = b"."
FIRST_ADDRESS = 140219038694208  # the old layout names storages by their address in memory


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def sequence(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def integers(values: tuple[int, ...]) -> bytes:
    return sequence(*map(integer, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + sequence(*arguments) + b"R"


NOTHING = b"N"
TRUE = b"\x88"
FALSE = b"\x89"
EMPTY = call(name("collections", "OrderedDict"))


def storage(key: str, num_items: int, kind: str = "FloatStorage") -> bytes:
    parts = [text("storage"), name("torch", kind), text(key), text("cpu"), integer(num_items)]
    return sequence(*parts) + b"Q"


def tensor(
    source: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    place = [source, integer(offset), integers(shape), integers(strides)]
    return call(rebuild, *place, FALSE, EMPTY)


def parameter(data: bytes) -> bytes:
    return call(name("torch._utils", "_rebuild_parameter"), data, TRUE, EMPTY)


def state_dict(values: Mapping[str, bytes]) -> bytes:
    """Returns a whole pickle: an OrderedDict of *values*."""
    pairs = b"".join(text(key) + value for key, value in values.items())
    return START + EMPTY + b"(" + pairs + b"u" + STOP


def write_archive(path: Path, pickle: bytes, storages: Mapping[str, bytes]) -> Path:
    """Writes a torch zip archive in the layout of torchvision's published file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle)
        for key, content in storages.items():
            archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), content)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"2\n")
    return path


def write_old_layout(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes float32 *arrays* as the published file has them; all but statistics are parameters."""
    values, storages = {}, {}
    for number, (key, array) in enumerate(arrays.items()):
        address = str(FIRST_ADDRESS + 80 * number)
        strides = tuple(stride // array.itemsize for stride in array.strides)
        data = tensor(storage(address, array.size), array.shape, strides)
        values[key] = data if "running" in key else parameter(data)
        storages[address] = array.astype("<f4").tobytes()
    return write_archive(path, state_dict(values), storages)


def resnet18_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns 102 arrays of random numbers; names and shapes do not come from the package."""
    numbers = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)} | _norm("bn1", 64)
    widths = [64, 64, 128, 256, 512]
    for stage, block in itertools.product((1, 2, 3, 4), (0, 1)):
        part, width = f"layer{stage}.{block}", widths[stage]
        inputs = width if block else widths[stage - 1]
        shapes[f"{part}.conv1.weight"] = (width, inputs, 3, 3)
        shapes |= _norm(f"{part}.bn1", width)
        shapes[f"{part}.conv2.weight"] = (width, width, 3, 3)
        shapes |= _norm(f"{part}.bn2", width)
        if stage > 1 and not block:
            shapes[f"{part}.downsample.0.weight"] = (width, inputs, 1, 1)
            shapes |= _norm(f"{part}.downsample.1", width)
    shapes |= {"fc.weight": (1000, 512), "fc.bias": (1000,)}
    return {key: numbers.random(shape, dtype=np.float32) for key, shape in shapes.items()}


def _norm(part: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{part}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
