"""What this machine cannot do of what a config.json asks for, found without doing any of it.

create finds the same when it plans or when a call fails; here it is all at once, and with places.
"""

from __future__ import annotations

import posix

from pyoci.errors import ConfigError, PyociError
from pyoci.schema import Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyoci.host import Host
    from pyoci.spec.types import Seccomp, Spec

# type in config.json -> its file in /proc/PID/ns (namespaces(7))
NAMESPACE_FILES = {"mount": "mnt", "network": "net"}
CLOCKS = {"monotonic": 1, "boottime": 7}  # clock_gettime(2)
LATEST = 2**63 // 10**9 // 2  # seconds that a clock of a time namespace may show (KTIME_MAX / 2)
SLEEPING = "its module may be loaded when it is mounted"


def examine_host(data: bytes, bundle: str, manager: str, rootless: bool | None) -> list[Finding]:
    """Findings for a config.json that is right in itself, with lines and columns."""
    from pyoci.host import probe, probe_sources
    from pyoci.jsonplaces import Places
    from pyoci.spec.load import load

    spec = load(data)
    host = probe()
    if manager == "systemd":
        from pyoci.host import probe_systemd

        probe_systemd(host, rootless)
    probe_sources(host, spec, bundle)
    findings = list(planning(spec, host, bundle, manager, rootless))
    # the planner stops at the first kind of problem: what it has said is not said twice
    planned = {finding.pointer for finding in findings}
    others = (
        *files(spec, host, bundle),
        *file_systems(spec),
        *namespaces(spec),
        *capabilities(spec, host),
        *limits(spec, host),
        *numbers(spec),
        *security(spec, host),
        *devices(spec),
    )
    findings += [finding for finding in others if finding.pointer not in planned]
    places = Places(data.decode())
    for finding in findings:
        finding.line, finding.column = places.find(finding.pointer)
    return findings


def planning(spec: Spec, host: Host, bundle: str, manager: str, rootless: bool | None) -> Iterator[Finding]:
    """What the planner refuses on this host: controllers that are not there, limits that a version has not."""
    from pyoci.plan.container import PlanOptions, plan_container

    console = "console" if spec.process is not None and spec.process.terminal else None
    options = PlanOptions("container", bundle, console=console, cgroup_manager=manager, rootless=rootless)
    try:
        plan_container(spec, host, options)
    except ConfigError as error:
        for problem in error.problems:
            finding = Finding("error", problem.pointer, problem.message)
            finding.clause = problem.clause
            yield finding
    except PyociError as error:
        pointer, colon, message = str(error).partition(": ")
        known = colon and pointer.startswith("/") and " " not in pointer
        yield Finding("error", pointer if known else "", message if known else str(error))


def files(spec: Spec, host: Host, bundle: str) -> Iterator[Finding]:
    """The root, sources of bind mounts, and hooks of the runtime's namespaces."""
    from pyoci.host import source_type
    from pyoci.plan.container import root_path

    root = root_path(spec, bundle)
    if source_type(root) != "dir":
        yield Finding("error", "/root/path", f"{root} is not a directory")
    for index, mount in enumerate(spec.mounts):
        source = mount.source if mount.source.startswith("/") else f"{bundle}/{mount.source}"
        if not {"bind", "rbind"} & set(mount.options) or "remount" in mount.options or not mount.source:
            continue
        if host.source_types.get(source) == "none":
            yield Finding("error", f"/mounts/{index}/source", f"{source} does not exist, or cannot be looked at")
    for kind, listed in (
        ("prestart", spec.hooks.prestart),
        ("createRuntime", spec.hooks.create_runtime),
        ("createContainer", spec.hooks.create_container),
        ("poststart", spec.hooks.poststart),
        ("poststop", spec.hooks.poststop),
    ):
        for index, hook in enumerate(listed):
            if not posix.access(hook.path, posix.X_OK, effective_ids=True) or source_type(hook.path) == "dir":
                # the failure of such a one is a warning (runtime.md#lifecycle)
                level = "warning" if kind == "poststop" else "error"
                yield Finding(level, f"/hooks/{kind}/{index}/path", f"{hook.path} cannot be executed")


def file_systems(spec: Spec) -> Iterator[Finding]:
    """File system types that the kernel has now."""
    from pyoci.host import read

    known = {line.split()[-1] for line in read("/proc/filesystems").decode().splitlines()}
    for index, mount in enumerate(spec.mounts):
        bind = "bind" in mount.options or "rbind" in mount.options
        if mount.type and not bind and mount.type not in known:
            message = f"the kernel has no file system {mount.type} now; {SLEEPING}"
            yield Finding("warning", f"/mounts/{index}/type", message)


def namespaces(spec: Spec) -> Iterator[Finding]:
    """Types that the kernel has, and files of those to join."""
    for index, each in enumerate(spec.linux.namespaces):
        name = NAMESPACE_FILES.get(each.type, each.type)
        if not posix.access(f"/proc/self/ns/{name}", posix.F_OK):
            yield Finding("error", f"/linux/namespaces/{index}/type", f"the kernel has no {each.type} namespaces")
        if each.path is not None and not posix.access(each.path, posix.F_OK):
            yield Finding("error", f"/linux/namespaces/{index}/path", f"{each.path} does not exist")


def capabilities(spec: Spec, host: Host) -> Iterator[Finding]:
    """What create would leave out with a warning."""
    if spec.process is None or spec.process.capabilities is None:
        return
    from pyoci.kernel.capabilities import CAPABILITIES
    from pyoci.plan.entry import granted_capabilities
    from pyoci.plan.process import ungranted

    inside = any(each.type == "user" for each in spec.linux.namespaces)
    missing = ungranted(spec.process.capabilities, host, granted_capabilities(host, inside))
    missing = [name for name in missing if name in CAPABILITIES]  # an unknown one is a finding of its own
    if missing:
        yield Finding("warning", "/process/capabilities", f"not ours to give, and left out: {', '.join(missing)}")


def limits(spec: Spec, host: Host) -> Iterator[Finding]:
    """What needs CAP_SYS_RESOURCE, where we have it not, or is beyond what the kernel gives anybody."""
    from resource import getrlimit

    from pyoci.cgroup.files import look
    from pyoci.kernel.capabilities import CAPABILITIES
    from pyoci.kernel.flags import RLIMITS

    process = spec.process
    if process is None:
        return
    able = host.initial_user_namespace and host.capabilities >> CAPABILITIES["CAP_SYS_RESOURCE"] & 1
    for index, limit in enumerate(process.rlimits):
        hard = getrlimit(RLIMITS[limit.type])[1] % 2**64
        most = int(look("/proc/sys/fs/nr_open") or 0) if limit.type == "RLIMIT_NOFILE" else 0
        where = f"/process/rlimits/{index}"
        if most and limit.hard > most:
            yield Finding("error", f"{where}/hard", f"{limit.hard} is more than /proc/sys/fs/nr_open, {most}")
        elif limit.hard > hard and not able:
            yield Finding("error", f"{where}/hard", f"{limit.hard} is above ours, {hard}, and needs CAP_SYS_RESOURCE")
    score = process.oom_score_adj
    if score is not None and not able and score < (ours := int(look("/proc/self/oom_score_adj") or 0)):
        yield Finding("error", "/process/oomScoreAdj", f"{score} is below ours, {ours}, and needs CAP_SYS_RESOURCE")


def numbers(spec: Spec) -> Iterator[Finding]:
    """Processors, memory nodes, block devices and clocks that are there."""
    from time import clock_gettime

    from pyoci.cgroup.files import look
    from pyoci.kernel.scheduling import mask

    processors = mask(look("/sys/devices/system/cpu/online").decode().strip())
    nodes = mask(look("/sys/devices/system/node/online").decode().strip() or "0")
    resources, policy = spec.linux.resources, spec.linux.memory_policy or {}
    cpu = resources.cpu if resources is not None else None
    for where, asked, there, what in (
        ("/linux/resources/cpu/cpus", cpu and cpu.cpus, processors, "processors"),
        ("/linux/resources/cpu/mems", cpu and cpu.mems, nodes, "memory nodes"),
    ):
        if asked and mask(asked) & ~there:
            yield Finding("error", where, f"has {what} that are not there, or not online")
    wanted = 0 if "MPOL_F_RELATIVE_NODES" in str(policy.get("flags")) else mask(str(policy.get("nodes") or ""))
    if wanted and not wanted & nodes:
        yield Finding("error", "/linux/memoryPolicy/nodes", "has no memory node that is there")
    block = resources.block_io if resources is not None else None
    if block is not None:
        for name, listed in (
            ("throttleReadBpsDevice", block.throttle_read_bps_device),
            ("throttleWriteBpsDevice", block.throttle_write_bps_device),
            ("throttleReadIOPSDevice", block.throttle_read_iops_device),
            ("throttleWriteIOPSDevice", block.throttle_write_iops_device),
        ):
            for index, device in enumerate(listed):
                if not posix.access(f"/sys/dev/block/{device.major}:{device.minor}", posix.F_OK):
                    message = f"there is no block device {device.major}:{device.minor}"
                    yield Finding("error", f"/linux/resources/blockIO/{name}/{index}", message)
    for clock, (seconds, _) in spec.linux.time_offsets.items():
        now = clock_gettime(CLOCKS[clock])
        if not 0 <= now + seconds <= LATEST:
            message = f"the clock would be {'before' if seconds < 0 else '146 years after'} the start of the machine"
            yield Finding("error", f"/linux/timeOffsets/{clock}/secs", message)


def security(spec: Spec, host: Host) -> Iterator[Finding]:
    """Linux security modules that labels and profiles are for, resctrl, and the library that compiles filters."""
    from pyoci.plan.labels import UNCONFINED

    process = spec.process
    profile = process.apparmor_profile if process is not None else ""
    if profile not in ("", UNCONFINED) and "apparmor" not in host.security_modules:
        yield Finding("error", "/process/apparmorProfile", "AppArmor is not enabled on this host")
    if "selinux" not in host.security_modules:
        if process is not None and process.selinux_label:
            yield Finding("error", "/process/selinuxLabel", "SELinux is not enabled on this host")
        if spec.linux.mount_label:
            yield Finding("warning", "/linux/mountLabel", "is ignored: SELinux is not enabled on this host")
    if spec.linux.intel_rdt is not None and not host.resctrl:
        yield Finding("error", "/linux/intelRdt", "no resctrl file system is mounted on this host")
    if spec.linux.seccomp is not None:
        from pyoci.commands.version import libseccomp
        from pyoci.kernel.seccomp import notifies

        if libseccomp():
            yield from _filter(spec.linux.seccomp, host)
        else:
            yield Finding("error", "/linux/seccomp", "libseccomp is not installed")
        path = spec.linux.seccomp.listener_path
        if notifies(spec.linux.seccomp) and path.startswith("/") and not posix.access(path, posix.F_OK):
            yield Finding("error", "/linux/seccomp/listenerPath", "no seccomp agent listens there")


def _filter(seccomp: Seccomp, host: Host) -> Iterator[Finding]:
    """What the installed libseccomp does not compile."""
    from pyoci.seccomp import compile

    try:
        compile(seccomp, host.arch)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("error", problem.pointer, problem.message)
    except PyociError as error:
        yield Finding("error", "/linux/seccomp", str(error).removeprefix("/linux/seccomp: "))


def devices(spec: Spec) -> Iterator[Finding]:
    """Network devices that are to be moved."""
    from pyoci.jsontext import escape

    if not spec.linux.net_devices:
        return
    from _socket import if_nametoindex

    for name in spec.linux.net_devices:
        try:
            # what /sys shows are the devices of whoever mounted it
            if_nametoindex(name)
        except OSError:
            yield Finding("error", f"/linux/netDevices/{escape(name)}", "there is no such network device")
