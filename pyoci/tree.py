"""What is in a directory of an image, for a tmpfs that begins with a copy of it (`tmpcopyup`): looked at, not entered.

Only loaded by `host` for configurations that ask for it.  The image is hostile: every component is opened without
following links, links are read and followed by us within the root, and what is found is only a list of names: init
opens each of them again, below the image's root, when it copies.
"""

from __future__ import annotations

import posix
from errno import ENAMETOOLONG, ENOENT, ENOTDIR
from stat import S_IFMT, S_IFREG, S_ISDIR, S_ISFIFO, S_ISLNK, S_ISREG

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

HANDLE = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
LINKS = 40  # that may be followed on the way, as the kernel has it (path_resolution(7))
MOST = 2000  # entries of one directory tree
MOST_BYTES = 1 << 30

# [path below the directory, mode with its type, uid, gid, size, target of a link]; the first, "", is the directory
Entry = list[object]


def listing(root: str, destination: str, where: str) -> list[Entry]:
    """The directory `destination` in the root file system `root`, parents first; [] if there is none.

    PyociError, at the JSON pointer `where`, for more than init should copy.
    """
    handle = find(root, destination)
    if handle < 0:
        return []
    try:
        fd = posix.open(".", DIRECTORY, dir_fd=handle)
    except NotADirectoryError:
        return []
    finally:
        posix.close(handle)
    found: list[Entry] = []
    try:
        status = posix.fstat(fd)
        found.append(["", status.st_mode, status.st_uid, status.st_gid, 0, ""])
        total = _walk(fd, "", found, 0, where)
    finally:
        posix.close(fd)
    if total > MOST_BYTES:
        limit = f"tmpcopyup copies {MOST_BYTES} at most"
        raise PyociError(f"{where}: {destination} of the image has {total} bytes; {limit}")
    return found


def find(root: str, path: str) -> int:
    """A handle (O_PATH) of what `path` means in the directory `root`, whose links lead to somewhere in it only.

    -1 for what is not there; OSError for what may not be looked at.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    stack = [posix.open(root, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)]
    links = 0
    try:
        while parts:
            name = parts.pop(0)
            if name == "..":
                if len(stack) > 1:
                    posix.close(stack.pop())
                continue
            try:
                found = posix.open(name, HANDLE, dir_fd=stack[-1])
            except OSError as error:
                if error.errno in (ENOENT, ENOTDIR, ENAMETOOLONG):
                    return -1
                raise
            stack.append(found)
            if not S_ISLNK(posix.fstat(found).st_mode):
                continue
            links += 1
            if links > LINKS:
                return -1
            target = posix.readlink(b"", dir_fd=found)
            posix.close(stack.pop())
            if target.startswith(b"/"):
                while len(stack) > 1:
                    posix.close(stack.pop())
            names = target.decode("utf-8", "surrogateescape").split("/")
            parts[:0] = [part for part in names if part not in ("", ".")]
        return stack.pop()
    finally:
        for fd in stack:
            posix.close(fd)


def resolve(root: str, path: str, ends: Collection[str] = ()) -> tuple[str, int, bool]:
    """(`path` without links, how many were followed, whether something of it is missing) in the directory `root`.

    With a link and something missing that is what has to be made: else the kernel finds it by itself.  A path into one
    of `ends`, which something else covers, ends there; and one that goes round in circles is left as it is.  OSError as
    of `find`.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    names: list[str] = []
    stack = [posix.open(root, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)]
    links = 0
    missing = False
    try:
        while parts:
            name = parts.pop(0)
            if name == "..":
                del names[-1:]
                if len(stack) > 1 and len(stack) > len(names) + 1:
                    posix.close(stack.pop())
                continue
            names.append(name)
            if ends and "/" + "/".join(names) in ends:
                break
            if len(stack) < len(names):
                continue  # below what is not there
            try:
                found = posix.open(name, HANDLE, dir_fd=stack[-1])
            except (FileNotFoundError, NotADirectoryError):
                missing = True
                continue
            stack.append(found)
            if not S_ISLNK(posix.fstat(found).st_mode):
                continue
            links += 1
            if links > LINKS:
                return path, 0, False
            target = posix.readlink(b"", dir_fd=found).decode("utf-8", "surrogateescape")
            posix.close(stack.pop())
            del names[-1:]
            if target.startswith("/"):
                names.clear()
                while len(stack) > 1:
                    posix.close(stack.pop())
            parts[:0] = [part for part in target.split("/") if part not in ("", ".")]
    finally:
        for fd in stack:
            posix.close(fd)
    return "/" + "/".join(names), links, missing


def open_file(handle: int) -> int:
    """A descriptor to read the regular file of `handle` (of `find`); -1 for anything else, and for one of no bytes.

    Nobody may hold us: a fifo is not opened at all, a lease is not waited for (fcntl(2), F_SETLEASE), and procfs, whose
    files have a size of 0, is not read, as some of them have the kernel's log in them and no end.
    """
    status = posix.fstat(handle)
    if not S_ISREG(status.st_mode) or not status.st_size:
        return -1
    return posix.open(f"/proc/self/fd/{handle}", posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)


def _walk(fd: int, prefix: str, found: list[Entry], depth: int, where: str) -> int:
    total = 0
    if depth > 32:
        raise PyociError(f"{where}: what tmpcopyup would copy is more than 32 directories deep")
    for name in sorted(posix.listdir(fd)):
        path = prefix + name
        try:
            status = posix.stat(name, dir_fd=fd, follow_symlinks=False)
            mode = status.st_mode
            target = posix.readlink(name, dir_fd=fd) if S_ISLNK(mode) else ""
        except FileNotFoundError:
            continue
        if not (S_ISDIR(mode) or S_ISREG(mode) or S_ISLNK(mode) or S_ISFIFO(mode)):
            continue  # devices and sockets mean nothing in a copy
        if len(found) > MOST:
            raise PyociError(f"{where}: tmpcopyup copies {MOST} files at most, and the image has more there")
        size = status.st_size if S_IFMT(mode) == S_IFREG else 0
        total += size
        found.append([path, mode, status.st_uid, status.st_gid, size, target])
        if S_ISDIR(mode):
            below = posix.open(name, DIRECTORY, dir_fd=fd)
            try:
                total += _walk(below, path + "/", found, depth + 1, where)
            finally:
                posix.close(below)
    return total
