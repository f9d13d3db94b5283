"""Checks of this machine before a submit: paths, the jobs' Python, free space on the disk."""

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
from collections.abc import Mapping, Sequence
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

MOST_LINES = 4  # of a shell's errors

NEEDED = ("skinjob", "submitit", "torch")
TRIED_S = 20  # a conda environment on a slow file system takes half of it
OPENED = (
    r"(?:^|[;&|]) *(?:(?:source|\.|exec|bash|sh|eval|(?:conda|mamba|micromamba) +activate) +)?"
    r"([^\s;&|<>]*/[^\s;&|<>]+)"
)
"""The files that a shell line starts or reads, if they have a folder."""
LOOK = (  # does not import the modules: torch alone takes seconds
    "from importlib.util import find_spec; "
    "print('skinjob lacks', *(name for name in {} if find_spec(name) is None))"
)

ROW_BYTES = 250  # of metrics.csv and predictions.csv


def require_path(option: str, path: Path) -> None:
    """Checks that the system accepts a path and lets the user read it; it may be missing.

    Raises: ConfigError with the system's reason.
    """
    try:
        str(path).encode()  # JSON, logs and pages will contain it
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        if not os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}", _other(option)) from None
    except ValueError:
        raise ConfigError(
            f"{option} {path}: not a path in UTF-8 without NUL bytes", _other(option)
        ) from None


def require_usable(option: str, path: Path, cluster: ClusterConfig, queue: Queue) -> None:
    """Checks that jobs can use a path, as far as this machine can see. Raises: ConfigError."""
    require_path(option, path)
    if are_nodes_elsewhere(cluster, queue):
        require_shared(option, path)


def are_nodes_elsewhere(cluster: ClusterConfig, queue: Queue) -> bool:
    """Says whether jobs run on machines that do not share this machine's own disks."""
    return not queue.is_this_machine and not cluster.allow_node_local


def require_shared(option: str, path: Path, *, mend: str | None = None) -> None:
    """Checks that compute nodes can see a path of this machine.

    *mend* is the option that changes the path, if that is not *option*.

    Raises: ConfigError if the path is on a disk or in the memory of this machine.
    """
    # A link has a place, too: a venv's Python is a link to the system's.
    for place in (path.resolve(), path.absolute().parent.resolve() / path.name):
        if reason := _node_local(place):
            shown = f"{path}" if place == path else f"{path} ({place})"
            raise ConfigError(
                f"{option} {shown} is {reason}: compute nodes do not see it",
                f"{_other(mend or option)}; or, if they do see it, skinjob submit "
                "--allow-node-local",
            )


def require_writable(runs: Path) -> None:
    """Checks that the user can make *runs*, and folders in it. Raises: RunError."""
    folder = nearest(runs)
    if not folder.is_dir():
        raise RunError(f"--runs {runs}: {folder} is a file", ELSEWHERE)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        reason = "is on a read-only file system" if is_read_only else "may not be written by you"
        raise RunError(f"--runs {runs}: {folder} {reason}", ELSEWHERE)


def _other(option: str) -> str:
    return f"skinjob submit {option} /another/path"


def nearest(path: Path) -> Path:
    """Returns a path if it exists, else its nearest parent that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _node_local(path: Path) -> str:
    """Returns why a path is on this machine only; empty if it may be shared."""
    temporary = os.environ.get("TMPDIR")
    if temporary and path.is_relative_to(Path(temporary).resolve()):
        return "below $TMPDIR"
    for folder in NODE_LOCAL:
        if path.is_relative_to(folder):
            return f"below {folder}"
    if nearest(path).stat().st_dev == Path("/").stat().st_dev:
        return ""  # a diskless machine has its whole system in memory, and so have its nodes
    kind = file_system(path)
    return f"in this machine's memory ({kind})" if kind in IN_MEMORY else ""


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """Returns Linux's name for a path's file system; empty on other systems."""
    try:
        lines = os.fsdecode(mounts.read_bytes()).splitlines()
    except OSError:
        return ""
    kind, deepest = "", 0
    for line in lines:
        _, point, this_kind, *_ = line.split(" ")
        point = _unescaped(point)
        if (
            path.is_relative_to(point) and len(point) >= deepest
        ):  # the last mount on a point hides the others
            kind, deepest = this_kind, len(point)
    return kind


def _unescaped(text: str) -> str:
    r"""Returns a path of /proc/self/mounts without its escapes.

    >>> _unescaped(r"/my\040disk")
    '/my disk'
    """
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


def needed_packages(backbone: Backbone) -> tuple[str, ...]:
    """Returns the packages without which no job can train a network."""
    return (*NEEDED, "torchvision") if backbone.needs_torchvision else NEEDED


def lacking_here(cluster: ClusterConfig, needed: Sequence[str]) -> str:
    """Returns the packages that the current Python lacks; empty if jobs use another Python."""
    if cluster.python or cluster.setup:
        return ""
    return " and ".join(name for name in needed if find_spec(name) is None)


def require_shared_python(cluster: ClusterConfig, queue: Queue, needed: Sequence[str]) -> None:
    """Checks that compute nodes can see what starts a job: Python, packages, and set-up files.

    Raises: ConfigError if one of them is on a disk or in the memory of this machine.
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
        for name in needed:
            spec = find_spec(name)
            if spec and spec.origin:
                require_shared(f"the package {name},", Path(spec.origin), mend="--python")
    for line in cluster.setup:
        for word in re.findall(OPENED, line):
            path = Path(os.path.expandvars(word.strip("'\"$(`"))).expanduser()
            if path.exists():
                require_shared("--setup", path)


def python_note(cluster: ClusterConfig, queue: Queue, needed: Sequence[str] = NEEDED) -> str | None:
    """Returns a remark on the jobs' Python for the user; None if it has all *needed* packages.

    Runs the lines of `setup` and the words of `python` here in bash, as a job's shell would. If
    that fails, it proves nothing: a container or a module may exist only on compute nodes.

    Raises: ConfigError if that Python lacks a package. Without `setup` and `python`, jobs of a
    cluster use the current Python: what it lacks is then a remark, so that a laptop without torch
    can show the job script; jobs of this machine are refused.
    """
    lacks = lacking_here(cluster, needed)
    if queue.is_this_machine:
        if lacks:
            raise ConfigError(
                f"training on this machine needs {lacks}, which {sys.executable} does not have",
                "pip install 'skinjob[train]'; or submit with --python /path/to/python",
            )
        return None
    if not cluster.python and not cluster.setup:
        return f"no {lacks} in {sys.executable}: jobs need --python or --setup" if lacks else None
    python = python_words(cluster)
    lacking = _try(cluster.setup, job_python(cluster), needed)
    if isinstance(lacking, str):
        return f"the jobs' Python was not checked: on this machine {lacking}"
    if lacking:
        raise ConfigError(
            f"the jobs' Python ({python}) lacks {', '.join(lacking)}",
            f"{python} -m pip install 'skinjob[train]'   # or another --python",
        )
    return None


def _try(setup: tuple[str, ...], python: str, needed: Sequence[str]) -> list[str] | str:
    """Returns the packages that the jobs' Python lacks, or why it does not start here."""
    script = "\n".join(
        [
            "trap 'echo skinjob setup failed' ERR",
            *setup,
            "trap - ERR",
            f"{python} -c {shlex.quote(LOOK.format(tuple(needed)))}",
        ]
    )
    with subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # the whole group can be killed then
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
    """Returns the result of `_try` from the shell's output.

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
    free: int,
) -> int:
    """Returns how many bytes new runs of a sweep will write at most, if *free* bytes are free.

    All jobs share decoded images and views. Every run writes its other files itself.
    """
    recipe = next(iter(configs.values()))
    num_train = len(images.split("train"))
    num_evaluated = len(images.files) - num_train
    # RGB at the backbone's size; an image keeps more on its longer side.
    image_bytes, most = 3 * backbone.preprocessing.crop**2, min(KEPT_MOST_BYTES, free // KEPT_SHARE)
    kept = sum(min(count * image_bytes, most) for count in (num_train, num_evaluated))
    most_epochs = max(config.epochs for config in configs.values())
    rows = len(configs) * (most_epochs + num_evaluated) * ROW_BYTES
    if recipe.train == "all":
        # A checkpoint has AdamW's two moments, too. A run keeps two while it writes a third.
        checkpoints, model = 3 * 3 * backbone.num_bytes, backbone.num_bytes
        return kept + rows + len(configs) * (checkpoints + model)
    views = 4 * backbone.num_features * (num_train * most_epochs + num_evaluated)  # float32
    existing = sum(file.stat().st_size for file in views_folder.glob("*.safetensors"))
    return kept + rows + max(0, views - existing)  # existing views may be views of these runs


def require_room(runs: Path, num_bytes: int, free: int) -> None:
    """Checks that *num_bytes* fit into *free* bytes. Raises: RunError with both numbers."""
    if num_bytes > free:
        needed_mb, free_mb = -(-num_bytes // 10**6), free // 10**6
        raise RunError(
            f"--runs {runs}: the sweep writes up to {needed_mb:,} MB, and {free_mb:,} MB are free",
            f"df -h {shlex.quote(str(nearest(runs)))}   # and another --runs, fewer epochs or "
            "updates, or fewer jobs at once (--array-parallelism)",
        )


def free_bytes(folder: Path) -> int:
    """Returns how many bytes the user can still write to a folder, which may not exist yet."""
    return shutil.disk_usage(nearest(folder)).free
