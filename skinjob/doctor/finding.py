"""A line of the checklist of `skinjob doctor`: the result of a check."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from skinjob.errors import SkinjobError

AGAIN = "skinjob doctor"
"""The beginning of a fix that changes an option. When it is shown, it gets the typed options."""


@dataclass(frozen=True)
class Finding:
    """The result of a check, with a command that fixes a failure."""

    verdict: Literal["ok", "warn", "fail", "skipped"]  # after a warning, jobs can still run
    text: str
    fix: str | None = None
    details: tuple[str, ...] = ()  # lines that do not fit into the text
    name: str = ""  # of the check

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": self.verdict,
            "found": self.text,
            "fix": self.fix,
            "details": self.details,
        }


def ok(text: str) -> Finding:
    return Finding("ok", text)


def warn(text: str, *, details: Sequence[str] = ()) -> Finding:
    return Finding("warn", text, None, tuple(details))


def fail(text: str, fix: str, details: Sequence[str] = ()) -> Finding:
    return Finding("fail", text, fix, tuple(details))


def skipped(text: str) -> Finding:
    return Finding("skipped", text)


def failed(error: SkinjobError) -> Finding:
    """Returns an error as a failed check. The doctor takes the same options as submit."""
    fix = re.sub("skinjob submit (?=--(?!dry-run|help))", f"{AGAIN} ", error.fix)
    return fail(error.message, fix, error.details)


def check(name: str, look: Callable[[], Finding]) -> Finding:
    """Returns the result of a check; an error that it raises is a failure with its fix."""
    try:
        finding = look()
    except SkinjobError as error:
        finding = failed(error)
    return replace(finding, name=name)


def skip(names: Iterable[str], reason: str) -> Iterator[Finding]:
    """Yields a finding for each check that cannot be done."""
    for name in names:
        yield replace(skipped(reason), name=name)
