"""Handing a filter's listener to its agent (config-linux.md#seccomp): the runtime's half of plan/listener.py.

Imported only where a configuration has SCMP_ACT_NOTIFY.
"""

from __future__ import annotations

import _socket
import posix
import select
from _struct import Struct as Packer

from pyoci import SPEC_VERSION
from pyoci.errors import PyociError
from pyoci.jsontext import dumps
from pyoci.kernel.errnos import words
from pyoci.kernel.flags import S_IFMT, S_IFSOCK, SCM_CREDENTIALS, SO_PASSCRED
from pyoci.kernel.seccomp import ACTIONS, ARCHITECTURES
from pyoci.kernel.syscalls import numbers
from pyoci.launch import Died, Session
from pyoci.plan.listener import EXPECTED, NAME, ORIGIN
from pyoci.plan.ops import INIT, Ref
from pyoci.reports import AT_BARRIER, LISTENER_MESSAGE, REPORT, TERMINAL, TEXT_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pyoci.plan.ops import Op
    from pyoci.program import Program
    from pyoci.spec.types import Seccomp
    from pyoci.state import State

CREDENTIALS = Packer("iII")  # struct ucred: pid, uid, gid
PATIENCE = 10  # seconds that an agent may take to accept and to read; twice as many for init to have its filter
ACTION_MASK = 0xFFFF0000
PASSES = frozenset(ACTIONS[name] for name in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY"))
# some address: where memory is passed
SOMEWHERE = 0x20001000
HINT = "is the seccomp agent running?"


def address(seccomp: Seccomp, bundle: str) -> str:
    """/linux/seccomp/listenerPath, relative paths from the bundle like all of config.json's."""
    path = seccomp.listener_path
    return path if path.startswith("/") else f"{bundle}/{path}"


def status_of(state: State, status: str) -> Callable[[int], dict[str, object]]:
    """The state (runtime.md#state) of a container that runs, whatever process joins it."""
    from pyoci.state import document

    return lambda pid: document(state, status)


def check(  # noqa: PLR0913 - the plan and the filter, and what numbers mean in them
    seccomp: Seccomp, bundle: str, ops: Sequence[Op], program: bytes, arch: str, fds: Mapping[str, int]
) -> None:
    """Before anything is touched: the agent's socket is there, and the filter lets pass what init does under it."""
    path = address(seccomp, bundle)
    try:
        mode = posix.stat(path).st_mode
    except OSError as error:
        raise PyociError(f"{ORIGIN}: {path}: {words(error.errno or 0)}; {HINT}") from None
    if mode & S_IFMT != S_IFSOCK:
        raise PyociError(f"{ORIGIN}: {path} is not a socket")
    call = refused(ops, program, arch, fds)
    if call:
        raise PyociError(
            f"/linux/seccomp: a filter with SCMP_ACT_NOTIFY is loaded when the container is made, and this one "
            f"refuses {call}, which is still to come before the program is executed; allow it, or notify it"
        )


def refused(ops: Sequence[Op], program: bytes, arch: str, fds: Mapping[str, int]) -> str:
    """The first call of init's that the filter which it has loaded refuses, or ""."""
    from pyoci.filter_answer import answer

    table = numbers(arch)
    for call, args in _under_the_filter(ops, fds):
        if answer(program, ARCHITECTURES[arch], table[call], args) & ACTION_MASK not in PASSES:
            return call
    return ""


def _under_the_filter(ops: Sequence[Op], fds: Mapping[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """The calls between seccomp(2) and execve(2), of which start reports what happens to it."""
    place = next(index for index, op in enumerate(ops) if op.call == "seccomp")
    control = fds["control"]
    found: list[tuple[str, tuple[int, ...]]] = []
    silent = False
    for op in ops[place + 1 :]:
        if op.performer is not INIT:
            silent = silent or op.call == NAME
            if not silent:
                found.append(("write", (control, SOMEWHERE, REPORT.size)))
            found.append(("read", (control, SOMEWHERE, 1)))
            silent = op.call in (NAME, "created")
        elif op.call not in ("execve", "expect"):
            silent = False
            args = [
                arg if isinstance(arg, int) else fds.get(arg.name, control) if isinstance(arg, Ref) else SOMEWHERE
                for arg in op.args
            ]
            found.append((op.call, tuple(args)))
            if op.call == "clone":
                # who made the other process says so, and ends
                found += [("write", (control, SOMEWHERE, REPORT.size)), ("exit_group", (0,))]
    return found


class ListeningSession(Session):
    """A session whose init loads a filter with a listener.

    state  makes the state that the agent is told, from the pid of the process
    """

    __slots__ = ("bundle", "helper", "listener", "seccomp", "state")

    def __init__(
        self,
        program: Program,
        perform: Callable[[Op, Session], None],
        seccomp: Seccomp,
        bundle: str,
        state: Callable[[int], dict[str, object]],
    ) -> None:
        super().__init__(program, perform)
        self.seccomp = seccomp
        self.bundle = bundle
        self.state = state
        self.listener = -1
        self.helper = 0

    def spawn(
        self,
        kernel: tuple[int, int],
        fds: Mapping[str, int],
        given: Mapping[str, int],
        stdio: tuple[int, int, int] = (0, 1, 2),
    ) -> None:
        """See Session; the helper's pid is told by the kernel, in our own pid namespace."""
        super().spawn(kernel, fds, given, stdio)
        assert self.control is not None
        self.control.setsockopt(_socket.SOL_SOCKET, SO_PASSCRED, 1)

    def _receive(self, control: _socket.socket) -> bytes:
        space = _socket.CMSG_SPACE(4) + _socket.CMSG_SPACE(CREDENTIALS.size)
        try:
            message, ancillary, _, _ = control.recvmsg(REPORT.size + TEXT_MAX, space, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b""
        except TimeoutError:
            raise Died("init did not hand over the listener of its filter") from None
        descriptor = sender = -1
        for _, kind, data in ancillary:
            if kind == _socket.SCM_RIGHTS:
                descriptor = int.from_bytes(data[:4], "little")
            elif kind == SCM_CREDENTIALS:
                sender = CREDENTIALS.unpack(data)[0]
        if descriptor >= 0 and message == LISTENER_MESSAGE:
            self.listener, self.helper = descriptor, sender
            # the helper speaks for init, which is at the one barrier where it says nothing
            index = next(index for index, due in self.program.barriers.items() if due[0].call == NAME)
            return REPORT.pack(AT_BARRIER, index, 0, 0)
        if descriptor >= 0 and message[:4] == TERMINAL.to_bytes(4, "little"):
            self.descriptor = descriptor
            if self.arrived is not None:
                self.arrived(descriptor)
        return message

    def _perform(self, op: Op) -> None:
        assert self.control is not None
        if op.call == EXPECTED:
            self.control.settimeout(2 * PATIENCE)
        elif op.call == NAME:
            self.control.settimeout(None)
            try:
                self.hand_over()
            finally:
                self._drop()
            self._helper_is_gone()
        else:
            super()._perform(op)

    def _drop(self) -> None:
        if self.listener >= 0:
            posix.close(self.listener)
            self.listener = -1

    def _helper_is_gone(self) -> None:
        """The program must find no child that it did not make: execve only after the helper's end."""
        if self.helper <= 0:
            return
        try:
            process = posix.pidfd_open(self.helper)
        except OSError:
            return  # already
        try:
            ended = select.poll()
            ended.register(process, select.POLLIN)
            ended.poll(PATIENCE * 1000)
        finally:
            posix.close(process)

    def hand_over(self) -> None:
        """One connection, one container process state with the descriptor, and the end of the connection."""
        if posix.readlink(f"/proc/self/fd/{self.listener}") != "anon_inode:seccomp notify":
            raise PyociError(f"{ORIGIN}: init has handed over something that is no listener")
        document: dict[str, object] = {"ociVersion": SPEC_VERSION, "fds": ["seccompFd"], "pid": self.pid}
        if self.seccomp.listener_metadata:
            document["metadata"] = self.seccomp.listener_metadata
        document["state"] = self.state(self.pid)
        data = memoryview(dumps(document).encode("utf-8", "surrogateescape"))
        path = address(self.seccomp, self.bundle)
        agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        call = "connect"
        try:
            agent.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, PATIENCE.to_bytes(8, "little") + bytes(8))
            parent, _, name = path.rpartition("/")
            # sun_path holds 108 bytes (unix(7))
            directory = posix.open(parent or "/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
            try:
                agent.connect(f"/proc/self/fd/{directory}/{name}")
            finally:
                posix.close(directory)
            call = "sendmsg"
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, self.listener.to_bytes(4, "little"))
            sent = agent.sendmsg([data], [rights], _socket.MSG_NOSIGNAL)
            while sent < len(data):
                sent += agent.send(data[sent:], _socket.MSG_NOSIGNAL)
        except OSError as error:
            raise PyociError(f"{ORIGIN}: {call} {path}: {words(error.errno or 0)}; {HINT}") from None
        finally:
            agent.close()

    def abandon(self) -> None:
        """See Session."""
        self._drop()
        super().abandon()
