"""What sbatch says when it takes no job: which value is at fault, and what the valid ones are."""

from __future__ import annotations

import re

from skinjob.config import ClusterConfig, as_text, options_of
from skinjob.errors import ClusterError
from skinjob.queues.base import NoAnswerError, RefusedError

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
BY_FLAG = tuple(
    (option.sbatch.rstrip("s"), (name,), "sbatch --help")
    for name, option in options_of(ClusterConfig).items()
    if option.sbatch and name not in {field for _, fields, _ in REASONS for field in fields}
)
"""The same of fields that the table above does not have: by the name of the flag."""

FAILED = r"(?:Batch job submission failed|allocation failure): "
RETRIES = r"Slurm temporarily unable to accept job"
TOO_MANY = r"SubmitJob|Resource temporarily unavailable|job array specification"
"""Words of a refusal for the number of jobs."""

NO_ANSWER = (
    r"Socket timed out|Zero Bytes were transmitted|Unexpected message|Header lengths are"
    r"|Connection (reset|refused|timed out)|Message (send|receive) failure|Transport endpoint"
    r"|Communication connection failure|Unable to contact slurm controller"
    r"|Could not make sense of sbatch output|killed for an unknown reason"
)
"""What sbatch, or submitit of it, says where the job may be queued all the same."""


SPECIFIC = (
    r"(QOS|Assoc|Max)[A-Z]\w+"
    r"|invalid partition specified: .+"
    r"|.+ (specifications?|count per node|requirements) can not be satisfied"
)
"""Lines of SLURM's own that say more than its last one."""
UNSPECIFIED = r"Unspecified error|cli_filter plugin terminated with error"
"""Last lines of a refusal by a site's own rules: they leave the reason to the lines before."""


class TooManyJobsError(RefusedError):
    """SLURM refused jobs for their number. The message is SLURM's reason."""


def refusal(said: str, cluster: ClusterConfig) -> ClusterError:
    """Returns the error for what sbatch said, with the value that it means, where that can be told.

    sbatch itself mostly leaves it out: "Invalid feature specification". What the site's own rules
    had sbatch say besides is in the error's details.
    """
    words, others = reason(said)
    if not said.strip() or re.search(NO_ANSWER, said):  # sbatch was killed, or heard nothing
        return NoAnswerError(
            f"SLURM did not say whether it took the jobs: {words}",
            "squeue --user=$USER; skinjob submit   # the same again takes up a job that was queued",
        )
    if re.search(UNSPECIFIED, words):
        rules = "; ".join(others)
        return RefusedError(
            f"sbatch refused: {rules or words}",
            "skinjob submit --dry-run   # shows the script; the rules are the site's own"
            if rules
            else "skinjob submit --dry-run   # shows the script: ask the cluster's admins",
        )
    if re.search(TOO_MANY, words):
        return TooManyJobsError(words, "squeue --user=$USER", others)
    for pattern, fields, listing in (*BY_FLAG, *REASONS):
        if re.search(pattern, words, re.IGNORECASE):
            meant = _meant(fields, words, cluster)
            usages = ", ".join(_usage(cluster, name) for name in meant)
            first = options_of(type(cluster))[(meant or fields)[0]].flag
            return RefusedError(
                f"sbatch refused: {words}{f' ({usages})' if usages else ''}",
                f"{listing}   # what there is; then skinjob submit with another {first}",
                others,
            )
    return RefusedError(
        f"sbatch refused: {words}", "sinfo; skinjob submit --dry-run   # shows the script", others
    )


def reason(said: str) -> tuple[str, list[str]]:
    """Returns why sbatch takes no job, and the other lines of what it said.

    Plugins of the site may have sbatch say something first. SLURM's own reason is its last line.

    >>> reason("sbatch: error: Hello\\nsbatch: error: Batch job submission failed: Access denied")
    ('Access denied', ['Hello'])
    """
    own = re.findall(rf"(?m)^(?:sbatch: (?:error: |fatal: )?(.+)|({FAILED}.+))", said)
    own = ["".join(pair) for pair in own] or said.split("\n")
    lines = list(dict.fromkeys(line.strip() for line in own if line.strip()))
    last = [found[1] for line in lines if (found := re.fullmatch(FAILED + "(.+)", line))]
    if not last:
        rules = [line for line in lines if re.search(UNSPECIFIED, line)]
        last = rules or ["; ".join(lines) or "nothing"]
        return last[-1], [line for line in lines if line not in last] if rules else []
    others = [line for line in lines if not re.match(f"{FAILED}|{RETRIES}", line)]
    specific = [line for line in others if re.fullmatch(SPECIFIC, line)]
    return (specific or last)[-1], [line for line in others if line not in specific]


def _meant(fields: tuple[str, ...], words: str, cluster: ClusterConfig) -> list[str]:
    """Returns those fields that ask for something which the words do not hold yet."""
    asked = [name for name in fields if getattr(cluster, name) not in (None, ())]
    return [name for name in asked if as_text(getattr(cluster, name)) not in words]


def _usage(cluster: ClusterConfig, name: str) -> str:
    """Returns an option with its value, as one types it."""
    value = getattr(cluster, name)
    values = value if isinstance(value, tuple) else [value]
    return " ".join(options_of(type(cluster))[name].usage(item) for item in values)
