"""Files are replaced in one step, seen from a reader's side."""

from __future__ import annotations

import json
from pathlib import Path

from skinjob.files import write_json


def test_a_reader_of_a_file_that_is_replaced_reads_the_old_one_to_its_end(tmp_path: Path) -> None:
    """Whoever has opened a state reads what it said then, whole, whatever is written meanwhile."""
    file = tmp_path / "state.json"
    write_json(file, {"state": "queued", "error": "x" * 100_000})
    with file.open(encoding="utf-8") as reader:
        write_json(file, {"state": "done"})
        assert json.load(reader)["state"] == "queued"
    assert json.loads(file.read_text(encoding="utf-8")) == {"state": "done"}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
