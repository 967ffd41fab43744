"""Rules about when, where and as what a process runs: loaded only for configurations that say so."""

from __future__ import annotations

from pyoci.kernel import scheduling as s
from pyoci.spec.read import Report, one_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Process, Spec

WITH_PRIORITY = ("SCHED_FIFO", "SCHED_RR")
OF_DEADLINE = ("runtime", "deadline", "period")
WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
STATIC, RELATIVE = "MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"
KEEP = {"SCHED_FLAG_KEEP_POLICY", "SCHED_FLAG_KEEP_PARAMS"}  # with these the numbers of config.json are not used
SHORTEST = 1024  # nanoseconds of run time: what is less is lost in the kernel's arithmetic (sched(7))


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
    flags = asked.get("flags")
    if policy == "SCHED_DEADLINE" and not (isinstance(flags, list) and KEEP & set(flags)):
        _deadline(asked, where, report)


def _deadline(asked: dict[str, object], where: str, report: Report) -> None:
    """sched(7): 1024 <= runtime <= deadline <= period, and a period that is not given is the deadline."""
    runtime, deadline, period = (value if isinstance(value := asked.get(name), int) else 0 for name in OF_DEADLINE)
    if any(report.unreliable(f"{where}/{name}") for name in OF_DEADLINE):
        return
    if runtime < SHORTEST:
        report.add(f"{where}/runtime", f"must not be less than {SHORTEST} (nanoseconds), but is {runtime}")
    if deadline < runtime:
        report.add(f"{where}/deadline", f"must not be less than runtime {runtime}, but is {deadline}")
    if period and period < deadline:
        report.add(f"{where}/period", f"must be 0, or not less than deadline {deadline}, but is {period}")
    for name, value in zip(OF_DEADLINE, (runtime, deadline, period), strict=True):
        if value >= 2**63:
            report.add(f"{where}/{name}", f"must be less than 2^63 nanoseconds, but is {value}")


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
        if isinstance(mode, str) and mode in s.MEMORY_MODES:
            _nodes_of_mode(mode, policy, report)


def _nodes_of_mode(mode: str, policy: dict[str, object], report: Report) -> None:
    """set_mempolicy(2): which modes have nodes, and which flags go with which."""
    where = "/linux/memoryPolicy"
    nodes, flags = policy.get("nodes"), policy.get("flags")
    named = set(flags) if isinstance(flags, list) else set()
    if report.unreliable(f"{where}/nodes") or report.unreliable(f"{where}/flags"):
        return
    there = isinstance(nodes, str) and bool(nodes.strip(" ,"))
    if there and mode in WITHOUT_NODES:
        report.add(f"{where}/nodes", f"must be empty or absent: {mode} has no nodes")
    if not there and mode not in (*WITHOUT_NODES, "MPOL_PREFERRED"):
        report.add(f"{where}/nodes", f"is required: {mode} has at least one node")
    if named >= {STATIC, RELATIVE}:
        report.add(f"{where}/flags", f"must not have both {STATIC} and {RELATIVE}")
    elif (mode == "MPOL_LOCAL" or (mode == "MPOL_PREFERRED" and not there)) and named & {STATIC, RELATIVE}:
        report.add(f"{where}/flags", f"must not have {STATIC} or {RELATIVE} without nodes")


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
