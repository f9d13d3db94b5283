"""Writes a bundle: a folder with wheels, weights, an installer, and the digest of each file.

    install.sh  BUNDLE.txt  SHA256SUMS  requirements.txt  pylock.toml  wheels/  weights/
    [images/images.zip]  [python/python.tar.gz]

It is a folder and not an archive: wheels are compressed already, a folder is copied and resumed
file by file, and a new version sends only what changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import BinaryIO, cast

from skinjob import __version__
from skinjob.bundle.resolve import Wheel, run_uv
from skinjob.bundle.target import Target, TorchBuild
from skinjob.console import typed_command
from skinjob.download import Download, download, explain_full_disk
from skinjob.errors import BundleError
from skinjob.files import sha256_file, write_text
from skinjob.weights.file import SUMS_NAME, WeightsInfo, list_digest

ABOUT = "BUNDLE.txt"
EXTRAS = ("images", "python")
"""Folders that a bundle may have besides, each with a single file."""


@dataclass(frozen=True)
class Bundle:
    """A written bundle: its folder, and what it takes here and on the cluster."""

    folder: Path
    sha256: str
    """The digest of SHA256SUMS, and so of all files."""
    num_bytes: int
    room_bytes: int
    room_files: int


def script(name: str) -> str:
    """Returns the text of install.sh, describe.sh or join.sh."""
    return (files("skinjob.bundle") / name).read_text(encoding="utf-8")


def write_bundle(
    folder: Path,
    target: Target,
    build: TorchBuild,
    wheels: Sequence[Wheel],
    pylock: str,
    project: Path,
    weights: WeightsInfo,
    extras: Mapping[str, Path] = MappingProxyType({}),
) -> Bundle:
    """Writes a bundle to *folder*, which may hold an earlier one: its wheels are not sent again.

    The weights get the name that `submit` looks for. *extras* are further files by their paths in
    the bundle, in folders of EXTRAS. SHA256SUMS is removed first and written last, so a bundle that
    was broken off does not install.

    Raises: BundleError if the folder holds something else; DownloadError as `download`.
    """
    require_place(folder)
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    (folder / SUMS_NAME).unlink(missing_ok=True)
    (folder / ABOUT).touch()
    names = {wheel.file_name for wheel in wheels}
    for other in (folder / "wheels").iterdir():
        if other.name.removesuffix(".part") not in names:
            other.unlink()
    for wheel in wheels:
        _download(wheel, folder / "wheels")
    own = _build_wheel(project, folder / "wheels")
    list_digest(*_carry(weights.path, folder / "weights" / weights.backbone.file_name))
    for name in {*EXTRAS} - {path.partition("/")[0] for path in extras}:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path, source in extras.items():
        _carry(source, folder / path)
    digests = {f"{wheel.name}=={wheel.version}": wheel.sha256 for wheel in wheels}
    digests[f"skinjob=={__version__}"] = sha256_file(own)
    lines = [f"{name} --hash=sha256:{digests[name]}\n" for name in sorted(digests)]
    write_text(folder / "requirements.txt", "".join(lines))
    write_text(folder / "pylock.toml", pylock)
    write_text(folder / "install.sh", script("install.sh"))
    room_bytes, room_files = _room(folder)
    torch = next((wheel.version for wheel in wheels if wheel.name == "torch"), "none")
    about = {
        "skinjob": __version__,
        "python": target.python,
        "arch": target.arch,
        "glibc": target.glibc,
        "torch": torch,
        "needs_driver": "none" if target.is_cpu or torch == "none" else build.driver,
        "room_kb": room_bytes // 1000,
        "room_files": room_files,
    }
    write_text(folder / ABOUT, "".join(f"{key} {value}\n" for key, value in about.items()))
    paths = bundle_files(folder)
    sums = "".join(f"{sha256_file(folder / path)}  {path}\n" for path in paths)
    write_text(folder / SUMS_NAME, sums)
    num_bytes = sum((folder / path).stat().st_size for path in paths)
    digest = hashlib.sha256(sums.encode()).hexdigest()
    return Bundle(folder, digest, num_bytes, room_bytes, room_files)


def require_place(folder: Path) -> None:
    """Checks that a folder is new, empty or a bundle. Raises: BundleError."""
    try:
        is_other = folder.exists() and any(folder.iterdir()) and not (folder / ABOUT).exists()
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}", "skinjob bundle --out ANOTHER") from None
    if is_other:
        raise BundleError(
            f"{folder}: holds other files and is no bundle", "skinjob bundle --out ANOTHER"
        )


def bundle_files(folder: Path) -> list[str]:
    """Returns the relative paths of a bundle's files, sorted, without SHA256SUMS and hidden ones.

    A Mac leaves hidden files, and so does a copy that was broken off.
    """
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in paths if p != SUMS_NAME and not p.rpartition("/")[2].startswith("."))


def _download(wheel: Wheel, folder: Path) -> None:
    path, again = folder / wheel.file_name, typed_command()
    partial = path.with_name(path.name + ".part")
    if path.exists():
        path.rename(partial)  # if its content is right, nothing is sent
    file = Download(wheel.url, partial, wheel.sha256, again, again, wheel.size_bytes)
    download(file)
    partial.rename(path)


def _build_wheel(project: Path, folder: Path) -> Path:
    """Returns skinjob's wheel, built from its source; equal sources give equal bytes."""
    with TemporaryDirectory() as out:
        run_uv(
            ["build", "--wheel", "--out-dir", out, str(project)],
            f"{project}: its wheel cannot be built",
        )
        (built,) = Path(out).glob("*.whl")
        return Path(shutil.copyfile(built, folder / built.name))


def _carry(file: Path, copy: Path) -> tuple[Path, str]:
    """Copies a file to a folder that then holds nothing else; returns the copy and its SHA-256.

    A copy with the same content stays as it is.
    """
    copy.parent.mkdir(exist_ok=True)
    sha256 = sha256_file(file)
    for old in copy.parent.iterdir():
        if old != copy or sha256_file(old) != sha256:
            old.unlink()
    if not copy.exists():
        with explain_full_disk(copy.parent, file.stat().st_size, typed_command()):
            shutil.copyfile(file, copy)
    return copy, sha256


def _room(folder: Path) -> tuple[int, int]:
    """Returns bytes and files that the installed bundle takes at most, folders included.

    pip compiles each module. A file takes whole blocks of 4 kB, half a block more on average.
    """
    num_bytes, num_files = 0, 0
    for path in folder.rglob("*.whl"):
        with zipfile.ZipFile(path) as content:
            members = content.infolist()
        sources = [member for member in members if member.filename.endswith(".py")]
        folders = {member.filename.rpartition("/")[0] for member in members}
        num_bytes += sum(member.file_size for member in (*members, *sources))
        num_files += len(members) + len(sources) + 2 * len(folders)  # with each __pycache__
    # Weights are there twice if the disk has no hard links.
    num_bytes += 2 * sum(path.stat().st_size for path in (folder / "weights").iterdir())
    for path in folder.glob("python/*"):
        with tarfile.open(path) as tar:
            sizes = [member.size for member in tar]
        num_bytes, num_files = num_bytes + sum(sizes), num_files + len(sizes)
    return int(1.05 * num_bytes) + 2048 * num_files, num_files


# --- parts for sticks and quotas --------------------------------------------------------------


class _Parts:
    """A file in parts of at most *part_bytes*; a block is never divided."""

    def __init__(self, folder: Path, stem: str, part_bytes: int) -> None:
        self.folder, self.stem, self.part_bytes = folder, stem, part_bytes
        self.files: list[BinaryIO] = []

    def write(self, block: bytes) -> int:
        if not self.files or self.files[-1].tell() + len(block) > self.part_bytes:
            self.close()
            part = self.folder / f"{self.stem}.tar.{len(self.files) + 1:05d}"
            self.files.append(part.open("wb"))
        return self.files[-1].write(block)

    def close(self) -> None:
        if self.files:
            self.files[-1].close()


def split_bundle(bundle: Bundle, part_bytes: int) -> Path:
    """Writes a bundle as a tar in parts, and join.sh; returns their folder, beside the bundle's."""
    folder = bundle.folder.with_name(f"{bundle.folder.name}-parts")
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    parts = _Parts(folder, bundle.folder.name, part_bytes)
    with (
        explain_full_disk(folder, bundle.num_bytes, typed_command()),
        contextlib.closing(parts),
        tarfile.open(fileobj=cast(BinaryIO, parts), mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in [*bundle_files(bundle.folder), SUMS_NAME]:
            tar.add(bundle.folder / path, f"{bundle.folder.name}/{path}")
    write_text(folder / "join.sh", script("join.sh"))
    names = sorted(path.name for path in folder.iterdir())
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names)
    write_text(folder / SUMS_NAME, sums)
    return folder
