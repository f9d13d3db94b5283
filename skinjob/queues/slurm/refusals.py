"""sbatch's refusals: the option that is wrong, and a command that lists valid values."""

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
"""Words in a refusal, the fields that they may mean, and a command that lists valid values."""
BY_FLAG = tuple(
    (option.sbatch.rstrip("s"), (name,), "sbatch --help")
    for name, option in options_of(ClusterConfig).items()
    if option.sbatch and name not in {field for _, fields, _ in REASONS for field in fields}
)
"""The same for all other fields, by the name of the flag."""

FAILED = r"(?:Batch job submission failed|allocation failure): "
RETRIES = r"Slurm temporarily unable to accept job"
TOO_MANY = r"SubmitJob|Resource temporarily unavailable|job array specification"
"""Words of a refusal because of the number of jobs."""

NO_ANSWER = (
    r"Socket timed out|Zero Bytes were transmitted|Unexpected message|Header lengths are"
    r"|Connection (reset|refused|timed out)|Message (send|receive) failure|Transport endpoint"
    r"|Communication connection failure|Unable to contact slurm controller"
    r"|Could not make sense of sbatch output|killed for an unknown reason"
)
"""Errors of sbatch, or of submitit, after which the job may still be queued."""


SPECIFIC = (
    r"(QOS|Assoc|Max)[A-Z]\w+"
    r"|invalid partition specified: .+"
    r"|.+ (specifications?|count per node|requirements) can not be satisfied"
)
"""SLURM's lines that say more than its last line."""
UNSPECIFIED = r"Unspecified error|cli_filter plugin terminated with error"
"""Last lines of a refusal by a site's own rules: the lines before have the reason."""


class TooManyJobsError(RefusedError):
    """SLURM refused jobs because of their number. The message is SLURM's reason."""


def refusal(output: str, cluster: ClusterConfig) -> ClusterError:
    """Returns the error for sbatch's output; it names the wrong value if that is clear.

    sbatch often leaves the value out: "Invalid feature specification". The error's details hold
    messages from the site's own rules.
    """
    words, others = reason(output)
    if not output.strip() or re.search(NO_ANSWER, output):  # sbatch was killed, or got no answer
        return NoAnswerError(
            f"SLURM did not say whether it took the jobs: {words}",
            "squeue --user=$USER; skinjob submit   # safe to repeat: no job is queued twice",
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
            likely = _likely(fields, words, cluster)
            usages = ", ".join(_usage(cluster, name) for name in likely)
            first = options_of(type(cluster))[(likely or fields)[0]].flag
            return RefusedError(
                f"sbatch refused: {words}{f' ({usages})' if usages else ''}",
                f"{listing}   # lists valid values; then skinjob submit with another {first}",
                others,
            )
    return RefusedError(
        f"sbatch refused: {words}", "sinfo; skinjob submit --dry-run   # shows the script", others
    )


def reason(output: str) -> tuple[str, list[str]]:
    """Returns why sbatch takes no job, and the other lines of its output.

    Plugins of the site may print lines first. SLURM's own reason is the last line.

    >>> reason("sbatch: error: Hello\\nsbatch: error: Batch job submission failed: Access denied")
    ('Access denied', ['Hello'])
    """
    own = re.findall(rf"(?m)^(?:sbatch: (?:error: |fatal: )?(.+)|({FAILED}.+))", output)
    own = ["".join(pair) for pair in own] or output.split("\n")
    lines = list(dict.fromkeys(line.strip() for line in own if line.strip()))
    last = [match[1] for line in lines if (match := re.fullmatch(FAILED + "(.+)", line))]
    if not last:
        rules = [line for line in lines if re.search(UNSPECIFIED, line)]
        last = rules or ["; ".join(lines) or "nothing"]
        return last[-1], [line for line in lines if line not in last] if rules else []
    others = [line for line in lines if not re.match(f"{FAILED}|{RETRIES}", line)]
    specific = [line for line in others if re.fullmatch(SPECIFIC, line)]
    return (specific or last)[-1], [line for line in others if line not in specific]


def _likely(fields: tuple[str, ...], words: str, cluster: ClusterConfig) -> list[str]:
    """Returns the fields that are set and whose value sbatch's error does not show yet."""
    asked = [name for name in fields if getattr(cluster, name) not in (None, ())]
    return [name for name in asked if as_text(getattr(cluster, name)) not in words]


def _usage(cluster: ClusterConfig, name: str) -> str:
    """Returns an option with its value, as a user types it."""
    value = getattr(cluster, name)
    values = value if isinstance(value, tuple) else [value]
    return " ".join(options_of(type(cluster))[name].usage(item) for item in values)
