"""Which wheels a target needs: uv resolves for the target, not for this machine.

pip cannot: it evaluates markers for the machine that it runs on, so from a Mac it leaves out all of
CUDA, and on Python 3.11 it leaves out what 3.10 needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import skinjob
from skinjob.bundle.target import Target, TorchBuild
from skinjob.console import typed_command
from skinjob.errors import BundleError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
REACH_S = 5.0  # how long an index may take to answer


@dataclass(frozen=True)
class Wheel:
    """A package's file in an index; the size is None if the index does not say it."""

    name: str
    version: str
    url: str
    sha256: str
    size_bytes: int | None

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


def find_project() -> Path:
    """Returns the folder of skinjob's source, for its own wheel. Raises: BundleError."""
    folder = Path(skinjob.__file__).parents[1]
    if not (folder / "pyproject.toml").is_file():
        raise BundleError(
            f"{folder} is not skinjob's source, which the bundle's own wheel is built from",
            "make bundle   # in a clone of the project",
        )
    return folder


def resolve(
    target: Target, build: TorchBuild, project: Path, extras: Sequence[str] = ("train",)
) -> tuple[list[Wheel], str]:
    """Returns the wheels that skinjob and pip need on the target, and the text of pylock.toml.

    Nothing is downloaded but the index's metadata. Versions are those of constraints.txt, with
    which the tests pass. Raises: BundleError if there is no solution, or no index answers.
    """
    with TemporaryDirectory() as folder:
        needs, pins, lock = (Path(folder, n) for n in ("needs.in", "pins.txt", "pylock.toml"))
        needs.write_text("\n".join(("pip", *build.requirements)) + "\n")
        lines = (project / "constraints.txt").read_text().splitlines()
        if build.requirements:  # another torch
            lines = [line for line in lines if line.split("==")[0] not in ("torch", "torchvision")]
        pins.write_text("\n".join(lines))
        words = ["pip", "compile", str(project / "pyproject.toml"), str(needs), "-c", str(pins)]
        words += [word for extra in extras for word in ("--extra", extra)]
        words += ["--python-version", target.python, "--python-platform", target.platform]
        words += ["--only-binary", ":all:", "--no-header", "-o", str(lock)]
        if target.is_cpu and target.arch == "x86_64" and extras and is_reachable(CPU_INDEX):
            words += ["--torch-backend", "cpu"]
        run_uv(words, f"no wheels for Python {target.python} on {target.platform}")
        text = lock.read_text(encoding="utf-8")
    return read_lock(text), text


def read_lock(text: str) -> list[Wheel]:
    """Returns the wheels of a pylock.toml (PEP 751), the first of each package, by name."""
    packages = tomllib.loads(text)["packages"]
    firsts = [(package, package["wheels"][0]) for package in packages]
    return [
        Wheel(p["name"], p["version"], wheel["url"], wheel["hashes"]["sha256"], wheel.get("size"))
        for p, wheel in firsts
    ]


def run_uv(words: Sequence[str], problem: str) -> None:
    """Runs uv with this Python. Raises: BundleError, which begins with *problem*."""
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    if not (uv := shutil.which("uv", path=beside)):
        raise BundleError(
            "uv is missing, which resolves packages for another machine",
            f"{sys.executable} -m pip install 'uv>=0.9'   # or: make bundle",
        )
    ours = {"UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
    environment = {"UV_PYTHON": sys.executable} | os.environ | ours
    result = subprocess.run([uv, "-q", *words], env=environment, capture_output=True, text=True)
    if result.returncode == 0:
        return
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    causes = [line.removeprefix("cause: ") for line in lines if line.startswith("cause: ")]
    if any("dns error" in line or "Connect" in line for line in causes):
        words_of_uv = lines[0].removeprefix("error: ")
        raise BundleError(
            f"{words_of_uv}: {causes[-1]}",
            f"export https_proxy=http://HOST:PORT; {typed_command()}   # needs internet",
            lines,
        )
    reason = (causes or lines or [f"uv exit code {result.returncode}"])[0]
    raise BundleError(f"{problem}: {reason}", f"{typed_command()} --python 3.12", lines)


def is_reachable(url: str) -> bool:
    """Returns whether a server answers."""
    with suppress(OSError, ValueError):
        urllib.request.build_opener().open(url, timeout=REACH_S).close()
        return True
    return False
