"""Fetches published weights: from where, held to which digest, and made into a weights file.

While a fetch runs, the folder also has `.<backbone>-<8 digits>.pth.part`, which a broken fetch
resumes and a complete one removes.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from skinjob.console import own_command
from skinjob.download import Download, download, find_mismatch
from skinjob.errors import WeightsError
from skinjob.files import sha256_file
from skinjob.weights.backbones import BACKBONES, DEFAULT, Backbone
from skinjob.weights.file import (
    WeightsInfo,
    find_weights,
    read_weights_info,
    require_no_safetensors,
    require_no_stand_in,
    weights_lock,
    write_weights,
)
from skinjob.weights.statedict import read_state_dict

UNKNOWN_LICENCE = "not known: this is not the file that torchvision publishes; ask who made it"

_HEX_IN_NAME = re.compile(r"(?<![0-9a-zA-Z])([0-9a-f]{8})(?![0-9a-zA-Z])")


@dataclass(frozen=True)
class Source:
    """A .pth file somewhere: a URL or a path, and how its SHA-256 must begin (8 or 64 digits)."""

    location: str
    sha256: str
    backbone: Backbone

    @property
    def is_url(self) -> bool:
        return "://" in self.location

    @property
    def is_published(self) -> bool:
        return self.sha256 == self.backbone.sha256

    @property
    def size_bytes(self) -> int | None:
        return self.backbone.size_bytes if self.is_published else None

    @property
    def public(self) -> str:
        """What may be written into a file that travels: no password, token or home folder.

        The published file is called by its first address wherever it came from, so that the same
        weights give the same bytes, and so the same digest, everywhere.
        """
        if self.is_published:
            return self.backbone.url
        if not self.is_url:
            return Path(self.location).name
        address = urlsplit(self.location)
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"


def fetch_weights(
    out: Path, location: str | None = None, sha256: str | None = None
) -> tuple[WeightsInfo, bool]:
    """Makes a weights file in *out* from a published .pth; returns it and whether it was there.

    *location* is an http(s) address or a file (only read), None for torchvision's own; it is held
    to *sha256* (64 hex digits) and to the 8 digits that its name carries. Writes SHA256SUMS.
    Until all is checked, what was there before stays.

    Raises:
        WeightsError: the source is none, cannot be read, or holds something else.
        DownloadError: the source cannot be downloaded.
    """
    source = find_source(location, sha256)
    target = out / source.backbone.file_name
    if info := _find_made(target, source):
        return info, True
    with weights_lock(out):
        if info := _find_made(target, source):  # made by the process that held the lock
            return info, True
        for abandoned in out.glob(f".{target.name}.*.part"):  # by a writer that was killed
            abandoned.unlink()
        _make(target, source)
        return read_weights_info(target), False


def _make(target: Path, source: Source) -> None:
    """Writes *target* from the source, once its digest and every tensor have been checked."""
    pth = _download(source, target.parent) if source.is_url else _check_file(source)
    licence = source.backbone.licence if source.is_published else UNKNOWN_LICENCE
    origin = {"source": source.public, "source_sha256": sha256_file(pth), "licence": licence}
    try:
        write_weights(target, read_state_dict(pth), source.backbone, kind="fetched", **origin)
    except WeightsError:  # this is what was asked for, and no use
        if source.is_url:
            pth.unlink()
        raise
    if source.is_url:
        pth.unlink()


def find_source(location: str | None, sha256: str | None) -> Source:
    """Returns the source that *location* names; None is torchvision's published file.

    Raises:
        WeightsError: the address is neither http(s) nor a file, or no digest is known for it,
            or the digests that are known contradict each other.
    """
    location = location or DEFAULT.url
    address = urlsplit(location) if "://" in location else None
    if address and address.scheme not in ("http", "https"):
        raise WeightsError(
            f"--source {location}: neither an http(s) address nor a file",
            "skinjob fetch-weights --source FILE",
        )
    if not address:
        require_no_stand_in(Path(location))
        require_no_safetensors(Path(location))
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise WeightsError(
            f"--sha256 {sha256}: {len(sha256)} characters, a SHA-256 has 64 hex digits",
            "sha256sum FILE   # prints one, on a machine where the file is known to be good",
        )
    name = Path(unquote(address.path) if address else location).name
    given, named = (sha256 or "").lower(), (_HEX_IN_NAME.findall(name) or [""])[-1]
    if given and not given.startswith(named):
        raise WeightsError(
            f"--sha256 {given[:8]}...: the source's name promises {named} ({location})",
            "cp FILE weights.pth, and name that as --source, if the name is no digest",
        )
    if not given and not named:
        raise WeightsError(
            f"--source {location}: its name carries no 8 hex digits of its SHA-256 to hold it to",
            f"skinjob fetch-weights --source {shlex.quote(location)} --sha256 DIGEST"
            "   # 64 hex digits, from the page that publishes it",
        )
    for backbone in BACKBONES.values():
        # 8 digits catch accidents, not an attacker: of the published file all 64 are known
        if backbone.sha256.startswith(given or named):
            return Source(location, backbone.sha256, backbone)
    likely = [backbone for backbone in BACKBONES.values() if name.startswith(backbone.name)]
    return Source(location, given or named, likely[0] if likely else DEFAULT)


def _find_made(target: Path, source: Source) -> WeightsInfo | None:
    """Returns what *target* says of itself if it is sound and was made from *source*."""
    info = find_weights(target, "fetched")
    return info if info and info.listed and info.source_sha256.startswith(source.sha256) else None


def _download(source: Source, out: Path) -> Path:
    """Returns the downloaded file, its digest checked."""
    path = out / f".{source.backbone.name}-{source.sha256[:8]}.pth.part"
    again = own_command()
    elsewhere = "skinjob fetch-weights --source FILE   # that a browser downloaded, or another URL"
    download(Download(source.location, path, source.sha256, again, elsewhere, source.size_bytes))
    return path


def _check_file(source: Source) -> Path:
    path = Path(source.location)
    try:
        problem = find_mismatch(path, source.sha256, source.size_bytes)
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise WeightsError(f"--source {path}: {problem}", "skinjob fetch-weights   # downloads it")
    return path
