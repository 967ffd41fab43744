"""What a container has used: the data of `events --stats`, in the names and units that engines decode.

Times are nanoseconds, sizes bytes, whatever the kernel counts in.  Each part comes from the hierarchy that has its
controller, so a hybrid layout gives one answer; values of v2 are put into the names that v1 had.  Optional numbers that
are 0 and optional lists that are empty are left out, as readers expect who take the absence for that.

cgroups(7); the kernel's admin-guide/cgroup-v1/ and admin-guide/cgroup-v2.rst say what the files hold.
"""

from __future__ import annotations

import posix
from errno import EINVAL, ENODEV, ENOENT, EOPNOTSUPP

from pyoci.cgroup.files import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

UNLIMITED = (1 << 64) - 1  # what "max" is as a number
TICK = 10_000_000  # nanoseconds in a tick of cpuacct.stat: USER_HZ is 100 on every architecture that we know
ABSENT = (ENOENT, ENODEV, EOPNOTSUPP, EINVAL)
# table -> its file with v1's schedulers, best first: BFQ's, CFQ's, the throttling layer's, the same without children
BLOCK_IO = {
    "ioServiceBytesRecursive": (
        "bfq.io_service_bytes_recursive", "io_service_bytes_recursive", "throttle.io_service_bytes_recursive",
        "throttle.io_service_bytes",
    ),
    "ioServicedRecursive": (
        "bfq.io_serviced_recursive", "io_serviced_recursive", "throttle.io_serviced_recursive", "throttle.io_serviced",
    ),
    "ioQueueRecursive": ("bfq.io_queued_recursive", "io_queued_recursive"),
    "ioServiceTimeRecursive": ("bfq.io_service_time_recursive", "io_service_time_recursive"),
    "ioWaitTimeRecursive": ("bfq.io_wait_time_recursive", "io_wait_time_recursive"),
    "ioMergedRecursive": ("bfq.io_merged_recursive", "io_merged_recursive"),
    "ioTimeRecursive": ("bfq.time_recursive", "time_recursive"),
    "sectorsRecursive": ("bfq.sectors_recursive", "sectors_recursive"),
}  # fmt: skip
# a value of v2's io.stat -> (table, operation)
IO_STAT = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "dbytes": ("ioServiceBytesRecursive", "Discard"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
    "dios": ("ioServicedRecursive", "Discard"),
}
CPUSET = (
    "cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab",
    "memory_pressure", "sched_load_balance", "sched_relax_domain_level",
)  # fmt: skip


def stats(paths: Mapping[str, str]) -> dict[str, Any]:
    """All of it, of the container in the cgroups `paths` (controller, "" for v2, -> directory)."""
    return {
        "cpu": _cpu(paths),
        "cpuset": _cpuset(paths),
        "memory": _memory(paths),
        "pids": _pids(paths),
        "blkio": _block_io(paths),
        "hugetlb": _huge_pages(paths),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _cpu(paths: Mapping[str, str]) -> dict[str, Any]:
    usage: dict[str, Any] = {}
    throttling: dict[str, Any] = {}
    if "cpuacct" in paths:
        directory = paths["cpuacct"]
        modes = _pairs(directory + "/cpuacct.stat")
        # a header, then a line for each processor: number, user, system
        rows = [line.split() for line in _text(directory + "/cpuacct.usage_all").splitlines()[1:]]
        usage |= _nonzero(total=_number(directory + "/cpuacct.usage"))
        usage |= _nonzero(
            percpu=[int(word) for word in _text(directory + "/cpuacct.usage_percpu").split()],
            percpu_kernel=[int(row[2]) for row in rows if len(row) == 3],
            percpu_user=[int(row[1]) for row in rows if len(row) == 3],
        )
        usage["kernel"] = modes.get("system", 0) * TICK
        usage["user"] = modes.get("user", 0) * TICK
    # without the controller v2 has the times all the same
    if "cpu" in paths:
        counts = _pairs(paths["cpu"] + "/cpu.stat")
        throttled = counts.get("throttled_time", 0)
    else:
        counts = _pairs(paths[""] + "/cpu.stat") if "" in paths else {}
        throttled = counts.get("throttled_usec", 0) * 1000
    if "cpuacct" not in paths:
        usage |= _nonzero(total=counts.get("usage_usec", 0) * 1000)
        usage["kernel"] = counts.get("system_usec", 0) * 1000
        usage["user"] = counts.get("user_usec", 0) * 1000
    throttling = _nonzero(
        periods=counts.get("nr_periods", 0), throttledPeriods=counts.get("nr_throttled", 0), throttledTime=throttled
    )
    return {"usage": usage, "throttling": throttling, **_pressure(paths, "cpu")}


def _cpuset(paths: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(CPUSET, 0)
    cpus: list[int] = []
    mems: list[int] = []
    if "cpuset" in paths:
        directory = paths["cpuset"]
        cpus, mems = (numbers(_text(f"{directory}/cpuset.{name}")) for name in ("cpus", "mems"))
        found = {name: _number(f"{directory}/cpuset.{name}") for name in CPUSET}
    first = found.pop("cpu_exclusive")
    return {**_nonzero(cpus=cpus), "cpu_exclusive": first, **_nonzero(mems=mems), **found}


def _memory(paths: Mapping[str, str]) -> dict[str, Any]:
    names = {"usage": "", "swap": ".memsw", "kernel": ".kmem", "kernelTCP": ".kmem.tcp"}
    parts: dict[str, Any] = {name: {"limit": 0, "failcnt": 0} for name in names}
    raw: dict[str, int] = {}
    cache = 0
    if "memory" in paths:
        directory = paths["memory"]
        raw = _pairs(directory + "/memory.stat")
        cache = raw.get("cache", 0)
        for name, infix in names.items():
            base = f"{directory}/memory{infix}."
            if raw and _text(base + "usage_in_bytes"):
                limit, used = _number(base + "limit_in_bytes"), _number(base + "usage_in_bytes")
                parts[name] = _entry(limit, used, _number(base + "max_usage_in_bytes"), _number(base + "failcnt"))
    elif "" in paths and (raw := _pairs(paths[""] + "/memory.stat")):
        base = paths[""] + "/memory."
        cache = raw.get("file", 0)
        events = _pairs(base + "events")
        used, limit = _number(base + "current"), _number(base + "max")
        parts["usage"] = _entry(limit, used, _number(base + "peak"), events.get("max", 0))
        if _text(base + "swap.current"):
            most = _number(base + "swap.max")
            # of memory and swap together, as in v1; nothing counts the most of that
            total = UNLIMITED if UNLIMITED in (most, limit) else most + limit
            refused = _pairs(base + "swap.events").get("max", 0)
            parts["swap"] = _entry(total, used + _number(base + "swap.current"), 0, refused)
    found = {**_nonzero(cache=cache), **parts}
    if raw:
        found["raw"] = dict(sorted(raw.items()))
    return found | _pressure(paths, "memory")


def _pids(paths: Mapping[str, str]) -> dict[str, Any]:
    directory = paths.get("pids", paths.get("", ""))
    current = _text(directory + "/pids.current") if directory else ""
    if not current:
        # no controller that counts: the processes that are there
        from pyoci.cgroup.live import procs

        return _nonzero(current=len(procs(paths)))
    limit = _text(directory + "/pids.max").strip()
    return _nonzero(current=int(current), limit=0 if limit in ("max", "") else int(limit))


def _block_io(paths: Mapping[str, str]) -> dict[str, Any]:
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in BLOCK_IO}
    if "blkio" in paths:
        for name, files in BLOCK_IO.items():
            for file in files:
                tables[name] = block_io_table(_text(f"{paths['blkio']}/blkio.{file}"))
                if tables[name]:
                    break
    elif "" in paths:
        for name, entry in io_stat(_text(paths[""] + "/io.stat")):
            tables[name].append(entry)
    return _nonzero(**tables) | _pressure(paths, "io")


def block_io_table(text: str) -> list[dict[str, Any]]:
    """Lines `8:0 Read 4096`, or `8:0 4096` where operations are not told apart; the last line is a total."""
    found = []
    for line in text.splitlines():
        device, *words = line.split()
        if ":" in device and words:
            major, _, minor = device.partition(":")
            operation = words[0] if len(words) > 1 else ""
            found.append(_nonzero(major=int(major), minor=int(minor), op=operation, value=int(words[-1])))
    return found


def io_stat(text: str) -> list[tuple[str, dict[str, Any]]]:
    """v2's lines `8:0 rbytes=4096 wbytes=0 ...` as entries of v1's tables."""
    found = []
    for line in text.splitlines():
        major = minor = 0
        for word in line.split():
            name, equals, value = word.partition("=")
            # some kernels write devices without any use, and without the end of their line, before the next one
            if not equals and ":" in word:
                major, minor = (int(part) for part in word.split(":"))
            elif name in IO_STAT and value.isdigit():
                table, operation = IO_STAT[name]
                found.append((table, _nonzero(major=major, minor=minor, op=operation, value=int(value))))
    return found


def _huge_pages(paths: Mapping[str, str]) -> dict[str, Any]:
    """Page size ("2MB") -> use; of reservations, which is what is limited, where the kernel counts them."""
    found: dict[str, Any] = {}
    directory = paths.get("hugetlb", paths.get("", ""))
    try:
        names = sorted(posix.listdir(directory)) if directory else []
    except OSError:
        return found
    suffix = ".usage_in_bytes" if "hugetlb" in paths else ".current"
    for name in names:
        size = name.removeprefix("hugetlb.").removesuffix(suffix)
        if not (name.startswith("hugetlb.") and name.endswith(suffix)) or "." in size:
            continue
        counted = f"hugetlb.{size}.rsvd" if f"hugetlb.{size}.rsvd{suffix}" in names else f"hugetlb.{size}"
        base = f"{directory}/{counted}"
        if "hugetlb" in paths:
            most, refused = _number(base + ".max_usage_in_bytes"), _number(base + ".failcnt")
        else:
            most, refused = 0, _pairs(f"{directory}/hugetlb.{size}.events").get("max", 0)
        found[size] = {**_nonzero(usage=_number(base + suffix), max=most), "failcnt": refused}
    return found


def _pressure(paths: Mapping[str, str], what: str) -> dict[str, Any]:
    """{"psi": stall times} where v2 has them (admin-guide/accounting/psi.rst): shares in percent, total in µs."""
    text = _text(f"{paths['']}/{what}.pressure") if "" in paths else ""
    found: dict[str, Any] = {kind: {"avg10": 0, "avg60": 0, "avg300": 0, "total": 0} for kind in ("some", "full")}
    for line in text.splitlines():
        kind, *words = line.split()
        for word in words:
            name, _, value = word.partition("=")
            if kind in found and name in found[kind]:
                number = float(value)
                found[kind][name] = int(number) if number == int(number) else number
    return {"psi": found} if text else {}


def _entry(limit: int, usage: int, most: int, refused: int) -> dict[str, int]:
    return {"limit": limit, **_nonzero(usage=usage, max=most), "failcnt": refused}


def numbers(text: str) -> list[int]:
    """A list of cpuset's: "0-2,5" are 0, 1, 2 and 5."""
    found: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
    return found


def _nonzero(**values: Any) -> dict[str, Any]:
    """Those that are neither 0 nor empty."""
    return {name: value for name, value in values.items() if value}


def _pairs(path: str) -> dict[str, int]:
    """A file of lines `name number`."""
    found = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def _number(path: str) -> int:
    """A file of one number, or "max"; 0 where there is none."""
    text = _text(path).strip()
    return UNLIMITED if text == "max" else int(text or "0")


def _text(path: str) -> str:
    """A file, "" where the kernel has no such file, or no such statistics, or the cgroup is gone."""
    try:
        return read(path).decode("utf-8", "surrogateescape")
    except OSError as error:
        if error.errno in ABSENT:
            return ""
        raise
