"""What to train and where to run it: two records, whose fields declare everything about an option.

A declaration holds the default, the range, the help, the sbatch flag and the words of the error.
The command line, job files, `skinjob config`, completion, the documentation and the sbatch script
derive from it, so a new option is one new field.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache, partial
from typing import Any, get_args, get_origin, get_type_hints

from skinjob.errors import ConfigError

RECIPE, FILES = "What to train", "Files and folders"
RESOURCES, SITE = "Resources of a job", "Your site"
STUDY = "The study, in the words of the report"
SECTIONS = (RECIPE, FILES, RESOURCES, SITE, STUDY)
"""The sections of a long help. Options without a section are about one call of the command."""

VARIABLES = "SKINJOB_SUBMIT"
"""An option's environment variable is this prefix and the option's name, in capitals."""

UNITS = {"gb": "GB", "min": "minutes"}
"""Units that a field's name may end in. The option's name leaves the unit out."""

MIN_TIME_MIN = 5
"""A job needs a minute to start, and gets its warning up to 2.5 minutes before the limit."""


class FieldError(ConfigError):
    """A value that a record refuses."""

    def __init__(self, field: str, message: str, fix: str) -> None:
        super().__init__(message, fix)
        self.field = field  # its name in the record


@dataclass(frozen=True)
class Option:
    """Everything about an option. `field`, `kind`, `is_many` and `default` come from the field."""

    help: str
    section: str

    field: str = ""
    kind: type = str  # int, float, bool or str: the type of the value, or of each value of a tuple
    is_many: bool = False  # the value is a tuple, and the option may be repeated
    default: Any = None

    cli_default: Any = None  # replaces a missing default of the record
    default_all: Any = None  # replaces the default if all layers are trained
    default_words: str = ""  # what happens without a value
    example: Any = ""  # a value to show if there is no default
    axis: str = ""  # the option's name if it takes a list: the runs of a sweep differ in this field
    replaces: str = ""  # a field that does not count if this one has a value

    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    pattern: str = ""
    check: Callable[[Any], bool] | None = None
    rule: str = ""  # what a value must be, in words; choices and limits need no words
    metavar: str | None = None

    sbatch: str = ""  # the sbatch flag that gets the value unchanged
    sets: tuple[str, ...] = ()  # other sbatch flags that this field decides
    only_slurm: bool = False  # a value makes sense for SLURM only, not for this machine

    @property
    def key(self) -> str:
        """The option's name in job files and in Python."""
        return self.axis or self.field

    @property
    def _unit(self) -> str:
        word = self.field.rpartition("_")[2]
        return word if word in UNITS else ""

    @property
    def _name(self) -> str:
        return self.key.removesuffix(f"_{self._unit}")

    @property
    def flag(self) -> str:
        return f"--{self._name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"{VARIABLES}_{self._name.upper()}"

    @property
    def command_default(self) -> Any:
        """The default on the command line; None if it depends on the layers to train."""
        if self.default_all is not None:
            return None
        value = self.cli_default if self.default is MISSING else self.default
        return (value,) if self.axis and not isinstance(value, tuple) else value

    @property
    def help_default(self) -> str:
        """The default in words; empty if help can show the value itself."""
        if self.default_all is not None:
            return f"{self.default}, or {self.default_all} with --train all"
        return self.default_words

    @property
    def sample(self) -> Any:
        """A valid value: the default or the example. A tuple if the option takes several."""
        value = self.command_default
        if value in (None, ()):
            default = None if self.default is MISSING else self.default
            value = default or self.example or "NAME"
        is_tuple = isinstance(value, tuple) or not (self.axis or self.is_many)
        return value if is_tuple else (value,)

    def usage(self, value: Any = None) -> str:
        """Returns the option as it is typed, with *value* or a sample."""
        if self.kind is bool:
            return f"--{value}" if value else self.flag
        text = as_text(self.sample if value is None else value).replace(", ", ",")
        return f"{self.flag}{'=' if text.startswith('-') else ' '}{shlex.quote(text)}"

    def error(self, value: Any, reason: str) -> FieldError:
        """Returns the error for a value; *reason* ends its sentence."""
        words = self.field.removesuffix(f"_{self._unit}").replace("_", " ")
        message = f"{words} is {value!r}, {reason}"
        return FieldError(self.field, message, f"skinjob submit {self.usage()}")

    def require_valid(self, value: Any) -> None:
        """Checks that the field may have this value. Raises: FieldError."""
        for item in value if self.is_many else (value,):
            is_unset = item is None and self.default is None
            if not is_unset and not self._is_valid(item):
                raise self.error(item, f"and must be {self.rule or self._derived_rule()}")

    def _is_valid(self, value: Any) -> bool:
        return (
            (not self.choices or value in self.choices)
            and (self.minimum is None or value >= self.minimum)  # False for nan
            and (self.maximum is None or value <= self.maximum)
            and (not self.pattern or bool(re.fullmatch(self.pattern, value)))
            and (not self.check or self.check(value))
        )

    def _derived_rule(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        has_end = self.maximum is not None
        limits = f"{self.minimum} to {self.maximum}" if has_end else f"at least {self.minimum}"
        return f"{limits} ({UNITS[self._unit]})" if self._unit else limits


def as_text(value: Any) -> str:
    """Returns a value as a person would write it.

    >>> as_text((32, 64)), as_text(None), as_text(True), as_text(8.0)
    ('32, 64', 'not set', 'true', '8')
    """
    if value is None or value == ():
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(as_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def declare(section: str, default: Any, text: str, **attributes: Any) -> Any:
    """Returns a field of a record that is an option; *text* is its help."""
    return field(default=default, metadata={"option": Option(text, section, **attributes)})


_recipe, _files, _resources, _site, _study = (partial(declare, section) for section in SECTIONS)


def _options_of(record: type) -> dict[str, Option]:
    hints = get_type_hints(record)
    return {
        item.name: replace(
            item.metadata["option"],
            field=item.name,
            kind=(get_args(hints[item.name]) or (hints[item.name],))[0],
            is_many=get_origin(hints[item.name]) is tuple,
            default=item.default,
        )
        for item in fields(record)
        if "option" in item.metadata
    }


options_of: Callable[[type], dict[str, Option]] = cache(_options_of)
"""Returns the options that a record declares, by the name of the field."""


def _is_finite_and_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


def _are_shell_words(text: str) -> bool:
    try:
        return text.isprintable() and bool(shlex.split(text))
    except ValueError:  # a quote that is not closed
        return False


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe of one run. Its results depend on these fields and on the named files only."""

    train: str = _recipe(
        "head",
        "Layers to train: the new head on a frozen network, or all layers.",
        choices=("head", "all"),
    )
    data: str = _files(
        MISSING, "Folder, zip or tar: {train,test}/<class>/*.jpg.", cli_default="skin_cancer"
    )
    weights: str = _files(
        MISSING,
        "File of the fetched weights.",
        default_words="weights/ARCH.safetensors",
        example="weights/resnet18.safetensors",
    )
    batch_size: int = _recipe(
        MISSING,
        "Images per update; one job per value.",
        axis="batch_sizes",
        cli_default=(32, 64, 128, 256),
        minimum=1,
    )
    epochs: int = _recipe(20, "Passes over the training images.", minimum=1, maximum=10**6)
    """With *updates*, what they take at this batch size: the last pass may be cut."""
    updates: int | None = _recipe(
        None,
        "Updates of each run, instead of --epochs: large batches make more passes.",
        default_words="as many as --epochs makes",
        minimum=1,
        maximum=10**6,
        metavar="N",
        example=560,
        replaces="epochs",
    )
    lr: float = _recipe(
        0.01,
        "Learning rate of Adadelta (head) or AdamW (all layers); one run per value (0.01,0.1).",
        axis="lr",
        default_all=0.0003,
        check=_is_finite_and_positive,
        rule="a number above 0",
    )
    schedule: str = _recipe(
        "constant",
        "Learning rate over the updates: constant, or cosine from lr down to 0.",
        choices=("constant", "cosine"),
        default_all="cosine",
    )
    seed: int = _recipe(
        0,
        "Seeds for the head's first values and the image order; one run per seed (0-4).",
        axis="seeds",
        minimum=0,
        maximum=2**63 - 1,
        rule="0 to 2**63 - 1",
    )
    augmentation_seed: int = 0
    """Draws the crops and flips. All runs of a sweep share it and see the same images."""
    positive: str | None = _recipe(
        None,
        "Class that sensitivity, specificity and AUC refer to.",
        default_words="the last by name",
        metavar="CLASS",
        example="malignant",
    )
    val_fraction: float = _recipe(
        0.0,
        "Share of the training images of each class to hold out as a validation split.",
        minimum=0,
        maximum=0.5,
        metavar="F",
    )
    primary: str | None = _recipe(
        None,
        "Outcome that the report's verdicts are about; decide before you see results.",
        default_words="auc",
        choices=("auc", "log-loss"),
        example="auc",
    )
    margin: float | None = _recipe(
        None,
        "Largest difference in the primary outcome that does not matter.",
        default_words="0.02",
        check=_is_finite_and_positive,
        rule="a number above 0",
        example=0.02,
    )
    device: str = _recipe(
        "auto",
        "Device to train on; auto: cuda if the job asks for a GPU, else cpu.",
        choices=("auto", "cuda", "cpu"),
    )
    precision: str = _recipe(
        "auto",
        "Arithmetic before the head; auto: the fastest that keeps the accuracy.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            option.require_valid(getattr(self, name))

    def recipe(self) -> dict[str, Any]:
        """Returns what the runs of a sweep have in common: all fields but the sweep's axes.

        With *updates*, the epochs depend on the batch size.
        """
        own = {name for name, option in options_of(type(self)).items() if option.axis}
        own |= {"epochs"} if self.updates else set()
        return {name: value for name, value in self.record().items() if name not in own}

    def with_epochs_for(self, num_images: int) -> TrainConfig:
        """Returns it with the epochs that its *updates* take on so many training images."""
        if not self.updates:
            return self
        return replace(self, epochs=-(-self.updates // -(-num_images // self.batch_size)))

    def record(self) -> dict[str, Any]:
        """Returns the fields by name, for a file; newer fields are left out at their default.

        So records from before them stay equal.
        """
        values = asdict(self)
        if not self.val_fraction:
            del values["val_fraction"]
        return {name: value for name, value in values.items() if value is not None}


NUM_TESTS = 20


def tests_every(updates: int) -> int:
    """Returns after how many updates the runs of a sweep with *updates* are tested, and at the end.

    Multiples of it are the same in each run, and equally far apart.

    >>> tests_every(560), tests_every(150), tests_every(3)
    (28, 8, 1)
    """
    return -(-updates // NUM_TESTS)


ARCHS = ("resnet18", "resnet34", "resnet50", "efficientnet_b0", "convnext_tiny", "vit_b_16")
"""Each backbone: a row of the table in skinjob/weights/backbones.py."""

ARCH = Option(
    f"Network to train: {', '.join(ARCHS)}.",
    RECIPE,
    field="arch",
    default_words="that of --weights, else resnet18",
    choices=ARCHS,
    metavar="NAME",
    example=ARCHS[0],
)
"""An option of a sweep, but not a field of its runs: the weights file says its network."""

SKIP_BAD_IMAGES = Option(
    "Continue without the bad images.", FILES, field="skip_bad_images", kind=bool, default=False
)
"""An option of a sweep, but not a field of its runs: a digest names the images of a run."""

NAMES = r"[\w.:@+=/][\w.,:@+=/-]*"
NODES = r"\w[\w.-]*(\[[\d,-]+\][\w.-]*)?"
FLAG = r"--[a-z][a-z-]*(=\S+)?"


def declare_word(flag: str, text: str, **attributes: Any) -> Any:
    """Returns a field that becomes a word of an #SBATCH line, so it may have no line break."""
    form = {"pattern": NAMES, "rule": "a name, or several names with commas between"}
    return _site(None, text, **{"sbatch": flag, **form, **attributes})


CLUSTERS = ("auto", "slurm", "local")
"""auto, and each queue: a module in skinjob/queues."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the runs go, and what each job asks for. A field that is None asks for nothing."""

    gpus: int = _resources(
        1, "GPUs per job, 0 or 1.", minimum=0, maximum=1, rule="0 or 1: a job uses one GPU"
    )
    gpu_type: str | None = _resources(
        None,
        "Type of GPU, as sinfo -o %G names it.",
        default_words="any",
        pattern=r"\w[\w.+-]*",
        rule="the name of a GPU type",
        example="a100",
        only_slurm=True,
    )
    cpus: int = _resources(
        4, "CPU cores per job.", minimum=1, sbatch="cpus-per-task", sets=("cpus-per-gpu",)
    )
    mem_gb: float = _resources(
        8,
        "Memory per job, GB.",
        minimum=0.5,  # torch alone needs it; and for SLURM, 0 means all memory of a node
        maximum=10**5,
        sets=("mem",),
    )
    time_min: int = _resources(
        120, "Time limit per job, minutes.", minimum=MIN_TIME_MIN, maximum=525_600, sbatch="time"
    )
    requeue: bool = _resources(
        True,
        "Restart a job that reached its time limit or was preempted by SLURM.",
        sets=("requeue", "no-requeue"),
    )
    requeues: int = _resources(3, "Number of restarts at the time limit, for each job.", minimum=0)
    array_parallelism: int = _resources(
        256, "Jobs of a sweep that may run at the same time.", minimum=1, sets=("array",)
    )
    trust: tuple[str, ...] = _files(
        (),
        "User who may own a folder above the runs, such as a project account; repeatable.",
        pattern=r"[\w.@+][\w.@+-]*",
        rule="the name of a user",
        metavar="USER",
        example="ada",
    )
    allow_node_local: bool = _files(
        False, "Allow paths under /tmp and similar folders, if all nodes share them."
    )
    cluster: str = _site(
        "auto",
        "Where jobs go; auto: slurm if sbatch is available, else this machine.",
        choices=CLUSTERS,
    )
    partition: str | None = declare_word(
        "partition", "SLURM partition.", default_words="the cluster's"
    )
    account: str | None = declare_word("account", "SLURM account.", default_words="yours")
    qos: str | None = declare_word("qos", "SLURM quality of service.", default_words="yours")
    constraint: str | None = declare_word(
        "constraint",
        "Features that the node must have, such as 'a100&nvlink'.",
        pattern=r"[\w(\[][\w.,:@+=/&|*()\[\]-]*",
        rule="features of nodes, joined by & (and) or | (or)",
        example="a100&nvlink",
    )
    reservation: str | None = declare_word("reservation", "SLURM reservation to run in.")
    nodelist: str | None = declare_word(
        "nodelist",
        "Node to run on.",
        default_words="any",
        # For sbatch, a list names nodes that the job gets all of. It refuses that for one task.
        pattern=r"\w[\w.-]*",
        rule="a single node; --exclude leaves nodes out",
        example="gpu01",
        sets=("nodefile",),
    )
    exclude: str | None = declare_word(
        "exclude",
        "Nodes to avoid, such as 'gpu[01-04],gpu7'.",
        pattern=rf"{NODES}(,{NODES})*",
        rule="names of nodes, with ranges in brackets",
        example="gpu[01-04],gpu7",
    )
    gpu_flag: str = _site(
        "gpus-per-node",
        "sbatch flag that asks for the GPU; none if the partition always gives a GPU.",
        choices=("gpus-per-node", "gres", "gpus", "none"),
        sets=("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "gres"),
    )
    mem_flag: str = _site(
        "mem",
        "sbatch flag that asks for memory; --mem is always for the whole job.",
        choices=("mem", "mem-per-cpu", "mem-per-gpu"),
        sets=("mem-per-cpu", "mem-per-gpu"),
    )
    wckey: str | None = declare_word(
        "wckey", "SLURM workload characterization key.", default_words="none"
    )
    mail: str | None = declare_word(
        "mail-user",
        "Address that SLURM sends mail to.",
        default_words="no mail",
        pattern=r"\w[\w.+%@,-]*",
        rule="an address",
        example="me@example.org",
    )
    mail_type: str = _site(
        "END,FAIL",
        "Events that SLURM sends mail about, if there is an address.",
        pattern=r"[A-Za-z][A-Za-z_\d]*(,[A-Za-z][A-Za-z_\d]*)*",
        rule="event names of sbatch",
        sets=("mail-type",),
    )
    setup: tuple[str, ...] = _site(
        (),
        "Line that the job's shell runs before Python (module load cuda); repeatable.",
        check=lambda line: "\0" not in line,
        rule="shell lines without NUL bytes",
        metavar="LINE",
        example="module load cuda",
        sets=("export", "export-file", "wrap"),
    )
    python: str | None = _site(
        None,
        "Shell command that starts Python in a job.",
        default_words="the Python that submits",
        check=_are_shell_words,
        rule="shell words that start Python",
        example="/path/to/venv/bin/python",
    )
    sbatch: tuple[str, ...] = _site(
        (),
        "Extra sbatch flag (--sbatch=--hint=nomultithread); repeatable.",
        check=lambda flag: bool(re.fullmatch(FLAG, flag)) and flag.isprintable(),
        rule="a long flag in one word, such as --hint=nomultithread",
        metavar="FLAG",
        example="--hint=nomultithread",
        only_slurm=True,
    )

    def __post_init__(self) -> None:
        options = options_of(type(self))
        for name, option in options.items():
            option.require_valid(getattr(self, name))
        if self.gpu_flag == "none" and self.gpu_type is not None:
            raise FieldError(
                "gpu_type",
                f"gpu type is {self.gpu_type!r}, but gpu flag none cannot ask for a type",
                f"skinjob submit --gpu-flag none --constraint {shlex.quote(self.gpu_type)}",
            )
        if self.gpu_flag == "none" and self.mem_flag == "mem-per-gpu":
            reason = "but gpu flag none asks for no GPU: use mem or mem-per-cpu"
            raise options["mem_flag"].error(self.mem_flag, reason)
        _require_free_flags(self)


MOST_STUDY_CHARACTERS = 500


def declare_words(text: str, example: str) -> Any:
    """Returns a field with a few sentences for the report's checklist."""
    return _study(
        None,
        text,
        default_words="not stated",
        metavar="TEXT",
        example=example,
        check=lambda words: bool(words.strip()) and len(words) <= MOST_STUDY_CHARACTERS,
        rule=f"a text of at most {MOST_STUDY_CHARACTERS} characters",
    )


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What only a person knows about the study. The report quotes it; no number depends on it."""

    data_source: str | None = declare_words(
        "Where the images come from, and when they were taken.", "ISIC archive, 2016 to 2020"
    )
    licence: str | None = declare_words("Licence of the images.", "CC BY-NC 4.0")
    ethics: str | None = declare_words("Ethics approval, or why none is needed.", "EK 2026-17")
    reference_standard: str | None = declare_words(
        "How it is known which lesions are malignant.", "histopathology"
    )
    patients: str | None = declare_words(
        "How many patients and lesions the images show.", "950 patients, an image of each"
    )
    users: str | None = declare_words("Who is to use the model, and for what.", "research only")
    funding: str | None = declare_words(
        "Who paid for the study, and conflicts of interest.", "none"
    )

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            option.require_valid(getattr(self, name))

    def stated(self) -> dict[str, str]:
        """Returns what is stated, by field."""
        return {name: words for name, words in asdict(self).items() if words is not None}


RESERVED_FLAGS = {
    "chdir": "--runs FOLDER",
    "output": "--runs FOLDER",
    "error": "--runs FOLDER",
    "wait": "--wait",
    "test-only": "--dry-run",
    **dict.fromkeys(["nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "job-name"], ""),
    **dict.fromkeys(["signal", "open-mode", "clusters", "parsable", "quiet", "verbose"], ""),
    **dict.fromkeys(["help", "usage", "version"], ""),
}
"""sbatch flags that no field sets but skinjob needs, each with the option for it, if there is one.

With some of them skinjob would not find its jobs again: on another cluster, or in another output.
"""


def reserved_flags(record: type = ClusterConfig) -> dict[str, str]:
    """Returns the sbatch flags that skinjob sets, each with the option for it or ''."""
    of_fields = {
        flag: option.usage(flag if option.kind is bool or flag in option.choices else None)
        for option in options_of(record).values()
        for flag in (option.sbatch, *option.sets)
        if flag
    }
    return of_fields | RESERVED_FLAGS


def sbatch_flags(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns the sbatch flags that get a field's value unchanged."""
    options = options_of(type(cluster)).items()
    values = {option.sbatch: getattr(cluster, name) for name, option in options}
    return {flag: value for flag, value in values.items() if flag and value is not None}


def slurm_requests(cluster: ClusterConfig) -> list[str]:
    """Returns the options that make sense for SLURM only, as they are typed."""
    return [
        option.usage(value if isinstance(value, str) else value[0])
        for name, option in options_of(type(cluster)).items()
        if option.only_slurm or (option.sbatch and option.default is None)
        for value in [getattr(cluster, name)]
        if value
    ]


def _require_free_flags(cluster: ClusterConfig) -> None:
    """Checks that the extra sbatch flags differ from each other and from those that skinjob sets.

    Raises: FieldError.
    """
    option = options_of(type(cluster))["sbatch"]
    seen: set[str] = set()
    for flag in cluster.sbatch:
        name = flag[2:].split("=")[0]
        if name in seen:
            raise option.error(flag, f"and --{name} is given twice")
        seen.add(name)
        # sbatch accepts the beginning of a flag for the flag.
        for taken, usage in reserved_flags(type(cluster)).items():
            if taken.startswith(name):
                raise FieldError(
                    "sbatch",
                    f"--sbatch={flag} is not allowed: skinjob sets --{taken} itself",
                    f"{f'skinjob submit {usage}'.rstrip()}   # without {flag}",
                )


def grid(recipe: TrainConfig, **axes: Sequence[Any]) -> list[TrainConfig]:
    """Returns a run of the recipe for each combination of the axes' values.

    *axes* gives the values of some of the recipe's fields.

    Raises: ConfigError when an axis has no value, or a value twice.
    """
    for name, values in axes.items():
        if not values or len(set(values)) < len(values):
            option = options_of(type(recipe))[name]
            unique = tuple(dict.fromkeys(values)) or None
            raise ConfigError(
                f"{option.flag} has {'a value twice' if values else 'no value'}: {list(values)}",
                f"skinjob submit {option.usage(unique)}",
            )
    return [
        replace(recipe, **dict(zip(axes, point, strict=True)))
        for point in itertools.product(*axes.values())
    ]
