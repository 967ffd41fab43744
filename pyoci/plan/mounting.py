"""The plans of `mounts add` and `mounts remove`: mounts of a container that runs.

Sources are opened where the runtime is, before the container's mount namespace is entered; there, a path is only ever
looked up below the container's root, without magic links, and what is found is a descriptor.  Its processes are hostile
peers meanwhile, as with exec: the one that enters is not dumpable, and in no other namespace of the container's than
the mounts need.  A mount is known by its number (statx(2)), because in the container a path may lead elsewhere by now.
"""

from __future__ import annotations

from errno import EINVAL, ESTALE

from pyoci.errors import ConfigError, Problem
from pyoci.kernel import flags as k
from pyoci.plan.devices import send_descriptor
from pyoci.plan.entry import NAME, default_signals, shed
from pyoci.plan.join import may_trace
from pyoci.plan.mounts import plan_mounts
from pyoci.plan.ops import RUNTIME, Address, Buffer, Op, Ref, Struct
from pyoci.plan.options import MountOptions
from pyoci.plan.paths import HANDLE, SCOPED, close, openat2, relative
from pyoci.reports import TERMINAL_MESSAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.host import Host
    from pyoci.spec.types import Mount, Spec

ORIGIN = "mounts"
# File systems that are of the namespaces they are made in: they are made in the container's, and take no path of the
# host's.  type -> the namespace that must be joined besides
OF_NAMESPACES = {
    "cgroup": "cgroup",
    "cgroup2": "cgroup",
    "devpts": "",
    "mqueue": "ipc",
    "proc": "pid",
    "ramfs": "",
    "sysfs": "network",
    "tmpfs": "",
}
MOUNT_ID = 144  # offset of stx_mnt_id in struct statx (linux/stat.h)
STATX_SIZE = 256
WORD = 0xFFFFFFFFFFFFFFFF
FIXED = 2  # number of the descriptor that umount2 is told by its name: init has no use for a standard error
NAMED = b"self/fd/%d" % FIXED


def check(spec: Spec, namespaces: Sequence[str], privileged: bool) -> None:
    """ConfigError for what can be done when a container is made, but not to one that runs."""
    problems: list[Problem] = []
    traceable = may_trace(namespaces, spec.process, spec.linux)
    for index, mount in enumerate(spec.mounts):
        where = f"/mounts/{index}"
        options = MountOptions(mount.options)
        if not mount.destination.strip("/"):
            problems.append(Problem(f"{where}/destination", "the container's root is in use"))
        if options.remount or not (mount.type or options.bind):
            problems.append(Problem(f"{where}/options", "it changes a mount and adds none"))
        elif options.copy_up:
            problems.append(Problem(f"{where}/options", "tmpcopyup copies the image's files when a container is made"))
        elif options.bind and not privileged:
            message = "a bind of the host's files into a running container needs CAP_SYS_ADMIN on the host"
            problems.append(Problem(f"{where}/options", message))
        elif not options.bind and mount.type not in OF_NAMESPACES and "user" in namespaces:
            message = f"{mount.type} cannot be added to a container with a user namespace; mount it outside and bind it"
            problems.append(Problem(f"{where}/type", message))
        elif not options.bind and OF_NAMESPACES.get(mount.type) == "pid" and traceable:
            message = (
                f"{mount.type} is made by a process of the host's in the container's pid namespace, where those with"
                " CAP_SYS_PTRACE could take it over; mount it when the container is made"
            )
            problems.append(Problem(f"{where}/type", message))
    if problems:
        raise ConfigError(problems, ORIGIN)


def joined(mounts: Sequence[Mount], namespaces: Sequence[str]) -> list[str]:
    """The container's namespaces that must be entered: fewer are less to be seen by its processes."""
    wanted = {"mount", "user", *[OF_NAMESPACES.get(mount.type, "") for mount in mounts if not _is_bind(mount)]}
    return [type_ for type_ in namespaces if type_ in wanted]


def _is_bind(mount: Mount) -> bool:
    return "bind" in mount.options or "rbind" in mount.options


def descriptors(names: Sequence[str]) -> dict[str, int]:
    """Numbers of what init is started with; `container` is the pidfd, `names` what else it is given."""
    return {name: 3 + number for number, name in enumerate(("control", "container", *names))}


def _begin(more: int) -> list[Op]:
    return [
        *shed(0, ORIGIN, more),
        *default_signals(ORIGIN),
        Op("prctl", (k.PR_SET_NAME, NAME, 0, 0, 0), ORIGIN),
        Op("prctl", (k.PR_SET_DUMPABLE, 0, 0, 0, 0), ORIGIN),
    ]


def _enter(namespaces: Sequence[str]) -> list[Op]:
    """Into these namespaces of the container's, as a new process (pid namespaces begin with one)."""
    flags = 0
    for type_ in namespaces:
        flags |= k.NAMESPACES[type_]
    ops = [
        Op("setns", (Ref("container"), flags), ORIGIN),
        Op("clone3", (Struct("clone_args", flags=k.CLONE_PARENT), 88), ORIGIN),
    ]
    if "user" in namespaces:
        ops += [
            Op("setresgid", (0, 0, 0), ORIGIN, tolerate=(EINVAL,)),
            Op("setresuid", (0, 0, 0), ORIGIN, tolerate=(EINVAL,)),
            Op("prctl", (k.PR_SET_DUMPABLE, 0, 0, 0, 0), ORIGIN),
        ]
    ops.append(Op("umask", (0,), ORIGIN))
    ops.append(Op("openat", (k.AT_FDCWD, b"/", HANDLE | k.O_DIRECTORY), ORIGIN, "rootfs"))
    return ops


class Addition:
    """`ops` in order, the leading ones the runtime's; `fds` what init is started with."""

    __slots__ = ("fds", "ops")

    def __init__(self, ops: list[Op], fds: dict[str, int]) -> None:
        self.ops = ops
        self.fds = fds


def plan_add(
    spec: Spec, host: Host, bundle: str, cgroup_paths: dict[str, str], namespaces: Sequence[str], user: bool
) -> Addition:
    """Ops that put all of `spec.mounts` into the container with these `namespaces`; `user`: `@ns_user` is given.

    Before each is put in its place, the runtime gets its descriptor and performs `remember`: so whatever becomes of us,
    it is known.
    """
    plan = plan_mounts(spec, host, bundle, cgroup_paths)
    outside: list[Op] = list(plan.sources)
    inside: list[Op] = []
    for index, mount in enumerate(spec.mounts):
        ops = _of_mount(plan.ops, index)
        # a finished tree first, then its place
        made = next(number for number, op in enumerate(ops) if op.call == "openat2" and op.args[0] == Ref("rootfs"))
        if not _is_bind(mount) and mount.type not in OF_NAMESPACES:
            _rename(ops, "tree", f"new{index}")
            outside += ops[:made]
            ops = ops[made:]
        moved = next(number for number, op in enumerate(ops) if op.call == "move_mount")
        told = send_descriptor(str(ops[moved].args[0])[1:], "control", TERMINAL_MESSAGE)[0]
        told.origin, told.hint = f"/mounts/{index}", ""
        ops[moved:moved] = [told, Op("remember", (index,), f"/mounts/{index}", performer=RUNTIME)]
        inside += ops
    names = [*plan.maps.values(), *(["ns_user"] if user else [])]
    ops = [*plan.before, *_begin(len(names)), *outside, *_enter(joined(spec.mounts, namespaces)), *inside, *plan.late]
    ops.append(Op("done", (), ORIGIN, performer=RUNTIME))
    return Addition(ops, descriptors(names))


def _of_mount(ops: Sequence[Op], index: int) -> list[Op]:
    """The ops of one entry: those with its pointer, and those between them that have another origin."""
    mine = f"/mounts/{index}"
    numbers = [number for number, op in enumerate(ops) if op.origin == mine or op.origin.startswith(mine + "/")]
    return list(ops[numbers[0] : numbers[-1] + 1])


def _rename(ops: Sequence[Op], old: str, new: str) -> None:
    for op in ops:
        op.args = tuple(Ref(new) if arg == Ref(old) else arg for arg in op.args)
        if op.result == old:
            op.result = new


def _unmount(handle: str, origin: str, tolerate: tuple[int, ...] = ()) -> list[Op]:
    """umount2(2) takes a path: the one of a descriptor, in the procfs that we had before we entered anything."""
    return [
        Op("dup3", (Ref(handle), FIXED, k.O_CLOEXEC), origin),
        Op("fchdir", (Ref("proc"),), origin),
        Op("umount2", (NAMED, k.MNT_DETACH), origin, tolerate=tolerate),
    ]


def _procfs() -> Op:
    return Op("openat", (k.AT_FDCWD, b"/proc", HANDLE | k.O_DIRECTORY), ORIGIN, "proc")


def plan_undo(count: int, namespaces: Sequence[str]) -> Addition:
    """Ops that unmount the trees `@tree0` ... (given to init), the last first, where they have been mounted."""
    names = [f"tree{number}" for number in range(count)]
    ops = [*_begin(len(names)), _procfs(), *_enter([type_ for type_ in namespaces if type_ in ("mount", "user")])]
    for name in reversed(names):
        ops += _unmount(name, ORIGIN, (EINVAL,))  # not mounted (yet), or not any more
    ops.append(Op("done", (), ORIGIN, performer=RUNTIME))
    return Addition(ops, descriptors(names))


def plan_remove(found: Sequence[tuple[int, str, int]], namespaces: Sequence[str]) -> Addition:
    """Ops that unmount what is `found`: (index of the entry, path in the container, number of the mount).

    What is at the path must be that mount, or nothing happens to it.
    """
    ops = [*_begin(0), _procfs(), *_enter([type_ for type_ in namespaces if type_ in ("mount", "user")])]
    for index, path, number in found:
        origin = f"/mounts/{index}/destination"
        ops.append(openat2("rootfs", relative(path), HANDLE, SCOPED, origin, "target"))
        status = Buffer(f"status{index}", STATX_SIZE)
        ops.append(Op("statx", (Ref("target"), b"", k.AT_EMPTY_PATH, k.STATX_MNT_ID, status), origin))
        hint = "something else is there: in the container it was covered or moved meanwhile"
        ops.append(Op("expect", (Address(status.name, MOUNT_ID), WORD, number, ESTALE), origin, hint=hint))
        ops += _unmount("target", origin)
        ops.append(close("target", origin))
        ops.append(Op("forget", (index,), origin, performer=RUNTIME))
    ops.append(Op("done", (), ORIGIN, performer=RUNTIME))
    return Addition(ops, descriptors(()))
