"""Small bundles, written by skinjob's own code, with pip and a stub in place of skinjob."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from local_server import Site, serving

from skinjob.bundle import write
from skinjob.bundle.resolve import Wheel
from skinjob.bundle.target import CUDA_13, Target
from skinjob.bundle.write import Bundle, write_bundle
from skinjob.weights.backbones import DEFAULT, Backbone
from skinjob.weights.file import WeightsInfo

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
WORKS = "print('ok      the stub works')"
NAMESPACES = ("unshare", "--map-root-user", "--net", "--mount")
BREAKS = "import sys; print('half way'); sys.exit('the stub broke')"


def make_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes]) -> Path:
    """Writes a wheel of Python files; equal arguments give equal bytes."""
    info = f"{name}-{version}.dist-info"
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    kind = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = {**files, f"{info}/METADATA": text.encode(), f"{info}/WHEEL": kind.encode()}
    rows = [f"{path},sha256={_record_digest(data)},{len(data)}\n" for path, data in content.items()]
    content[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
        for member, data in content.items():
            wheel.writestr(zipfile.ZipInfo(member), data)
    return path


def _record_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def pip_wheel(folder: Path) -> Path:
    """Writes a wheel of the pip that this Python has."""
    pip = distribution("pip")
    files = {
        str(file): Path(str(pip.locate_file(file))).read_bytes()
        for file in pip.files or []
        if file.parts[0] == "pip" and "__pycache__" not in file.parts
    }
    return make_wheel(folder, "pip", pip.version, files)


def skinjob_wheel(folder: Path, selftest: str) -> Path:
    """Writes a wheel that answers to the commands that install.sh calls of skinjob."""
    main = "def main():\n    print('the stub')\n\nif __name__ == '__main__':\n    main()\n"
    entry = "[console_scripts]\nskinjob = skinjob.__main__:main\n"
    files = {
        "skinjob/__init__.py": "",
        "skinjob/__main__.py": main,
        "skinjob/bundle/__init__.py": "",
        "skinjob/bundle/selftest.py": selftest,
        "skinjob-0.1.0.dist-info/entry_points.txt": entry,
    }
    content = {name: text.encode() for name, text in files.items()}
    return make_wheel(folder, "skinjob", "0.1.0", content)


@contextmanager
def served(*files: Path, site: Site | None = None) -> Iterator[list[Wheel]]:
    """Yields these wheels as a local server has them."""
    site = site or Site()
    site.files = {f"/{path.name}": path.read_bytes() for path in files}
    with serving(site):
        yield [
            Wheel(
                name=path.name.split("-")[0],
                version=path.name.split("-")[1],
                url=f"{site.base}/{path.name}",
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                size_bytes=path.stat().st_size,
            )
            for path in files
        ]


def stub_bundle(
    out: Path,
    pip: Path,
    *,
    selftest: str = WORKS,
    python: str = PYTHON,
    site: Site | None = None,
    extras: Mapping[str, Path] | None = None,
    backbone: Backbone = DEFAULT,
) -> Bundle:
    """Writes a bundle from wheels that a local server has; *selftest* is the stub's own."""
    folder = out.parent / f"{out.name}-source"
    folder.mkdir(exist_ok=True)
    other = make_wheel(folder, "small", "1.0", {"small.py": b"VALUE = 1\n" * 500})
    path, sha256 = folder / "my weights", hashlib.sha256(b"weights").hexdigest()
    path.write_bytes(b"weights")
    weights = WeightsInfo(path, sha256, 7, backbone, "", "", "untrained", False)
    with served(pip, other, site=site) as wheels, pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_build_wheel", lambda _, into: skinjob_wheel(into, selftest))
        target = Target(python, glibc="2.28", arch=os.uname().machine)
        return write_bundle(out, target, CUDA_13, wheels, "", folder, weights, extras or {})


def hostile(folder: Path) -> dict[str, str]:
    """Returns variables, and makes files, of pip and Python that a site may set."""
    (folder / "pip").mkdir(parents=True, exist_ok=True)
    (folder / "pip/pip.conf").write_text("[global]\nconstraint = /nonexistent\nuser = true\n")
    (folder / "zipfile.py").write_text("raise SystemExit('PYTHONPATH was used')\n")
    return {
        "XDG_CONFIG_DIRS": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "PIP_TARGET": str(folder / "elsewhere"),
        "PIP_CONSTRAINT": "/nonexistent",
        "PYTHONPATH": str(folder),
        "PYTHONHOME": "/nonexistent",
    }


def install(
    bundle: Path, *words: str | Path, before: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs install.sh in namespaces of its own, without a network; *before* is a line of shell.

    The environment is always a hostile one: variables of pip and Python have no part in it.
    """
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make namespaces, in which there is no network")
    script = (
        f'{before}\nsh "$@"; code=$?; cat /proc/net/snmp /proc/net/snmp6 >"$COUNTS"; exit $code'
    )
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [*NAMESPACES, "bash", "-c", script, "sh", bundle / "install.sh", *words],
            env=os.environ
            | hostile(Path(folder))
            | env
            | {"COUNTS": str(bundle.parent / "counts")},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert not Path(folder, "elsewhere").exists()
    return done


def network_attempts(bundle: Path) -> int:
    """Returns how many packets and connects the last `install` tried, also without a route."""
    lines = [line.split() for line in (bundle.parent / "counts").read_text().splitlines()]
    names = {"OutNoRoutes", "OutRequests", "ActiveOpens", "OutDatagrams"}
    number = 0
    for head, values in itertools.pairwise(lines):
        if head[0] == values[0]:  # /proc/net/snmp: a line of names, a line of numbers
            pairs = zip(head, values, strict=True)
            number += sum(int(value) for name, value in pairs if name in names)
    number += sum(int(line[1]) for line in lines if line[0] in {"Ip6OutNoRoutes", "Ip6OutRequests"})
    return number
