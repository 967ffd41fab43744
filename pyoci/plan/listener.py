"""A filter with a listener (SCMP_ACT_NOTIFY): loaded when the container is made, its descriptor handed to the runtime.

From seccomp(2) on every call of ours may be refused, may kill us, or may wait for the answer of an agent that does not
have the descriptor yet.  So it is not we who hand it over.  A second process, made just before and not under the
filter, shares our table of descriptors: it waits until the descriptor is there, sends it to the runtime, closes it for
both of us and ends.  Meanwhile we wait in read(2) for the runtime to have passed it on to the agent; a runtime that
died is the end of us.  The container never has the descriptor: it is closed before the container is "created".
"""

from __future__ import annotations

from pyoci.kernel import flags as k
from pyoci.kernel.seccomp import SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
from pyoci.plan.ops import RUNTIME, Blob, Op, Ref, Struct
from pyoci.plan.paths import HANDLE, close
from pyoci.reports import LISTENER_MESSAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ORIGIN = "/linux/seccomp/listenerPath"
NAME = "listener"
EXPECTED = "expect_listener"


def hand_over(load: Op, late: Sequence[Op], flags: int) -> list[Op]:
    """`load` the filter, give up with `late` what that took, and let the runtime hand its listener to the agent."""
    control = Struct("cmsg_fd", cmsg_len=20, cmsg_level=k.SOL_SOCKET, cmsg_type=k.SCM_RIGHTS, fd=Ref(NAME))
    vector = Struct("iovec", iov_base=Blob(LISTENER_MESSAGE, "message"), iov_len=len(LISTENER_MESSAGE))
    message = Struct("msghdr", msg_iov=vector, msg_iovlen=1, msg_control=control, msg_controllen=24)
    helper = [
        Op("prctl", (k.PR_SET_PDEATHSIG, k.SIGKILL, 0, 0, 0), ORIGIN),
        # the number is not given yet: this waits for it
        Op("offer", (Ref("control"), message, k.MSG_NOSIGNAL), ORIGIN),
        close(NAME, ORIGIN),
        Op("exit_group", (0,), ORIGIN),
    ]
    load.hint = "a process has only one listener: is the runtime itself under an agent? (EBUSY)"
    if flags & SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV:
        load.hint = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs Linux 5.19 (EINVAL); " + load.hint
    return [
        # from here on it must not take long: we would not hear of the helper's death
        Op(EXPECTED, (), ORIGIN, performer=RUNTIME),
        # The lowest number that is free is the one that seccomp(2) will give: open(2), seccomp_unotify(2).
        Op("openat", (k.AT_FDCWD, b"/", HANDLE | k.O_DIRECTORY), ORIGIN, NAME),
        close(NAME, ORIGIN),
        # Nobody will wait for the helper: it must leave no zombie.  execve takes this back, unlike an ignored signal.
        Op("rt_sigaction", (k.SIGCHLD, Struct("sigaction", sa_flags=k.SA_NOCLDWAIT), 0, 8), ORIGIN),
        Op(
            "spawn",
            (Struct("clone_args", flags=k.CLONE_FILES, exit_signal=k.SIGCHLD), 88),
            ORIGIN,
            otherwise=helper,
            hint="the listener needs one more process for a moment: pids.limit, RLIMIT_NPROC",
        ),
        load,
        *late,
        Op(NAME, (), ORIGIN, performer=RUNTIME),
    ]
