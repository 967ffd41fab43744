"""The root of a container that shares our mount namespace, where its mounts are ours to take down again.

Such a container gets one mount, a copy of its root on top of it, and everything else is mounted inside of that.  So one
lazy umount(2) takes all of it down, whatever has been mounted in there.  It is known before it is made: as the mount at
this path whose parent is the mount that was there before.  Nothing else can be that, but for a second container that
was created at the same moment in the same root.

    namespace   our mount namespace, as the link in /proc names it
    path        the root, without symbolic links
    parent      number of the mount that it is on (proc_pid_mountinfo(5))
"""

from __future__ import annotations

import posix

from pyoci.errors import CallError, PyociError
from pyoci.kernel.errnos import words
from pyoci.kernel.flags import MNT_DETACH
from pyoci.mountinfo import mount_of, rows

NAMESPACE = "/proc/self/ns/mnt"
MOST = 1000  # mounts that somebody may have stacked on the root meanwhile
CLAUSE = "config.md#mounts"


def intended(path: str) -> dict[str, str]:
    """What the state must know before a root at `path` is mounted on.  PyociError for the root of the namespace."""
    fd = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        here, top = posix.fstat(fd), posix.stat("/")
        if (here.st_dev, here.st_ino) == (top.st_dev, top.st_ino):
            raise PyociError("/root/path: / is everybody's root: mounting in it needs a mount namespace")
        real = posix.readlink(f"/proc/self/fd/{fd}")
        parent = mount_of(fd)
        known = rows()
        mount = known.get(parent)
        above = known.get(mount.parent) if mount is not None else None
        if mount and above and mount.place == real and mount.group and mount.group == above.group:
            # what is mounted on it is also mounted under it, and takes it along when it goes (mount_namespaces(7))
            raise PyociError(
                f"/root/path: {path} is bound in the mount that it is of, and shared with it: mounting in it needs a "
                "mount namespace, or mount --make-private"
            )
        return {"namespace": posix.readlink(NAMESPACE), "path": real, "parent": str(parent)}
    finally:
        posix.close(fd)


def take_down(known: dict[str, str]) -> None:
    """Detach the container's mount, if it is there, with all that is in it."""
    if posix.readlink(NAMESPACE) != known["namespace"]:
        other = elsewhere(known["namespace"])
        if other:
            raise PyociError(
                f"{CLAUSE}: the container's mounts are in another mount namespace, that of process {other}: "
                f"nsenter --mount=/proc/{other}/ns/mnt, and delete it there"
            )
        return  # it ended, and they with it
    parent = int(known["parent"])
    for _ in range(MOST):
        now = rows()
        ours = [row.id for row in now.values() if (row.parent, row.place) == (parent, known["path"])]
        if not ours:
            return
        fd = posix.open(known["path"], posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            # what is on top of it goes first; it is in it, or else something else covers the path
            number = top = mount_of(fd)
            while number in now and number not in ours:
                number = now[number].parent
                if number == parent:
                    break
            if number not in ours:
                raise PyociError(f"{CLAUSE}: {known['path']} is covered by another mount: umount that first")
            detach(fd, top, known["path"])
        finally:
            posix.close(fd)
    raise PyociError(f"{CLAUSE}: {known['path']} is mounted on faster than it can be unmounted")


def detach(fd: int, number: int, path: str) -> None:
    """umount2(2) of the mount whose root `fd` is: by the descriptor, so that no other can be meant."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(f"/proc/self/fd/{fd}".encode(), MNT_DETACH):
        code = ctypes.get_errno()
        raise CallError(CLAUSE, f'umount2("{path}" (mount {number}), MNT_DETACH)', code, words(code))


def elsewhere(namespace: str) -> str:
    """The pid of a process in that mount namespace, "" if there is none."""
    for name in posix.listdir("/proc"):
        if name.isdigit():
            try:
                if posix.readlink(f"/proc/{name}/ns/mnt") == namespace:
                    return name
            except OSError:
                pass  # it has ended, or is not ours to look at
    return ""
