"""The benchmark for a GPU runs here, small and on the CPU, so that it works when there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmarks/gpu.py"


def test_the_benchmark_for_a_gpu_measures_all_that_it_names(tmp_path: Path, weights: Path) -> None:
    """Every kind of figure is there, and what should be equal is."""
    file = tmp_path / "results.json"
    words = ["--device", "cpu", "--small", "--weights", str(weights), "--json", str(file)]
    result = subprocess.run(
        [sys.executable, BENCHMARK, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = {one["name"]: one for one in map(json.loads, file.read_text().splitlines())}
    kinds = {name.split(":")[0] for name in found}
    assert kinds >= {"limits", "sweep", "views", "equal", "all", "accuracy"}
    assert {name: one["ratio"] for name, one in found.items() if name.startswith("equal")} == {
        "equal: two sweeps": 1,
        "equal: killed heads": 1,
    }
    assert all(one["ratio"] > 0 for name, one in found.items() if not name.startswith("acc"))
