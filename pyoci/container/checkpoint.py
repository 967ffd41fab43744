"""checkpoint: a container's processes, memory and all, written to a directory of files by CRIU."""

from __future__ import annotations

import fcntl
import posix
import select

from pyoci.criu import external, rpc, service, yard
from pyoci.errors import PyociError, WrongState
from pyoci.hooks import RESET
from pyoci.kernel.flags import CLONE_NEWNET
from pyoci.spec.load import load
from pyoci.state import Store, alive, headless, open_init, open_process, process, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Spec
    from pyoci.state import State

# names of namespaces that are not the container's own, as runc has them in its images
NETWORK, PIDS = "extRootNetNS", "extRootPidNS"
DESCRIPTORS = "descriptors.json"
PROCESS = "process.json"  # what CRIU before 3.19 does not write: {"noNewPrivileges": true or false}
RPC = 3
PATIENCE = 10_000  # milliseconds for processes that CRIU has killed to end


class CheckpointOptions:
    """What checkpoint and restore have in common.  Paths are absolute, "" when not given; texts are as in criu(8).

    status_fd  the caller's descriptor that CRIU writes to once lazy pages can be asked for, or -1
    """

    __slots__ = (
        "auto_dedup", "cgroups_mode", "empty_network", "ext_unix_sk", "file_locks", "image_path", "lazy_pages",
        "leave_running", "link_remap", "network_lock", "page_server", "parent_path", "pre_dump", "shell_job",
        "status_fd", "tcp_close", "tcp_established", "tcp_skip_in_flight", "work_path",
    )  # fmt: skip

    def __init__(self, image_path: str, work_path: str = "") -> None:
        self.image_path = image_path
        self.work_path = work_path
        self.parent_path = ""
        self.cgroups_mode = ""
        self.network_lock = ""
        self.page_server = ""
        self.status_fd = -1
        self.auto_dedup = self.empty_network = self.ext_unix_sk = self.file_locks = self.lazy_pages = False
        self.leave_running = self.link_remap = self.pre_dump = self.shell_job = False
        self.tcp_close = self.tcp_established = self.tcp_skip_in_flight = False


def common(options: CheckpointOptions, config: str, image: int, log: str) -> list[tuple[str, rpc.Value]]:
    """The fields that dump and restore share; `image` is a descriptor that CRIU opens again through /proc, `config` the
    path of CRIU's own configuration, or ""."""
    fields: list[tuple[str, rpc.Value]] = [
        ("images_dir_fd", image),
        ("log_level", service.LOG_LEVEL),
        ("log_file", log),
        ("notify_scripts", True),
        ("orphan_pts_master", True),
        ("ext_unix_sk", options.ext_unix_sk),
        ("tcp_established", options.tcp_established),
        ("shell_job", options.shell_job),
        ("file_locks", options.file_locks),
        ("auto_dedup", options.auto_dedup),
        ("lazy_pages", options.lazy_pages),
    ]
    if options.cgroups_mode == "ignore":
        fields.append(("manage_cgroups", False))
    else:
        fields.append(("manage_cgroups", True))
    fields.append(("manage_cgroups_mode", rpc.CGROUP_MODES[options.cgroups_mode or "soft"]))
    if options.empty_network:
        fields.append(("empty_ns", CLONE_NEWNET))
    for name in ("link_remap", "tcp_skip_in_flight", "tcp_close"):
        if getattr(options, name):
            fields.append((name, True))
    if options.network_lock:
        fields.append(("network_lock", rpc.NETWORK_LOCKS[options.network_lock]))
    if config:
        fields.append(("config_file", config))
    return fields


def config_file(spec: Spec) -> str:
    """CRIU's own configuration: the annotation org.criu.config, which may be empty for none; else this machine's."""
    if "org.criu.config" in spec.annotations:
        return spec.annotations["org.criu.config"]
    for path in ("/etc/criu/pyoci.conf", "/etc/criu/runc.conf"):
        if posix.access(path, posix.F_OK):
            return path
    return ""


def checkpoint(root: str, container_id: str, options: CheckpointOptions) -> None:
    """Write the container's images; unless it is left running, the container is deleted, as by other runtimes."""
    if posix.geteuid() != 0:
        raise PyociError("checkpoint: CRIU needs root's rights")
    with Store.open(root, container_id) as store:
        store.lock()
        state = store.load()
        found = status(store, state)
        if found not in ("running", "paused"):
            raise WrongState(f"container {container_id!r}: cannot checkpoint a container that is {found}: not running")
        serving = open_process(state.criu_pid, state.criu_start)
        if serving is not None:
            posix.close(serving)
            raise WrongState(
                f"container {container_id!r}: checkpointed before: CRIU, process {state.criu_pid}, waits for who wants"
                " its memory; delete --force ends both"
            )
        spec = load(store.read("config.json"), checked=True)
        check(spec)
        pidfd = open_init(state)
        if pidfd is None:
            raise WrongState(f"container {container_id!r}: container not running")
        try:
            try:
                _dump(store, state, spec, options)
            except OSError:
                if alive(state) and not headless(state.pid):
                    raise
                from pyoci.container.failure import unjoinable

                # there is nothing to look at any more
                raise unjoinable(state, f"container {container_id!r}: container not running") from None
            if options.leave_running or options.pre_dump:
                return
            _wait(state, pidfd, found == "paused")
        finally:
            posix.close(pidfd)
        from pyoci.container.teardown import dismantle

        dismantle(store, state)


def check(spec: Spec) -> None:
    """What CRIU could write and nobody could make again."""
    mount = next((entry for entry in spec.linux.namespaces if entry.type == "mount"), None)
    if mount is None or mount.path:
        raise PyociError("/linux/namespaces: a container is checkpointed with a mount namespace of its own only")
    for index, entry in enumerate(spec.mounts):
        if entry.uid_mappings or "idmap" in entry.options or "ridmap" in entry.options:
            raise PyociError(f"/mounts/{index}: CRIU knows no id-mapped mounts: restored, its files would be others'")


def _dump(store: Store, state: State, spec: Spec, options: CheckpointOptions) -> None:
    program = service.find()
    given: list[int] = []
    try:
        given.append(image := service.directory(options.image_path, "--image-path"))
        given.append(work := service.directory(options.work_path or options.image_path, "--work-path"))
        criu = service.Service(work, "dump.log", options.work_path or options.image_path)
        try:
            config = config_file(spec)
            if options.lazy_pages:
                config = _serve_at(options.page_server, config, given)
            fields = common(options, config, image, "dump.log")
            fields += [("pid", state.pid), ("work_dir_fd", work), ("leave_running", options.leave_running)]
            fields += _external(state, spec)
            # Of other hierarchies it would take all that there is, other containers' included, and restore would make
            # that again below this one's.
            names = dict.fromkeys(name.removeprefix("name=") for name in state.cgroup_paths)
            # v2 has no name: alone it must be said, or v1's that are mounted nowhere would be taken
            fields += [("cgroup_dump_controller", name) for name in names if name or len(names) == 1]
            if cgroups := yard.lay(store, state):
                fields.append(("cgroup_yard", cgroups))
            if options.parent_path:
                fields.append(("parent_img", options.parent_path))
            if options.parent_path or options.pre_dump:
                fields.append(("track_mem", True))
            if options.page_server:
                fields.append(("ps", _page_server(options.page_server)))
            if options.status_fd >= 0:
                # of ours, as the directories are: CRIU opens it through /proc
                fields.append(("status_fd", options.status_fd))
            cgroup = state.cgroup_paths.get("freezer") or state.cgroup_paths.get("")
            if cgroup:
                fields.append(("freeze_cgroup", cgroup))
            kept, outside = external.stdio(state.pid)
            fields += [("external", key) for key in outside]
            if not options.pre_dump:
                _write(image, DESCRIPTORS, kept)
                _write(image, PROCESS, {"noNewPrivileges": _no_new_privileges(state.pid)})
            child = _spawn(program, criu)
            try:
                if options.lazy_pages:
                    _remember(store, state, child)
                criu.ask(rpc.PRE_DUMP if options.pre_dump else rpc.DUMP, fields, _notified)
            finally:
                criu.ours.close()
                posix.waitpid(child, 0)
                if options.lazy_pages:
                    _remember(store, state, 0)
        finally:
            criu.close()
    finally:
        for descriptor in given:
            posix.close(descriptor)


def _serve_at(page_server: str, config: str, given: list[int]) -> str:
    """CRIU's configuration with the address where it serves the memory: asked for that, it takes the port alone, and
    offers a container's memory at every address that the machine has."""
    address, _ = _address(page_server)
    text = b"address " + address.encode() + b"\n"
    if config:
        from pyoci.options import read_document

        # what it says itself comes last, and so counts
        text += read_document(config, "CRIU's configuration", regular=True)
    given.append(posix.memfd_create("criu.conf", posix.MFD_CLOEXEC))
    posix.write(given[-1], text)
    return f"/proc/{posix.getpid()}/fd/{given[-1]}"


def _remember(store: Store, state: State, child: int) -> None:
    """A CRIU that serves pages does not notice when we are killed: delete ends it.  Any other soon ends by itself, and
    must not be killed at its work: it has code of its own in the container's processes."""
    from pyoci.shortcut import FILE as SHORTCUT

    try:
        # the launcher's delete knows nothing of it
        posix.unlink(SHORTCUT, dir_fd=store.fd)
    except FileNotFoundError:
        pass
    found = process(child) if child else None
    state.criu_pid, state.criu_start = (child, found[1]) if found else (0, 0)
    store.save(state)


def _notified(script: str, pid: int, descriptor: int) -> None:
    """Nothing is to be done for a dump."""


def _no_new_privileges(pid: int) -> bool:
    """Whether the container's init has it, and so everything that comes from it: a program can ask for it itself."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return any(line.split() == ["NoNewPrivs:", "1"] for line in file)


def _external(state: State, spec: Spec) -> list[tuple[str, rpc.Value]]:
    fields: list[tuple[str, rpc.Value]] = []
    for place, name in external.of_container(state.pid, spec):
        fields.append(("ext_mnt", rpc.encode("ext_mount_map", [("key", place), ("val", name)])))
    for entry in spec.linux.namespaces:
        if entry.path and entry.type in ("network", "pid"):
            kind, name = ("net", NETWORK) if entry.type == "network" else ("pid", PIDS)
            fields.append(("external", f"{kind}[{posix.stat(f'/proc/{state.pid}/ns/{kind}').st_ino}]:{name}"))
    return fields


def _page_server(text: str) -> bytes:
    address, port = _address(text)
    return rpc.encode("criu_page_server_info", [("address", address), ("port", port)])


def _address(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536 or not address:
        raise PyociError(f"--page-server {text!r}: use --page-server ADDRESS:PORT")
    return address.strip("[]"), int(port)


def _write(folder: int, name: str, value: object) -> None:
    from pyoci.jsontext import dumps
    from pyoci.log import write_all

    try:
        # of an earlier checkpoint, or a fifo, or a link to what is not ours to overwrite
        try:
            posix.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
        fd = posix.open(name, flags, 0o600, dir_fd=folder)
        try:
            write_all(fd, dumps(value).encode())
        finally:
            posix.close(fd)
    except OSError as error:
        from pyoci.kernel.errnos import words

        raise PyociError(f"--image-path: write {name}: {words(error.errno or 0)}") from None


def _spawn(program: str, criu: service.Service) -> int:
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    actions: list[tuple[int, ...]] = []
    high: list[int] = []
    wanted = {0: null, 1: criu.output, 2: criu.output, RPC: criu.theirs.fileno()}
    try:
        for number, source in wanted.items():
            moved = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 10)
            high.append(moved)
            actions.append((posix.POSIX_SPAWN_DUP2, moved, number))
        for name in posix.listdir("/proc/self/fd"):
            descriptor = int(name)
            try:
                if descriptor not in wanted and posix.get_inheritable(descriptor):
                    actions.append((posix.POSIX_SPAWN_CLOSE, descriptor))
            except OSError:
                pass  # the descriptor that listed the directory
        argv = [b"criu", b"swrk", b"%d" % RPC]
        return posix.posix_spawn(program, argv, ENVIRONMENT, file_actions=actions, setsigmask=(), setsigdef=RESET)
    except OSError as error:
        from pyoci.kernel.errnos import words

        raise PyociError(f"{program}: {words(error.errno or 0)}") from None
    finally:
        posix.close(null)
        for fd in high:
            posix.close(fd)


ENVIRONMENT = {b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def _wait(state: State, pidfd: int, paused: bool) -> None:
    """CRIU has killed the processes; one that is frozen ends only once it is not."""
    if paused:
        from pyoci.cgroup.live import thaw

        thaw(state.cgroup_paths)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(PATIENCE):
        raise PyociError(f"container {state.id!r}: checkpointed, but its process {state.pid} has not ended")
