"""A new file system of which one option is longer than fsconfig(2) takes: overlay's list of layers, mostly.

fsconfig(2) copies 256 bytes of a value, mount(2) a page of all options.  So these are mounted as it was done before
there were detached trees: in one call, on the directory that the handle of the place leads to.
"""

from __future__ import annotations

from pyoci.kernel import flags as k
from pyoci.plan.ops import Op, Ref
from pyoci.plan.paths import HANDLE, SCOPED, close, openat2, place, relative

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.plan.options import MountOptions

VALUE = 255  # bytes that fsconfig(2) takes, without the NUL
PAGE = 4095  # bytes that mount(2) takes
# attribute -> its flag; the first four are the same numbers
FLAGS = {
    k.MOUNT_ATTR_RDONLY: k.MS_RDONLY,
    k.MOUNT_ATTR_NOSUID: k.MS_NOSUID,
    k.MOUNT_ATTR_NODEV: k.MS_NODEV,
    k.MOUNT_ATTR_NOEXEC: k.MS_NOEXEC,
    k.MOUNT_ATTR_NOATIME: k.MS_NOATIME,
    k.MOUNT_ATTR_STRICTATIME: k.MS_STRICTATIME,
    k.MOUNT_ATTR_NODIRATIME: k.MS_NODIRATIME,
    k.MOUNT_ATTR_NOSYMFOLLOW: k.MS_NOSYMFOLLOW,
}
SUPERBLOCK = {
    "sync": k.MS_SYNCHRONOUS,
    "dirsync": k.MS_DIRSYNC,
    "lazytime": k.MS_LAZYTIME,
    "mand": k.MS_MANDLOCK,
}


def needed(data: list[tuple[str, str | None]]) -> bool:
    """Whether fsconfig(2) cannot take these options, and mount(2) can."""
    return any(len((value or "").encode()) > VALUE for _, value in data) and len(joined(data)) <= PAGE


def joined(data: list[tuple[str, str | None]]) -> bytes:
    return ",".join(name if value is None else f"{name}={value}" for name, value in data).encode()


def mount(type_: str, source: str, destination: str, options: MountOptions, label: str, origin: str) -> list[Op]:
    """Mount it with all its flags, and leave `@target` a handle of it; `label` is one for SELinux, or ""."""
    on = (options.attr[0] & ~options.tree_attr[1]) | options.tree_attr[0]
    flags = 0
    for attribute, flag in FLAGS.items():
        flags |= flag if on & attribute else 0
    for name in options.flags:
        flags |= SUPERBLOCK.get(name, 0)
    data = joined([*options.data, *([("context", f'"{label}"')] if label else [])])
    ops = place(destination, "dir", origin, "target")
    ops.append(Op("fchdir", (Ref("target"),), origin))
    ops.append(
        Op(
            "mount",
            (source.encode(), b".", type_.encode(), flags, data),
            f"{origin}/options",
            hint="the kernel's log may say more (dmesg)",
        )
    )
    ops.append(close("target", origin))
    ops.append(openat2("rootfs", relative(destination), HANDLE, SCOPED, origin, "target"))
    return ops
