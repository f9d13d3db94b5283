"""All that can be known before the queue, as a checklist: what is there and what fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.console import counted, shown
from skinjob.data.images import ImageSet
from skinjob.data.scan import scan
from skinjob.doctor.checks import (
    CHECKS,
    OF_PARTITION,
    ask_slurm,
    check_accounting,
    check_commands,
    check_controller,
    check_environment,
    check_queue,
)
from skinjob.doctor.finding import Finding, fail, failed, named, ok, skipped, tried, warn
from skinjob.doctor.probe import probe
from skinjob.errors import ClusterError, ConfigError, SkinjobError
from skinjob.ownership import require_safe
from skinjob.queues.base import Queue, choose_queue, group_runs, open_queue
from skinjob.queues.job import python_words
from skinjob.submit.checks import (
    file_system,
    free_bytes,
    lacks_torch,
    nearest,
    python_note,
    require_shared_python,
    require_usable,
    require_writable,
)
from skinjob.submit.plan import Plan, make_plan
from skinjob.sweeps.layout import Sweep, run_name
from skinjob.weights.file import SUMS_NAME, WeightsInfo, read_weights_info

NO_ANSWER = "SLURM does not answer"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user would submit: the arguments of `make_plan`."""

    configs: Sequence[TrainConfig]
    cluster: ClusterConfig
    runs: Path
    name: str | None = None
    skip_bad_images: bool = False

    @property
    def by_name(self) -> dict[str, TrainConfig]:
        """The runs by their names."""
        return {run_name(one.batch_size, one.lr, one.seed): one for one in self.configs}

    @property
    def queue(self) -> Queue:
        return open_queue(self.cluster.cluster)

    @property
    def train(self) -> TrainConfig:
        """What the runs have in common, and the first of them."""
        return self.configs[0]


def examine(wish: Wish, *, is_probing: bool) -> Iterator[Finding]:
    """Yields what each check finds, as soon as it is known; none stops those after it.

    With *is_probing* a small job is queued last, which looks from a compute node.
    """
    wish = _resolved(wish)
    is_slurm = not wish.queue.is_this_machine
    slurm_failed = files_failed = False
    for finding in _slurm_findings(wish) if is_slurm else ():
        slurm_failed |= finding.verdict == "fail"
        yield finding
    if not is_slurm:
        yield named("SLURM", skipped("jobs run on this machine (--cluster local, or no sbatch)"))
    for finding in _file_findings(wish):
        files_failed |= finding.verdict == "fail" and finding.name == "run folder"
        yield finding
    if not is_slurm:
        yield named("probe", skipped("jobs run on this machine"))
    elif not is_probing:
        yield named("probe", skipped("a compute node was not asked; --probe does, with a job"))
    elif slurm_failed or files_failed:
        yield named("probe", skipped("its job could not work before the above is mended"))
    else:
        paths = [Path(wish.train.data), Path(wish.train.weights)]
        yield from probe(wish.runs, wish.cluster, paths)


def _resolved(wish: Wish) -> Wish:
    """Returns the wish with the cluster that auto stands for, and no GPU for the CPU."""
    cluster = wish.cluster
    if cluster.cluster == "auto":
        try:
            cluster = replace(cluster, cluster=choose_queue(cluster).name)
        except ConfigError:  # the check of the commands says what is missing
            cluster = replace(cluster, cluster="slurm")
    if wish.train.device == "cpu":
        cluster = replace(cluster, gpus=0)
    return replace(wish, cluster=cluster)


def _slurm_findings(wish: Wish) -> Iterator[Finding]:
    commands = check_commands()
    yield named("commands", commands)
    controller = skipped("no commands to ask with") if commands.verdict == "fail" else None
    controller = controller or check_controller()
    yield named("controller", controller)
    answers = controller.verdict == "ok"
    yield named("queue", check_queue() if answers else skipped(NO_ANSWER))
    yield named("accounting", check_accounting())
    yield from _asked_findings(wish) if answers else _unasked()
    yield named("environment", check_environment())


def _asked_findings(wish: Wish) -> Iterator[Finding]:
    """Yields what SLURM says of what the jobs ask for."""
    sweep = Sweep(wish.runs / (wish.name or "new-sweep"))
    try:
        asked = ask_slurm(wish.cluster, sweep, wish.by_name)
    except ClusterError as error:
        yield named("sinfo", failed(error))
        yield from _unasked()
        return
    for name, check in CHECKS.items():
        if name in OF_PARTITION and not asked.usable:
            yield named(name, skipped("there is no such partition, or it takes no jobs"))
        else:
            yield named(name, check(asked))


def _unasked() -> Iterator[Finding]:
    for name in CHECKS:
        yield named(name, skipped(NO_ANSWER))


def _file_findings(wish: Wish) -> Iterator[Finding]:
    """Yields what is found of folders, files and Python, and of the sweep that they make."""
    folder = tried(lambda: _look_at_folder(wish))
    weights, info = _read_weights(wish)
    images, found = _read_images(wish)
    yield named("run folder", folder)
    yield named("weights", weights)
    yield named("images", images)
    python = tried(lambda: _look_at_python(wish.cluster))
    yield named("Python", python)
    if info is None or found is None or "fail" in (folder.verdict, python.verdict):
        yield named("sweep", skipped("not worked out: it needs what failed above"))
        return
    given: dict[str, Any] = {**vars(wish), "weights": info, "images": found}
    yield named("sweep", tried(lambda: _look_at_sweep(make_plan(**given))))


def _look_at_folder(wish: Wish) -> Finding:
    """Finds whether sweeps can lie in the folder of runs.

    Raises: SkinjobError when they cannot.
    """
    runs = wish.runs
    require_usable("--runs", runs, wish.cluster, wish.queue)
    require_writable(runs)
    wish.queue.require_folder(runs / (wish.name or "new-sweep"))
    require_safe(runs, wish.cluster.trust)
    kind = file_system(nearest(runs).resolve())
    free = f"{free_bytes(runs) / 1e9:,.0f} GB free"
    return ok(f"{shown(str(runs))}: yours to write, {free}{f', on {kind}' if kind else ''}")


def _read_weights(wish: Wish) -> tuple[Finding, WeightsInfo | None]:
    """Returns what is found of the weights, and what they say of themselves if they can be used."""
    path = Path(wish.train.weights)
    try:
        require_usable("--weights", path, wish.cluster, wish.queue)
        info = read_weights_info(path)
    except SkinjobError as error:
        return failed(error), None
    words = f"{info.backbone.name}, sha256 {info.sha256[:16]}..."
    if info.note:
        return warn(f"{words}; {info.note.strip()}"), info
    if not info.listed:
        return warn(f"{words}; no {SUMS_NAME} beside it names it"), info
    return ok(words), info


def _read_images(wish: Wish) -> tuple[Finding, ImageSet | None]:
    """Returns what is found of the images, and the images if they can be trained on."""
    path = Path(wish.train.data)
    try:
        require_usable("--data", path, wish.cluster, wish.queue)
        images = scan(path, skips_bad=wish.skip_bad_images)
    except SkinjobError as error:
        return failed(error), None
    counts = [
        f"{', '.join(f'{count} {name}' for name, count in classes.items())} to {split}"
        for split, classes in images.counts().items()
    ]
    left_out = [f"left out: {', '.join(images.left_out)}"] if images.left_out else []
    return ok("; ".join([*counts, *left_out])), images


def _look_at_python(cluster: ClusterConfig) -> Finding:
    """Finds whether the Python that jobs start has what a run needs, as far as seen from here.

    Raises: ConfigError when it can be started here, and lacks a package.
    """
    queue = open_queue(cluster.cluster)
    require_shared_python(cluster, queue)
    if queue.is_this_machine and lacks_torch(cluster):
        return fail(f"no torch in {sys.executable}", "pip install 'skinjob[train]'")
    note = python_note(cluster, queue)
    return warn(note) if note else ok(f"{python_words(cluster)} has what a run needs")


def _look_at_sweep(plan: Plan) -> Finding:
    """Finds what submit would make of it all."""
    num_jobs = len(group_runs(plan.configs))
    words = f"{counted(len(plan.configs), 'run')} in {counted(num_jobs, 'job')}"
    words += f", in {shown(str(plan.sweep.folder))}"
    said = {text for label, text in plan.lines() if label in ("note", "skipped")}
    notes = sorted(said - {plan.python_note})
    return warn(words, details=notes) if notes else ok(words)
