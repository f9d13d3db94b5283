"""The HTML templates beside this module, filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from skinjob.console import printable


def filled(template: str, **values: Any) -> str:
    """Returns the HTML of a template. Values are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(values)


def _printable(value: Any) -> Any:
    """Returns a value of the page, with unprintable characters escaped.

    The result of a macro of the template is HTML already.
    """
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value, keeps="\n") if is_text else value
