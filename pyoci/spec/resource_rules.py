"""The checks of /linux/resources; `update` uses them for the resources it is given, too."""

from __future__ import annotations

from pyoci.jsontext import escape
from pyoci.spec.read import Report, one_of, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyoci.spec.types import Resources

# Files of every cgroup by which a process would be moved, stopped or killed instead of a limit set.
CGROUP_CORE = frozenset(
    ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "cgroup.kill", "cgroup.freeze", "cgroup.type")
)

DIGITS = frozenset("0123456789")


def _range(value: int | None, least: int, most: int, where: str, report: Report) -> None:
    if value is not None and not least <= value <= most:
        report.add(where, f"must be an integer from {least} to {most}, not {value}")


def _at_least(value: int | None, least: int, where: str, report: Report) -> None:
    if value is not None and value < least:
        report.add(where, f"must not be less than {least}, but is {value}")


def device_rules(resources: Resources, where: str, report: Report) -> None:
    """config-linux.md#allowed-device-list: type a, b or c; access a composition of r, w and m."""
    for index, rule in enumerate(resources.devices):
        place = f"{where}/devices/{index}"
        if rule.type not in ("a", "b", "c"):
            report.add(place + "/type", one_of(rule.type, ("a", "b", "c")))
        if not rule.access or rule.access.strip("rwm"):
            report.add(place + "/access", f"must be a composition of r, w and m, not {shown(rule.access)}")
        for name, number in (("major", rule.major), ("minor", rule.minor)):
            _range(number, 0, 2**32 - 1, f"{place}/{name}", report)


def memory(resources: Resources, where: str, report: Report) -> None:
    """config-linux.md#memory: bytes or -1; swap is memory and swap together, so it needs a limit and is no less."""
    memory = resources.memory
    if memory is None:
        return
    where += "/memory"
    for name, value in (
        ("limit", memory.limit),
        ("reservation", memory.reservation),
        ("swap", memory.swap),
        ("kernel", memory.kernel),
        ("kernelTCP", memory.kernel_tcp),
    ):
        _at_least(value, -1, f"{where}/{name}", report)
    _range(memory.swappiness, 0, 100, where + "/swappiness", report)
    if memory.swap is not None and memory.swap > 0 and not report.unreliable(where + "/limit"):
        if memory.limit is None or memory.limit < 1:
            report.add(where + "/swap", "needs a memory limit: it is the limit of memory and swap together")
        elif memory.swap < memory.limit:
            report.add(where + "/swap", f"must not be less than the memory limit {memory.limit}, but is {memory.swap}")


def cpu(resources: Resources, where: str, report: Report) -> None:
    """config-linux.md#cpu: times that the scheduler takes, burst <= quota, idle 0 or 1, lists of numbers."""
    cpu = resources.cpu
    if cpu is None:
        return
    where += "/cpu"
    if cpu.quota is not None and cpu.quota > 0:
        # CONFIG_CFS_BANDWIDTH: a millisecond to a second of period, at least a millisecond of quota
        _at_least(cpu.quota, 1000, where + "/quota", report)
        if cpu.burst is not None and cpu.burst > cpu.quota:
            report.add(where + "/burst", f"must not be greater than the quota {cpu.quota}, but is {cpu.burst}")
    if cpu.period:
        _range(cpu.period, 1000, 1_000_000, where + "/period", report)
    _at_least(cpu.realtime_runtime, -1, where + "/realtimeRuntime", report)
    if cpu.realtime_runtime is not None and cpu.realtime_period and cpu.realtime_runtime > cpu.realtime_period:
        message = f"must not be greater than realtimePeriod {cpu.realtime_period}, but is {cpu.realtime_runtime}"
        report.add(where + "/realtimeRuntime", message)
    _range(cpu.idle, 0, 1, where + "/idle", report)
    for name, value in (("cpus", cpu.cpus), ("mems", cpu.mems)):
        if value is not None and not number_list(value):
            report.add(f"{where}/{name}", f"{shown(value)} is not a list of numbers and ranges such as 0-3,7")


def number_list(text: str) -> bool:
    """Whether `text` is what cpuset.cpus takes: "0-3,7" (cpuset(7), list format, without its stride form)."""
    for part in text.strip(" ").split(","):
        first, dash, last = part.strip(" ").partition("-")
        if not _digits(first) or (dash and (not _digits(last) or int(first) > int(last))):
            return False
    return True


def _digits(text: str) -> bool:
    return 0 < len(text) < 10 and DIGITS.issuperset(text)


def pids(resources: Resources, where: str, report: Report) -> None:
    """config-linux.md#pids: -1 is no limit."""
    if resources.pids is not None:
        _at_least(resources.pids.limit, -1, where + "/pids/limit", report)


def _weight(value: int | None, where: str, report: Report) -> None:
    """0 is written by engines for none."""
    if value:
        _range(value, 10, 1000, where, report)


def block_io(resources: Resources, where: str, report: Report) -> None:
    """config-linux.md#block-io: weights from 10 to 1000, and at least one for a device; device numbers."""
    block_io = resources.block_io
    if block_io is None:
        return
    where += "/blockIO"
    _weight(block_io.weight, where + "/weight", report)
    _weight(block_io.leaf_weight, where + "/leafWeight", report)
    for index, device in enumerate(block_io.weight_device):
        place = f"{where}/weightDevice/{index}"
        if device.weight is None and device.leaf_weight is None:
            report.add(place, "must have weight or leafWeight")
        _weight(device.weight, place + "/weight", report)
        _weight(device.leaf_weight, place + "/leafWeight", report)
        _at_least(device.major, 0, place + "/major", report)
        _at_least(device.minor, 0, place + "/minor", report)
    for name, throttled in (
        ("throttleReadBpsDevice", block_io.throttle_read_bps_device),
        ("throttleWriteBpsDevice", block_io.throttle_write_bps_device),
        ("throttleReadIOPSDevice", block_io.throttle_read_iops_device),
        ("throttleWriteIOPSDevice", block_io.throttle_write_iops_device),
    ):
        for index, limit in enumerate(throttled):
            _at_least(limit.major, 0, f"{where}/{name}/{index}/major", report)
            _at_least(limit.minor, 0, f"{where}/{name}/{index}/minor", report)


def hugepage_limits(resources: Resources, where: str, report: Report) -> None:
    """config-linux.md#huge-page-limits: pageSize is <size><unit-prefix>B, each at most once."""
    seen: set[str] = set()
    for index, limit in enumerate(resources.hugepage_limits):
        place = f"{where}/hugepageLimits/{index}/pageSize"
        size = limit.page_size
        if size[-2:] not in ("KB", "MB", "GB") or size[0] == "0" or not size[:-2] or not DIGITS.issuperset(size[:-2]):
            report.add(place, f"{shown(size)} is not a page size such as 64KB, 2MB or 1GB")
        elif size in seen:
            report.add(place, f"{size} is there twice")
        seen.add(size)


def rdma(resources: Resources, where: str, report: Report) -> None:
    """config-linux.md#rdma: at least one of hcaHandles or hcaObjects."""
    for name, limits in (resources.rdma or {}).items():
        if isinstance(limits, dict) and limits.get("hcaHandles") is None and limits.get("hcaObjects") is None:
            report.add(f"{where}/rdma/{escape(name)}", "must have hcaHandles or hcaObjects")


def unified(resources: Resources, where: str, report: Report) -> None:
    """config-linux.md#unified: names of files in the container's cgroup, and not those that act on its processes."""
    for name in resources.unified:
        place = f"{where}/unified/{escape(name)}"
        if "/" in name or "." not in name.strip("."):
            report.add(place, f"{shown(name)} is not the name of a cgroup file such as memory.high")
        elif name in CGROUP_CORE:
            report.add(place, f"{name} does not set a limit: it is the runtime's")


CHECKS: tuple[Callable[[Resources, str, Report], None], ...] = (
    device_rules, memory, cpu, pids, block_io, hugepage_limits, rdma, unified,
)  # fmt: skip
