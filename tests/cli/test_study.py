"""What submit records beside the recipe: words about the study."""

from __future__ import annotations

from pathlib import Path

from commands import skinjob
from trees import make_sweep, make_tree


def test_a_study_can_be_stated_after_the_training(tmp_path: Path, weights: Path) -> None:
    """The same submit with [study] adds it to a finished sweep, and trains nothing."""
    data = make_tree(tmp_path / "skin_cancer", num_train=8)
    sweep = make_sweep(data, weights, tmp_path / "runs", batch_sizes=(4,), epochs=1)
    (run,) = sweep.runs()
    run.update_state(status="done")
    (tmp_path / "job.toml").write_text("[study]\nlicence = 'CC0'\nusers = 'nobody'\n")
    options = ("--weights", weights, "--batch-sizes", "4", "--lr", "0.1", "--epochs", "1")
    job = ("--device", "cpu", "--precision", "fp32", "--cluster", "local", "--job", "job.toml")
    for words in ((), ("--users", "students")):
        result = skinjob("submit", *options, *job, *words, cwd=tmp_path, code=0)
        assert "not repeated" in result.stdout
    info = sweep.info()
    assert info.study == {"licence": "CC0", "users": "students"}
    assert info.recipe == run.config().recipe()
