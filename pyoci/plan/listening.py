"""What a process is told of the descriptors that it inherits from a service manager (sd_listen_fds(3))."""

from __future__ import annotations

from pyoci.kernel import flags as k
from pyoci.plan.ops import Address, Buffer, Op, Ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.plan.namespaces import Namespaces

ORIGIN = "runtime.md#lifecycle"
NAMES = ("LISTEN_FDS=", "LISTEN_PID=", "LISTEN_FDNAMES=")  # which config.json may not say anything else of
VARIABLE = b"LISTEN_PID="
LENGTH = 12  # of a pid in decimal, and a NUL


def own_pid(names: Namespaces) -> list[Op]:
    """Ops of the container's first process that complete $LISTEN_PID where it is not known to be 1.

    A program takes the descriptors only if the variable is its own pid, in decimal: the kernel's words for that are
    where /proc/self leads, in a procfs of the pid namespace (@proc, where it is not the runtime's).
    """
    if "pid" in names.new:
        return []
    where: tuple[object, bytes] = (Ref("proc"), b"self") if "pid" in names.joined else (k.AT_FDCWD, b"/proc/self")
    return [Op("readlinkat", (*where, Buffer("listen_pid", LENGTH, VARIABLE), LENGTH - 1), ORIGIN)]


def variables(count: int, fd_names: str, names: Namespaces) -> Sequence[bytes | Address]:
    """The variables of the environment."""
    pid: bytes | Address = VARIABLE + b"1" if "pid" in names.new else Address("listen_pid", -len(VARIABLE))
    found = [b"LISTEN_FDS=%d" % count, pid]
    if fd_names:
        found.append(b"LISTEN_FDNAMES=" + fd_names.encode())
    return found
