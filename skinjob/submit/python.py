"""Whether the Python of the jobs has what it needs, as far as it can be tried before the queue."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from skinjob.config import ClusterConfig
from skinjob.errors import ConfigError
from skinjob.queues.slurm.client import MOST_LINES
from skinjob.submit.place import require_shared
from skinjob.words import list_first

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


JOB_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
"""What a job's Python is started with.

A random.py in the folder of submit is not taken for Python's own, and paths and logs are UTF-8
whatever the node's locale is.
"""


def job_python(cluster: ClusterConfig) -> str:
    """Returns the shell words that start Python in a job: the user's own, or this very Python."""
    environment = " ".join(f"{name}={value}" for name, value in JOB_ENVIRONMENT.items())
    return f"env {environment} {python_words(cluster)}"


def python_words(cluster: ClusterConfig) -> str:
    """Returns the shell words of the jobs' Python itself."""
    return cluster.python or shlex.quote(sys.executable)


def lacks_torch(cluster: ClusterConfig) -> bool:
    """Says whether jobs would start this very Python, and it has no torch."""
    return not cluster.python and not cluster.setup and find_spec("torch") is None


def require_shared_python(cluster: ClusterConfig) -> None:
    """Returns when the nodes may see all that a job opens before its run: Python, packages, set-up.

    In shell words and lines, the files are checked that they start or read.

    Raises: ConfigError for one on a disk or in the memory of this machine alone.
    """
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


def python_note(cluster: ClusterConfig) -> str | None:
    """Returns what a person should know of the Python of the jobs, or None when it has everything.

    The lines of `setup` and the words of `python` are run here in bash, as a job's shell would.
    Where they cannot be (a container or a module may be on the nodes alone), nothing is concluded.

    Raises: ConfigError when they start a Python here that lacks a package.
    """
    if not cluster.python and not cluster.setup:
        is_bare = lacks_torch(cluster)
        return f"no torch in {sys.executable}: jobs need --python or --setup" if is_bare else None
    python = python_words(cluster)
    said = _try(cluster.setup, job_python(cluster))
    if isinstance(said, str):
        return f"python of the jobs was not tried: here {said}"
    if said:
        raise ConfigError(
            f"the jobs' Python ({python}) lacks {', '.join(said)}",
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
    found = [line.split()[2:] for line in output if line.startswith("skinjob lacks")]
    if found and (not found[-1] or "skinjob setup failed" not in output):
        return found[-1]
    lines = list_first([*map(str.strip, errors)], MOST_LINES, separator="; ", noun="line")
    return f"it says: {lines}" if errors else f"it ends with exit code {code}"
