"""/linux/resources as writes to the files of a cgroup: v1 or v2, by where each controller is.

Zero and absent are the same, "not asked for", because engines write zeros for what nobody asked; the exceptions are
pids.limit (since 1.3), swappiness, hugepage limits and priorities.  What was asked for and cannot be written is an
error (config-linux.md#control-groups), and so is a value that v2 has no equivalent for (config-linux.md#unified).
"""

from __future__ import annotations

from errno import EINVAL, ENOENT, EOPNOTSUPP

from pyoci.errors import Problem
from pyoci.jsontext import escape
from pyoci.plan.ops import RUNTIME, Op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyoci.spec.types import BlockIO, Cpu, HugepageLimit, Memory, Resources

RESOURCES = "/linux/resources"
# v1 names of what v2 calls otherwise
V2_NAMES = {"blkio": "io"}
USED = "the kernel refuses a limit below what is used and cannot be reclaimed"
KMEM = "the kernel gave up kernel memory limits: leave this one out"
RT = "each parent cgroup needs real-time runtime of its own first"
CPUSET = "the parent cgroup must have these, and all of them must exist"
NOT_THERE = (ENOENT, EOPNOTSUPP)
PERIODS = "burst <= quota, and quota / period no more than the parent's"


class Limits:
    """What `write_limits` found.

    paths        controller -> directory of the container's cgroup ("" for v2)
    controllers  what v2 offers
    ops          writes that are due before the container's first process is there
    late         writes that are due when it is
    needed       v2 controller -> the first property that needs it
    problems     what cannot be done
    """

    __slots__ = ("controllers", "late", "needed", "ops", "paths", "problems")

    def __init__(self, paths: Mapping[str, str], controllers: Sequence[str]) -> None:
        self.paths = paths
        self.controllers = controllers
        self.ops: list[Op] = []
        self.late: list[Op] = []
        self.needed: dict[str, str] = {}
        self.problems: list[Problem] = []

    def place(self, controller: str, pointer: str) -> tuple[str, bool] | None:
        """(path prefix of its files, whether it is v2) of a v1 controller; None, with a problem, if there is none."""
        name = V2_NAMES.get(controller, controller)
        if controller in self.paths:
            return f"{self.paths[controller]}/", False
        if self.has(controller):
            self.needed.setdefault(name, pointer)
            return f"{self.paths['']}/", True
        present = [*(key for key in self.paths if key), *(self.controllers if "" in self.paths else ())]
        have = f"only {', '.join(present)}" if present else "none: no hierarchy is mounted, or none delegated to us"
        self.problem(pointer, f"needs the cgroup controller {name!r}, and this container has {have}")
        return None

    def has(self, controller: str) -> bool:
        name = V2_NAMES.get(controller, controller)
        return controller in self.paths or ("" in self.paths and name in self.controllers)

    def problem(self, pointer: str, message: str) -> None:
        self.problems.append(Problem(pointer, message, "config-linux.md#control-groups"))


def write(
    path: str,
    value: object,
    origin: str,
    tolerate: tuple[int, ...] = (),
    otherwise: Sequence[Op] = (),
    hint: str = "",
    call: str = "write",
) -> Op:
    """The runtime writes `value` to `path`."""
    return Op(call, (path.encode(), str(value).encode()), origin, None, RUNTIME, tolerate, otherwise, (), hint)


def write_limits(
    resources: Resources, paths: Mapping[str, str], controllers: Sequence[str], zero_pids: bool = True
) -> Limits:
    """Everything of `resources` but the devices.  `zero_pids`: pids.limit 0 is a limit (1.3 and later), not "none"."""
    limits = Limits(paths, controllers)
    if resources.memory is not None:
        _memory(limits, resources.memory)
    if resources.cpu is not None:
        _cpu(limits, resources.cpu)
        _cpuset(limits, resources.cpu)
    if resources.pids is not None and resources.pids.limit is not None:
        _pids(limits, resources.pids.limit, zero_pids)
    if resources.block_io is not None:
        _block_io(limits, resources.block_io)
    _hugepages(limits, resources.hugepage_limits)
    _network(limits, resources.network or {})
    _rdma(limits, resources.rdma or {})
    _unified(limits, resources.unified)
    return limits


def _unlimited(value: int) -> str:
    return "max" if value < 0 else str(value)


def _memory(limits: Limits, memory: Memory) -> None:
    at = RESOURCES + "/memory/"
    asked = (
        ("limit", memory.limit),
        ("swap", memory.swap),
        ("reservation", memory.reservation),
        ("kernel", memory.kernel),
        ("kernelTCP", memory.kernel_tcp),
        ("disableOOMKiller", memory.disable_oom_killer),
        ("useHierarchy", memory.use_hierarchy),
        ("swappiness", None if memory.swappiness is None else 1),
    )
    first = next((name for name, value in asked if value), None)
    found = limits.place("memory", at + first) if first else None
    if found is None:
        return
    prefix, v2 = found
    limit, swap = memory.limit or 0, memory.swap or 0
    if memory.check_before_update and limit > 0:
        usage = prefix + ("memory.current" if v2 else "memory.usage_in_bytes")
        limits.ops.append(write(usage, limit, at + "checkBeforeUpdate", call="check_usage"))
    if v2:
        _memory_v2(limits, memory, prefix, limit, swap)
        return
    ops = limits.ops
    # Without swap accounting there is nothing to lift.
    lift = (ENOENT,) if limit == -1 and not swap else ()
    if limit == -1 and not swap:
        swap = -1
    both = write(prefix + "memory.memsw.limit_in_bytes", swap, at + "swap", lift, hint=USED)
    if limit:
        file = prefix + "memory.limit_in_bytes"
        # The limit may never be above that of memory and swap together: when raising, the latter goes first.
        turned = [both, write(file, limit, at + "limit", hint=USED)] if swap else []
        ops.append(write(file, limit, at + "limit", (EINVAL,) if swap else (), turned, USED))
    if swap:
        ops.append(both)
    if memory.reservation:
        ops.append(write(prefix + "memory.soft_limit_in_bytes", memory.reservation, at + "reservation"))
    if memory.kernel:
        ops.append(write(prefix + "memory.kmem.limit_in_bytes", memory.kernel, at + "kernel", hint=KMEM))
    if memory.kernel_tcp:
        ops.append(write(prefix + "memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp, at + "kernelTCP", hint=KMEM))
    if memory.swappiness is not None:
        ops.append(write(prefix + "memory.swappiness", memory.swappiness, at + "swappiness"))
    if memory.disable_oom_killer:
        ops.append(write(prefix + "memory.oom_control", 1, at + "disableOOMKiller"))
    if memory.use_hierarchy:
        ops.append(write(prefix + "memory.use_hierarchy", 1, at + "useHierarchy"))


def _memory_v2(limits: Limits, memory: Memory, prefix: str, limit: int, swap: int) -> None:
    at = RESOURCES + "/memory/"
    for name, value in (
        ("kernel", (memory.kernel or 0) > 0),
        ("kernelTCP", (memory.kernel_tcp or 0) > 0),
        ("swappiness", memory.swappiness is not None),
        ("disableOOMKiller", memory.disable_oom_killer),
    ):
        if value:
            limits.problem(at + name, "cgroup v2 has no equivalent")
    ops = limits.ops
    if limit == -1 and not swap:
        swap = -1
    if swap > 0 and limit <= 0:
        limits.problem(at + "swap", "needs a memory limit: v2 limits swap alone, so it is the difference of the two")
    elif swap > 0 and swap < limit:
        limits.problem(at + "swap", f"must not be less than the memory limit {limit}, but is {swap}")
    elif swap:
        alone = "max" if swap < 0 else str(swap - limit)
        # a kernel without swap accounting gives none or all: no file to say so is no failure
        tolerate = (ENOENT,) if alone in ("max", "0") else ()
        ops.append(write(prefix + "memory.swap.max", alone, at + "swap", tolerate, hint="needs swap accounting"))
    if limit:
        ops.append(write(prefix + "memory.max", _unlimited(limit), at + "limit"))
    if memory.reservation:
        ops.append(write(prefix + "memory.low", _unlimited(memory.reservation), at + "reservation"))


def cpu_weight(shares: int) -> int:
    """v2's cpu.weight (1 to 10000, 100 by default) for v1's shares (2 to 262144, 1024 by default).

    The curve of runc 1.3.2 and crun 1.23: through the least, the default and the greatest of both.  A straight line
    between the ends, as before, made the default shares a weight of 39.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    from math import ceil, log2

    log = log2(shares)
    # rounded to undo what floating point adds: 1024 shares are a weight of 100 exactly
    return ceil(round(10 ** ((log * log + 125 * log) / 612 - 7 / 34), 9))


def _cpu(limits: Limits, cpu: Cpu) -> None:
    at = RESOURCES + "/cpu/"
    asked = (
        ("shares", cpu.shares),
        ("quota", cpu.quota),
        ("period", cpu.period),
        ("burst", cpu.burst),
        ("idle", cpu.idle),
        ("realtimeRuntime", cpu.realtime_runtime),
        ("realtimePeriod", cpu.realtime_period),
    )
    first = next((name for name, value in asked if value), None)
    if first is None and 0 in (cpu.idle, cpu.burst) and limits.has("cpu"):
        first = "idle"  # nothing is asked for but to take back what an update set
    found = limits.place("cpu", at + first) if first else None
    if found is None:
        return
    prefix, v2 = found
    ops = limits.ops
    if cpu.idle == 0:
        # an idle cgroup takes no weight; kernels without the file have no idle ones
        ops.append(write(prefix + "cpu.idle", 0, at + "idle", (ENOENT,)))
    if cpu.shares:
        name, weight = ("cpu.weight", cpu_weight(cpu.shares)) if v2 else ("cpu.shares", cpu.shares)
        ops.append(write(prefix + name, weight, at + "shares", hint="a cgroup with cpu.idle takes none"))
    burst = prefix + ("cpu.max.burst" if v2 else "cpu.cfs_burst_us")
    if cpu.burst is not None:
        # Neither quota nor burst may pass the other: first if it fits already, and again after the quota.
        ops.append(write(burst, cpu.burst, at + "burst", (EINVAL, ENOENT)))
    if v2:
        _cpu_max(ops, cpu, prefix)
        for key, value in (("realtimeRuntime", cpu.realtime_runtime), ("realtimePeriod", cpu.realtime_period)):
            if value:
                limits.problem(at + key, "cgroup v2 has no equivalent")
    else:
        _pair(ops, prefix, "cpu.cfs", (cpu.period, cpu.quota), (at + "period", at + "quota"), PERIODS)
        runtime = (cpu.realtime_period, cpu.realtime_runtime)
        _pair(ops, prefix, "cpu.rt", runtime, (at + "realtimePeriod", at + "realtimeRuntime"), RT)
    if cpu.burst:
        ops.append(write(burst, cpu.burst, at + "burst", hint=PERIODS))
    if cpu.idle:
        ops.append(write(prefix + "cpu.idle", cpu.idle, at + "idle"))


def _cpu_max(ops: list[Op], cpu: Cpu, prefix: str) -> None:
    if cpu.quota or cpu.period:
        words = _unlimited(cpu.quota) if cpu.quota else "max"
        if cpu.period:
            words += f" {cpu.period}"
        name = "quota" if cpu.quota else "period"
        ops.append(write(prefix + "cpu.max", words, f"{RESOURCES}/cpu/{name}", hint=PERIODS))


def _pair(
    ops: list[Op], prefix: str, stem: str, values: tuple[int | None, int | None], at: tuple[str, str], hint: str
) -> None:
    """v1's period and time: each write is checked against the parent with the other's value of that moment."""
    period, time = values
    name = "quota" if stem == "cpu.cfs" else "runtime"
    last = write(f"{prefix}{stem}_{name}_us", time, at[1], hint=hint) if time else None
    if period:
        file = f"{prefix}{stem}_period_us"
        turned = [last, write(file, period, at[0], hint=hint)] if last else []
        ops.append(write(file, period, at[0], (EINVAL,) if last else (), turned, hint))
    if last:
        ops.append(last)


def _cpuset(limits: Limits, cpu: Cpu) -> None:
    for name, value in (("cpus", cpu.cpus), ("mems", cpu.mems)):
        at = f"{RESOURCES}/cpu/{name}"
        found = limits.place("cpuset", at) if value else None
        if found is not None:
            limits.ops.append(write(f"{found[0]}cpuset.{name}", value, at, hint=CPUSET))


def _pids(limits: Limits, limit: int, zero_pids: bool) -> None:
    at = RESOURCES + "/pids/limit"
    if limit == 0 and not zero_pids:
        return
    found = limits.place("pids", at)
    if found is not None:
        # A cgroup that may have no process takes none by clone3, and a unit of systemd's has one already; what is there
        # may stay.
        ops = limits.late if limit in (0, 1) else limits.ops
        # 1 and 0 are the same to what is in it, and systemd knows no 0
        ops.append(write(found[0] + "pids.max", _unlimited(limit) if limit else "1", at))


def io_weight(weight: int) -> int:
    """v2's io.weight (1 to 10000) for v1's (10 to 1000)."""
    return 1 + (weight - 10) * 9999 // 990


def _block_io(limits: Limits, block_io: BlockIO) -> None:
    at = RESOURCES + "/blockIO/"
    if block_io.leaf_weight:
        limits.problem(at + "leafWeight", "Linux has no leaf weights since 5.0")
    weights = [("", block_io.weight or 0, at + "weight")]
    for index, device in enumerate(block_io.weight_device):
        if device.leaf_weight:
            limits.problem(f"{at}weightDevice/{index}/leafWeight", "Linux has no leaf weights since 5.0")
        pointer = f"{at}weightDevice/{index}/weight"
        weights.append((f"{device.major}:{device.minor} ", device.weight or 0, pointer))
    hint = "needs a block device with the I/O scheduler bfq, or on v2 the io.cost controller"
    for number, weight, pointer in weights:
        found = limits.place("blkio", pointer) if weight else None
        if found is None:
            continue
        prefix, v2 = found
        if v2:
            # which of the two acts depends on the kernel and on the device's scheduler: write both, and have one
            bfq = write(prefix + "io.bfq.weight", f"{number}{weight}", pointer, hint=hint)
            tolerant = write(prefix + "io.bfq.weight", f"{number}{weight}", pointer, NOT_THERE)
            value = f"{number or 'default '}{io_weight(weight)}"
            limits.ops += [write(prefix + "io.weight", value, pointer, NOT_THERE, [bfq]), tolerant]
        else:
            suffix = "weight_device" if number else "weight"
            older = write(f"{prefix}blkio.{suffix}", f"{number}{weight}", pointer, hint=hint)
            limits.ops.append(
                write(f"{prefix}blkio.bfq.{suffix}", f"{number}{weight}", pointer, (ENOENT,), [older], hint)
            )
    for name, word, throttled in (
        ("throttleReadBpsDevice", "read_bps", block_io.throttle_read_bps_device),
        ("throttleWriteBpsDevice", "write_bps", block_io.throttle_write_bps_device),
        ("throttleReadIOPSDevice", "read_iops", block_io.throttle_read_iops_device),
        ("throttleWriteIOPSDevice", "write_iops", block_io.throttle_write_iops_device),
    ):
        for index, entry in enumerate(throttled):
            pointer = f"{at}{name}/{index}"
            found = limits.place("blkio", pointer)
            if found is None:
                continue
            prefix, v2 = found
            device_number = f"{entry.major}:{entry.minor}"
            hint = f"the block device {device_number} must exist"
            if v2:
                key = word[0] + word.partition("_")[2]
                line = f"{device_number} {key}={entry.rate or 'max'}"
                limits.ops.append(write(prefix + "io.max", line, pointer, hint=hint))
            else:
                file = f"{prefix}blkio.throttle.{word}_device"
                limits.ops.append(write(file, f"{device_number} {entry.rate}", pointer, hint=hint))


def _hugepages(limits: Limits, entries: Sequence[HugepageLimit]) -> None:
    for index, entry in enumerate(entries):
        at = f"{RESOURCES}/hugepageLimits/{index}"
        found = limits.place("hugetlb", at)
        if found is None:
            continue
        prefix, v2 = found
        stem, file = f"{prefix}hugetlb.{entry.page_size}.", "max" if v2 else "limit_in_bytes"
        hint = f"the kernel may have no huge pages of {entry.page_size}"
        fault = write(stem + file, entry.limit, at, hint=hint)
        # reservations where the kernel accounts for them, else faults (config-linux.md#huge-page-limits)
        limits.ops.append(write(f"{stem}rsvd.{file}", entry.limit, at, (ENOENT,), [fault]))


def _network(limits: Limits, network: dict[str, object]) -> None:
    at = RESOURCES + "/network/"
    class_id = network.get("classID")
    if class_id:
        directory = _v1_only(limits, "net_cls", at + "classID")
        if directory:
            limits.ops.append(write(directory + "/net_cls.classid", class_id, at + "classID"))
    priorities = network.get("priorities")
    if isinstance(priorities, list) and priorities:
        directory = _v1_only(limits, "net_prio", at + "priorities")
        for index, entry in enumerate(priorities if directory else ()):
            line = f"{entry['name']} {entry['priority']}"
            hint = "the interface must be in the runtime's network namespace"
            limits.ops.append(write(f"{directory}/net_prio.ifpriomap", line, f"{at}priorities/{index}", hint=hint))


def _v1_only(limits: Limits, controller: str, pointer: str) -> str | None:
    directory = limits.paths.get(controller)
    if directory is None:
        limits.problem(pointer, f"needs the cgroup v1 controller {controller!r}: v2 has none, and it is not mounted")
    return directory


def _rdma(limits: Limits, rdma: dict[str, object]) -> None:
    for device, values in rdma.items():
        at = f"{RESOURCES}/rdma/{escape(device)}"
        found = limits.place("rdma", at)
        if found is None or not isinstance(values, dict):
            continue
        words = [device]
        for name, key in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
            if values.get(name) is not None:
                words.append(f"{key}={values[name]}")
        limits.ops.append(write(found[0] + "rdma.max", " ".join(words), at, hint=f"the device {device} must exist"))


def _unified(limits: Limits, unified: Mapping[str, str]) -> None:
    """Files of v2 by name, verbatim and after all others, each line of a value by a write of its own."""
    for name, value in unified.items():
        at = f"{RESOURCES}/unified/{escape(name)}"
        if "" not in limits.paths:
            limits.problem(at, "names a file of cgroup v2, which this host does not have")
            continue
        controller = name.partition(".")[0]
        if controller != "cgroup":
            # pressure files (PSI) belong to no controller
            if controller not in limits.controllers and not name.endswith(".pressure"):
                offered = ", ".join(limits.controllers) or "none"
                limits.problem(at, f"needs the cgroup v2 controller {controller!r}; this host's v2 offers {offered}")
                continue
            if controller in limits.controllers:
                limits.needed.setdefault(controller, at)
        call = "write_lines" if "\n" in value.strip("\n") else "write"
        limits.ops.append(write(f"{limits.paths['']}/{name}", value, at, call=call))
