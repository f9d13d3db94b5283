"""Runs `skinjob` without importing the package for every call: a fork takes 20 ms, a start 300 ms.

A Python that has imported the commands waits for calls and forks for each. A fork is a process like
`python -m skinjob`: it has its own folder, variables, umask, output and exit code. A test of the
locale, of limits, of another user or of the imports needs a real start: `commands.SKINJOB`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

NOT_IMPORTED = ("torch", "matplotlib")
"""Few calls need torch. matplotlib reads its settings at import, and each call has its own."""


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Starts the Python that forks; it ends with the tests."""
    server = subprocess.Popen(
        [sys.executable, __file__],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def run_forked(arguments: list[str], cwd: Path, env: dict[str, str], output: Path) -> int:
    """Runs `skinjob`, writes its stdout and stderr into the folder *output*; returns its code."""
    server = _server()
    umask = os.umask(0)
    os.umask(umask)
    call = {
        "arguments": arguments,
        "cwd": str(cwd),
        "env": env,
        "umask": umask,
        "output": str(output),
    }
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps(call) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"the Python that forks ended with {server.wait()}"
    return int(answer)


def _import_commands() -> None:
    import skinjob

    for module in pkgutil.walk_packages(skinjob.__path__, "skinjob."):
        if module.name.split(".")[1] not in ("__main__", "train", "report"):
            importlib.import_module(module.name)
    importlib.import_module("pandas")
    loaded = {name for name in NOT_IMPORTED if name in sys.modules}
    assert not loaded, loaded


def _become(call: dict[str, Any]) -> None:
    """Gives this process the folder, the variables and the output of a call."""
    os.chdir(call["cwd"])
    os.umask(call["umask"])
    os.environ.clear()
    os.environ.update(call["env"])
    output = Path(call["output"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(output / name, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0)
    sys.argv = ["skinjob", *call["arguments"]]


def _call_main() -> NoReturn:
    """Runs the command and ends this process; a normal exit of Python would take longer."""
    from skinjob.cli import main

    code = 1
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    _import_commands()
    gc.freeze()  # a collection in a fork would copy every page
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
            _call_main()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
