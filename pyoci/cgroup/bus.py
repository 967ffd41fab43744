"""A connection to systemd's manager over D-Bus, the system's or a user's: calls with a deadline, and jobs awaited.

jeepney says what messages look like; it is loaded for nothing but --systemd-cgroup.  The socket is our own, because
every wait has an end here and every failure says what was asked of whom.
"""

from __future__ import annotations

import _socket
import posix
from time import monotonic

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from jeepney import Message

TIMEOUT = 30.0  # seconds for each answer; a job that takes longer is systemd's trouble, and said so
DESTINATION = "org.freedesktop.systemd1"
OBJECT = "/org/freedesktop/systemd1"
MANAGER = DESTINATION + ".Manager"
UNIT = DESTINATION + ".Unit"
PROPERTIES = "org.freedesktop.DBus.Properties"
SYSTEM = ("unix:path=/run/dbus/system_bus_socket", "unix:path=/run/systemd/private")
_connected: dict[str, Bus] = {}
REMEDY = "start systemd's bus, or leave --systemd-cgroup out: then cgroups are made in their file system"


class BusError(PyociError):
    """An error that was answered; `name` is D-Bus's for it."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def addresses(instance: str) -> list[str]:
    """Where the manager may be reached, best first: a bus, then the socket that it keeps for root or its user."""
    environment = posix.environ
    if instance == "system":
        given = environment.get(b"DBUS_SYSTEM_BUS_ADDRESS", b"").decode("utf-8", "surrogateescape")
        return [*(part for part in given.split(";") if part), *SYSTEM]
    found = environment.get(b"DBUS_SESSION_BUS_ADDRESS", b"").decode("utf-8", "surrogateescape").split(";")
    directory = environment.get(b"XDG_RUNTIME_DIR", b"").decode("utf-8", "surrogateescape")
    for place in (directory, f"/run/user/{outer_uid()}"):
        if place:
            found += [f"unix:path={place}/bus", f"unix:path={place}/systemd/private"]
    return list(dict.fromkeys(part for part in found if part))


def outer_uid() -> int:
    """Our effective uid outside of the user namespace that we may be in."""
    own = posix.geteuid()
    fd = posix.open("/proc/self/uid_map", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        lines = posix.read(fd, 65536).split(b"\n")
    finally:
        posix.close(fd)
    for line in lines:
        fields = line.split()
        if fields and int(fields[0]) <= own < int(fields[0]) + int(fields[2]):
            return int(fields[1]) + own - int(fields[0])
    return own


class Bus:
    """Connected to `instance`, "system" or "user"; raises PyociError when nobody is there."""

    def __init__(self, instance: str) -> None:
        # before anything is sent: without it there is nothing to talk with
        try:
            from jeepney import Parser
        except ModuleNotFoundError:
            raise PyociError(
                "--systemd-cgroup: the Python package jeepney is not installed (Debian: python3-jeepney)"
            ) from None
        self.instance = instance
        self.serial = 0
        self.parser = Parser()
        self.replies: dict[int, Message] = {}
        self.jobs: dict[str, str] = {}  # removed ones -> result
        self.direct = False  # the manager's own socket, without a bus in between
        self.socket = self._connect()
        if not self.direct:
            self._send("/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", destination="org.freedesktop.DBus")
            rule = f"type='signal',sender='{DESTINATION}',interface='{MANAGER}',member='JobRemoved',path='{OBJECT}'"
            self._send(
                "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", (rule,), "org.freedesktop.DBus"
            )

    def _connect(self) -> _socket.socket:
        refused: list[str] = []
        for address in addresses(self.instance):
            kind, _, rest = address.partition(":")
            options = dict(part.partition("=")[::2] for part in rest.split(","))
            where = options.get("path") or ("\0" + options["abstract"] if "abstract" in options else "")
            if kind != "unix" or not where:
                refused.append(f"{address}: not a unix socket")
                continue
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            connection.settimeout(TIMEOUT)
            try:
                connection.connect(_unescape(where))
                self._introduce(connection)
            except (OSError, ValueError) as error:
                connection.close()
                said = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                refused.append(f"{where.lstrip(chr(0))}: {said[:1].lower() + said[1:]}")
                continue
            self.direct = where.endswith("/systemd/private")
            return connection
        tried = "; ".join(refused) or "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"
        whose = "the system's" if self.instance == "system" else "the user's"
        raise PyociError(f"--systemd-cgroup: {whose} systemd cannot be reached ({tried}): {REMEDY}")

    @staticmethod
    def _introduce(connection: _socket.socket) -> None:
        """SASL's EXTERNAL without a name: we are who the socket says, also from within a user namespace."""
        connection.sendall(b"\0AUTH EXTERNAL\r\n")
        for _ in range(2):
            line = b""
            while not line.endswith(b"\r\n"):
                piece = connection.recv(1)
                if not piece or len(line) > 4096:
                    raise ValueError("the connection was closed")
                line += piece
            if line.startswith(b"OK"):
                connection.sendall(b"BEGIN\r\n")
                return
            if not line.startswith(b"DATA"):
                break
            connection.sendall(b"DATA\r\n")
        raise ValueError(f"the bus refused us: {line.decode('ascii', 'replace').strip()}")

    def _send(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: tuple[object, ...] = (),
        destination: str = DESTINATION,
    ) -> int:
        from jeepney import DBusAddress, new_method_call

        message = new_method_call(DBusAddress(path, destination, interface), member, signature or None, body)
        self.serial += 1
        try:
            self.socket.sendall(message.serialise(self.serial))
        except OSError as error:
            raise PyociError(f"--systemd-cgroup: {member} could not be sent to systemd: {error.strerror}") from error
        return self.serial

    def call(
        self,
        member: str,
        signature: str = "",
        body: tuple[object, ...] = (),
        path: str = OBJECT,
        interface: str = MANAGER,
    ) -> tuple[object, ...]:
        """The answer's values; BusError with systemd's words, PyociError when there is none in time."""
        from jeepney import HeaderFields, MessageType

        serial = self._send(path, interface, member, signature, body)
        end = monotonic() + TIMEOUT
        while serial not in self.replies:
            self._receive(end, member)
        reply = self.replies.pop(serial)
        values: tuple[object, ...] = reply.body
        if reply.header.message_type is MessageType.error:
            name = str(reply.header.fields.get(HeaderFields.error_name, ""))
            said = str(values[0]) if values else name
            raise BusError(f"systemd refused {member}: {said.rstrip('.')} ({name})", name)
        return values

    def get(self, name: str, path: str = OBJECT, interface: str = MANAGER) -> object:
        """A property."""
        (variant,) = self.call("Get", "ss", (interface, name), path, PROPERTIES)
        assert isinstance(variant, tuple)
        return variant[1]

    def job(self, member: str, signature: str, body: tuple[object, ...]) -> str:
        """Call what starts a job, and wait for its end; the result is "done" if all is well
        (org.freedesktop.systemd1(5))."""
        (job,) = self.call(member, signature, body)
        assert isinstance(job, str)
        end = monotonic() + TIMEOUT
        while job not in self.jobs:
            self._receive(end, f"the job of {member}")
        return self.jobs.pop(job)

    def _receive(self, end: float, what: str) -> None:
        """Take in what comes next, at the latest at `end`."""
        from jeepney import HeaderFields, MessageType

        late = f"--systemd-cgroup: systemd has not answered {what} within {TIMEOUT:g} s; see systemctl list-jobs"
        left = end - monotonic()
        if left <= 0:
            raise PyociError(late)
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            raise PyociError(late) from None
        except OSError as error:
            raise PyociError(f"--systemd-cgroup: {what}: {error.strerror}") from error
        if not data:
            raise PyociError(f"--systemd-cgroup: systemd closed the connection before it answered {what}")
        for message in self.parser.feed(data):
            fields = message.header.fields
            if message.header.message_type in (MessageType.method_return, MessageType.error):
                self.replies[int(fields[HeaderFields.reply_serial])] = message
            elif fields.get(HeaderFields.member) == "JobRemoved" and fields.get(HeaderFields.path) == OBJECT:
                values: Sequence[object] = message.body
                self.jobs[str(values[1])] = str(values[3])

    def close(self) -> None:
        """The end of it."""
        self.socket.close()


def _unescape(text: str) -> str:
    """Addresses write other characters as %xx."""
    first, *rest = text.split("%")
    return first + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)


def connect(instance: str) -> Bus:
    """The one connection of this command."""
    if instance not in _connected:
        _connected[instance] = Bus(instance)
    return _connected[instance]


def choose(euid: int, initial_user_namespace: bool, rootless: bool | None) -> str:
    """Whose systemd: "user" for whoever is not root, or is it only in a user namespace of a user's session."""
    if rootless is not None:
        return "user" if rootless else "system"
    if euid:
        return "user"
    session = posix.environ.get(b"DBUS_SESSION_BUS_ADDRESS") or posix.environ.get(b"XDG_RUNTIME_DIR")
    return "user" if not initial_user_namespace and session else "system"


def own_cgroup(instance: str) -> str:
    """systemd's own cgroup, which its units are below; "" for the top."""
    found = connect(instance).get("ControlGroup")
    return str(found).rstrip("/")
