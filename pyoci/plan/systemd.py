"""A container's cgroups made by systemd, for --systemd-cgroup: one transient unit, and what it is told.

`linux.cgroupsPath` is `slice:prefix:name`: the unit `prefix-name.scope` (or `name` itself where that ends in .slice) in
`slice`.  Without one it is `pyoci-ID.scope` in system.slice, or in user.slice of a user's own systemd.

The unit is started when init's first stage exists and before it makes the container's process, because a scope has a
process from its beginning, and because a user's process may only be put into a cgroup from one beside it: the stage is
that process.  What systemd knows a property for is told it, so that it stays what it is when systemd writes everything
anew; the files of the cgroup are written as well, which is exact where systemd rounds.

Only the runtime's ops are here; `cgroup/systemd.py` performs them.
"""

from __future__ import annotations

from pyoci.errors import ConfigError, Problem
from pyoci.gvariant import parse, show
from pyoci.jsontext import escape
from pyoci.kernel import scheduling
from pyoci.plan.cgroup_entry import PATH_CLAUSE, join_ops, open_cgroup
from pyoci.plan.cgroup_limits import RESOURCES, cpu_weight, io_weight, write_limits
from pyoci.plan.cgroups import PATH, V1, CgroupPlan, add_devices, enable_ops, owner_ops, version_of
from pyoci.plan.ops import RUNTIME, Op, Ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyoci.host import Host
    from pyoci.spec.types import BlockIO, Cpu, Memory, Resources, Spec

ANNOTATION = "org.systemd.property."
INFINITY = (1 << 64) - 1
SECOND = 1_000_000  # systemd counts microseconds
STEP = 10_000  # of CPUQuotaPerSecUSec, which systemd shows in whole percents
IDLE = 0  # CPUWeight=idle, of systemd 252 and later; `cgroup/systemd.py` leaves it out where it is not known
PERIOD = 100_000  # the kernel's default cpu period
MOST_CPUS = 8192  # CONFIG_NR_CPUS_RANGE_END of x86_64, the most of all architectures
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.-")
LONGEST = 255  # bytes of a unit's name (systemd.unit(5))
# What makes the unit the container's: given by us and by nobody else.
OURS = frozenset(("PIDs", "PIDFDs", "Slice", "Delegate", "ControlGroup"))
DELEGATION = (
    "; systemd gives its users what user@.service delegates: Delegate=cpu cpuset io memory pids in"
    " /etc/systemd/system/user@.service.d/delegate.conf"
)
# (property, signature, value, origin)
Property = tuple[str, str, object, str]


class Unit:
    """`name`, the `slice` that it is in, and `directory`, its cgroup below systemd's own."""

    __slots__ = ("directory", "name", "slice")

    def __init__(self, name: str, slice: str) -> None:
        self.name = name
        self.slice = slice
        self.directory = "/".join([*slice_path(slice), cgroup_name(name)])

    @property
    def is_slice(self) -> bool:
        """A slice has no processes of its own to begin with."""
        return self.name.endswith(".slice")


def unit_of(written: str, id: str, user: bool) -> Unit:
    """The unit of a cgroupsPath; ConfigError when it is of another form or names no unit."""
    slice, prefix, name = "", "pyoci", id
    if written:
        parts = written.split(":")
        if len(parts) != 3 or "/" in written or not parts[2]:
            _refuse(
                f"{written!r} is not of the form slice:prefix:name, which --systemd-cgroup needs; without that option"
                " it may be a path"
            )
        slice, prefix, name = parts
    slice = slice or ("user.slice" if user else "system.slice")
    slice = "-.slice" if slice == "-" else slice
    stem = slice.removesuffix(".slice")
    if stem == slice or not _is_name(slice) or (slice != "-.slice" and "" in stem.split("-")):
        _refuse(f"{slice!r} is not the name of a slice, such as machine.slice or a-b.slice")
    if name.endswith(".slice"):
        stem = name.removesuffix(".slice")
        if not _is_name(name) or "" in stem.split("-"):
            _refuse(f"{name!r} is not the name of a slice")
        # where a slice is, its name says
        return Unit(name, stem.rpartition("-")[0] + ".slice" if "-" in stem else "-.slice")
    unit = "".join(c if c in LETTERS else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in name) + ".scope"
    if prefix:
        unit = f"{prefix}-{unit}"
    if not _is_name(unit):
        _refuse(f"{unit!r} is not the name of a unit: at most {LONGEST} of A-Z a-z 0-9 : _ . - \\")
    return Unit(unit, slice)


def _refuse(message: str) -> None:
    raise ConfigError([Problem(PATH, message, PATH_CLAUSE)])


def _is_name(text: str) -> bool:
    return 0 < len(text) <= LONGEST and all(c in LETTERS or c == "\\" for c in text)


def slice_path(slice: str) -> list[str]:
    """The directories of a slice: a-b.slice is in a.slice (systemd.slice(5)); the root slice has none."""
    if slice == "-.slice":
        return []
    parts = slice.removesuffix(".slice").split("-")
    return [cgroup_name("-".join(parts[: count + 1]) + ".slice") for count in range(len(parts))]


def cgroup_name(unit: str) -> str:
    """systemd puts "_" before names that could be files of the cgroup file system."""
    first = unit.partition(".")[0]
    reserved = unit[0] in "_." or unit.startswith("cgroup.") or ("." in unit and first in (*V1, "io", "memory"))
    return "_" + unit if reserved else unit


def plan_systemd(spec: Spec, host: Host, id: str, rootless: bool) -> CgroupPlan:
    """As `plan_cgroups`, with a unit of systemd's; `host.systemd` says whose."""
    plan = CgroupPlan()
    written = spec.linux.cgroups_path or ""
    origin = PATH if written else PATH_CLAUSE
    user = host.systemd == "user"
    unit = unit_of(written, id, user)
    plan.unit = f"{host.systemd} {unit.name}"
    for controller in (*V1, ""):
        mount = host.cgroup_mounts.get(controller)
        # a user's systemd has nothing of v1 but its own hierarchy
        if mount is not None and not (user and controller not in ("", "name=systemd")):
            plan.paths[controller] = f"{mount.rstrip('/')}{host.systemd_cgroup}/{unit.directory}"
    resources = spec.linux.resources
    problems: list[Problem] = []
    ops = [_property(*entry) for entry in _properties(spec, unit, origin, plan.paths, problems)]
    ops.append(Op("start_unit", (unit.name.encode(), Ref("stage")), origin, None, RUNTIME))
    cpuset = plan.paths.get("cpuset")
    for directory in dict.fromkeys(plan.paths.values()):
        call = "adopt_cpuset" if directory == cpuset else "adopt_cgroup"
        ops.append(Op(call, (directory.encode(),), origin, None, RUNTIME))
    limits = None
    if resources is not None:
        zero_pids = version_of(spec.oci_version) >= (1, 3)
        limits = write_limits(resources, plan.paths, host.cgroup_controllers, zero_pids)
    if limits is not None:
        ops += enable_ops(plan, host, limits, origin)
    if "" in plan.paths:
        plan.clone_into = plan.paths[""].encode()
        ops += owner_ops(spec, host, plan)
    if limits is not None:
        ops += limits.ops
    plan.before_clone += ops
    if "" in plan.paths:
        plan.before_clone.append(open_cgroup(plan.paths[""].encode(), origin))
    listed = resources is not None and bool(resources.devices) and not rootless and host.initial_user_namespace
    if listed and resources is not None and limits is not None:
        made = len(plan.create)
        add_devices(plan, resources, limits)
        # v1's device files can only be written once the unit is there
        plan.before_clone[len(ops) : len(ops)] = plan.create[made:]
        del plan.create[made:]
    _, opens, enter = join_ops(plan.paths, origin)
    plan.before_clone += opens
    plan.enter = enter + (limits.late if limits is not None else [])
    alone = resources is not None and _allows_one(resources, spec.oci_version)
    if alone and f"{ANNOTATION}TasksMax" not in spec.annotations:
        # not before: the unit has a process before the container's is made
        plan.enter += _one_task(unit.name)
    if limits is not None:
        hint = DELEGATION if user else ""
        problems += [Problem(one.pointer, one.message + hint, one.clause) for one in limits.problems]
    if problems:
        raise ConfigError(problems)
    return plan


def _allows_one(resources: Resources, oci_version: str) -> bool:
    """No further process than the container's first: 0 is 1 to systemd, and nothing before 1.3 of the specification."""
    limit = None if resources.pids is None else resources.pids.limit
    return limit == 1 or (limit == 0 and (not oci_version or version_of(oci_version) >= (1, 3)))


def _one_task(unit: str) -> list[Op]:
    origin = RESOURCES + "/pids/limit"
    return [_property("TasksMax", "t", 1, origin), Op("set_unit", (unit.encode(),), origin, None, RUNTIME)]


def _property(name: str, signature: str, value: object, origin: str) -> Op:
    return Op("unit_property", (name.encode(), show(value, signature).encode()), origin, None, RUNTIME)


def plan_unit_update(resources: Resources, unit: str, paths: Mapping[str, str], oci_version: str = "") -> list[Op]:
    """The runtime's ops that tell systemd of changed limits; `unit` as the state keeps it."""
    ops = [_property(*entry) for entry in limit_properties(resources, "cpu" not in paths and "memory" not in paths)]
    if _allows_one(resources, oci_version):
        ops.append(_property("TasksMax", "t", 1, RESOURCES + "/pids/limit"))
    if ops:
        ops.append(Op("set_unit", (unit.partition(" ")[2].encode(),), RESOURCES, None, RUNTIME))
    return ops


def _properties(
    spec: Spec, unit: Unit, origin: str, paths: Mapping[str, str], problems: list[Problem]
) -> list[Property]:
    """What the unit is told, annotations last and in the place of what they replace."""
    found: list[Property] = [
        ("DefaultDependencies", "b", False, origin),
        ("CollectMode", "s", "inactive-or-failed", origin),
    ]
    if not unit.is_slice:
        found += [("Slice", "s", unit.slice, origin), ("Delegate", "b", True, origin)]
    # who watches a container reads its usage
    v2 = "cpu" not in paths and "memory" not in paths
    accounting = ("CPU", "Memory", "IO" if v2 else "BlockIO", "Tasks")
    found += [(f"{name}Accounting", "b", True, origin) for name in accounting]
    resources = spec.linux.resources
    if resources is not None:
        found += limit_properties(resources, v2)
        if "devices" in paths and resources.devices:
            found += _device_properties(resources)
    given: list[Property] = []
    for key, text in spec.annotations.items():
        if key.startswith(ANNOTATION):
            pointer = "/annotations/" + escape(key)
            try:
                name, signature, value = annotation(key, text)
            except ValueError as error:
                problems.append(Problem(pointer, f"{text!r}: {error}", "config.md#annotations"))
                continue
            given.append((name, signature, value, pointer))
    replaced = {name for name, *_ in given}
    return [entry for entry in found if entry[0] not in replaced] + given


def annotation(key: str, text: str) -> tuple[str, str, object]:
    """(property, signature, value) of `org.systemd.property.NAME`; a NAME in seconds (...Sec) is told as ...USec."""
    name = key[len(ANNOTATION) :]
    if not (name.isascii() and name.isalpha() and len(name) > 2) or name in OURS:
        what = "is pyoci's to set" if name in OURS else "is not the name of a property"
        raise ValueError(f"{name!r} {what}")
    signature, value = parse(text)
    if name.endswith("Sec") and not name.endswith("USec"):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} is a number of seconds")
        return name[:-3] + "USec", "t", min(INFINITY, int(value * SECOND))
    return name, signature, value


def _bytes(value: int) -> int:
    return INFINITY if value < 0 else value


def limit_properties(resources: Resources, v2: bool) -> list[Property]:
    """What of /linux/resources systemd has a property for; zero and absent are the same, as for the files."""
    found: list[Property] = []
    if resources.memory is not None:
        found += _memory(resources.memory, v2)
    if resources.cpu is not None:
        found += _cpu(resources.cpu, v2)
    if resources.pids is not None and resources.pids.limit and resources.pids.limit != 1:
        # see _allows_one
        found.append(("TasksMax", "t", _bytes(resources.pids.limit), RESOURCES + "/pids/limit"))
    if resources.block_io is not None:
        found += _block_io(resources.block_io, v2)
    if v2:
        found += _unified(resources.unified)
    return found


def _memory(memory: Memory, v2: bool) -> Iterator[Property]:
    at = RESOURCES + "/memory/"
    limit, swap = memory.limit or 0, memory.swap or 0
    if limit:
        yield "MemoryMax" if v2 else "MemoryLimit", "t", _bytes(limit), at + "limit"
    if not v2:
        return
    if memory.reservation:
        yield "MemoryLow", "t", _bytes(memory.reservation), at + "reservation"
    if swap < 0 or (limit < 0 and not swap):
        yield "MemorySwapMax", "t", INFINITY, at + ("swap" if swap else "limit")
    elif 0 < limit <= swap:
        yield "MemorySwapMax", "t", swap - limit, at + "swap"


def _cpu(cpu: Cpu, v2: bool) -> Iterator[Property]:
    at = RESOURCES + "/cpu/"
    if v2 and cpu.idle is not None and (cpu.idle or not cpu.shares):
        yield "CPUWeight", "t", IDLE if cpu.idle else INFINITY, at + "idle"
    elif cpu.shares and not cpu.idle:
        if v2:
            yield "CPUWeight", "t", cpu_weight(cpu.shares), at + "shares"
        else:
            yield "CPUShares", "t", cpu.shares, at + "shares"
    if cpu.period:
        yield "CPUQuotaPeriodUSec", "t", cpu.period, at + "period"
    if cpu.quota:
        yield "CPUQuotaPerSecUSec", "t", _quota(cpu.quota, cpu.period), at + "quota"
    if v2:
        for name, property, text in (("cpus", "AllowedCPUs", cpu.cpus), ("mems", "AllowedMemoryNodes", cpu.mems)):
            if text and (bits := mask(text)):
                yield property, "ay", bits, at + name


def _quota(quota: int, period: int | None) -> int:
    if quota < 0:
        return INFINITY
    time = quota * SECOND // (period or PERIOD)
    # never less than what the file will say
    return max(STEP, -(-time // STEP) * STEP)


def mask(text: str) -> bytes:
    """A list such as "0-3,7" as systemd takes it: a bit a number, the lowest first.

    Nothing for what no kernel can have: the file, which is written as well, refuses it in the kernel's words.
    """
    try:
        number = scheduling.mask(text, MOST_CPUS)
    except ValueError:
        return b""
    return number.to_bytes((number.bit_length() + 7) // 8, "little")


def _block_io(block_io: BlockIO, v2: bool) -> Iterator[Property]:
    at = RESOURCES + "/blockIO/"
    prefix = "IO" if v2 else "BlockIO"
    if block_io.weight:
        yield prefix + "Weight", "t", io_weight(block_io.weight) if v2 else block_io.weight, at + "weight"
    weights = [
        (f"/dev/block/{device.major}:{device.minor}", io_weight(device.weight) if v2 else device.weight)
        for device in block_io.weight_device
        if device.weight
    ]
    if weights:
        yield prefix + "DeviceWeight", "a(st)", weights, at + "weightDevice"
    for property, name, throttled in (
        ("ReadBandwidth", "throttleReadBpsDevice", block_io.throttle_read_bps_device),
        ("WriteBandwidth", "throttleWriteBpsDevice", block_io.throttle_write_bps_device),
        ("ReadIOPS", "throttleReadIOPSDevice", block_io.throttle_read_iops_device),
        ("WriteIOPS", "throttleWriteIOPSDevice", block_io.throttle_write_iops_device),
    ):
        rates = [(f"/dev/block/{entry.major}:{entry.minor}", entry.rate or INFINITY) for entry in throttled]
        if rates and (v2 or property.endswith("Bandwidth")):
            yield f"{prefix}{property}{'Max' if v2 else ''}", "a(st)", rates, at + name


UNIFIED = {
    "memory.max": "MemoryMax", "memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax", "cpu.weight": "CPUWeight", "io.weight": "IOWeight",
}  # fmt: skip
# Of which the kernel takes none at all, and systemd at least one.
NEVER_NONE = ("MemoryMax", "MemoryHigh")


def _unified(unified: Mapping[str, str]) -> Iterator[Property]:
    """Files that a property stands behind; others are only written, and systemd leaves them alone."""
    for name, text in unified.items():
        at = f"{RESOURCES}/unified/{escape(name)}"
        words = text.split()
        if name in UNIFIED:
            word = words[-1] if words else ""
            if word == "max" or (word.isascii() and word.isdigit()):
                least = 1 if UNIFIED[name] in NEVER_NONE else 0
                yield UNIFIED[name], "t", INFINITY if word == "max" else max(least, int(word)), at
        elif name == "cpu.idle" and words in (["0"], ["1"]):
            if words == ["1"] or "cpu.weight" not in unified:
                yield "CPUWeight", "t", IDLE if words == ["1"] else INFINITY, at
        elif name == "cpu.max" and words and all(word == "max" or word.isdigit() for word in words):
            period = int(words[1]) if len(words) > 1 and words[1].isdigit() else PERIOD
            yield "CPUQuotaPeriodUSec", "t", period, at
            yield "CPUQuotaPerSecUSec", "t", INFINITY if words[0] == "max" else _quota(int(words[0]), period), at
        elif name in ("cpuset.cpus", "cpuset.mems") and len(words) == 1 and (bits := mask(words[0])):
            yield "AllowedCPUs" if name == "cpuset.cpus" else "AllowedMemoryNodes", "ay", bits, at


def _device_properties(resources: Resources) -> list[Property]:
    """v1's device list as systemd would write it anew: what it has no words for, it does not allow.

    v2 needs none: there the list is a program of our own, which systemd lets be.
    """
    from pyoci.plan.device_rules import Hole, Policy, v1_lines

    at = RESOURCES + "/devices"
    policy = Policy(resources.devices)
    if policy.base:
        return []
    granted: dict[str, str] = {}
    try:
        lines = v1_lines(policy)
    except Hole:
        return []  # add_devices says what is wrong
    for allow, _, line in lines:
        if line == b"a":
            continue
        kind, numbers, access = line.decode().split(" ")
        word = "block" if kind == "b" else "char"
        if numbers == "*:*":
            name = word + "-*"
        elif numbers == "136:*" and kind == "c":
            name = "char-pts"
        elif "*" in numbers:
            continue
        else:
            name = f"/dev/{word}/{numbers}"
        before = granted.get(name, "")
        if allow:
            granted[name] = "".join(bit for bit in "rwm" if bit in before or bit in access)
        else:
            granted[name] = "".join(bit for bit in before if bit not in access)
    allowed = [(name, access) for name, access in granted.items() if access]
    return [("DevicePolicy", "s", "strict", at), ("DeviceAllow", "a(ss)", allowed, at)]
