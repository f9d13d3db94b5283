"""The machine that a bundle is for, and the release of torch that runs on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from skinjob.console import typed_command
from skinjob.errors import BundleError

ARCHS = ("x86_64", "aarch64")
PYTHONS = tuple(f"3.{minor}" for minor in range(10, 15))
MIN_GLIBC = 28  # the minor version that wheels of torch 2.9 and newer need: RHEL 8
GLIBCS = (28, *range(31, 41))  # the minor versions that uv knows
DESCRIBE = "skinjob bundle --print-describe > describe.sh"
CONTAINER = "apptainer exec IMAGE.sif sh describe.sh > cluster.txt   # a container of your site"


@dataclass(frozen=True)
class Target:
    """A machine: versions of Python and glibc, processor, and what is known of its GPUs."""

    python: str
    glibc: str = "2.28"
    arch: str = "x86_64"
    driver: int | None = None
    """The major version of the oldest NVIDIA driver; None if unknown."""
    sm: int | None = None
    """The lowest compute capability times ten, such as 80 for an A100; None if unknown."""
    is_cpu: bool = False
    """Whether torch needs no GPU."""

    @property
    def platform(self) -> str:
        """The platform in uv's words, with the newest glibc that uv knows and the target has."""
        minor = max(known for known in GLIBCS if known <= glibc_minor(self.glibc))
        return f"{self.arch}-manylinux_2_{minor}"


@dataclass(frozen=True)
class TorchBuild:
    """Releases of torch on PyPI with the same CUDA. Source: NVIDIA's table of drivers and the
    releases' lists of architectures."""

    title: str
    requirements: tuple[str, ...]
    """What replaces the releases in constraints.txt; empty for these releases."""
    driver: int
    """The oldest driver that runs it."""


CUDA_13 = TorchBuild("torch 2.14 (CUDA 13.0)", (), 580)
CUDA_12 = TorchBuild("torch 2.10 (CUDA 12.8)", ("torch<2.11",), 525)
LOWEST_SM = {"x86_64": {CUDA_13: 75, CUDA_12: 70}, "aarch64": {CUDA_13: 80}}
"""The lowest compute capability of each build; torch 2.10 for aarch64 has no CUDA."""


def choose_torch(target: Target) -> tuple[TorchBuild, str]:
    """Returns the newest build of torch that the target runs, and why it is not the newest of all.

    Raises: BundleError if no build runs there.
    """
    if target.is_cpu:
        return CUDA_13 if target.arch == "x86_64" else CUDA_12, ""
    builds = LOWEST_SM[target.arch]
    lowest, driver = min(builds.values()), min(build.driver for build in builds)
    for_cpu = f"{typed_command()} --cpu   # trains without a GPU; or ask the site for a newer"
    if target.sm is not None and target.sm < lowest:
        raise BundleError(
            f"these torch builds have no code for sm_{target.sm} (sm_{lowest} is the lowest)",
            f"{for_cpu} GPU",
        )
    if target.driver is not None and target.driver < driver:
        raise BundleError(
            f"driver {target.driver} knows no CUDA {'12' if driver == 525 else '13'}"
            f" (torch for {target.arch} needs driver {driver} or newer)",
            f"{for_cpu} driver",
        )
    if CUDA_12 not in builds:
        return CUDA_13, "" if target.driver else f"driver unknown: it must be {driver} or newer"
    if target.driver is None:
        reason = f"the driver is unknown; it runs from {driver} on (--driver 580 allows newer)"
    elif target.driver < CUDA_13.driver:
        reason = f"driver {target.driver} runs no CUDA 13"
    elif target.sm is not None and target.sm < builds[CUDA_13]:
        reason = f"newer builds have no code for sm_{target.sm}"
    else:
        return CUDA_13, ""
    return CUDA_12, f"{CUDA_12.title}, as {reason}"


def make_target(facts: Mapping[str, str], asked: Mapping[str, str | int | bool | None]) -> Target:
    """Returns the target with the *facts* of a description, replaced by what was *asked* for.

    Raises: BundleError if Python is unknown, or if a value cannot work.
    """
    values = {**facts, **{key: value for key, value in asked.items() if value is not None}}
    python, glibc = str(values.get("python", "")), str(values.get("glibc", "2.28"))
    arch = str(values.get("arch", "x86_64"))
    if not python:
        raise BundleError(
            "the cluster's Python is not known",
            f"{DESCRIBE}   # or: {typed_command()} --python 3.12",
        )
    if python not in PYTHONS:
        raise BundleError(
            f"Python {python}: skinjob and torch run on {PYTHONS[0]} to {PYTHONS[-1]}",
            f"{typed_command()} --python 3.12   # after `module load` of it on the cluster",
        )
    if arch not in ARCHS:
        raise BundleError(f"no torch for the processor {arch}", f"{typed_command()} --arch x86_64")
    if glibc_minor(glibc) < MIN_GLIBC:
        raise BundleError(
            f"cluster has glibc {glibc}; torch >= 2.9 needs 2.{MIN_GLIBC} (RHEL 8 or newer)",
            CONTAINER,
        )
    driver, sm = (int(values[key]) if key in values else None for key in ("driver", "sm"))
    return Target(python, glibc, arch, driver, sm, bool(values.get("is_cpu")))


def glibc_minor(version: str) -> int:
    """Returns 28 for "2.28". Raises: BundleError for another form."""
    if not (match := re.fullmatch(r"2\.(\d{1,3})(\..*)?", version)):
        raise BundleError(
            f"glibc {version!r}: a version such as 2.28 is expected",
            "getconf GNU_LIBC_VERSION   # on the cluster",
        )
    return int(match[1])


def read_description(
    file: Path, *, arch: str | None = None, python: str | None = None
) -> dict[str, str]:
    """Returns what describe.sh wrote of all nodes: python, glibc, arch, driver and sm, if known.

    Of glibc, driver and sm it is the lowest; Python is the newest that every node has. Of nodes
    with several processors, only those with *arch* count; *python* need not be in the file.

    Raises: BundleError if the file is no description, or its nodes do not fit together.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}", DESCRIBE) from None
    nodes: list[dict[str, list[str]]] = []
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "node":
            nodes.append({})
        if nodes:
            nodes[-1].setdefault(key, []).append(value)
    if not nodes or any("arch" not in node for node in nodes):
        raise BundleError(f"{file}: not written by describe.sh", DESCRIBE)
    nodes = [node for node in nodes if arch in (None, node["arch"][0])]
    archs = sorted({node["arch"][0] for node in nodes})
    if len(archs) > 1:
        raise BundleError(
            f"{file}: nodes with {' and '.join(archs)}: each needs its own bundle",
            f"{typed_command()} --arch {archs[0]}",
        )
    facts = {"arch": arch or archs[0]}
    facts |= _lowest("glibc", nodes, r"(2\.\d+).*", glibc_minor)
    facts |= _lowest("driver", nodes, r"(\d+)\..*", int)
    facts |= _lowest("sm", nodes, r"(\d+)\.(\d).*", int, key="gpu")
    return facts | ({"python": python} if python else _python(file, nodes))


def _lowest(
    name: str,
    nodes: list[dict[str, list[str]]],
    pattern: str,
    rank: Callable[[str], int],
    key: str = "",
) -> dict[str, str]:
    """Returns the lowest value of a fact over all nodes, as {name: value}; {} if none is known."""
    lines = [line for node in nodes for line in node.get(key or name, [])]
    matches = [match for line in lines if (match := re.fullmatch(pattern, line))]
    values = ["".join(match.groups()) for match in matches]
    return {name: min(values, key=rank)} if values else {}


def _python(file: Path, nodes: list[dict[str, list[str]]]) -> dict[str, str]:
    """Returns the newest Python that each node runs; if there is none, that of a module."""
    lines = [node["python"] for node in nodes if "python" in node]
    usable = [
        {match[1] for line in each if (match := re.fullmatch(r"(3\.\d+)\.\d+ /\S*", line))}
        for each in lines
    ]
    shared = set.intersection(*usable) & {*PYTHONS} if usable else set()
    modules = " ".join(line for node in nodes for line in node.get("module", []))
    loadable = {match[1] for match in re.finditer(r"\b(3\.\d+)", modules)} & {*PYTHONS}
    if best := shared or loadable:
        return {"python": max(best, key=PYTHONS.index)}
    versions = sorted({line.split()[0] for each in lines for line in each if line.strip()})
    raise BundleError(
        f"{file}: no Python {PYTHONS[0]} to {PYTHONS[-1]} that all nodes run"
        f" (found {', '.join(versions) or 'none'})",
        f"{typed_command()} --with-python FILE.tar.gz   # carries a Python; "
        "or --python 3.12, after `module load` of it on the cluster",
    )
