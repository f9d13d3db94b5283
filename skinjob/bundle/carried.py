"""The Python that a bundle carries: an install_only archive of python-build-standalone."""

from __future__ import annotations

import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from skinjob.bundle.target import Target
from skinjob.errors import BundleError

HINT = (
    "get the cluster's cpython-...-install_only.tar.gz from "
    "https://github.com/astral-sh/python-build-standalone/releases"
)
ELF_BYTES = 20  # of a program's header, as far as its processor
PROCESSORS = {62: "x86_64", 183: "aarch64"}
"""Values of e_machine in an ELF header. Source: the ELF specification."""


@dataclass(frozen=True)
class CarriedPython:
    """An archive with python/bin/pythonX.Y."""

    archive: Path
    version: str
    """X.Y"""
    arch: str
    """The processor of this program; empty if it is no program for Linux."""

    def require_fits(self, target: Target) -> None:
        """Checks that it is the target's Python, for its processor. Raises: BundleError."""
        name = f"python/bin/python{target.python}"
        if self.version != target.python:
            problem = f"no {name} in it, but python{self.version}"
        elif not self.arch:
            problem = f"its {name} is no program for Linux on {target.arch}"
        elif self.arch != target.arch:
            problem = f"its {name} is for {self.arch}; the cluster has {target.arch}"
        else:
            return
        raise BundleError(f"{self.archive}: {problem}", HINT)


def read_python(archive: Path) -> CarriedPython:
    """Returns what Python is in an archive. Reads all of it. Raises: BundleError."""
    python = None
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                match = re.fullmatch(r"python/bin/python(3\.\d+)", member.name)
                content = tar.extractfile(member) if match and member.isreg() else None
                if match and content:
                    arch = _processor(content.read(ELF_BYTES))
                    python = CarriedPython(archive, match[1], arch)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or f"no .tar.gz ({error})"
        raise BundleError(f"{archive}: {reason}", HINT) from None
    if not python:
        raise BundleError(f"{archive}: no python/bin/python3.N in it", HINT)
    return python


def _processor(head: bytes) -> str:
    """Returns the processor of a program by the start of its file; '' if it is not known."""
    is_elf = head.startswith(b"\x7fELF") and len(head) == ELF_BYTES
    return PROCESSORS.get(int.from_bytes(head[18:20], "little"), "") if is_elf else ""
