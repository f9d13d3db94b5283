"""Why a pending job has not started: squeue's reasons, in families that end in the same way."""

from __future__ import annotations

import re
from dataclasses import dataclass

LIMITS = "sacctmgr show assoc user=$USER"
OTHER = "{cancel}; {again}"
"""Calls the runs off and queues them again; options follow."""


@dataclass(frozen=True)
class Reason:
    """A family of squeue's reasons."""

    pattern: str
    """A regular expression of the whole word."""
    words: str
    fix: str | None = None
    """What the user can do; None where the job starts by itself, as time passes or jobs end."""


REASONS = (
    # It starts by itself.
    Reason("None", "SLURM has not looked at it yet"),
    Reason("Prolog|Cleaning|BurstBufferStageIn|SchedDefer|FedJobLock", "SLURM makes it ready"),
    Reason("Priority", "others are before it"),
    Reason("BeginTime", "not before its begin time"),
    Reason("Dependency", "waits for another job"),
    Reason("Reservation", "waits for its reservation to begin, or for room in it"),
    Reason("JobArrayTaskLimit", "as many are at work as --array-parallelism allows"),
    Reason("Resources|Constraints", "no GPU, cores or memory free for it yet"),
    Reason(
        "Licenses|BurstBufferResources|NvidiaImexChannels|MpiPortsBusy|MaxPoweredUpNodes",
        "what it asks for is in use",
    ),
    Reason(
        r"(QOS|Assoc)Grp\w*RunMin\w*|Max\w+RunMinsPer(Account|User)",
        "your project's running jobs use all the minutes that it may use at one time: this job "
        "starts when they have used some up, and earlier with less --time",
    ),
    Reason("QOSUsageThreshold", "you have used much of late: it starts when that counts less"),
    # It starts when somebody acts: an admin, or whoever keeps the budget.
    Reason("PartitionDown", "its partition is down, until an admin opens it"),
    Reason("PartitionInactive", "its partition is closed, until an admin opens it"),
    Reason("ReqNodeNotAvail|NodeDown", "its nodes are down or reserved"),
    Reason(
        r"(QOS|Assoc)Grp(\w*Min(ute)?s(Limit)?|WallLimit)|(QOS|Association)TimeLimit",
        "your project's time is used up: less is left than the job may take",
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
    Reason("BadConstraints", "asks for what no node has", OTHER),
    Reason("DependencyNeverSatisfied", "waits for a job that failed", OTHER),
    Reason("BurstBufferOperation", "its burst buffer failed", "scontrol show job {job}; " + OTHER),
    Reason("DeadLine", "cannot end before its deadline", OTHER + " --time LESS"),
    Reason(
        "Reservation(Deleted|Invalid)",
        "its reservation is no more",
        f"scontrol show reservation; {OTHER} --reservation OTHER",
    ),
    Reason(
        "PartitionTimeLimit",
        "--time is over its partition's limit",
        f"sinfo -o '%P %l'; {OTHER} --time LESS",
    ),
    Reason(
        "PartitionNodeLimit|PartitionConfig",
        "its partition has no node for it, or gives it none",
        f"sinfo; {OTHER} --partition OTHER   # or wait, if its nodes are down",
    ),
    Reason(
        "(Account|QOS)NotAllowed|Invalid(Account|QOS)",
        "its partition does not take it",
        OTHER + " --partition OTHER",
    ),
    Reason("MaxMemPerLimit", "asks for more memory than a job may have", OTHER + " --mem LESS"),
    Reason(
        r"(QOS|Assoc)Max\w*(PerJob|PerNode|WallDuration)\w*",
        "asks for more than a job may have",
        f"{LIMITS}; {OTHER} --time LESS",
    ),
    Reason(
        r"QOSMin\w+",
        "asks for less than its QOS gives out",
        f"sacctmgr show qos format=name,mintres; {OTHER} --qos OTHER",
    ),
    # It starts when jobs end, and never if it asks for more than the limit by itself.
    Reason(
        r"(QOS|Assoc)(Grp|Max)\w*|(QOS|Association)(Job|Resource)Limit|Max\w+PerAccount"
        "|AccountingPolicy",
        "at a limit of your account or QOS: it starts when jobs there end, and never if it asks "
        "for more than the limit by itself",
    ),
    # These jobs are over.
    Reason(
        "InactiveLimit|NonZeroExitCode|RaisedSignal|TimeLimit|OutOfMemory|JobLaunchFailure"
        "|SystemFailure",
        "its last attempt ended",
    ),
)
"""The first that matches holds."""

HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
"""Words of squeue's for the state of a pending job that are the reason too."""

BEGUN = {
    "COMPLETING": "its job is ending",
    "CONFIGURING": "its node is being made ready",
    "REQUEUED": "its job starts again",
    "REQUEUE_FED": "its job starts again",
    "RESIZING": "its job changes its size",
    "SIGNALING": "its job is being sent a signal",
    "STAGE_OUT": "its job is ending",
    "STOPPED": "its job was stopped, until somebody lets it go on",
    "SUSPENDED": "its job is suspended",
}
"""squeue's words for a job that is neither pending nor running, and what it is doing."""


def why_pending(reason: str) -> str:
    """Returns why a pending job has not started, in words, with squeue's own after them.

    >>> why_pending("Resources")
    'no GPU, cores or memory free for it yet (Resources)'
    """
    word, kind = _word(reason), family(reason)
    return f"{kind.words} ({word})" if kind else word


def what_begun(state: str) -> str:
    """Returns what a job is at that waits no more and does not run, in words.

    >>> what_begun("SUSPENDED")
    'its job is suspended (SUSPENDED)'
    """
    words = BEGUN.get(state)
    return f"{words} ({state})" if words else state.lower()


def family(reason: str) -> Reason | None:
    """Returns the family of a reason of squeue's; None for an unknown reason."""
    return next((kind for kind in REASONS if re.fullmatch(kind.pattern, _word(reason))), None)


def _word(reason: str) -> str:
    """Returns the word of a reason, without the nodes that may follow."""
    return reason.split(",")[0].strip("()")
