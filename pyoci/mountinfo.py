"""What is mounted in a mount namespace, as the kernel tells it (proc_pid_mountinfo(5), proc_pid_fdinfo(5))."""

from __future__ import annotations

from pyoci.cgroup.detect import unescape
from pyoci.cgroup.files import read
from pyoci.errors import PyociError


class Row:
    """One mount: its number, that of the one that it is on, what of its file system, where, of which type, its options,
    and its peer group (`shared:N`, "" for none)."""

    __slots__ = ("group", "id", "kind", "options", "parent", "place", "root")

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        end = fields.index("-")
        self.id = int(fields[0])
        self.parent = int(fields[1])
        self.root = unescape(fields[3])
        self.place = unescape(fields[4])
        self.options = fields[5].split(",")
        self.group = next((word for word in fields[6:end] if word.startswith("shared:")), "")
        self.kind = fields[end + 1]


def rows(pid: int | str = "self") -> dict[int, Row]:
    """The mounts of a process by number, in the kernel's order, as its root sees them.  OSError if there is no such
    process."""
    text = read(f"/proc/{pid}/mountinfo").decode("utf-8", "surrogateescape")
    return {row.id: row for row in map(Row, text.splitlines())}


def mount_of(fd: int, pid: int | str = "self") -> int:
    """The number of the mount that an open file of a process is on.  OSError if there is no such file or process."""
    for line in read(f"/proc/{pid}/fdinfo/{fd}").splitlines():
        if line.startswith(b"mnt_id:"):
            return int(line[7:])
    raise PyociError(f"/proc/{pid}/fdinfo/{fd} does not tell the mount")
