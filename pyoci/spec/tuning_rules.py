"""Rules about when, where and as what a process runs: loaded only for configurations that say so."""

from __future__ import annotations

from pyoci.kernel import scheduling as s
from pyoci.spec.read import Report, one_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Process, Spec

WITH_PRIORITY = ("SCHED_FIFO", "SCHED_RR")
OF_DEADLINE = ("runtime", "deadline", "period")


def process(process: Process, where: str, report: Report) -> None:
    """config.md#linux-process: known names, and only the numbers that a policy has a use for."""
    if process.scheduler:
        _scheduler(process.scheduler, f"{where}/scheduler", report)
    if process.io_priority:
        kind = process.io_priority.get("class")
        if isinstance(kind, str) and kind not in s.IOPRIO_CLASSES:
            report.add(f"{where}/ioPriority/class", one_of(kind, tuple(s.IOPRIO_CLASSES)))
        if "priority" not in process.io_priority and kind != "IOPRIO_CLASS_IDLE":
            # that class has none, and runc asks for none
            report.add(f"{where}/ioPriority/priority", "is required")
    if process.exec_cpu_affinity:
        for name in ("initial", "final"):
            _list(process.exec_cpu_affinity.get(name), f"{where}/execCPUAffinity/{name}", report)


def _scheduler(asked: dict[str, object], where: str, report: Report) -> None:
    policy = asked.get("policy")
    if not isinstance(policy, str):
        return  # reported already
    if policy not in s.POLICIES:
        report.add(f"{where}/policy", one_of(policy, tuple(s.POLICIES)))
        return
    _names(asked.get("flags"), tuple(s.SCHED_FLAGS), f"{where}/flags", report)
    nice, priority = asked.get("nice"), asked.get("priority")
    if isinstance(nice, int) and not -20 <= nice <= 19:
        report.add(f"{where}/nice", f"must be an integer from -20 to 19, not {nice}")
    if isinstance(priority, int):
        if policy in WITH_PRIORITY:
            if not 1 <= priority <= 99:
                report.add(f"{where}/priority", f"must be an integer from 1 to 99, not {priority}")
        elif priority:
            report.add(f"{where}/priority", f"must be 0 or absent: {policy} has no priorities")
    elif policy in WITH_PRIORITY:
        report.add(f"{where}/priority", f"is required: {policy} has priorities from 1 to 99")
    for name in OF_DEADLINE:
        if asked.get(name) and policy != "SCHED_DEADLINE":
            report.add(f"{where}/{name}", "must be 0 or absent: only SCHED_DEADLINE has it")


def container(spec: Spec, report: Report) -> None:
    """config-linux.md#personality: known names; no flag of a personality is supported by the specification."""
    personality = spec.linux.personality
    if personality:
        domain = personality.get("domain")
        if isinstance(domain, str) and domain not in s.PERSONALITIES:
            report.add("/linux/personality/domain", one_of(domain, tuple(s.PERSONALITIES)))
        if personality.get("flags"):
            report.add("/linux/personality/flags", "must be empty: no flag is supported")


def memory_policy(spec: Spec, report: Report) -> None:
    """config-linux.md#memory-policy: known names, and a list of nodes."""
    policy = spec.linux.memory_policy
    if policy:
        mode = policy.get("mode")
        if isinstance(mode, str) and mode not in s.MEMORY_MODES:
            report.add("/linux/memoryPolicy/mode", one_of(mode, tuple(s.MEMORY_MODES)))
        _names(policy.get("flags"), tuple(s.MEMORY_FLAGS), "/linux/memoryPolicy/flags", report)
        _list(policy.get("nodes"), "/linux/memoryPolicy/nodes", report)


def _names(value: object, known: tuple[str, ...], where: str, report: Report) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str) and item not in known:
                report.add(f"{where}/{index}", one_of(item, known))


def _list(value: object, where: str, report: Report) -> None:
    if isinstance(value, str):
        try:
            s.mask(value)
        except ValueError as error:
            report.add(where, f"must be a list such as 0-3,7: {error}")
