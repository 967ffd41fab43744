"""The directory with $NOTIFY_SOCKET in a container (sd_notify(3)); `pyoci.readiness` listens there."""

from __future__ import annotations

from pyoci.kernel import flags as k
from pyoci.plan.mounts import move_op, setattr_op
from pyoci.plan.ops import Op
from pyoci.plan.paths import close, place, to_bytes

ORIGIN = "runtime.md#lifecycle"
PLACE = "/run/notify"
VARIABLE = b"NOTIFY_SOCKET=" + PLACE.encode() + b"/notify.sock"
ATTRIBUTES = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC


def source(directory: str) -> Op:
    """`@notify`: the directory on the host, as a tree of its own."""
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC
    return Op("open_tree", (k.AT_FDCWD, to_bytes(directory), flags), ORIGIN, "notify")


def mount() -> list[Op]:
    """Put it at /run/notify, for looking only: a socket can be spoken to all the same."""
    return [
        setattr_op("notify", k.AT_EMPTY_PATH, ORIGIN, ATTRIBUTES, propagation=k.MS_PRIVATE),
        *place(PLACE, "dir", ORIGIN, "target"),
        move_op("notify", "target", ORIGIN),
        close("target", ORIGIN),
        close("notify", ORIGIN),
    ]
