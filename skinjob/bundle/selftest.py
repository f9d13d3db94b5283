"""Tests an installation: `python -m skinjob.bundle.selftest [DRIVER]`, in its folder.

It imports every library, reads the weights, and calls the installed commands as a user does: a
short training on drawn images, and its report. install.sh switches over only if all of it works.
DRIVER is the oldest NVIDIA driver for its torch; without it, a GPU is not needed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

from skinjob.console import say
from skinjob.data.lesions import make_images
from skinjob.weights.file import read_weights_info

LIBRARIES = (
    *("click", "jinja2", "matplotlib", "msgspec", "numpy", "pandas", "PIL", "rich"),
    *("safetensors", "scipy", "submitit"),
)
SIZE = ("--epochs", "1", "--batch-sizes", "8", "--seeds", "0")


def main(folder: Path, driver: str = "none") -> None:
    """Tests the installation in *folder*; prints a line for each test.

    Raises: SystemExit with a sentence if a test fails.
    """
    start = time.monotonic()
    has_torch = importlib.util.find_spec("torch") is not None
    names = LIBRARIES + (("torch", "torchvision") if has_torch else ())
    modules = {name: importlib.import_module(name) for name in names}
    say(f"ok      {len(names)} libraries are imported ({time.monotonic() - start:.0f} s)")
    (weights,) = [read_weights_info(file) for file in (folder / "weights").glob("*.safetensors")]
    say(f"ok      {weights.path.name} has its digest and its tensors{weights.note}")
    if not has_torch:
        say("...     no training: this bundle has no torch")
        return
    devices = ["cpu"]
    cuda = modules["torch"].cuda
    if cuda.is_available():
        devices.append("cuda")
    elif driver != "none" and _has_gpu():
        version = modules["torch"].__version__
        sys.exit(
            f"torch {version} cannot use this machine's GPU: it needs driver {driver} or newer"
        )
    with TemporaryDirectory(dir=folder) as place:
        make_images(Path(place, "images"), num_train=8, num_test=4)
        for device in devices:
            start = time.monotonic()
            where = ("--data", "images", "--weights", str(weights.path), "--cluster", "local")
            _skinjob(place, "submit", *where, "--device", device, *SIZE, "--name", device, "--wait")
            _skinjob(place, "report", device)
            name = "the CPU" if device == "cpu" else cuda.get_device_name()
            say(f"ok      a training and its report on {name} ({time.monotonic() - start:.0f} s)")
    if len(devices) == 1:
        say("...     no GPU on this machine: skinjob doctor --probe tests one on a compute node")


def _has_gpu() -> bool:
    program = which("nvidia-smi")
    return bool(program and subprocess.run([program, "-L"], capture_output=True).stdout)


def _skinjob(cwd: str, *words: str) -> None:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SKINJOB_")}
    command = [sys.executable, "-m", "skinjob", *words]
    result = subprocess.run(
        command, cwd=cwd, env=ours, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"{result.stdout}{result.stderr}skinjob {words[0]} fails in the self-test")


if __name__ == "__main__":
    main(Path.cwd(), *sys.argv[1:2])
