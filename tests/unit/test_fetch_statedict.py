"""A state_dict is read as torch reads it, without torch; anything else is refused unexecuted."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import state_dict_maker as make

from skinjob.errors import WeightsError
from skinjob.weights.statedict import read_state_dict

SMALL = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.running_mean": np.array([-0.0, np.nan, np.inf], dtype=np.float32),
    "b.weight": np.zeros((0, 3), dtype=np.float32),
}


@pytest.mark.train
def test_the_published_layout_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """The layout of torchvision's published file gives torch.load's tensors, bit for bit."""
    torch = pytest.importorskip("torch")
    arrays = make.resnet18_arrays()
    path = make.write_old_layout(tmp_path / "old.pth", arrays)
    found = read_state_dict(path)
    assert len(found) == 102
    _assert_same_bits(found, torch.load(path, weights_only=True))
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.train
@pytest.mark.parametrize("protocol", [2, 4])  # 2 is torch.save's own choice
def test_todays_layout_is_read_as_torch_reads_it(tmp_path: Path, protocol: int) -> None:
    """What torch.save writes of torchvision's ResNet18 gives torch.load's tensors, bit for bit."""
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    path = tmp_path / "new.pth"
    torch.save(models.resnet18().state_dict(), path, pickle_protocol=protocol)
    found = read_state_dict(path)
    assert len(found) == 122
    assert found["bn1.num_batches_tracked"].dtype == np.int64
    _assert_same_bits(found, torch.load(path, weights_only=protocol == 2))  # it knows no other


@pytest.mark.train
def test_views_and_parameters_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    """Transposed, cut-out, shared, empty and scalar tensors come out as torch loads them."""
    torch = pytest.importorskip("torch")
    base = torch.randn(6, 7)
    tensors = {
        "transposed": base.t(),
        "cut out": base[1:4, 2:5],
        "every other": base[::2, 1],
        "shared": base,
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(2.5),
        "counter": torch.tensor([1, -(2**62)]),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    path = tmp_path / "views.pth"
    torch.save(tensors, path)
    found = read_state_dict(path)
    assert found["transposed"].flags.c_contiguous
    _assert_same_bits(found, torch.load(path, weights_only=True))


def _assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        array = tensor.detach().numpy()
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    """Both reading and what it imports leave torch out, for the laptop has none."""
    path = make.write_old_layout(tmp_path / "old.pth", SMALL)
    script = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path;"
        "from skinjob.weights.statedict import read_state_dict;"
        f"print(list(read_state_dict(Path({str(path)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == str(list(SMALL)), done.stderr


def test_numbers_are_kept_to_the_bit(tmp_path: Path) -> None:
    """Minus zero, NaN, infinity and tensors without items are what they were."""
    found = read_state_dict(make.write_old_layout(tmp_path / "old.pth", SMALL))
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in SMALL.items()
    }
    assert found["b.weight"].shape == (0, 3)


# --- pickles that would do something ----------------------------------------------------------


class _Runs:
    """Pickles as a call of *function*, which a plain unpickler makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _hostile_calls(mark: Path) -> dict[str, Any]:
    shell = f"touch {mark}"
    python = f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": _Runs(os.system, shell),
        "eval": _Runs(eval, python),
        "exec": _Runs(exec, python),
        "Popen": _Runs(subprocess.Popen, ["touch", str(mark)]),
        "getattr": _Runs(getattr, "text", "upper"),
        "open": _Runs(io.open, str(mark), "w"),
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("kind", ["os.system", "eval", "exec", "Popen", "getattr", "open"])
def test_a_pickle_that_would_run_code_is_refused_unrun(
    tmp_path: Path, kind: str, protocol: int
) -> None:
    """Code in a pickle is named in the error, and does not run."""
    mark = tmp_path / "it-ran"
    program = pickle.dumps({"weight": _hostile_calls(mark)[kind]}, protocol)
    path = make.write_archive(tmp_path / "hostile.pth", program, {})
    with pytest.raises(WeightsError, match=r"hostile\.pth: its pickle uses "):
        read_state_dict(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module_name", "attribute"),
    [
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_rebuild_parameter.__call__"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "_sys.modules"),
        ("torch", "FloatStorage.from_file"),
        ("torch", "HalfStorage"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("builtins", "dict"),
    ],
)
def test_names_are_admitted_whole(tmp_path: Path, module_name: str, attribute: str) -> None:
    """Neither a dotted path through an admitted name nor a neighbour of one is admitted."""
    short = [b"\x8c" + bytes([len(word)]) + word.encode() for word in (module_name, attribute)]
    program = b"\x80\x04" + b"".join(short) + b"\x93."  # STACK_GLOBAL follows dots
    path = make.write_archive(tmp_path / "dotted.pth", program, {})
    with pytest.raises(WeightsError, match=f"uses {module_name}.{attribute}, which a"):
        read_state_dict(path)


FLOATS = make.storage("0", 6)
REBUILD = make.name("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (make.START + make.name("collections", "OrderedDict") + b"}b.", "change a function"),
        (make.START + REBUILD + make.sequence(make.NOTHING, b"}") + b"b.", "change a function"),
        (make.START + make.name("torch", "FloatStorage") + b"}b.", "change a function"),
        (make.START + b"(ios\nsystem\n.", "uses INST"),
        (make.START + b"(icollections\nOrderedDict\n.", "uses INST"),
        (make.START + make.name("collections", "OrderedDict") + b")\x81.", "uses NEWOBJ"),
        (make.START + b"\x82\x01.", "uses EXT1"),
        (make.START + b"}r\xff\xff\xff\x7f.", "it has no tensors by name"),
        (make.START + b")" + b"\x85" * 60_000 + b".", "too long"),
        (make.START + b"})" + b"\x85" * 49_000 + b"Ns.", "not a state_dict|recursion"),
        (make.START + b"K\x01.", "it has no tensors by name"),
        (make.state_dict({"epoch": make.integer(3)}), "'epoch' is not a tensor"),
        (make.state_dict({"a": make.sequence(make.text("storage")) + b"Q"}), "not a state_dict"),
        (make.state_dict({"a": FLOATS.replace(b"storage", b"modules")}), "that is not a storage"),
        (make.state_dict({"a": FLOATS}), "'a' is not a tensor"),
        (make.state_dict({"a": make.parameter(make.integer(1))}), "'a' is not a tensor"),
        (
            make.state_dict({"a": make.tensor(make.integer(1), (2,), (1,))}),
            "a tensor with impossible shape",
        ),
        (
            make.state_dict({"a": make.tensor(FLOATS, (2, 3), (1,))}),
            "a tensor with impossible shape",
        ),
        (
            make.state_dict({"a": make.tensor(FLOATS, (-2,), (1,))}),
            "a tensor with impossible shape",
        ),
        (
            make.state_dict({"a": make.tensor(FLOATS, (2,), (-1,), 5)}),
            "a tensor with impossible shape",
        ),
        (make.state_dict({"a": make.tensor(FLOATS, (2, 3), (3, 1), 1)}), "outside its storage"),
        (make.state_dict({"a": make.tensor(FLOATS, (3,), (3,))}), "outside its storage"),
        (make.state_dict({"a": make.tensor(FLOATS, (7,), (0,))}), "outside its storage"),
        (make.state_dict({"a": make.tensor(FLOATS, (0,), (1,), 7)}), "outside its storage"),
        (
            make.state_dict({"a": make.tensor(FLOATS, (2**30, 2**30), (0, 0))}),
            "outside its storage",
        ),
        (
            make.state_dict({"a": make.tensor(make.storage("0", 5), (5,), (1,))}),
            "data/0 does not have 5 numbers",
        ),
        (
            make.state_dict({"a": make.tensor(make.storage("1", 6), (6,), (1,))}),
            "data/1",
        ),
        (
            make.state_dict({"a": make.tensor(make.storage("0", 3, "LongStorage"), (4,), (1,))}),
            "outside its storage",
        ),
        (b"", "damaged"),
        (make.START + b"X\xff\xff\xff\x7fa.", "damaged"),
        (make.START + b"X\x02\x00\x00\x00\xff\xfe.", "damaged"),
    ],
)
def test_an_odd_pickle_is_refused(tmp_path: Path, program: bytes, message: str) -> None:
    """Whatever a pickle says that is not the state_dict of its file is an error, never a crash."""
    path = make.write_archive(tmp_path / "odd.pth", program, {"0": bytes(24)})
    with pytest.raises(WeightsError, match=rf"odd\.pth: .*({message})"):
        read_state_dict(path)


def test_extra_state_on_the_dict_is_forgotten(tmp_path: Path) -> None:
    """The `_metadata` that torch attaches to a state_dict is let in and has no effect."""
    attached = b"}" + make.text("_metadata") + b"}s" + make.text("get") + make.integer(1) + b"sb"
    floats = make.text("a") + make.tensor(FLOATS, (6,), (1,)) + b"s"
    program = make.START + make.EMPTY + floats + attached + make.STOP
    path = make.write_archive(tmp_path / "meta.pth", program, {"0": bytes(24)})
    assert list(read_state_dict(path)) == ["a"]


# --- archives ---------------------------------------------------------------------------------


def _zip(path: Path, entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


GOOD = make.state_dict({"a": make.tensor(FLOATS, (6,), (1,))})


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """A zip bomb is not unpacked: torch never compresses."""
    entries = [("x/data.pkl", GOOD), ("x/data/0", bytes(24))]
    path = _zip(tmp_path / "bomb.pth", entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="is compressed or encrypted"):
        read_state_dict(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("x/data.pkl", bytes(4_000_001))], "damaged"),
        (
            [("x/data.pkl", GOOD), ("x/data/0", bytes(24)), ("x/byteorder", b"big")],
            "not little-endian",
        ),
        ([("x/data.pkl", GOOD), ("x/data.pkl", GOOD)], "two entries with the same name"),
        ([("x/data.pkl", GOOD), ("y/data.pkl", GOOD)], "2 entries named data.pkl"),
        ([("word/document.xml", b"")], "0 entries named data.pkl"),
    ],
)
def test_an_archive_of_something_else_is_refused(
    tmp_path: Path, entries: list[tuple[str, bytes]], message: str
) -> None:
    """A zip archive that is no torch file, or not a readable one, is told as that."""
    with pytest.raises(WeightsError, match=message):
        read_state_dict(_zip(tmp_path / "other.pth", entries))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """Every number is under the archive's checksum: one flipped bit is told with its entry."""
    path = make.write_old_layout(tmp_path / "old.pth", SMALL)
    content = bytearray(path.read_bytes())
    content[content.index(SMALL["a.weight"].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"damaged, .*Bad CRC-32.*data/140219038694208"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>", "not a zip file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before torch 1.6"),
        (b"PK\x03\x04" + bytes(100), "not a zip file"),
        (b"", "not a zip file"),
        (b"\x89PNG", "not a zip file"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """A web page, a file of old torch, half a file and something else are refused in words."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


@pytest.mark.train
def test_torchs_own_old_format_is_told_with_the_way_out(tmp_path: Path) -> None:
    """What torch wrote before its zip format is refused with the command that rewrites it."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "legacy.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"before torch 1\.6") as found:
        read_state_dict(path)
    assert f'torch.load("{path}", weights_only=True)' in found.value.fix


@pytest.mark.train
def test_a_whole_model_is_refused_by_its_class(tmp_path: Path) -> None:
    """A pickled model, not its state_dict, is refused with the class that it would have run."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(WeightsError, match=r"uses torch\.nn\.modules\.linear\.Linear") as found:
        read_state_dict(path)
    assert "state_dict()" in found.value.fix


def test_no_damage_crashes_the_reader(tmp_path: Path) -> None:
    """A thousand damaged files give a thousand errors or the right names: no other exception."""
    numbers = random.Random(0)
    good = make.write_old_layout(tmp_path / "old.pth", SMALL).read_bytes()
    path = tmp_path / "damaged.pth"
    refused = 0
    for _ in range(1000):
        content = bytearray(good)
        for _ in range(numbers.randrange(1, 4)):
            content[numbers.randrange(len(content))] = numbers.randrange(256)
        path.write_bytes(content[: numbers.choice([len(content), numbers.randrange(len(good))])])
        try:
            read_state_dict(path)
        except WeightsError:
            refused += 1
    assert refused > 900


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pickletools, of odd escapes
def test_no_damaged_pickle_crashes_the_reader(tmp_path: Path) -> None:
    """The same where the archive is sound and only the program in it is damaged."""
    numbers = random.Random(0)
    program = make.state_dict(
        {"a": make.parameter(make.tensor(FLOATS, (2, 3), (3, 1))), "b": make.EMPTY}
    )
    for _ in range(2000):
        odd = bytearray(program)
        for _ in range(numbers.randrange(1, 4)):
            odd[numbers.randrange(len(odd))] = numbers.randrange(256)
        path = make.write_archive(tmp_path / "odd.pth", bytes(odd), {"0": bytes(24)})
        with pytest.raises(WeightsError):  # "b" is no tensor, so none of them is good
            read_state_dict(path)
