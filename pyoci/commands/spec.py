"""spec: write a config.json to start from."""

from __future__ import annotations

import posix

from pyoci import SPEC_VERSION
from pyoci.errors import PyociError
from pyoci.jsontext import dumps
from pyoci.log import write_all
from pyoci.options import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyoci.cli import Globals, Parsed

# What a shell needs to audit, to end its children and to listen below port 1024.  Not inheritable, not ambient
# (CVE-2022-29162): those two reach programs that did not ask.
CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
QUIET = ("nosuid", "noexec", "nodev")
# What tells about the host or reaches it and is in no namespace (proc(5)).
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def default(cgroup2: bool) -> dict[str, Any]:
    """A shell in a read-only root with namespaces of its own; the cgroup namespace where cgroups are v2 only."""
    spaces = ("pid", "network", "ipc", "uts", "mount") + (("cgroup",) if cgroup2 else ())
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "pyoci",
        "mounts": [
            _mount("/proc", "proc", "proc"),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            _mount(
                "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
            ),
            _mount("/dev/shm", "tmpfs", "shm", *QUIET, "mode=1777", "size=65536k"),
            _mount("/dev/mqueue", "mqueue", "mqueue", *QUIET),
            _mount("/sys", "sysfs", "sysfs", *QUIET, "ro"),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", *QUIET, "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in spaces],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READONLY),
        },
    }


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    made: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    if options:
        made["options"] = list(options)
    return made


def rootless(spec: dict[str, Any], uid: int, gid: int) -> dict[str, Any]:
    """`spec` for the user `uid`: its root is mapped to that user, and what only root can do is left out.

    One mapped group means no group 5 for terminals; without a network namespace of its own sysfs cannot be mounted, so
    the host's is bound; and limits need cgroups, which an engine may delegate but the default must not expect.
    """
    linux = spec["linux"]
    kept = [entry for entry in linux["namespaces"] if entry["type"] != "network"]
    linux["namespaces"] = [*kept, {"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
    del linux["resources"]
    for mount in spec["mounts"]:
        if mount["destination"] == "/sys":
            mount.update(_mount("/sys", "none", "/sys", "rbind", *QUIET, "rro"))
        elif "options" in mount:
            mount["options"] = [option for option in mount["options"] if not option.startswith(("gid=", "uid="))]
    return spec


def run(settings: Globals, options: Parsed) -> int:
    """Writes config.json into the bundle; never over another one."""
    bundle, name = absolute(options.text("bundle") or "."), options.text("file", "config.json")
    path = name if name.startswith("/") else f"{bundle}/{name}"
    spec = default(_cgroup2())
    if options.flag("rootless"):
        spec = rootless(spec, posix.geteuid(), posix.getegid())
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
    try:
        descriptor = posix.open(path, flags, 0o666)
    except FileExistsError:
        raise PyociError(f"file {path} exists; remove it first") from None
    except OSError as error:
        from pyoci.kernel.errnos import words

        raise PyociError(f"open {path}: {words(error.errno or 0)}") from None
    try:
        write_all(descriptor, dumps(spec, indent=True).encode() + b"\n")
    except OSError as error:
        from pyoci.kernel.errnos import words

        posix.unlink(path)
        raise PyociError(f"write {path}: {words(error.errno or 0)}") from None
    finally:
        posix.close(descriptor)
    return 0


def _cgroup2() -> bool:
    try:
        posix.stat("/sys/fs/cgroup/cgroup.controllers")
    except OSError:
        return False
    return True
