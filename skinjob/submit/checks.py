"""What submit checks of this machine before it plans: paths, the jobs' Python, room on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.data.images import KEPT_MOST_BYTES, KEPT_SHARE, ImageSet
from skinjob.errors import ConfigError, RunError
from skinjob.queues.base import Queue
from skinjob.queues.job import job_python, python_words
from skinjob.weights.backbones import Backbone
from skinjob.words import list_first

NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")
IN_MEMORY = ("tmpfs", "ramfs")
MOUNTS = Path("/proc/self/mounts")
ELSEWHERE = "skinjob submit --runs /a/folder/of/yours"

MOST_LINES = 4  # of what a shell says

NEEDED = ("skinjob", "submitit", "torch", "torchvision")
TRIED_S = 20  # a conda environment on a slow file system takes half of it
OPENED = (
    r"(?:^|[;&|]) *(?:(?:source|\.|exec|bash|sh|eval|(?:conda|mamba|micromamba) +activate) +)?"
    r"([^\s;&|<>]*/[^\s;&|<>]+)"
)
"""What a line of a shell starts or reads: a path with a folder."""
LOOK = (  # finds a module without loading it: torch alone takes seconds
    "from importlib.util import find_spec; "
    f"print('skinjob lacks', *(name for name in {NEEDED} if find_spec(name) is None))"
)

ROW_BYTES = 250  # of metrics.csv and predictions.csv


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


def require_usable(option: str, path: Path, cluster: ClusterConfig, queue: Queue) -> None:
    """Returns when jobs may use a path, as far as it can be seen from here. Raises: ConfigError."""
    require_path(option, path)
    if are_nodes_elsewhere(cluster, queue):
        require_shared(option, path)


def are_nodes_elsewhere(cluster: ClusterConfig, queue: Queue) -> bool:
    """Says whether jobs run on machines that do not have this one's own disks."""
    return not queue.is_this_machine and not cluster.allow_node_local


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
        _, point, this_kind, *_ = line.split(" ")
        point = _unescaped(point)
        if path.is_relative_to(point) and len(point) >= inmost:  # of two on one point, the later
            kind, inmost = this_kind, len(point)
    return kind


def _unescaped(text: str) -> str:
    r"""Returns a path of /proc/self/mounts as it is.

    >>> _unescaped(r"/my\040disk")
    '/my disk'
    """
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


def lacks_torch(cluster: ClusterConfig) -> bool:
    """Says whether jobs would start this very Python, and it has no torch."""
    return not cluster.python and not cluster.setup and find_spec("torch") is None


def require_shared_python(cluster: ClusterConfig, queue: Queue) -> None:
    """Returns when the nodes may see all that a job opens before its run: Python, packages, set-up.

    In shell words and lines, the files are checked that they start or read.

    Raises: ConfigError for one on a disk or in the memory of this machine alone.
    """
    if not are_nodes_elsewhere(cluster, queue):
        return
    if cluster.python:
        for word in shlex.split(cluster.python):
            file = word if "/" in word or cluster.setup else shutil.which(word) or word
            if "/" in file and Path(file).is_file():
                require_shared("--python", Path(file))
    else:
        require_shared("the Python of jobs,", Path(sys.executable), mend="--python")
        for name in NEEDED:
            spec = find_spec(name)
            if spec and spec.origin:
                require_shared(f"the package {name},", Path(spec.origin), mend="--python")
    for line in cluster.setup:
        for word in re.findall(OPENED, line):
            path = Path(os.path.expandvars(word.strip("'\"$(`"))).expanduser()
            if path.exists():
                require_shared("--setup", path)


def python_note(cluster: ClusterConfig, queue: Queue) -> str | None:
    """Returns what a person should know of the Python of the jobs, or None when it has everything.

    The lines of `setup` and the words of `python` are run here in bash, as a job's shell would.
    Where they cannot be (a container or a module may be on the nodes alone), nothing is concluded.

    Raises: ConfigError when they start a Python here that lacks a package, or this Python trains
    and has no torch.
    """
    if queue.is_this_machine:
        if lacks_torch(cluster):
            raise ConfigError(
                f"training on this machine needs torch, which {sys.executable} does not have",
                "pip install 'skinjob[train]'; or submit with --python /path/to/python",
            )
        return None
    if not cluster.python and not cluster.setup:
        is_bare = lacks_torch(cluster)
        return f"no torch in {sys.executable}: jobs need --python or --setup" if is_bare else None
    python = python_words(cluster)
    lacking = _try(cluster.setup, job_python(cluster))
    if isinstance(lacking, str):
        return f"python of the jobs was not tried: here {lacking}"
    if lacking:
        raise ConfigError(
            f"the jobs' Python ({python}) lacks {', '.join(lacking)}",
            f"{python} -m pip install 'skinjob[train]'   # or another --python",
        )
    return None


def _try(setup: tuple[str, ...], python: str) -> list[str] | str:
    """Returns the packages that the jobs' Python lacks, or in words why it cannot be tried here."""
    script = "\n".join(
        [
            "trap 'echo skinjob setup failed' ERR",
            *setup,
            "trap - ERR",
            f"{python} -c {shlex.quote(LOOK)}",
        ]
    )
    with subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that all of it can be ended
    ) as shell:
        try:
            output, errors = shell.communicate(timeout=TRIED_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            return f"setup and python took more than {TRIED_S} s"
    return _lacking(
        output.splitlines(),
        [line for line in errors.splitlines() if line.strip()],
        shell.returncode,
    )


def _lacking(output: list[str], errors: list[str], code: int) -> list[str] | str:
    """Returns what `_try` does, from what the shell said.

    >>> _lacking(["skinjob lacks torch"], [], 0)
    ['torch']
    >>> _lacking(["skinjob setup failed", "skinjob lacks torch"], ["module: command not found"], 0)
    'it says: module: command not found'
    """
    answers = [line.split()[2:] for line in output if line.startswith("skinjob lacks")]
    if answers and (not answers[-1] or "skinjob setup failed" not in output):
        return answers[-1]
    lines = list_first([*map(str.strip, errors)], MOST_LINES, separator="; ", noun="line")
    return f"it says: {lines}" if errors else f"it ends with exit code {code}"


def bytes_needed(
    configs: Mapping[str, TrainConfig],
    images: ImageSet,
    backbone: Backbone,
    views_folder: Path,
    *,
    jobs_at_once: int,
    free: int,
) -> int:
    """Returns how many bytes new runs of a sweep will write at most, if *free* bytes are free.

    All heads of a job share views and decoded images. Every run writes its other files itself.
    """
    recipe = next(iter(configs.values()))
    num_train, num_test = len(images.split("train")), len(images.split("test"))
    num_decoded = num_train if recipe.train == "head" else num_train + num_test
    # RGB at the backbone's size; an image keeps more on its longer side.
    decoded = num_decoded * 3 * backbone.preprocessing.crop**2
    kept = jobs_at_once * min(decoded, KEPT_MOST_BYTES, free // KEPT_SHARE)
    rows = len(configs) * (recipe.epochs + num_test) * ROW_BYTES
    if recipe.train == "all":
        # A checkpoint has AdamW's two moments, too. A run keeps two while it writes a third.
        checkpoints, model = 3 * 3 * backbone.num_bytes, backbone.num_bytes
        return kept + rows + len(configs) * (checkpoints + model)
    views = 4 * backbone.num_features * (num_train * recipe.epochs + num_test)  # float32
    existing = sum(file.stat().st_size for file in views_folder.glob("*.safetensors"))
    return kept + rows + max(0, views - existing)  # existing views may be views of these runs


def require_room(runs: Path, num_bytes: int, free: int) -> None:
    """Returns when *num_bytes* fit the *free* ones of the file system of *runs*.

    Raises: RunError with both numbers when they do not.
    """
    if num_bytes > free:
        needed_mb, free_mb = -(-num_bytes // 10**6), free // 10**6
        raise RunError(
            f"--runs {runs}: the sweep writes up to {needed_mb:,} MB, and {free_mb:,} MB are free",
            f"df -h {shlex.quote(str(nearest(runs)))}   # and another --runs, fewer --epochs, or "
            "fewer jobs at once (--array-parallelism)",
        )


def free_bytes(folder: Path) -> int:
    """Returns what the user can still write to a folder, or to where it is going to be."""
    return shutil.disk_usage(nearest(folder)).free
