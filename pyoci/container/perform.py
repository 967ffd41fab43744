"""The runtime's column: what Python does while init waits at a barrier."""

from __future__ import annotations

import posix

from pyoci.errors import PyociError
from pyoci.launch import perform_write, substitute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.cgroup.systemd import Unit
    from pyoci.hooks import AnyHook
    from pyoci.host import Host
    from pyoci.launch import Session
    from pyoci.netdevice import NetDevices
    from pyoci.pidfd import Receiver
    from pyoci.plan.ops import Op
    from pyoci.spec.types import Hooks
    from pyoci.state import State, Store

# attribute of spec.types.Hooks for each kind that create runs
KINDS = {"prestart": "prestart", "createRuntime": "create_runtime", "createContainer": "create_container"}
# Where distributions have newuidmap and newgidmap: $PATH is the caller's, and these are trusted with ids.
HELPERS = ("/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin")
IN_CONTAINER = ("createContainer", "startContainer")


class Performer:
    """Performs the runtime's ops of one create or run, and remembers what has to be undone.

    `created` is called when init reports the container complete.
    """

    __slots__ = (
        "after_created", "given", "hooks", "host", "net_devices", "pid_file", "ran_hooks", "receiver", "resctrl",
        "startable", "state", "store", "unit",
    )  # fmt: skip

    def __init__(
        self, store: Store, state: State, host: Host, hooks: Hooks, pid_file: str, after_created: bool
    ) -> None:
        self.store = store
        self.state = state
        self.host = host
        self.hooks = hooks
        self.pid_file = pid_file
        self.after_created = after_created  # init goes on without us once the container is created
        self.startable = True  # the container has a process
        self.ran_hooks = False
        self.given: dict[str, int] = {}  # descriptors that init is to be started with, by name
        self.resctrl: list[str] = []  # groups that we have made
        self.net_devices: NetDevices | None = None
        self.receiver: Receiver | None = None  # of the process's pidfd
        self.unit: Unit | None = None
        if state.unit:
            from pyoci.cgroup.systemd import Unit

            self.unit = Unit(state, store.path)

    def __call__(self, op: Op, session: Session) -> None:
        call = op.call
        if call == "write":
            perform_write(op, session.pid)
        elif call == "created":
            self.created(session)
        elif call == "hooks":
            kind = op.args[0]
            assert isinstance(kind, bytes)
            self.run_hooks(kind.decode(), session)
        elif call in ("newuidmap", "newgidmap"):
            words = [arg for arg in op.args[1:] if isinstance(arg, bytes)]
            map_ids(call, session.pid, words)
        elif call == "user_namespace":
            from pyoci.container.idmap import user_namespace

            name, uids, gids = op.args
            assert isinstance(name, bytes) and isinstance(uids, bytes) and isinstance(gids, bytes)
            self.given[name.decode()] = user_namespace(self.host, uids, gids, op.origin)
        elif call == "check_map":
            check_map(op, session.pid)
        elif call in ("find_net_device", "move_net_device"):
            if self.net_devices is None:
                from pyoci.netdevice import NetDevices

                self.net_devices = NetDevices()
            if call == "move_net_device":
                # killed from here on, delete must be able to say what has become of it
                self.know(session.pid)
                name = op.args[0]
                assert isinstance(name, bytes)
                self.state.net_devices.append(name.decode())
                self.store.save(self.state)
            self.net_devices.perform(op, session.pid)
        elif call == "mount_root":
            from pyoci import rootmount

            path = op.args[0]
            assert isinstance(path, bytes)
            self.state.mounts = rootmount.intended(path.decode("utf-8", "surrogateescape"))
            # killed from here on, delete must know the mount, and end the process before it looks for it
            self.know(session.pid)
            self.store.save(self.state)
        elif call.endswith("_resctrl"):
            from pyoci.resctrl import perform as perform_resctrl

            self.resctrl += perform_resctrl(op, session.pid)
        elif self.unit is not None and self.unit.knows(call):
            self.state.cgroup_created += self.unit.perform(op, session.stage)
        else:
            from pyoci.cgroup.perform import perform

            self.state.cgroup_created += perform(op)

    def created(self, session: Session) -> None:
        """Record the container: from here on the other commands know it."""
        state = self.state
        self.know(session.pid)
        state.net_devices = []
        state.phase = "created" if self.after_created or self.hooks.start_container else "running"
        self.store.save(state)
        if self.after_created and self.startable:
            from pyoci.shortcut import leave

            leave(self.store, state)
        if self.pid_file:
            write_pid_file(self.pid_file, session.pid)
        if self.receiver is not None:
            self.receiver.send(session.pid)
        session.done = self.after_created
        if not self.after_created:
            from pyoci.console import hold_signals

            hold_signals()

    def know(self, pid: int) -> None:
        """Put the process into the state: its pid, and the start time that makes it unmistakable."""
        if self.state.pid != pid:
            from pyoci.state import process

            found = process(pid)
            if found is None:
                try:
                    posix.kill(pid, 0)
                except OSError:
                    raise PyociError("the container's init died while the runtime was at work for it") from None
                raise PyociError(f"/proc hides process {pid} from us: mount it without hidepid, or with gid= our group")
            self.state.pid = pid
            self.state.pid_start = found[1]

    def creating(self, pid: int) -> dict[str, object]:
        """The state (runtime.md#state) of the container whose first process is `pid`, before it is created."""
        from pyoci.state import document

        self.know(pid)
        return document(self.state, "creating")

    def run_hooks(self, kind: str, session: Session) -> None:
        """The hooks of `kind`, in the namespaces that the specification says."""
        self.know(session.pid)
        if kind == "startContainer":
            entries: Sequence[AnyHook] = self.hooks.start_container
        else:
            # killed from here on, delete --force must find the process
            self.store.save(self.state)
            entries = getattr(self.hooks, KINDS[kind])
        self.ran_hooks = True
        run_container_hooks(kind, entries, self.state, self.host if kind in IN_CONTAINER else None, store=self.store)


def run_container_hooks(
    kind: str,
    entries: Sequence[AnyHook],
    state: State,
    host: Host | None,
    status: str = "created",
    store: Store | None = None,
) -> None:
    """Run hooks with the state on stdin; with `host`, in the container's namespaces, else in ours."""
    from pyoci.hooks import run_hooks, spawn
    from pyoci.jsontext import dumps
    from pyoci.state import document

    shown = document(state, status)
    if host is None:
        run_hooks(kind, entries, dumps(shown).encode(), spawn)
        return
    from pyoci.container.execute import hook_spawner

    spec = None
    root = ""
    if kind == "startContainer" and store is not None:
        # by now its path is the image's to fill: it gets what the image's program gets
        from pyoci.spec.load import load

        spec = load(store.read("config.json"))
        root = store.path.rpartition("/")[0]
    # hooks in the container's pid namespace are told the pid that means something there (runtime.md#state)
    if "pid" in state.namespaces:
        shown["pid"] = 1
    run_hooks(kind, entries, dumps(shown).encode(), hook_spawner(kind, state, host, root, spec))


def write_pid_file(path: str, pid: int) -> None:
    """The pid in decimal, no newline, whole or not at all."""
    temporary = f"{path}.{posix.getpid()}.tmp"
    try:
        fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o644)
        try:
            posix.write(fd, b"%d" % pid)
        finally:
            posix.close(fd)
        posix.rename(temporary, path)
    except OSError as error:
        from pyoci.kernel.errnos import words

        try:
            posix.unlink(temporary)
        except OSError:
            pass  # it could not be made, which is what is reported
        raise PyociError(f"--pid-file {path}: {words(error.errno or 0)}") from None


def map_ids(program: str, pid: int, words: list[bytes]) -> None:
    """newuidmap(1) or newgidmap(1): the set-user-ID programs that may write more than one's own id."""
    path = next((f"{folder}/{program}" for folder in HELPERS if _is_file(f"{folder}/{program}")), None)
    kind = program[3:6]
    if path is None:
        raise PyociError(
            f"/linux/{kind}Mappings: mapping more than your own id needs {program}: install it (package uidmap), or map"
            " your own id alone"
        )
    reading, writing = posix.pipe2(posix.O_CLOEXEC)
    try:
        child = posix.posix_spawn(
            path,
            [program.encode(), b"%d" % pid, *words],
            {},
            file_actions=[(posix.POSIX_SPAWN_DUP2, writing, 1), (posix.POSIX_SPAWN_DUP2, writing, 2)],
        )
    finally:
        posix.close(writing)
    said = posix.read(reading, 4096).decode("utf-8", "replace").strip()
    posix.close(reading)
    if posix.waitpid(child, 0)[1]:
        remedy = _map_remedy(path, kind, said, words)
        raise PyociError(f"/linux/{kind}Mappings: {said or program + ' failed'}; {remedy}")


def _map_remedy(path: str, kind: str, said: str, words: list[bytes]) -> str:
    if "write to" in said:
        # it has found the ranges in order, and then had no rights
        return (
            f"{path} needs its set-user-ID bit (or CAP_SET{kind.upper()}), a file system without nosuid, and a caller"
            " without no_new_privs"
        )
    if "name" in said:
        return f"uid {posix.getuid()} needs an entry in /etc/passwd"
    own = b"%d" % (posix.getuid() if kind == "uid" else posix.getgid())
    ranges = [(int(host), int(size)) for host, size in zip(words[1::3], words[2::3], strict=True) if host != own]
    options = " ".join([f"--add-sub{kind}s {first}-{first + size - 1}" for first, size in ranges])
    return f"/etc/sub{kind} does not give you these: as root, usermod {options} USER"


def check_map(op: Op, pid: int) -> None:
    """Mappings beside a user namespace that is joined by path must be those that it has."""
    from pyoci.host import read

    path, wanted = op.args
    assert isinstance(path, bytes) and isinstance(wanted, bytes)
    # numbers in columns, in an order of the kernel's own
    there = sorted(line.split() for line in read(substitute(path, pid).decode()).splitlines())
    if there != sorted(line.split() for line in wanted.splitlines()):
        shown = b", ".join(b" ".join(entry) for entry in there).decode() or "none"
        raise PyociError(
            f"{op.origin}: the user namespace that is joined by path has other mappings, "
            f"which cannot be changed any more: {shown}; they may be left out"
        )


def _is_file(path: str) -> bool:
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o100000
    except OSError:
        return False
