"""Being told when the kernel kills, or would kill, for want of memory in a container.

v1 counts such events in an eventfd that is registered with memory.oom_control (admin-guide/cgroup-v1/memory.rst,
"OOM Control"); v2 makes memory.events readable anew, which poll(2) shows as POLLPRI (cgroups(7)).  A descriptor of the
file itself is polled rather than a watch put on its name: nothing can come between the two.
"""

from __future__ import annotations

import posix
import select
from errno import ENODEV, ENOENT

from pyoci.cgroup.files import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

GONE = (ENOENT, ENODEV)


class Watch:
    """`fd` shows `events` in poll(2) when there may be something new, and then `happened` says if there is.

    `over` is set when that has found the cgroup gone: the descriptor may be ready for good from then on.
    """

    fd = -1
    events = 0
    over = False

    def happened(self) -> bool:
        """Whether there was an OOM since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """No longer interested."""
        posix.close(self.fd)


class Eventfd(Watch):
    """v1's."""

    events = select.POLLIN

    def __init__(self, directory: str) -> None:
        self.control = directory + "/cgroup.event_control"
        self.fd = posix.eventfd(0, posix.EFD_CLOEXEC | posix.EFD_NONBLOCK)
        try:
            file = posix.open(directory + "/memory.oom_control", posix.O_RDONLY | posix.O_CLOEXEC)
            try:
                write(self.control, b"%d %d" % (self.fd, file))
            finally:
                posix.close(file)
        except BaseException:
            posix.close(self.fd)
            raise

    def happened(self) -> bool:
        """The end of the cgroup is one event as well."""
        try:
            count = posix.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        self.over = not posix.access(self.control, posix.F_OK)
        return count > (1 if self.over else 0)


class Events(Watch):
    """v2's."""

    events = select.POLLPRI

    def __init__(self, directory: str) -> None:
        self.fd = posix.open(directory + "/memory.events", posix.O_RDONLY | posix.O_CLOEXEC)
        self.count = self._kills()

    def _kills(self) -> int:
        """How many processes were killed; reading is also what makes poll wait for the next change."""
        text = posix.pread(self.fd, 4096, 0)
        for line in text.split(b"\n"):
            name, _, number = line.partition(b" ")
            if name == b"oom_kill":
                return int(number)
        return 0

    def happened(self) -> bool:
        """Other counts of memory.events change as well."""
        try:
            count = self._kills()
        except OSError as error:
            if error.errno not in GONE:
                raise
            self.over = True
            return False
        before, self.count = self.count, count
        return count > before


def watch(paths: Mapping[str, str]) -> Watch | None:
    """None where no controller counts the container's memory; OSError if we may not be told."""
    if "memory" in paths:
        return Eventfd(paths["memory"])
    if "" in paths and posix.access(paths[""] + "/memory.events", posix.F_OK):
        return Events(paths[""])
    return None
