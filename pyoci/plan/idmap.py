"""Id-mapped mounts: the maps, the user namespace that has them, and the call (config.md#linux-mount-options).

The kernel takes a map from a user namespace.  Nobody lives in the ones that are made for this: a process is cloned into
each, its maps are written, the runtime opens the namespace, and the process ends.  init gets the descriptors.
"""

from __future__ import annotations

from pyoci.kernel import flags as k
from pyoci.plan.entry import shed
from pyoci.plan.namespaces import map_text
from pyoci.plan.ops import RUNTIME, Op, Ref, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Linux, Mount

ATTR_SIZE = 32
# of the process that is cloned into a namespace: only its control socket
FDS = {"control": 3}
HINT = "its file system must know id-mapped mounts (mount_setattr(2)), and be one that we have CAP_SYS_ADMIN over"


def maps_of(mount: Mount, where: str, linux: Linux) -> tuple[bytes, bytes, str]:
    """(uid_map, gid_map, origin) of the mount at the pointer `where`; empty maps mean those of the user namespace that
    the container joins."""
    if mount.uid_mappings:
        return map_text(mount.uid_mappings), map_text(mount.gid_mappings), f"{where}/uidMappings"
    return map_text(linux.uid_mappings), map_text(linux.gid_mappings), f"{where}/options"


def make_op(name: str, uids: bytes, gids: bytes, origin: str) -> Op:
    """The runtime's: `@name`, handed to init, is a user namespace with these maps."""
    return Op("user_namespace", (name.encode(), uids, gids), origin, performer=RUNTIME)


def apply_op(tree: str, user: str, recursive: bool, origin: str) -> Op:
    """The map of the user namespace `@user` for the detached `@tree`, or for its first mount only."""
    attr = Struct("mount_attr", attr_set=k.MOUNT_ATTR_IDMAP, userns_fd=Ref(user))
    flags = k.AT_EMPTY_PATH | (k.AT_RECURSIVE if recursive else 0)
    return Op("mount_setattr", (Ref(tree), b"", flags, attr, ATTR_SIZE), origin, hint=HINT)


def namespace_ops(uids: bytes, gids: bytes, origin: str) -> list[Op]:
    """The plan of the process that a user namespace is made with; `open_namespace` is the runtime's last word."""
    arguments = Struct("clone_args", flags=k.CLONE_NEWUSER | k.CLONE_PARENT)
    return [
        *shed(0, origin),
        Op("clone3", (arguments, 88), origin, hint="user namespaces may be forbidden or at their limit"),
        Op("write", (b"/proc/@pid/uid_map", uids), origin, performer=RUNTIME),
        Op("write", (b"/proc/@pid/gid_map", gids), origin.replace("/uidMappings", "/gidMappings"), performer=RUNTIME),
        Op("open_namespace", (), origin, performer=RUNTIME),
    ]
