"""What to train and where to run it: records that check themselves, and the files of them."""

from __future__ import annotations

import difflib
import math
import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skinjob.errors import ConfigError
from skinjob.flags import require_other_flags

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEVICES = ("auto", "cuda", "cpu")
LAYERS = ("head", "all")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("auto", "fp32", "bf16")
CLUSTERS = ("auto", "slurm", "local")
GPU_FLAGS = ("gpus-per-node", "gres", "gpus", "none")
MEM_FLAGS = ("mem", "mem-per-cpu", "mem-per-gpu")

LEAST_TIME_MIN = 5
"""A job needs a minute to start, and is warned up to two and a half before its end."""

AXES = ("batch_size", "lr", "seed")
"""What the runs of a sweep differ in."""


class FieldError(ConfigError):
    """A value that a record refuses, in the words of the command line."""

    def __init__(self, field: str, message: str, fix: str) -> None:
        """*field* is the name that the record has for it."""
        super().__init__(message, fix)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the recipe. Everything that its numbers depend on is here or named by a digest."""

    data: str
    """Folder with train/<class>/ and test/<class>/."""
    weights: str
    """The backbone's safetensors file."""
    batch_size: int
    """Images per update."""
    train: str = "head"
    """The layers that are trained: head, the new last one on a frozen backbone, or all."""
    epochs: int = 20
    """Passes over the training images."""
    lr: float = 0.01
    """Learning rate: of Adadelta for the head, of AdamW for all layers."""
    schedule: str = "constant"
    """The learning rate over the updates: constant, or cosine from lr down to 0."""
    seed: int = 0
    """Draws the head's first values and the order of the images."""
    augmentation_seed: int = 0
    """Draws the crops and flips; one for all runs of a sweep, so that they see the same images."""
    device: str = "auto"
    """auto, cuda or cpu. Asked for cuda and none there is an error."""
    precision: str = "auto"
    """The arithmetic of the layers before the head: auto, fp32 or bf16."""
    positive: str | None = None
    """The class that sensitivity, specificity and AUC look for; by default the last by name."""

    def __post_init__(self) -> None:
        _require(
            self.batch_size >= 1,
            "batch_size",
            self.batch_size,
            "at least 1",
            "--batch-sizes 32,64,128,256",
        )
        _require(1 <= self.epochs <= 10**6, "epochs", self.epochs, "1 to 1000000", "--epochs 20")
        _require(
            math.isfinite(self.lr) and self.lr > 0, "lr", self.lr, "a number above 0", "--lr 0.01"
        )
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1", "--seeds 0")
        _require(
            self.augmentation_seed >= 0,
            "augmentation_seed",
            self.augmentation_seed,
            "0 or more",
            "--seeds 0",
        )
        for name, choices in (
            ("train", LAYERS),
            ("schedule", SCHEDULES),
            ("device", DEVICES),
            ("precision", PRECISIONS),
        ):
            _require_choice(name, getattr(self, name), choices)

    def recipe(self) -> dict[str, Any]:
        """Returns what the runs of a sweep have in common: all but the axes of its grid."""
        return {name: value for name, value in self.record().items() if name not in AXES}

    def record(self) -> dict[str, Any]:
        """Returns the fields by name, for a file; without those that are None.

        A field that came later is None by default: records from before it stay equal.
        """
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the runs go, and what each of them asks for. Nothing that is None is asked for."""

    cluster: str = "auto"
    """slurm, local, or auto: slurm where sbatch is found, or something of SLURM is asked for."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that the node must have."""
    gpus: int = 1
    """GPUs per job; 0 for none."""
    gpu_flag: str = "gpus-per-node"
    """The sbatch flag that asks for them; none where the partition brings the GPU along."""
    gpu_type: str | None = None
    cpus: int = 4
    """CPU cores per job: they decode and augment images."""
    mem_gb: float = 8
    """Memory per job, GB, whichever flag asks for it."""
    mem_flag: str = "mem"
    """The sbatch flag that asks for it."""
    time_min: int = 120
    """Time limit per job, minutes."""
    requeue: bool = True
    """Whether a job may start again, at its time limit or when it had to make room."""
    requeues: int = 3
    """How often a job that reaches its time limit is queued again, to go on where it was."""
    setup: tuple[str, ...] = ()
    """Shell lines that the job runs first, as they are (module load ...)."""
    python: str | None = None
    """Shell words that start Python in a job; without it, the Python that submits."""
    array_parallelism: int = 256
    """Jobs of one sweep that may work at the same time."""
    wckey: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    """The node to run on."""
    exclude: str | None = None
    """Nodes not to run on."""
    mail: str | None = None
    """Who is told of a sweep's jobs."""
    mail_type: str = "END,FAIL"
    """What they are told, if anybody is: the end of the array, and its failure."""
    sbatch: tuple[str, ...] = ()
    """Other flags of sbatch, as --hint=nomultithread."""
    trust: tuple[str, ...] = ()
    """Users besides root who may own a folder above the runs, and so could replace them."""
    allow_node_local: bool = False
    """Whether what a job opens may lie below /tmp and the like: the nodes share it here."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("cluster", CLUSTERS),
            ("gpu_flag", GPU_FLAGS),
            ("mem_flag", MEM_FLAGS),
        ):
            _require_choice(name, getattr(self, name), choices)
        _require(self.gpus in (0, 1), "gpus", self.gpus, "0 or 1: a job uses one GPU", "--gpus 1")
        _require(self.cpus >= 1, "cpus", self.cpus, "at least 1", "--cpus 4")
        _require(
            # Torch alone needs half a GB; SLURM takes --mem=0M for all the memory of a node.
            math.isfinite(self.mem_gb) and 0.5 <= self.mem_gb <= 10**5,
            "mem_gb",
            self.mem_gb,
            "0.5 to 100000 (GB)",
            "--mem 8",
        )
        _require(
            LEAST_TIME_MIN <= self.time_min <= 525_600,
            "time_min",
            self.time_min,
            f"{LEAST_TIME_MIN} to 525600 (minutes; a year)",
            "--time 120",
        )
        _require(self.requeues >= 0, "requeues", self.requeues, "0 or more", "--requeues 3")
        _require(
            self.array_parallelism >= 1,
            "array_parallelism",
            self.array_parallelism,
            "at least 1",
            "--array-parallelism 4",
        )
        for name, (pattern, rule, example) in WORDS.items():
            value = getattr(self, name)
            # It becomes one word of an #SBATCH line, which a line break would end.
            _require(
                value is None or re.fullmatch(pattern, value),
                name,
                value,
                rule,
                f"--{name.replace('_', '-')} {example}",
            )
        _require(
            self.gpu_flag != "none" or self.gpu_type is None,
            "gpu_type",
            self.gpu_type,
            "left out with gpu flag none, which asks for no GPU: take --constraint for the type",
            f"--gpu-flag gres --gpu-type {self.gpu_type}",
        )
        _require(
            self.mem_flag != "mem-per-gpu" or self.gpu_flag != "none",
            "mem_flag",
            self.mem_flag,
            "mem or mem-per-cpu with gpu flag none, which asks for no GPU",
            "--mem-flag mem",
        )
        try:
            require_other_flags(self.sbatch)
        except ConfigError as error:
            raise FieldError("sbatch", error.message, error.fix) from None
        _require(
            all("\0" not in line for line in self.setup),
            "setup",
            list(self.setup),
            "shell lines without NUL bytes",
            "--setup 'module load cuda'",
        )
        for name in self.trust:
            _require(re.fullmatch(USER, name), "trust", name, "the name of a user", "--trust NAME")
        _require(
            self.python is None or _are_shell_words(self.python),
            "python",
            self.python,
            "shell words that start Python",
            "--python /path/to/venv/bin/python",
        )


NAMES = r"[\w.:@+=/][\w.,:@+=/-]*", "a name, or several with commas between"
USER = r"[\w.@+][\w.@+-]*"
NODES = r"\w[\w.-]*(\[[\d,-]+\][\w.-]*)?(,\w[\w.-]*(\[[\d,-]+\][\w.-]*)?)*"

WORDS = {
    "partition": (*NAMES, "NAME"),
    "account": (*NAMES, "NAME"),
    "qos": (*NAMES, "NAME"),
    "constraint": (
        r"[\w(\[][\w.,:@+=/&|*()\[\]-]*",
        "features of nodes, joined by & (and) or | (or)",
        "'a100&nvlink'",
    ),
    "gpu_type": (r"\w[\w.+-]*", "the name of a type of GPU", "a100"),
    "wckey": (*NAMES, "NAME"),
    "reservation": (*NAMES, "NAME"),
    # sbatch takes a list for nodes that a job is to have all of, and refuses it for a job of one.
    "nodelist": (r"\w[\w.-]*", "one node; leave others out with --exclude", "gpu01"),
    "exclude": (NODES, "names of nodes, a range in brackets", "'gpu[01-04],gpu7'"),
    "mail": (r"\w[\w.+%@,-]*", "an address", "me@example.org"),
    "mail_type": (r"[A-Za-z][A-Za-z_\d]*(,[A-Za-z][A-Za-z_\d]*)*", "words of sbatch", "END,FAIL"),
}
"""What is one word of an #SBATCH line: its form, the form in words, an example for a shell."""

DEFAULTS: dict[str, Any] = {
    "head": {"lr": 0.01, "schedule": "constant"},
    "all": {"lr": 0.0003, "schedule": "cosine"},
}
"""What is sensible depends on the layers that are trained; the first is the recipe's."""


def read_job_file(
    path: Path, options: dict[str, set[str]], kind: str = "job file"
) -> dict[str, Any]:
    """Returns a job file's values, flat, as option name to value.

    *options* maps each table that it may have to its keys; *kind* is what errors call the file.

    Raises: ConfigError when the file is missing, is not TOML, or has an unknown table or key.
    """
    try:
        with path.open("rb") as content:
            tables = tomllib.load(content)
    except FileNotFoundError:
        raise ConfigError(
            f"{kind} {path}: no such file", f"ls {shlex.quote(str(path.parent))}"
        ) from None
    # Not only TOMLDecodeError: dates that are none, numbers of 5,000 digits and deep nests.
    except OSError as error:
        raise ConfigError(
            f"{kind} {path}: {error.strerror}", f"ls -ld {shlex.quote(str(path))}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{kind} {path}: {error}", f"${{EDITOR:-vi}} {shlex.quote(str(path))}"
        ) from None
    values: dict[str, Any] = {}
    for table, content in tables.items():
        _require_known(f"{kind} {path}", table, options, "table")
        if not isinstance(content, dict):
            raise ConfigError(
                f"{kind} {path}: {table} is a value, not a table", f"write [{table}] in {path}"
            )
        for key, value in content.items():
            _require_known(f"{kind} {path}", key, options[table], f"key in [{table}]")
            if any("\0" in str(word) for word in (value if isinstance(value, list) else [value])):
                raise ConfigError(
                    f"{kind} {path}: {key} has a NUL in it",
                    f"${{EDITOR:-vi}} {shlex.quote(str(path))}",
                )
            values[key] = value
    return values


def _require_known(file: str, name: str, valid: Any, kind: str) -> None:
    if name not in valid:
        near = difflib.get_close_matches(name, valid, n=1)
        hint = f"use {near[0]!r}; " if near else ""
        raise ConfigError(
            f"{file}: unknown {kind}: {name!r}",
            f"{hint}valid ones are {', '.join(sorted(valid))}",
        )


def _require(holds: Any, field: str, value: object, rule: str, option: str) -> None:
    if not holds:
        words = field.removesuffix("_gb").removesuffix("_min").replace("_", " ")
        raise FieldError(
            field, f"{words} is {value!r}, and must be {rule}", f"skinjob submit {option}"
        )


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    rule, option = f"one of {', '.join(choices)}", f"--{name.replace('_', '-')} {choices[0]}"
    _require(value in choices, name, value, rule, option)


def _are_shell_words(text: str) -> bool:
    try:
        return text.isprintable() and bool(shlex.split(text))
    except ValueError:  # a quote that is not closed
        return False
