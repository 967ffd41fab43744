"""HOME of a process whose environment has none: what the image's /etc/passwd says of its user.

The specification is silent; every peer does this, and engines for Kubernetes rely on it.  The file is read on the host,
before anything is entered: init decides nothing and so cannot search it, and what comes later would not be in the plan.
It is the image's, and so hostile: it is found without following a link out of the root, is only read if it is a regular
file, and nothing but numbers are compared (CVE-2016-3697).
"""

from __future__ import annotations

import posix

from pyoci.tree import find, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.spec.types import Mount

FILE = "/etc/passwd"
NOWHERE = "/"  # the home of a user that the file does not know, or knows no home of
PATH_MAX = 4096  # limits.h
MOST = 1 << 20  # bytes of the file that are looked at


def home(root: str, uid: int, path: str = FILE) -> str:
    """The home directory of `uid` by the file `path` in `root`, "" for the file `root` itself."""
    try:
        handle = find(root, path) if path else posix.open(root, posix.O_PATH | posix.O_CLOEXEC)
    except OSError:
        return NOWHERE  # not ours to read
    if handle < 0:
        return NOWHERE
    try:
        fd = open_file(handle)
    except OSError:
        return NOWHERE
    finally:
        posix.close(handle)
    if fd < 0:
        return NOWHERE
    try:
        return search(fd, uid)
    except OSError:
        return NOWHERE
    finally:
        posix.close(fd)


def search(fd: int, uid: int) -> str:
    """passwd(5): name:password:UID:GID:GECOS:directory:shell, the first line that has the number."""
    data = b""
    while len(data) < MOST and (piece := posix.read(fd, 1 << 16)):
        data += piece
    wanted = b"%d" % uid
    for line in data[:MOST].split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == wanted:  # noqa: PLR2004 - the directory's is the sixth
            try:
                directory = fields[5].decode()
            except UnicodeDecodeError:
                return NOWHERE
            fits = directory.startswith("/") and "\0" not in directory and len(fields[5]) < PATH_MAX
            return directory if fits else NOWHERE
    return NOWHERE


def place(mounts: Sequence[Mount], root: str, bundle: str) -> tuple[str, str]:
    """Where /etc/passwd of a container that is yet to be made is, as `home` wants it; ("", ...) for nowhere.

    A mount may cover the image's: a bind mount has its file at its source, into another file system nobody can look
    before it is mounted.
    """
    found = root, FILE
    for mount in mounts:
        destination = "/" + "/".join([part for part in mount.destination.split("/") if part not in ("", ".")])
        if destination not in ("/", "/etc", FILE) or "remount" in mount.options:
            continue
        if "bind" in mount.options or "rbind" in mount.options:
            source = mount.source if mount.source.startswith("/") else f"{bundle}/{mount.source}"
            found = source, FILE[len(destination.rstrip("/")) :]
        elif mount.type and "tmpcopyup" not in mount.options:
            found = "", FILE
    return found
