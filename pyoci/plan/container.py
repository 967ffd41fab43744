"""The whole plan of `create` and `run`: the order of everything, stated once.

runtime     cgroups are made, limits written
init, in the runtime's namespaces      sources opened, namespaces joined, clone3
init, in the container's      ids mapped and cgroup entered by the runtime; root, mounts, devices, terminal
runtime     prestart, createRuntime and createContainer hooks
init        masks, pivot_root, names, sysctl, privileges dropped
runtime     the container is recorded as created
init        waits for start; startContainer hooks by the runtime; seccomp; execve
"""

from __future__ import annotations

from errno import EACCES, EINVAL

from pyoci.jsontext import escape
from pyoci.kernel import flags as k
from pyoci.kernel.seccomp import filter_flags, notifies
from pyoci.plan import devices, entry, mounts
from pyoci.plan import namespaces as ns
from pyoci.plan.cgroups import plan_cgroups
from pyoci.plan.entry import LIFECYCLE, NAME, default_signals, every_processor, granted_capabilities, own_keyring, shed
from pyoci.plan.ops import RUNTIME, Buffer, Op, Ref, Struct
from pyoci.plan.paths import HANDLE, close, make_directories, openat2, to_bytes
from pyoci.plan.process import plan_process
from pyoci.reports import TERMINAL_MESSAGE
from pyoci.spec.linux_rules import sysctl_path
from pyoci.spec.types import keeps_groups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyoci.host import Host
    from pyoci.plan.cgroups import CgroupPlan
    from pyoci.plan.ops import Address
    from pyoci.spec.types import Spec

# the launcher's own descriptors, behind the standard streams and those that the caller hands through
CONTROL, LISTEN, CONSOLE = 0, 1, 2
MKNOD = 1 << 27


class PlanOptions:
    """What the command line decides.

    bundle        absolute path of the bundle; relative sources are relative to it
    listen        the container waits for `start` on a socket (create) or goes on at once (run)
    listen_fds, listen_names  how many of them, the first, are a service manager's, and $LISTEN_FDNAMES
    notify        directory on the host that is to be the container's /run/notify, "" for none
    console       None, or where the terminal's master goes: "console" (a socket of the caller's) or "control" (to us)
    preserve_fds  how many descriptors after the standard streams the container inherits
    cgroup_manager  "cgroupfs", "systemd" or "disabled"
    rootless      whether we do without root's rights, where the caller knows better than our user id
    """

    __slots__ = (
        "bundle", "cgroup_manager", "console", "id", "listen", "listen_fds", "listen_names", "no_new_keyring",
        "no_pivot", "notify", "preserve_fds", "rootless",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913 - one a flag
        self,
        id: str,
        bundle: str,
        listen: bool = True,
        console: str | None = None,
        preserve_fds: int = 0,
        no_pivot: bool = False,
        no_new_keyring: bool = False,
        cgroup_manager: str = "cgroupfs",
        rootless: bool | None = None,
        listen_fds: int = 0,
        listen_names: str = "",
        notify: str = "",
    ) -> None:
        self.id = id
        self.bundle = bundle
        self.listen = listen
        self.console = console
        self.preserve_fds = preserve_fds
        self.no_pivot = no_pivot
        self.no_new_keyring = no_new_keyring
        self.cgroup_manager = cgroup_manager
        self.rootless = rootless
        self.listen_fds = listen_fds
        self.listen_names = listen_names
        self.notify = notify


class ContainerPlan:
    """`ops` in order; `fds` the descriptors that init is started with, by name; `cgroups` where the container lives."""

    __slots__ = ("cgroups", "fds", "ops")

    def __init__(self, ops: list[Op], fds: dict[str, int], cgroups: CgroupPlan) -> None:
        self.ops = ops
        self.fds = fds
        self.cgroups = cgroups


def descriptors(preserve_fds: int, more: Iterable[str] = ()) -> dict[str, int]:
    """Numbers of the launcher's descriptors in init: behind the preserved ones, so that one close_range ends all
    others; `more` are behind @console, and end with it."""
    first = 3 + preserve_fds
    found = {"control": first + CONTROL, "listen": first + LISTEN, "console": first + CONSOLE}
    for name in more:
        found[name] = first + len(found)
    return found


def root_path(spec: Spec, bundle: str) -> str:
    """/root/path, absolute."""
    path = spec.root.path if spec.root else ""
    return path if path.startswith("/") else f"{bundle}/{path}"


def plan_container(spec: Spec, host: Host, options: PlanOptions) -> ContainerPlan:
    """The plan for `spec` on `host`; pure: equal inputs give an equal plan."""
    names = ns.Namespaces(spec.linux)
    # root of a user namespace, as rootless podman makes one before it calls us, has no more rights than its user
    unprivileged = host.euid != 0 or not host.initial_user_namespace
    rootless = unprivileged if options.rootless is None else options.rootless
    cgroups = plan_cgroups(spec, host, options.id, rootless, options.cgroup_manager)
    process = spec.process
    privileged = bool(host.capabilities & entry.SYS_ADMIN)
    by_bind = names.has("user") or not host.initial_user_namespace or not host.capabilities & MKNOD

    at_turn = _opens_at_turn(spec, names, privileged, options)
    mount_plan = mounts.plan_mounts(spec, host, options.bundle, cgroups.paths, at_turn)
    fds = descriptors(options.preserve_fds, mount_plan.maps.values())
    device_plan = devices.plan_devices(spec, by_bind)
    own_mounts = names.has("mount")
    attached = False
    if not own_mounts:
        from pyoci.plan.root_mount import mounts_in_root

        attached = mounts_in_root(spec)
    root = _open_root(spec, options, own_mounts, attached)
    sources = [*root, *mount_plan.sources, *device_plan.sources]
    if options.notify:
        from pyoci.plan import readiness

        sources.append(readiness.source(options.notify))

    ops: list[Op] = [*mount_plan.before, *cgroups.create]
    if spec.linux.net_devices:
        from pyoci.plan import net_devices

        ops[:0] = net_devices.find(spec.linux.net_devices)
    if spec.linux.intel_rdt is not None:
        from pyoci.plan import intel_rdt

        resctrl = intel_rdt.groups(spec.linux.intel_rdt, host, options.id)
        ops += intel_rdt.make(spec.linux.intel_rdt, resctrl)
    # -- in the runtime's namespaces
    ops += shed(options.preserve_fds, more=len(mount_plan.maps))
    if not options.listen:
        # the caller's, if it has one by that number; until execve it would be a way for args[0] (CVE-2024-21626)
        ops.append(Op("close_range", (fds["listen"], fds["listen"], 0), LIFECYCLE))
    ops += default_signals()
    ops.append(Op("prctl", (k.PR_SET_NAME, NAME, 0, 0, 0), LIFECYCLE))
    if process is not None and process.oom_score_adj is not None:
        # inherited by the container; before we stop being dumpable, which would make the file root's
        ops += write_file(k.AT_FDCWD, b"/proc/self/oom_score_adj", str(process.oom_score_adj), "/process/oomScoreAdj")
    if process is not None and host.limits:
        from pyoci.plan.entry import raised_limits

        ops += raised_limits(process, host)
    if process is not None and (process.apparmor_profile or process.selinux_label):
        from pyoci.plan.labels import labels

        ops += labels(process, host)
    # Before we are anywhere that hostile processes are.  Only where we make a user namespace without privileges it is
    # later: while we are not dumpable, its maps are not ours to write.
    hidden = privileged or "user" not in names.new
    if hidden:
        ops.append(Op("prctl", (k.PR_SET_DUMPABLE, 0, 0, 0, 0), LIFECYCLE))
    ops += entry.own_null(host, process)
    ops += cgroups.before_clone
    ops += ns.open_joined(names)
    if privileged:
        ops += sources
    ops += ns.join(names, privileged and host.initial_user_namespace)
    ops.append(ns.clone(names, cgroups.clone_into is not None))
    # -- the container's first process
    ops += ns.id_maps(spec.linux, host, names)
    if spec.linux.intel_rdt is not None:
        ops += intel_rdt.enter(resctrl)
    if not hidden:
        ops += ns.new_time(spec, names)
    ops += cgroups.enter
    ops.append(every_processor("config-linux.md#cpu"))
    ops += ns.become_root(names)
    if not hidden:
        ops.append(Op("prctl", (k.PR_SET_DUMPABLE, 0, 0, 0, 0), LIFECYCLE))
    ops.append(Op("setsid", (), LIFECYCLE))
    ops.append(Op("umask", (0,), LIFECYCLE))
    if not options.no_new_keyring:
        ops.append(own_keyring(LIFECYCLE))
    if spec.linux.sysctl or "time" in names.new or (options.listen_fds and "pid" in names.joined):
        ops += _private_procfs()
    if options.listen_fds:
        from pyoci.plan import listening

        ops += listening.own_pid(names)
    if hidden:
        ops += ns.new_time(spec, names)
    ops += ns.later(names)
    if "network" in names.new:
        ops += ns.loopback()
    if spec.linux.net_devices:
        ops += net_devices.move(spec.linux.net_devices)
    for kind, name in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if name:
            data = name.encode()
            ops.append(Op(f"set{kind}", (data, len(data)), f"/{kind}"))
    ops += _sysctl(spec)
    # -- root and mounts
    if "mount" in names.new:
        # whatever happens to our copy of the host's mounts stays ours
        ops.append(_setattr_root(k.MS_SLAVE, names.pointer("mount")))
    if not privileged:
        ops += sources
    ops += _place_root(spec, options, own_mounts, attached)
    ops += mount_plan.ops
    if options.notify:
        ops += readiness.mount()
    ops += device_plan.ops
    if process is not None and process.terminal:
        receiver = options.console or "control"
        ops += devices.plan_terminal(process, receiver, TERMINAL_MESSAGE if receiver == "control" else b"/dev/ptmx")
        ops += devices.plan_console()
    ops += _hooks(spec)
    if options.no_pivot and "mount" in names.new:
        from pyoci.plan.old_root import withdraw

        ops += withdraw(host.kernel_views)
    ops += _seal_root(spec, mount_plan.late, own_mounts or attached, attached or options.no_pivot)
    ops += _process(spec, host, options, names, process_fds=fds)
    return ContainerPlan(ops, fds, cgroups)


def write_file(directory: int | Ref, path: bytes, text: str, origin: str) -> list[Op]:
    """open, write, close of a kernel file."""
    data = text.encode()
    return [
        Op("openat", (directory, path, k.O_WRONLY | k.O_CLOEXEC), origin, "file"),
        Op("write", (Ref("file"), data, len(data)), origin),
        close("file", origin),
    ]


def _open_root(spec: Spec, options: PlanOptions, own_mounts: bool, attached: bool) -> list[Op]:
    path = to_bytes(root_path(spec, options.bundle))
    if attached:
        from pyoci.plan.root_mount import open_root

        return open_root(path)
    if not own_mounts:
        # no mount namespace, and nothing to mount: the root is where it is
        return [Op("openat", (k.AT_FDCWD, path, HANDLE | k.O_DIRECTORY), "/root/path", "rootfs")]
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_RECURSIVE
    return [Op("open_tree", (k.AT_FDCWD, path, flags), "/root/path", "rootfs")]


def _setattr_root(propagation: int, origin: str) -> Op:
    attr = Struct("mount_attr", propagation=propagation)
    return Op("mount_setattr", (k.AT_FDCWD, b"/", k.AT_RECURSIVE, attr, mounts.ATTR_SIZE), origin)


def _opens_at_turn(spec: Spec, names: ns.Namespaces, privileged: bool, options: PlanOptions) -> bool:
    """Whether sources of bind mounts can be cloned from the container's copy of the host's mounts, the new root being
    over "/" already (`plan_mounts`)."""
    if "mount" not in names.new or (privileged and names.has("user")):
        return False  # those of the runtime are not there, or are not for root of another user namespace
    if spec.linux.rootfs_propagation in ("shared", "rshared"):
        return False  # the clone is to be a peer of the host's mount, and the copies are slaves
    return options.no_pivot or not _has_create_hooks(spec)  # else the root is at /root/path


def _has_create_hooks(spec: Spec) -> bool:
    hooks = spec.hooks
    return bool(hooks.prestart or hooks.create_runtime or hooks.create_container)


def _place_root(spec: Spec, options: PlanOptions, own_mounts: bool, attached: bool) -> list[Op]:
    """Attach the detached root: on top of "/", the one place whose name cannot lie, and the one that pivot_root
    replaces.  Hooks of create may look for the container at /root/path, or mount something there
    (config.md#createcontainer-hooks): for them it is attached at that path, where we can reach it."""
    if not own_mounts:
        from pyoci.plan.root_mount import place_root

        return place_root(spec, to_bytes(root_path(spec, options.bundle))) if attached else []
    asked = spec.linux.rootfs_propagation
    slave = asked in ("", "slave", "rslave")
    on_top = _attach_root(b"/")
    if _has_create_hooks(spec) and not options.no_pivot:
        place = _attach_root(to_bytes(root_path(spec, options.bundle)), tolerate=(EACCES,), otherwise=[on_top])
    else:
        place = on_top
    return [
        mounts.setattr_op(
            "rootfs",
            mounts.TREE,
            "/linux/rootfsPropagation" if asked else "config-linux.md#rootfs-mount-propagation",
            propagation=k.MS_SLAVE if slave else k.MS_PRIVATE,
        ),
        place,
    ]


def _attach_root(place: bytes, tolerate: tuple[int, ...] = (), otherwise: list[Op] | None = None) -> Op:
    return Op(
        "move_mount",
        (Ref("rootfs"), b"", k.AT_FDCWD, place, k.MOVE_MOUNT_F_EMPTY_PATH),
        "/root/path",
        tolerate=tolerate,
        otherwise=otherwise or (),
    )


def _private_procfs() -> list[Op]:
    """`@proc`: a procfs that nobody else can reach or mount over (CVE-2025-52881)."""
    origin = "runtime-linux.md"
    hint = "a procfs can only be mounted where the host's own is fully visible"
    return [
        Op("fsopen", (b"proc", k.FSOPEN_CLOEXEC), origin, "fs"),
        Op("fsconfig", (Ref("fs"), k.FSCONFIG_CMD_CREATE, 0, 0, 0), origin, hint=hint),
        Op("fsmount", (Ref("fs"), k.FSMOUNT_CLOEXEC, 0), origin, "proc", hint=hint),
        close("fs", origin),
    ]


def _sysctl(spec: Spec) -> list[Op]:
    ops: list[Op] = []
    resolve = k.RESOLVE_BENEATH | k.RESOLVE_NO_SYMLINKS | k.RESOLVE_NO_XDEV
    for key, value in spec.linux.sysctl.items():
        path = f"sys/{sysctl_path(key)}".encode()
        origin = f"/linux/sysctl/{escape(key)}"
        data = value.encode()
        ops.append(openat2("proc", path, k.O_WRONLY | k.O_CLOEXEC, resolve, origin, "file"))
        ops += [Op("write", (Ref("file"), data, len(data)), origin), close("file", origin)]
    return ops


def _hooks(spec: Spec) -> list[Op]:
    """The hooks of create, all before pivot_root (config.md#posix-platform-hooks)."""
    ops: list[Op] = []
    for kind, entries in (
        ("prestart", spec.hooks.prestart),
        ("createRuntime", spec.hooks.create_runtime),
        ("createContainer", spec.hooks.create_container),
    ):
        if entries:
            ops.append(Op("hooks", (kind.encode(),), f"/hooks/{kind}", performer=RUNTIME))
    return ops


def _seal_root(spec: Spec, late: list[Op], mounted: bool, no_pivot: bool) -> list[Op]:
    """Masks, read-only paths, the working directory, then the new root takes the place of the old."""
    linux = spec.linux
    ops: list[Op] = []
    if spec.process is not None:
        ops += make_directories(spec.process.cwd, "/process/cwd", "cwd")
    ops += mounts.readonly(linux.readonly_paths)
    if linux.masked_paths:
        own = not devices.binds_dev(spec)
        ops += [*devices.null_source(own), *mounts.masked(linux.masked_paths, own)]
    ops += late
    if spec.root is not None and spec.root.readonly and mounted:
        ops.append(mounts.setattr_op("rootfs", k.AT_EMPTY_PATH, "/root/readonly", k.MOUNT_ATTR_RDONLY))
    ops.append(Op("fchdir", (Ref("rootfs"),), "/root/path"))
    if mounted and not no_pivot:
        ops.append(Op("pivot_root", (b".", b"."), "/root/path", hint="a root on the initramfs needs --no-pivot"))
        ops.append(Op("umount2", (b".", k.MNT_DETACH), "/root/path"))
    else:
        ops.append(Op("chroot", (b".",), "/root/path"))
    ops.append(Op("chdir", (b"/",), "/root/path"))
    final = {
        "shared": (k.MS_SHARED, 0),
        "rshared": (k.MS_SHARED, k.AT_RECURSIVE),
        "unbindable": (k.MS_UNBINDABLE, 0),
        "runbindable": (k.MS_UNBINDABLE, k.AT_RECURSIVE),
    }.get(linux.rootfs_propagation)
    if final is not None and mounted:
        propagation, tree = final
        ops.append(
            mounts.setattr_op("rootfs", k.AT_EMPTY_PATH | tree, "/linux/rootfsPropagation", propagation=propagation)
        )
    return ops


def _more_variables(options: PlanOptions, names: ns.Namespaces) -> Sequence[bytes | Address]:
    """Of the environment, besides those of config.json."""
    found: list[bytes | Address] = []
    if options.listen_fds:
        from pyoci.plan import listening

        found += listening.variables(options.listen_fds, options.listen_names, names)
    if options.notify:
        from pyoci.plan.readiness import VARIABLE

        found.append(VARIABLE)
    return found


def _process(
    spec: Spec, host: Host, options: PlanOptions, names: ns.Namespaces, process_fds: dict[str, int]
) -> list[Op]:
    """The user's process, up to its execve; without one the container waits for a start that must refuse."""
    process = spec.process
    ops: list[Op] = []
    begin: list[Op] = []
    listener: list[Op] = []
    if process is not None:
        if process.terminal:
            ops += devices.adopt_terminal()
        user_namespace = names.has("user")
        seccomp = spec.linux.seccomp
        plan = plan_process(
            process,
            host,
            granted_capabilities(host, user_namespace),
            None if seccomp is None else filter_flags(seccomp.flags, notifies(seccomp)),
            () if process.terminal else host.stdio_pipes,
            not (keeps_groups(spec.annotations) or (user_namespace and ns.denies_setgroups(spec.linux, host))),
            _more_variables(options, names),
        )
        if spec.linux.personality or spec.linux.memory_policy:
            from pyoci.plan.tuning import of_container

            ops += of_container(spec.linux)
        ops += plan.prepare
        begin, listener = plan.begin, plan.listener
    # nothing of the host's is open past this point, whoever reads /proc/PID/fd
    ops.append(Op("close_range", (process_fds["console"], k.UINT_MAX, 0), LIFECYCLE))
    ops += listener
    ops.append(Op("created", (), LIFECYCLE, performer=RUNTIME))
    if options.listen:
        ops.append(Op("accept4", (Ref("listen"), 0, 0, k.SOCK_CLOEXEC), "runtime.md#start", "started"))
        ops.append(Op("dup3", (Ref("started"), Ref("control"), k.O_CLOEXEC), "runtime.md#start"))
        ops.append(close("started", "runtime.md#start"))
    if spec.hooks.start_container:
        ops.append(Op("hooks", (b"startContainer",), "/hooks/startContainer", performer=RUNTIME))
    if process is None:
        ops.append(Op("expect", (Buffer("none", 8), 1, 1, EINVAL), "runtime.md#start", hint="start needs a process"))
    return ops + begin
