"""exec, and hooks inside: new processes in a container that runs."""

from __future__ import annotations

import posix
from errno import EBUSY, ENOENT, EOPNOTSUPP

from pyoci import log
from pyoci.container.perform import write_pid_file
from pyoci.errors import NotFound, PyociError, WrongState
from pyoci.host import lacks_home, probe, probe_limits
from pyoci.kernel.syscalls import numbers
from pyoci.launch import Failure, Session, perform_write, template
from pyoci.options import absolute, read_document
from pyoci.plan.join import Target, descriptors, may_trace, plan_exec, plan_hook
from pyoci.program import assemble
from pyoci.spec.load import load, load_process
from pyoci.spec.types import keeps_groups
from pyoci.state import Store, open_init, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyoci.hooks import AnyHook, Spawn
    from pyoci.host import Host
    from pyoci.options import ExecOptions
    from pyoci.pidfd import Receiver
    from pyoci.plan.ops import Op
    from pyoci.spec.types import Process, Seccomp, Spec
    from pyoci.state import State

# what a cgroup answers that is gone, has controllers for its children, or is threaded (cgroups(7))
ELSEWHERE = (ENOENT, EBUSY, EOPNOTSUPP)


class Elsewhere(PyociError):
    """The container's cgroups are gone, or take no process: where its init is, another one can be."""


def exec_(options: ExecOptions) -> int:
    """See `pyoci.container.exec_`."""
    store = Store.open(options.root, options.id)
    try:
        state = store.load()
        found = status(store, state)
        if found == "paused" and not options.ignore_paused:
            raise WrongState("cannot exec in a paused container (use --ignore-paused to override)")
        if found not in ("created", "running", "paused"):
            raise WrongState(f"cannot exec in a {found} container")
        # checked by create, and kept by it where only we can write
        try:
            spec = load(store.read("config.json"), checked=True)
        except FileNotFoundError:
            raise NotFound(store.id) from None  # it has been deleted since
        if found == "created" and _could_take_over(state, spec):
            raise WrongState(
                "cannot exec in a created container with CAP_SYS_PTRACE, a seccomp filter and neither a user namespace"
                " nor noNewPrivileges: its first process could be taken over while that has CAP_SYS_ADMIN; start it"
            )
        process = _process(options, spec)
        paths = None
        if options.cgroups:
            from pyoci.cgroup.choice import below, parse

            paths = below(state.cgroup_paths, parse(options.cgroups), options.ignore_paused)
        pidfd = open_init(state)
        if pidfd is None:
            raise WrongState("cannot exec in a stopped container")
        try:
            return _enter(options, state, spec, process, pidfd, paths, found)
        finally:
            posix.close(pidfd)
    finally:
        store.close()


def _process(options: ExecOptions, spec: Spec) -> Process:
    """What to execute: a process.json, or the container's own process with the command line's changes."""
    if options.process_file:
        path = absolute(options.process_file)
        process = load_process(read_document(path, f"--process {path}"), spec, path)
    else:
        if spec.process is None:
            raise PyociError("/process: the container has no process to take settings from; use --process")
        if not options.args:
            raise PyociError("exec args cannot be empty")
        process = spec.process
        process.args = options.args
        process.terminal = False
        process.console_size = None
    _adjust(process, options)
    _supported(process, options)
    return process


def _adjust(process: Process, options: ExecOptions) -> None:
    process.terminal = process.terminal or options.tty
    process.env = (*process.env, *options.env)
    if options.cwd:
        process.cwd = options.cwd
    if options.uid is not None:
        process.user.uid = options.uid
    if options.gid is not None:
        process.user.gid = options.gid
    if options.additional_gids:
        process.user.additional_gids = (*process.user.additional_gids, *options.additional_gids)
    process.apparmor_profile = options.apparmor or process.apparmor_profile
    process.selinux_label = options.process_label or process.selinux_label
    process.no_new_privileges = process.no_new_privileges or options.no_new_privs
    if options.caps:
        from pyoci.spec.types import Capabilities

        sets = process.capabilities = process.capabilities or Capabilities()
        # never the inheritable ones (CVE-2022-29162), and the ambient ones where config.json wants programs to inherit
        sets.ambient = (*sets.ambient, *[name for name in options.caps if name in sets.inheritable])
        sets.bounding = (*sets.bounding, *options.caps)
        sets.effective = (*sets.effective, *options.caps)
        sets.permitted = (*sets.permitted, *options.caps)


def _supported(process: Process, options: ExecOptions) -> None:
    if process.terminal and not options.console_socket and options.detach:
        raise PyociError("cannot allocate tty if the process is detached without --console-socket")
    if options.console_socket and not process.terminal:
        raise PyociError("--console-socket is given, but the process has no terminal")
    if not process.cwd.startswith("/"):
        raise PyociError("Cwd must be an absolute path")


def target_of(state: State, paths: Mapping[str, str] | None = None) -> Target:
    """How to join the container of `state`, in the cgroups `paths` rather than its own."""
    cgroup: bytes | None = None
    opens: list[Op] = []
    enter: list[Op] = []
    if state.cgroup_paths:
        from pyoci.cgroup.live import exec_paths
        from pyoci.plan.cgroup_entry import join_ops

        cgroup, opens, enter = join_ops(exec_paths(state.cgroup_paths, state.pid) if paths is None else paths)
    if state.unit.startswith("user "):
        from pyoci.cgroup.systemd import must_attach

        if must_attach(state):
            from pyoci.plan.ops import RUNTIME, Op, Ref

            name = state.unit.partition(" ")[2].encode()
            opens = [Op("attach_unit", (name, Ref("stage")), "exec", None, RUNTIME), *opens]
    if state.resctrl:
        from pyoci.plan.ops import RUNTIME, Op, Ref

        resctrl = [Op("enter_resctrl", (path.encode(), Ref("pid")), "exec", None, RUNTIME) for path in state.resctrl]
        enter = [*resctrl, *enter]
    keeps = keeps_groups(state.annotations) or _denies_setgroups(state)
    return Target(state.pid, state.namespaces, cgroup, opens, enter, keeps)


def _denies_setgroups(state: State) -> bool:
    if not state.user_namespace:
        return False
    from pyoci.host import read

    try:
        return read(f"/proc/{state.pid}/setgroups").startswith(b"deny")
    except OSError:
        return False


def _could_take_over(state: State, spec: Spec) -> bool:
    """Whether who has the rights of the container's process may trace the first one, while that waits for start with
    CAP_SYS_ADMIN, which its filter takes to load."""
    from pyoci.kernel.seccomp import notifies

    process, seccomp = spec.process, spec.linux.seccomp
    if process is None or seccomp is None or process.no_new_privileges or notifies(seccomp):
        return False
    return may_trace(state.namespaces, process)


class _Filter:
    """The container's seccomp filter, for a process that joins: None is none.

    flags    for seccomp(2), None without a filter
    assets   its bytes, from the cache in the root directory of states
    listens  it has a listener, which an agent is handed
    """

    __slots__ = ("arch", "assets", "flags", "listens", "seccomp")

    def __init__(self, seccomp: Seccomp | None, root: str, arch: str) -> None:
        self.seccomp = seccomp
        self.arch = arch
        self.flags: int | None = None
        self.assets: dict[str, bytes] = {}
        self.listens = False
        if seccomp is not None:
            from pyoci.kernel.seccomp import filter_flags, notifies
            from pyoci.seccomp import cached

            self.listens = notifies(seccomp)
            self.flags = filter_flags(seccomp.flags, self.listens)
            self.assets["seccomp"] = cached(root, seccomp, arch)

    def session(
        self, ops: list[Op], fds: dict[str, int], perform: Callable[[Op, Session], None], state: State, status: str
    ) -> Session:
        """One that plays `ops`; the agent, if there is one, is told the container's `status`."""
        program = assemble(ops, template(), self.arch, numbers(self.arch), fds, self.assets)
        if self.seccomp is None or not self.listens:
            return Session(program, perform)
        from pyoci.container.listener import ListeningSession, check, status_of

        check(self.seccomp, state.bundle, ops, self.assets["seccomp"], self.arch, fds)
        return ListeningSession(program, perform, self.seccomp, state.bundle, status_of(state, status))


def _enter(  # noqa: PLR0913 - what exec has found out
    options: ExecOptions,
    state: State,
    spec: Spec,
    process: Process,
    pidfd: int,
    cgroup_paths: Mapping[str, str] | None,
    found: str,
) -> int:
    host = probe()
    if log.debugging:
        log.debug("joins", id=state.id, pid=state.pid, namespaces=",".join(state.namespaces))
    if process.apparmor_profile or process.selinux_label:
        from pyoci.host import probe_security_modules

        probe_security_modules(host)
    if process.rlimits and state.user_namespace:
        probe_limits(host, process)
    if lacks_home(process.env):
        _probe_home(host, state, process, pidfd)
    filtered = _Filter(spec.linux.seccomp, options.root, host.arch)
    fds = descriptors(options.preserve_fds)
    pid_file = absolute(options.pid_file) if options.pid_file else ""
    given = {"container": pidfd}
    console = None
    if options.console_socket:
        from pyoci.console import connect_console_socket

        console = "console"
        given["console"] = connect_console_socket(absolute(options.console_socket))
    receiver: Receiver | None = None
    if options.pidfd_socket:
        from pyoci.pidfd import Receiver

        receiver = Receiver(options.pidfd_socket)

    def perform(op: Op, session: Session) -> None:
        if op.call == "created":
            if not options.detach:
                from pyoci.console import hold_signals

                hold_signals()
            if pid_file:
                write_pid_file(pid_file, session.pid)
            if receiver is not None:
                receiver.send(session.pid)
        elif op.call == "write":
            perform_write(op, session.pid)
        else:
            _in_cgroup(op, session, state)

    _warn_capabilities(options, process, host, state)
    unseen = (
        may_trace(state.namespaces, spec.process, spec.linux)
        and not process.scheduler  # which a child may not have from its parent (sched(7))
        and not (filtered.listens and not process.no_new_privileges)
    )

    def planned(target: Target, unseen: bool) -> list[Op]:
        return plan_exec(process, host, target, filtered.flags, console, options.preserve_fds, spec.linux, unseen)

    def attempt(paths: Mapping[str, str] | None) -> Session:
        target = target_of(state, paths)
        ops = planned(target, unseen)
        if unseen and filtered.assets and not filtered.listens:
            from pyoci.container.listener import refused

            if refused(ops, filtered.assets["seccomp"], host.arch, fds):
                ops = planned(target, False)
        session = filtered.session(ops, fds, perform, state, found)
        if process.terminal and console is None:
            from pyoci.console import plain, sized

            session.expect_descriptor(plain if process.console_size is not None else sized)
        try:
            session.spawn(host.kernel, fds, given)
            session.play()
        except BaseException as error:
            session.abandon()
            if isinstance(error, Failure) and paths is None and error.errno in ELSEWHERE and _for_cgroup(error.op):
                raise Elsewhere(str(error)) from None
            from pyoci.container.failure import container_ended, explained, unjoinable

            if container_ended(error, state):
                raise unjoinable(state, "cannot exec in a stopped container") from None
            raise explained(error, state.cgroup_paths, root=f"/proc/{state.pid}/root") from None
        return session

    try:
        session = attempt(cgroup_paths)
    except Elsewhere:
        from pyoci.cgroup.choice import of_init

        session = attempt(of_init(state.cgroup_paths, state.pid))
    finally:
        if console is not None:
            # an engine that waits for the end of the connection must not wait for that of the process
            posix.close(given[console])
    if options.detach:
        return 0
    from pyoci.console import attend

    child = posix.pidfd_open(session.pid)
    return attend(session.pid, child, session.descriptor if session.descriptor >= 0 else None)


def _warn_capabilities(options: ExecOptions, process: Process, host: Host, state: State) -> None:
    """As create does, of what it has not been asked about."""
    if options.caps:
        from pyoci.spec.types import Capabilities

        asked: Capabilities | None = Capabilities(bounding=tuple(options.caps))
    else:
        asked = process.capabilities if options.process_file else None
    if asked is None:
        return
    from pyoci.plan.entry import granted_capabilities
    from pyoci.plan.process import ungranted

    missing = ungranted(asked, host, granted_capabilities(host, state.user_namespace))
    if missing:
        log.warning(f"capabilities left out, because they are unknown or not ours to give: {', '.join(missing)}")


def _for_cgroup(op: Op) -> bool:
    from pyoci.plan.cgroup_entry import PATH_CLAUSE

    return op.call == "clone3" or op.origin == PATH_CLAUSE or op.result == "cgroup"


def _probe_home(host: Host, state: State, process: Process, pidfd: int) -> None:
    from pyoci.host import probe_home
    from pyoci.signals import send

    probe_home(host, state.pid, process.user.uid)
    try:
        # that was the container's process then, and no later one with its number
        send(pidfd, 0)
    except ProcessLookupError:
        raise WrongState("cannot exec in a stopped container") from None


def _in_cgroup(op: Op, session: Session, state: State) -> None:
    if op.call == "attach_unit":
        from pyoci.cgroup.systemd import attach

        attach(state, session.stage)
    elif op.call == "enter_resctrl":
        from pyoci.resctrl import perform as perform_resctrl

        perform_resctrl(op, session.pid)
    else:
        from pyoci.cgroup.perform import perform

        perform(op)


def hook_spawner(kind: str, state: State, host: Host, root: str = "", spec: Spec | None = None) -> Spawn:
    """A `start` for `run_hooks` that starts each hook in the container's namespaces.

    With `spec` it has the rights of that one's process and its filter, which is cached in `root`; without, ours, and
    it is run in the container's root, as by other runtimes.
    """
    target = target_of(state)
    process = None
    directory = state.rootfs if spec is None else ""
    filtered = _Filter(spec.linux.seccomp if spec is not None else None, root, host.arch)
    if spec is not None:
        process = spec.process
        if process is not None and process.capabilities is not None and _could_take_over(state, spec):
            sets = process.capabilities
            for name in sets.__slots__:
                setattr(sets, name, tuple(one for one in getattr(sets, name) if one != "CAP_SYS_PTRACE"))
        if process is not None and lacks_home(process.env):
            from pyoci.host import probe_home

            probe_home(host, state.pid, process.user.uid)
        if process is not None and process.rlimits and state.user_namespace:
            probe_limits(host, process)

    def spawn(hook: AnyHook, stdin: int, output: int) -> int:
        origin = f"/hooks/{kind}"
        ops = plan_hook(hook, target, origin, process, host, filtered.flags, directory)
        fds = descriptors(0)

        def perform(op: Op, session: Session) -> None:
            if op.call == "write":
                perform_write(op, session.pid)
            else:
                _in_cgroup(op, session, state)

        session = filtered.session(ops, fds, perform, state, "created")
        pidfd = open_init(state)
        if pidfd is None:
            raise PyociError("the container's init died before its hooks")
        try:
            session.spawn(host.kernel, fds, {"container": pidfd}, (stdin, output, output))
            session.play()
        except BaseException as error:
            session.abandon()
            from pyoci.container.failure import explained

            raise explained(error) from None
        finally:
            posix.close(pidfd)
        return session.pid

    return spawn


__all__ = ["exec_", "hook_spawner", "target_of"]
