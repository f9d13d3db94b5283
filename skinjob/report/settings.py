"""Keeps the user's settings of matplotlib out of the pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_matplotlib_settings() -> Iterator[None]:
    """Hides the user's backend and every matplotlibrc from a matplotlib that is imported meanwhile.

    matplotlib reads MPLBACKEND, and the first matplotlibrc of the current folder, MATPLOTLIBRC and
    the home folder. One that is damaged ends the import.
    """
    names = ("MPLBACKEND", "MATPLOTLIBRC")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    # A current folder that was removed, or that may not be listed, can still be returned to.
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir("/")
        os.environ["MATPLOTLIBRC"] = os.devnull
        yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update(before)
        os.fchdir(here)
        os.close(here)
