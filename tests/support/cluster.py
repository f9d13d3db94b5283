"""A real SLURM on this machine, behind an air gap: what the `slurm` fixture hands to a test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import SKINJOB, import_path

SCRIPTS = Path(__file__).parent / "slurm"
MISSING = 3  # exit status of up.sh when this machine cannot run SLURM


class SlurmMissingError(Exception):
    """This machine cannot run SLURM; the message says what it lacks."""


@dataclass(frozen=True)
class Slurm:
    """A running cluster: one node, three partitions (lab, short, closed). `start` starts it.

    The daemons and every job live in a network namespace with loopback only, and so do commands
    that are run with `run`. Ports belong to the namespace: clusters side by side do not collide.
    """

    state: Path  # configuration, logs, spool
    env: Mapping[str, str]  # what a client needs besides PATH and the like: SLURM_CONF
    netns: Path  # for nsenter --net=

    @classmethod
    def start(
        cls,
        state: Path,
        *,
        accounting: str = "none",
        gpus: int = 4,
        gpu_type: str = "",
        cpus: int = 8,
    ) -> Slurm:
        """Starts a cluster, with all its files in *state*; returns when its node is idle.

        *accounting* is "none" (sacct fails) or "dbd" (sacct works, some seconds behind).

        Raises: SlurmMissingError when this machine lacks packages or rights.
        """
        options = [f"--accounting={accounting}", f"--gpus={gpus}", f"--cpus={cpus}"]
        options += [f"--gpu-type={gpu_type}"] if gpu_type else []
        words = [word for option in options for word in option.split("=")]
        try:
            subprocess.run(
                [SCRIPTS / "up.sh", state, *words],
                check=True,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        except BaseException as error:  # Ctrl-C as well: some daemons may run already
            _stop(state)
            if not isinstance(error, subprocess.CalledProcessError):
                raise
            reason = error.stderr.strip().removeprefix("slurm: ")
            if error.returncode == MISSING:
                raise SlurmMissingError(reason.splitlines()[-1].removeprefix("slurm: ")) from None
            raise RuntimeError(f"SLURM does not start: {reason}") from None
        name = (state / "pid" / "netns").read_text().strip()
        env = {"SLURM_CONF": str(state.resolve() / "conf" / "slurm.conf")}
        return cls(state=state, env=env, netns=Path("/run/netns") / name)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as on the login node; returns its exit code and output.

        *env* is added to the environment of the tests without their SLURM variables: the tests
        may run in a job. Their folders are below /tmp, which the only node of the cluster shares.
        """
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))
        }
        return subprocess.run(
            ["nsenter", f"--net={self.netns}", *argv],
            cwd=cwd,
            env={**environment, **self.env, "SKINJOB_SUBMIT_ALLOW_NODE_LOCAL": "1", **(env or {})},
            check=check,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def skinjob(
        self,
        *arguments: str | Path,
        cwd: Path,
        code: int | None = None,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `skinjob` as on the login node; checks its exit code if given."""
        result = self.run([*SKINJOB, *arguments], cwd=cwd, env=import_path() | env)
        assert code in (None, result.returncode), result.stdout + result.stderr
        return result

    def path_without(self, *commands: str) -> str:
        """Returns a PATH with all commands except these."""
        tools = self.state / f"without-{'-'.join(commands)}"
        if not tools.exists():
            tools.mkdir()
            for folder in reversed([Path(word) for word in os.environ["PATH"].split(":")]):
                for tool in folder.glob("*") if folder.is_dir() else ():
                    (tools / tool.name).unlink(missing_ok=True)
                    (tools / tool.name).symlink_to(tool)
            for command in commands:
                (tools / command).unlink(missing_ok=True)
        return str(tools)

    def sbatch(self, command: str, *options: str, cwd: Path) -> str:
        """Queues a shell command, which logs to job-ID.out in *cwd*; returns the job id."""
        argv = ["sbatch", "--parsable", "--output=job-%j.out", *options, f"--wrap={command}"]
        return self.run(argv, cwd=cwd, check=True).stdout.strip()

    def wait(self, job_id: str, *, timeout_s: float = 60) -> None:
        """Waits until a job, or every task of an array, has left the queue.

        Raises: TimeoutError with the jobs that are still in the queue.
        """
        end = time.monotonic() + timeout_s
        while queue := self.run(["squeue", "-h", "-j", job_id], check=True).stdout:
            if time.monotonic() > end:
                raise TimeoutError(f"job {job_id} is still in the queue:\n{queue}")
            time.sleep(0.2)

    def stop_controller(self) -> None:
        """Stops slurmctld and waits until it has ended; its queue stays on disk."""
        pid = int((self.state / "pid/slurmctld").read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > end:
                raise TimeoutError(f"slurmctld, process {pid}, does not end")
            time.sleep(0.05)

    def restart(self) -> None:
        """Starts the killed daemons again and makes the node available."""
        subprocess.run([SCRIPTS / "up.sh", self.state], check=True, capture_output=True)

    def stop(self) -> None:
        """Cancels what is queued and stops the daemons; *state* and its logs stay."""
        _stop(self.state)


@contextlib.contextmanager
def running_slurm(
    state: Path, *, accounting: str, gpu_type: str = "", conf: str = ""
) -> Iterator[Slurm]:
    """Yields a cluster and stops it afterwards; *conf* is added to its slurm.conf.

    Without SLURM the test is skipped. With SKINJOB_REQUIRE_SLURM=1 it fails, so that a machine
    which should run these tests cannot pass by skipping them.
    """
    with contextlib.ExitStack() as undo:
        # A time limit's SIGTERM would end Python at once and leave the daemons running.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        undo.callback(signal.signal, signal.SIGTERM, before)
        state.mkdir(parents=True, exist_ok=True)
        (state / "site.conf").write_text(conf)
        try:
            cluster = Slurm.start(state, accounting=accounting, gpu_type=gpu_type)
        except SlurmMissingError as missing:
            if os.environ.get("SKINJOB_REQUIRE_SLURM") == "1":
                pytest.fail(str(missing), pytrace=False)
            pytest.skip(str(missing))
        undo.callback(cluster.stop)
        yield cluster


def _stop(state: Path) -> None:
    # A second Ctrl-C ends the tests, and down.sh must still finish. subprocess.run would kill it;
    # in its own session it gets no Ctrl-C.
    down = subprocess.Popen(
        [SCRIPTS / "down.sh", state], stdin=subprocess.DEVNULL, start_new_session=True
    )
    if down.wait() != 0:
        raise RuntimeError(f"{state}: SLURM does not stop; see its log folder")
