"""`--log syslog:NAME` and `--log journald:NAME`: messages as records of the system's log, by its own sockets.

The formats are those of syslog(3) on /dev/log, and of systemd's journal (systemd.io, "Native Journal Protocol").
"""

from __future__ import annotations

import _socket
import posix
import time

from pyoci.errors import PyociError

SOCKETS = {"syslog": "/dev/log", "journald": "/run/systemd/journal/socket"}
# syslog(3): LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG of the facility LOG_USER
PRIORITIES = {"error": 3, "warning": 4, "info": 6, "debug": 7}
USER = 1 << 3
PATIENCE = 5.0  # seconds for a daemon that does not read: the message is on stderr as well


class SystemLog:
    """The system's log of a kind, for messages under `name`; that it is not there is an error now."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name or "pyoci"
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        path = SOCKETS[kind]
        try:
            self.socket.connect(path)
            self.socket.settimeout(PATIENCE)
        except OSError as error:
            from pyoci.kernel.errnos import words

            self.socket.close()
            raise PyociError(f"--log {kind}:{name}: connect {path}: {words(error.errno or 0)}") from None

    def send(self, level: str, message: str) -> None:
        """One record; OSError as send(2) gives it."""
        priority = PRIORITIES[level]
        if self.kind == "journald":
            data = f"MESSAGE={message}\nPRIORITY={priority}\nSYSLOG_IDENTIFIER={self.name}\n"
        else:
            moment = time.strftime("%b %e %H:%M:%S")
            data = f"<{USER | priority}>{moment} {self.name}[{posix.getpid()}]: {message}"
        self.socket.send(data.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Let go of it."""
        self.socket.close()
