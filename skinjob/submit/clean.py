"""Finds and removes files that a folder of runs no longer needs.

It follows no links, and leaves files of other users alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from skinjob.errors import SkinjobError
from skinjob.queues.base import job_output
from skinjob.status.status import RunStatus, run_statuses
from skinjob.submit.folders import submitting
from skinjob.sweeps.layout import Run, Sweep, cache_folders, sweeps
from skinjob.sweeps.records import Status
from skinjob.words import pluralize

KINDS = ("caches", "failed", "submission")
BLOCK_BYTES = 512  # the unit of st_blocks on every file system


@dataclass(frozen=True)
class Part:
    """Files of one kind in one folder."""

    kind: str
    """One of KINDS."""
    folder: Path
    paths: tuple[Path, ...]
    """Files and folders; a folder follows its content."""
    num_files: int
    num_bytes: int
    """On the disk, as du counts them."""


@dataclass(frozen=True)
class Clearing:
    """What `clean` can remove, and what it leaves alone."""

    parts: Sequence[Part]
    left: Sequence[tuple[Path, str]]
    """Folders that stay, and why."""

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)


def plan_clearing(runs: Path, chosen: Sequence[Sweep], kinds: Collection[str]) -> Clearing:
    """Returns which files of these *kinds* can be removed from the *chosen* sweeps and the cache.

    A sweep with waiting or running runs stays as it is, and so does the cache meanwhile.
    """
    looks = {sweep.folder.resolve(): _look(sweep) for sweep in (*sweeps(runs), *chosen)}
    parts: list[Part] = []
    left: list[tuple[Path, str]] = []
    for sweep in chosen:
        look = looks[sweep.folder.resolve()]
        if sweep.owner:
            left.append((sweep.folder, f"it belongs to {sweep.owner}"))
        elif isinstance(look, str):
            left.append((sweep.folder, look))
        else:
            parts += [_part(kind, sweep.folder, _of_sweep(kind, sweep, look)) for kind in kinds]
    for cache in cache_folders(runs) if "caches" in kinds else ():
        if reason := _why_kept(cache, looks.values()):
            left.append((cache, reason))
        else:
            parts.append(_part("caches", cache, _tree(cache)))
    return Clearing([part for part in parts if part.num_files], left)


def clear(runs: Path, chosen: Sequence[Sweep], kinds: Collection[str]) -> Clearing:
    """Removes what `plan_clearing` returns, and returns it. No submit can queue runs meanwhile."""
    with submitting(runs):
        clearing = plan_clearing(runs, chosen, kinds)
        for part in clearing.parts:
            for path in part.paths:
                _remove(path)
    return clearing


def _look(sweep: Sweep) -> list[RunStatus] | str:
    """Returns the statuses of a sweep's runs, or a sentence why the sweep must stay."""
    if sweep.folder.is_symlink():
        return "it is a link to another place"
    try:
        statuses = run_statuses(sweep)
    except SkinjobError as error:
        return error.message
    num_open = sum(not run.status.is_final for run in statuses)
    return f"{pluralize(num_open, 'run')} waiting or running" if num_open else statuses


def _of_sweep(kind: str, sweep: Sweep, statuses: Sequence[RunStatus]) -> Iterator[Path]:
    """Yields the files of a kind in the folder of a sweep whose runs have all ended."""
    if kind == "failed":
        for status in statuses:
            run = Run(sweep.folder / status.run)
            if not run.folder.is_symlink():
                yield from run.folder.glob(".*.part")
                if status.status in (Status.FAILED, Status.LOST):  # a cancelled run may continue
                    yield from run.checkpoint_files
    elif kind == "submission":
        # Status shows the output of a failed run, and its fix may name it.
        failed = [run for run in statuses if run.status != Status.DONE]
        kept = {job_output(sweep, run.job) for run in failed if run.job}
        kept |= {sweep.submission_folder / "queue.log"} if failed else set()
        kept |= {sweep.submission_folder / "queue.lock"}
        yield from (file for file in _tree(sweep.submission_folder) if file not in kept)


def _why_kept(cache: Path, looks: Collection[list[RunStatus] | str]) -> str:
    """Returns why the cache must stay; empty if it can go."""
    if any(isinstance(look, str) for look in looks):
        return "runs that use it are waiting or running"
    if cache.is_symlink():
        return "it is a link to another place"
    if any(file.lstat().st_uid != os.getuid() for file in _tree(cache)):
        return "other users have files in it, and may be using them"
    return ""


def _tree(folder: Path) -> Iterator[Path]:
    """Yields the content of a folder, deepest first; nothing if the folder is a link."""
    if not folder.is_symlink():
        for place, folders, names in os.walk(folder, topdown=False):
            yield from (Path(place) / name for name in (*names, *folders))


def _part(kind: str, folder: Path, paths: Iterator[Path]) -> Part:
    """Returns a part with those *paths* that the user owns, except for links to folders."""
    kept = {}
    for path in paths:
        with suppress(OSError):  # it is missing, or was removed meanwhile
            info = path.lstat()
            if info.st_uid == os.getuid() and not (path.is_symlink() and path.is_dir()):
                kept[path] = info
    sizes = [info.st_blocks * BLOCK_BYTES for info in kept.values()]
    num_files = sum(not stat.S_ISDIR(info.st_mode) for info in kept.values())
    return Part(kind, folder, tuple(kept), num_files, sum(sizes))


def _remove(path: Path) -> None:
    """Removes a file or an empty folder."""
    with suppress(OSError):  # it was removed meanwhile, or a new file is in it
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
