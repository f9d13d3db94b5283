"""Looks at a compute node: a script that `skinjob doctor --probe` queues as a job.

It is copied to the shared file system and started like a run's job. It needs only the standard
library, because it must be able to say what is missing. It writes result.json beside itself.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

ADDRESS = ("1.1.1.1", 443)  # a public name server: if it answers, the internet can be reached
NETWORK_S = 3


def look(folder: Path) -> dict[str, Any]:
    """Returns what a run needs to know about this machine."""
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    return {
        "node": socket.gethostname(),
        "python": sys.executable,
        "python_version": sys.version.split()[0],
        "modules": {name: version_of(name) for name in asked["modules"]},
        "cores": len(os.sched_getaffinity(0)),
        "gpus_given": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "driver_cuda": driver_cuda(),
        "gpu": gpu(),
        "token": (folder / "token").read_text(encoding="utf-8"),
        "unseen": unseen(asked["paths"]),
        "free_bytes": shutil.disk_usage(folder).free,
        "network": network(),
        "clock": time.time(),
    }


def unseen(paths: list[str]) -> list[str]:
    """Returns the paths that cannot be read on this machine."""
    return [path for path in paths if not os.access(path, os.R_OK)]


def version_of(name: str) -> dict[str, str]:
    """Returns a module's version, or the error of its import."""
    try:
        return {"version": str(getattr(importlib.import_module(name), "__version__", "installed"))}
    except Exception as error:  # a broken installation may raise anything
        return {"error": f"{type(error).__name__}: {error}"}


def driver_cuda() -> str:
    """Returns the newest CUDA that the driver supports, such as 12.4; '' without a driver."""
    try:
        number = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return ""
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def gpu() -> dict[str, Any]:
    """Returns the GPU that torch computed on, with its memory in bytes, or the error."""
    try:
        import torch

        built = torch.version.cuda or ""
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "built": None}
    try:
        name = torch.cuda.get_device_name()
        # A GPU that is too old or too new for this torch is listed, but its first kernel fails.
        int((torch.ones(1, device="cuda") + 1).item())
        memory = torch.cuda.get_device_properties(0).total_memory
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "built": built}
    return {"name": name, "memory_bytes": memory, "built": built}


def network() -> str:
    """Returns why the internet cannot be reached; '' if it can."""
    try:
        socket.create_connection(ADDRESS, timeout=NETWORK_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def main(folder: Path) -> None:
    """Writes result.json in one step, because the doctor must never read half of it."""
    partial = folder / "result.part"
    partial.write_text(json.dumps(look(folder)), encoding="utf-8")
    partial.replace(folder / "result.json")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
