"""--pidfd-socket: an engine's socket that gets a pidfd of the process, which no later process can be mistaken for."""

from __future__ import annotations

import posix
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket
from _struct import pack

from pyoci.errors import PyociError

FLAG = "--pidfd-socket"


class Receiver:
    """The socket, connected before anything is made: that nobody listens is known then."""

    __slots__ = ("connection", "path")

    def __init__(self, path: str) -> None:
        from pyoci.console import connect_console_socket

        self.path = path
        self.connection = socket(AF_UNIX, SOCK_STREAM, fileno=connect_console_socket(path, FLAG))

    def send(self, pid: int) -> None:
        """One message with one descriptor, a pidfd of our child `pid`; then the connection is closed."""
        pidfd = posix.pidfd_open(pid)
        try:
            self.connection.sendmsg([b"pidfd"], [(SOL_SOCKET, SCM_RIGHTS, pack("i", pidfd))])
        except OSError as error:
            from pyoci.kernel.errnos import words

            raise PyociError(f"{FLAG}: sendmsg to {self.path}: {words(error.errno or 0)}") from None
        finally:
            posix.close(pidfd)
            self.connection.close()
