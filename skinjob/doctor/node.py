"""The checks of a compute node, from the result of a probe job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from skinjob import __version__
from skinjob.config import ClusterConfig
from skinjob.doctor.finding import AGAIN, Finding, check, fail, ok, skipped, warn
from skinjob.queues.slurm.probe_job import on_node

MAX_SKEW_S = 30  # a run counts as silent after some minutes
WHEELS = "pip install torch --index-url https://download.pytorch.org/whl/cu{}   # {}"


def node_page(
    seen: dict[str, Any], cluster: ClusterConfig, *, token: str, seen_at: float
) -> Iterator[Finding]:
    """Yields the findings about what a node has *seen*; *seen_at* is this machine's clock, s."""
    yield check("its Python", lambda: _check_python(seen))
    yield check("its GPU", lambda: _check_gpu(seen, cluster))
    yield check("its cores", lambda: _check_cores(seen["cores"], cluster.cpus))
    yield check("its folder", lambda: _check_folder(seen, token))
    yield check("its paths", lambda: _check_paths(seen))
    yield check("its clock", lambda: _check_clock(seen["clock"] - seen_at))
    yield check("its network", lambda: _check_network(seen["network"]))


def _check_python(seen: dict[str, Any]) -> Finding:
    """Checks that the jobs' Python can import what a run needs."""
    python, modules = f"{seen['python']} {seen['python_version']}", seen["modules"]
    broken = {name: module["error"] for name, module in modules.items() if "error" in module}
    if broken:
        return fail(
            f"{python} cannot import {', '.join(broken)}",
            f"{AGAIN} --python /path/to/venv/bin/python   # a Python with skinjob[train]",
            [f"{name}: {error}" for name, error in broken.items()],
        )
    versions = ", ".join(f"{name} {module['version']}" for name, module in modules.items())
    if modules["skinjob"]["version"] != __version__:
        return warn(f"{python}: {versions}; this machine has skinjob {__version__}")
    return ok(f"{python}: {versions}")


def _check_gpu(seen: dict[str, Any], cluster: ClusterConfig) -> Finding:
    """Checks that torch computes on the GPU that SLURM gave; if not, says why."""
    gpu, driver, built = seen["gpu"], seen["driver_cuda"], seen["gpu"]["built"]
    if not cluster.gpus:
        return skipped("no GPU is asked for")
    if built is None:
        return skipped("torch is missing")
    if "name" in gpu:
        return ok(
            f"{gpu['name']}, {gpu['memory_bytes'] / 1e9:.0f} GB; its driver supports CUDA "
            f"{driver or '?'}, torch was built for {built or '?'}"
        )
    given = f"SLURM gave GPU {seen['gpus_given']}" if seen["gpus_given"] else "SLURM gave no GPU"
    ask_node = f"{on_node(seen['node'], 'nvidia-smi')}   # show it to the admins"
    elsewhere = "on a machine with internet, for the wheels"
    if not seen["gpus_given"] and cluster.gpu_flag != "none":
        return fail(f"{given}, but the job asked for a GPU", f"{AGAIN} --gpu-flag gres   # or gpus")
    if not driver:
        return fail(
            f"{given}, but there is no NVIDIA driver on {seen['node']} (no libcuda.so.1)",
            f"{ask_node}; in a container add --nv",
        )
    if not built:
        return fail(
            f"{given}, but this torch was built without CUDA",
            WHEELS.format(_digits(driver), elsewhere),
        )
    if _numbers(driver) < _numbers(built):
        return fail(
            f"the driver supports CUDA {driver}, but torch was built for {built}",
            WHEELS.format(_digits(driver), f"or older; {elsewhere}"),
        )
    return fail(f"{given}, but torch cannot use it: {gpu['error'].splitlines()[0]}", ask_node)


def _check_cores(cores: int, asked: int) -> Finding:
    if cores < asked:
        return warn(f"{cores} usable, but {asked} asked for")
    return ok(f"{cores} usable, {asked} asked for")


def _check_folder(seen: dict[str, Any], token: str) -> Finding:
    """Checks that the node read what this machine wrote to the folder of runs."""
    if seen["token"] != token:
        return fail(
            "the node sees another folder at this path",
            f"{AGAIN} --runs /a/folder/that/nodes/see",
        )
    return ok(f"read and written from both sides; {seen['free_bytes'] / 1e9:,.0f} GB free")


def _check_paths(seen: dict[str, Any]) -> Finding:
    """Checks that the node can read what a run's job opens."""
    if seen["unseen"]:
        return fail(
            f"{seen['node']} cannot read {', '.join(seen['unseen'])}",
            f"{AGAIN} --data FOLDER --weights FILE   # paths that the nodes see",
        )
    return ok("the node can read images, weights and runs")


def _check_clock(ahead_s: float) -> Finding:
    if abs(ahead_s) <= MAX_SKEW_S:
        return ok(f"within {MAX_SKEW_S} s of this machine's clock")
    return warn(
        f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's "
        "clock: times in state.json will be off"
    )


def _check_network(error: str) -> Finding:
    if error:
        return ok(f"no internet ({error}); skinjob does not need it")
    return ok("reaches the internet; skinjob does not need it")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _digits(version: str) -> str:
    """Returns a version as PyTorch's index spells it: 12.4 as 124."""
    return "".join(map(str, _numbers(version)))
