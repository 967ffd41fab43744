"""Ops that find, or make, a place in the container's root by handle.

Every resolution is scoped by openat2(2) to the root (RESOLVE_IN_ROOT, no magic links) and ends in a descriptor; what is
mounted, created or changed there goes through that descriptor.  A rootfs is hostile: a symlink in it can only lead to
somewhere else in it.
"""

from __future__ import annotations

from errno import EEXIST, ENOENT

from pyoci.kernel import flags as k
from pyoci.plan.ops import Op, Ref, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SCOPED = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
EXACT = k.RESOLVE_BENEATH | k.RESOLVE_NO_SYMLINKS | k.RESOLVE_NO_MAGICLINKS
HANDLE = k.O_PATH | k.O_CLOEXEC
# A plan has hundreds of openat2 and a handful of ways to call it: one value, and one place in the program, for each.
_HOW: dict[tuple[int, int, int], Struct] = {}


def openat2(  # noqa: PLR0913 - the call has this many
    root: str,
    path: bytes,
    flags: int,
    resolve: int,
    origin: str,
    result: str,
    mode: int = 0,
    tolerate: tuple[int, ...] = (),
    otherwise: Sequence[Op] = (),
    then: Sequence[Op] = (),
    hint: str = "",
) -> Op:
    """`@result = openat2(@root, path, {flags, mode, resolve})`."""
    key = flags, mode, resolve
    how = _HOW.get(key)
    if how is None:
        how = _HOW[key] = Struct("open_how", flags=flags, mode=mode, resolve=resolve)
    return Op("openat2", (Ref(root), path, how, 24), origin, result, "init", tolerate, otherwise, then, hint)


def to_bytes(text: str) -> bytes:
    """Text as the kernel takes it; what the command line has may be none, and is given back as it was."""
    return text.encode("utf-8", "surrogateescape")


def relative(path: str) -> bytes:
    """A container path as openat2 wants it under a root descriptor: no leading slash, "." for the root itself."""
    return to_bytes(path.strip("/")) or b"."


def parts(path: str) -> list[str]:
    """The components of a container path without empty ones and "."; ".." is kept for the kernel to resolve in the
    root."""
    return [part for part in path.split("/") if part not in ("", ".")]


def make_directories(path: str, origin: str, result: str, resolve: int = SCOPED) -> list[Op]:
    """Ops that leave `@result` a handle of the directory `path`, making what is missing; nothing else stays open."""
    components = parts(path)
    ops: list[Op] = []
    parent = root = "rootfs"
    for count, name in enumerate(components, 1):
        here = "/".join(components[:count]).encode()
        # two names in turn, the last of which is the result: each handle is needed for the next, and then closed
        handle = "above" if (len(components) - count) % 2 else result
        if name == "..":
            ops.append(openat2(root, here, HANDLE | k.O_DIRECTORY, resolve, origin, handle))
        else:
            ops.append(
                openat2(
                    root,
                    here,
                    HANDLE | k.O_DIRECTORY,
                    resolve,
                    origin,
                    handle,
                    tolerate=(ENOENT,),
                    otherwise=[
                        Op("mkdirat", (Ref(parent), name.encode(), 0o755), origin, tolerate=(EEXIST,)),
                        openat2(parent, name.encode(), HANDLE | k.O_DIRECTORY, EXACT, origin, handle),
                    ],
                )
            )
        if parent != root:
            ops.append(close(parent, origin))
        parent = handle
    return ops


def place(path: str, kind: str, origin: str, result: str, resolve: int = SCOPED) -> list[Op]:
    """Ops that leave `@result` a handle of the mount target `path`; made as a directory or file (`kind`) if it is
    missing."""
    components = parts(path)
    parents = "/".join(components[:-1])
    if kind == "dir":
        # with the same rule: the missing name may be a link by now
        create = make_directories(path, origin, result, resolve)
    elif not components:
        create = []
    else:
        create = make_directories(parents, origin, "parent") if parents else []
        # nothing is opened but what we have made: it may be a device by now, and opening it would do what that one does
        flags = k.O_CREAT | k.O_EXCL | k.O_RDONLY | k.O_CLOEXEC
        found = openat2("rootfs", relative(path), HANDLE, resolve, origin, result)
        create.append(
            openat2(
                "parent" if parents else "rootfs",
                components[-1].encode(),
                flags,
                EXACT,
                origin,
                result,
                mode=0o644,
                tolerate=(EEXIST,),
                otherwise=[found],
            )
        )
        if parents:
            create.append(close("parent", origin))
    missing = (ENOENT,) if create else ()
    return [openat2("rootfs", relative(path), HANDLE, resolve, origin, result, tolerate=missing, otherwise=create)]


def close(name: str, origin: str) -> Op:
    """Give `@name` back: a long list of mounts must not need a long list of descriptors."""
    return Op("close", (Ref(name),), origin)
