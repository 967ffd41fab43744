"""The caller's end of a container: its terminal, its signals, its exit status; and consoles given away to engines."""

from __future__ import annotations

import errno
import posix
import select
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from fcntl import ioctl
from time import monotonic

from pyoci import signals
from pyoci.errors import PyociError
from pyoci.kernel.flags import TIOCGWINSZ, TIOCSWINSZ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WINDOW = 8  # sizeof(struct winsize)
END_OF_FILE = b"\x04"  # what a terminal in its usual mode makes an end of file of (VEOF, termios(3))
SOON, RARELY = 0.2, 10.0  # seconds until it is typed again, at first and at last
CHUNK = 4096  # poll(2) promises room for that much in a pipe, so a write of it does not wait
REST = 64 * 1024  # bytes; the kernel's limit of what waits in a terminal (drivers/tty/tty_buffer.c)
# What `attend` passes on: all but what is ours (children, the window, broken pipes) and what the processor sends.
OURS = frozenset((signals.SIGCHLD, signals.SIGWINCH, 4, 5, 7, 8, 9, 11, 13, 19, 31, 32, 33))
FORWARDED = tuple(n for n in range(1, 65) if n not in OURS)


def connect_console_socket(path: str, flag: str = "--console-socket") -> int:
    """A descriptor connected to the engine's socket at `path`, which may be longer than sun_path's 108 bytes."""
    parent, _, name = path.rpartition("/")
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        directory = posix.open(parent or "/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{name}")
        finally:
            posix.close(directory)
    except OSError as error:
        connection.close()
        from pyoci.kernel.errnos import words

        raise PyociError(f"{flag}: connect {path}: {words(error.errno or 0)}") from None
    return connection.detach()


def exit_status(status: int) -> int:
    """waitpid's word as shells say it: the exit status, or 128 plus the signal."""
    return posix.WEXITSTATUS(status) if posix.WIFEXITED(status) else 128 + posix.WTERMSIG(status)


def match_window(master: int) -> None:
    """Give the terminal whose master end this is the size of the caller's, if the caller has one."""
    for descriptor in (0, 1, 2):
        if posix.isatty(descriptor):
            try:
                ioctl(master, TIOCSWINSZ, ioctl(descriptor, TIOCGWINSZ, bytes(WINDOW)))
            except OSError:
                pass  # one of them has gone away
            return


def plain(master: int) -> None:
    """Lines end as programs write them, where it is no terminal that shows them: into a file or a pipe goes no CR."""
    if not posix.isatty(1):
        import termios

        modes = termios.tcgetattr(master)
        modes[1] &= ~termios.ONLCR
        termios.tcsetattr(master, termios.TCSANOW, modes)


def sized(master: int) -> None:
    """The same, and the size of the caller's terminal."""
    plain(master)
    match_window(master)


def hold_signals() -> None:
    """From just before the program starts until `attend` can pass them on, signals wait: none may end us instead."""
    signals.hold(FORWARDED)


def attend(pid: int, pidfd: int, master: int | None = None) -> int:
    """Stay with our child `pid` until it ends, and return its exit status as shells say it.

    Signals that reach us go to it instead.  With `master`, its pseudoterminal, the caller's terminal (or whatever is on
    descriptors 0 and 1) is joined to that: raw mode, resizing, restored whatever happens.  Closes `master`.
    """
    if master is None:
        return _wait(pid, pidfd)
    terminal = _Terminal(master)

    def pass_on(number: int, frame: object) -> None:
        try:
            signals.send(pidfd, number)
        except ProcessLookupError:
            pass

    def resize(number: int, frame: object) -> None:
        match_window(master)

    before: list[tuple[int, object]] = []
    try:
        # Before the handlers: a job in the background is to be stopped here (SIGTTOU), as any program would be.
        terminal.enter()
        before = signals.catch(FORWARDED, pass_on) + signals.catch((signals.SIGWINCH,), resize)
        signals.release(FORWARDED)
        match_window(terminal.master)
        terminal.copy_until(pidfd)
        return exit_status(posix.waitpid(pid, 0)[1])
    finally:
        terminal.leave()
        signals.restore(before)


def _wait(pid: int, pidfd: int) -> int:
    """`attend` without a terminal: signals are waited for like the child's end, which is one of them.

    A handler for each of sixty signals, there and back, would take longer than many a container lives.
    """
    watched = (signals.SIGCHLD, *signals.heeded(FORWARDED))
    signals.hold(watched)
    try:
        while True:
            ended, status = posix.waitpid(pid, posix.WNOHANG)
            if ended:
                return exit_status(status)
            number = signals.wait(watched)
            if number != signals.SIGCHLD:
                try:
                    signals.send(pidfd, number)
                except ProcessLookupError:
                    pass
    finally:
        signals.release((signals.SIGCHLD, *FORWARDED))


class _Terminal:
    """The caller's terminal on one side, a container's on the other."""

    def __init__(self, master: int) -> None:
        self.master = master
        self.saved: list[Any] | None = None

    def enter(self) -> None:
        """Raw mode: every key is the container's (cfmakeraw of termios(3))."""
        if not posix.isatty(0):
            return
        import termios as t

        self.saved = t.tcgetattr(0)
        raw = t.tcgetattr(0)
        raw[0] &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
        raw[1] &= ~t.OPOST
        raw[2] = raw[2] & ~(t.CSIZE | t.PARENB) | t.CS8
        raw[3] &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
        raw[6][t.VMIN], raw[6][t.VTIME] = 1, 0
        t.tcsetattr(0, t.TCSANOW, raw)

    def leave(self) -> None:
        """Give the terminal back as it was."""
        posix.close(self.master)
        if self.saved is not None:
            import termios

            before = signals.catch((22,), lambda number, frame: None)
            signals.ignore(22)  # SIGTTOU: restoring must work from the background as well
            try:
                termios.tcsetattr(0, termios.TCSADRAIN, self.saved)
            except termios.error:
                pass  # the terminal is gone
            finally:
                signals.restore(before)

    def copy_until(self, pidfd: int) -> None:
        """Copy both ways until the process ends, then the rest of its output."""
        posix.set_blocking(self.master, False)
        typed = b""  # towards the container
        shown = b""  # towards the caller
        reading = True  # the caller's input has not ended
        hung_up = False
        pause, due = SOON, 0.0  # of the end of the input
        while True:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if reading and len(typed) < CHUNK:
                poll.register(0, select.POLLIN)
            if shown:
                poll.register(1, select.POLLOUT)
            interest = (0 if shown else select.POLLIN) | (select.POLLOUT if typed else 0)
            if not hung_up and interest:
                poll.register(self.master, interest)
            waits = reading or hung_up or typed
            ready = dict(poll.poll(None if waits else max(0.0, due - monotonic()) * 1000))
            if 0 in ready:
                piece = self._input()
                reading = piece != b""
                typed += piece or b""
            # A file is at its end for whoever reads it.  This is an end for one reader, and for none that changes the
            # terminal's mode after it was typed, as shells do at their start: so it is typed again.
            if not reading and monotonic() >= due and not typed.endswith(END_OF_FILE):
                typed += END_OF_FILE
                due = monotonic() + pause
                pause = min(2 * pause, RARELY)
            events = ready.get(self.master, 0)
            if events & select.POLLOUT and typed:
                typed = typed[self._write(typed) :]
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and not shown:
                output = self._output()
                hung_up = output is None
                shown = output or b""
            if ready.get(1, 0):
                shown = self._show(shown)
            if pidfd in ready:
                break
        # At most what a pseudoterminal holds: somebody else in the container may go on writing for ever.
        for _ in range(REST // CHUNK):
            shown = shown or self._output() or b""
            if not shown:
                break
            shown = self._show(shown)

    @staticmethod
    def _input() -> bytes | None:
        """What the caller typed: None for nothing yet, b"" at the end."""
        try:
            return posix.read(0, CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # our terminal hung up, or descriptor 0 is closed
            return b""

    def _output(self) -> bytes | None:
        """What the container wrote: b"" for nothing yet, None when nobody has its terminal open any more."""
        try:
            return posix.read(self.master, CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno == errno.EIO:
                return None
            raise

    def _write(self, data: bytes) -> int:
        try:
            return posix.write(self.master, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EIO:
                return len(data)
            raise

    @staticmethod
    def _show(data: bytes) -> bytes:
        """Write to the caller and return what is left; a caller that stopped reading loses it."""
        try:
            return data[posix.write(1, data[:CHUNK]) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(1, select.POLLOUT)
            poll.poll()
            return data
        except OSError:
            return b""
