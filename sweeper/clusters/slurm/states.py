"""Slurm's words for how a job ended, as ours. Pure.

Guarantees: an end that Slurm or somebody else brought about never looks like the trainer's own; what a user could not
have prevented (preemption, the time limit, a node that failed) is `preempted` or `lost`, which are tried again without
being counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sweeper.clusters.base import Exit

ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL",
     "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"}
)  # fmt: skip
"""States of a job that will not run any more, and of which no process is left (COMPLETING comes before)."""
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
NEVER = {
    "BadConstraints": "no node can ever satisfy what the job asks for",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionTimeLimit": "its time limit is above the partition's",
    "PartitionConfig": "the partition does not allow what it asks for",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "AccountNotAllowed": "the account may not use the partition",
    "QOSNotAllowed": "the QOS may not be used there",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "somebody holds it: scontrol release",
    "InvalidAccount": "the account is not valid",
    "InvalidQOS": "the QOS is not valid",
    "DependencyNeverSatisfied": "what it depends on has failed",
}
"""Reasons for which a job may wait for ever, in words; those of limits (AssocGrpGRES, QOSMaxJobsPerUser...) are
recognised by their form."""

_HOW = {
    "PREEMPTED": ("preempted", "was preempted"),
    "REVOKED": ("preempted", "was revoked: another cluster of the federation has it"),
    "TIMEOUT": ("preempted", "reached its time limit"),
    "DEADLINE": ("preempted", "reached its deadline"),
    "CANCELLED": ("preempted", "was cancelled by somebody (scancel)"),
    "NODE_FAIL": ("lost", "lost a node"),
    # In the kernel's words, by which engines know it.
    "OUT_OF_MEMORY": ("lost", "was ended by Slurm: Memory cgroup out of memory"),
    "BOOT_FAIL": ("launch", "could not be started: a node did not boot"),
    "LAUNCH_FAILED": ("launch", "could not be started: LAUNCH_FAILED"),
    "RECONFIG_FAIL": ("launch", "could not be started: a node could not be configured"),
}


@dataclass(frozen=True, slots=True)
class State:
    """What Slurm says of a job."""

    state: str
    """`PENDING`, `RUNNING`, ...; empty: it does not know the job (any more)."""
    reason: str = ""
    """Why it waits, or ended so; `None` is Slurm's word for nothing."""
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether no process of it is left."""
        return self.state in ENDED or not self.state

    @property
    def waits(self) -> str:
        """Why it does not run yet, in Slurm's words, and ours where it may not run at all; empty otherwise."""
        if self.state not in WAITING:
            return ""
        reason = self.reason.strip("()") or "None"
        if hint := hint_of(reason):
            return f"{reason}: {hint}"
        if reason == "None":  # not looked at yet, or its nodes boot
            return "" if self.state == "PENDING" else self.state.lower()
        return reason


def hint_of(reason: str) -> str:
    """What a reason means that may hold a job for ever; empty for one that passes by itself."""
    name = re.split(r"[, ]", reason, maxsplit=1)[0]
    if name in NEVER:
        return NEVER[name]
    if name.startswith(("AssocGrp", "AssocMax", "QOSGrp", "QOSMax", "QOSMin", "MaxCpuPerAccount")):
        return "a limit of the account or QOS: sacctmgr show assoc, sacctmgr show qos"
    return ""


def exit_of(
    job: str, state: State, record: Exit | None, *, asked: bool, time_up: bool, begun: bool, now: float, log: str = ""
) -> Exit:
    """How the attempt of an ended job ended.

    Args:
        job: its number, for words.
        state: what Slurm says last.
        record: what the attempt's own guard left, if it could.
        asked: whether we asked for the end.
        time_up: whether the job script said that it ended the attempt because the time limit came near.
        begun: whether anything of it ever ran on a node.
        now: Unix time, where there is no record.
        log: the last lines of the job's log; empty: there is none.
    """
    how = _by_slurm(job, state)
    code, when = (record.code, record.ended) if record is not None else (None, now)
    if record is not None and record.reason in ("exit", "launch"):
        # A trainer that failed while Slurm ended its job fell to that.
        return replace(how, code=code, ended=when) if how and code else record
    if asked:
        return Exit(None, "stopped", record.detail if record else "", when)
    if how is None and record is not None and record.reason == "preempted":
        how = Exit(None, "preempted", f"Slurm job {job} was preempted")
    if time_up:
        how = Exit(None, "preempted", f"Slurm job {job} came near its time limit")
    if how is None:
        said = f"it ended as {state.state}" if state.state else "Slurm does not know it any more"
        how = record or Exit(None, "lost", f"Slurm job {job} left no record: {said}{_why(state)}")
        if record is None and state.state == "FAILED" and not begun:
            # Without a log it ends where its script's folder or its log cannot be opened.
            unseen = "its node may not see the sweep's folder (store= must be on a filesystem that all nodes share)"
            why = f"its script says: {log} (cluster.python is what it runs)" if log else unseen
            how = Exit(None, "launch", f"Slurm job {job} ended before anything of it ran{_why(state)}: {why}")
    said = record.detail if record is not None and record is not how else ""
    return replace(how, detail="; ".join(filter(None, [how.detail, said])), ended=when)


def _by_slurm(job: str, state: State) -> Exit | None:
    """An end that Slurm brought about."""
    why = _why(state)
    if state.state in _HOW:
        reason, said = _HOW[state.state]
        where = f" ({state.nodes})" if state.state == "NODE_FAIL" and state.nodes else ""
        return Exit(None, reason, f"Slurm job {job} {said}{where}{why}")
    if state.state == "FAILED" and (hint := hint_of(state.reason)):
        return Exit(None, "launch", f"Slurm job {job} could not be started: {state.reason}: {hint}")
    return None


def _why(state: State) -> str:
    reason = state.reason.strip("()")
    return "" if reason in ("", "None") else f" ({reason})"
