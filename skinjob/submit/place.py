"""Whether a sweep can lie where it is wanted: shared with the nodes, writable, and safe."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from skinjob.errors import ConfigError, RunError
from skinjob.files import absolute

NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")
IN_MEMORY = ("tmpfs", "ramfs")
MOUNTS = Path("/proc/self/mounts")
ELSEWHERE = "skinjob submit --runs /a/folder/of/yours"


def require_path(option: str, path: Path) -> None:
    """Returns when a path can be one; that nothing is there is for its reader to say.

    Raises: ConfigError with the system's reason when it can be none.
    """
    try:
        str(path).encode()  # it goes into JSON, a log and a page, which are UTF-8
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        if not os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}", _other(option)) from None
    except ValueError:
        raise ConfigError(
            f"{option} {path}: a path in UTF-8 without NUL bytes is wanted", _other(option)
        ) from None


def require_shared(option: str, path: Path, *, mend: str | None = None) -> None:
    """Returns when the nodes of a cluster may see a path as it is seen here.

    *mend* is the option that gives another, where that is not *option*.

    Raises: ConfigError when it lies on a disk or in the memory of this machine alone.
    """
    # The link itself lies somewhere too: a venv's Python is one, to the system's.
    for there in (path.resolve(), path.absolute().parent.resolve() / path.name):
        if reason := _node_local(there):
            seen = f"{path}" if there == path else f"{path} ({there})"
            raise ConfigError(
                f"{option} {seen} is {reason}: compute nodes do not see what is there",
                f"{_other(mend or option)}; or, where they do, skinjob submit --allow-node-local",
            )


def require_for_sbatch(folder: Path) -> None:
    """Returns when jobs can log to a folder: its path goes into an #SBATCH --output line.

    Raises: ConfigError when SLURM would read the path as something else.
    """
    path = str(absolute(folder))
    if not path.isprintable():
        reason = "a line break or another control character would end its #SBATCH line"
    elif "%" in path or "\\" in path:
        reason = "in the path of a job's output SLURM replaces what follows %, and takes \\ away"
    else:
        return
    raise ConfigError(f"sweep folder {path}: {reason}", ELSEWHERE)


def require_writable(runs: Path) -> None:
    """Returns when the user can make folders in *runs*, or make *runs*.

    Raises: RunError when the user cannot.
    """
    there = nearest(runs)
    if not there.is_dir():
        raise RunError(f"--runs {runs}: {there} is a file", ELSEWHERE)
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        is_read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        reason = "is on a read-only file system" if is_read_only else "may not be written by you"
        raise RunError(f"--runs {runs}: {there} {reason}", ELSEWHERE)


def _other(option: str) -> str:
    return f"skinjob submit {option} /another/path"


def nearest(path: Path) -> Path:
    """Returns the first on the way up that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def _node_local(path: Path) -> str:
    """Returns in words why a path is this machine's own, or nothing."""
    temporary = os.environ.get("TMPDIR")
    if temporary and path.is_relative_to(Path(temporary).resolve()):
        return "below $TMPDIR"
    for folder in NODE_LOCAL:
        if path.is_relative_to(folder):
            return f"below {folder}"
    if nearest(path).stat().st_dev == Path("/").stat().st_dev:
        return ""  # a machine without a disk has all of its system in memory, as its nodes do
    kind = file_system(path)
    return f"in this machine's memory ({kind})" if kind in IN_MEMORY else ""


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """Returns the kind of file system that a path is on, as Linux calls it; elsewhere nothing."""
    try:
        lines = os.fsdecode(mounts.read_bytes()).splitlines()
    except OSError:
        return ""
    kind, inmost = "", 0
    for line in lines:
        _, point, found, *_ = line.split(" ")
        point = _unescaped(point)
        if path.is_relative_to(point) and len(point) >= inmost:  # of two on one point, the later
            kind, inmost = found, len(point)
    return kind


def _unescaped(text: str) -> str:
    r"""Returns a path of /proc/self/mounts as it is.

    >>> _unescaped(r"/my\040disk")
    '/my disk'
    """
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)
