"""config.json as values: one plain class per object of the specification.

Attribute names are the specification's property names in snake_case.  Lists are tuples in the document's order, so an
item's index is its index in the JSON pointer ("/mounts/3").  `None` means "absent" wherever absence differs from a
default; an empty string stands for an absent one where the specification gives the empty string no meaning.
Those of /linux/resources are in `resource_types` and meant to be taken from here.
Every constructor has a default for everything, so that a test may write only what it is about.

Values are made by `spec.load` and are to be treated as immutable: nothing writes to them after `spec.validate`.
"""

from __future__ import annotations

from pyoci.spec.resource_types import (
    BlockIO,
    Cpu,
    DeviceRule,
    HugepageLimit,
    Memory,
    Pids,
    Resources,
    ThrottleDevice,
    Value,
    WeightDevice,
)

__all__ = (
    "BlockIO", "Capabilities", "ConsoleSize", "Cpu", "Device", "DeviceRule", "Hook", "Hooks", "HugepageLimit",
    "IdMapping", "Linux", "Memory", "Mount", "Namespace", "Pids", "Process", "Resources", "Rlimit", "Root",
    "Seccomp", "Spec", "SyscallArg", "SyscallRule", "ThrottleDevice", "User", "Value", "WeightDevice",
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Json = dict[str, object]


class Root(Value):
    """config.md#root: `path` absolute, or relative to the bundle."""

    __slots__ = ("path", "readonly")

    def __init__(self, path: str = "", readonly: bool = False) -> None:
        self.path = path
        self.readonly = readonly


class IdMapping(Value):
    """`size` ids from `container_id` on are `host_id` onwards outside (uint32 each)."""

    __slots__ = ("container_id", "host_id", "size")

    def __init__(self, container_id: int = 0, host_id: int = 0, size: int = 0) -> None:
        self.container_id = container_id
        self.host_id = host_id
        self.size = size


class Mount(Value):
    """config.md#mounts: `destination` always starts with "/" (a relative one is read relative to "/")."""

    __slots__ = ("destination", "gid_mappings", "options", "source", "type", "uid_mappings")

    def __init__(
        self,
        destination: str = "",
        type: str = "",
        source: str = "",
        options: tuple[str, ...] = (),
        uid_mappings: tuple[IdMapping, ...] = (),
        gid_mappings: tuple[IdMapping, ...] = (),
    ) -> None:
        self.destination = destination
        self.type = type
        self.source = source
        self.options = options
        self.uid_mappings = uid_mappings
        self.gid_mappings = gid_mappings


class ConsoleSize(Value):
    """config.md#process: characters; ignored unless `terminal`."""

    __slots__ = ("height", "width")

    def __init__(self, height: int = 0, width: int = 0) -> None:
        self.height = height
        self.width = width


class User(Value):
    """config.md#user: ids inside the container's user namespace; `umask` None keeps the caller's."""

    __slots__ = ("additional_gids", "gid", "uid", "umask")

    def __init__(
        self, uid: int = 0, gid: int = 0, umask: int | None = None, additional_gids: tuple[int, ...] = ()
    ) -> None:
        self.uid = uid
        self.gid = gid
        self.umask = umask
        self.additional_gids = additional_gids


class Capabilities(Value):
    """config.md#linux-process: names as written ("CAP_CHOWN"), unknown ones included (they warn, they do not fail)."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(
        self,
        bounding: tuple[str, ...] = (),
        effective: tuple[str, ...] = (),
        inheritable: tuple[str, ...] = (),
        permitted: tuple[str, ...] = (),
        ambient: tuple[str, ...] = (),
    ) -> None:
        self.bounding = bounding
        self.effective = effective
        self.inheritable = inheritable
        self.permitted = permitted
        self.ambient = ambient


class Rlimit(Value):
    """config.md#posix-process: `type` is "RLIMIT_..."; limits are uint64 (2^64-1 is unlimited)."""

    __slots__ = ("hard", "soft", "type")

    def __init__(self, type: str = "", soft: int = 0, hard: int = 0) -> None:
        self.type = type
        self.soft = soft
        self.hard = hard


class Process(Value):
    """config.md#process.  `scheduler`, `io_priority` and `exec_cpu_affinity` are JSON objects, shape checked."""

    __slots__ = (
        "apparmor_profile", "args", "capabilities", "console_size", "cwd", "env", "exec_cpu_affinity", "io_priority",
        "no_new_privileges", "oom_score_adj", "rlimits", "scheduler", "selinux_label", "terminal", "user",
    )  # fmt: skip

    def __init__(
        self,
        cwd: str = "",
        args: tuple[str, ...] = (),
        env: tuple[str, ...] = (),
        user: User | None = None,
        terminal: bool = False,
        console_size: ConsoleSize | None = None,
        capabilities: Capabilities | None = None,
        rlimits: tuple[Rlimit, ...] = (),
        no_new_privileges: bool = False,
        oom_score_adj: int | None = None,
        apparmor_profile: str = "",
        selinux_label: str = "",
        scheduler: Json | None = None,
        io_priority: Json | None = None,
        exec_cpu_affinity: Json | None = None,
    ) -> None:
        self.cwd = cwd
        self.args = args
        self.env = env
        self.user = user or User()
        self.terminal = terminal
        self.console_size = console_size
        self.capabilities = capabilities
        self.rlimits = rlimits
        self.no_new_privileges = no_new_privileges
        self.oom_score_adj = oom_score_adj
        self.apparmor_profile = apparmor_profile
        self.selinux_label = selinux_label
        self.scheduler = scheduler
        self.io_priority = io_priority
        self.exec_cpu_affinity = exec_cpu_affinity


class Hook(Value):
    """config.md#posix-platform-hooks: `env` None is absent, () is empty; `timeout` in seconds."""

    __slots__ = ("args", "env", "path", "timeout")

    def __init__(
        self,
        path: str = "",
        args: tuple[str, ...] = (),
        env: tuple[str, ...] | None = None,
        timeout: int | None = None,
    ) -> None:
        self.path = path
        self.args = args
        self.env = env
        self.timeout = timeout


class Hooks(Value):
    """config.md#posix-platform-hooks, each kind in its order.  `raw` is the JSON object itself ({} when absent)."""

    __slots__ = (
        "create_container", "create_runtime", "poststart", "poststop", "prestart", "raw", "start_container",
    )  # fmt: skip

    def __init__(
        self,
        prestart: tuple[Hook, ...] = (),
        create_runtime: tuple[Hook, ...] = (),
        create_container: tuple[Hook, ...] = (),
        start_container: tuple[Hook, ...] = (),
        poststart: tuple[Hook, ...] = (),
        poststop: tuple[Hook, ...] = (),
        raw: Json | None = None,
    ) -> None:
        self.prestart = prestart
        self.create_runtime = create_runtime
        self.create_container = create_container
        self.start_container = start_container
        self.poststart = poststart
        self.poststop = poststop
        self.raw: Json = {} if raw is None else raw


class Namespace(Value):
    """config-linux.md#namespaces: `type` pid, network, mount, ipc, uts, user, cgroup or time; `path` None makes one."""

    __slots__ = ("path", "type")

    def __init__(self, type: str = "", path: str | None = None) -> None:
        self.type = type
        self.path = path


class Device(Value):
    """config-linux.md#devices: `type` c, b, u (as c) or p (without numbers); None leaves mode or owner to us."""

    __slots__ = ("file_mode", "gid", "major", "minor", "path", "type", "uid")

    def __init__(
        self,
        path: str = "",
        type: str = "",
        major: int = 0,
        minor: int = 0,
        file_mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        self.path = path
        self.type = type
        self.major = major
        self.minor = minor
        self.file_mode = file_mode
        self.uid = uid
        self.gid = gid


class SyscallArg(Value):
    """config-linux.md#seccomp: compare argument `index` by `op` with uint64 `value` (`value_two` for MASKED_EQ)."""

    __slots__ = ("index", "op", "value", "value_two")

    def __init__(self, index: int = 0, value: int = 0, value_two: int = 0, op: str = "") -> None:
        self.index = index
        self.value = value
        self.value_two = value_two
        self.op = op


class SyscallRule(Value):
    """config-linux.md#seccomp: `action` for the calls `names` when every one of `args` holds."""

    __slots__ = ("action", "args", "errno_ret", "names")

    def __init__(
        self,
        names: tuple[str, ...] = (),
        action: str = "",
        errno_ret: int | None = None,
        args: tuple[SyscallArg, ...] = (),
    ) -> None:
        self.names = names
        self.action = action
        self.errno_ret = errno_ret
        self.args = args


class Seccomp(Value):
    """config-linux.md#seccomp; `raw` is the JSON object itself, the key under which a compiled filter is kept."""

    __slots__ = (
        "architectures", "default_action", "default_errno_ret", "flags", "listener_metadata", "listener_path", "raw",
        "syscalls",
    )  # fmt: skip

    def __init__(
        self,
        default_action: str = "",
        default_errno_ret: int | None = None,
        architectures: tuple[str, ...] = (),
        flags: tuple[str, ...] = (),
        listener_path: str = "",
        listener_metadata: str = "",
        syscalls: tuple[SyscallRule, ...] = (),
        raw: Json | None = None,
    ) -> None:
        self.default_action = default_action
        self.default_errno_ret = default_errno_ret
        self.architectures = architectures
        self.flags = flags
        self.listener_path = listener_path
        self.listener_metadata = listener_metadata
        self.syscalls = syscalls
        self.raw: Json = {} if raw is None else raw


class Linux(Value):
    """config-linux.md.  `personality`, `net_devices`, `intel_rdt`, `memory_policy` are JSON objects, shape checked.

    `time_offsets` maps a clock ("monotonic", "boottime") to (seconds, nanoseconds).
    """

    __slots__ = (
        "cgroups_path", "devices", "gid_mappings", "intel_rdt", "masked_paths", "memory_policy", "mount_label",
        "namespaces", "net_devices", "personality", "readonly_paths", "resources", "rootfs_propagation", "seccomp",
        "sysctl", "time_offsets", "uid_mappings",
    )  # fmt: skip

    def __init__(
        self,
        namespaces: tuple[Namespace, ...] = (),
        uid_mappings: tuple[IdMapping, ...] = (),
        gid_mappings: tuple[IdMapping, ...] = (),
        devices: tuple[Device, ...] = (),
        cgroups_path: str | None = None,
        resources: Resources | None = None,
        sysctl: dict[str, str] | None = None,
        seccomp: Seccomp | None = None,
        rootfs_propagation: str = "",
        masked_paths: tuple[str, ...] = (),
        readonly_paths: tuple[str, ...] = (),
        mount_label: str = "",
        personality: Json | None = None,
        time_offsets: dict[str, tuple[int, int]] | None = None,
        net_devices: Json | None = None,
        intel_rdt: Json | None = None,
        memory_policy: Json | None = None,
    ) -> None:
        self.namespaces = namespaces
        self.uid_mappings = uid_mappings
        self.gid_mappings = gid_mappings
        self.devices = devices
        self.cgroups_path = cgroups_path
        self.resources = resources
        self.sysctl: dict[str, str] = {} if sysctl is None else sysctl
        self.seccomp = seccomp
        self.rootfs_propagation = rootfs_propagation
        self.masked_paths = masked_paths
        self.readonly_paths = readonly_paths
        self.mount_label = mount_label
        self.personality = personality
        self.time_offsets: dict[str, tuple[int, int]] = {} if time_offsets is None else time_offsets
        self.net_devices = net_devices
        self.intel_rdt = intel_rdt
        self.memory_policy = memory_policy


class Spec(Value):
    """config.md: the whole document; `linux` and `hooks` are never None."""

    __slots__ = (
        "annotations", "domainname", "hooks", "hostname", "linux", "mounts", "oci_version", "process", "root",
    )  # fmt: skip

    def __init__(
        self,
        oci_version: str = "",
        root: Root | None = None,
        mounts: tuple[Mount, ...] = (),
        process: Process | None = None,
        hostname: str | None = None,
        domainname: str | None = None,
        hooks: Hooks | None = None,
        annotations: dict[str, str] | None = None,
        linux: Linux | None = None,
    ) -> None:
        self.oci_version = oci_version
        self.root = root
        self.mounts = mounts
        self.process = process
        self.hostname = hostname
        self.domainname = domainname
        self.hooks = hooks or Hooks()
        self.annotations: dict[str, str] = {} if annotations is None else annotations
        self.linux = linux or Linux()


# crun's name, which podman gives it (--group-add keep-groups)
KEEP_GROUPS = "run.oci.keep_original_groups"


def keeps_groups(annotations: Mapping[str, str]) -> bool:
    """The caller's supplementary groups stay the process's, also those that its user namespace has no ids for."""
    return annotations.get(KEEP_GROUPS, "") in ("1", "true")
