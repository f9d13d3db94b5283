"""An sshd on loopback, reached as LOGIN_NODE, the name in the lines that skinjob prints."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SFTP_FOLDERS = "/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh"  # Debian's, Red Hat's, SUSE's


@contextmanager
def login_node(home: Path, keys: Path) -> Iterator[Path]:
    """Yields a folder with `ssh`, `scp` and `sftp` for PATH that know the LOGIN_NODE.

    Its users start in *home*. Without sshd, or without root, the test is skipped.
    """
    if not shutil.which("sshd", path="/usr/sbin:" + os.environ["PATH"]):
        pytest.skip("no sshd: apt-get install openssh-server openssh-client")
    if os.geteuid() != 0:
        pytest.skip("starting an sshd needs root")
    keys.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs it to drop its rights
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", keys / name], check=True)
    port = 20000 + os.getpid() % 20000
    (keys / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {keys}/id.pub\nStrictModes no\nPasswordAuthentication no\n"
        f"Subsystem sftp {shutil.which('sftp-server', path=SFTP_FOLDERS)}\n"
        f'ForceCommand cd {home} && eval "$SSH_ORIGINAL_COMMAND"\n'
    )
    (keys / "ssh_config").write_text(
        f"Host LOGIN_NODE\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {keys}/id\n"
        " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
        " BatchMode yes\n ConnectionAttempts 20\n"
    )
    tools = keys / "bin"
    tools.mkdir()
    for name in ("ssh", "scp", "sftp"):
        (tools / name).write_text(
            f'#!/bin/sh\nexec {shutil.which(name)} -F {keys}/ssh_config "$@"\n'
        )
        (tools / name).chmod(0o755)
    with subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", keys / "sshd_config"]) as daemon:
        try:
            yield tools
        finally:
            daemon.terminate()
