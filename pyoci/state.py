"""What is remembered of a container between two commands, and what the kernel says about it.

A container's directory holds `state.json` (`creating.json` until it is created), the socket `start.sock` while it waits
for start, and what other modules keep there.  The status is never stored, it is found: a pid alone says nothing after a
reboot or a wrap, so a process is its pid and its start time, and whether it still waits for start is asked of the
socket that its execve closes.
"""

from __future__ import annotations

import errno
import posix
import time

from pyoci.directory import LAST, Directory, default_root, ids, read_file
from pyoci.errors import Exists, Foreign, NotFound, PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = (
    "SOCKET",
    "State",
    "Store",
    "alive",
    "default_root",
    "document",
    "headless",
    "ids",
    "open_init",
    "over",
    "process",
    "read_file",
    "status",
    "timestamp",
)

SOCKET = "start.sock"
EXITING = 4  # of a task's flags (include/linux/sched.h)
# of pidfd_open(2): there is none, or the number is a thread's by now
ENDED = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
NO_PROCESS = "no-process"  # is there for a container that cannot be started
# A state under creation has a file of its own: a file that replaces another is written to the disk at once by some file
# systems, and who removes it a moment later waits for that (ext4(5), auto_da_alloc).
DRAFT, FILE = LAST
# Of our files, those that nobody else has: a directory with one of them is ours although its state is lost.
OURS = frozenset((*LAST, SOCKET, NO_PROCESS, "inputs.json", "shortcut"))
RUNC = "init_process_pid"  # is in each state.json of runc's
# What the first versions did not write: a container outlives an upgrade, and nothing of the kind was made for it then.
ADDED = ("criu_pid", "criu_start", "mounts", "net_devices", "resctrl", "unit")


def timestamp() -> str:
    """Now, as RFC 3339 in UTC with nanoseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z"


class State:
    """What is remembered.  `pid` 0 until the container's init exists; `pid_start` is field 22 of /proc/pid/stat.

    phase           "creating", "created" or "running": how far commands got, not the status
    cgroup_paths    controller -> directory ("" for v2); cgroup_created: directories that create made and delete removes
    criu_pid        with criu_start a CRIU that serves the memory of a container which it has written (`checkpoint
                    --lazy-pages`), else 0
    mounts          where its root is mounted, in a container without a mount namespace (`pyoci.rootmount`)
    net_devices     devices that were on their way into the container while it was created
    resctrl         the container's groups of resctrl (`pyoci.resctrl`)
    hooks           raw JSON of the hooks that later commands run
    listen          start.sock tells whether the container waits for start
    unit            "system NAME" or "user NAME": systemd's unit that the cgroups are, else ""
    """

    __slots__ = (
        "annotations",
        "bundle",
        "cgroup_created",
        "cgroup_paths",
        "created",
        "criu_pid",
        "criu_start",
        "hooks",
        "id",
        "listen",
        "mounts",
        "namespaces",
        "net_devices",
        "oci_version",
        "owner",
        "phase",
        "pid",
        "pid_start",
        "resctrl",
        "rootfs",
        "terminal",
        "unit",
        "user_namespace",
        "version",
    )

    def __init__(
        self,
        id: str,
        bundle: str,
        rootfs: str,
        *,
        pid: int = 0,
        pid_start: int = 0,
        created: str = "",
        oci_version: str = "",
        annotations: dict[str, str] | None = None,
        owner: int = 0,
        phase: str = "creating",
        cgroup_paths: dict[str, str] | None = None,
        cgroup_created: list[str] | None = None,
        criu_pid: int = 0,
        criu_start: int = 0,
        namespaces: list[str] | None = None,
        hooks: dict[str, Any] | None = None,
        listen: bool = True,
        resctrl: dict[str, str] | None = None,
        mounts: dict[str, str] | None = None,
        net_devices: list[str] | None = None,
        user_namespace: bool = False,
        terminal: bool = False,
        unit: str = "",
        version: str = "",
    ) -> None:
        self.id = id
        self.bundle = bundle
        self.rootfs = rootfs
        self.pid = pid
        self.pid_start = pid_start
        self.created = created
        self.oci_version = oci_version
        self.annotations = annotations or {}
        self.owner = owner
        self.phase = phase
        self.cgroup_paths = cgroup_paths or {}
        self.cgroup_created = cgroup_created or []
        self.criu_pid = criu_pid
        self.criu_start = criu_start
        self.namespaces = namespaces or []
        self.hooks = hooks or {}
        self.listen = listen
        self.resctrl = resctrl or {}
        self.mounts = mounts or {}
        self.net_devices = net_devices or []
        self.user_namespace = user_namespace
        self.terminal = terminal
        self.unit = unit
        self.version = version

    def to_json(self) -> dict[str, Any]:
        """As written to state.json."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: object) -> State:
        """ValueError for anything that `to_json` of this version or an earlier one does not write; names that it does
        not know are a later version's.
        """
        if not isinstance(value, dict):
            raise ValueError("not an object")
        model = cls("", "", "").to_json()
        value = {**{name: model[name] for name in ADDED}, **value}
        for name, like in model.items():
            if name not in value:
                raise ValueError(f"/{name} is missing")
            if type(value[name]) is not type(like):
                raise ValueError(f"/{name} is not a {type(like).__name__}")
            if name == "hooks":
                if not _hooks(value[name]):
                    raise ValueError("/hooks holds something else than hooks")
            elif type(like) is int:
                if not 0 <= value[name] < 1 << (31 if name.endswith("pid") else 64):
                    raise ValueError(f"/{name} is out of range")
            elif not _texts(value[name]):
                raise ValueError(f"/{name} holds something else than text")
        known = {name: value[name] for name in model}
        return cls(known.pop("id"), known.pop("bundle"), known.pop("rootfs"), **known)


def _texts(value: object) -> bool:
    """Whether a list or map holds nothing but strings, and those are some that paths can be made of; anything else
    does."""
    value = [value] if isinstance(value, str) else value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(type(item) is str and "\0" not in item for item in items)


def _hooks(value: dict[str, object]) -> bool:
    """Whether these are hooks as `pyoci.hooks` remembers them."""
    for listed in value.values():
        if not isinstance(listed, list):
            return False
        for hook in listed:
            if not isinstance(hook, dict) or type(hook.get("path")) is not str:
                return False
            for words in (hook.get("args"), hook.get("env")):
                if words is not None and not (isinstance(words, list) and _texts(words)):
                    return False
            if type(hook.get("timeout", 1)) is not int and hook["timeout"] is not None:
                return False
    return True


class Store(Directory):
    """A container's directory, with the state in it."""

    __slots__ = ()

    def take(self) -> None:
        """Lock the directory that `create` made; Exists when it is, by now, another's.

        Between mkdir(2) and open(2) a delete may have removed ours, and another create made its own: both have opened
        that.  Its owner is who has written a state first.
        """
        try:
            self.lock()
            if self.has(FILE) or self.has(DRAFT):
                raise Exists(self.id)
        except (Exists, NotFound):
            raise
        except BaseException:
            self.discard()
            raise

    def load(self) -> State:
        """NotFound when create never got as far as writing it, Foreign when others did, PyociError when it cannot be
        read.
        """
        from pyoci.jsontext import loads

        # without the lock, the second may take the place of the first between two looks
        for name in (FILE, DRAFT, FILE):
            try:
                data = self.read(name)
                break
            except FileNotFoundError:
                pass
        else:
            if self._without_state():
                raise NotFound(self.id)
            return self.load()
        try:
            value = loads(data)
            if isinstance(value, dict) and RUNC in value:
                raise Foreign(self.id, self.path, f"which wrote its {name}")
            return State.from_json(value)
        except ValueError as error:
            raise PyociError(
                f"container {self.id!r}: {self.path}/{name} is damaged: {error}; if it cannot be restored, end the"
                f" container's processes and remove {self.path}"
            ) from None

    def _without_state(self) -> bool:
        """Whether there is none, or else one was written meanwhile; Foreign where other files are: a state is what
        create writes first and delete removes last.
        """
        try:
            names = posix.listdir(self.fd)
        except FileNotFoundError:
            return True  # it has been removed
        found = sorted(name for name in names if name[0] != ".")
        if found and OURS.isdisjoint(found):
            raise Foreign(self.id, self.path, f"which has {found[0]} there and no state.json")
        return set(LAST).isdisjoint(found)

    def save(self, state: State) -> None:
        """Replace what is remembered, all or nothing."""
        from pyoci.jsontext import dumps

        data = dumps(state.to_json()).encode()
        if state.phase == "creating":
            self.write(DRAFT, data)
            return
        self.write(FILE, data)
        try:
            posix.unlink(DRAFT, dir_fd=self.fd)
        except FileNotFoundError:
            pass


def process(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks since boot) from /proc/pid/stat; None without such a process.

    OSError when that cannot be told: what is taken for gone would be forgotten.
    """
    fields = _fields(pid)
    return (fields[0].decode(), int(fields[19])) if fields else None


def _fields(pid: int) -> list[bytes]:
    """Those of /proc/pid/stat from field 3, the state, on (proc_pid_stat(5)); none without such a process."""
    try:
        stat = read_file(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):  # the latter when it ends between open and read
        return []
    # The name in parentheses is the program's to choose, parentheses and spaces included.
    return stat[stat.rindex(b")") + 2 :].split()


def ends(pid: int) -> bool:
    """Whether a process has begun to end, and may have to wait for others for that (PF_EXITING in field 9)."""
    fields = _fields(pid)
    return bool(fields and int(fields[6]) & EXITING)


def over(fields: Sequence[bytes]) -> bool:
    """Whether a process with these `fields` of /proc/PID/stat, from the state on, has ended.

    Its first thread, whose state it is, may have ended alone (pthread_exit): nobody hears of that before the last has.
    """
    return fields[0] in (b"X", b"x") or (fields[0] == b"Z" and int(fields[17]) < 2)


def headless(pid: int) -> bool:
    """Whether a process has lost its first thread, and runs on."""
    fields = _fields(pid)
    return bool(fields) and fields[0] == b"Z" and not over(fields)


def alive(state: State) -> bool:
    """Whether the container's init still runs: same pid, same start time, and not a zombie."""
    return _runs(state.pid, state.pid_start)


def _runs(pid: int, start: int) -> bool:
    fields = _fields(pid) if pid > 0 else []
    return bool(fields) and not over(fields) and int(fields[19]) == start


def open_init(state: State) -> int | None:
    """A pidfd of the container's init, None when that has ended."""
    return open_process(state.pid, state.pid_start)


def open_process(pid: int, start: int) -> int | None:
    """A pidfd of the process `pid` that began at `start`, None when that has ended; OSError as `process`."""
    if pid <= 0:
        return None
    # The descriptor first, then who it is: the other way round, the pid could be somebody else's in between.
    try:
        descriptor = posix.pidfd_open(pid)
    except OSError as error:
        if error.errno not in ENDED:
            raise
        return None
    runs = False
    try:
        runs = _runs(pid, start)
    finally:
        if not runs:
            posix.close(descriptor)
    return descriptor if runs else None


def waits_for_start(store: Store) -> bool:
    """Whether the container's init still listens on start.sock.

    Its socket keeps packets, so connecting a stream finds it (EPROTOTYPE) without queueing anything, and refuses
    (ECONNREFUSED) once the last descriptor is closed, by execve or by death.  The path goes through /proc, because
    sun_path ends after 108 bytes (unix(7)).
    """
    from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

    asking = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        return asking.connect_ex(f"/proc/self/fd/{store.fd}/{SOCKET}") == errno.EPROTOTYPE
    finally:
        asking.close()


def status(store: Store, state: State) -> str:
    """What the kernel says now: "creating", "created", "running", "paused" or "stopped"."""
    if state.phase == "creating" and store.busy():
        return "creating"
    if not alive(state):
        return "stopped"
    if state.phase == "creating":
        # Its creator is gone without finishing: init ends as soon as it notices, and start would find nobody.
        return "stopped"
    if "" in state.cgroup_paths or "freezer" in state.cgroup_paths:
        from pyoci.cgroup.live import is_frozen

        if is_frozen(state.cgroup_paths):
            return "paused"
    if state.listen:
        return "created" if waits_for_start(store) else "running"
    return "created" if state.phase == "created" else "running"


def document(state: State, status: str) -> dict[str, Any]:
    """The state as the specification shows it (runtime.md#state), and what engines expect beyond it."""
    shown: dict[str, Any] = {
        "ociVersion": state.oci_version,
        "id": state.id,
        "pid": 0 if status == "stopped" else state.pid,
        "status": status,
        "bundle": state.bundle,
        "rootfs": state.rootfs,
        "created": state.created,
    }
    if state.annotations:
        shown["annotations"] = state.annotations
    shown["owner"] = owner_name(state.owner)
    return shown


def owner_name(uid: int) -> str:
    """The login name of `uid`, or `#uid`."""
    if uid == 0:
        return "root"
    from pwd import getpwuid

    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
