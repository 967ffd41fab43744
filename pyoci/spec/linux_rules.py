"""The checks of `linux` in config.json but for its resources and seccomp, which have modules of their own."""

from __future__ import annotations

from pyoci.jsontext import escape
from pyoci.spec.read import Report, one_of, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyoci.spec.types import IdMapping, Namespace, Spec

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")

PROPAGATIONS = ("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable")

# What of /proc/sys an ipc namespace has for itself: ipc_namespaces(7).
IPC_SYSCTLS = frozenset(
    f"kernel/{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)  # fmt: skip

MAX_MAJOR = 2**12 - 1  # the kernel's dev_t: 12 bits of major number,
MAX_MINOR = 2**20 - 1  # 20 bits of minor number

MAX_MAPPINGS = 340  # user_namespaces(7)
MAX_DEPTH = 100  # of a cgroup: each level costs each of the kernel's accounts one more step


def namespace(spec: Spec, kind: str) -> Namespace | None:
    """The container's own namespace of one kind, if it has one."""
    for each in spec.linux.namespaces:
        if each.type == kind:
            return each
    return None


def needs_namespace(spec: Spec, kind: str, where: str, report: Report) -> None:
    """Report that `where` would change the host, unless the container has a `kind` namespace of its own."""
    if namespace(spec, kind) is None and not report.unreliable("/linux/namespaces"):
        report.add(where, f"needs a {kind} namespace in /linux/namespaces: without one it would change the host")


def new_user_namespace(spec: Spec) -> bool:
    """Whether a user namespace is made for the container, with mappings from config.json."""
    user = namespace(spec, "user")
    return user is not None and user.path is None


def owned_ids(mappings: tuple[IdMapping, ...], number: int) -> bool:
    """Whether the id `number` inside the user namespace is mapped."""
    return any(m.container_id <= number < m.container_id + m.size for m in mappings)


def namespaces(spec: Spec, report: Report) -> None:
    """config-linux.md#namespaces: known types, each at most once, by absolute paths."""
    seen: set[str] = set()
    for index, each in enumerate(spec.linux.namespaces):
        where = f"/linux/namespaces/{index}"
        if each.type not in NAMESPACES:
            report.add(where + "/type", one_of(each.type, NAMESPACES))
        elif each.type in seen:
            report.add(where + "/type", f"a {each.type} namespace is there twice")
        seen.add(each.type)
        if each.path is not None and each.path[0] != "/":
            report.add(where + "/path", f"must be an absolute path, not {shown(each.path)}")


def check_mapping(mappings: tuple[IdMapping, ...], where: str, report: Report) -> None:
    """Report what user_namespaces(7) says the kernel refuses in one uid_map or gid_map."""
    for index, each in enumerate(mappings):
        if each.size == 0:
            report.add(f"{where}/{index}/size", "must be greater than zero")
        for name, first in (("containerID", each.container_id), ("hostID", each.host_id)):
            if first + each.size > 2**32 - 1:
                report.add(f"{where}/{index}", f"{name} {first} + size {each.size} is beyond the last id 4294967294")
    if len(mappings) > MAX_MAPPINGS:
        report.add(where, f"must not have more than {MAX_MAPPINGS} entries, but has {len(mappings)}")
        return
    for name, ranges in (
        ("containerID", [(m.container_id, m.size, index) for index, m in enumerate(mappings)]),
        ("hostID", [(m.host_id, m.size, index) for index, m in enumerate(mappings)]),
    ):
        ranges.sort()
        for place in range(1, len(ranges)):
            first, size, index = ranges[place - 1]
            second, _, other = ranges[place]
            if first + size > second:
                message = f"overlaps with entry {min(index, other)} in its {name} range"
                report.add(f"{where}/{max(index, other)}", message)


def user_namespace(spec: Spec, report: Report) -> None:
    """config-linux.md#user-namespace-mappings: for a new user namespace both; for one that is joined by path they may
    say what it has, which engines for Kubernetes do, and which is checked once we are in it."""
    linux = spec.linux
    user = namespace(spec, "user")
    known = not report.unreliable("/linux/namespaces")
    for name, mappings in (("uidMappings", linux.uid_mappings), ("gidMappings", linux.gid_mappings)):
        where = f"/linux/{name}"
        if mappings and known and user is None:
            report.add(where, "needs a user namespace in /linux/namespaces")
        elif not mappings and known and new_user_namespace(spec):
            report.add(where, "is required for a new user namespace")
        check_mapping(mappings, where, report)


def time_offsets(spec: Spec, report: Report) -> None:
    """config-linux.md#offset-for-time-namespace: clocks of a new time namespace (time_namespaces(7))."""
    if not spec.linux.time_offsets:
        return
    time = namespace(spec, "time")
    if time is not None and time.path is not None:
        message = "must be absent: a time namespace that is joined by path has its offsets already"
        report.add("/linux/timeOffsets", message)
    else:
        needs_namespace(spec, "time", "/linux/timeOffsets", report)
    for clock, (_, nanoseconds) in spec.linux.time_offsets.items():
        where = f"/linux/timeOffsets/{escape(clock)}"
        if clock not in ("monotonic", "boottime"):
            report.add(where, one_of(clock, ("monotonic", "boottime")))
        if nanoseconds > 999_999_999:
            report.add(where + "/nanosecs", f"must be an integer from 0 to 999999999, not {nanoseconds}")


def devices(spec: Spec, report: Report) -> None:
    """config-linux.md#devices: known types, absolute paths, numbers and modes that mknod(2) takes."""
    seen: dict[str, tuple[str, int, int]] = {}
    for index, device in enumerate(spec.linux.devices):
        where = f"/linux/devices/{index}"
        if device.type not in ("c", "b", "u", "p"):
            report.add(where + "/type", one_of(device.type, ("c", "b", "u", "p")))
        if device.path[:1] != "/" or not device.path.strip("/"):
            report.add(where + "/path", f"must be the absolute path of a file, not {shown(device.path)}")
        if device.type != "p":
            for name, number, most in (("major", device.major, MAX_MAJOR), ("minor", device.minor, MAX_MINOR)):
                if not 0 <= number <= most:
                    report.add(f"{where}/{name}", f"must be an integer from 0 to {most}, not {number}")
        if device.file_mode is not None and device.file_mode > 0o7777:
            report.add(where + "/fileMode", f"{device.file_mode} is not a mode: permissions are at most 4095 (0o7777)")
        for name, owner in (("uid", device.uid), ("gid", device.gid)):
            if owner == 2**32 - 1:
                report.add(f"{where}/{name}", f"must be an integer from 0 to {2**32 - 2}, not {owner}")
        what = (device.type.replace("u", "c"), device.major, device.minor)
        if seen.setdefault(device.path, what) != what:
            report.add(where + "/path", f"{shown(device.path)} is there before as another device")


def cgroups_path(spec: Spec, report: Report) -> None:
    """config-linux.md#cgroups-path: a value that is deemed invalid MUST be an error; ".." could leave the hierarchy."""
    path = spec.linux.cgroups_path
    if path is not None:
        if ".." in path.split("/"):
            report.add("/linux/cgroupsPath", f"{shown(path)} must not have '..' as a component")
        if "\n" in path:
            report.add("/linux/cgroupsPath", f"{shown(path)} must not have a line break: cgroup names cannot")
        if (depth := len([part for part in path.split("/") if part])) > MAX_DEPTH:
            report.add("/linux/cgroupsPath", f"must not have more than {MAX_DEPTH} components, but has {depth}")


def sysctl_path(key: str) -> str | None:
    """The path below /proc/sys of a sysctl name in either of its forms, None if it is not one (sysctl(8)).

    "net.ipv4.conf.eth0/1.forwarding" and "net/ipv4/conf/eth0.1/forwarding" are the same: the first separator tells
    which of the two characters separates, and the other one stands for it in a name.
    """
    dot, slash = key.find("."), key.find("/")
    if dot != -1 and (slash == -1 or dot < slash):
        key = key.translate({ord("."): "/", ord("/"): "."})
    parts = key.split("/")
    return key if len(parts) > 1 and all(part not in ("", ".", "..") for part in parts) else None


def sysctl(spec: Spec, report: Report) -> None:
    """config-linux.md#sysctl: parameters that a namespace of the container has for itself, and no others."""
    seen: set[str] = set()
    for key in spec.linux.sysctl:
        where = f"/linux/sysctl/{escape(key)}"
        path = sysctl_path(key)
        if path is None:
            report.add(where, f"{shown(key)} is not the name of a kernel parameter")
            continue
        if path in seen:
            report.add(where, f"{shown(key)} is there twice in different spellings")
        seen.add(path)
        if path in IPC_SYSCTLS or path.startswith("fs/mqueue/"):
            needs_namespace(spec, "ipc", where, report)
        elif path.startswith("net/"):
            needs_namespace(spec, "network", where, report)
        elif path == "kernel/domainname":
            needs_namespace(spec, "uts", where, report)
            if spec.domainname is not None:
                report.add(where, "conflicts with /domainname")
        elif path == "kernel/hostname":
            report.add(where, "must be set by /hostname")
        else:
            report.add(where, f"{shown(key)} is not a parameter of a namespace: it would change the host")


def propagation(spec: Spec, report: Report) -> None:
    """config-linux.md#rootfs-mount-propagation: one of the kernel's four, or their recursive forms."""
    value = spec.linux.rootfs_propagation
    if value and value not in PROPAGATIONS:
        report.add("/linux/rootfsPropagation", one_of(value, PROPAGATIONS))


def masked_paths(spec: Spec, report: Report) -> None:
    """config-linux.md#masked-paths: the values MUST be absolute paths in the container."""
    _absolute(spec.linux.masked_paths, "/linux/maskedPaths", report)


def readonly_paths(spec: Spec, report: Report) -> None:
    """config-linux.md#readonly-paths: the values MUST be absolute paths in the container."""
    _absolute(spec.linux.readonly_paths, "/linux/readonlyPaths", report, ": /root/readonly makes that read-only")


def _absolute(paths: tuple[str, ...], where: str, report: Report, rather: str = "") -> None:
    for index, path in enumerate(paths):
        if path[:1] != "/":
            report.add(f"{where}/{index}", f"must be an absolute path, not {shown(path)}")
        elif all(part in ("", ".", "..") for part in path.split("/")):
            # a mount over the root is under everybody's feet: nobody would see it
            report.add(f"{where}/{index}", f"must not be the root itself{rather}")


def resources(spec: Spec, report: Report) -> None:
    """config-linux.md#control-groups: see resource_rules."""
    if spec.linux.resources is not None:
        from pyoci.spec import resource_rules

        for check in resource_rules.CHECKS:
            report.apply(check, spec.linux.resources, "/linux/resources")


def seccomp(spec: Spec, report: Report) -> None:
    """config-linux.md#seccomp: see seccomp_rules."""
    if spec.linux.seccomp is not None:
        from pyoci.spec import seccomp_rules

        seccomp_rules.check(spec.linux.seccomp, report)


def tuning(spec: Spec, report: Report) -> None:
    """config-linux.md#personality: see tuning_rules."""
    if spec.linux.personality or spec.linux.memory_policy:
        from pyoci.spec import tuning_rules

        for check in (tuning_rules.container, tuning_rules.memory_policy):
            report.apply(check, spec)


def net_devices(spec: Spec, report: Report) -> None:
    """config-linux.md#network-devices: see net_device_rules."""
    if spec.linux.net_devices:
        from pyoci.spec import net_device_rules

        net_device_rules.check(spec, report)


def intel_rdt(spec: Spec, report: Report) -> None:
    """config-linux.md#intelrdt: see intel_rdt_rules."""
    if spec.linux.intel_rdt:
        from pyoci.spec import intel_rdt_rules

        intel_rdt_rules.check(spec, report)


CHECKS: tuple[Callable[[Spec, Report], None], ...] = (
    namespaces, user_namespace, time_offsets, devices, cgroups_path, sysctl, propagation, masked_paths, readonly_paths,
    resources, seccomp, tuning, net_devices, intel_rdt,
)  # fmt: skip
