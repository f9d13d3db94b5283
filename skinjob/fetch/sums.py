"""SHA256SUMS beside the weights: what `sha256sum -c` reads where there is no Python."""

from __future__ import annotations

import re
from pathlib import Path

from skinjob.files import write_text

SUMS_NAME = "SHA256SUMS"


def promised_digest(path: Path) -> str | None:
    """Returns the digest that SHA256SUMS beside *path* promises for it, None when it has none."""
    for line in _lines(path.parent):
        if (found := _entry(line)) and found[1] == path.name:
            return found[0]
    return None


def promise_digest(path: Path, digest: str) -> None:
    """Writes the line of *path* into SHA256SUMS beside it; lines of other files stay."""
    others = [
        line
        for line in _lines(path.parent)
        if not ((found := _entry(line)) and found[1] == path.name)
    ]
    text = "".join(f"{line}\n" for line in [*others, f"{digest}  {path.name}"])
    write_text(path.parent / SUMS_NAME, text)


def _lines(folder: Path) -> list[str]:
    try:
        return (folder / SUMS_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _entry(line: str) -> tuple[str, str] | None:
    """Returns (digest, file name) of a line that sha256sum could check, else None."""
    found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
    return (found[1].lower(), found[2]) if found else None
