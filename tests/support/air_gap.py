"""The whole way across the air gap and back, step by step: for a test, and for benchmarks/way.py.

A laptop makes a bundle and copies it through a real sshd. A real SLURM, in a network namespace
with loopback only, describes itself, installs the bundle, trains and reports. The results go back.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import Slurm
from commands import import_path
from login_node import login_node

CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Way:
    """The two ends of the way; *show* gets each line of shell, its seconds and its output."""

    laptop: Path
    home: Path
    """The home folder on the cluster, which is new: no cache and no settings are in it."""
    slurm: Slurm
    tools: Path
    show: Callable[[str, str, float, str], None]

    def on_laptop(self, line: str) -> str:
        """Runs a line of shell where skinjob's source and the internet are; returns its output."""
        path = f"{self.tools}:{os.environ['PATH']}"
        env = os.environ | import_path() | {"PATH": path}
        return self._run("laptop", line, ["sh", "-c", line], self.laptop, env)

    def on_cluster(self, line: str) -> str:
        """Runs a line of shell on the login node, without a network; returns its output."""
        env = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.base_prefix, 'bin')}:{CLEAN_PATH}",
            "SKINJOB_SUBMIT_ALLOW_NODE_LOCAL": "1",  # the cluster has one node, this machine
            **self.slurm.env,
        }
        words = ["nsenter", f"--net={self.slurm.netns}", "sh", "-c", line]
        return self._run("cluster", line, words, self.home, env)

    def _run(
        self, where: str, line: str, words: list[str], cwd: Path, env: Mapping[str, str]
    ) -> str:
        start = time.monotonic()
        result = subprocess.run(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        output = result.stdout + result.stderr
        self.show(where, line, time.monotonic() - start, output)
        assert result.returncode == 0, f"{where}: {line}\n{output}"
        return result.stdout

    def attempts(self) -> int:
        """Returns how many packets without a route, and how many datagrams, the cluster tried.

        A connect to another machine has no route here. A look-up is a datagram, whether its server
        is another machine or this one. SLURM itself uses TCP on loopback, and munge no network.
        """
        lines = self.slurm.run(["cat", "/proc/net/snmp", "/proc/net/snmp6"], check=True).stdout
        rows = [line.split() for line in lines.splitlines()]
        number = 0
        for head, values in itertools.pairwise(rows):
            if head[0] == values[0]:  # /proc/net/snmp: a line of names, a line of numbers
                pairs = zip(head, values, strict=True)
                number += sum(int(v) for k, v in pairs if k in ("OutNoRoutes", "OutDatagrams"))
        names = ("Ip6OutNoRoutes", "Udp6OutDatagrams")
        return number + sum(int(row[1]) for row in rows if row[0] in names)


@contextmanager
def air_gap(
    folder: Path, slurm: Slurm, show: Callable[[str, str, float, str], None]
) -> Iterator[Way]:
    """Yields both ends, in new folders; the login node is a real sshd."""
    laptop, home = folder / "laptop", folder / "home"
    laptop.mkdir()
    home.mkdir()
    with login_node(home, folder / "ssh") as tools:
        (tools / "skinjob").write_text(f'#!/bin/sh\nexec {sys.executable} -m skinjob "$@"\n')
        (tools / "skinjob").chmod(0o755)
        yield Way(laptop, home, slurm, tools, show)


def describe(way: Way) -> None:
    """Brings cluster.txt to the laptop: what describe.sh writes of the cluster."""
    way.on_laptop("skinjob bundle --print-describe > describe.sh && scp describe.sh LOGIN_NODE:")
    way.on_cluster("sh describe.sh > cluster.txt && srun --gpus=1 sh describe.sh >> cluster.txt")
    way.on_laptop("scp LOGIN_NODE:cluster.txt .")


def carry(way: Way) -> None:
    """Copies the bundle with rsync, which is called twice, and with scp; all three are compared."""
    copy = "rsync -rt --partial --stats skinjob-bundle LOGIN_NODE:"
    way.on_laptop(copy)
    again = way.on_laptop(copy)
    assert "Number of regular files transferred: 0\n" in again, again
    way.on_laptop("scp -rq skinjob-bundle LOGIN_NODE:by-scp")
    way.on_cluster("diff -r skinjob-bundle by-scp && rm -r by-scp")


def carry_images(way: Way) -> None:
    """Copies the images of the laptop's folder skin_cancer in one file, images.zip."""
    way.on_laptop("skinjob pack-images skin_cancer")
    way.on_laptop("rsync -t --partial images.zip LOGIN_NODE:")


def install(way: Way) -> str:
    """Installs the bundle into an empty prefix; returns what install.sh prints."""
    return way.on_cluster("sh skinjob-bundle/install.sh --prefix site")


def train(way: Way, words: str) -> None:
    """Submits a sweep to SLURM with submit's options *words*, waits for it, and reports on it.

    The report is made in a folder that has nothing to do with the sweep, as on the laptop: its
    commands have paths relative to that folder.
    """
    enter = "cd site && . current/bin/activate"
    way.on_cluster(f"{enter} && skinjob submit --name sweep --cluster slurm {words}")
    way.on_cluster('while [ "$(squeue --noheader)" ]; do sleep 0.3; done')
    way.on_cluster(f"{enter} && skinjob status sweep")
    way.on_cluster(f"{enter} && cd /usr && skinjob report ~/site/runs/sweep")


def bring_back(way: Way) -> None:
    """Packs the sweep, checks the pack on the laptop, and makes the report again from it."""
    way.on_cluster("cd site && . current/bin/activate && skinjob pack sweep")
    way.on_laptop("rsync -t --partial LOGIN_NODE:site/sweep.tar .")
    way.on_laptop("mkdir bag && tar xf sweep.tar -C bag")
    way.on_laptop("cd bag/sweep && sha256sum --check --quiet manifest-sha256.txt")
    way.on_laptop("skinjob verify sweep.tar && skinjob report sweep.tar")


def differences(way: Way) -> list[str]:
    """Returns the files of the two reports that differ, or that only one of them has."""
    contents = [
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (way.home / "site/runs/sweep/report", way.laptop / "sweep-report")
    ]
    names = set(contents[0]) | set(contents[1])
    assert "index.html" in names
    return sorted(name for name in names if contents[0].get(name) != contents[1].get(name))


def control(way: Way) -> int:
    """Returns how many attempts are counted when something does try the network."""
    before = way.attempts()
    look_up = "import socket; socket.getaddrinfo('pypi.org', 443)"
    connect = "import socket; socket.create_connection(('192.0.2.1', 443), 2)"  # RFC 5737
    for code in (look_up, connect):
        way.on_cluster(f"! python3 -c {shlex.quote(code)} 2>/dev/null")
    return way.attempts() - before
