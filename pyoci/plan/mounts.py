"""The container's mounts, by descriptor from source to target (config.md#mounts).

A new file system is fsopen -> fsconfig -> fsmount, a bind is open_tree; both are a detached tree until all their
attributes are set, and move_mount then puts the finished tree on a handle.  No window, no path named twice.
"""

from __future__ import annotations

from errno import EINVAL, ENOENT

from pyoci.kernel import flags as k
from pyoci.plan.entry import read_only
from pyoci.plan.ops import Op, Ref, Struct
from pyoci.plan.options import MountOptions
from pyoci.plan.paths import EXACT, HANDLE, SCOPED, close, openat2, place, relative, to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.host import Host
    from pyoci.spec.types import Mount, Spec

TREE = k.AT_EMPTY_PATH | k.AT_RECURSIVE
MOVE = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
ATTR_SIZE = 32
LONG = 63  # characters of at most four bytes that are surely few enough for fsconfig(2)
# File systems whose files get linux.mountLabel; those of the kernel's own have labels by policy (mount(8), "context").
LABELLED = ("tmpfs", "devpts", "overlay")


def setattr_op(name: str, flags: int, origin: str, set_: int = 0, clear: int = 0, propagation: int = 0) -> Op:
    """`mount_setattr(@name, "", flags, {set, clear, propagation})`."""
    attr = Struct("mount_attr", attr_set=set_, attr_clr=clear, propagation=propagation)
    return Op("mount_setattr", (Ref(name), b"", flags, attr, ATTR_SIZE), origin)


def move_op(source: str, target: str, origin: str, tolerate: tuple[int, ...] = ()) -> Op:
    """Attach the detached tree `@source` at the handle `@target`."""
    return Op("move_mount", (Ref(source), b"", Ref(target), b"", MOVE), origin, tolerate=tolerate)


class MountPlan:
    """`sources` open what lives outside (before the clone when privileged, after it when not) and is not opened at its
    turn; `ops` build; `late` close doors.  `maps` names the user namespaces that id-mapped mounts have their maps from;
    `before` makes them.
    """

    __slots__ = ("before", "late", "maps", "ops", "sources")

    def __init__(self) -> None:
        self.before: list[Op] = []
        self.maps: dict[tuple[bytes, bytes], str] = {}
        self.sources: list[Op] = []
        self.ops: list[Op] = []
        self.late: list[Op] = []


def source_path(mount: Mount, bundle: str) -> str:
    """A bind's source: relative ones are relative to the bundle (config.md#mounts)."""
    return mount.source if mount.source.startswith("/") else f"{bundle}/{mount.source}"


def plan_mounts(
    spec: Spec, host: Host, bundle: str, cgroup_paths: dict[str, str], at_turn: bool = False
) -> MountPlan:
    """Every entry of /mounts in order.

    `at_turn`: the host's files are there at their own paths while `ops` are performed, and the sources of bind mounts
    are cloned then rather than beforehand.  A clone has its number from then, and since Linux 6.8 that is its place in
    mountinfo: they are listed as /mounts has them.  Not for what a symbolic link leads to, which may not be in this
    mount namespace, and not for "/", which then has the new root on it.
    """
    plan = MountPlan()
    # without SELinux a label is nobody's business: engines pass what they have
    label = spec.linux.mount_label if "selinux" in host.security_modules else ""
    shared_root = spec.linux.rootfs_propagation in ("shared", "rshared")
    user_namespace = any(entry.type == "user" for entry in spec.linux.namespaces)
    for index, mount in enumerate(spec.mounts):
        origin = f"/mounts/{index}"
        options = MountOptions(mount.options)
        path = host.made_at.get(mount.destination, mount.destination)
        if options.remount or not (mount.type or options.bind):
            # without a type there is nothing to mount: a change of propagation, as mount(8) takes it
            _remount(plan, mount, options, origin)
        elif options.bind:
            source = source_path(mount, bundle)
            if user_namespace and (source + "/").startswith("/sys/") and options.recursive:
                # What of cgroups is delegated to the user is mounted below, and its root's to write to.
                on, off = options.tree_attr
                options.tree_attr = (on | (options.attr[0] & k.MOUNT_ATTR_RDONLY & ~off), off)
            now = at_turn and source != "/" and source in host.direct_sources
            clone = plan.ops if now else plan.sources
            clone.append(_clone(index, source, options))
            if options.idmap or mount.uid_mappings:
                # where we have rights over the file system that it is of
                clone.append(_idmap(plan, index, f"source{index}", mount, options, spec))
            _bind(plan, index, source, path, options, host, shared_root)
        elif mount.type == "cgroup" and host.cgroup_mode != "v2":
            _cgroup_v1(plan, index, mount, options, cgroup_paths)
        elif mount.type in ("cgroup", "cgroup2"):
            _cgroup_v2(plan, index, mount, options, cgroup_paths, spec, host)
        else:
            copied = host.copied.get(mount.destination) if options.copy_up else None
            mode = copied[0][1] if copied else None
            mode = f"{mode & 0o7777:o}" if isinstance(mode, int) else host.tmpfs_modes.get(mount.destination)
            _filesystem(plan, index, mount.type, mount, options, spec, mode, label, path)
            if options.copy_up and mount.type == "tmpfs":
                _copy_up(plan, index, mount, host, spec)
    return plan


def _copy_up(plan: MountPlan, index: int, mount: Mount, host: Host, spec: Spec) -> None:
    """The tmpfs that `_filesystem` has planned is filled before it is put in its place."""
    from pyoci.plan.copyup import copy_up

    entries = host.copied.get(mount.destination, [])
    mapped = any(entry.type == "user" for entry in spec.linux.namespaces)
    uids, gids = (spec.linux.uid_mappings, spec.linux.gid_mappings) if mapped else ((), ())
    made = next(number for number in range(len(plan.ops) - 1, -1, -1) if plan.ops[number].call == "fsmount")
    tree = plan.ops[made].result
    assert tree is not None
    # behind fsmount and the close of its context
    plan.ops[made + 2 : made + 2] = copy_up(tree, mount.destination, entries, f"/mounts/{index}/options", uids, gids)


def _idmap(plan: MountPlan, index: int, tree: str, mount: Mount, options: MountOptions, spec: Spec) -> Op:
    """Give the detached `@tree` its id map; the user namespace that has it is made once for equal maps."""
    from pyoci.plan import idmap

    uids, gids, origin = idmap.maps_of(mount, f"/mounts/{index}", spec.linux)
    user = "ns_user"  # of the one that the container joins
    if uids:
        user = plan.maps.get((uids, gids), "")
        if not user:
            user = plan.maps[uids, gids] = f"idmap{len(plan.maps)}"
            plan.before.append(idmap.make_op(user, uids, gids, origin))
    return idmap.apply_op(tree, user, options.idmap == "ridmap", origin)


def _finish(plan: MountPlan, tree: str, mount_path: str, kind: str, origin: str, resolve: int = SCOPED) -> None:
    plan.ops += place(mount_path, kind, origin, "target", resolve)
    plan.ops.append(move_op(tree, "target", origin))
    plan.ops.append(close("target", origin))


def _attributes(plan: MountPlan, tree: str, options: MountOptions, origin: str, base: int) -> None:
    """Set what the options ask of an existing tree; `base` is the propagation the whole tree gets first (MS_*, 0
    keeps it)."""
    whole = options.tree_propagation or base
    on, off = options.tree_attr
    if whole or on or off:
        plan.ops.append(setattr_op(tree, TREE, origin, on, off, whole))
    on, off = options.attr
    if on or off or options.propagation:
        plan.ops.append(setattr_op(tree, k.AT_EMPTY_PATH, origin, on, off, options.propagation))


def _clone(index: int, source: str, options: MountOptions) -> Op:
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | (k.AT_RECURSIVE if options.recursive else 0)
    hint = f"the source {source} must be there on the host"
    return Op("open_tree", (k.AT_FDCWD, to_bytes(source), flags), f"/mounts/{index}", f"source{index}", hint=hint)


def _bind(
    plan: MountPlan,
    index: int,
    source: str,
    destination: str,
    options: MountOptions,
    host: Host,
    shared_root: bool,
) -> None:
    origin = f"/mounts/{index}"
    tree = f"source{index}"
    # A clone of a shared mount is its peer: what the container mounts would appear on the host.
    _attributes(plan, tree, options, origin, 0 if shared_root else k.MS_SLAVE)
    kind = "dir" if host.source_types.get(source, "dir") == "dir" else "file"
    _finish(plan, tree, destination, kind, origin)
    plan.ops.append(close(tree, origin))


def _filesystem(
    plan: MountPlan,
    index: int,
    type_: str,
    mount: Mount,
    options: MountOptions,
    spec: Spec,
    mode: str | None = None,
    label: str = "",
    path: str = "",
) -> None:
    origin = f"/mounts/{index}"
    ops = plan.ops
    # options with a value that fsconfig(2) does not take
    if any(value and len(value) > LONG for _, value in options.data):
        from pyoci.plan import long_options

        if long_options.needed(options.data):
            asked = label if type_ in LABELLED else ""
            ops += long_options.mount(type_, mount.source or type_, mount.destination, options, asked, origin)
            propagation = options.propagation or options.tree_propagation
            if propagation:
                ops.append(setattr_op("target", k.AT_EMPTY_PATH, origin, propagation=propagation))
            if options.idmap or mount.uid_mappings:
                ops.append(_idmap(plan, index, "target", mount, options, spec))
            ops.append(close("target", origin))
            return
    ops.append(
        Op(
            "fsopen",
            (type_.encode(), k.FSOPEN_CLOEXEC),
            f"{origin}/type",
            "fs",
            hint="the kernel must know this file system type",
        )
    )
    source = mount.source or type_
    asked = f"{origin}/source" if mount.source else origin
    ops.append(_fsconfig(k.FSCONFIG_SET_STRING, b"source", source.encode(), asked))
    # a new file system is one mount: what is said of its whole tree is said of it
    tree_on, tree_off = options.tree_attr
    on = (options.attr[0] & ~tree_off) | tree_on
    late_readonly = on & k.MOUNT_ATTR_RDONLY and type_ == "tmpfs"
    if late_readonly:
        on &= ~k.MOUNT_ATTR_RDONLY
    elif on & k.MOUNT_ATTR_RDONLY:
        ops.append(_fsconfig(k.FSCONFIG_SET_FLAG, b"ro", 0, f"{origin}/options"))
    for flag in options.flags:
        ops.append(_fsconfig(k.FSCONFIG_SET_FLAG, flag.encode(), 0, f"{origin}/options"))
    ops += [_parameter(name, value, f"{origin}/options") for name, value in options.data]
    if label and type_ in LABELLED and not any(name in ("context", "rootcontext") for name, _ in options.data):
        ops.append(_fsconfig(k.FSCONFIG_SET_STRING, b"context", label.encode(), "/linux/mountLabel"))
    if mode is not None and type_ == "tmpfs" and not any(name == "mode" for name, _ in options.data):
        # as the directory that it covers
        ops.append(_fsconfig(k.FSCONFIG_SET_STRING, b"mode", mode.encode(), f"{origin}/destination"))
    ops.append(_fsconfig(k.FSCONFIG_CMD_CREATE, 0, 0, origin))
    tree = f"mount{index}" if late_readonly else "tree"
    ops.append(Op("fsmount", (Ref("fs"), k.FSMOUNT_CLOEXEC, on), origin, tree))
    ops.append(close("fs", origin))
    if label and type_ == "mqueue":
        from pyoci.plan.labels import label_of_mqueue

        ops += label_of_mqueue(tree, label)
    propagation = options.propagation or options.tree_propagation
    if propagation:
        ops.append(setattr_op(tree, k.AT_EMPTY_PATH, origin, propagation=propagation))
    if options.idmap or mount.uid_mappings:
        ops.append(_idmap(plan, index, tree, mount, options, spec))
    # procfs and sysfs only on real directories: a symlink there would put them in somebody else's hands
    # (CVE-2019-19921)
    _finish(plan, tree, path or mount.destination, "dir", origin, EXACT if type_ in ("proc", "sysfs") else SCOPED)
    if late_readonly:
        # what later mounts and devices need in it must be made first
        plan.late.append(setattr_op(tree, k.AT_EMPTY_PATH, origin, k.MOUNT_ATTR_RDONLY))
    else:
        ops.append(close(tree, origin))


def _fsconfig(command: int, key: bytes | int, value: bytes | int, origin: str) -> Op:
    return Op("fsconfig", (Ref("fs"), command, key, value, 0), origin)


def _parameter(name: str, value: str | None, origin: str) -> Op:
    """An option that is the file system's own.  Quotes are for who reads a list, as mount(2) does."""
    if value is None:
        return _fsconfig(k.FSCONFIG_SET_FLAG, name.encode(), 0, origin)
    if name.endswith("context") and len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return _fsconfig(k.FSCONFIG_SET_STRING, name.encode(), value.encode(), origin)


def _remount(plan: MountPlan, mount: Mount, options: MountOptions, origin: str) -> None:
    """Change what is mounted at the destination: its mount (`bind`), or its superblock as well."""
    path = relative(mount.destination)
    plan.ops.append(openat2("rootfs", path, HANDLE, SCOPED, origin, "target"))
    if options.remount and not options.bind:
        plan.ops.append(Op("fspick", (Ref("target"), b"", k.FSPICK_CLOEXEC | k.FSPICK_EMPTY_PATH), origin, "fs"))
        on, off = options.attr
        if on & k.MOUNT_ATTR_RDONLY:
            plan.ops.append(_fsconfig(k.FSCONFIG_SET_FLAG, b"ro", 0, f"{origin}/options"))
        if off & k.MOUNT_ATTR_RDONLY:
            plan.ops.append(_fsconfig(k.FSCONFIG_SET_FLAG, b"rw", 0, f"{origin}/options"))
        for flag in options.flags:
            plan.ops.append(_fsconfig(k.FSCONFIG_SET_FLAG, flag.encode(), 0, f"{origin}/options"))
        plan.ops += [_parameter(name, value, f"{origin}/options") for name, value in options.data]
        plan.ops.append(_fsconfig(k.FSCONFIG_CMD_RECONFIGURE, 0, 0, origin))
        plan.ops.append(close("fs", origin))
    _attributes(plan, "target", options, origin, 0)
    plan.ops.append(close("target", origin))


def _cgroup_v2(
    plan: MountPlan,
    index: int,
    mount: Mount,
    options: MountOptions,
    cgroup_paths: dict[str, str],
    spec: Spec,
    host: Host,
) -> None:
    """A new cgroup2 instance in a new cgroup namespace; without one, the container's own cgroup bound read-only or as
    asked.  Without a cgroup of its own, all of them, read-only if others of the same user's may be among them."""
    if any(namespace.type == "cgroup" for namespace in spec.linux.namespaces) or "" not in host.cgroup_mounts:
        # The file system's own options are those of every cgroup2 mount of the machine: none is passed on.
        options.data = []
        _filesystem(plan, index, "cgroup2", mount, options, spec)
        return
    origin = f"/mounts/{index}"
    tree = f"source{index}"
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC
    path = cgroup_paths.get("") or host.cgroup_mounts[""]
    if "" not in cgroup_paths and (host.euid != 0 or not host.initial_user_namespace):
        options.attr = (options.attr[0] | k.MOUNT_ATTR_RDONLY, options.attr[1])
    plan.sources.append(Op("open_tree", (k.AT_FDCWD, path.encode(), flags), origin, tree))
    _attributes(plan, tree, options, origin, k.MS_SLAVE)
    _finish(plan, tree, mount.destination, "dir", origin)
    plan.ops.append(close(tree, origin))


def _cgroup_v1(plan: MountPlan, index: int, mount: Mount, options: MountOptions, cgroup_paths: dict[str, str]) -> None:
    """A tmpfs with one directory a hierarchy, each the container's own cgroup (config-linux.md#control-groups)."""
    origin = f"/mounts/{index}"
    ops = plan.ops
    on, off = options.attr
    ops.append(Op("fsopen", (b"tmpfs", k.FSOPEN_CLOEXEC), origin, "fs"))
    ops.append(_fsconfig(k.FSCONFIG_SET_STRING, b"source", b"tmpfs", origin))
    ops.append(_fsconfig(k.FSCONFIG_SET_STRING, b"mode", b"755", origin))
    ops.append(_fsconfig(k.FSCONFIG_CMD_CREATE, 0, 0, origin))
    tree = f"mount{index}"
    ops.append(Op("fsmount", (Ref("fs"), k.FSMOUNT_CLOEXEC, on & ~k.MOUNT_ATTR_RDONLY), origin, tree))
    ops.append(close("fs", origin))
    _finish(plan, tree, mount.destination, "dir", origin)
    directories: dict[str, list[str]] = {}
    for controller, path in cgroup_paths.items():
        directories.setdefault(path, []).append(controller)
    for number, (path, controllers) in enumerate(directories.items()):
        names = [name.removeprefix("name=") or "unified" for name in controllers]
        main = ",".join(names)
        source = f"cgroup{index}_{number}"
        flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC
        plan.sources.append(Op("open_tree", (k.AT_FDCWD, path.encode(), flags), origin, source))
        ops.append(setattr_op(source, k.AT_EMPTY_PATH, origin, on, off, k.MS_SLAVE))
        ops.append(Op("mkdirat", (Ref(tree), main.encode(), 0o755), origin))
        ops.append(openat2(tree, main.encode(), HANDLE, EXACT, origin, "target"))
        ops.append(move_op(source, "target", origin))
        ops.append(close("target", origin))
        ops.append(close(source, origin))
        if len(names) > 1:
            ops += [Op("symlinkat", (main.encode(), Ref(tree), name.encode()), origin) for name in names]
    if on & k.MOUNT_ATTR_RDONLY:
        plan.late.append(setattr_op(tree, k.AT_EMPTY_PATH, origin, k.MOUNT_ATTR_RDONLY))
    else:
        ops.append(close(tree, origin))


def nothing(origin: str) -> list[Op]:
    """`@tree`: an empty read-only directory, not mounted yet."""
    attributes = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
    return [
        Op("fsopen", (b"tmpfs", k.FSOPEN_CLOEXEC), origin, "fs"),
        _fsconfig(k.FSCONFIG_SET_STRING, b"size", b"4096", origin),
        _fsconfig(k.FSCONFIG_SET_FLAG, b"ro", 0, origin),
        _fsconfig(k.FSCONFIG_CMD_CREATE, 0, 0, origin),
        Op("fsmount", (Ref("fs"), k.FSMOUNT_CLOEXEC, attributes), origin, "tree"),
        close("fs", origin),
    ]


def masked(paths: tuple[str, ...], own: bool) -> list[Op]:
    """Hide each path: a file behind /dev/null, a directory behind an empty read-only tmpfs
    (config-linux.md#masked-paths).

    `@null` is a handle of a /dev/null, checked to be that device: the container's `own`, or the host's, whose mode and
    owner are not the container's to change.
    """
    ops: list[Op] = []
    seen: set[str] = set()
    for index, path in enumerate(paths):
        if path in seen:
            continue
        seen.add(path)
        origin = f"/linux/maskedPaths/{index}"
        directory = [*nothing(origin), move_op("tree", "target", origin)]
        flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH
        hide = [
            Op("open_tree", (Ref("null"), b"", flags), origin, "tree"),
            *([] if own else [read_only("tree", origin)]),
            # EINVAL: a file cannot be mounted on a directory
            Op(
                "move_mount",
                (Ref("tree"), b"", Ref("target"), b"", MOVE),
                origin,
                tolerate=(EINVAL,),
                otherwise=[close("tree", origin), *directory],
            ),
            close("tree", origin),
            close("target", origin),
        ]
        ops.append(openat2("rootfs", relative(path), HANDLE, SCOPED, origin, "target", tolerate=(ENOENT,), then=hide))
    return ops


def readonly(paths: tuple[str, ...]) -> list[Op]:
    """Make each path read-only, with all that is mounted below it (config-linux.md#readonly-paths)."""
    ops: list[Op] = []
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH | k.AT_RECURSIVE
    for index, path in enumerate(paths):
        origin = f"/linux/readonlyPaths/{index}"
        seal = [
            Op("open_tree", (Ref("target"), b"", flags), origin, "tree"),
            setattr_op("tree", TREE, origin, k.MOUNT_ATTR_RDONLY),
            move_op("tree", "target", origin),
            close("tree", origin),
            close("target", origin),
        ]
        ops.append(openat2("rootfs", relative(path), HANDLE, SCOPED, origin, "target", tolerate=(ENOENT,), then=seal))
    return ops
