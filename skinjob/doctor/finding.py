"""A line of the checklist of `skinjob doctor`: what one check says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from skinjob.errors import SkinjobError

AGAIN = "the same command with"
"""How a fix begins that is another option: those that were given have to stay."""


@dataclass(frozen=True)
class Finding:
    """What one check says, with a command that mends it where it failed."""

    verdict: Literal["ok", "warn", "fail", "skipped"]
    """After a warning jobs work all the same."""
    text: str
    fix: str | None = None
    details: tuple[str, ...] = ()
    """Lines for what has more parts than fit a sentence."""
    name: str = ""
    """What was looked at."""

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
    """Returns an error as a line of the checklist.

    What submit would be called with instead, doctor takes too.
    """
    fix = re.sub(r"skinjob submit (?=--(?!dry-run|help))", f"{AGAIN} ", error.fix)
    return fail(error.message, fix, error.details)


def check(name: str, look: Callable[[], Finding]) -> Finding:
    """Returns what a check says; an error that it raises is a failure with its fix."""
    try:
        finding = look()
    except SkinjobError as error:
        finding = failed(error)
    return replace(finding, name=name)


def skip(names: Iterable[str], why: str) -> Iterator[Finding]:
    """Yields a line for each check that cannot be done."""
    for name in names:
        yield replace(skipped(why), name=name)
