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
MAX_ENTRIES = 10_000  # in the zip archive; ResNet18's has 130, and each takes 1 kB of memory
MAX_DIMENSIONS = 32  # of a tensor; numpy 1 takes no more
MAX_TENSOR_BYTES = 1 << 28  # all tensors together; ResNet18 has 47 MB
MAX_FAULT = 300  # characters; what is told of a fault may be quoted from the file

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
# The instructions whose values may be used again. torch.save repeats names, storage types and
# tensors; a tuple of a tuple twice over, forty times, would take hours to hash or to print.
_SHARED = frozenset(["GLOBAL", "STACK_GLOBAL", "BINUNICODE", "SHORT_BINUNICODE", "REDUCE"])

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
    try:
        _check_is_zip(path)
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive)
            folder = _folder(entries)
            _check_byte_order(archive, entries.get(f"{folder}/byteorder"))
            views = _unpickle(_read(archive, entries[f"{folder}/data.pkl"], MAX_PICKLE_BYTES))
            _check_totals(views)
            # Each storage is read once, however many tensors are windows on it.
            items = {
                storage: _items(archive, entries.get(f"{folder}/data/{storage.key}"), storage)
                for storage in {view.storage for view in views.values()}
            }
            return {name: _array(items[view.storage], name, view) for name, view in views.items()}
    except _RefusedError as error:
        raise WeightsError(f"{path}: {_short(error)}", _SAVE_STATE_DICT) from error
    except _MALFORMED as error:
        raise WeightsError(
            f"{path}: damaged, or no state_dict: {_short(error)}", _FETCH_AGAIN
        ) from error


def _short(fault: Exception) -> str:
    text = str(fault) or type(fault).__name__
    return text if len(text) <= MAX_FAULT else f"{text[:MAX_FAULT]}..."


# --- the zip archive ------------------------------------------------------------------------


def _check_is_zip(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file", _FETCH_AGAIN)
    with path.open("rb") as content:
        head = content.read(512)
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path}: an HTML page, not weights", _FETCH_AGAIN)
    if head[:1] == b"\x80" or head[257:262] == b"ustar":
        fix = _RESAVE.format(path)
        raise WeightsError(f"{path}: saved in the format from before torch 1.6 (2020)", fix)
    if head[:4] != b"PK\x03\x04":
        raise WeightsError(f"{path}: not a torch file: it begins with {head[:4]!r}", _FETCH_AGAIN)
    if not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise WeightsError(f"{path}: cut off: its end is missing ({size:,} bytes)", _FETCH_AGAIN)
    if _count(path, b"PK\x01\x02") > MAX_ENTRIES:  # zipfile would make an object of each
        raise WeightsError(f"{path}: a zip archive of too many entries", _FETCH_AGAIN)


def _count(path: Path, signature: bytes) -> int:
    """Returns how often *signature* is in a file, but for those on the border of two blocks."""
    found = 0
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            found += block.count(signature)
    return found


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

    Also bounds the memo: one instruction can ask for slot 4,294,967,295 and get 32 GB. And what
    is used again out of it must be of a kind that cannot grow by that.
    """
    made_by = ""
    memo: dict[int, str] = {}  # by slot, the instruction that made what is in it
    for number, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if opcode.name in ("GLOBAL", "INST"):  # what it asks for says more than how
            _admitted(*str(argument).split(" ", 1))
        if opcode.name not in _OPCODES:
            raise _RefusedError(f"its pickle uses {opcode.name}, which no state_dict needs")
        slot = int(argument or 0) if opcode.name == "LONG_BINPUT" else 0
        if number >= MAX_OPCODES or slot >= MAX_OPCODES:
            raise _RefusedError(f"its pickle is too long for a state_dict ({len(program):,} bytes)")
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = made_by
            continue
        made_by = opcode.name
        if made_by in ("BINGET", "LONG_BINGET"):
            made_by = memo.get(int(argument or 0), "nothing")
            if made_by not in _SHARED:
                raise _RefusedError(
                    f"its pickle uses again what {made_by} made, which no state_dict needs"
                )


class _Unpickler(pickle.Unpickler):
    """Runs a pickle in a world of five names."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for an admitted name, matched whole: a dotted name finds nothing."""
        return _admitted(module, name)

    def persistent_load(self, reference: Any) -> _Storage:
        """Returns the storage that a reference ("storage", type, key, device, items) names."""
        kind, storage_type, key, _device, num_items = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise _RefusedError("its pickle refers to something which is no storage")
        if not isinstance(key, str) or not _is_count(num_items):
            raise _RefusedError("its pickle refers to a storage without a name or a size")
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
        is_sound = (
            isinstance(storage, _Storage)
            and isinstance(shape, tuple)
            and isinstance(strides, tuple)
            and len(shape) == len(strides) <= MAX_DIMENSIONS
            and all(map(_is_count, (offset, *shape, *strides)))
        )
        if not is_sound:
            raise _RefusedError("a tensor of shape, strides or storage that no tensor has")
        return _View(storage, offset, shape, strides)


class _RebuildParameter(_Inert):
    __slots__ = ()

    def __call__(self, view: Any, requires_grad: Any, hooks: Any) -> _View:
        if not isinstance(view, _View):
            raise _RefusedError(f"a parameter made of a {type(view).__name__}, which is no tensor")
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


def _check_totals(views: dict[str, _View]) -> None:
    for what, total in (
        ("tensors", sum(_num_bytes(v.storage, math.prod(v.shape)) for v in views.values())),
        ("storages", sum(_num_bytes(s, s.num_items) for s in {v.storage for v in views.values()})),
    ):
        if total > MAX_TENSOR_BYTES:
            raise _RefusedError(f"its {what} take {total:,} bytes, {MAX_TENSOR_BYTES:,} at most")


def _num_bytes(storage: _Storage, num_items: int) -> int:
    return num_items * np.dtype(storage.dtype).itemsize


def _items(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, storage: _Storage) -> Array:
    """Returns a storage's numbers, in one row."""
    if entry is None:
        raise _RefusedError(f"it has no numbers for a tensor: data/{storage.key} is missing")
    num_bytes = _num_bytes(storage, storage.num_items)
    if entry.file_size != num_bytes:
        raise _RefusedError(
            f"{entry.filename} has {entry.file_size:,} bytes, {num_bytes:,} expected"
        )
    return np.frombuffer(_read(archive, entry, MAX_TENSOR_BYTES), storage.dtype)


def _array(items: Array, name: str, view: _View) -> Array:
    _check_window(name, view)
    strides = tuple(stride * items.itemsize for stride in view.strides)
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
