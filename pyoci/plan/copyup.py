"""A new tmpfs that begins with a copy of what the image has in its place (`tmpcopyup`).

The list of what is there was made on the host (`pyoci.tree`); each name is opened again here, below the image's root,
without following links.  The tmpfs is a detached tree that nobody else can reach, so names in it are safe.  What
somebody changes in the image meanwhile fails the call or changes the copy, and never what it is a copy of.
"""

from __future__ import annotations

from errno import EINVAL, EPERM

from pyoci.kernel import flags as k
from pyoci.plan.ops import Op, Ref
from pyoci.plan.paths import EXACT, HANDLE, SCOPED, close, openat2, relative

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.spec.types import IdMapping

# what one sendfile(2) moves at most
PIECE = 0x7FFFF000
NEW = k.O_WRONLY | k.O_CREAT | k.O_EXCL | k.O_CLOEXEC
# O_NONBLOCK: a fifo in the place of a file must not hold us
OLD = k.O_RDONLY | k.O_NONBLOCK | k.O_NOFOLLOW | k.O_CLOEXEC
# an owner that the container's user namespace cannot have stays the tmpfs's: the container's root
FOREIGN = (EPERM, EINVAL)


def inside(number: int, mappings: Sequence[IdMapping]) -> int:
    """A host's id as the container's user namespace numbers it; UINT_MAX ("leave it") without one."""
    if not mappings:
        return number
    for entry in mappings:
        if entry.host_id <= number < entry.host_id + entry.size:
            return entry.container_id + number - entry.host_id
    return k.UINT_MAX


def copy_up(
    tree: str,
    destination: str,
    entries: Sequence[Sequence[object]],
    origin: str,
    uids: Sequence[IdMapping],
    gids: Sequence[IdMapping],
) -> list[Op]:
    """Fill the detached tmpfs `@tree` with `entries` of `destination`; `uids`, `gids` of a new user namespace."""
    ops: list[Op] = []
    # a directory's set-id bits would be given to what is made in it, and chown takes them away: they come last
    late: list[Op] = []
    if len(entries) > 1:
        ops.append(openat2("rootfs", relative(destination), HANDLE | k.O_DIRECTORY, SCOPED, origin, "from"))
    for path, mode, uid, gid, size, target in entries:
        assert isinstance(path, str) and isinstance(mode, int) and isinstance(uid, int) and isinstance(gid, int)
        assert isinstance(size, int) and isinstance(target, str)
        name = path.encode("utf-8", "surrogateescape")
        owner = inside(uid, uids), inside(gid, gids)
        kind, bits = mode & k.S_IFMT, mode & 0o7777
        if kind == k.S_IFREG:
            ops += _file(tree, name, bits, owner, size, origin)
            continue
        if kind == k.S_IFDIR and name:
            ops.append(Op("mkdirat", (Ref(tree), name, bits & 0o1777), origin))
            if bits & 0o6000:
                late.append(Op("fchmodat", (Ref(tree), name, bits), origin))
        elif kind == k.S_IFLNK:
            ops.append(Op("symlinkat", (target.encode("utf-8", "surrogateescape"), Ref(tree), name), origin))
        elif kind == k.S_IFIFO:
            ops.append(Op("mknodat", (Ref(tree), name, mode, 0), origin))
        flags = k.AT_SYMLINK_NOFOLLOW if name else k.AT_EMPTY_PATH
        ops.append(Op("fchownat", (Ref(tree), name, *owner, flags), origin, tolerate=FOREIGN))
    if len(entries) > 1:
        ops.append(close("from", origin))
    return ops + late


def _file(tree: str, name: bytes, bits: int, owner: tuple[int, int], size: int, origin: str) -> list[Op]:
    ops = [
        openat2("from", name, OLD, EXACT, origin, "old"),
        Op("openat", (Ref(tree), name, NEW, 0o600), origin, "new"),
    ]
    for _ in range(0, size, PIECE):
        ops.append(Op("sendfile", (Ref("new"), Ref("old"), 0, PIECE), origin, hint="the tmpfs may be too small"))
    ops += [
        Op("fchown", (Ref("new"), *owner), origin, tolerate=FOREIGN),
        Op("fchmod", (Ref("new"), bits), origin),
        close("new", origin),
        close("old", origin),
    ]
    return ops
