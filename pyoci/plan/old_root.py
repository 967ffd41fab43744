"""The host's root where it stays under the container's own (`--no-pivot`): nobody reaches it any more, but the kernel
still counts what is mounted in it.

Whoever makes a user namespace in the container may mount a procfs or a sysfs in it, if one that is fully visible is in
the mount namespace already (mount_too_revealing() in fs/namespace.c): an unmasked one, with the host's own there.
"""

from __future__ import annotations

from errno import EACCES, EINVAL, ENOENT, ENOTDIR, EPERM

from pyoci.kernel import flags as k
from pyoci.plan.mounts import nothing
from pyoci.plan.ops import Op, Ref
from pyoci.plan.paths import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ORIGIN = "config-linux.md#masked-paths"
# what is under another mount cannot be seen by path, neither by us
UNREACHABLE = (ENOENT, ENOTDIR, EACCES)


def withdraw(views: Sequence[str]) -> list[Op]:
    """Take these mounts of the host's away, the last first; where they are locked, as in a user namespace, cover
    them."""
    ops: list[Op] = []
    for place in reversed(views):
        path = place.encode("utf-8", "surrogateescape")
        there = (Ref("tree"), b"", k.AT_FDCWD, path, k.MOVE_MOUNT_F_EMPTY_PATH)
        cover = [*nothing(ORIGIN), Op("move_mount", there, ORIGIN, tolerate=UNREACHABLE), close("tree", ORIGIN)]
        ops.append(
            Op("umount2", (path, k.MNT_DETACH), ORIGIN, tolerate=(*UNREACHABLE, EINVAL, EPERM), otherwise=cover)
        )
    return ops
