"""The plan of `restore`: how CRIU is started, which then makes the container's processes of its images.

CRIU runs in the container's cgroups and groups of resctrl, so that what it makes is there from its first moment, and in
a mount namespace of its own, where the container's root is mounted at a place that it can begin from.  Nothing of that
is left when it ends, however it ends.
"""

from __future__ import annotations

from errno import EEXIST

from pyoci.kernel import flags as k
from pyoci.plan.cgroups import plan_cgroups
from pyoci.plan.container import ContainerPlan, root_path
from pyoci.plan.devices import STATX_RDEV, STATX_SIZE
from pyoci.plan.entry import default_signals, every_processor, null_again, own_keyring
from pyoci.plan.external import RESTORE, ROOT, begin, external_ops, finish, yard
from pyoci.plan.mounts import ATTR_SIZE, move_op, setattr_op, source_path
from pyoci.plan.ops import Address, Buffer, Op, Ref, Struct, Vector
from pyoci.plan.paths import EXACT, HANDLE, close, openat2, place, to_bytes
from pyoci.plan.tuning import io_priority, of_container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.host import Host
    from pyoci.plan.cgroups import CgroupPlan
    from pyoci.plan.container import PlanOptions
    from pyoci.plan.external import External
    from pyoci.spec.types import Spec

# CRIU's descriptors; behind them are those of namespaces by path
FDS = {"control": 3, "rpc": 4, "in": 5, "out": 6, "err": 7, "network": 8, "pid": 9}
STREAMS = ("in", "out", "err")
ENVIRONMENT = (b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
KILL = 9


def cgroups_of(spec: Spec, host: Host, options: PlanOptions) -> CgroupPlan:
    """As for create."""
    rootless = host.euid != 0 if options.rootless is None else options.rootless
    return plan_cgroups(spec, host, options.id, rootless, options.cgroup_manager)


def plan_restore(  # noqa: PLR0913 - the inputs are these
    spec: Spec,
    host: Host,
    options: PlanOptions,
    cgroups: CgroupPlan,
    outside: list[External],
    program: str,
    folder: str,
    work: str,
    given: Sequence[str],
    no_new_privileges: bool,
) -> ContainerPlan:
    """Ops that start CRIU's `program` in the directory `work`, with what is `outside` of the container and its root;
    `folder` is empty and ours, `given` names those of `FDS` that CRIU gets."""
    last = max(FDS.values())
    ops: list[Op] = list(cgroups.create)
    rdt: list[Op] = []
    if spec.linux.intel_rdt is not None:
        from pyoci.plan import intel_rdt

        resctrl = intel_rdt.groups(spec.linux.intel_rdt, host, options.id)
        ops += intel_rdt.make(spec.linux.intel_rdt, resctrl)
        rdt = intel_rdt.enter(resctrl)
    ops.append(Op("close_range", (last + 1, k.UINT_MAX, 0), RESTORE))
    ops += [
        Op("close_range", (number, number, 0), RESTORE)
        for name, number in FDS.items()
        if name != "control" and name not in given
    ]
    ops.append(Op("close_range", (FDS["control"], FDS["control"], k.CLOSE_RANGE_CLOEXEC), RESTORE))
    ops += default_signals(RESTORE)
    ops += _own_nulls(host)
    ops += cgroups.before_clone
    arguments = Struct("clone_args", flags=k.CLONE_PARENT | k.CLONE_NEWNS)
    if cgroups.clone_into is not None:
        arguments.fields["flags"] = k.CLONE_PARENT | k.CLONE_NEWNS | k.CLONE_INTO_CGROUP
        arguments.fields["cgroup"] = Ref("cgroup")
    ops.append(Op("clone3", (arguments, 88), RESTORE))
    ops += rdt
    # whatever CRIU does shall end with us, who undo it
    ops.append(Op("prctl", (k.PR_SET_PDEATHSIG, KILL, 0, 0, 0), RESTORE))
    ops += cgroups.enter
    ops += _inherited(spec)
    ops.append(Op("setsid", (), RESTORE))
    slave = Struct("mount_attr", propagation=k.MS_SLAVE)
    ops.append(Op("mount_setattr", (k.AT_FDCWD, b"/", k.AT_RECURSIVE, slave, ATTR_SIZE), RESTORE))
    ops += begin(folder)
    ops += external_ops(outside)
    if "" in cgroups.paths:
        ops += yard(host.cgroup_mounts[""])
    ops += _root(spec, host, options)
    # CRIU mounts things below its working directory, so that has to be one of its mount namespace
    ops.append(Op("openat", (k.AT_FDCWD, to_bytes(work), HANDLE | k.O_DIRECTORY), RESTORE, "work"))
    ops.append(Op("fchdir", (Ref("work"),), RESTORE))
    ops.append(close("work", RESTORE))
    ops += finish()
    if no_new_privileges:
        # Everything that CRIU makes inherits it, whatever the images say: only CRIU since 3.19 writes it there and
        # sets it again.
        ops.append(Op("prctl", (k.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "/process/noNewPrivileges"))
    argv = [program.encode(), b"swrk", str(FDS["rpc"]).encode()]
    ops.append(Op("execve", (program.encode(), Vector(argv), Vector(list(ENVIRONMENT))), RESTORE))
    return ContainerPlan(ops, FDS, cgroups)


def _inherited(spec: Spec) -> list[Op]:
    """What is in no image, and the container's processes therefore have from CRIU's: config.json's, nothing of our
    caller's."""
    ops = [every_processor(RESTORE), own_keyring(RESTORE)]
    if spec.process is not None:
        ops += io_priority(spec.process)
    return ops + of_container(spec.linux)


def _own_nulls(host: Host) -> list[Op]:
    """As create has it of its caller's /dev/null (`pyoci.plan.entry`); which streams these are is seen here, because
    the images decide which of the caller's CRIU can use."""
    ops: list[Op] = []
    for name in STREAMS:
        seen = Buffer(f"stat_{name}", STATX_SIZE)
        again = [Op("dup3", (Ref("stream"), FDS[name], 0), RESTORE)]
        null = Address(seen.name, STATX_RDEV), 0xFFFFFFFFFFFFFFFF, 1 | 3 << 32, EEXIST
        ops += [
            Op("statx", (FDS[name], b"", k.AT_EMPTY_PATH, k.STATX_BASIC_STATS, seen), RESTORE),
            Op("expect", null, RESTORE, tolerate=(EEXIST,), then=again),
        ]
    return null_again(host, ops, RESTORE)


def _root(spec: Spec, host: Host, options: PlanOptions) -> list[Op]:
    """The root where CRIU wants it, with a place for each mount: the images may be from another machine."""
    path = to_bytes(root_path(spec, options.bundle))
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_RECURSIVE
    ops = [
        Op("open_tree", (k.AT_FDCWD, path, flags), "/root/path", "tree"),
        openat2("outside", ROOT.encode(), HANDLE, EXACT, "/root/path", "target"),
        move_op("tree", "target", "/root/path"),
        close("target", "/root/path"),
        close("tree", "/root/path"),
        openat2("outside", ROOT.encode(), HANDLE, EXACT, "/root/path", "rootfs"),
    ]
    mounted: list[str] = []
    for index, mount in enumerate(spec.mounts):
        destination = mount.destination.rstrip("/") or "/"
        # what is in a file system of the container's own comes with that
        if destination != "/" and not any(destination.startswith(above + "/") for above in mounted):
            origin = f"/mounts/{index}/destination"
            kind = host.source_types.get(source_path(mount, options.bundle), "dir")
            bind = mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options
            ops += place(destination, "file" if bind and kind == "file" else "dir", origin, "place")
            ops.append(close("place", origin))
        mounted.append(destination)
    if spec.root is not None and spec.root.readonly:
        # CRIU before 4.2 leaves the root as it finds it
        ops.append(setattr_op("rootfs", k.AT_EMPTY_PATH, "/root/readonly", k.MOUNT_ATTR_RDONLY))
    ops.append(close("rootfs", "/root/path"))
    return ops
