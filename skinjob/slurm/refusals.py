"""What sbatch says when it takes no job: which value is at fault, and what the valid ones are."""

from __future__ import annotations

import re

from skinjob.config import ClusterConfig
from skinjob.errors import ClusterError

ASSOCIATIONS = "sacctmgr show associations user=$USER format=account,partition,qos"
REASONS = (
    (r"account", ("account", "partition"), ASSOCIATIONS),
    (r"invalid partition|partition name", ("partition",), "sinfo --summarize"),
    (r"invalid qos|QOS", ("qos", "time_min"), ASSOCIATIONS),
    (r"feature", ("constraint",), "sinfo --format='%P %f'"),
    (r"gres|TRES|generic resource", ("gpu_type", "gpu_flag"), "sinfo --format='%P %G'"),
    (r"time limit", ("time_min",), "sinfo --format='%P %l'"),
    (r"memory", ("mem_gb", "mem_flag"), "sinfo --format='%P %m %c'"),
    (r"cpu count", ("cpus",), "sinfo --format='%P %c'"),
    (r"node name|nodelist|node list", ("nodelist", "exclude"), "sinfo --Node"),
    (r"reservation", ("reservation",), "scontrol show reservation"),
    (r"wckey", ("wckey",), "sacctmgr show wckeys"),
    (r"mail", ("mail_type", "mail"), "man sbatch"),
    (r"unrecognized option|unknown option|ambiguous|license", ("sbatch",), "sbatch --help"),
    (
        r"node configuration",
        ("gpu_type", "cpus", "mem_gb", "constraint", "nodelist"),
        "sinfo --format='%P %c %m %G %f'",
    ),
)
"""Words in a refusal, the values that they may mean, and a command that lists the valid ones."""
OPTIONS = {"mem_gb": "mem", "time_min": "time"}
"""Names of options that are not those of their fields."""


NO_ANSWER = (
    r"timed out|Zero Bytes were transmitted|Unexpected message"
    r"|Could not make sense of sbatch output|killed for an unknown reason"
)
"""What sbatch, or submitit of it, says where the job may be queued all the same."""


class NoAnswerError(ClusterError):
    """SLURM did not say whether it took a job."""


def refusal(said: str, cluster: ClusterConfig) -> ClusterError:
    """Returns the error for what sbatch said, with the value that it means, where that can be told.

    sbatch itself mostly leaves it out: "Invalid feature specification".
    """
    words = first_words(said)
    if re.search(NO_ANSWER, said):
        return NoAnswerError(
            f"SLURM did not say whether it took the jobs: {words}",
            "squeue --me; skinjob submit   # the same again takes up a job that was queued",
        )
    for pattern, fields, listing in REASONS:
        if re.search(pattern, words, re.IGNORECASE):
            meant = _meant(fields, words, cluster)
            options = [_option(name) for name in meant or fields[:1]]
            told = ", ".join(_told(cluster, name) for name in meant)
            return ClusterError(
                f"sbatch refused: {words}{f' ({told})' if told else ''}",
                f"{listing}   # what there is; then skinjob submit with another {options[0]}",
            )
    return ClusterError(
        f"sbatch refused: {words}", "sinfo; skinjob submit --dry-run   # shows the script"
    )


def first_words(said: str) -> str:
    """Returns the first thing that sbatch had to say, or the first line of whatever was said.

    >>> first_words("x failed:\\nsbatch: error: invalid partition specified: nowhere")
    'invalid partition specified: nowhere'
    """
    found = re.findall(r"sbatch: (?:error: )?(.+)", said) or said.splitlines() or ["nothing"]
    return str(found[0]).removeprefix("Batch job submission failed: ")


def _meant(fields: tuple[str, ...], words: str, cluster: ClusterConfig) -> list[str]:
    """Returns those fields that ask for something which the words do not hold yet."""
    asked = [name for name in fields if getattr(cluster, name) not in (None, ())]
    return [name for name in asked if _shown(cluster, name) not in words]


def _told(cluster: ClusterConfig, name: str) -> str:
    """Returns an option with its value, as it is given on the command line."""
    if name == "sbatch":
        return " ".join(f"--sbatch={flag}" for flag in cluster.sbatch)
    return f"{_option(name)} {_shown(cluster, name)}"


def _option(name: str) -> str:
    return f"--{OPTIONS.get(name, name).replace('_', '-')}"


def _shown(cluster: ClusterConfig, name: str) -> str:
    value = getattr(cluster, name)
    if isinstance(value, tuple):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
