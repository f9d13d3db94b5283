"""What to train and where to run it: two records whose fields declare all that is known of them.

A declaration holds the default, the range, the help, the option, the flag of sbatch and the words
of the refusal. The command line, job files, `skinjob config`, completion, the documentation and
the sbatch script derive from it, so a new option is one new field.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from skinjob.errors import ConfigError

RECIPE, PLACES, JOB, SITE = "What to train", "Where it lies", "What a job asks for", "Your site"
SECTIONS = (RECIPE, PLACES, JOB, SITE)
"""The sections of a long help. An option in none of them concerns this call alone."""

VARIABLES = "SKINJOB_SUBMIT"
"""The variable of an option is this and its name, in capitals."""

UNITS = {"gb": "GB", "min": "minutes"}
"""The last word of a field's name is its unit, which the option's name leaves out."""

LEAST_TIME_MIN = 5
"""A job needs a minute to start, and is warned up to two and a half before its end."""


class FieldError(ConfigError):
    """A value that a record refuses, in the words of the command line."""

    def __init__(self, field: str, message: str, fix: str) -> None:
        """*field* is the name that the record has for it."""
        super().__init__(message, fix)
        self.field = field


@dataclass(frozen=True)
class Option:
    """All that is known of one field of a record. Field, kind and default are the field's own."""

    help: str
    section: str

    field: str = ""
    kind: type = str  # int, float, bool or str: of the value, or of each of several
    is_many: bool = False  # whether the value is a tuple, and the option may be repeated
    default: Any = None

    usual: Any = None  # what the command line takes where the record has no default
    all_layers: Any = None  # the other default, where all layers are trained
    default_words: str = ""  # what happens without a value
    example: str = ""  # a value to show, where there is no default
    axis: str = ""  # the option's name, if it takes a list: runs of a sweep differ in this field

    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    pattern: str = ""
    check: Callable[[Any], bool] | None = None
    rule: str = ""  # what a value must be, in words; choices, least and most need none
    metavar: str | None = None

    sbatch: str = ""  # the flag of sbatch that gets the value as it is
    sets: tuple[str, ...] = ()  # other flags of sbatch that this field decides on
    only_slurm: bool = False  # whether a value can only be meant for SLURM, never for this machine

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
        """What the command line takes without a value; None where that depends on the layers."""
        if self.all_layers is not None:
            return None
        value = self.usual if self.default is MISSING else self.default
        return (value,) if self.axis and not isinstance(value, tuple) else value

    @property
    def help_default(self) -> str:
        """The default in words, where it is no value; the help shows values by itself."""
        if self.all_layers is not None:
            return f"{self.default}, or {self.all_layers} with --train all"
        return self.default_words

    @property
    def sample(self) -> Any:
        """A value that can be: the default, or else the example. A tuple where several can be."""
        value = self.command_default
        if value in (None, ()):
            value = self.default or self.example or "NAME"
        is_tuple = isinstance(value, tuple) or not (self.axis or self.is_many)
        return value if is_tuple else (value,)

    def usage(self, value: Any = None) -> str:
        """Returns the option as a person types it, with *value* or a sample."""
        if self.kind is bool:
            return f"--{value}" if value else self.flag
        text = as_text(self.sample if value is None else value).replace(", ", ",")
        return f"{self.flag}{'=' if text.startswith('-') else ' '}{shlex.quote(text)}"

    def refusal(self, value: Any, why: str) -> FieldError:
        """Returns the error for a value; *why* ends the sentence."""
        words = self.field.removesuffix(f"_{self._unit}").replace("_", " ")
        return FieldError(
            self.field, f"{words} is {value!r}, {why}", f"skinjob submit {self.usage()}"
        )

    def require(self, value: Any) -> None:
        """Returns when the field may have this value. Raises: FieldError."""
        for item in value if self.is_many else (value,):
            is_left_out = item is None and self.default is None
            if not is_left_out and not self._takes(item):
                raise self.refusal(item, f"and must be {self.rule or self._derived_rule()}")

    def _takes(self, value: Any) -> bool:
        return (
            (not self.choices or value in self.choices)
            and (self.least is None or value >= self.least)  # not so of nan
            and (self.most is None or value <= self.most)
            and (not self.pattern or bool(re.fullmatch(self.pattern, value)))
            and (not self.check or self.check(value))
        )

    def _derived_rule(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        limits = f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"
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


def declare(default: Any, section: str, words: str, **attributes: Any) -> Any:
    """Returns a field of a record that is an option; *words* are its help."""
    return field(default=default, metadata={"option": Option(words, section, **attributes)})


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
    """One run of the recipe. Everything that its numbers depend on is here or named by a digest."""

    train: str = declare(
        "head",
        RECIPE,
        "The layers to train: the new head on a frozen ResNet18, or all.",
        choices=("head", "all"),
    )
    data: str = declare(
        MISSING, PLACES, "Image folder: {train,test}/<class>/*.jpg.", usual="skin_cancer"
    )
    weights: str = declare(
        MISSING, PLACES, "The fetched weights.", usual="weights/resnet18.safetensors"
    )
    batch_size: int = declare(
        MISSING,
        RECIPE,
        "Images per update; a job for each.",
        axis="batch_sizes",
        usual=(32, 64, 128, 256),
        least=1,
    )
    epochs: int = declare(20, RECIPE, "Passes over the training images.", least=1, most=10**6)
    lr: float = declare(
        0.01,
        RECIPE,
        "Learning rate, of Adadelta for the head, of AdamW for all layers; a run for each, "
        "such as 0.01,0.1.",
        axis="lr",
        all_layers=0.0003,
        check=_is_finite_and_positive,
        rule="a number above 0",
    )
    schedule: str = declare(
        "constant",
        RECIPE,
        "Learning rate over the updates: constant, or cosine from lr down to 0.",
        choices=("constant", "cosine"),
        all_layers="cosine",
    )
    seed: int = declare(
        0,
        RECIPE,
        "Draws the head's first values and the order of the images; a run for each, such as 0-4.",
        axis="seeds",
        least=0,
        most=2**63 - 1,
        rule="0 to 2**63 - 1",
    )
    augmentation_seed: int = 0
    """Draws the crops and flips; the same for all runs of a sweep: they see the same images."""
    positive: str | None = declare(
        None,
        RECIPE,
        "Class that sensitivity, specificity and AUC look for.",
        default_words="the last by name",
        metavar="CLASS",
        example="malignant",
    )
    device: str = declare(
        "auto",
        RECIPE,
        "Where to train; auto: cuda if the job asks for a GPU.",
        choices=("auto", "cuda", "cpu"),
    )
    precision: str = declare(
        "auto",
        RECIPE,
        "Arithmetic before the head; auto: bf16 if the hardware has it.",
        choices=("auto", "fp32", "bf16"),
    )

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            option.require(getattr(self, name))

    def recipe(self) -> dict[str, Any]:
        """Returns what the runs of a sweep have in common: all but the axes of its grid."""
        axes = {name for name, option in options_of(type(self)).items() if option.axis}
        return {name: value for name, value in self.record().items() if name not in axes}

    def record(self) -> dict[str, Any]:
        """Returns the fields by name, for a file; without those that are None.

        A field that came later is None by default: records from before it stay equal.
        """
        return {name: value for name, value in asdict(self).items() if value is not None}


SKIP_BAD_IMAGES = Option(
    field="skip_bad_images",
    kind=bool,
    default=False,
    help="Go on without the images that are faulty.",
    section=PLACES,
)
"""An option of a sweep that is no field of its runs: their images are named by a digest."""

NAMES = r"[\w.:@+=/][\w.,:@+=/-]*"
NODES = r"\w[\w.-]*(\[[\d,-]+\][\w.-]*)?"
FLAG = r"--[a-z][a-z-]*(=\S+)?"


def declare_word(flag: str, words: str, **attributes: Any) -> Any:
    """Returns a field that becomes one word of an #SBATCH line, which a line break would end."""
    form = {"pattern": NAMES, "rule": "a name, or several with commas between"}
    return declare(None, SITE, words, **{"sbatch": flag, **form, **attributes})


CLUSTERS = ("auto", "slurm", "local")
"""auto, and each queue: a module in skinjob/queues."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the runs go, and what each of them asks for. Nothing that is None is asked for."""

    gpus: int = declare(
        1, JOB, "GPUs per job, 0 or 1.", least=0, most=1, rule="0 or 1: a job uses one GPU"
    )
    gpu_type: str | None = declare(
        None,
        JOB,
        "Type of GPU, as sinfo -o %G names it.",
        default_words="any",
        pattern=r"\w[\w.+-]*",
        rule="the name of a type of GPU",
        example="a100",
        only_slurm=True,
    )
    cpus: int = declare(
        4, JOB, "CPU cores per job.", least=1, sbatch="cpus-per-task", sets=("cpus-per-gpu",)
    )
    mem_gb: float = declare(
        8,
        JOB,
        "Memory per job, GB, whichever flag asks for it.",
        least=0.5,  # torch alone needs as much, and SLURM takes 0 for all the memory of a node
        most=10**5,
        sets=("mem",),
    )
    time_min: int = declare(
        120, JOB, "Time limit per job, minutes.", least=LEAST_TIME_MIN, most=525_600, sbatch="time"
    )
    requeue: bool = declare(
        True,
        JOB,
        "Whether a job may start again at its time limit, or if SLURM preempts it.",
        sets=("requeue", "no-requeue"),
    )
    requeues: int = declare(
        3, JOB, "Times that a job at its time limit is queued again, to go on.", least=0
    )
    array_parallelism: int = declare(
        256, JOB, "Jobs of a sweep that may run at the same time.", least=1, sets=("array",)
    )
    trust: tuple[str, ...] = declare(
        (),
        PLACES,
        "A user who may own a folder above the runs, such as the project's; may be repeated.",
        pattern=r"[\w.@+][\w.@+-]*",
        rule="the name of a user",
        metavar="USER",
        example="ada",
    )
    allow_node_local: bool = declare(
        False, PLACES, "Allow paths under /tmp and the like, if all nodes share them."
    )
    cluster: str = declare(
        "auto",
        SITE,
        "Where jobs go; auto: slurm if there is sbatch, else this machine.",
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
        "The node to run on.",
        default_words="any",
        # sbatch takes a list for nodes that a job gets all of, and refuses it for a job of one.
        pattern=r"\w[\w.-]*",
        rule="one node; leave others out with --exclude",
        example="gpu01",
        sets=("nodefile",),
    )
    exclude: str | None = declare_word(
        "exclude",
        "Nodes not to run on, such as 'gpu[01-04],gpu7'.",
        pattern=rf"{NODES}(,{NODES})*",
        rule="names of nodes, a range in brackets",
        example="gpu[01-04],gpu7",
    )
    gpu_flag: str = declare(
        "gpus-per-node",
        SITE,
        "The sbatch flag that asks for the GPU; none if the partition brings it along.",
        choices=("gpus-per-node", "gres", "gpus", "none"),
        sets=("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "gres"),
    )
    mem_flag: str = declare(
        "mem",
        SITE,
        "The sbatch flag that asks for memory; the amount stays that of the job.",
        choices=("mem", "mem-per-cpu", "mem-per-gpu"),
        sets=("mem-per-cpu", "mem-per-gpu"),
    )
    wckey: str | None = declare_word(
        "wckey", "SLURM workload characterization key.", default_words="none"
    )
    mail: str | None = declare_word(
        "mail-user",
        "Address that SLURM writes to.",
        default_words="nobody's",
        pattern=r"\w[\w.+%@,-]*",
        rule="an address",
        example="me@example.org",
    )
    mail_type: str = declare(
        "END,FAIL",
        SITE,
        "What it writes about, if there is an address.",
        pattern=r"[A-Za-z][A-Za-z_\d]*(,[A-Za-z][A-Za-z_\d]*)*",
        rule="words of sbatch",
        sets=("mail-type",),
    )
    setup: tuple[str, ...] = declare(
        (),
        SITE,
        "A line that the job's shell runs first, as it is (module load cuda); may be repeated.",
        check=lambda line: "\0" not in line,
        rule="shell lines without NUL bytes",
        metavar="LINE",
        example="module load cuda",
        sets=("export", "export-file", "wrap"),
    )
    python: str | None = declare(
        None,
        SITE,
        "Words for the job's shell that start Python.",
        default_words="the Python that submits",
        check=_are_shell_words,
        rule="shell words that start Python",
        example="/path/to/venv/bin/python",
    )
    sbatch: tuple[str, ...] = declare(
        (),
        SITE,
        "Another flag for sbatch (--sbatch=--hint=nomultithread); may be repeated.",
        check=lambda flag: bool(re.fullmatch(FLAG, flag)) and flag.isprintable(),
        rule="a long flag in one word, as --hint=nomultithread",
        metavar="FLAG",
        example="--hint=nomultithread",
        only_slurm=True,
    )

    def __post_init__(self) -> None:
        options = options_of(type(self))
        for name, option in options.items():
            option.require(getattr(self, name))
        if self.gpu_flag == "none" and self.gpu_type is not None:
            raise options["gpu_type"].refusal(
                self.gpu_type,
                "and must be left out with gpu flag none, which asks for no GPU: take --constraint "
                "for the type",
            )
        if self.gpu_flag == "none" and self.mem_flag == "mem-per-gpu":
            raise options["mem_flag"].refusal(
                self.mem_flag,
                "and must be mem or mem-per-cpu with gpu flag none, which asks for no GPU",
            )
        _require_other_flags(self)


OWN_FLAGS = {
    "chdir": "--runs FOLDER",
    "output": "--runs FOLDER",
    "error": "--runs FOLDER",
    "wait": "--wait",
    "test-only": "--dry-run",
    **dict.fromkeys(
        ["nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "job-name", "signal"], ""
    ),
    **dict.fromkeys(
        ["open-mode", "clusters", "parsable", "quiet", "verbose", "help", "usage", "version"], ""
    ),
}
"""Flags of sbatch that skinjob sets besides those of the fields, and the option, if there is any.

Jobs on another cluster, or an answer in another form, it would not find again.
"""


def reserved_flags(record: type = ClusterConfig) -> dict[str, str]:
    """Returns the flags of sbatch that skinjob sets, each with the option for it or nothing."""
    of_fields = {
        flag: option.usage(flag if option.kind is bool or flag in option.choices else None)
        for option in options_of(record).values()
        for flag in (option.sbatch, *option.sets)
        if flag
    }
    return of_fields | OWN_FLAGS


def sbatch_flags(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns the flags of sbatch that get a field's value as it is."""
    options = options_of(type(cluster)).items()
    values = {option.sbatch: getattr(cluster, name) for name, option in options}
    return {flag: value for flag, value in values.items() if flag and value is not None}


def slurm_requests(cluster: ClusterConfig) -> list[str]:
    """Returns the options that can only be meant for SLURM, as a person types them."""
    return [
        option.usage(value if isinstance(value, str) else value[0])
        for name, option in options_of(type(cluster)).items()
        if option.only_slurm or (option.sbatch and option.default is None)
        for value in [getattr(cluster, name)]
        if value
    ]


def _require_other_flags(cluster: ClusterConfig) -> None:
    """Returns when flags for sbatch can stand beside those that skinjob sets.

    Raises: FieldError for a flag that is there twice, or that skinjob sets itself.
    """
    own = options_of(type(cluster))["sbatch"]
    seen: set[str] = set()
    for flag in cluster.sbatch:
        name = flag[2:].split("=")[0]
        if name in seen:
            raise own.refusal(flag, f"and --{name} is there twice")
        seen.add(name)
        # sbatch takes the beginning of a flag for the flag.
        for taken, usage in reserved_flags(type(cluster)).items():
            if taken.startswith(name):
                raise FieldError(
                    "sbatch",
                    f"sbatch is {flag!r}, and --{taken} is set by skinjob itself",
                    f"{f'skinjob submit {usage}'.rstrip()}   # without {flag}",
                )


def grid(recipe: TrainConfig, **axes: Sequence[Any]) -> list[TrainConfig]:
    """Returns a run of the recipe for each combination of the axes' values.

    *axes* are fields of the recipe with the values that each of them has in turn.

    Raises: ConfigError when an axis has no value, or one twice.
    """
    for name, values in axes.items():
        if not values or len(set(values)) < len(values):
            words = options_of(type(recipe))[name].key.replace("_", " ")
            raise ConfigError(
                f"{words} {list(values)}: each one once, and at least one", "skinjob submit --help"
            )
    return [
        replace(recipe, **dict(zip(axes, point, strict=True)))
        for point in itertools.product(*axes.values())
    ]
