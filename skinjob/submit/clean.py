"""What a runs folder can do without: how much it is, and its removal.

Links are not followed, and what belongs to another user is left.
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

KINDS = ("caches", "failed", "submission")
BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system's own blocks are


@dataclass(frozen=True)
class Part:
    """What of one kind is in one place."""

    kind: str
    """One of KINDS."""
    folder: Path
    paths: tuple[Path, ...]
    """Files, and folders after what is in them."""
    num_files: int
    num_bytes: int
    """On the disk, as du counts."""


@dataclass(frozen=True)
class Clearing:
    """What can be removed, and what is left alone."""

    parts: Sequence[Part]
    left: Sequence[tuple[Path, str]]
    """Folders that are left alone, and why."""

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)


def plan_clearing(runs: Path, chosen: Sequence[Sweep], kinds: Collection[str]) -> Clearing:
    """Returns what of these *kinds* can be removed of the *chosen* sweeps, and of the cache.

    Sweeps with runs that wait or are at work are left alone, and the cache while there is one.
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
    """Removes what `plan_clearing` finds, and returns it.

    Nobody can queue runs meanwhile, so none can start on what is being removed.
    """
    with submitting(runs):
        clearing = plan_clearing(runs, chosen, kinds)
        for part in clearing.parts:
            for path in part.paths:
                _remove(path)
    return clearing


def _look(sweep: Sweep) -> list[RunStatus] | str:
    """Returns how the runs of a sweep stand, or in words why the sweep must be left alone."""
    if sweep.folder.is_symlink():
        return "it is a link to another place"
    try:
        statuses = run_statuses(sweep)
    except SkinjobError as error:
        return error.message
    num_open = sum(not run.status.is_final for run in statuses)
    return f"runs of it wait or are at work: {num_open}" if num_open else statuses


def _of_sweep(kind: str, sweep: Sweep, statuses: Sequence[RunStatus]) -> Iterator[Path]:
    """Yields the files of a kind in the folder of a sweep that is over."""
    if kind == "failed":
        for found in statuses:
            run = Run(sweep.folder / found.run)
            if not run.folder.is_symlink():
                yield from run.folder.glob(".*.part")
                # A cancelled run is to go on where it was.
                yield from (
                    run.checkpoint_files if found.status in (Status.FAILED, Status.LOST) else ()
                )
    elif kind == "submission":
        # What status shows of a run that did not end well, and what its fix names.
        failed = [run for run in statuses if run.status != Status.DONE]
        kept = {job_output(sweep, run.job) for run in failed if run.job}
        kept |= {sweep.submission_folder / "queue.log"} if failed else set()
        kept |= {sweep.submission_folder / "queue.lock"}
        yield from (file for file in _tree(sweep.submission_folder) if file not in kept)


def _why_kept(cache: Path, looks: Collection[list[RunStatus] | str]) -> str:
    """Returns why the cache is left alone, or nothing."""
    if any(isinstance(look, str) for look in looks):
        return "runs that use it wait or are at work"
    if cache.is_symlink():
        return "it is a link to another place"
    if any(file.lstat().st_uid != os.getuid() for file in _tree(cache)):
        return "others have files in it, and may be at work with them"
    return ""


def _tree(folder: Path) -> Iterator[Path]:
    """Yields all that is in a folder, unless that is itself a link, from the inmost on."""
    if not folder.is_symlink():
        for place, folders, names in os.walk(folder, topdown=False):
            yield from (Path(place) / name for name in (*names, *folders))


def _part(kind: str, folder: Path, paths: Iterator[Path]) -> Part:
    """Returns a part of those of the paths that are the user's own, and no links to folders."""
    found = {}
    for path in paths:
        with suppress(OSError):  # gone in between, or not there
            seen = path.lstat()
            if seen.st_uid == os.getuid() and not (path.is_symlink() and path.is_dir()):
                found[path] = seen
    sizes = [seen.st_blocks * BLOCK_BYTES for seen in found.values()]
    num_files = sum(not stat.S_ISDIR(seen.st_mode) for seen in found.values())
    return Part(kind, folder, tuple(found), num_files, sum(sizes))


def _remove(path: Path) -> None:
    """Removes a file, or a folder that is empty."""
    with suppress(OSError):  # gone in between, or somebody put something there
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
