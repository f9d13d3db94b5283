"""Files are replaced in one step, seen from a reader's side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from skinjob.files import csv_text, sorted_safetensors, write_json


def test_a_reader_of_a_file_that_is_replaced_reads_the_old_one_to_its_end(tmp_path: Path) -> None:
    """Whoever has opened a state reads what it said then, whole, whatever is written meanwhile."""
    file = tmp_path / "state.json"
    write_json(file, {"status": "waiting", "reason": "x" * 100_000})
    with file.open(encoding="utf-8") as reader:
        write_json(file, {"status": "done"})
        assert json.load(reader)["status"] == "waiting"
    assert json.loads(file.read_text(encoding="utf-8")) == {"status": "done"}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "text", ["=1+1", "=cmd|' /C calc'!A0", "+cmd", "-cmd", "@sum(a1)", "\t=1", "\r=1", "-1+1", "-"]
)
def test_a_text_in_a_csv_file_is_no_formula(text: str) -> None:
    """A spreadsheet that opens a CSV file shows a class or sweep by its name, and runs nothing."""
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["nevus", "", "-1", "+0.5", "-.5e-3", "a=b", "'quoted'", "3-4"])
def test_a_text_in_a_csv_file_that_is_no_formula_stays(text: str) -> None:
    """What reads the CSV file finds the names of ordinary classes as they are, numbers too."""
    assert csv_text(text) == text


def test_equal_tensors_and_metadata_give_an_equal_file() -> None:
    """Two people who train or fetch the same can compare their files' digests."""
    tensors = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float32)}
    metadata = {f"key {number}": "text" for number in range(20)}  # the library shuffles them
    contents = {sorted_safetensors(save(tensors, metadata)) for _ in range(5)}
    assert len(contents) == 1
    kept = load(contents.pop())
    assert all(np.array_equal(kept[name], tensors[name]) for name in tensors)
