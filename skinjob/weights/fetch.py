"""Fetches published weights, checks their digest, and writes a weights file.

During a fetch the folder also has `.<backbone>-<8 digits>.pth.part`. A broken fetch leaves it, and
the next fetch resumes it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from skinjob.console import typed_command
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
    """A .pth file: its URL or path, and the first digits of its SHA-256 (8 or 64)."""

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
        """The source without passwords, tokens and home folders, for the weights file.

        For the published file it is always torchvision's URL. So the weights file has the same
        digest everywhere, whichever copy was fetched.
        """
        if self.is_published:
            return self.backbone.url
        if not self.is_url:
            return Path(self.location).name
        address = urlsplit(self.location)
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"


def fetch_weights(
    out: Path,
    location: str | None = None,
    sha256: str | None = None,
    arch: str | None = None,
) -> tuple[WeightsInfo, bool]:
    """Writes a weights file to *out*; returns it, and whether it existed before.

    *location* is an http(s) URL or a path, None for torchvision's own. Its digest must match
    *sha256* (64 hex digits) and the 8 digits in its name. *arch* is the name of the network, None
    if the location says it. Also writes SHA256SUMS. Existing files are replaced only after all
    checks.

    Raises:
        WeightsError: the source is invalid, cannot be read, or has other content.
        DownloadError: the source cannot be downloaded.
    """
    source = find_source(location, sha256, arch)
    target = out / source.backbone.file_name
    if info := _find_made(target, source):
        return info, True
    with weights_lock(out):
        if info := _find_made(target, source):  # another process has made it before the lock
            return info, True
        for abandoned in out.glob(f".{target.name}.*.part"):  # its writer was killed
            abandoned.unlink()
        _make(target, source)
        return read_weights_info(target), False


def _make(target: Path, source: Source) -> None:
    """Checks the digest and every tensor of the source, and writes *target* from it."""
    pth = _download(source, target.parent) if source.is_url else _check_file(source)
    licence = source.backbone.licence if source.is_published else UNKNOWN_LICENCE
    origin = {"source": source.public, "source_sha256": sha256_file(pth), "licence": licence}
    try:
        arrays = {source.backbone.today(n): array for n, array in read_state_dict(pth).items()}
        write_weights(target, arrays, source.backbone, kind="fetched", **origin)
    except WeightsError:  # the digest is right, but the content cannot be used
        if source.is_url:
            pth.unlink()
        raise
    if source.is_url:
        pth.unlink()


def find_source(location: str | None, sha256: str | None, arch: str | None = None) -> Source:
    """Returns the source at *location*; None means torchvision's published file.

    Raises:
        WeightsError: *location* is not an http(s) URL or a file, its digest is not known,
            *sha256* and its name have different digests, or it has other weights than *arch*.
    """
    location = location or BACKBONES[arch or DEFAULT.name].url
    address = urlsplit(location) if "://" in location else None
    if address and address.scheme not in ("http", "https"):
        raise WeightsError(
            f"--source {location}: neither an http(s) URL nor a file",
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
            f"--sha256 begins with {given[:8]}, but the file name says {named} ({location})",
            f"cp FILE weights.pth; skinjob fetch-weights --source weights.pth --sha256 {given}",
        )
    if not given and not named:
        raise WeightsError(
            f"--source {location}: its name has no digest, and there is no --sha256",
            f"skinjob fetch-weights --source {shlex.quote(location)} --sha256 DIGEST"
            "   # 64 hex digits, from the page that publishes it",
        )
    for backbone in BACKBONES.values():
        # 8 digits protect against accidents, not against attackers. The published file has all 64.
        if backbone.sha256.startswith(given or named):
            if arch not in (None, backbone.name):
                raise WeightsError(
                    f"--source {location}: the weights of {backbone.name}, but --arch is {arch}",
                    f"skinjob fetch-weights --arch {arch}   # torchvision's own",
                )
            return Source(location, backbone.sha256, backbone)
    likely = [backbone for backbone in BACKBONES.values() if name.startswith(backbone.name)]
    meant = BACKBONES[arch] if arch else likely[0] if likely else DEFAULT
    return Source(location, given or named, meant)


def _find_made(target: Path, source: Source) -> WeightsInfo | None:
    """Returns the info of *target* if it is valid and was made from *source*."""
    info = find_weights(target, "fetched")
    return info if info and info.listed and info.source_sha256.startswith(source.sha256) else None


def _download(source: Source, out: Path) -> Path:
    """Returns the downloaded file, after checking its digest."""
    path = out / f".{source.backbone.name}-{source.sha256[:8]}.pth.part"
    again = typed_command()
    elsewhere = "skinjob fetch-weights --source FILE   # a file from a browser, or another URL"
    download(Download(source.location, path, source.sha256, again, elsewhere, source.size_bytes))
    return path


def _check_file(source: Source) -> Path:
    path = Path(source.location)
    try:
        problem = find_mismatch(path, source.sha256, source.size_bytes)
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        fix = f"skinjob fetch-weights --arch {source.backbone.name}   # downloads it"
        raise WeightsError(f"--source {path}: {problem}", fix)
    return path
