"""The root of a container without a mount namespace: one mount at /root/path that everything else is mounted in, so
that it can be taken down again (`pyoci.rootmount`)."""

from __future__ import annotations

from pyoci.kernel import flags as k
from pyoci.plan.mounts import TREE, move_op, setattr_op
from pyoci.plan.ops import RUNTIME, Op, Ref
from pyoci.plan.paths import HANDLE, close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Spec


def mounts_in_root(spec: Spec) -> bool:
    """Whether anything is mounted in the root, or the root itself is read-only."""
    terminal = spec.process is not None and spec.process.terminal
    readonly = spec.root is not None and spec.root.readonly
    return bool(spec.mounts or spec.linux.masked_paths or spec.linux.readonly_paths or terminal or readonly)


def open_root(path: bytes) -> list[Op]:
    """`@rootfs`, a detached copy of what is at `@place`: one lookup of the path for both."""
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH | k.AT_RECURSIVE
    return [
        Op("openat", (k.AT_FDCWD, path, HANDLE | k.O_DIRECTORY), "/root/path", "place"),
        Op("open_tree", (Ref("place"), b"", flags), "/root/path", "rootfs"),
    ]


def place_root(spec: Spec, path: bytes) -> list[Op]:
    """Attach `@rootfs` at `@place`, once the runtime has written down that this will be done."""
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
        move_op("rootfs", "place", "/root/path"),
        close("place", "/root/path"),
        # what is put on a shared mount becomes shared itself, and other namespaces would see what is mounted in it
        apart,
    ]
