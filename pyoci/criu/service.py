"""A `criu swrk` at work: what it is asked, what it tells on the way, and why it failed, in its own words.

Its RPC, and not its command line, because only that hands over a restored terminal, tells when namespaces are there and
processes are not yet (hooks), and makes the restored process our child rather than its own.
"""

from __future__ import annotations

import _socket
import posix
import select

from pyoci.criu import rpc
from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyoci.spec.types import Spec

    # (what happened, pid, descriptor or -1)
    Notified = Callable[[str, int, int], None]
    Waiting = Callable[[], None]

FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
LOG_LEVEL = 4  # all that it knows: the reason of a failure is often before the error
TAIL = 1 << 17  # bytes of its log that are searched for the reason
SHOWN = 3  # lines that are quoted, of the first and of the last
# what it says of itself at every start where it lacks a privilege that it does without
NOISE = ("(criu/tun.c:", "RLIMIT_NOFILE for self")
PATIENCE = 1000  # milliseconds without a word from it
ANSWER = 1 << 20  # criu/cr-service.c takes and sends no more


def find() -> str:
    """The program: by $PATH as everywhere, and where engines give none, in the usual places."""
    path = posix.environ.get(b"PATH", b"").decode("utf-8", "surrogateescape").split(":")
    for folder in (*path, *FOLDERS):
        if folder.startswith("/") and posix.access(f"{folder}/criu", posix.X_OK):
            return f"{folder}/criu"
    raise PyociError("criu: executable file not found in $PATH; checkpoints need CRIU (package criu)")


def directory(path: str, flag: str) -> int:
    """A descriptor of the directory `path`, made where it is missing; engines count on that."""
    made = ""
    try:
        for part in path.strip("/").split("/"):
            made += "/" + part
            try:
                posix.mkdir(made, 0o700)
            except FileExistsError:
                pass
        return posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except OSError as error:
        from pyoci.kernel.errnos import words

        raise PyociError(f"{flag}: {made or path}: {words(error.errno or 0)}") from None


def let_in(folder: int, spec: Spec) -> None:
    """Let root of the container's user namespace, if it has one, look for files in a directory of images: that is who
    reads most of them when CRIU restores (criu/image.c).  Others of other users see no more than before."""
    gid = next((entry.host_id for entry in spec.linux.gid_mappings if not entry.container_id), 0)
    status = posix.fstat(folder)
    if not gid or status.st_mode & 0o011 or status.st_mode & 0o070:
        return
    posix.chown(folder, -1, gid)
    posix.chmod(folder, status.st_mode & 0o7777 | 0o010)


class Service:
    """One `criu swrk`: `ours` is our end of its socket; `output` a memfd that has what it prints."""

    def __init__(self, work: int, log: str, path: str) -> None:
        self.ours, self.theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.work = work
        self.log = log
        self.path = path
        self.output = posix.memfd_create("criu", posix.MFD_CLOEXEC)
        try:
            posix.unlink(log, dir_fd=work)
        except OSError:
            pass  # there is none; it is removed so that what is found in it later is of today

    def ask(
        self, kind: int, options: list[tuple[str, rpc.Value]], notified: Notified, waiting: Waiting | None = None
    ) -> dict[str, int | bytes]:
        """One request and its answer; PyociError with CRIU's reason when it fails.

        `waiting` is called whenever it has not said a word for a second.  What `notified` raises ends the work, and is
        raised here once CRIU has undone what it did.
        """
        self.theirs.close()
        name = {rpc.DUMP: "dump", rpc.RESTORE: "restore", rpc.PRE_DUMP: "pre-dump"}[kind]
        # where CRIU has our answers from: it must not be its last words that somebody else closed a pipe
        refused: BaseException | None = None
        poll = select.poll()
        poll.register(self.ours.fileno(), select.POLLIN)
        asked = rpc.encode("criu_opts", options)
        try:
            self.ours.send(rpc.encode("criu_req", [("type", kind), ("opts", asked)]))
        except OSError:
            raise self.failure(name, {}) from None
        while True:
            while waiting is not None and not poll.poll(PATIENCE):
                waiting()
            data, descriptor = self._receive()
            answer = rpc.decode("criu_resp", data)
            if answer.get("type") != rpc.NOTIFY:
                if refused is not None:
                    raise refused
                if not answer.get("success"):
                    raise self.failure(name, answer)
                return answer
            told = answer.get("notify", b"")
            notice = rpc.decode("criu_notify", told if isinstance(told, bytes) else b"")
            script, pid = notice.get("script", b""), notice.get("pid", 0)
            assert isinstance(script, bytes) and isinstance(pid, int)
            try:
                notified(script.decode(), pid, descriptor)
            except BaseException as error:  # noqa: BLE001 - raised again, after CRIU has heard of it
                refused = refused or error
            finally:
                if descriptor >= 0:
                    posix.close(descriptor)
            fine = refused is None
            try:
                self.ours.send(rpc.encode("criu_req", [("type", rpc.NOTIFY), ("notify_success", fine)]))
            except OSError:
                pass  # it has ended: the next look tells

    def _receive(self) -> tuple[bytes, int]:
        try:
            data, ancillary, _, _ = self.ours.recvmsg(ANSWER, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b"", -1
        descriptor = -1
        for level, kind, content in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                descriptor = int.from_bytes(content[:4], "little")
        return data, descriptor

    def failure(self, what: str, answer: dict[str, int | bytes]) -> PyociError:
        """The last errors of CRIU's log, and where that is."""
        lines = reasons(self._read(self.work, self.log)) or reasons(self._read(None, ""))
        message = answer.get("cr_errmsg", b"")
        if not lines and isinstance(message, bytes) and message:
            lines = [message.decode("utf-8", "replace").strip()]
        number = answer.get("cr_errno", 0)
        if not lines:
            from pyoci.kernel.errnos import words

            lines = [words(number) if isinstance(number, int) and number else "it ended without saying why"]
        return PyociError(f"criu {what} failed: {'; '.join(lines)} (log file: {self.path}/{self.log})")

    def _read(self, folder: int | None, name: str) -> str:
        try:
            flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
            fd = posix.dup(self.output) if folder is None else posix.open(name, flags, dir_fd=folder)
        except OSError:
            return ""
        try:
            return posix.pread(fd, TAIL, max(0, posix.fstat(fd).st_size - TAIL)).decode("utf-8", "replace")
        except OSError:
            return ""
        finally:
            posix.close(fd)

    def close(self) -> None:
        """Let go of it; a CRIU that is still at work finds nobody to talk to, and ends."""
        self.ours.close()
        self.theirs.close()
        posix.close(self.output)


def reasons(log: str) -> list[str]:
    """The first and last lines of a log that say "Error", without the times before them and without repetition."""
    found: list[str] = []
    for line in log.split("\n"):
        before, error, text = line.partition("Error (")
        place, closing, words = text.partition("): ")
        if not error or not closing or len(before) > 40:
            continue
        if any(noise in line for noise in NOISE):
            continue
        shown = f"{words.strip()} ({place})"
        if shown not in found:
            found.append(shown)
    return found if len(found) <= 2 * SHOWN else [*found[:SHOWN], *found[-SHOWN:]]
