"""A real Chromium without a window, for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

INSTALL = "apt-get install chromium && pip install 'skinjob[test]'"


def chromium() -> str | None:
    """Returns the path of the browser; None without it."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def browsing() -> Iterator[Any]:
    """Yields a browser of Playwright; skips the test where it cannot start.

    With SKINJOB_REQUIRE_BROWSER the test fails instead.
    """
    path, is_needed = chromium(), os.environ.get("SKINJOB_REQUIRE_BROWSER")
    has_playwright = find_spec("playwright") and find_spec("axe_playwright_python")
    if not is_needed and not (path and has_playwright):
        pytest.skip(f"no chromium, or no playwright: {INSTALL}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A sandbox needs another user than root.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def axe_script() -> str:
    """Returns the source of axe-core, which finds faults that keep people from reading a page."""
    import axe_playwright_python

    folder = Path(axe_playwright_python.__file__).parent
    return (folder / "axe.min.js").read_text(encoding="utf-8")
