"""squeue's reasons why a pending job has not started, in families with the same fix."""

from __future__ import annotations

import re
from dataclasses import dataclass

LIMITS = "sacctmgr show assoc user=$USER"
OTHER = "{cancel}; {again}"
"""Cancels the runs and queues them again; options follow."""


@dataclass(frozen=True)
class Reason:
    """A family of squeue's reasons."""

    pattern: str
    """A regular expression for the whole word."""
    words: str
    fix: str | None = None
    """A command for the user; None if the job starts by itself later."""


REASONS = (
    # It starts by itself.
    Reason("None", "SLURM has not looked at it yet"),
    Reason("Prolog|Cleaning|BurstBufferStageIn|SchedDefer|FedJobLock", "SLURM makes it ready"),
    Reason("Priority", "other jobs are before it"),
    Reason("BeginTime", "its begin time has not come"),
    Reason("Dependency", "waits for another job"),
    Reason("Reservation", "waits for its reservation to begin, or for room in it"),
    Reason("JobArrayTaskLimit", "as many jobs run as --array-parallelism allows"),
    Reason("Resources|Constraints", "no free GPU, cores or memory yet"),
    Reason(
        "Licenses|BurstBufferResources|NvidiaImexChannels|MpiPortsBusy|MaxPoweredUpNodes",
        "other jobs use what it asks for",
    ),
    Reason(
        r"(QOS|Assoc)Grp\w*RunMin\w*|Max\w+RunMinsPer(Account|User)",
        "your project's running jobs have reserved all of its minutes: this job starts when some "
        "have ended, and earlier with less --time",
    ),
    Reason("QOSUsageThreshold", "you have used a lot recently: it starts when that counts less"),
    # It starts after an action of an admin or of the user.
    Reason("PartitionDown", "its partition is down, until an admin opens it"),
    Reason("PartitionInactive", "its partition is closed, until an admin opens it"),
    Reason("ReqNodeNotAvail|NodeDown", "its nodes are down or reserved"),
    Reason(
        r"(QOS|Assoc)Grp(\w*Min(ute)?s(Limit)?|WallLimit)|(QOS|Association)TimeLimit",
        "your project has less time left than the job may take",
        f"sshare --format=Account,User,GrpTRESMins,GrpTRESRaw; {OTHER} --account OTHER"
        "   # or less --time; or wait until it is renewed",
    ),
    Reason("JobHeldUser", "held by you", "scontrol release {job}"),
    Reason(
        "JobHeldAdmin",
        "held by an admin",
        "scontrol show job {job}  # and ask the cluster's admins",
    ),
    Reason(
        "launch failed requeued held",
        "held: it could not be launched",
        "scontrol release {job}",
    ),
    Reason(
        "job requeued in held state|REQUEUE_HOLD|SPECIAL_EXIT|RESV_DEL_HOLD",
        "held since it was requeued",
        "scontrol release {job}",
    ),
    Reason("JobHoldMaxRequeue", "held: requeued too often", "scontrol release {job}"),
    # It never starts as it is.
    Reason("BadConstraints", "no node has what it asks for", OTHER),
    Reason("DependencyNeverSatisfied", "waits for a job that failed", OTHER),
    Reason("BurstBufferOperation", "its burst buffer failed", "scontrol show job {job}; " + OTHER),
    Reason("DeadLine", "cannot end before its deadline", OTHER + " --time LESS"),
    Reason(
        "Reservation(Deleted|Invalid)",
        "its reservation has ended",
        f"scontrol show reservation; {OTHER} --reservation OTHER",
    ),
    Reason(
        "PartitionTimeLimit",
        "--time is above its partition's limit",
        f"sinfo -o '%P %l'; {OTHER} --time LESS",
    ),
    Reason(
        "PartitionNodeLimit|PartitionConfig",
        "its partition has no node for it",
        f"sinfo; {OTHER} --partition OTHER   # or wait, if its nodes are down",
    ),
    Reason(
        "(Account|QOS)NotAllowed|Invalid(Account|QOS)",
        "its partition refuses it",
        OTHER + " --partition OTHER",
    ),
    Reason("MaxMemPerLimit", "asks for more memory than allowed", OTHER + " --mem LESS"),
    Reason(
        r"(QOS|Assoc)Max\w*(PerJob|PerNode|WallDuration)\w*",
        "asks for more than allowed",
        f"{LIMITS}; {OTHER} --time LESS",
    ),
    Reason(
        r"QOSMin\w+",
        "asks for less than its QOS requires",
        f"sacctmgr show qos format=name,mintres; {OTHER} --qos OTHER",
    ),
    # It starts when other jobs end, but never if it is above the limit alone.
    Reason(
        r"(QOS|Assoc)(Grp|Max)\w*|(QOS|Association)(Job|Resource)Limit|Max\w+PerAccount"
        "|AccountingPolicy",
        "at a limit of your account or QOS: it starts when other jobs end, but never if it alone "
        "asks for more than the limit",
    ),
    # These jobs have ended.
    Reason(
        "InactiveLimit|NonZeroExitCode|RaisedSignal|TimeLimit|OutOfMemory|JobLaunchFailure"
        "|SystemFailure",
        "its last attempt ended",
    ),
)
"""The first match counts."""

HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
"""States of pending jobs that are also the reason."""

OTHER_STATES = {
    "COMPLETING": "its job is ending",
    "CONFIGURING": "its node is being made ready",
    "REQUEUED": "its job starts again",
    "REQUEUE_FED": "its job starts again",
    "RESIZING": "its job is being resized",
    "SIGNALING": "its job is being sent a signal",
    "STAGE_OUT": "its job is ending",
    "STOPPED": "its job is stopped",
    "SUSPENDED": "its job is suspended",
}
"""squeue's states of jobs that are neither pending nor running, and their meaning."""


def why_pending(reason: str) -> str:
    """Returns why a pending job has not started, with squeue's own word.

    >>> why_pending("Resources")
    'no free GPU, cores or memory yet (Resources)'
    """
    word, kind = _word(reason), family(reason)
    return f"{kind.words} ({word})" if kind else word


def describe_state(state: str) -> str:
    """Returns what a job does that neither waits nor runs.

    >>> describe_state("SUSPENDED")
    'its job is suspended (SUSPENDED)'
    """
    words = OTHER_STATES.get(state)
    return f"{words} ({state})" if words else state.lower()


def family(reason: str) -> Reason | None:
    """Returns the family of a squeue reason; None if it is unknown."""
    return next((kind for kind in REASONS if re.fullmatch(kind.pattern, _word(reason))), None)


def _word(reason: str) -> str:
    """Returns the first word of a reason, without the nodes that may follow."""
    return reason.split(",")[0].strip("()")
