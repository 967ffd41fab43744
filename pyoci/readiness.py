"""What the program in a container says to its $NOTIFY_SOCKET reaches the service manager of the caller (sd_notify(3)).

The specification is silent; as with peers, a caller that has $NOTIFY_SOCKET gets

* from create and run: a directory of the container's state at /run/notify, and the variable in its environment;
* from start and `run --detach`: they return once the program is ready, or has ended, and have told the caller's manager
  that, and which process is the main one now;
* from run: what the program says, as long as it runs.

Nothing of ours stays behind for a container in the background: after it is ready, nobody listens.
Loaded only when the variable is there.  Where config.json has it as well, an engine looks after this by itself.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix
import select
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_DGRAM, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType

    from pyoci.spec.types import Spec
    from pyoci.state import State, Store

VARIABLE = b"NOTIFY_SOCKET"
DIRECTORY = "notify"
SOCKET = "notify.sock"
# What a program may say of the service that it is.  The pids that it knows mean something else outside, and which
# descriptors are kept and who else may speak is not for an image to decide.
PASSED = (
    b"READY=", b"RELOADING=", b"MONOTONIC_USEC=", b"STOPPING=", b"STATUS=", b"ERRNO=", b"WATCHDOG=1",
    b"EXTEND_TIMEOUT_USEC=",
)  # fmt: skip
MOST = 1 << 16  # bytes of one message
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC


def wanted(spec: Spec) -> bool:
    """Whether the container is to have a socket."""
    if not posix.environ.get(VARIABLE) or spec.process is None:
        return False
    if any(entry.startswith("NOTIFY_SOCKET=") for entry in spec.process.env):
        return False
    return any(entry.type == "mount" for entry in spec.linux.namespaces)


def make(store: Store) -> None:
    """The directory that the container sees: whatever our umask, for its users to pass through."""
    before = posix.umask(0)
    try:
        posix.mkdir(DIRECTORY, 0o755, dir_fd=store.fd)
    finally:
        posix.umask(before)


class Proxy:
    """Listens in the container's directory, and passes on what comes."""

    def __init__(self, directory: int, address: bytes) -> None:
        self.directory = directory
        self.lock: LockType | None = None  # held by who passes on: the thread, or who wants to end
        self.manager = b"\0" + address[1:] if address.startswith(b"@") else address
        self.socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
        self._unlink()  # of a start that was killed
        # any user of the container may speak: the mode is the socket's from the beginning, as a name could be exchanged
        before = posix.umask(0)
        try:
            self.socket.bind(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            posix.umask(before)

    @classmethod
    def of(cls, store: Store) -> Proxy | None:
        """None where the caller, or the container, has no such socket."""
        address = posix.environ.get(VARIABLE)
        if not address:
            return None
        try:
            directory = posix.open(DIRECTORY, _DIRECTORY, dir_fd=store.fd)
        except FileNotFoundError:
            return None
        try:
            return cls(directory, address)
        except BaseException:
            posix.close(directory)
            raise

    def until_ready(self, state: State) -> None:
        """Pass on what the program says, up to "ready"; or wait for its end."""
        from pyoci.state import open_init

        pidfd = open_init(state)
        try:
            while pidfd is not None:
                poll = select.poll()
                poll.register(self.socket.fileno(), select.POLLIN)
                poll.register(pidfd, select.POLLIN)
                ready = dict(poll.poll())
                ended = pidfd in ready
                if self._passed_ready(b"MAINPID=%d" % state.pid) or ended:
                    return
        finally:
            if pidfd is not None:
                posix.close(pidfd)
            self.close()

    def in_background(self) -> None:
        """Pass on what the program says while this process does something else, until it ends."""
        import _thread

        self.lock = _thread.allocate_lock()
        # A signal is for whoever waits for it: the thread is born with all of them blocked.
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        try:
            _thread.start_new_thread(self._for_ever, ())
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)

    def _for_ever(self) -> None:
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        while True:
            poll.poll()
            self.finish()

    def finish(self) -> None:
        """Pass on what has been said already: the last words of a program are there when it has ended."""
        assert self.lock is not None
        with self.lock:
            try:
                while True:
                    self._pass_on(b"", MSG_DONTWAIT)
            except BlockingIOError:
                pass

    def _passed_ready(self, when_ready: bytes) -> bool:
        """Pass on what is there; whether "ready" was among it."""
        try:
            while not self._pass_on(when_ready, MSG_DONTWAIT):
                pass
        except BlockingIOError:
            return False
        return True

    def _pass_on(self, when_ready: bytes, flags: int = 0) -> bool:
        """One message; whether it said "ready".  `when_ready` is added to one that does."""
        message = self.socket.recv(MOST, flags)
        lines = [line for line in message.split(b"\n") if line.startswith(PASSED)]
        ready = b"READY=1" in lines
        if ready and when_ready:
            lines.append(when_ready)
        if lines:
            try:
                self.socket.sendto(b"\n".join(lines), self.manager)
            except OSError as error:
                from pyoci import log
                from pyoci.kernel.errnos import words

                log.warning(f"NOTIFY_SOCKET={self.manager[:200]!r}: {words(error.errno or 0)}")
        return ready

    def _unlink(self) -> None:
        try:
            posix.unlink(SOCKET, dir_fd=self.directory)
        except OSError:
            pass  # nobody has made it yet, or the container has been deleted meanwhile

    def close(self) -> None:
        """Nobody listens any more, and the program can see it."""
        self._unlink()
        self.socket.close()
        posix.close(self.directory)
