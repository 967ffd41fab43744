"""The root of a container without a mount namespace: one mount at /root/path that everything else is mounted in, so
that it can be taken down again (`pyoci.rootmount`)."""

from __future__ import annotations

from pyoci.kernel import flags as k
from pyoci.plan.mounts import TREE, setattr_op
from pyoci.plan.ops import RUNTIME, Op, Ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Spec


def mounts_in_root(spec: Spec) -> bool:
    """Whether anything is mounted in the root, or the root itself is read-only."""
    terminal = spec.process is not None and spec.process.terminal
    readonly = spec.root is not None and spec.root.readonly
    return bool(spec.mounts or spec.linux.masked_paths or spec.linux.readonly_paths or terminal or readonly)


def place_root(spec: Spec, path: bytes) -> list[Op]:
    """Attach the detached `@rootfs` at `path`, once the runtime has written down that this will be done."""
    asked = spec.linux.rootfs_propagation
    apart = setattr_op(
        "rootfs",
        TREE,
        "/linux/rootfsPropagation" if asked else "config-linux.md#rootfs-mount-propagation",
        propagation=k.MS_SLAVE if asked in ("", "slave", "rslave") else k.MS_PRIVATE,
    )
    return [
        apart,
        Op("mount_root", (path, Ref("pid")), "/root/path", performer=RUNTIME),
        Op("move_mount", (Ref("rootfs"), b"", k.AT_FDCWD, path, k.MOVE_MOUNT_F_EMPTY_PATH), "/root/path"),
        # what is put on a shared mount becomes shared itself, and other namespaces would see what is mounted in it
        apart,
    ]
