"""What a call that was refused wants of the host, and what to do about it.  Loaded only when something failed."""

from __future__ import annotations

import posix
from errno import EACCES, EINVAL, EMFILE, ENFILE, ENOENT, ENOSPC, ENOTDIR, EPERM, ERANGE

from pyoci.errors import OPEN_FILES
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.kernel.flags import FSCONFIG_CMD_CREATE, NAMESPACES, PR_CAPBSET_DROP
from pyoci.plan.namespaces import OWNED
from pyoci.plan.ops import RUNTIME, Ref, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.plan.ops import Op

# What the runtime's own user needs for a call (capabilities(7)), where no user namespace gives it.
NEEDS = {
    "bpf": "CAP_SYS_ADMIN",
    "chroot": "CAP_SYS_CHROOT",
    "clone3": "CAP_SYS_ADMIN",
    "fsmount": "CAP_SYS_ADMIN",
    "fsopen": "CAP_SYS_ADMIN",
    "ioctl": "CAP_NET_ADMIN",
    "mknodat": "CAP_MKNOD",
    "mount_setattr": "CAP_SYS_ADMIN",
    "open_tree": "CAP_SYS_ADMIN",
    "setdomainname": "CAP_SYS_ADMIN",
    "setgroups": "CAP_SETGID",
    "sethostname": "CAP_SYS_ADMIN",
    "setns": "CAP_SYS_ADMIN",
    "setresgid": "CAP_SETGID",
    "setresuid": "CAP_SETUID",
}
DEVICES = "/linux/resources/devices"
MAPS = {"/linux/uidMappings": "CAP_SETUID", "/linux/gidMappings": "CAP_SETGID"}
# (an op's origin, errno): what it means there
REMEDIES = {
    ("/linux/timeOffsets", ERANGE): "a clock must stay between 0 and 2^62 nanoseconds, which are 146 years",
    ("/linux/resources/pids/limit", EINVAL): "the kernel takes no more than 4194304; -1 is no limit",
}
# move_mount(2) says "invalid argument" where mount(2) says "not a directory", which engines have an explanation for.
UNLIKE = "the source or its place may be not a directory: a directory goes on a directory only, and a file on a file"


MOUNTING = ("fsconfig", "fsmount", "fsopen", "mount_setattr", "open_tree")  # for which a user namespace is enough
SYSCTLS = "kernel.unprivileged_userns_clone, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns"


def advise(op: Op, number: int, root: str = "", detail: str = "") -> str:
    """A remedy for the errno `number` of `op`, or ""; `root` is the container's root, `detail` the kernel's words."""
    if number in (EMFILE, ENFILE):
        return OPEN_FILES
    if number == EINVAL and op.call == "mount_setattr" and op.args[1] == b"/":
        return (
            "the root directory that pyoci runs in is no mount point, as in a chroot: bind it on itself before"
            " (mount --bind DIR DIR)"
        )
    if number == EINVAL and op.call == "move_mount" and op.origin.startswith("/mounts/"):
        return UNLIKE
    if number == ENOENT and op.call == "openat" and op.args[1] == b"/dev/null":
        return "the host has none: mknod -m 666 /dev/null c 1 3"
    if number == ENOTDIR and op.call in ("openat2", "mkdirat") and op.origin.startswith("/mounts/"):
        return "something on the way to the destination is a file in the container's root, and no directory"
    if op.origin.startswith("/linux/sysctl/"):
        return _parameter(op, number)
    if number == ENOENT and op.origin == "/process/cwd" and op.call == "openat2":
        return "the container has no such directory"
    if number in (EACCES, EPERM) and op.origin == "/process/oomScoreAdj":
        return "a lower one than pyoci's own needs CAP_SYS_RESOURCE on the host"
    if number == ENOSPC and op.call == "clone3":
        return "the host's limit of namespaces is reached: see the sysctls user.max_*_namespaces"
    if "too revealing" in detail:
        return (
            "mounts cover parts of this host's own, which a new one would reveal: take them away, or bind the host's"
            ' (options ["rbind"])'
        )
    if (remedy := REMEDIES.get((op.origin, number))) is not None:
        return remedy
    if number == EPERM:
        return _refused(op)
    if number == EACCES and root and op.args[:1] == (Ref("rootfs"),):
        return _closed(root)
    return ""


def _capability(op: Op) -> str:
    need = NEEDS.get(op.call, "")
    if op.call == "setns" and OWNED in op.hint:
        return op.hint  # of the joined user namespace we have all that there is
    if op.call == "prctl" and op.args[0] == PR_CAPBSET_DROP:
        need = "CAP_SETPCAP"
    elif op.performer == RUNTIME and op.origin in MAPS:
        return _map(op)
    elif op.performer == RUNTIME and op.origin.startswith(DEVICES):
        need = "CAP_SYS_ADMIN"
    if need and not effective() >> CAPABILITIES[need] & 1:
        return f"this needs {need}, which pyoci has not been given"
    return ""


def _refused(op: Op) -> str:
    """EPERM: a capability that pyoci lacks; or what those that a user namespace gives are not enough for."""
    user = posix.geteuid() != 0
    if user and op.call == "clone3":
        made = op.args[0]
        flags = made.fields["flags"] if isinstance(made, Struct) else 0
        if isinstance(flags, int) and not flags & NAMESPACES["user"]:
            return "without root's rights it takes a user namespace, too: pyoci spec --rootless writes such a one"
        return f"this host lets no user make a user namespace: see the sysctls {SYSCTLS}"
    if not (user and op.call in MOUNTING) and (lacking := _capability(op)):
        return lacking
    if op.call == "fsopen" and op.args[0] == b"sysfs":
        return "a new sysfs needs a network namespace of the container's own: make one, or bind the host's /sys"
    if op.call == "fsopen" or (op.call == "fsconfig" and op.args[1] == FSCONFIG_CMD_CREATE):
        return "the kernel lets only root mount it"
    return ""


def _parameter(op: Op, number: int) -> str:
    if number == ENOENT:
        return "this kernel has no such parameter, or its module is not loaded"
    if number == EINVAL:
        return "the kernel does not take this value"
    return _capability(op) if number == EPERM else ""


def _map(op: Op) -> str:
    kind = op.origin[7:10]
    if posix.geteuid() == 0 and not effective() >> CAPABILITIES[MAPS[op.origin]] & 1:
        return f"this needs {MAPS[op.origin]}, which pyoci has not been given"
    return f"the user namespace that pyoci runs in may not have these {kind}s itself: see /proc/self/{kind}_map"


def _closed(root: str) -> str:
    """Root of a user namespace is somebody else to the file system."""
    try:
        there = posix.stat(root)
    except OSError:
        return ""
    if there.st_mode & 0o001:
        return ""
    return (
        f"the container's root user may not enter {root}, which belongs to uid {there.st_uid} of the host and has mode"
        f" {there.st_mode & 0o7777:04o}: chown it to the host's uid of that user, or chmod o+x it"
    )


def effective() -> int:
    """Our effective capabilities, as bits."""
    from pyoci.cgroup.files import look

    for line in look("/proc/self/status").split(b"\n"):
        if line.startswith(b"CapEff:"):
            return int(line.split()[1], 16)
    return 0
