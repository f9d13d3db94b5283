"""The checks before the queue: a page about the queue, a page about files, a probe job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from skinjob.config import ClusterConfig, StudyConfig, TrainConfig
from skinjob.console import printable
from skinjob.data.images import ImageSet
from skinjob.data.scan import scan
from skinjob.doctor.finding import Finding, check, fail, ok, skip, warn
from skinjob.doctor.probe import probe
from skinjob.doctor.slurm_page import slurm_page
from skinjob.errors import ConfigError
from skinjob.ownership import require_safe
from skinjob.queues.base import choose_queue, group_runs, open_queue
from skinjob.queues.job import python_words
from skinjob.submit.checks import (
    file_system,
    free_bytes,
    lacking_here,
    nearest,
    needed_packages,
    python_note,
    require_shared_python,
    require_usable,
    require_writable,
)
from skinjob.submit.plan import make_plan
from skinjob.sweeps.layout import Sweep, run_name
from skinjob.weights.backbones import DEFAULT
from skinjob.weights.file import SUMS_NAME, WeightsInfo, read_weights_info
from skinjob.words import pluralize

HERE = "jobs run on this machine"
NOT_NEEDED_BY_PROBE = ("weights", "images", "Python", "sweep")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user would submit, as the arguments of `make_plan`."""

    configs: Sequence[TrainConfig]
    cluster: ClusterConfig
    study: StudyConfig | None = None
    runs: Path
    name: str | None = None
    arch: str | None = None
    skip_bad_images: bool = False

    @property
    def sweep(self) -> Sweep:
        return Sweep(self.runs / (self.name or "new-sweep"))


def examine(request: Request, *, is_probing: bool) -> Iterator[Finding]:
    """Yields the finding of each check as soon as it is known. A failure does not stop the others.

    If *is_probing*, a small job is queued last, to check a compute node.
    """
    request = _resolved(request)
    page, can_probe = PAGES.get(request.cluster.cluster, (_no_page, False))
    is_blocked = False
    for finding in chain(page(request), _file_page(request)):
        is_blocked |= finding.verdict == "fail" and finding.name not in NOT_NEEDED_BY_PROBE
        yield finding
    if not can_probe:
        yield from skip(["probe"], HERE)
    elif not is_probing:
        yield from skip(["probe"], "--probe checks a compute node, with a small job")
    elif is_blocked:
        yield from skip(["probe"], "its job would fail; fix the failures above first")
    else:
        config = request.configs[0]
        paths = [Path(config.data), Path(config.weights)]
        packages = needed_packages(read_weights_info(paths[1]).backbone)
        yield from probe(request.runs, request.cluster, paths, packages)


def _resolved(request: Request) -> Request:
    """Returns the request with a queue instead of auto, and without a GPU if the CPU trains."""
    cluster = request.cluster
    if cluster.cluster == "auto":
        try:
            cluster = replace(cluster, cluster=choose_queue(cluster).name)
        except ConfigError:  # the check of the commands names what is missing
            cluster = replace(cluster, cluster="slurm")
    if request.configs[0].device == "cpu":
        cluster = replace(cluster, gpus=0)
    return replace(request, cluster=cluster)


def _slurm_page(request: Request) -> Iterator[Finding]:
    runs = {run_name(run.batch_size, run.lr, run.seed): run for run in request.configs}
    return slurm_page(request.cluster, request.sweep, runs)


def _local_page(request: Request) -> Iterator[Finding]:
    return skip(["SLURM"], f"{HERE} (--cluster local, or no SLURM)")


def _no_page(request: Request) -> Iterator[Finding]:
    return skip(["queue"], f"skinjob has no checks for --cluster {request.cluster.cluster}")


PAGES: dict[str, tuple[Callable[[Request], Iterator[Finding]], bool]] = {
    "slurm": (_slurm_page, True),
    "local": (_local_page, False),
}
"""The page of each queue, and whether the queue can run a probe job."""


def _file_page(request: Request) -> Iterator[Finding]:
    """Yields the findings about folders, files and Python, and about the sweep from them."""
    read: dict[str, WeightsInfo | ImageSet] = {}
    findings = [
        check("run folder", lambda: _check_folder(request)),
        check("weights", lambda: _check_weights(request, read)),
        check("images", lambda: _check_images(request, read)),
        check("Python", lambda: _check_python(request.cluster, read)),
    ]
    yield from findings
    if any(finding.verdict == "fail" for finding in findings):
        yield from skip(["sweep"], "it needs what failed above")
    else:
        yield check("sweep", lambda: _check_sweep(request, read))


def _check_folder(request: Request) -> Finding:
    """Checks that sweeps can be made in the folder of runs. Raises: SkinjobError."""
    runs, queue = request.runs, open_queue(request.cluster.cluster)
    require_usable("--runs", runs, request.cluster, queue)
    require_writable(runs)
    queue.require_folder(request.sweep.folder)
    require_safe(runs, request.cluster.trust)
    kind = file_system(nearest(runs).resolve())
    free = f"{free_bytes(runs) / 1e9:,.0f} GB free"
    return ok(f"{printable(str(runs))}: writable, {free}{f', on {kind}' if kind else ''}")


def _check_weights(request: Request, read: dict[str, WeightsInfo | ImageSet]) -> Finding:
    """Checks the weights and adds them to *read*. Raises: SkinjobError."""
    path = Path(request.configs[0].weights)
    require_usable("--weights", path, request.cluster, open_queue(request.cluster.cluster))
    info = read["weights"] = read_weights_info(path, request.arch)
    text = f"{info.backbone.name}, sha256 {info.sha256[:16]}..."
    if info.note:
        return warn(f"{text}; {info.note.strip()}")
    return ok(text) if info.listed else warn(f"{text}; no {SUMS_NAME} beside it lists it")


def _check_images(request: Request, read: dict[str, WeightsInfo | ImageSet]) -> Finding:
    """Counts the images and adds them to *read*. Raises: SkinjobError."""
    path = Path(request.configs[0].data)
    require_usable("--data", path, request.cluster, open_queue(request.cluster.cluster))
    images = read["images"] = scan(path, skips_bad=request.skip_bad_images)
    parts = [
        f"{split}: {', '.join(f'{count} {name}' for name, count in classes.items())}"
        for split, classes in images.counts().items()
    ]
    parts += [f"left out: {', '.join(images.left_out)}"] if images.left_out else []
    return ok("; ".join(parts))


def _check_python(cluster: ClusterConfig, read: Mapping[str, WeightsInfo | ImageSet]) -> Finding:
    """Checks that the Python of the jobs has all packages, as far as this machine can tell.

    Raises: ConfigError when it starts on this machine and lacks a package.
    """
    queue, weights = open_queue(cluster.cluster), read.get("weights")
    needed = needed_packages(weights.backbone if isinstance(weights, WeightsInfo) else DEFAULT)
    require_shared_python(cluster, queue, needed)
    lacks = lacking_here(cluster, needed)
    if queue.is_this_machine and lacks:
        return fail(f"no {lacks} in {sys.executable}", "pip install 'skinjob[train]'")
    note = python_note(cluster, queue, needed)
    return warn(note) if note else ok(f"{python_words(cluster)} has all packages that a run needs")


def _check_sweep(request: Request, read: dict[str, WeightsInfo | ImageSet]) -> Finding:
    """Checks that submit would make this sweep. Raises: SkinjobError."""
    plan = make_plan(**vars(request), **read)  # type: ignore[arg-type]  # by name
    text = (
        f"{pluralize(len(plan.configs), 'run')} in "
        f"{pluralize(len(group_runs(plan.configs)), 'job')}, in {printable(str(plan.sweep.folder))}"
    )
    lines = {line for label, line in plan.lines() if label in ("note", "skipped")}
    notes = sorted(lines - {plan.python_note})
    return warn(text, details=notes) if notes else ok(text)
