"""Reads a torch state_dict without torch, and without executing its pickle.

A `.pth` file is a zip archive: `<folder>/data.pkl` tells names, shapes and types, and
`<folder>/data/<key>` holds the numbers, little-endian and uncompressed. Two layouts are about:
the one of 2020, which torchvision's published file has (folder `archive`, keys that are
addresses, `_rebuild_parameter`), and what torch.save writes today (keys 0, 1, ..., a
`byteorder` record, `_metadata` on the dict). They differ in nothing that this reader relies on.

A pickle is a program. Here it can call what `_ADMITTED` lists and nothing else, and all that
those do is to write down what the file says; it is judged afterwards.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from skinjob.errors import WeightsError

Array = NDArray[Any]

MAX_PICKLE_BYTES = 4_000_000  # ResNet18's is 15 kB, ResNet152's 120 kB
MAX_OPCODES = 50_000  # ResNet18 has 4,300; a longer program could nest deep enough to crash Python
MAX_TENSOR_BYTES = 1 << 30  # all tensors together; ResNet18 has 47 MB

_RESAVE = 'python -c \'import torch; torch.save(torch.load("{0}", weights_only=True), "new.pth")\''
_SAVE_STATE_DICT = (
    "skinjob fetch-weights   # torchvision's own; of another, torch.save MODEL.float().state_dict()"
)
_FETCH_AGAIN = "skinjob fetch-weights"

# The instructions that torch.save has ever used for a state_dict, protocols 2 to 4. Left out are
# those that make objects in other ways (INST, OBJ, NEWOBJ, EXT1, ...).
_INSTRUCTIONS = (
    "PROTO FRAME STOP GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID MARK MEMOIZE "
    "BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 "
    "BINUNICODE SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS BINFLOAT"
)
_OPCODES = frozenset(_INSTRUCTIONS.split())

# What malformed input raises out of zipfile, pickle, numpy and our own unpacking of tuples.
_MALFORMED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,  # an offset before the start of the file
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,  # UnicodeDecodeError is one
)


class _Storage(NamedTuple):
    """Numbers that the file promises: where, of which type, how many."""

    key: str
    dtype: str
    num_items: int


class _View(NamedTuple):
    """A tensor that the file promises: a window on a storage; offset and strides in items."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RefusedError(Exception):
    """What a file holds that no state_dict needs."""


def read_state_dict(path: Path) -> dict[str, Array]:
    """Returns the tensors of a torch state_dict file by name, in the file's order.

    Each is a contiguous little-endian float32 or int64 array that owns its numbers. Nothing in
    the file is executed, and every zip entry's CRC is checked.

    Raises:
        WeightsError: the file is no state_dict, is damaged, or asks for anything else.
    """
    _check_is_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive)
            folder = _folder(entries)
            _check_byte_order(archive, entries.get(f"{folder}/byteorder"))
            views = _unpickle(_read(archive, entries[f"{folder}/data.pkl"], MAX_PICKLE_BYTES))
            _check_total(views)
            return {
                name: _array(archive, entries.get(f"{folder}/data/{view.storage.key}"), name, view)
                for name, view in views.items()
            }
    except _RefusedError as fault:
        raise WeightsError(f"{path}: {fault}", _SAVE_STATE_DICT) from fault
    except _MALFORMED as fault:
        raise WeightsError(
            f"{path}: damaged, or no state_dict: {fault or type(fault).__name__}", _FETCH_AGAIN
        ) from fault


# --- the zip archive ------------------------------------------------------------------------


def _check_is_zip(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file", _FETCH_AGAIN)
    with path.open("rb") as content:
        head = content.read(512)
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path}: an HTML page, not weights", _FETCH_AGAIN)
    if head[:1] == b"\x80" or head[257:262] == b"ustar":
        remedy = _RESAVE.format(path)
        raise WeightsError(f"{path}: saved in the format from before torch 1.6 (2020)", remedy)
    if head[:4] != b"PK\x03\x04":
        raise WeightsError(f"{path}: not a torch file: it begins with {head[:4]!r}", _FETCH_AGAIN)
    if not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise WeightsError(f"{path}: cut off: its end is missing ({size:,} bytes)", _FETCH_AGAIN)


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise _RefusedError("its zip archive holds two entries of one name")
    return entries


def _folder(entries: dict[str, zipfile.ZipInfo]) -> str:
    pickles = [name for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise _RefusedError(
            f"a zip archive, but no torch file: {len(pickles)} entries named data.pkl"
        )
    return pickles[0].partition("/")[0]


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most_bytes: int) -> bytes:
    """Returns an entry's bytes, CRC checked; refuses what could unpack to more than it is."""
    packed = entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size
    if packed or entry.flag_bits & 1:
        raise _RefusedError(
            f"{entry.filename} is compressed or encrypted, which torch.save never does"
        )
    if entry.file_size > most_bytes:
        raise _RefusedError(
            f"{entry.filename} has {entry.file_size:,} bytes, {most_bytes:,} at most"
        )
    return archive.read(entry)


def _check_byte_order(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None) -> None:
    order = _read(archive, entry, 16) if entry else b"little"  # old files do not say: they are
    if order != b"little":
        raise _RefusedError(f"its byte order is {order!r}, only little-endian files can be read")


# --- the pickle -----------------------------------------------------------------------------


def _unpickle(program: bytes) -> dict[str, _View]:
    _check_opcodes(program)
    found = _Unpickler(io.BytesIO(program)).load()
    if not isinstance(found, dict):
        raise _RefusedError(f"it holds a {type(found).__name__}, not a state_dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _View):
            raise _RefusedError(
                f"no state_dict but perhaps a checkpoint around one: {name!r} is no tensor"
            )
    return dict(found)


def _check_opcodes(program: bytes) -> None:
    """Raises unless every instruction is one that a state_dict needs.

    Also bounds the memo: one instruction can ask for slot 4,294,967,295 and get 32 GB.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if opcode.name in ("GLOBAL", "INST"):  # what it asks for says more than how
            _admitted(*str(argument).split(" ", 1))
        if opcode.name not in _OPCODES:
            raise _RefusedError(f"its pickle uses {opcode.name}, which no state_dict needs")
        slot = int(argument or 0) if opcode.name == "LONG_BINPUT" else 0
        if number >= MAX_OPCODES or slot >= MAX_OPCODES:
            raise _RefusedError(f"its pickle is too long for a state_dict ({len(program):,} bytes)")


class _Unpickler(pickle.Unpickler):
    """Runs a pickle in a world of five names."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for an admitted name, matched whole: a dotted name finds nothing."""
        return _admitted(module, name)

    def persistent_load(self, reference: Any) -> _Storage:
        """Returns the storage that a reference ("storage", type, key, device, items) names."""
        kind, storage_type, key, _device, num_items = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise _RefusedError(f"its pickle refers to {reference!r:.80}, which is no storage")
        if not isinstance(key, str) or not _is_count(num_items):
            raise _RefusedError(f"its storage {key!r:.40} has {num_items!r:.40} items")
        return _Storage(key, storage_type.dtype, num_items)


class _Inert:
    """A name that a pickle may use and cannot change: BUILD would set attributes on it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> NoReturn:
        raise _RefusedError("its pickle tries to change a function")


class _StorageType(_Inert):
    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _StateDict(dict[Any, Any]):
    """Stands for OrderedDict; forgets the `_metadata` (module versions) that BUILD brings."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _NewDict(_Inert):
    """Stands for the class OrderedDict, which both layouts call without arguments."""

    __slots__ = ()

    def __call__(self) -> _StateDict:
        return _StateDict()


class _RebuildTensor(_Inert):
    __slots__ = ()

    def __call__(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any,
        hooks: Any,
        metadata: Any = None,
    ) -> _View:
        counts = (offset, *shape, *strides)
        if not isinstance(shape, tuple) or len(shape) != len(strides):
            raise _RefusedError(f"a tensor of shape {shape!r:.80} and strides {strides!r:.80}")
        if not isinstance(storage, _Storage) or not all(map(_is_count, counts)):
            raise _RefusedError(f"a tensor of shape {shape!r:.80} and strides {strides!r:.80}")
        return _View(storage, offset, shape, tuple(strides))


class _RebuildParameter(_Inert):
    __slots__ = ()

    def __call__(self, view: Any, requires_grad: Any, hooks: Any) -> _View:
        if not isinstance(view, _View):
            raise _RefusedError(f"a parameter made of {view!r:.80}")
        return view


_ADMITTED: dict[tuple[str, str], _Inert] = {
    ("collections", "OrderedDict"): _NewDict(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),  # only the published file's layout
    ("torch", "FloatStorage"): _StorageType("<f4"),
    ("torch", "LongStorage"): _StorageType("<i8"),  # num_batches_tracked: only today's layout
}


def _admitted(module: str, name: str) -> _Inert:
    try:
        return _ADMITTED[module, name]
    except KeyError:
        raise _RefusedError(
            f"its pickle asks for {module}.{name}, which no float32 state_dict needs;"
            " nothing of it was run"
        ) from None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


# --- the tensors ----------------------------------------------------------------------------


def _check_total(views: dict[str, _View]) -> None:
    total = sum(
        math.prod(view.shape) * np.dtype(view.storage.dtype).itemsize for view in views.values()
    )
    if total > MAX_TENSOR_BYTES:
        raise _RefusedError(f"its tensors take {total:,} bytes, {MAX_TENSOR_BYTES:,} at most")


def _array(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, name: str, view: _View
) -> Array:
    if entry is None:
        raise _RefusedError(f"{name} has no numbers: data/{view.storage.key} is missing")
    dtype = np.dtype(view.storage.dtype)
    if entry.file_size != view.storage.num_items * dtype.itemsize:
        raise _RefusedError(
            f"{entry.filename} has {entry.file_size:,} bytes,"
            f" {view.storage.num_items * dtype.itemsize:,} expected"
        )
    _check_window(name, view)
    items = np.frombuffer(_read(archive, entry, MAX_TENSOR_BYTES), dtype)
    strides = tuple(stride * dtype.itemsize for stride in view.strides)
    window = np.lib.stride_tricks.as_strided(
        items[view.offset :], view.shape, strides, writeable=False
    )
    return np.array(window, order="C")  # a copy: outlives the bytes, and contiguous for any stride


def _check_window(name: str, view: _View) -> None:
    """Raises unless every item of the tensor lies inside its storage: numpy does not look."""
    num_items = math.prod(view.shape)
    last = view.offset + sum(
        (size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True)
    )
    outside = num_items > 0 and last >= view.storage.num_items
    if outside or num_items > view.storage.num_items or view.offset > view.storage.num_items:
        raise _RefusedError(
            f"{name}, shape {view.shape}, reaches outside its storage"
            f" of {view.storage.num_items:,} items"
        )
