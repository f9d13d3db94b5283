"""Everything that submit decides before it queues jobs: runs, images, device and folder."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from skinjob.config import ClusterConfig, StudyConfig, TrainConfig, tests_every
from skinjob.data.audit import Pair, Shortcut, shortcut, with_copies
from skinjob.data.images import ImageSet
from skinjob.data.scan import scan
from skinjob.data.validation import copies_together, hold_out
from skinjob.errors import ConfigError, RunError
from skinjob.files import absolute
from skinjob.ownership import require_safe
from skinjob.queues.base import Queue, choose_queue, open_queue, queue_of
from skinjob.queues.gpus import no_gpu_reason, visible_gpus
from skinjob.submit.checks import (
    bytes_needed,
    free_bytes,
    needed_packages,
    python_note,
    require_room,
    require_shared_python,
    require_usable,
    require_writable,
)
from skinjob.submit.remarks import find_copies, remarks
from skinjob.sweeps.layout import Run, Sweep, run_name, sweeps
from skinjob.sweeps.records import SweepInfo, filled_recipe
from skinjob.weights.backbones import DEFAULT
from skinjob.weights.file import WeightsInfo, read_weights_info

MOST_NAME_BYTES = 200  # file systems take 255, and a report adds to it
WITHOUT_PATHS = {"data": "", "weights": ""}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked sweep that is not written yet."""

    runs: Path
    """Folder of all sweeps."""
    name: str | None
    """The user's name for the sweep."""
    sweep: Sweep
    configs: dict[str, TrainConfig]
    """By run name."""
    cluster: ClusterConfig
    study: StudyConfig
    weights: WeightsInfo
    images: ImageSet
    near_copies: tuple[Pair, ...] | None
    """By positions in `images`; None if they are not known."""
    device_reason: str
    shortcut: Shortcut | None = None
    """None if the images were not scanned here."""
    python_note: str | None = None
    unread: tuple[str, ...] = ()
    """Errors of damaged sweeps, which might be this one."""

    @property
    def config(self) -> TrainConfig:
        """The first run's config, for values that all runs share."""
        return next(iter(self.configs.values()))

    def is_alike(self, info: SweepInfo) -> bool:
        """Says whether a sweep on disk has this recipe, these images and these weights.

        Missing fields of an older sweep count as their defaults. The files' content matters, not
        their paths.
        """
        recipes = (info.recipe, self.config.recipe())
        theirs, mine = ({**filled_recipe(recipe), **WITHOUT_PATHS} for recipe in recipes)
        digests = self.images.fingerprint(), self.weights.sha256
        return theirs == mine and (info.images.fingerprint, info.weights.sha256) == digests

    @property
    def positive(self) -> str:
        """The positive class of sensitivity, specificity and AUC."""
        return self.images.classes[self.images.positive_label(self.config.positive)]

    @property
    def is_new(self) -> bool:
        return not self.sweep.sweep_file.exists()

    @property
    def queue(self) -> Queue:
        return open_queue(self.cluster.cluster)

    def num_updates(self, config: TrainConfig) -> int:
        """Returns the total updates of a run; the last batch of an epoch may be smaller."""
        per_epoch = math.ceil(len(self.images.split("train")) / config.batch_size)
        return config.updates or config.epochs * per_epoch

    def lines(self) -> list[tuple[str, str]]:
        """Returns what `submit` prints before it queues jobs: labels and sentences."""
        config = self.config
        counts = {
            split: ", ".join(f"{count} {name}" for name, count in classes.items())
            for split, classes in self.images.counts().items()
        }
        return [
            (
                "weights",
                f"{self.weights.path}  sha256 {self.weights.sha256[:16]}...{self.weights.note}",
            ),
            *counts.items(),
            ("positive", f"{self.positive} ({_why_positive(config)})"),
            *([("left out", ", ".join(self.images.left_out))] if self.images.left_out else []),
            *remarks(self.images, self.near_copies, self.shortcut),
            ("device", f"{config.device} ({self.device_reason})"),
            ("cluster", self.cluster.cluster),
            *([("updates", _passes(list(self.configs.values())))] if config.updates else []),
            *([("note", self.python_note)] if self.python_note else []),
            *(("note", f"ignored: {error}") for error in self.unread),
            *(("note", note) for note in self.queue.notes()),
            (
                "sweep",
                f"{self.sweep.folder}{'' if self.is_new else '  (exists, continues)'}",
            ),
        ]


def _passes(configs: Sequence[TrainConfig]) -> str:
    """Returns how many passes over the images the updates take, and when the runs are tested."""
    epochs = {config.batch_size: config.epochs for config in configs}
    updates = configs[0].updates or 0
    (first, num), *others = sorted(epochs.items())
    passes = ", ".join(
        [f"{num:,} (batch size {first})", *(f"{n:,} ({size})" for size, n in others)]
    )
    every = tests_every(updates)
    return f"{updates:,} in each run, tested every {every:,}; passes over the images: {passes}"


def _why_positive(config: TrainConfig) -> str:
    last = "the last by name; --positive CLASS chooses another"
    return last if config.positive is None else "asked for with --positive"


def make_plan(
    *,
    configs: Sequence[TrainConfig],
    cluster: ClusterConfig,
    study: StudyConfig | None = None,
    runs: Path,
    name: str | None = None,
    arch: str | None = None,
    skip_bad_images: bool = False,
    weights: WeightsInfo | None = None,
    images: ImageSet | None = None,
) -> Plan:
    """Returns the plan of a sweep, with weights and images checked.

    *configs* differ only in batch size, lr and seed. *arch* is the network that the weights must
    be of, None for any. An existing sweep with the same recipe, images
    and weights continues. *weights* and *images* are given if the caller has read them before.

    Raises: ConfigError, WeightsError, ImagesError; RunError if *name* is another sweep's, or if
    *runs* is closed to the user, full, or open to all users.
    """
    train = configs[0]
    if (train.train, train.precision) == ("all", "fp16"):
        raise ConfigError(
            "precision is fp16 and train is all: gradients are too small for fp16",
            "skinjob submit --train all --precision bf16",
        )
    is_auto = cluster.cluster == "auto"
    queue = choose_queue(cluster)
    cluster = replace(cluster, cluster=queue.name)
    if str(runs).startswith("-"):
        runs = absolute(runs)  # a command would take a relative path for an option
    _require_places(train, runs, cluster, queue)
    device, device_reason, cluster = _resolve_device(train.device, cluster, queue)
    weights = weights or read_weights_info(Path(train.weights), arch)
    needed = needed_packages(weights.backbone)
    require_shared_python(cluster, queue, needed)
    note = python_note(cluster, queue, needed)
    images = images or scan(Path(train.data), skips_bad=skip_bad_images)
    copies = find_copies(images)
    if copies.everywhere is not None:
        images = with_copies(images, copies.everywhere)
    group = copies_together(images, copies.in_train or ())
    images = hold_out(images, train.val_fraction, group=group)
    _require_batches_fit(sorted({config.batch_size for config in configs}), images)
    data, file = str(absolute(images.root)), str(absolute(weights.path))
    is_last = images.positive_label(train.positive) == len(images.classes) - 1
    positive = None if is_last else train.positive  # the same recipe with and without --positive
    primary = None if train.primary == "auc" else train.primary
    margin = None if train.margin == 0.02 else train.margin
    resolved = [
        replace(
            config,
            device=device,
            data=data,
            weights=file,
            positive=positive,
            primary=primary,
            margin=margin,
        ).with_epochs_for(len(images.split("train")))
        for config in configs
    ]
    plan = Plan(
        runs=runs,
        name=name,
        sweep=Sweep(runs / (name or "?")),
        configs={run_name(c.batch_size, c.lr, c.seed): c for c in resolved},
        cluster=cluster,
        study=study or StudyConfig(),
        weights=weights,
        images=images,
        near_copies=copies.everywhere,
        device_reason=device_reason,
        shortcut=None if images.sketches is None else shortcut(images),
        python_note=note,
    )
    plan = placed(plan)
    if is_auto:
        _require_same_cluster(plan)
    _require_fit(plan)
    return plan


def placed(plan: Plan) -> Plan:
    """Returns the plan with the sweep that it makes or continues.

    Raises: RunError if the user's name is the name of another sweep.
    """
    if plan.name is not None:
        return replace(plan, sweep=_named(plan, plan.runs, plan.name))
    sweep, unread = _existing(plan, plan.runs)
    return replace(plan, sweep=sweep or _fresh(plan, plan.runs), unread=tuple(unread))


def _require_same_cluster(plan: Plan) -> None:
    """Checks that an existing sweep's queue can be used. Raises: ConfigError."""
    if plan.is_new:
        return
    problem, fix = (queue := queue_of(plan.sweep)).problem
    if problem:
        raise ConfigError(f"{plan.sweep.folder} was submitted to {queue.title}, but {problem}", fix)


def _require_places(train: TrainConfig, runs: Path, cluster: ClusterConfig, queue: Queue) -> None:
    """Checks that this machine and the nodes can use the paths. Raises: ConfigError, RunError."""
    paths = {"--data": Path(train.data), "--weights": Path(train.weights), "--runs": runs}
    for option, path in paths.items():
        require_usable(option, path, cluster, queue)
    require_writable(runs)


def _require_fit(plan: Plan) -> None:
    """Checks that the sweep's folder is safe and has room for its runs. Raises: RunError."""
    folder = plan.sweep.folder
    plan.queue.require_folder(folder)
    require_safe(folder, plan.cluster.trust)
    free = free_bytes(folder.parent)
    require_room(folder.parent, new_bytes(plan, free), free)


def new_bytes(plan: Plan, free: int) -> int:
    """Returns how many bytes the new runs will write at most, if *free* bytes are free.

    Old runs do not count: a sweep on a full disk can be submitted again.
    """
    new = {
        name: config
        for name, config in plan.configs.items()
        if not Run(plan.sweep.folder / name).config_file.exists()
    }
    if not new:
        return 0
    backbone, folder = plan.weights.backbone, plan.sweep.views_folder
    return bytes_needed(new, plan.images, backbone, folder, free=free)


def _resolve_device(
    device: str, cluster: ClusterConfig, queue: Queue
) -> tuple[str, str, ClusterConfig]:
    """Returns the device that every run will insist on, the reason, and the cluster with its GPUs.

    Decided here and not in the job: a job that quietly fell back to the CPU would take days.
    """
    if device == "cpu":
        return "cpu", "asked for with --device", replace(cluster, gpus=0)
    if queue.is_this_machine:
        num_gpus, why_none = len(visible_gpus()), no_gpu_reason()
        if device == "cuda" and not num_gpus:
            raise ConfigError(
                f"device cuda was asked for and {why_none}", "skinjob submit --device cpu"
            )
        if not num_gpus:
            return "cpu", f"auto: {why_none}", replace(cluster, gpus=0)
        if cluster.gpus:
            return "cuda", f"auto: this machine has {num_gpus}", cluster
    elif cluster.gpus:
        asked = "asked for with --device" if device == "cuda" else "auto: a GPU is asked for"
        return "cuda", asked, cluster
    elif device == "cuda":
        raise ConfigError("--device cuda needs a GPU, but --gpus is 0", "skinjob submit --gpus 1")
    return "cpu", "auto: no GPU is asked for", cluster


def _require_batches_fit(batch_sizes: Sequence[int], images: ImageSet) -> None:
    num_train = len(images.split("train"))
    too_large = [size for size in batch_sizes if size > num_train]
    if too_large:
        fitting = ",".join(str(size) for size in batch_sizes if size <= num_train) or str(num_train)
        raise ConfigError(
            f"batch size {too_large[0]} is more than the {num_train} training images",
            f"skinjob submit --batch-sizes {fitting}",
        )


def _named(plan: Plan, runs: Path, name: str) -> Sweep:
    is_plain = Path(name).name == name and not name.startswith((".", "-")) and name.isprintable()
    if not name or not is_plain or len(os.fsencode(name)) > MOST_NAME_BYTES:
        raise ConfigError(
            f"sweep name {name!r} is not a plain folder name", "skinjob submit --name my-sweep"
        )
    sweep = Sweep(runs / name)
    other = f"skinjob submit --name {shlex.quote(name + '-2')}"
    if not sweep.sweep_file.exists():
        if _is_taken(sweep.folder):
            raise RunError(f"{sweep.folder} exists, and is not a sweep", other)
        return sweep
    if sweep.owner:
        raise RunError(f"sweep {sweep.folder} belongs to {sweep.owner}", other)
    if not plan.is_alike(sweep.info()):
        raise RunError(
            f"sweep {sweep.folder} exists, with another recipe, images or weights", other
        )
    return sweep


def _is_taken(folder: Path) -> bool:
    """Says whether a path exists and is not an empty folder."""
    if folder.is_dir() and not folder.is_symlink():
        return any(folder.iterdir())
    return folder.exists() or folder.is_symlink()


def _existing(plan: Plan, runs: Path) -> tuple[Sweep | None, list[str]]:
    """Returns the user's newest sweep with these runs, and the errors of damaged sweeps.

    It ignores sweeps of other users: jobs would execute files in their folders.
    """
    unread = []
    for sweep in reversed([sweep for sweep in sweeps(runs) if not sweep.owner]):
        try:
            info = sweep.info()
        except RunError as error:
            unread.append(error.message)
            continue
        if set(plan.configs) <= set(info.runs) and plan.is_alike(info):
            return sweep, unread
    return None, unread


def _fresh(plan: Plan, runs: Path) -> Sweep:
    """Returns a new sweep, named after the day and the recipe."""
    config, configs = plan.config, plan.configs.values()
    sizes = _listed(sorted({config.batch_size for config in configs}))
    lrs = _listed(sorted({config.lr for config in configs}))
    seeds = {config.seed for config in configs}
    network = plan.weights.backbone.name
    network = "" if network == DEFAULT.name else f"{network}-"
    layers = "all-" if config.train == "all" else ""
    length = f"up{config.updates}" if config.updates else f"ep{config.epochs}"
    base = f"{date.today()}-{network}{layers}bs{sizes}-{length}-lr{lrs}"
    base += f"-{len(seeds)}seeds" if len(seeds) > 1 else ""
    number, name = 1, base
    while (runs / name).exists():
        number += 1
        name = f"{base}-{number}"
    return Sweep(runs / name)


def _listed(values: Sequence[float]) -> str:
    """Returns the values of an axis as part of a folder's name.

    >>> _listed([32, 64]), _listed(range(1, 9))
    ('32-64', '1to8')
    """
    return "-".join(map(str, values)) if len(values) <= 6 else f"{values[0]}to{values[-1]}"
