"""Values and job files: what is refused, in which words, and what wins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from skinjob.commands.options import IntegerList
from skinjob.commands.sources import JOB_TABLES, read_file
from skinjob.config import ClusterConfig, TrainConfig
from skinjob.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -1),
        ("epochs", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("seed", -1),
        ("seed", 2**63),
        ("device", "tpu"),
        ("precision", "fp64"),
    ],
)
def test_a_value_that_cannot_train_is_refused_by_name(field: str, value: Any) -> None:
    """The error has the value as it was given."""
    values = {"data": "d", "weights": "w", "batch_size": 32} | {field: value}
    with pytest.raises(ConfigError) as raised:
        TrainConfig(**values)
    assert repr(value) in raised.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cluster", "pbs"),
        ("gpus", 2),
        ("cpus", 0),
        ("mem_gb", 0.0),
        ("time_min", 0),
        ("array_parallelism", 0),
        ("partition", "a\n#SBATCH --uid=0"),
        ("account", ""),
        ("constraint", "a b"),
        ("constraint", "-a100"),
        ("gpu_flag", "gpu"),
        ("gpu_type", "gpu:a100"),
        ("mem_flag", "mem-per-node"),
        ("wckey", "*"),
        ("reservation", "a;b"),
        ("nodelist", "gpu[01-04]"),
        ("exclude", "gpu[01-04"),
        ("exclude", "gpu01 gpu02"),
        ("exclude", "-x"),
        ("mail", "me@example.org\n#SBATCH --uid=0"),
        ("mail_type", "END FAIL"),
    ],
)
def test_a_request_that_cannot_be_made_is_refused_by_name(field: str, value: Any) -> None:
    """Nothing of the user's text can become a line of the sbatch script of its own."""
    with pytest.raises(ConfigError) as raised:
        ClusterConfig(**{field: value})
    assert repr(value) in raised.value.message


def test_default_job_file_says_what_the_code_does(tmp_path: Path) -> None:
    """jobs/default.toml is what holds without it: it sets no cluster's value, and has every key."""
    values = read_file("job file", ROOT / "jobs/default.toml", JOB_TABLES).values
    assert not set(values) & set(JOB_TABLES["cluster"]), "it would hide the site's profile"
    whole_file = tmp_path / "whole.toml"
    text = (ROOT / "jobs/default.toml").read_text()
    whole_file.write_text(re.sub(r"(?m)^#(\w+ = )", r"\1", text))
    for table, options in JOB_TABLES.items():
        whole = read_file("job file", whole_file, JOB_TABLES).values
        assert set(options) <= set(whole), table
        for key, option in options.items():
            if option.command_default not in (None, ()):
                assert whole[key] == json.loads(json.dumps(option.command_default)), key


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("[train]\nepoch = 3", "unknown key in [train]: 'epoch'", "use 'epochs'"),
        ("[trian]\nepochs = 3", "unknown table: 'trian'", "use 'train'"),
        ("epochs = 3", "unknown table: 'epochs'", "valid: cluster, study, train"),
        ("train = 3", "train is a value, not a table", "[train]"),
        ("[train", "job.toml: ", "job.toml"),
    ],
)
def test_a_job_file_with_a_slip_is_refused(
    tmp_path: Path, text: str, message: str, fix: str
) -> None:
    """A typo stops here, with the nearest valid word."""
    file = tmp_path / "job.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_file("job file", file, JOB_TABLES)
    assert message in raised.value.message
    assert fix in raised.value.fix


def test_integer_lists_take_commas_ranges_and_lists() -> None:
    """Seeds and batch sizes read as people write them."""
    convert = IntegerList().convert
    assert convert("32,64", None, None) == (32, 64)
    assert convert("0-3,9", None, None) == (0, 1, 2, 3, 9)
    assert convert([1, 2], None, None) == (1, 2)
