"""Spawn init with an assembled program, play the runtime's column at its barriers, and turn reports into errors."""

from __future__ import annotations

import _socket
import fcntl
import posix
from errno import EACCES, EAGAIN, EFBIG, EINTR

from pyoci import log
from pyoci.errors import PyociError
from pyoci.kernel.flags import MFD_EXEC
from pyoci.plan.ops import Ref
from pyoci.reports import AT_BARRIER, FAILED, FORKED, REPORT, TEXT_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pyoci.plan.ops import Op
    from pyoci.program import Program

INIT_ELF = __file__[: __file__.rindex("/")] + "/init/init.elf"
TEXT = 0x1000
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
SIGNALS = (*range(1, 32), *range(34, 65))
# our own descriptors are moved out of the way of those that init is given
HIGH = 1
TOO_MANY = "the caller may have no more processes: raise its limit (ulimit -u), or pids.max of its cgroup"

# calls of which another process goes on, and the one that made it tells us its pid
FORKS = ("clone3", "clone")

_template = b""


def template() -> bytes:
    """init's ELF headers and text: the first page of the installed file, read once (a snapshot has read it)."""
    global _template  # noqa: PLW0603
    if _template:
        return _template
    try:
        fd = posix.open(INIT_ELF, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        from pyoci.kernel.errnos import words

        message = f"{INIT_ELF}: {words(error.errno or 0)}; install pyoci, or build it in place with ./check native"
        raise PyociError(message) from None
    try:
        _template = posix.read(fd, TEXT)
    finally:
        posix.close(fd)
    return _template


def seal(image: bytes, kernel: tuple[int, int]) -> int:
    """A sealed memfd of `image`: what init executes is nobody's file and can be changed by nobody (CVE-2019-5736)."""
    # The kernel wants to be told that a memfd will be executed since 6.3, and does not know the flag before.
    executable = MFD_EXEC if kernel >= (6, 3) else 0
    try:
        fd = posix.memfd_create("pyoci-init", posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING | executable)
    except OSError as error:
        if error.errno != EACCES:
            raise
        raise PyociError(
            "memfd_create(MFD_EXEC): permission denied; the sysctl vm.memfd_noexec is 2, and what goes into a container"
            " is a program in a memfd: set it to 1"
        ) from None
    rest = memoryview(image)
    try:
        while rest:
            rest = rest[posix.write(fd, rest) :]
    except OSError as error:
        from pyoci.kernel.errnos import words

        posix.close(fd)
        hint = "; the limit of files' sizes is one of memfds, too: raise it (ulimit -f)" if error.errno == EFBIG else ""
        raise PyociError(f"write(memfd, {len(image)} bytes): {words(error.errno or 0)}{hint}") from None
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


class Died(PyociError):
    """init ended without a report: somebody killed it."""


class Failure(PyociError):
    """init reported a failing op: `op` and `errno` say which and why, `detail` has the kernel's own words."""

    def __init__(self, op: Op, number: int, detail: str) -> None:
        from pyoci.kernel.errnos import words

        super().__init__(f"{op.origin}: {op.call}: {words(number)}")
        self.op = op
        self.errno = number
        self.detail = detail


class Session:
    """One init at work.

    pid         the container's first process in the runtime's pid namespace, 0 before clone3
    stage       who has yet to tell of its child: init's first process, or one that makes ready what comes after it
    forks       how many have told
    descriptor  the terminal's master once it has arrived, or -1
    done        set by `perform` when nobody waits for what init does after this barrier
    """

    __slots__ = ("arrived", "control", "descriptor", "done", "forks", "perform", "pid", "program", "stage")

    def __init__(self, program: Program, perform: Callable[[Op, Session], None]) -> None:
        self.program = program
        self.perform = perform
        self.control: _socket.socket | None = None
        self.pid = 0
        self.stage = 0
        self.forks = 0
        self.descriptor = -1
        self.arrived: Callable[[int], None] | None = None
        self.done = False

    def spawn(
        self,
        kernel: tuple[int, int],
        fds: Mapping[str, int],
        given: Mapping[str, int],
        stdio: tuple[int, int, int] = (0, 1, 2),
    ) -> None:
        """Start init; `fds` are its numbers for its descriptors by name, `given` our descriptors for some of those
        names."""
        for preserved in range(3, min(fds.values())):
            try:
                given_to_us = posix.get_inheritable(preserved)
            except OSError:
                given_to_us = False
            if not given_to_us:
                # its number would be that of a descriptor of init's, which must not outlive execve
                raise PyociError(f"--preserve-fds: descriptor {preserved} is not open")
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.control = ours
        high: list[int] = []
        try:
            image = seal(self.program.image, kernel)
            try:
                executable = fcntl.fcntl(image, fcntl.F_DUPFD_CLOEXEC, max(fds.values()) + HIGH)
            finally:
                posix.close(image)
            high.append(executable)
            actions: list[tuple[int, int, int]] = []
            for name, source in (*given.items(), ("control", theirs.fileno())):
                moved = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, max(fds.values()) + HIGH)
                high.append(moved)
                actions.append((posix.POSIX_SPAWN_DUP2, moved, fds[name]))
            if stdio != (0, 1, 2):
                streams = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(fds.values()) + HIGH) for fd in stdio]
                high += streams
                actions += [(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
            self.stage = posix.posix_spawn(
                f"/proc/self/fd/{executable}",
                [b"pyoci", b"init"],
                {},
                file_actions=actions,
                setsigmask=(),
                setsigdef=SIGNALS,
            )
        except BlockingIOError:
            from pyoci.kernel.errnos import words

            raise PyociError(f"posix_spawn(init): {words(EAGAIN)}; {TOO_MANY}") from None
        finally:
            theirs.close()
            for fd in high:
                posix.close(fd)
        if log.debugging:
            log.debug("init is started", pid=self.stage, ops=len(self.program.index))

    def play(self) -> None:
        """Serve reports until init executes the user's program (end of file).  Raises Failure, Died, or what
        `perform` raises."""
        control = self.control
        assert control is not None
        last = -1
        barriers = self.program.barriers
        early: list[bytes] = []
        while True:
            # What the container's first process says can overtake what the stage says about it: it waits until we know
            # whom we are talking to.
            message = self._of_before(early) or self._receive(control)
            if not message:
                if self.stage:
                    self._reap_stage()
                    raise Died("init died before it made the container")
                if last != max(barriers, default=-1):
                    raise Died("init died before it reached the container's program")
                if log.debugging:
                    log.debug("the program runs", pid=self.pid)
                return
            if len(message) < REPORT.size:
                raise Died("init's report is cut off")
            kind, index, value, length = REPORT.unpack_from(message)
            if self.stage and kind != FAILED and self._unknown(index):
                early.append(message)
                continue
            if kind == FORKED:
                self._know(value, index)
                if log.debugging and not self.stage:
                    log.debug("the process is made", pid=value)
            elif kind == AT_BARRIER:
                # A plan leads forward, once.  Whoever may trace the process may speak for it, and must not make us do
                # what is not due.
                if index not in barriers or index <= last:
                    raise Died(f"init reports op {index}, which is no barrier that is still to come")
                last = index
                run_ops(barriers[index], self._perform)
                try:
                    control.send(b"\0")
                except OSError as error:
                    raise Died("init died while the runtime was at work for it") from error
                if self.done:
                    return
            elif kind == FAILED:
                text = message[REPORT.size : REPORT.size + length].decode("utf-8", "replace").strip()
                if index >= len(self.program.index):
                    raise Died(f"init reports op {index}, which its plan has not")
                raise Failure(self.program.index[index], value, text)

    def _unknown(self, index: int) -> bool:
        """Whether who performs the op `index` has been made by somebody who has not told us yet."""
        ops = self.program.index
        # an op can take more than one place: its descriptors are put into memory first
        before = {id(op) for op in ops[:index] if op.call in FORKS} - {id(op) for op in ops[index : index + 1]}
        return len(before) > self.forks

    def _of_before(self, early: list[bytes]) -> bytes:
        """The first of these messages whose sender is known by now; it is taken out."""
        for place, message in enumerate(early):
            if not (self.stage and self._unknown(REPORT.unpack_from(message)[1])):
                return early.pop(place)
        return b""

    def _know(self, pid: int, index: int) -> None:
        """The process that the stage has made: our child, and there is one."""
        try:
            if not self.stage or pid <= 0:
                raise ChildProcessError
            posix.waitid(posix.P_PID, pid, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        except ChildProcessError:
            raise Died(f"init reports process {pid}, which is not its child") from None
        self.pid = pid
        self.forks += 1
        self._reap_stage()
        if any(op.call in FORKS for op in self.program.index[index + 1 :]):
            self.stage = pid

    def _perform(self, op: Op) -> None:
        self.perform(op, self)
        if log.debugging:
            tell(op, self.pid)

    def _receive(self, control: _socket.socket) -> bytes:
        try:
            if self.descriptor != -2:  # noqa: PLR2004 - see expect_descriptor
                return control.recv(REPORT.size + TEXT_MAX)
            message, ancillary, _, _ = control.recvmsg(REPORT.size + TEXT_MAX, _socket.CMSG_SPACE(4))
        except ConnectionResetError:
            return b""  # it has died before it read what we have sent
        for _, _, data in ancillary:
            self.descriptor = int.from_bytes(data[:4], "little")
            posix.set_inheritable(self.descriptor, False)
            if self.arrived is not None:
                self.arrived(self.descriptor)
        return message

    def expect_descriptor(self, arrived: Callable[[int], None] | None = None) -> None:
        """Take the terminal's master from the next message that carries one, and hand it to `arrived` at once."""
        self.descriptor = -2
        self.arrived = arrived

    def _reap_stage(self) -> None:
        if self.stage:
            posix.waitpid(self.stage, 0)
            self.stage = 0

    def abandon(self) -> None:
        """Kill what was started and reap it; nothing of it is left when this returns."""
        if self.control is not None:
            self.control.close()
            self.control = None
        for pid in {self.stage, self.pid}:
            if pid:
                try:
                    posix.kill(pid, 9)
                    posix.waitpid(pid, 0)
                except OSError:
                    pass  # it is not there any more, or was never ours to wait for
        self.stage = self.pid = 0


def substitute(text: bytes, pid: int) -> bytes:
    """`@pid` in a path stands for the container's first process."""
    return text.replace(b"@pid", b"%d" % pid) if b"@pid" in text else text


def write(path: bytes, data: bytes) -> None:
    """One write(2) to a kernel file: such files take a value whole or not at all."""
    fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, data)
    finally:
        posix.close(fd)


def perform_write(op: Op, pid: int) -> None:
    """The runtime's `write(path, data)`; data may be `@pid`."""
    path, data = op.args
    assert isinstance(path, bytes)
    # "0" in cgroup.procs means whoever writes it: that would be us
    assert pid > 0 or (not isinstance(data, Ref) and b"@pid" not in path)
    content = b"%d" % pid if isinstance(data, Ref) else data
    assert isinstance(content, bytes)
    write(substitute(path, pid), content)


def tell(op: Op, pid: int = 0) -> None:
    """With --debug: what the runtime has done, in the words of the printed plan; for init, once that has a pid."""
    from pyoci.plan.render import call

    log.debug(call(op), origin=op.origin, **({"pid": pid} if pid else {}))


def run_ops(ops: Sequence[Op], do: Callable[[Op], None]) -> None:
    """The runtime's ops in order, with their tolerated errnos and blocks; raises Failure."""
    for op in ops:
        try:
            do(op)
        except OSError as error:
            number = error.errno or EINTR
            if number not in op.tolerate:
                raise Failure(op, number, "") from error
            run_ops(op.otherwise, do)
        else:
            run_ops(op.then, do)
