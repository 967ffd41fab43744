"""A seccomp agent (seccomp_unotify(2)) for tests: takes listeners as config-linux.md#seccomp has them, and answers."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RECV, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND
CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
ANSWER = struct.pack("<qiI", 0, 0, CONTINUE)


class Told:
    """One connection: the message, and how many descriptors came with it."""

    def __init__(self, message: dict[str, Any], descriptors: int) -> None:
        self.message = message
        self.descriptors = descriptors


class Agent:
    """Listens at `path`.

    answers   result by number of call: a value, or -errno; calls that are not in it go on
    rude      hangs up without reading
    deaf      never reads
    forgetful closes the listener at once
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: dict[int, int] = {}
        self.rude = self.deaf = self.forgetful = False
        self.told: list[Told] = []
        self.notified: list[tuple[int, int]] = []
        self.connections: list[socket.socket] = []
        self.errors: list[str] = []
        self.open = True
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(path)
        self.socket.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop to listen; what was handed over is still answered."""
        self.open = False
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()
        for connection in self.connections:
            connection.close()

    def _accept(self) -> None:
        while self.open:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections.append(connection)
            if self.deaf:
                continue
            if self.rude:
                connection.close()
                continue
            data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 8)
            while more := connection.recv(1 << 16):
                data += more
            connection.close()
            self.told.append(Told(json.loads(data), len(fds)))
            if self.forgetful:
                os.close(fds[0])
                continue
            threading.Thread(target=self._serve, args=(fds[0],), daemon=True).start()

    def _serve(self, listener: int) -> None:
        while True:
            request = bytearray(80)
            try:
                fcntl.ioctl(listener, RECV, request)
            except OSError:
                break  # nobody is left under the filter
            id, pid, _, number = struct.unpack_from("<QIIi", request)
            self.notified.append((number, pid))
            answer = self.answers.get(number)
            reply = ANSWER if answer is None else struct.pack("<qiI", max(answer, 0), min(answer, 0), 0)
            try:
                fcntl.ioctl(listener, SEND, bytearray(struct.pack("<Q", id) + reply))
            except OSError:
                pass  # whoever asked is gone
        os.close(listener)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(str(tmp_path / "agent.sock"))
    yield made
    made.close()
