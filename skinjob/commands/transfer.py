"""The lines that copy files to the login node, which several commands print."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from skinjob.console import say

LOGIN = "USER@LOGIN_NODE"


def print_transfer(paths: Sequence[Path], target: str, num_bytes: int) -> None:
    """Prints the commands that copy *paths* to a folder of the login node; the best first.

    rsync sends what is missing of a file and mends a damaged file. It has no --append-verify: with
    that, a file of the same size is skipped even if it differs. sftp resumes a file that you name.
    """
    is_folder = any(path.is_dir() for path in paths)
    files = shlex.join(map(str, paths))
    enter = f"cd {target}\n" if target else ""
    puts = [f"put {'-R ' if is_folder else ''}{shlex.quote(str(path))}\n" for path in paths]
    batch = shlex.quote(enter + "".join(puts)).replace("\n", "\\n")
    flag = "-r " if is_folder else ""
    say(f"copy it ({num_bytes / 1e6:,.1f} MB) in one of these ways:")
    say(f"  rsync -rt --partial {files} {LOGIN}:{target}   # call it again: it resumes")
    say(f"  printf {batch} | sftp {LOGIN}   # if it breaks: reput FILE resumes that file")
    say(f"  scp {flag}{files} {LOGIN}:{target}   # cannot resume")
