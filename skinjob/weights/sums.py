"""SHA256SUMS beside the weights: what `sha256sum -c` reads where there is no Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from skinjob.errors import WeightsError
from skinjob.files import replacing

SUMS_NAME = "SHA256SUMS"


def promised_digest(path: Path) -> str | None:
    """Returns the digest that SHA256SUMS beside *path* promises for it, None when it has none.

    Raises: WeightsError when SHA256SUMS is there and cannot be read.
    """
    for line in _lines(path.parent):
        if (found := _entry(line)) and found[1] == path.name:
            return found[0]
    return None


def promise_digest(path: Path, digest: str) -> None:
    """Writes the line of *path* into SHA256SUMS beside it; lines of other files stay."""
    others = [
        line
        for line in _lines(path.parent)
        if line and not ((found := _entry(line)) and found[1] == path.name)
    ]
    text = "".join(f"{line}\n" for line in [*others, f"{digest}  {path.name}"])
    with replacing(path.parent / SUMS_NAME) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def _lines(folder: Path) -> list[str]:
    file = folder / SUMS_NAME
    try:
        # As sha256sum splits them: a name may have what str.splitlines would take for an end.
        return file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WeightsError(
            f"{file}: cannot be read: {error.strerror}", f"ls -l {shlex.quote(str(folder))}"
        ) from error


def _entry(line: str) -> tuple[str, str] | None:
    """Returns (digest, file name) of a line that sha256sum could check, else None."""
    found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
    return (found[1].lower(), found[2]) if found else None
