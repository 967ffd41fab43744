"""When, where and as what a process runs: scheduler, I/O priority, processors, personality, memory policy.

All are inherited by execve, and are set while the process still has the capabilities that they need.
"""

from __future__ import annotations

from pyoci.kernel import scheduling as s
from pyoci.plan.ops import Blob, Op, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Linux, Process

MASK_SIZE = s.MOST // 8  # bytes
# What a policy needs, where the kernel refuses it.
REAL_TIME = (
    "it needs CAP_SYS_NICE on the host or an RLIMIT_RTPRIO in /process/rlimits, and in cgroup v1"
    " /linux/resources/cpu/realtimeRuntime"
)
NICE = "a nice value below ours needs CAP_SYS_NICE on the host or an RLIMIT_NICE in /process/rlimits"
HINTS = {
    "SCHED_FIFO": REAL_TIME,
    "SCHED_RR": REAL_TIME,
    "SCHED_ISO": "the kernel has a number for SCHED_ISO, and no such policy",
    "SCHED_DEADLINE": "it needs CAP_SYS_NICE on the host, free time of the host's, and a period within"
    " /proc/sys/kernel/sched_deadline_period_min_us and sched_deadline_period_max_us",
}


def of_process(process: Process) -> list[Op]:
    """config.md#linux-process: `scheduler` and `ioPriority`."""
    ops: list[Op] = []
    asked = process.scheduler
    if asked:
        flags = 0
        for name in _texts(asked.get("flags")):
            flags |= s.SCHED_FLAGS[name]
        attributes = Struct(
            "sched_attr",
            size=s.SCHED_ATTR_SIZE,
            sched_policy=s.POLICIES[str(asked["policy"])],
            sched_flags=flags,
            sched_nice=_number(asked.get("nice")),
            sched_priority=_number(asked.get("priority")),
            sched_runtime=_number(asked.get("runtime")),
            sched_deadline=_number(asked.get("deadline")),
            sched_period=_number(asked.get("period")),
        )
        hint = HINTS.get(str(asked["policy"]), NICE)
        if flags & s.UTIL_CLAMP:
            hint = "SCHED_FLAG_UTIL_CLAMP_... need a kernel with CONFIG_UCLAMP_TASK"
        ops.append(Op("sched_setattr", (0, attributes, 0), "/process/scheduler", hint=hint))
    return ops + io_priority(process)


def io_priority(process: Process) -> list[Op]:
    """config.md#linux-process: `ioPriority` alone."""
    priority = process.io_priority
    if not priority:
        return []
    value = s.IOPRIO_CLASSES[str(priority["class"])] << s.IOPRIO_CLASS_SHIFT | _number(priority.get("priority"))
    hint = "IOPRIO_CLASS_RT needs CAP_SYS_NICE or CAP_SYS_ADMIN on the host"
    return [Op("ioprio_set", (s.IOPRIO_WHO_PROCESS, 0, value), "/process/ioPriority", hint=hint)]


def of_container(linux: Linux) -> list[Op]:
    """config-linux.md: `personality` and `memoryPolicy`, of every process of the container."""
    ops: list[Op] = []
    if linux.personality:
        domain = s.PERSONALITIES[str(linux.personality["domain"])]
        ops.append(Op("personality", (domain,), "/linux/personality"))
    policy = linux.memory_policy
    if policy:
        mode = s.MEMORY_MODES[str(policy["mode"])]
        for name in _texts(policy.get("flags")):
            mode |= s.MEMORY_FLAGS[name]
        nodes = str(policy.get("nodes") or "")
        bits = s.mask(nodes)
        origin = "/linux/memoryPolicy"
        # the kernel reads one bit less than it is told (set_mempolicy(2), BUGS)
        where = (Blob(bits.to_bytes(MASK_SIZE, "little"), f"nodes {nodes}"), s.MOST + 1) if bits else (0, 0)
        hint = "see set_mempolicy(2) for what goes with which mode"
        ops.append(Op("set_mempolicy", (mode, *where), origin, hint=hint))
    return ops


def affinity(processors: str, origin: str) -> Op:
    """sched_setaffinity(2) of the calling process to a list of processors."""
    bits = s.mask(processors)
    mask = Blob(bits.to_bytes(MASK_SIZE, "little"), f"processors {processors}")
    return Op(
        "sched_setaffinity",
        (0, MASK_SIZE, mask),
        origin,
        hint="at least one of them must be there, and in the cpuset of the cgroup",
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
