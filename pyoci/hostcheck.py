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
    from pyoci.spec.types import Spec

# type in config.json -> its file in /proc/PID/ns (namespaces(7))
NAMESPACE_FILES = {"mount": "mnt", "network": "net"}
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
        if host.source_types.get(source) == "none" and "remount" not in mount.options and mount.source:
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
                yield Finding("error", f"/hooks/{kind}/{index}/path", f"{hook.path} cannot be executed")


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
    from pyoci.plan.entry import granted_capabilities
    from pyoci.plan.process import ungranted

    inside = any(each.type == "user" for each in spec.linux.namespaces)
    missing = ungranted(spec.process.capabilities, host, granted_capabilities(host, inside))
    if missing:
        yield Finding("warning", "/process/capabilities", f"not ours to give, and left out: {', '.join(missing)}")


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

        if not libseccomp():
            yield Finding("error", "/linux/seccomp", "libseccomp is not installed")
        path = spec.linux.seccomp.listener_path
        if notifies(spec.linux.seccomp) and path.startswith("/") and not posix.access(path, posix.F_OK):
            yield Finding("error", "/linux/seccomp/listenerPath", "no seccomp agent listens there")


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
