"""Where a container's cgroups are, what is written to them, and how its processes get in.

`linux.cgroupsPath` (config-linux.md#cgroups-path):

    absolute    below the mount point of each hierarchy
    relative    the same: one value names one place, wherever the runtime itself was started.  Without root's rights,
                where the top is not ours, below the runtime's own place as for an absent one
    absent      the container's id below the runtime's own cgroup in v1; in v2 beside it, because a v2 cgroup with
                processes cannot give controllers to its children

Each hierarchy that is mounted gets a directory, v2 also where v1 has the controllers (hybrid): it is entered by clone3
itself and makes killing atomic.  Without root's rights and a path it is those in which something is delegated to us;
where nothing is, and no limit asked for, the container stays in our own cgroup.
"""

from __future__ import annotations

from errno import EPERM

from pyoci.errors import ConfigError, Problem
from pyoci.kernel import bpf
from pyoci.plan.cgroup_entry import PATH_CLAUSE, join_ops, open_cgroup
from pyoci.plan.cgroup_limits import RESOURCES, Limits, write_limits
from pyoci.plan.device_rules import Hole, Policy, v1_lines
from pyoci.plan.ops import RUNTIME, Blob, Op, Ref, Struct
from pyoci.plan.paths import parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pyoci.host import Host
    from pyoci.spec.types import Resources, Spec

PATH = "/linux/cgroupsPath"
DEVICES = RESOURCES + "/devices"
DEVICES_CLAUSE = "config-linux.md#default-devices"
OWNERSHIP_CLAUSE = "config-linux.md#cgroup-ownership"
V1 = (
    "devices", "freezer", "memory", "cpu", "cpuacct", "cpuset", "blkio", "pids", "hugetlb", "net_cls", "net_prio",
    "perf_event", "rdma", "misc", "name=systemd",
)  # fmt: skip
# Enabled without being asked for, where that can be done: who watches a container reads its usage.
WATCHED = ("cpu", "io", "memory", "pids")


class CgroupPlan:
    """
    paths         controller ("" for v2) -> absolute directory; recorded in the container's state
    unit          "system NAME" or "user NAME": systemd's unit that these are, "" without systemd
    create        the runtime's ops before anything else: directories, controllers, limits
    before_clone  init's ops: `@cgroup`, the v2 directory, for clone3; the device filter; v1's files
    clone_into    that directory, or None
    enter         how the new process gets into v1, and what can only be written once it is there
    """

    __slots__ = ("before_clone", "clone_into", "create", "enter", "paths", "unit")

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self.unit = ""
        self.create: list[Op] = []
        self.before_clone: list[Op] = []
        self.clone_into: bytes | None = None
        self.enter: list[Op] = []


def plan_cgroups(
    spec: Spec, host: Host, id: str, rootless: bool = False, manager: str = "cgroupfs"
) -> CgroupPlan:
    """The cgroup part of a container's plan; raises ConfigError with all of the configuration that cannot be done."""
    if manager == "systemd":
        from pyoci.plan.systemd import plan_systemd

        return plan_systemd(spec, host, id, rootless)
    plan = CgroupPlan()
    if manager == "disabled":
        _refuse_limits(spec.linux.resources)
        return plan
    written = spec.linux.cgroups_path or ""
    path = _checked(written, id)
    resources = spec.linux.resources
    limits = Limits({}, ())
    zero_pids = version_of(spec.oci_version) >= (1, 3)
    if not rootless or written or host.cgroup_bases or _limited(resources):
        plan.paths = _directories(path, written, host, rootless)
    if resources is not None:
        limits = write_limits(resources, plan.paths, host.cgroup_controllers, zero_pids)
    origin = PATH if written else PATH_CLAUSE
    _make(plan, host, limits, origin)
    if "" in plan.paths:
        directory = plan.paths[""].encode()
        plan.clone_into = directory
        plan.before_clone.append(open_cgroup(directory, origin))
        plan.create += owner_ops(spec, host, plan)
    plan.create += limits.ops
    # Without root's rights, also as root of a user namespace, no device list can be set; nor has the container a device
    # that its user could not open.
    if resources is not None and resources.devices and not rootless and host.initial_user_namespace:
        add_devices(plan, resources, limits)
    _, opens, enter = join_ops(plan.paths, origin)
    plan.before_clone += opens
    plan.enter = enter + limits.late
    if limits.problems:
        raise ConfigError(limits.problems)
    return plan


def plan_update(
    resources: Resources, paths: Mapping[str, str], controllers: Iterable[str], oci_version: str = ""
) -> list[Op]:
    """The runtime's writes that change the limits of a container in `paths`; the device list stays as it is."""
    limits = write_limits(resources, paths, tuple(controllers), not oci_version or version_of(oci_version) >= (1, 3))
    if limits.problems:
        raise ConfigError(limits.problems, "resources")
    return limits.ops + limits.late


def version_of(text: str) -> tuple[int, int]:
    """(major, minor) of an ociVersion."""
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (1, 0)


def _checked(written: str, id: str) -> str:
    """The path below a base, without slashes around it.

    slice:prefix:name is a name like any other: containerd writes it for every pod whose parent ends in .slice, whether
    or not it then asks for --systemd-cgroup, and runc takes it.
    """
    names = parts(written)
    if ".." in names or "\0" in written or "\n" in written:
        raise ConfigError([Problem(PATH, f"{written!r} must not have '..', NUL or a line break in it", PATH_CLAUSE)])
    if written and not names:
        message = f"{written!r} is the top of the hierarchy, which no container may be"
        raise ConfigError([Problem(PATH, message, PATH_CLAUSE)])
    return "/".join(names) or id


def _refuse_limits(resources: Resources | None) -> None:
    """Without cgroups nothing can be limited; the list of devices is what whoever disables them gives up."""
    if resources is not None:
        asked = write_limits(resources, {}, (), zero_pids=False).problems
        message = "cannot be done without cgroups: leave out the limit, or --cgroup-manager disabled"
        if asked:
            raise ConfigError([Problem(problem.pointer, message, problem.clause) for problem in asked])


def _limited(resources: Resources | None) -> bool:
    if resources is None:
        return False
    nowhere = write_limits(resources, {}, (), zero_pids=False)
    return bool(nowhere.problems)


def _directories(path: str, written: str, host: Host, rootless: bool) -> dict[str, str]:
    at_top = bool(written) and (written.startswith("/") or not rootless)
    paths: dict[str, str] = {}
    delegated = host.cgroup_bases if rootless and not at_top else {}
    for controller in (*V1, ""):
        mount = host.cgroup_mounts.get(controller)
        if mount is None:
            continue
        if delegated:
            if controller in delegated:
                paths[controller] = f"{mount.rstrip('/')}{delegated[controller]}/{path}"
            continue
        base = "" if at_top else host.cgroup_self.get(controller, "/").rstrip("/")
        if controller == "":
            base = base.rpartition("/")[0]
        paths[controller] = f"{mount.rstrip('/')}{base}/{path}"
    return paths


def _make(plan: CgroupPlan, host: Host, limits: Limits, origin: str) -> None:
    """Directories; then, for v2, the controllers down to it.

    The container's directory is made before its parents get controllers: while it is there, nobody who cleans up can
    remove them.
    """
    cpuset = plan.paths.get("cpuset")
    for directory in dict.fromkeys(plan.paths.values()):
        call = "mkdir_cpuset" if directory == cpuset else "mkdir_cgroup"
        plan.create.append(Op(call, (directory.encode(),), origin, None, RUNTIME))
    if "" in plan.paths:
        watched = [name for name in WATCHED if name in host.cgroup_controllers and name not in limits.needed]
        plan.create += enable_ops(plan, host, limits, origin, watched)


def enable_ops(plan: CgroupPlan, host: Host, limits: Limits, origin: str, watched: Sequence[str] = ()) -> list[Op]:
    """The v2 controllers that limits need, and those `watched` where that can be done, given down to the container."""
    ops: list[Op] = []
    if "" not in plan.paths or not (limits.needed or watched):
        return ops
    mount = host.cgroup_mounts[""].rstrip("/")
    required = " ".join(limits.needed).encode()
    asked = next(iter(limits.needed.values()), origin)
    parent = mount
    for part in plan.paths[""][len(mount) + 1 :].split("/"):
        args = ((parent or "/").encode(), required, " ".join(watched).encode())
        ops.append(Op("enable_controllers", args, asked, None, RUNTIME))
        parent += "/" + part
    return ops


def owner_ops(spec: Spec, host: Host, plan: CgroupPlan) -> list[Op]:
    """The v2 cgroup is given to the user that the container's root is."""
    owner = _owner(spec) if host.cgroup_mode == "v2" else 0
    if not owner or owner == host.euid:
        return []
    return [Op("chown_cgroup", (plan.paths[""].encode(), owner), OWNERSHIP_CLAUSE, None, RUNTIME)]


def _owner(spec: Spec) -> int:
    """The host's uid that the cgroup is given to, or 0 (config-linux.md#cgroup-ownership)."""
    if not any(entry.type == "cgroup" and entry.path is None for entry in spec.linux.namespaces):
        return 0
    mounts = [mount for mount in spec.mounts if mount.destination.rstrip("/") == "/sys/fs/cgroup"]
    if not any(mount.type in ("cgroup", "cgroup2") and "ro" not in mount.options for mount in mounts):
        return 0
    if spec.process is None:
        return 0
    uid = spec.process.user.uid
    if not any(entry.type == "user" for entry in spec.linux.namespaces):
        return uid
    for entry in spec.linux.uid_mappings:
        if entry.container_id <= uid < entry.container_id + entry.size:
            return entry.host_id + uid - entry.container_id
    return 0


def add_devices(plan: CgroupPlan, resources: Resources, limits: Limits) -> None:
    """The device list: init's ops on v2, the runtime's on v1."""
    policy = Policy(resources.devices)
    directory = plan.paths.get("devices")
    if directory is not None:
        _devices_v1(plan, policy, directory, limits)
        return
    if "" not in plan.paths:
        limits.problem(DEVICES, "needs cgroup v2 or the v1 controller 'devices', and this host has neither")
        return
    # A cgroup that was there before may have the filter of a container before: replaced, not added to.
    unified = plan.paths[""].encode()
    for index, op in enumerate(plan.create):
        if op.call == "mkdir_cgroup" and op.args[0] == unified:
            plan.create[index] = Op(op.call, (unified, b"filters"), op.origin, None, RUNTIME)
    if policy.rules or not policy.base:
        from pyoci.plan.device_bpf import LICENSE, device_program

        code = device_program(policy)
        load = Struct(
            "bpf_prog_load",
            prog_type=bpf.BPF_PROG_TYPE_CGROUP_DEVICE,
            insn_cnt=len(code) // 8,
            insns=Blob(code, f"{len(code) // 8} instructions"),
            license=LICENSE,
        )
        attach = Struct(
            "bpf_prog_attach",
            target_fd=Ref("cgroup"),
            attach_bpf_fd=Ref("device_filter"),
            attach_type=bpf.BPF_CGROUP_DEVICE,
            # beside the programs of whoever manages the parents
            attach_flags=bpf.BPF_F_ALLOW_MULTI,
        )
        hint = "a device filter needs CAP_BPF or CAP_SYS_ADMIN in the machine's own user namespace"
        plan.before_clone.append(
            Op("bpf", (bpf.BPF_PROG_LOAD, load, bpf.BPF_ATTR_SIZE), DEVICES, "device_filter", hint=hint)
        )
        plan.before_clone.append(Op("bpf", (bpf.BPF_PROG_ATTACH, attach, bpf.BPF_ATTR_SIZE), DEVICES, hint=hint))
        plan.before_clone.append(Op("close", (Ref("device_filter"),), DEVICES))


def _devices_v1(plan: CgroupPlan, policy: Policy, directory: str, limits: Limits) -> None:
    try:
        lines = v1_lines(policy)
    except Hole as hole:
        message = f"takes a part out of {DEVICES}/{hole.of}, which cgroup v1 cannot: write rules that do not overlap"
        limits.problem(f"{DEVICES}/{hole.index}", message)
        return
    hint = "the parent cgroup must allow it, too"
    defaults: list[bytes] = []
    for allow, index, line in lines:
        if index < 0 and allow:
            defaults.append(line)
            continue
        file = f"{directory}/devices.{'allow' if allow else 'deny'}".encode()
        origin = f"{DEVICES}/{index}" if index >= 0 else DEVICES
        plan.create.append(Op("write", (file, line), origin, None, RUNTIME, hint=hint))
    if defaults:
        # After the configuration's own: there the validation suite of runtime-tools looks for them.  What the parent
        # withholds of these nobody asked for.
        file = f"{directory}/devices.allow".encode()
        plan.create.append(Op("write_lines", (file, b"\n".join(defaults)), DEVICES_CLAUSE, None, RUNTIME, (EPERM,)))
