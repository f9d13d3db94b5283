"""A real terminal for a command: tmux shows its screen, a pseudo-terminal shows every byte."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest
from commands import import_path, wait_until

TMUX = shutil.which("tmux") or ""


@dataclass(frozen=True)
class Terminal:
    """A terminal in which a command runs or has ended."""

    socket: Path

    def tmux(self, *words: str) -> str:
        command = [TMUX, "-S", str(self.socket), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def screen(self) -> str:
        """Returns the screen as text, without colours."""
        return self.tmux("capture-pane", "-p").rstrip("\n") + "\n"

    def coloured(self) -> str:
        """Returns the screen as text, with the codes for colours."""
        return self.tmux("capture-pane", "-p", "-e")

    def show(self, words: str) -> str:
        """Returns the screen once these words are on it."""
        wait_until(lambda: words in self.screen())
        return self.screen()

    def ask(self, name: str) -> int:
        """Returns a number that tmux knows: cursor_flag (1: visible) or history_size."""
        return int(self.tmux("display-message", "-p", f"#{{{name}}}"))

    def press(self, key: str) -> None:
        self.tmux("send-keys", key)


@contextlib.contextmanager
def terminal(
    *words: str | Path, cwd: Path, columns: int, lines: int = 40, **env: str
) -> Iterator[Terminal]:
    """Yields a terminal in which a command starts; its exit code is the last line, as `exit N`.

    Without tmux the test is skipped; with SKINJOB_REQUIRE_SLURM=1 it fails.
    """
    if not TMUX:
        if os.environ.get("SKINJOB_REQUIRE_SLURM") == "1":
            pytest.fail("no tmux", pytrace=False)
        pytest.skip("no tmux")
    screen = Terminal(cwd / ".tmux")
    size = ("-x", str(columns), "-y", str(lines))
    command = f"{shlex.join(map(str, words))}; echo exit $?; exec /bin/sleep 1000"
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    subprocess.run(
        [TMUX, "-S", screen.socket, "-f", os.devnull, "new-session", "-d", *size, command],
        cwd=cwd,
        env=environment | import_path() | {"TERM": "xterm-256color"} | env,
        check=True,
    )
    try:
        yield screen
    finally:
        subprocess.run([TMUX, "-S", screen.socket, "kill-server"], check=False)


def on_a_pty(*words: str | Path, cwd: Path, columns: int, typed: str = "", **env: str) -> str:
    """Returns every byte that a command writes to its terminal, stdout and stderr together."""
    our_end, their_end = pty.openpty()
    os.write(our_end, typed.encode())
    process = subprocess.Popen(
        [*map(str, words)],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        | import_path()
        | {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
        | env,
        stdin=their_end,
        stdout=their_end,
        stderr=their_end,
    )
    os.close(their_end)
    timer = Timer(60, process.kill)
    timer.start()
    output = b""
    with contextlib.suppress(OSError):  # Linux raises it when no process has the other end open
        while part := os.read(our_end, 1 << 16):
            output += part
    timer.cancel()
    os.close(our_end)
    process.wait()
    return output.decode()
