"""Where weights come from, and the digest they are held to before anything reads them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from skinjob.errors import WeightsError

# torchvision's ResNet18_Weights.IMAGENET1K_V1
PUBLISHED_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
PUBLISHED_SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
PUBLISHED_BYTES = 46_830_571

_HEX_IN_NAME = re.compile(r"(?<![0-9a-zA-Z])([0-9a-f]{8})(?![0-9a-zA-Z])")


@dataclass(frozen=True)
class Source:
    """A .pth file somewhere: a URL or a path, and how its SHA-256 must begin (8 or 64 digits)."""

    location: str
    digest: str
    command: str  # fetches this source again; what errors offer

    @property
    def is_url(self) -> bool:
        return "://" in self.location

    @property
    def name(self) -> str:
        """The file's name, without the folders or server that hold it."""
        return _name(self.location)

    @property
    def published(self) -> bool:
        return self.digest == PUBLISHED_SHA256

    @property
    def size_bytes(self) -> int | None:
        return PUBLISHED_BYTES if self.published else None

    @property
    def public(self) -> str:
        """What may be written into a file that travels: no password, token or home folder.

        The published file is called by its first address whichever road it came by, so that
        the same weights give the same bytes, and so the same digest, everywhere.
        """
        if self.published:
            return PUBLISHED_URL
        if not self.is_url:
            return self.name
        address = urlsplit(self.location)
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"


def find_source(location: str | None, sha256: str | None, command: str) -> Source:
    """Returns the source that *location* names; None is torchvision's published file.

    Raises:
        WeightsError: the address is neither http(s) nor a file, or no digest is known for it,
            or the digests that are known contradict each other.
    """
    location = location or PUBLISHED_URL
    if "://" in location and urlsplit(location).scheme not in ("http", "https"):
        raise WeightsError(
            f"--source {location}: neither an http(s) address nor a file",
            "skinjob fetch-weights --source FILE",
        )
    given = _full_digest(sha256) if sha256 else ""
    named = _digest_in_name(_name(location))
    if given and not given.startswith(named):
        raise WeightsError(
            f"--sha256 {given[:8]}...: the source's name promises {named[:8]} ({location})",
            "cp FILE weights.pth, and name that as --source, if the name is no digest",
        )
    if not given and not named:
        raise WeightsError(
            f"--source {location}: its name carries no 8 hex digits of its SHA-256 to hold it to",
            f"skinjob fetch-weights --source {shlex.quote(location)} --sha256 DIGEST"
            "   # 64 hex digits, from whoever published it",
        )
    return Source(location, given or named, command)


def _name(location: str) -> str:
    if "://" in location:
        return Path(unquote(urlsplit(location).path)).name
    return Path(location).name


def _digest_in_name(name: str) -> str:
    found = _HEX_IN_NAME.findall(name)
    digits = str(found[-1]) if found else ""
    # 8 digits catch accidents, not an attacker: of the published file all 64 are known
    return PUBLISHED_SHA256 if digits and PUBLISHED_SHA256.startswith(digits) else digits


def _full_digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise WeightsError(
            f"--sha256 {text}: {len(text)} characters, a SHA-256 has 64 hex digits",
            "sha256sum FILE   # prints one, on a machine where the file is known to be good",
        )
    return text.lower()
