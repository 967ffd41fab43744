"""create: from a bundle to a process that waits for start, or to nothing at all."""

from __future__ import annotations

import _socket
import posix

from pyoci import VERSION, log
from pyoci.container.perform import Performer
from pyoci.errors import HookError, PyociError
from pyoci.host import probe, probe_sources, source_type
from pyoci.jsontext import escape
from pyoci.kernel.seccomp import notifies
from pyoci.kernel.syscalls import numbers
from pyoci.launch import Session, run_ops, tell, template
from pyoci.options import absolute, read_document
from pyoci.plan.container import ContainerPlan, PlanOptions, plan_container, root_path
from pyoci.program import assemble, leading
from pyoci.spec.linux_rules import sysctl_path
from pyoci.spec.load import load
from pyoci.state import NO_PROCESS, SOCKET, State, Store, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.host import Host
    from pyoci.options import CreateOptions
    from pyoci.plan.ops import Op
    from pyoci.program import Program
    from pyoci.readiness import Proxy
    from pyoci.spec.types import Spec

CONFIG = "config.json"


class Blueprint:
    """All that is decided before anything is touched."""

    __slots__ = ("assets", "bundle", "data", "host", "plan", "plan_options", "spec")

    def __init__(  # noqa: PLR0913 - the decisions are these
        self,
        spec: Spec,
        data: bytes,
        host: Host,
        plan_options: PlanOptions,
        plan: ContainerPlan,
        bundle: str,
        assets: dict[str, bytes],
    ) -> None:
        self.spec = spec
        self.data = data
        self.host = host
        self.plan_options = plan_options
        self.plan = plan
        self.bundle = bundle
        self.assets = assets


def read_config(bundle: str, name: str = "") -> bytes:
    """The bundle's config.json, or what is there in its place (`name`)."""
    path = name if name.startswith("/") else f"{bundle}/{name or CONFIG}"
    try:
        return read_document(path, path, regular=True)
    except PyociError as error:
        if isinstance(error.__context__, FileNotFoundError):
            raise PyociError(
                f"JSON specification file {name or CONFIG} not found: {error}; pyoci spec writes one into the bundle"
            ) from None
        raise


def draw(options: CreateOptions, listen: bool, console: str | None) -> Blueprint:
    """Read, check and plan: whatever is wrong with the bundle is found here."""
    bundle = absolute(options.bundle)
    data = read_config(bundle, options.config)
    spec = load(data)
    check_terminal(spec, options, console)
    host = look(spec, options, bundle)
    if options.no_pivot:
        from pyoci.host import probe_kernel_views

        probe_kernel_views(host)
    check_mount_namespace(spec)
    check_settings(spec)
    listen_fds, listen_names = 0, ""
    if b"LISTEN_FDS" in posix.environ:
        from pyoci.activation import received

        listen_fds, listen_names = received(posix.environ, posix.getpid())
    notify = ""
    if b"NOTIFY_SOCKET" in posix.environ:
        from pyoci.readiness import DIRECTORY, wanted

        notify = f"{options.root}/{options.id}/{DIRECTORY}" if wanted(spec) else ""
    plan_options = PlanOptions(
        options.id,
        bundle,
        listen=listen,
        console=console,
        preserve_fds=listen_fds + options.preserve_fds,
        no_pivot=options.no_pivot,
        no_new_keyring=options.no_new_keyring,
        cgroup_manager=options.cgroup_manager,
        rootless=options.rootless,
        listen_fds=listen_fds,
        listen_names=listen_names,
        notify=notify,
    )
    plan = plan_container(spec, host, plan_options)
    warn_capabilities(spec, host)
    assets: dict[str, bytes] = {}
    if spec.linux.seccomp is not None and spec.process is not None:
        from pyoci.seccomp import cached

        assets["seccomp"] = cached(options.root, spec.linux.seccomp, host.arch)
        if notifies(spec.linux.seccomp):
            from pyoci.container.listener import check

            check(spec.linux.seccomp, bundle, plan.ops, assets["seccomp"], host.arch, plan.fds)
    return Blueprint(spec, data, host, plan_options, plan, bundle, assets)


def look(spec: Spec, options: CreateOptions, bundle: str) -> Host:
    """The host, and what of it `spec` is about; PyociError where the container's root is not there."""
    host = probe()
    if options.cgroup_manager == "systemd":
        from pyoci.host import probe_systemd

        probe_systemd(host, options.rootless)
    if probe_sources(host, spec, bundle):
        from pyoci.container.dev_links import check

        check(spec, root_path(spec, bundle))
    check_directory("/root/path: invalid rootfs", root_path(spec, bundle))
    return host


def check_directory(what: str, path: str) -> None:
    """PyociError, beginning with `what`, unless there is a directory at `path`."""
    kind = source_type(path)
    if kind != "dir":
        reason = "not a directory" if kind == "file" else "no such file or directory"
        raise PyociError(f"{what}: stat {path}: {reason}")


def check_terminal(spec: Spec, options: CreateOptions, console: str | None) -> None:
    """A terminal and somebody to take its master belong together."""
    terminal = spec.process is not None and spec.process.terminal
    if terminal and console is None:
        raise PyociError("/process/terminal: cannot allocate tty if the container is detached without --console-socket")
    if not terminal and options.console_socket:
        raise PyociError("/process/terminal: --console-socket is given, but the process has no terminal")


def check_mount_namespace(spec: Spec) -> None:
    """Nothing may be mounted where it would stay after the container, or over the host's own root."""
    for index, entry in enumerate(spec.linux.namespaces):
        if entry.type == "mount":
            if entry.path and _ours(entry.path, "mnt"):
                pointer = f"/linux/namespaces/{index}/path"
                raise PyociError(f"{pointer}: {entry.path} is the runtime's own mount namespace, not a container's")
            return
    from pyoci.plan.root_mount import mounts_in_root

    if any(entry.type == "user" for entry in spec.linux.namespaces) and mounts_in_root(spec):
        raise PyociError(
            "/linux/namespaces: mounting needs a mount namespace for a container with a user namespace: "
            "its root has no rights over the runtime's mounts"
        )


def _ours(path: str, file: str) -> bool:
    """Whether `path` is the runtime's own namespace, that of the `file` in /proc/self/ns."""
    try:
        there, ours = posix.stat(path), posix.stat(f"/proc/self/ns/{file}")
    except OSError:
        return False  # init's open says why
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def check_settings(spec: Spec) -> None:
    """What config.json sets in a namespace must not be set in the runtime's own, by a path to that one as little as
    without any (spec/linux_rules.py)."""
    joined = {entry.type: (index, entry.path) for index, entry in enumerate(spec.linux.namespaces) if entry.path}
    if not joined:
        return
    settings = {"uts": [f"/{name}" for name in ("hostname", "domainname") if getattr(spec, name)]}
    for key in spec.linux.sysctl:
        top = (sysctl_path(key) or "").partition("/")[0]
        kind = "network" if top == "net" else "uts" if "domainname" in key else "ipc"
        settings.setdefault(kind, []).append(f"/linux/sysctl/{escape(key)}")
    for kind, file in (("uts", "uts"), ("network", "net"), ("ipc", "ipc")):
        if settings.get(kind) and kind in joined and _ours(joined[kind][1], file):
            index, path = joined[kind]
            where = f"{path} (/linux/namespaces/{index}/path) is the runtime's own {kind} namespace"
            raise PyociError(f"{settings[kind][0]}: would change the host: {where}")


def warn_capabilities(spec: Spec, host: Host) -> None:
    """Capabilities that cannot be given are a warning (config.md#linux-process)."""
    process = spec.process
    if process is None or process.capabilities is None:
        return
    from pyoci.plan.entry import granted_capabilities
    from pyoci.plan.process import ungranted, unheld

    user_namespace = any(entry.type == "user" for entry in spec.linux.namespaces)
    missing = dict.fromkeys(ungranted(process.capabilities, host, granted_capabilities(host, user_namespace)))
    loose = unheld(process.capabilities)
    if missing or loose:
        left_out = "left out, because they are"
        if missing:
            log.warning(f"/process/capabilities: {left_out} unknown or not ours to give: {', '.join(missing)}")
        for kind, reason, listed in loose:
            if names := ", ".join(name for name in listed if name not in missing):
                log.note(f"/process/capabilities/{kind}: {left_out} not {reason}: {names}")


def missing(paths: dict[str, str]) -> list[str]:
    """Those of the container's cgroups, and of the directories above them, that are not there yet."""
    found: dict[str, None] = {}
    for path in dict.fromkeys(paths.values()):
        directory = path
        while directory and directory not in found:
            try:
                posix.stat(directory)
                break
            except OSError:
                found[directory] = None
                directory = directory[: directory.rindex("/")]
    return list(found)


class Creation:
    """One create or run under way."""

    __slots__ = ("blueprint", "options", "performer", "proxy", "session", "state", "store")

    def __init__(self, options: CreateOptions, blueprint: Blueprint, listen: bool) -> None:
        spec = blueprint.spec
        self.options = options
        self.blueprint = blueprint
        self.state = State(
            options.id,
            blueprint.bundle,
            root_path(spec, blueprint.bundle),
            created=timestamp(),
            oci_version=spec.oci_version,
            annotations=spec.annotations,
            owner=blueprint.host.uid,
            phase="creating",
            cgroup_paths=blueprint.plan.cgroups.paths,
            unit=blueprint.plan.cgroups.unit,
            namespaces=[entry.type for entry in spec.linux.namespaces],
            hooks={
                kind: spec.hooks.raw[kind]
                for kind in ("startContainer", "poststart", "poststop")
                if spec.hooks.raw.get(kind)
            },
            listen=listen,
            user_namespace=any(entry.type == "user" for entry in spec.linux.namespaces),
            terminal=spec.process is not None and spec.process.terminal,
            version=VERSION,
        )
        self.store = Store.create(options.root, options.id)
        pid_file = absolute(options.pid_file) if options.pid_file else ""
        self.performer = Performer(self.store, self.state, blueprint.host, spec.hooks, pid_file, listen)
        self.session: Session | None = None
        self.proxy: Proxy | None = None  # of what the program says to its service manager

    def build(self) -> Session:
        """Perform the plan up to "created" (with a listener) or to the user's program; undoes everything when it
        fails."""
        try:
            self.store.take()
        except BaseException:
            self.store.close()  # what is in it is not ours to undo
            raise
        try:
            return self._build()
        except BaseException as error:
            problem: BaseException = error
            try:
                if self.session is not None:
                    self.session.abandon()
                from pyoci.container.failure import explained

                paths = self.state.cgroup_paths
                problem = explained(error, paths, paths.get("", ""), self.state.rootfs)
            except (OSError, PyociError):
                pass  # out of descriptors or memory: the failure itself says enough, and must be undone
            self.undo(error)
            if problem is error:
                raise
            raise problem from error

    def _build(self) -> Session:
        blueprint, store, options = self.blueprint, self.store, self.options
        plan = blueprint.plan
        if options.pidfd_socket:
            from pyoci.pidfd import Receiver

            self.performer.receiver = Receiver(options.pidfd_socket)
        self.announce()
        if log.debugging:
            cgroups = ",".join(dict.fromkeys(self.state.cgroup_paths.values()))
            log.debug("planned", id=self.state.id, bundle=blueprint.bundle, ops=len(plan.ops), cgroups=cgroups)
        if blueprint.plan_options.notify:
            from pyoci.readiness import Proxy, make

            make(store)
            if not self.state.listen:
                self.proxy = Proxy.of(store)
        ops = plan.ops
        first = leading(ops)
        program = assemble(
            ops[first:], template(), blueprint.host.arch, numbers(blueprint.host.arch), plan.fds, blueprint.assets
        )
        session = self.session = self._session(program)
        run_ops(ops[:first], self._before)
        given = dict(self.performer.given)
        listener: _socket.socket | None = None
        console = -1
        try:
            if self.state.listen:
                listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
                # sun_path holds 108 bytes, a state directory's path may be longer (unix(7))
                listener.bind(f"/proc/self/fd/{store.fd}/{SOCKET}")
                listener.listen(1)
                given["listen"] = listener.fileno()
            if options.console_socket:
                from pyoci.console import connect_console_socket

                console = given["console"] = connect_console_socket(absolute(options.console_socket))
            elif self.state.terminal:
                from pyoci.console import plain, sized

                process = blueprint.spec.process
                fixed = process is not None and process.console_size is not None
                session.expect_descriptor(plain if fixed else sized)
            # relative names in mount data (an overlay's lowerdir) are relative to the bundle
            posix.chdir(blueprint.bundle)
            session.spawn(blueprint.host.kernel, plan.fds, given)
            # later commands want these; init is at work meanwhile
            store.write(CONFIG, blueprint.data)
            if self.state.listen:
                from pyoci.container.replay import remember

                remember(store, blueprint)
                if blueprint.spec.process is None:
                    store.write(NO_PROCESS, b"")
                    self.performer.startable = False
        finally:
            if listener is not None:
                listener.close()
            if console >= 0:
                posix.close(console)
            for fd in self.performer.given.values():
                posix.close(fd)
        session.play()
        if self.performer.net_devices is not None:
            self.performer.net_devices.close()
        return session

    def announce(self) -> None:
        """Save the state with the cgroups and groups of resctrl that are about to be made: killed at any moment from
        here on, they must be known."""
        state = self.state
        asked = self.blueprint.spec.linux.intel_rdt
        if asked is not None:
            from pyoci.plan.intel_rdt import Groups
            from pyoci.resctrl import intended

            groups = Groups(asked, self.blueprint.host.resctrl, state.id)
            state.resctrl = intended(groups.control, groups.monitor, groups.own)
        state.cgroup_created = missing(state.cgroup_paths)
        if state.unit:
            # the slices above are systemd's
            state.cgroup_created = [path for path in state.cgroup_created if path in state.cgroup_paths.values()]
        self.store.save(state)
        state.cgroup_created = []

    def _session(self, program: Program) -> Session:
        seccomp = self.blueprint.spec.linux.seccomp
        if "seccomp" not in self.blueprint.assets or seccomp is None or not notifies(seccomp):
            return Session(program, self.performer)
        from pyoci.container.listener import ListeningSession

        return ListeningSession(program, self.performer, seccomp, self.blueprint.bundle, self.performer.creating)

    def _before(self, op: Op) -> None:
        assert self.session is not None
        self.performer(op, self.session)
        if log.debugging:
            tell(op)

    def undo(self, error: BaseException) -> None:
        """Leave nothing behind; whatever goes wrong here never replaces the first error."""
        from pyoci.container.teardown import dismantle

        try:
            if self.performer.net_devices is not None:
                self.performer.net_devices.give_back()
            if self.session is not None:
                self.session.abandon()
            if self.state.resctrl:
                from pyoci.resctrl import failed

                self.state.resctrl = failed(self.state.resctrl, self.performer.resctrl)
            dismantle(self.store, self.state, poststop=self.performer.ran_hooks or isinstance(error, HookError))
        except (OSError, PyociError) as second:
            log.warning(f"container {self.state.id!r}: while cleaning up after a failed create: {second}")
        if self.performer.pid_file and self.state.pid:
            try:
                posix.unlink(self.performer.pid_file)
            except OSError:
                pass  # it was not written yet, or somebody else has removed it


def create(options: CreateOptions) -> None:
    """See `pyoci.container.create`."""
    blueprint = draw(options, True, "console" if options.console_socket else None)
    creation = Creation(options, blueprint, True)
    creation.build()
    creation.store.close()
