"""A small job that looks from a compute node, and what it saw: `skinjob doctor --probe`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinjob import __version__
from skinjob.config import LEAST_TIME_MIN, ClusterConfig
from skinjob.console import StatusLine
from skinjob.doctor.finding import AGAIN, Finding, fail, failed, named, ok, skipped, warn
from skinjob.errors import ClusterError, RunError
from skinjob.files import absolute, tail
from skinjob.ownership import require_safe
from skinjob.queues.slurm.client import ask, ask_queue, job_ends
from skinjob.queues.slurm.reasons import family, why_pending
from skinjob.queues.slurm.refusals import refusal
from skinjob.queues.slurm.sbatch import probe_script

SCRIPT = Path(__file__).parent / "probe_script.py"
LOOK_S = 0.5  # between two looks at the folder
ASK_S = (2, 15)  # between two questions to squeue, which answers for a whole site: first and most
ENDS = (signal.SIGTERM, signal.SIGHUP)  # what a shell that closes sends, among others
LATE_S = 10  # that a shared file system may take to show what a node has written
MOST_SKEW_S = 30  # a run counts as silent after some minutes
LINES_TOLD = 5
SHOW = "skinjob submit --dry-run   # with the same options: shows the script of the jobs"


@dataclass(frozen=True)
class Probed:
    """What came of the job."""

    job: str
    found: dict[str, Any] | None
    """What it wrote, None when it wrote nothing."""
    error: str = ""
    """Why it wrote nothing."""
    fix: str = ""
    output: tuple[str, ...] = ()
    """The last lines of its output."""
    clock: float = 0
    """When this machine saw what it wrote, seconds since 1970."""


def probe(runs: Path, cluster: ClusterConfig, paths: Sequence[Path]) -> Iterator[Finding]:
    """Queues the job, waits for it with its state on stderr, and yields what it found.

    *paths* are what a run's job opens: images and weights.

    Its folder in *runs* is private and removed afterwards; Ctrl-C cancels the job, and so does a
    shell that closes.
    """
    token = secrets.token_hex(8)
    try:
        with _ended_as_by_ctrl_c(), _folder(runs, cluster) as folder:
            _write_paths(folder, [runs, *paths])
            probed = _queue_and_wait(folder, token, cluster)
    except (ClusterError, RunError) as error:
        yield named("probe", failed(error))
        return
    if probed.found is None:
        yield named("probe", fail(probed.error, probed.fix, probed.output))
        return
    yield named("probe", ok(f"job {probed.job} ran on {probed.found['node']}"))
    yield from findings(probed.found, cluster, token=token, seen_at=probed.clock)


def findings(
    found: dict[str, Any], cluster: ClusterConfig, *, token: str, seen_at: float
) -> Iterator[Finding]:
    """Yields what follows from what a node *found*; *seen_at* is this machine's clock, seconds."""
    yield named("its Python", _python(found))
    yield named("its GPU", _gpu(found, cluster))
    yield named("its cores", _cores(found, cluster))
    yield named("its folder", _folder_seen(found, token))
    yield named("its paths", _paths_seen(found))
    yield named("its clock", _clock(found["clock"] - seen_at))
    yield named("its network", _network(found["network"]))


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM, and the SIGHUP of a shell that closes, raise KeyboardInterrupt meanwhile."""
    # A signal that is ignored, as under nohup, stays so.
    ends = [one for one in ENDS if signal.getsignal(one) == signal.SIG_DFL]

    def end(number: int, frame: object) -> None:
        for one in ends:  # a second one must not stop the clearing away
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    for one in ends:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in ends:
            signal.signal(one, signal.SIG_DFL)


@contextmanager
def _folder(runs: Path, cluster: ClusterConfig) -> Iterator[Path]:
    """Yields a private folder in the folder of runs, and removes what was made.

    Raises: RunError when it cannot be made, or others could replace it.
    """
    require_safe(runs, cluster.trust)
    is_new = not runs.exists()
    try:
        runs.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=absolute(runs)))  # mode 0700
    except OSError as error:
        raise RunError(
            f"probe's folder in {runs}: {error.strerror}", f"{AGAIN} --runs FOLDER"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new and not any(runs.iterdir()):
            runs.rmdir()


def _queue_and_wait(folder: Path, token: str, cluster: ClusterConfig) -> Probed:
    """Queues the job and returns what came of it; it is cancelled unless it has done its work.

    Raises: ClusterError when sbatch refuses.
    """
    (folder / "token").write_text(token, encoding="utf-8")
    script = Path(shutil.copy(SCRIPT, folder / "probe.py"))
    line, found = StatusLine(), None
    try:
        job = _queue(probe_script(script, cluster, time_min=LEAST_TIME_MIN), cluster)
        probed = _wait(folder, job, line)
        found = probed.found
        return probed
    finally:
        if found is None:
            # By its name: sbatch may have queued it and not lived to say under which number.
            ask("scancel", f"--user={os.geteuid()}", f"--name={folder.name}")
        line.clear()  # last: a terminal that has gone may refuse it


def _queue(script: str, cluster: ClusterConfig) -> str:
    answer = ask("sbatch", "--parsable", script=script, timeout_s=None)
    if answer is None:
        raise ClusterError("there is no sbatch on PATH", "module load slurm")
    if answer.returncode:
        raise refusal(answer.stderr, cluster)
    return answer.stdout.strip().split(";")[0]  # on several clusters the name of one follows


def _wait(folder: Path, job: str, line: StatusLine) -> Probed:
    """Returns what the job wrote, or why it wrote nothing, once one of them is known."""
    started, gone_at, next_at = time.monotonic(), None, 0.0
    pause_s: float = ASK_S[0]
    while True:
        if (written := _written(folder)) is not None:
            return Probed(job, written, clock=time.time())
        now = time.monotonic()
        if gone_at is not None:
            if now - gone_at > LATE_S or _has_failed(job):
                return _nothing_written(folder, job)
        elif now >= next_at:
            next_at, pause_s = now + pause_s, min(pause_s * 1.5, ASK_S[1])
            words, stands = _standing(job)
            if stands == "never":
                return Probed(job, None, f"job {job} does not start by itself: {words}", SHOW)
            gone_at = now if stands == "gone" else None
            line.show(
                f"probe: job {job}, {now - started:.0f} s (Ctrl-C cancels it): {words}", words
            )
        time.sleep(LOOK_S)


def _standing(job: str) -> tuple[str, str]:
    """Returns how a job stands, in words and as one of open, gone and never."""
    queue = ask_queue()
    if isinstance(queue, str):
        why = f" ({queue})" if queue else ""
        return f"SLURM does not answer just now{why}", "open"
    queued = queue.get(job)
    if queued is None:
        return "has left the queue", "gone"
    if queued.state != "PENDING":
        return "at work", "open"
    found = family(queued.reason)
    if found and found.fix:
        return why_pending(queued.reason), "never"
    return f"waiting, {why_pending(queued.reason)}", "open"


def _written(folder: Path) -> dict[str, Any] | None:
    # Listed and not opened: NFS remembers for a while that a name was not there.
    if not any(path.name == "found.json" for path in folder.iterdir()):
        return None
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


def _has_failed(job: str) -> bool:
    """Says whether SLURM knows that the job ended before it had written: that is its last act."""
    end = job_ends({job}).get(job)
    return end is not None and end.state != "COMPLETED"


def _last_words(folder: Path, job: str) -> tuple[str, ...]:
    """Returns the end of the job's output; nothing where it wrote none."""
    return tuple(line for file in folder.glob(f"{job}*.out") for line in tail(file, LINES_TOLD))


def _nothing_written(folder: Path, job: str) -> Probed:
    """Returns what is known of a job that has left the queue and wrote nothing."""
    end = job_ends({job}).get(job)
    how = f": {end.state}, exit code {end.exit_code}, on {end.node or 'no node'}" if end else ""
    error = f"job {job} ended and found nothing{how}"
    if not any(folder.glob(f"{job}*.out")):
        fix = f"{AGAIN} --runs FOLDER   # one that the nodes see and you may write"
        return Probed(job, None, f"{error}; it could not even log to {folder.parent}", fix)
    words = f"{AGAIN} --python WORDS --setup LINE   # Python or a set-up line failed"
    return Probed(job, None, error, words, _last_words(folder, job))


def _python(found: dict[str, Any]) -> Finding:
    python = f"{found['python']} {found['python_version']}"
    modules = found["modules"]
    broken = [f"{name}: {said['error']}" for name, said in modules.items() if "error" in said]
    if broken:
        return fail(
            f"{python} cannot import {', '.join(line.split(':')[0] for line in broken)}",
            f"{AGAIN} --python /path/to/venv/bin/python   # one with skinjob[train]",
            broken,
        )
    versions = ", ".join(f"{name} {said['version']}" for name, said in modules.items())
    if modules["skinjob"]["version"] != __version__:
        return warn(f"{python}: {versions}; here is skinjob {__version__}")
    return ok(f"{python}: {versions}")


def _gpu(found: dict[str, Any], cluster: ClusterConfig) -> Finding:
    """Finds whether torch computes on the GPU that SLURM gave, and if not, why."""
    if not cluster.gpus:
        return skipped("no GPU is asked for")
    gpu, driver = found["gpu"], found["driver_cuda"]
    if gpu["built"] is None:
        return skipped("no torch to see it with")
    if "name" in gpu:
        return ok(
            f"{gpu['name']}, {gpu['memory_bytes'] / 1e9:.0f} GB; its driver knows CUDA "
            f"{driver or '?'}, torch was built for {gpu['built'] or '?'}"
        )
    given = f"SLURM gave GPU {found['gpus_given']}" if found["gpus_given"] else "SLURM gave no GPU"
    if not found["gpus_given"] and cluster.gpu_flag != "none":
        return fail(f"{given}, and one was asked for", f"{AGAIN} --gpu-flag gres   # or gpus")
    if not driver:
        return fail(
            f"{given}, and there is no NVIDIA driver on {found['node']} (no libcuda.so.1)",
            f"srun --gpus=1 --nodelist={found['node']} nvidia-smi   # show it to the "
            "admins; in a container add --nv",
        )
    if not gpu["built"]:
        return fail(
            f"{given}, and this torch was built without CUDA",
            f"pip install torch --index-url https://download.pytorch.org/whl/cu{_digits(driver)}   "
            "# on a machine with internet, for the wheelhouse",
        )
    if _numbers(driver) < _numbers(gpu["built"]):
        return fail(
            f"the driver knows CUDA {driver}, and torch was built for {gpu['built']}",
            f"pip install torch --index-url https://download.pytorch.org/whl/cu{_digits(driver)}   "
            "# or an older one; on a machine with internet, for the wheelhouse",
        )
    return fail(
        f"{given}, and torch cannot use it: {gpu['error'].splitlines()[0]}",
        f"srun --gpus=1 --nodelist={found['node']} nvidia-smi   # show it to the admins",
    )


def _cores(found: dict[str, Any], cluster: ClusterConfig) -> Finding:
    cores = found["cores"]
    if cores < cluster.cpus:
        return warn(f"{cores} to use, and {cluster.cpus} were asked for")
    return ok(f"{cores} to use, {cluster.cpus} asked for")


def _folder_seen(found: dict[str, Any], token: str) -> Finding:
    if found["token"] != token:
        return fail(
            "what was written here is not what the node read",
            f"{AGAIN} --runs /a/folder/that/nodes/see",
        )
    return ok(f"read and written from both sides; {found['free_bytes'] / 1e9:,.0f} GB free there")


def _write_paths(folder: Path, paths: Sequence[Path]) -> None:
    """Writes for the job which paths it is to look at: the very words that a run's job gets."""
    content = json.dumps([str(absolute(path)) for path in paths])
    (folder / "paths.json").write_text(content, encoding="utf-8")


def _paths_seen(found: dict[str, Any]) -> Finding:
    if found["unseen"]:
        return fail(
            f"{found['node']} cannot read {', '.join(found['unseen'])}",
            f"{AGAIN} --data FOLDER --weights FILE   # by paths that nodes know",
        )
    return ok("images, weights and runs are there by the paths of a job")


def _clock(ahead_s: float) -> Finding:
    if abs(ahead_s) <= MOST_SKEW_S:
        return ok(f"within {MOST_SKEW_S} s of this machine's")
    return warn(
        f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's: "
        "times in state.json will look so"
    )


def _network(error: str) -> Finding:
    return ok(
        f"no way to the internet ({error}): nothing here needs one"
        if error
        else "it reaches the internet: nothing here needs it"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _digits(version: str) -> str:
    """Returns a version as PyTorch's index spells it: 12.4 as 124."""
    return "".join(map(str, _numbers(version)))
