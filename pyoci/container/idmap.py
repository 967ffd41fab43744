"""User namespaces that exist for their maps only: what id-mapped mounts are made from."""

from __future__ import annotations

import posix

from pyoci.kernel.syscalls import numbers
from pyoci.launch import Session, perform_write, template
from pyoci.plan.idmap import FDS, namespace_ops
from pyoci.program import assemble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.host import Host
    from pyoci.plan.ops import Op


def user_namespace(host: Host, uids: bytes, gids: bytes, origin: str) -> int:
    """A descriptor of a new user namespace with these maps; no process is left in it.  Raises Failure."""
    found = -1

    def perform(op: Op, session: Session) -> None:
        nonlocal found
        if op.call == "open_namespace":
            found = posix.open(f"/proc/{session.pid}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC)
        else:
            perform_write(op, session.pid)

    ops = namespace_ops(uids, gids, origin)
    session = Session(assemble(ops, template(), host.arch, numbers(host.arch), FDS, {}), perform)
    try:
        session.spawn(host.kernel, FDS, {})
        session.play()
    finally:
        session.abandon()
    return found
