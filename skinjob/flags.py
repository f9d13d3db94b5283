"""Flags of sbatch that a site needs besides those that skinjob sets."""

from __future__ import annotations

import re

from skinjob.errors import ConfigError

SET_FLAGS = {
    "partition": "--partition NAME",
    "account": "--account NAME",
    "qos": "--qos NAME",
    "constraint": "--constraint FEATURE",
    "gpus": "--gpu-flag gpus",
    "gpus-per-node": "--gpu-flag gpus-per-node",
    "gpus-per-task": "--gpu-flag gpus-per-node",
    "gpus-per-socket": "--gpu-flag gpus-per-node",
    "gres": "--gpu-flag gres",
    "cpus-per-task": "--cpus 4",
    "cpus-per-gpu": "--cpus 4",
    "mem": "--mem 8",
    "mem-per-cpu": "--mem-flag mem-per-cpu",
    "mem-per-gpu": "--mem-flag mem-per-gpu",
    "time": "--time 120",
    "requeue": "--requeue",
    "no-requeue": "--no-requeue",
    "array": "--array-parallelism 4",
    "wckey": "--wckey NAME",
    "reservation": "--reservation NAME",
    "nodelist": "--nodelist gpu01",
    "nodefile": "--nodelist gpu01",
    "exclude": "--exclude 'gpu[01-04]'",
    "mail-user": "--mail me@example.org",
    "mail-type": "--mail-type END,FAIL",
    "chdir": "--runs FOLDER",
    "output": "--runs FOLDER",
    "error": "--runs FOLDER",
    "export": "--setup 'export A=B'",
    "export-file": "--setup 'export A=B'",
    "wrap": "--setup 'module load cuda'",
    "wait": "--wait",
    "test-only": "--dry-run",
    **dict.fromkeys(
        ("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "job-name", "signal", "open-mode")
    ),
    **dict.fromkeys(("clusters", "parsable", "quiet", "verbose", "help", "usage", "version")),
}
"""Flags of sbatch that skinjob decides on, each with its own option for it, or None.

Jobs on another cluster, or an answer in another form, it would not find again.
"""


def require_other_flags(flags: tuple[str, ...]) -> None:
    """Returns when flags for sbatch can stand beside those that skinjob sets.

    Raises: ConfigError for what is no flag in one word, is there twice, or is skinjob's to set.
    """
    names: set[str] = set()
    for flag in flags:
        if not re.fullmatch(r"--[a-z][a-z-]*(=\S+)?", flag) or not flag.isprintable():
            _refuse(flag, "and must be a long flag in one word, as --hint=nomultithread")
        name = flag[2:].split("=")[0]
        if name in names:
            _refuse(flag, f"and --{name} is there twice")
        names.add(name)
        # sbatch takes the beginning of a flag for the flag.
        own = next((own for own in SET_FLAGS if own.startswith(name)), None)
        if own:
            raise ConfigError(
                f"sbatch is {flag!r}, and --{own} is set by skinjob itself",
                f"skinjob submit {SET_FLAGS[own] or ''}".rstrip() + f"   # without {flag}",
            )


def _refuse(flag: str, why: str) -> None:
    raise ConfigError(f"sbatch is {flag!r}, {why}", "skinjob submit --sbatch=--hint=nomultithread")
