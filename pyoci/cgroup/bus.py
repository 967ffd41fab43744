"""A connection to systemd's manager over D-Bus, the system's or a user's: calls with a deadline, and jobs awaited.

The messages are systemd's own library's work (`sdbus`).  Every wait has an end here, and every failure says what was
asked of whom.
"""

from __future__ import annotations

import posix
from time import monotonic

from pyoci.errors import PyociError
from pyoci.kernel.errnos import words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.cgroup.sdbus import Connection

    # what a call is given: a complete type of D-Bus's, and a value of it as `pyoci.gvariant` has them
    Argument = tuple[str, object]

TIMEOUT = 30.0  # seconds for each answer (a bus's that we are let in, too); what takes longer is systemd's trouble
DESTINATION = "org.freedesktop.systemd1"
OBJECT = "/org/freedesktop/systemd1"
MANAGER = DESTINATION + ".Manager"
UNIT = DESTINATION + ".Unit"
DBUS = "org.freedesktop.DBus"
DBUS_OBJECT = "/org/freedesktop/DBus"
PROPERTIES = DBUS + ".Properties"
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
        self.instance = instance
        self.jobs: dict[str, str] = {}  # removed ones -> result
        self.told = False  # of the ends of jobs
        self.direct = False  # the manager's own socket, without a bus in between
        self.manager = ""  # who it is on a bus
        self.connection = self._connect()

    def _connect(self) -> Connection:
        from pyoci.cgroup.sdbus import Connection

        refused: list[str] = []
        for address in addresses(self.instance):
            # of the other transports one would execute a program
            if not address.startswith(("unix:path=", "unix:abstract=")):
                refused.append(f"{address}: not a unix socket")
                continue
            where = address.partition("=")[2].partition(",")[0]
            direct = where.endswith("/systemd/private")
            try:
                connection = Connection(address, not direct, TIMEOUT)
            except TimeoutError:
                refused.append(f"{where}: no answer within {TIMEOUT:g} s")
            except OSError as error:
                refused.append(f"{where}: {words(error.errno or 0)}")
            else:
                self.direct = direct
                return connection
        tried = "; ".join(refused) or "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"
        whose = "the system's" if self.instance == "system" else "the user's"
        raise PyociError(f"--systemd-cgroup: {whose} systemd cannot be reached ({tried}): {REMEDY}")

    def call(
        self, member: str, arguments: Sequence[Argument] = (), path: str = OBJECT, interface: str = MANAGER
    ) -> str:
        """The answer, if it is a string or a variant with one, else ""; BusError with systemd's words, PyociError when
        there is no answer in time."""
        from pyoci.cgroup.sdbus import Refused

        try:
            return self.connection.call(DESTINATION, path, interface, member, arguments, TIMEOUT)
        except Refused as refused:
            said = f"{refused.words.rstrip('.')} ({refused.name})"
            raise BusError(f"systemd refused {member}: {said}", refused.name) from None
        except OSError as error:
            raise self._broken(member, error) from None

    def get(self, name: str, path: str = OBJECT, interface: str = MANAGER) -> str:
        """A property that is a string."""
        return self.call("Get", (("s", interface), ("s", name)), path, PROPERTIES)

    def job(self, member: str, arguments: Sequence[Argument]) -> str:
        """Call what starts a job, and wait for its end; the result is "done" if all is well
        (org.freedesktop.systemd1(5))."""
        if not self.told and not self.direct:
            rule = f"type='signal',sender='{DESTINATION}',interface='{MANAGER}',member='JobRemoved',path='{OBJECT}'"
            try:
                self.connection.send(DBUS, DBUS_OBJECT, DBUS, "AddMatch", (("s", rule),))
            except OSError as error:
                raise self._broken("AddMatch", error) from None
            self.told = True
        job = self.call(member, arguments)
        self.manager = self.connection.answered
        what = f"the job of {member}"
        end = monotonic() + TIMEOUT
        while job not in self.jobs:
            try:
                sender, values = self.connection.signal(OBJECT, MANAGER, "JobRemoved", "uoss", end - monotonic())
                if self._is_manager(sender):
                    self.jobs[str(values[1])] = str(values[3])
            except OSError as error:
                raise self._broken(what, error) from None
        return self.jobs.pop(job)

    def _is_manager(self, sender: str) -> bool:
        """Whether that one is the manager: any user of a bus may send a signal to us alone, asked for or not."""
        if self.direct or sender == self.manager:
            return True
        from pyoci.cgroup.sdbus import Refused

        try:
            # it has another connection once it has executed itself again
            asked = DBUS, DBUS_OBJECT, DBUS, "GetNameOwner", (("s", DESTINATION),)
            self.manager = self.connection.call(*asked, TIMEOUT)
        except Refused:
            return False  # it is about to
        return sender == self.manager

    @staticmethod
    def _broken(what: str, error: OSError) -> PyociError:
        if isinstance(error, TimeoutError):
            return PyociError(
                f"--systemd-cgroup: systemd has not answered {what} within {TIMEOUT:g} s; see systemctl list-jobs"
            )
        if isinstance(error, ConnectionError):
            return PyociError(f"--systemd-cgroup: systemd closed the connection before it answered {what}")
        return PyociError(f"--systemd-cgroup: {what}: {words(error.errno or 0)}")


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
    return connect(instance).get("ControlGroup").rstrip("/")
