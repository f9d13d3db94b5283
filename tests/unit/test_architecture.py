"""The shape of the code: which module may import which, and where heavy libraries come in."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import skinjob

PACKAGE = Path(skinjob.__file__).parent

LEVELS = {
    "errors": 0,
    "words": 0,
    "ownership": 1,
    "files": 1,
    "locks": 1,
    "console": 1,
    "config": 1,
    "ranks": 1,
    "download": 2,
    "sweeps": 2,
    "data": 2,
    "weights": 2,
    "train": 3,
    "report": 3,
    "queues": 3,
    "status": 4,
    "submit": 5,
    "doctor": 6,
    "bundle": 6,
    "commands": 7,
    "cli": 8,
    "__main__": 9,
}
"""Imports go from a higher level to a lower one, or stay in a folder or on a level."""

DOORS = {
    "torch": ("train", "doctor/probe_script.py"),
    "torchvision": "train",
    "submitit": ("queues", "submit/start.py"),
    "pandas": "report",
    "matplotlib": "report",
    "scipy": ("report", "train/converged.py"),
    "jinja2": ("report/templates.py",),
    "rich": "console.py",
    "PIL": ("data", "train/decoded.py"),
}
"""The only place that may import a library; a folder stands for all that is in it."""


TERMINAL = {"stdout", "stderr", "__stdout__", "__stderr__"}
CLICK_PRINTS = {"echo", "echo_via_pager", "secho", "confirm", "prompt", "progressbar"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


@cache
def imports(module: Path) -> set[str]:
    """Returns the dotted names that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(dotted: str) -> tuple[str, int] | None:
    """Returns the part of skinjob that a dotted name belongs to, with its level."""
    parts = dotted.split(".")
    if parts[0] != "skinjob" or len(parts) < 2 or parts[1] not in LEVELS:
        return None
    return parts[1], LEVELS[parts[1]]


def own_level(module: Path) -> tuple[str, int]:
    part = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return part, LEVELS.get(part, 0)


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_point_down(module: Path) -> None:
    """A reader who starts at the errors never needs what is above."""
    part, mine = own_level(module)
    assert part in LEVELS or part == "__init__", f"give {part} a level"
    for name in imports(module):
        theirs = level(name)
        assert theirs is None or theirs[0] == part or theirs[1] <= mine, f"{part} imports {name}"


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_has_one_door(library: str) -> None:
    """Whoever wants to replace a library knows where it is."""
    doors = DOORS[library] if isinstance(DOORS[library], tuple) else (DOORS[library],)
    for module in modules():
        place = module.relative_to(PACKAGE).as_posix()
        if any(name.split(".")[0] == library for name in imports(module)):
            assert place.startswith(doors), f"{place} imports {library}"


def writes_to_the_terminal(code: ast.AST) -> list[str]:
    """Returns what in a module prints, or gets hold of the streams other than to ask about them."""
    asked = {
        id(node.value)
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute) and node.attr in ("isatty", "fileno", "flush")
    }
    writes = []
    for node in ast.walk(code):
        if isinstance(node, ast.Name) and node.id in {"print", *CLICK_PRINTS}:
            writes.append(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "click":
            writes += [node.attr] if node.attr in CLICK_PRINTS else []
        elif isinstance(node, ast.Attribute) and node.attr in TERMINAL and id(node) not in asked:
            writes += [node.attr] if ast.unparse(node.value) == "sys" else []
    return writes


def test_the_terminal_has_one_door() -> None:
    """console.py escapes what strangers wrote, so nothing else prints."""
    for module in modules():
        if module.name != "console.py":
            writes = writes_to_the_terminal(tree(module))
            assert not writes, f"{module.relative_to(PACKAGE)} prints by {writes}"
