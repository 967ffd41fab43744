"""What init does first, whichever plan it replays: create's, or that of a process that joins a container."""

from __future__ import annotations

from errno import EACCES, EINVAL, ENOENT, ENOSYS, EPERM, EROFS

from pyoci.kernel import flags as k
from pyoci.plan.ops import Blob, Op, Ref, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.host import Host
    from pyoci.spec.types import Process

LIFECYCLE = "runtime.md#lifecycle"
NAME = b"pyoci:init"
RAISING = "raising a hard limit needs CAP_SYS_RESOURCE on the host"
# how many descriptors the launcher may add behind the standard streams and those that the caller hands through
DESCRIPTORS = 3
SYS_ADMIN = 1 << 21


def shed(preserve_fds: int, origin: str = LIFECYCLE, more: int = 0) -> list[Op]:
    """Close what the caller leaked to us; mark what is ours to vanish at execve (CVE-2024-21626).  `more` is how many
    descriptors the launcher has added behind its own."""
    first = 3 + preserve_fds
    return [
        Op("close_range", (first + DESCRIPTORS + more, k.UINT_MAX, 0), origin),
        Op("close_range", (first, k.UINT_MAX, k.CLOSE_RANGE_CLOEXEC), origin),
    ]


def own_null(host: Host, process: Process | None, origin: str = LIFECYCLE) -> list[Op]:
    """The caller's /dev/null on a standard stream is the host's, and who is root in the container could give that
    another mode or owner by the descriptor (fchmod(2)): it is opened again on a read-only mount that nobody sees.

    Without root's rights it is not the container's to change, nor where it is mounted by itself (in a container whose
    devices are another's).
    """
    if process is None or process.terminal or not host.stdio_nulls:
        return []
    return null_again(host, [Op("dup3", (Ref("stream"), number, 0), origin) for number in host.stdio_nulls], origin)


def null_again(host: Host, ops: list[Op], origin: str) -> list[Op]:
    """Open /dev/null as `@stream` on a mount that nobody sees, for `ops`, where root's rights make that worth while.

    Not in a user namespace: its root owns no node of the machine's, and what is mounted below /dev is locked to it.
    """
    if host.euid != 0 or not host.capabilities & SYS_ADMIN or not host.initial_user_namespace:
        return []
    null = Ref("devices"), b"null", k.O_RDWR | k.O_CLOEXEC
    again = [*ops, _close("stream", origin)]
    found = [
        read_only("devices", origin),
        Op("openat", null, origin, "stream", tolerate=(ENOENT, EROFS, EACCES), then=again),
        _close("devices", origin),
    ]
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC
    return [Op("open_tree", (k.AT_FDCWD, b"/dev", flags), origin, "devices", tolerate=(ENOENT,), then=found)]


def _close(name: str, origin: str) -> Op:
    return Op("close", (Ref(name),), origin)


def read_only(tree: str, origin: str) -> Op:
    """For the mount of a device of the host's: it can be used as before, and its mode, owner and times not be changed
    (mount(2), MS_RDONLY)."""
    attr = Struct("mount_attr", attr_set=k.MOUNT_ATTR_RDONLY, attr_clr=0, propagation=0)
    return Op("mount_setattr", (Ref(tree), b"", k.AT_EMPTY_PATH, attr, 32), origin)


def default_signals(origin: str = LIFECYCLE) -> list[Op]:
    """The two signals that the C library keeps for itself, and so cannot reset for us when the caller ignores them."""
    return [Op("rt_sigaction", (number, Struct("sigaction"), 0, 8), origin) for number in (32, 33)]


def raised_limits(process: Process, host: Host) -> list[Op]:
    """Hard limits that are above ours: from within a user namespace nobody may raise one (setrlimit(2)).  The soft ones
    stay as they are, so that init has what it needs."""
    ops: list[Op] = []
    for index, limit in enumerate(process.rlimits):
        soft, _, hard = host.limits.get(limit.type, "").partition(" ")
        if hard and limit.hard > int(hard):
            ours = Struct("rlimit64", rlim_cur=int(soft), rlim_max=limit.hard)
            ops.append(Op("prlimit64", (0, k.RLIMITS[limit.type], ours, 0), f"/process/rlimits/{index}", hint=RAISING))
    return ops


# as many as any kernel can be built for (CONFIG_NR_CPUS)
EVERY_PROCESSOR = Blob(b"\xff" * 1024, "every processor")


def every_processor(origin: str) -> Op:
    """All that the cgroup's cpuset has: what the caller is pinned to says nothing about the container."""
    return Op("sched_setaffinity", (0, 1024, EVERY_PROCESSOR), origin, tolerate=(EINVAL, EPERM))


def own_keyring(origin: str) -> Op:
    """A session keyring of its own: what the caller keeps in its is not for the container's eyes (keyrings(7)).

    Without a name: joining a name is to take what whoever had it first has put there, and lets others read.
    """
    return Op("keyctl", (k.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0), origin, tolerate=(ENOSYS, EPERM))


def granted_capabilities(host: Host, user_namespace: bool) -> int:
    """Capabilities that the container's first process holds before it drops any."""
    return (2 << host.last_cap) - 1 if user_namespace else host.bounding & host.capabilities
