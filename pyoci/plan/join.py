"""The plan of a process that joins a running container: `exec`, and hooks that run in its namespaces.

The container's processes are hostile peers of the one that enters: it is not dumpable before its first setns, executes
from a sealed memfd, brings no descriptor of the host's with it but the control socket, and its only handle of the
container is a pidfd that the runtime has checked.
"""

from __future__ import annotations

from errno import EACCES, EINVAL, ENOENT, ENOTDIR

from pyoci.kernel import flags as k
from pyoci.plan.entry import (
    NAME,
    default_signals,
    every_processor,
    granted_capabilities,
    own_keyring,
    own_null,
    raised_limits,
    shed,
)
from pyoci.plan.ops import RUNTIME, Op, Ref, Struct, Vector
from pyoci.plan.paths import HANDLE, close
from pyoci.plan.process import ARGS, plan_process
from pyoci.reports import TERMINAL_MESSAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.hooks import AnyHook
    from pyoci.host import Host
    from pyoci.spec.types import Linux, Process

EXEC = "exec"


class Target:
    """The container to join.

    pid             its first process, as the runtime sees it
    namespaces      types of the namespaces that are not the runtime's
    cgroup          v2 directory to be cloned into, or None
    opens, enter    ops that get a process into v1 cgroups, before and after its clone3
    keeps_groups    supplementary groups stay: setgroups(2) is denied there, or the container asks for it
    """

    __slots__ = ("cgroup", "enter", "keeps_groups", "namespaces", "opens", "pid")

    def __init__(
        self,
        pid: int,
        namespaces: Sequence[str],
        cgroup: bytes | None,
        opens: Sequence[Op],
        enter: Sequence[Op],
        keeps_groups: bool,
    ) -> None:
        self.pid = pid
        self.namespaces = tuple(namespaces)
        self.cgroup = cgroup
        self.opens = tuple(opens)
        self.enter = tuple(enter)
        self.keeps_groups = keeps_groups


def descriptors(preserve_fds: int) -> dict[str, int]:
    """Numbers of the launcher's descriptors; `container` is the pidfd."""
    first = 3 + preserve_fds
    return {"control": first, "container": first + 1, "console": first + 2}


def may_trace(namespaces: Sequence[str], process: Process | None, linux: Linux | None = None) -> bool:
    """Whether a container's processes may trace whoever comes into their pid namespace, whatever rights that one has
    (ptrace(2), "Ptrace access mode checking"), and have not all of these rights anyway.

    With `linux` also whether others may whose pid namespace it is, if it is joined by path.
    """
    if "pid" not in namespaces or "user" in namespaces:
        return False
    held: set[str] = set()
    if process is not None and process.capabilities is not None:
        sets = process.capabilities
        held = {*sets.bounding, *sets.permitted, *sets.ambient, *sets.inheritable}
    joined = linux is not None and any(entry.type == "pid" and entry.path for entry in linux.namespaces)
    return ("CAP_SYS_PTRACE" in held or joined) and "CAP_SYS_ADMIN" not in held


def enter(target: Target, origin: str, by_root: bool, unseen: bool = False) -> list[Op]:
    """Into the container's namespaces and cgroup, as a new process.

    by_root  take the root directory that its first process has now, rather than that of its mount namespace: they
             differ before pivot_root, and in a container without a mount namespace.
    unseen   the new process is not in the container's pid namespace yet: its child will be
    """
    ops: list[Op] = []
    if target.cgroup is not None:
        ops.append(
            Op("openat", (k.AT_FDCWD, target.cgroup, k.O_RDONLY | k.O_DIRECTORY | k.O_CLOEXEC), origin, "cgroup")
        )
    ops += target.opens
    if by_root:
        root = f"/proc/{target.pid}/root".encode()
        ops.append(Op("openat", (k.AT_FDCWD, root, HANDLE | k.O_DIRECTORY), origin, "rootfs"))
    flags = 0
    for type_ in target.namespaces:
        # From within its cgroup namespace nobody from outside can be put into the container's cgroup, where cgroup2 is
        # mounted with nsdelegate, as systemd does (cgroups(7)): that one is joined by the new process.
        if type_ != "cgroup" and not (unseen and type_ == "pid"):
            flags |= k.NAMESPACES[type_]
    if flags:
        ops.append(Op("setns", (Ref("container"), flags), origin))
    elif by_root:
        # that was the container's process then, and no later one with its number; setns would say so, too
        ops.append(Op("pidfd_send_signal", (Ref("container"), 0, 0, 0), origin))
    if by_root:
        ops += [Op("fchdir", (Ref("rootfs"),), origin), Op("chroot", (b".",), origin), close("rootfs", origin)]
    arguments = Struct("clone_args", flags=k.CLONE_PARENT)
    if target.cgroup is not None:
        arguments.fields["flags"] = k.CLONE_PARENT | k.CLONE_INTO_CGROUP
        arguments.fields["cgroup"] = Ref("cgroup")
    ops.append(Op("clone3", (arguments, 88), origin))
    ops += target.enter
    late = k.CLONE_NEWCGROUP if "cgroup" in target.namespaces else 0
    if unseen:
        late |= k.CLONE_NEWPID
    if late:
        ops.append(Op("setns", (Ref("container"), late), origin))
    if "user" in target.namespaces:
        ops += [
            Op("setresgid", (0, 0, 0), origin, tolerate=(EINVAL,)),
            Op("setresuid", (0, 0, 0), origin, tolerate=(EINVAL,)),
        ]
    if not unseen:
        ops.append(Op("setsid", (), origin))
    ops.append(own_keyring(origin))
    return ops


def _appear(terminal: bool) -> list[Op]:
    """What was made ready elsewhere is in the container's pid namespace from here on, as a process with a session of
    its own.  By clone(2), because filters let that pass where they do not know what is in memory (clone3)."""
    room = "where processes may trace others, exec needs one more process for a moment: pids.limit, RLIMIT_NPROC"
    ops = [Op("clone", (k.CLONE_PARENT, 0, 0, 0, 0), EXEC, hint=room), Op("setsid", (), EXEC)]
    if terminal:
        ops.append(Op("ioctl", (0, k.TIOCSCTTY, 0), "/process/terminal"))
    return ops


def _begin(preserve_fds: int, origin: str) -> list[Op]:
    return [
        *shed(preserve_fds, origin),
        *default_signals(origin),
        Op("prctl", (k.PR_SET_NAME, NAME, 0, 0, 0), origin),
        Op("prctl", (k.PR_SET_DUMPABLE, 0, 0, 0, 0), origin),
    ]


def plan_exec(  # noqa: PLR0913 - the inputs are these
    process: Process,
    host: Host,
    target: Target,
    seccomp_flags: int | None,
    console: str | None,
    preserve_fds: int,
    linux: Linux | None = None,
    unseen: bool = False,
) -> list[Op]:
    """Ops of `exec`: the same process preparation as create's, in the container; `linux` is the container's.

    unseen  the container's processes may trace all that they see: what they see has no more rights than its program
            will have, so all else is done by its parent, which is not in their pid namespace.  A filter that takes
            CAP_SYS_ADMIN to load is loaded by that one, too.
    """
    ops = [*_begin(preserve_fds, EXEC), *own_null(host, process, EXEC)]
    if process.apparmor_profile or process.selinux_label:
        from pyoci.plan.labels import labels

        ops += labels(process, host)
    ops += raised_limits(process, host)
    affinity = process.exec_cpu_affinity or {}
    if affinity:
        from pyoci.plan import tuning

        if affinity.get("initial"):
            ops.append(tuning.affinity(str(affinity["initial"]), "/process/execCPUAffinity/initial"))
    ops += enter(target, EXEC, "mount" not in target.namespaces, unseen)
    if not affinity:
        ops.append(every_processor(EXEC))
    if affinity.get("final"):
        ops.append(tuning.affinity(str(affinity["final"]), "/process/execCPUAffinity/final"))
    if linux is not None and (linux.personality or linux.memory_policy):
        from pyoci.plan.tuning import of_container

        ops += of_container(linux)
    if process.terminal:
        from pyoci.plan import devices

        receiver = console or "control"
        ops.append(Op("openat", (k.AT_FDCWD, b"/", HANDLE | k.O_DIRECTORY), EXEC, "rootfs"))
        ops += devices.plan_terminal(process, receiver, TERMINAL_MESSAGE if receiver == "control" else b"/dev/ptmx")
        ops.append(close("rootfs", EXEC))
        ops += devices.adopt_terminal()[1 if unseen else 0 :]
    user_namespace = "user" in target.namespaces
    plan = plan_process(
        process,
        host,
        granted_capabilities(host, user_namespace),
        seccomp_flags,
        () if process.terminal else host.stdio_pipes,
        not target.keeps_groups,
    )
    ops += plan.prepare
    score: list[Op] = []
    if process.oom_score_adj is not None:
        data = str(process.oom_score_adj).encode()
        score = [Op("write", (b"/proc/@pid/oom_score_adj", data), "/process/oomScoreAdj", performer=RUNTIME)]
    begin = plan.begin
    shut = Op("close_range", (descriptors(preserve_fds)["console"], k.UINT_MAX, 0), EXEC)
    if unseen:
        ops.append(shut)
        if any(op.call == "capset" for op in begin):
            ops += [op for op in begin if op.call != "execve"]
            begin = [op for op in begin if op.call == "execve"]
        ops += [*_appear(process.terminal), *plan.listener, *score]
    else:
        ops += [*score, shut, *plan.listener]
    ops.append(Op("created", (), EXEC, performer=RUNTIME))
    return ops + begin


def plan_hook(  # noqa: PLR0913 - the inputs are these
    hook: AnyHook,
    target: Target,
    origin: str,
    process: Process | None = None,
    host: Host | None = None,
    seccomp_flags: int | None = None,
    directory: str = "",
) -> list[Op]:
    """Ops that run a hook in the container's namespaces; what its path means there is what it means to the container's
    first process at this moment (config.md#posix-platform-hooks).

    A startContainer hook is a program of the image, and so hostile: given `process` (and `host`) it has that one's
    user, limits, capabilities and, with `seccomp_flags`, filter, and not ours, and its environment if it has none.

    directory  where it is run, if it can be entered; the specification says nothing of that
    """
    ops = _begin(0, origin)
    if process is not None and host is not None:
        ops += raised_limits(process, host)
    ops += enter(target, origin, True)
    if directory:
        path = directory.encode("utf-8", "surrogateescape")
        ops.append(Op("chdir", (path,), origin, tolerate=(ENOENT, ENOTDIR, EACCES)))
    envp: object = Vector([entry.encode() for entry in hook.env or ()])
    if process is not None and host is not None:
        granted = granted_capabilities(host, "user" in target.namespaces)
        plan = plan_process(process, host, granted, seccomp_flags, (), not target.keeps_groups)
        ops += [op for op in plan.prepare if op.origin != ARGS]
        if plan.listener:
            ops.append(Op("close_range", (descriptors(0)["console"], k.UINT_MAX, 0), origin))
            ops += plan.listener
        ops += [op for op in plan.begin if op.origin != ARGS]
        if hook.env is None:
            envp = plan.begin[-1].args[2]
    argv = [word.encode() for word in hook.args] or [hook.path.encode()]
    ops.append(Op("execve", (hook.path.encode(), Vector(argv), envp), origin))
    return ops
