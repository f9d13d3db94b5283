"""Reads a torch state_dict without torch, and without unpickling it.

A `.pth` file is a zip archive: `<folder>/data.pkl` has names, shapes and types, and
`<folder>/data/<key>` has the numbers, little-endian and uncompressed. This is true for
torchvision's published file of 2020 and for the files of today's torch.save.

A pickle is a program, so it is not run. `_interpret` reads its instructions. It knows those that a
state_dict needs and the five names in `_NAMES`, and refuses all others.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skinjob.errors import WeightsError

MAX_FILE_BYTES = 1 << 29  # ViT-B/16 has 346 MB
MAX_NUMBERS = 1 << 28  # of all tensors and storages; ViT-B/16 has 173 million
MAX_ENTRIES = 10_000  # of the zip archive, each takes 1 kB of memory; EfficientNet-B0 has 360
MAX_INSTRUCTIONS = 50_000  # of the pickle; EfficientNet-B0 has 13,000
MAX_DIMENSIONS = 32  # of a tensor; numpy 1 takes no more

SAVE = "skinjob fetch-weights   # or, of another model, torch.save MODEL.float().state_dict()"
SAVE_AGAIN = 'import torch; torch.save(torch.load("{}", weights_only=True), "new.pth")'


class _Storage(NamedTuple):
    """Numbers in the file: their key, their type ("<f4"), and how many."""

    key: str
    dtype: str
    num_items: int


class _View(NamedTuple):
    """A tensor, which is a part of a storage; offset and strides in items."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def cut_from(self, numbers: NDArray[Any]) -> NDArray[Any]:
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides).copy()


class _RefusedError(Exception):
    """The file has content that a state_dict does not need."""


def _require(is_so: bool, words: str) -> None:
    if not is_so:
        raise _RefusedError(words)


def read_state_dict(path: Path) -> dict[str, NDArray[Any]]:
    """Returns the tensors of a torch state_dict file by name, in the file's order.

    Each is a contiguous little-endian float32 or int64 array with its own memory. Nothing in the
    file is executed, and the CRC of every zip entry is checked.

    Raises:
        WeightsError: the file is not a state_dict, or is damaged.
    """
    fix = SAVE
    try:
        _require(path.stat().st_size <= MAX_FILE_BYTES, f"more than {MAX_FILE_BYTES:,} bytes")
        content = path.read_bytes()
        if content[:1] == b"\x80" or content[257:262] == b"ustar":
            fix = f"python -c '{SAVE_AGAIN.format(path)}'"
            raise _RefusedError("saved in the format from before torch 1.6 (2020)")
        _require(content.count(b"PK\x01\x02") <= MAX_ENTRIES, "a zip archive with too many entries")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _read_tensors(archive)
    except _RefusedError as error:
        raise WeightsError(f"{path}: {error!s:.300}", fix) from error
    except Exception as error:  # malformed files raise many types in zipfile and pickletools
        words = f"damaged, or not a state_dict: {str(error) or type(error).__name__}"
        raise WeightsError(f"{path}: {words:.300}", fix) from error


def _read_tensors(archive: zipfile.ZipFile) -> dict[str, NDArray[Any]]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    _require(len(entries) == len(archive.infolist()), "two entries with the same name")
    pickles = [name for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
    _require(len(pickles) == 1, f"not a torch file: it has {len(pickles)} entries named data.pkl")
    folder = pickles[0].removesuffix("/data.pkl")
    if order := entries.get(f"{folder}/byteorder"):
        _require(_read_entry(archive, order) == b"little", "its byte order is not little-endian")
    views = _interpret(_read_entry(archive, entries[pickles[0]]))
    _require(isinstance(views, dict) and bool(views), "it has no tensors by name")
    for name, view in views.items():
        _require(isinstance(view, _View), f"a checkpoint? its {name!r} is not a tensor")
    storages = {view.storage for view in views.values()}
    num_items = sum(math.prod(v.shape) for v in views.values()) + sum(s.num_items for s in storages)
    _require(num_items <= MAX_NUMBERS, f"its tensors have {num_items:,} numbers")
    numbers = {}  # each storage is read once, also if several tensors share it
    for storage in storages:
        entry = entries[f"{folder}/data/{storage.key}"]
        items = numbers[storage] = np.frombuffer(_read_entry(archive, entry), storage.dtype)
        words = f"{entry.filename} does not have {storage.num_items:,} numbers"
        _require(len(items) == storage.num_items, words)
    return {name: view.cut_from(numbers[view.storage]) for name, view in views.items()}


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Returns the bytes of an entry, after checking its CRC; refuses compressed entries."""
    is_plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
    _require(is_plain, f"{entry.filename} is compressed or encrypted")
    return archive.read(entry)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_unused: Any) -> _View:
    is_sound = (
        isinstance(storage, _Storage)
        and type(shape) is type(strides) is tuple
        and len(shape) == len(strides) <= MAX_DIMENSIONS
        and all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
    )
    _require(is_sound, "a tensor with impossible shape, strides or storage")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    end = offset if 0 in shape else max(math.prod(shape), last + 1)
    words = f"a tensor of shape {shape} reaches outside its storage of {storage.num_items:,} items"
    _require(end <= storage.num_items, words)  # numpy does not check it
    return _View(storage, offset, shape, strides)


_NAMES: dict[str, Any] = {
    "collections OrderedDict": {}.copy,  # returns an empty dict, and takes no arguments
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda view, *_unused: view,  # only in the published file
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),  # for the counters, which the published file lacks
}


def _interpret(program: bytes) -> Any:
    """Returns the object that a state_dict's pickle describes. Calls only values of `_NAMES`."""
    stack: list[Any] = []
    marks: list[int] = []  # positions in the stack where the instruction MARK came
    memo: dict[Any, Any] = {}

    def pop(number: int) -> list[Any]:
        return [stack.pop() for _ in range(number)][::-1]

    for number, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        _require(number < MAX_INSTRUCTIONS, "its pickle is too long for a state_dict")
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":  # whether a tensor requires a gradient
                stack.append(None)
            case "EMPTY_TUPLE" | "EMPTY_DICT":
                stack.append(() if opcode.name == "EMPTY_TUPLE" else {})
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[5:] or len(stack) - marks.pop()))))
            case "SETITEM" | "SETITEMS":
                items = pop(2 if opcode.name == "SETITEM" else len(stack) - marks.pop())
                # Other keys may take hours to hash: a tuple twice in a tuple, forty levels deep.
                are_names = all(isinstance(name, str) for name in items[::2])
                _require(are_names, "not a state_dict: a key is not text")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL" | "STACK_GLOBAL":
                name = argument or " ".join(pop(2))
                words = f"its pickle uses {name.replace(' ', '.')}, which a float32 state_dict"
                _require(name in _NAMES, f"{words} does not need; nothing was executed")
                stack.append(_NAMES[name])
            case "BINPERSID":
                kind, dtype, key, _device, num_items = stack.pop()
                types = kind, isinstance(dtype, np.dtype), type(key), type(num_items)
                is_sound = types == ("storage", True, str, int)
                _require(is_sound, "its pickle refers to something that is not a storage")
                stack.append(_Storage(key, dtype.str, num_items))
            case "REDUCE":
                function, arguments = pop(2)
                stack.append(function(*arguments))
            case "BUILD":  # `_metadata` of a state_dict: versions of its modules
                _metadata, target = stack.pop(), stack[-1]
                _require(isinstance(target, dict), "its pickle tries to change a function")
            case other:
                raise _RefusedError(f"its pickle uses {other}, which a state_dict does not need")
    return stack.pop()
