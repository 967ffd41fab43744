"""Talking to systemd: what is sent, what is made of the answers, and that no silence lasts for ever.

Who answers is a stand-in on a socket of its own, so these tests need no systemd but its library.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyoci.cgroup import bus
from pyoci.errors import PyociError

try:
    ctypes.CDLL("libsystemd.so.0")
except OSError:
    pytest.skip("libsystemd.so.0 is not installed (Debian: libsystemd0)", allow_module_level=True)

RETURN, ERROR, SIGNAL = 2, 3, 4
MANAGER = "org.freedesktop.systemd1.Manager"


def text(value: str) -> bytes:
    """A string or an object path, as the wire has it (https://dbus.freedesktop.org/doc/dbus-specification.html)."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


def message(kind: int, serial: int, body: bytes, signature: str, **fields: str | int) -> bytes:
    """A message with header fields by name."""
    codes = {"path": (1, "o"), "interface": (2, "s"), "member": (3, "s"), "error": (4, "s"), "reply_to": (5, "u"),
             "sender": (7, "s")}  # fmt: skip
    header = b""
    for name, value in fields.items():
        code, form = codes[name]
        content = struct.pack("<I", value) if isinstance(value, int) else text(value)
        header = padded(header, 8) + bytes((code, 1)) + form.encode() + b"\0" + content
    if signature:
        header = padded(header, 8) + b"\x08\x01g\0" + bytes((len(signature),)) + signature.encode() + b"\0"
    start = b"l" + bytes((kind, 0, 1)) + struct.pack("<III", len(body), serial, len(header))
    return padded(start + header, 8) + body


class Systemd:
    """Somebody at a socket who is taken for the manager: `answer(serial, data)` gives bytes for each call, None hangs
    up.  Without one it says nothing at all."""

    def __init__(self, path: Path, answer: Callable[[int, bytes], bytes | None] | None, greeting: bytes) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.calls: list[bytes] = []
        self.answer = answer
        self.greeting = greeting
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            if self.answer is None:
                connection.recv(4096)
                time.sleep(3)
                return
            data = b""
            while b"BEGIN\r\n" not in data:
                data += connection.recv(4096)
            connection.sendall(self.greeting)
            data = data.partition(b"BEGIN\r\n")[2]
            while True:
                while len(data) < 16 or len(data) < self._length(data):
                    more = connection.recv(65536)
                    if not more:
                        return
                    data += more
                length = self._length(data)
                call, data = data[:length], data[length:]
                self.calls.append(call)
                said = self.answer(struct.unpack_from("<I", call, 8)[0], call)
                if said is None:
                    return
                connection.sendall(said)

    @staticmethod
    def _length(data: bytes) -> int:
        body, _, fields = struct.unpack_from("<III", data, 4)
        return int(16 + (fields + 7) // 8 * 8 + body)


LET_IN = b"DATA\r\nOK 0123456789abcdef0123456789abcdef\r\nERROR\r\n"
Serve = Callable[..., Systemd]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(answer)` is the only systemd there is."""
    made: list[Systemd] = []
    (tmp_path / "systemd").mkdir()
    monkeypatch.setattr(bus, "SYSTEM", (f"unix:path={tmp_path}/systemd/private",))
    monkeypatch.setattr(bus, "TIMEOUT", 0.4)
    monkeypatch.delitem(os.environ, "DBUS_SYSTEM_BUS_ADDRESS", raising=False)

    def start(answer: Callable[[int, bytes], bytes | None] | None, greeting: bytes = LET_IN) -> Systemd:
        made.append(Systemd(tmp_path / "systemd/private", answer, greeting))
        return made[0]

    yield start
    for one in made:
        one.listener.close()


def returned(serial: int, value: str, signature: str, sender: str = "") -> bytes:
    body = text(value) if signature != "v" else b"\x01s\0\0" + text(value)
    return message(RETURN, 1, body, signature, reply_to=serial, **({"sender": sender} if sender else {}))


def removed(job: str, result: str, sender: str = "") -> bytes:
    body = padded(struct.pack("<I", 7) + text(job), 4)
    body = padded(body + text("a.scope"), 4) + text(result)
    fields = {"path": bus.OBJECT, "interface": MANAGER, "member": "JobRemoved"} | ({"sender": sender} if sender else {})
    return message(SIGNAL, 9, body, "uoss", **fields)


def test_a_property(serve: Serve) -> None:
    systemd = serve(lambda serial, _: returned(serial, "/init.scope", "v"))
    assert bus.Bus("system").get("ControlGroup") == "/init.scope"
    assert b"\0ControlGroup\0" in systemd.calls[0].replace(text("ControlGroup"), b"\0ControlGroup\0")
    assert text(MANAGER) in systemd.calls[0]


def test_a_job_and_its_end(serve: Serve) -> None:
    """What is not asked for is passed over, also an end that comes before the answer."""
    others = message(SIGNAL, 5, text("x"), "s", path=bus.OBJECT, interface=MANAGER, member="UnitNew")
    for order in ((removed("/job/7", "done"), b""), (b"", removed("/job/8", "failed") + removed("/job/7", "done"))):

        def answer(serial: int, _: bytes, order: tuple[bytes, bytes] = order) -> bytes:
            return others + order[0] + returned(serial, "/job/7", "o") + order[1]

        systemd = serve(answer)
        properties = [
            ("Slice", ("s", "x.slice")), ("MemoryMax", ("t", 1 << 40)), ("AllowedCPUs", ("ay", b"\x0f")),
            ("PIDs", ("au", [4242])), ("IOWeights", ("a(st)", [("/dev/a", 5)])), ("Delegate", ("b", True)),
        ]  # fmt: skip
        arguments = (("s", "a.scope"), ("s", "fail"), ("a(sv)", properties), ("a(sa(sv))", ()))
        assert bus.Bus("system").job("StartTransientUnit", arguments) == "done"
        (call,) = systemd.calls
        assert b"ssa(sv)a(sa(sv))\0" in call
        for part in (b"\x01t\0", struct.pack("<Q", 1 << 40), b"\x02ay\0", struct.pack("<I", 1) + b"\x0f",
                     b"\x05a(st)\0", struct.pack("<II", 4, 4242), text("/dev/a")):  # fmt: skip
            assert part in call, part
        systemd.listener.close()
        systemd.thread.join(5)
        Path(bus.SYSTEM[0].partition("=")[2]).unlink()


@pytest.mark.parametrize("again", [False, True], ids=["", "manager executed again"])
def test_a_job_whose_end_somebody_else_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """On the system's bus every user may send signals to a connection: another match rule does not keep them away."""
    manager = ":1.9" if again else ":1.1"
    forged = removed("/job/7", "done", ":1.66") + removed("/job/7", "failed", ":1.66")

    def answer(serial: int, call: bytes) -> bytes:
        if b"AddMatch" in call:
            return b""
        if b"GetNameOwner" in call:
            return returned(serial, manager, "s", "org.freedesktop.DBus")
        if b"Hello" in call:
            return returned(serial, ":1.5", "s", "org.freedesktop.DBus")
        return forged + returned(serial, "/job/7", "o", ":1.1") + forged + removed("/job/7", "canceled", manager)

    path = tmp_path / "bus"
    systemd = Systemd(path, answer, LET_IN)
    monkeypatch.setattr(bus, "addresses", lambda _: [f"unix:path={path}"])
    try:
        assert bus.Bus("system").job("StopUnit", (("s", "a.scope"), ("s", "replace"))) == "canceled"
    finally:
        systemd.listener.close()


def test_a_job_that_others_never_stop_talking_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(serial: int, call: bytes) -> bytes:
        if b"AddMatch" in call:
            return b""
        who = "org.freedesktop.DBus" if b"GetNameOwner" in call or b"Hello" in call else ":1.1"
        said = returned(serial, ":1.1", "s", who) if who != ":1.1" else returned(serial, "/job/7", "o", who)
        return said + removed("/job/7", "done", ":1.66")

    path = tmp_path / "bus"
    systemd = Systemd(path, answer, LET_IN)
    monkeypatch.setattr(bus, "addresses", lambda _: [f"unix:path={path}"])
    monkeypatch.setattr(bus, "TIMEOUT", 0.4)
    start = time.monotonic()
    try:
        with pytest.raises(PyociError, match="has not answered the job of StopUnit within"):
            bus.Bus("system").job("StopUnit", (("s", "a.scope"), ("s", "replace")))
    finally:
        systemd.listener.close()
    assert time.monotonic() - start < 2


def test_a_refusal(serve: Serve) -> None:
    name = "org.freedesktop.systemd1.UnitExists"
    body = text("Unit a.scope was already loaded.")
    serve(lambda serial, _: message(ERROR, 1, body, "s", reply_to=serial, error=name))
    with pytest.raises(bus.BusError) as caught:
        bus.Bus("system").call("StartTransientUnit", (("s", "a.scope"),))
    assert caught.value.name == name
    assert str(caught.value) == f"systemd refused StartTransientUnit: Unit a.scope was already loaded ({name})"


def test_nobody_answers(serve: Serve) -> None:
    """A bus that takes our connection and never says a word: the library alone would wait for 90 s."""
    serve(None)
    start = time.monotonic()
    with pytest.raises(PyociError, match=r"systemd/private: no answer within 0\.4 s\): start systemd's bus"):
        bus.Bus("system")
    assert time.monotonic() - start < 2


def test_a_call_without_an_answer(serve: Serve) -> None:
    serve(lambda *_: b"")
    with pytest.raises(PyociError, match=r"has not answered GetUnit within 0\.4 s; see systemctl list-jobs"):
        bus.Bus("system").call("GetUnit", (("s", "a.scope"),))


def test_a_job_without_an_end(serve: Serve) -> None:
    serve(lambda serial, _: returned(serial, "/job/7", "o"))
    with pytest.raises(PyociError, match="has not answered the job of StopUnit within"):
        bus.Bus("system").job("StopUnit", (("s", "a.scope"), ("s", "replace")))


def test_a_connection_that_ends(serve: Serve) -> None:
    serve(lambda *_: None)
    with pytest.raises(PyociError, match="systemd closed the connection before it answered GetUnit"):
        bus.Bus("system").call("GetUnit", (("s", "a.scope"),))


def test_a_connection_that_has_ended_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        def send(self, *unused: object) -> None:
            raise ConnectionResetError(104, "reset")

    monkeypatch.setattr(bus.Bus, "_connect", lambda self: Ended())
    with pytest.raises(PyociError, match="--systemd-cgroup: systemd closed the connection before it answered AddMatch"):
        bus.Bus("system").job("StopUnit", (("s", "a.scope"), ("s", "replace")))


def test_a_bus_that_does_not_let_us_in(serve: Serve) -> None:
    serve(lambda *_: b"", b"REJECTED EXTERNAL\r\n")
    with pytest.raises(PyociError, match=r"--systemd-cgroup: the system's systemd cannot be reached \(.*private: "):
        bus.Bus("system")


def test_nobody_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "SYSTEM", (f"unix:path={tmp_path}/none",))
    with pytest.raises(PyociError, match="none: no such file or directory"):
        bus.Bus("system")


def test_no_address_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D-Bus has an address for that, and the environment is the caller's."""
    monkeypatch.setattr(bus, "SYSTEM", ())
    monkeypatch.setattr(bus, "addresses", lambda _: [f"unixexec:path=/bin/touch,argv1={tmp_path}/made"])
    with pytest.raises(PyociError, match="not a unix socket"):
        bus.Bus("system")
    assert not (tmp_path / "made").exists()


def test_nobodys_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "addresses", lambda _: [])
    with pytest.raises(PyociError, match="the user's systemd cannot be reached"):
        bus.Bus("user")


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    import posix

    monkeypatch.setitem(posix.environ, b"DBUS_SYSTEM_BUS_ADDRESS", b"unix:path=/a;unix:path=/b")
    assert bus.addresses("system") == ["unix:path=/a", "unix:path=/b", *bus.SYSTEM]
    monkeypatch.delitem(posix.environ, b"DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setitem(posix.environ, b"XDG_RUNTIME_DIR", b"/r")
    assert bus.addresses("user")[:2] == ["unix:path=/r/bus", "unix:path=/r/systemd/private"]
