"""What one check of `skinjob doctor` found."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from skinjob.errors import SkinjobError

AGAIN = "the same command with"
"""How a fix begins that is another option: those that were given have to stay."""
VERDICTS = ("ok", "warn", "fail", "skipped")


@dataclass(frozen=True)
class Finding:
    """A line of the checklist, with a command that mends it where it failed."""

    name: str
    """What was looked at."""
    verdict: str
    """One of VERDICTS; after a warning jobs work all the same."""
    found: str
    fix: str | None = None
    details: tuple[str, ...] = ()
    """Lines for what has more parts than fit a sentence."""


def ok(found: str) -> Finding:
    return Finding("", "ok", found)


def warn(found: str, fix: str | None = None, details: Sequence[str] = ()) -> Finding:
    return Finding("", "warn", found, fix, tuple(details))


def fail(found: str, fix: str, details: Sequence[str] = ()) -> Finding:
    return Finding("", "fail", found, fix, tuple(details))


def skipped(found: str) -> Finding:
    return Finding("", "skipped", found)


def named(name: str, found: Finding) -> Finding:
    return replace(found, name=name)


def failed(fault: SkinjobError) -> Finding:
    """Returns a fault as a line of the checklist.

    What submit would be called with instead, doctor takes too.
    """
    fix = re.sub(r"skinjob submit (?=--(?!dry-run|help))", f"{AGAIN} ", fault.fix)
    return fail(fault.message, fix, fault.details)


def tried(look: Callable[[], Finding]) -> Finding:
    """Returns what a look found, or the fault that stopped it."""
    try:
        return look()
    except SkinjobError as error:
        return failed(error)
