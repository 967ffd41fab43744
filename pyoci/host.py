"""What planning needs to know of the machine, as one value: `probe()` is the only reader of it for that purpose.

A `Host` can be written to JSON and read back (`pyoci plan --host FILE`), so that a plan can be made, and tested,
without the machine that it is for and without privileges.
"""

from __future__ import annotations

import posix

from pyoci.cgroup.detect import bases, detect
from pyoci.kernel.flags import RLIMITS, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFSOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Mount, Process, Spec


NULL = 1 << 8 | 3  # dev_t of /dev/null, as null(4) has it
OLDEST_LAST_CAP = 40  # CAP_CHECKPOINT_RESTORE, since Linux 5.9


class Host:
    """
    kernel                  (major, minor)
    arch                    "x86_64" or "aarch64"
    uid, gid, euid          ours
    capabilities, bounding  our effective and bounding sets, as bits
    last_cap                the highest capability that the kernel knows
    initial_user_namespace  whether we are in the machine's own
    denies_setgroups        whether setgroups(2) is denied in our user namespace (user_namespaces(7))
    cgroup_mode             "v1", "v2", "hybrid" or "none"
    cgroup_mounts           controller ("name=x" for named hierarchies, "" for v2) -> mount point
    cgroup_self             the same keys -> our own cgroup, as a path below that mount point
    cgroup_controllers      what v2's root offers
    cgroup_bases            without root's rights: the hierarchies in which we may make cgroups, and below which one
    security_modules        "apparmor", "selinux": those that are enabled, looked for when a configuration names one
    source_types            absolute path of a bind source -> "dir", "file" or "none"
    direct_sources          those of them whose path has no symbolic link in it
    tmpfs_modes             destination of a tmpfs without a mode -> that of the image's directory there, octal
    made_at                 destination with a link of the image to what is not there -> what it means, without links
    home                    HOME of a process that has none in its environment, "" for one that has
    copied                  destination of a tmpfs with tmpcopyup -> what the image has there (`pyoci.tree`)
    stdio_nulls             those of our descriptors 0, 1, 2 that are /dev/null
    stdio_pipes             those that are pipes or sockets
    systemd                 which systemd makes cgroups: "system", "user", or "" while nobody asked for one
    limits                  type of a limit -> ours, "soft hard", where a user namespace keeps one from being raised
    resctrl                 where resctrl is mounted, "" if it is not, or if no configuration asks for it
    kernel_views            where procfs and sysfs are mounted, looked for when the old root will stay (--no-pivot)
    systemd_cgroup          where its own cgroup is, as a path below the mount points; "" for their tops
    """

    __slots__ = (
        "arch",
        "bounding",
        "capabilities",
        "cgroup_bases",
        "cgroup_controllers",
        "cgroup_mode",
        "cgroup_mounts",
        "cgroup_self",
        "copied",
        "denies_setgroups",
        "direct_sources",
        "euid",
        "gid",
        "home",
        "initial_user_namespace",
        "kernel",
        "kernel_views",
        "last_cap",
        "limits",
        "made_at",
        "resctrl",
        "security_modules",
        "source_types",
        "stdio_nulls",
        "stdio_pipes",
        "systemd",
        "systemd_cgroup",
        "tmpfs_modes",
        "uid",
    )

    def __init__(self) -> None:
        self.kernel = (0, 0)
        self.arch = "x86_64"
        self.uid = self.gid = self.euid = 0
        self.capabilities = self.bounding = 0
        self.last_cap = 40
        self.initial_user_namespace = True
        self.denies_setgroups = False
        self.cgroup_mode = "none"
        self.cgroup_mounts: dict[str, str] = {}
        self.cgroup_self: dict[str, str] = {}
        self.cgroup_controllers: tuple[str, ...] = ()
        self.cgroup_bases: dict[str, str] = {}
        self.security_modules: tuple[str, ...] = ()
        self.source_types: dict[str, str] = {}
        self.direct_sources: tuple[str, ...] = ()
        self.tmpfs_modes: dict[str, str] = {}
        self.made_at: dict[str, str] = {}
        self.copied: dict[str, list[list[object]]] = {}
        self.home = ""
        self.stdio_nulls: tuple[int, ...] = ()
        self.stdio_pipes: tuple[int, ...] = ()
        self.limits: dict[str, str] = {}
        self.resctrl = ""
        self.kernel_views: tuple[str, ...] = ()
        self.systemd = ""
        self.systemd_cgroup = ""

    def to_json(self) -> dict[str, object]:
        """A JSON object with a key for each attribute."""
        values: dict[str, object] = {}
        for name in sorted(self.__slots__):
            value = getattr(self, name)
            values[name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_json(cls, values: dict[str, object]) -> Host:
        """The inverse of `to_json`; keys that are absent keep the defaults, unknown ones raise ValueError."""
        host = cls()
        for name, value in values.items():
            if name not in cls.__slots__:
                raise ValueError(f"a host has no {name!r}")
            default = getattr(host, name)
            given = tuple(value) if isinstance(value, list) else value
            if not _alike(name, given, default):
                raise ValueError(f"{name} must be like {default!r}")
            setattr(host, name, given)
        return host


def _alike(name: str, given: object, default: object) -> bool:
    """Whether a value that was read can stand for one that `probe` finds."""
    if type(given) is not type(default):
        return False
    if isinstance(given, dict):
        return all(type(item) is (list if name == "copied" else str) for item in given.values())
    if isinstance(given, tuple):
        kind = int if name in ("kernel", "stdio_nulls", "stdio_pipes") else str
        return all(type(item) is kind for item in given) and (name != "kernel" or len(given) == 2)
    return not isinstance(given, int) or 0 <= given < 1 << 64


def read(path: str) -> bytes:
    """All of a small kernel file."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, 65536)
    finally:
        posix.close(fd)


def probe() -> Host:
    """The machine and ourselves as they are now; see `probe_sources` for what depends on a bundle."""
    host = Host()
    system = posix.uname()
    major, _, rest = system.release.partition(".")
    minor = ""
    for character in rest:
        if not character.isdigit():
            break
        minor += character
    host.kernel = (int(major), int(minor or 0))
    host.arch = system.machine
    host.uid, host.gid, host.euid = posix.getuid(), posix.getgid(), posix.geteuid()
    status = read("/proc/self/status")
    host.capabilities = _hexadecimal(status, b"\nCapEff:\t")
    host.bounding = _hexadecimal(status, b"\nCapBnd:\t")
    host.last_cap = _last_capability(host.bounding)
    host.initial_user_namespace = read("/proc/self/uid_map").split() == [b"0", b"0", b"4294967295"]
    if not host.initial_user_namespace:
        host.denies_setgroups = read("/proc/self/setgroups").startswith(b"deny")
    host.cgroup_mode, host.cgroup_mounts, host.cgroup_self, controllers = detect()
    host.cgroup_controllers = tuple(controllers)
    if host.euid != 0 or not host.initial_user_namespace:
        host.cgroup_bases = bases(host.cgroup_mounts, host.cgroup_self)
    nulls: list[int] = []
    pipes: list[int] = []
    for number in range(3):
        try:
            found = posix.fstat(number)
        except OSError:
            continue
        kind = found.st_mode & S_IFMT
        if kind in (S_IFIFO, S_IFSOCK):
            pipes.append(number)
        elif kind == S_IFCHR and found.st_rdev == NULL:
            nulls.append(number)
    host.stdio_nulls = tuple(nulls)
    host.stdio_pipes = tuple(pipes)
    return host


def _last_capability(bounding: int) -> int:
    try:
        return int(read("/proc/sys/kernel/cap_last_cap"))
    except OSError:
        # a procfs without it (mounted with subset=pid): the last one of the oldest kernel, or one that is seen
        return max(OLDEST_LAST_CAP, bounding.bit_length() - 1)


def probe_systemd(host: Host, rootless: bool | None) -> None:
    """Fill what --systemd-cgroup needs; PyociError when there is no systemd to talk to."""
    from pyoci.cgroup.bus import choose, own_cgroup

    host.systemd = choose(host.euid, host.initial_user_namespace, rootless)
    host.systemd_cgroup = own_cgroup(host.systemd)
    if host.systemd == "user" and "" in host.cgroup_mounts:
        # a user has what has been delegated to it
        path = f"{host.cgroup_mounts['']}{host.systemd_cgroup}/cgroup.controllers"
        try:
            host.cgroup_controllers = tuple(read(path).decode().split())
        except OSError:
            host.cgroup_controllers = ()


def probe_security_modules(host: Host) -> None:
    """Fill `security_modules`."""
    found = []
    try:
        if read("/sys/module/apparmor/parameters/enabled").startswith(b"Y"):
            found.append("apparmor")
    except OSError:
        pass  # the kernel was built without it
    try:
        # the file that libselinux asks for as well: selinuxfs is there when, and only when, SELinux is
        posix.stat("/sys/fs/selinux/enforce")
        found.append("selinux")
    except OSError:
        pass  # as above, or it is switched off
    host.security_modules = tuple(found)


def probe_sources(host: Host, spec: Spec, bundle: str) -> bool:
    """Fill `source_types` for `spec`'s bind mounts and root; what cannot be looked at is "none".

    Whether links of the image are in the way to a mount, or to /dev.
    """
    types = host.source_types
    direct: dict[str, None] = {}
    process = spec.process
    if spec.linux.mount_label or (process is not None and (process.apparmor_profile or process.selinux_label)):
        probe_security_modules(host)
    if process is not None and lacks_home(process.env):
        from pyoci.passwd import home, place

        path = spec.root.path if spec.root else ""
        root, file = place(spec.mounts, path if path.startswith("/") else f"{bundle}/{path}", bundle)
        host.home = home(root, process.user.uid, file)
    if process is not None and process.rlimits and any(each.type == "user" for each in spec.linux.namespaces):
        probe_limits(host, process)
    if spec.linux.intel_rdt is not None:
        host.resctrl = resctrl()
    for mount in spec.mounts:
        if "bind" in mount.options or "rbind" in mount.options:
            source = mount.source if mount.source.startswith("/") else f"{bundle}/{mount.source}"
            types[source], straight = look_at(source)
            if straight:
                direct[source] = None
    host.direct_sources = tuple(direct)
    return any(_looks_at_image(mount) for mount in spec.mounts) and _probe_places(host, spec, bundle)


def probe_limits(host: Host, process: Process) -> None:
    """Fill `limits` with ours of the kinds that `process` has."""
    from resource import getrlimit

    for limit in process.rlimits:
        soft, hard = getrlimit(RLIMITS[limit.type])
        host.limits[limit.type] = f"{soft % 2**64} {hard % 2**64}"


def resctrl() -> str:
    """Where a resctrl file system is mounted, "" for nowhere."""
    return next(iter(_mounted("resctrl")), "")


def _mounted(*kinds: str) -> list[str]:
    """Where file systems of these types are mounted, in the kernel's order (proc_pid_mountinfo(5))."""
    from pyoci.cgroup.detect import unescape
    from pyoci.cgroup.files import read as read_all

    lines = read_all("/proc/self/mountinfo").decode("utf-8", "surrogateescape").splitlines()
    parted = [line.partition(" - ") for line in lines]
    return [unescape(mount.split(" ")[4]) for mount, _, rest in parted if rest.partition(" ")[0] in kinds]


def probe_kernel_views(host: Host) -> None:
    """Fill `kernel_views`, in the kernel's order: of two at one place the upper one is the later."""
    host.kernel_views = tuple(_mounted("proc", "sysfs"))


def lacks_home(env: tuple[str, ...]) -> bool:
    """Whether nothing but an empty HOME is in this environment; of several, the last counts."""
    homes = [entry for entry in env if entry[:5] == "HOME="]
    return not homes or homes[-1] == "HOME="


def probe_home(host: Host, pid: int, uid: int) -> None:
    """Fill `home` for a process that joins the container whose first process is `pid`."""
    from pyoci.passwd import home

    host.home = home(f"/proc/{pid}/root", uid)


def _looks_at_image(mount: Mount) -> bool:
    """Whether what the image has at the destination may say what becomes of it."""
    if mount.type == "tmpfs":
        return "tmpcopyup" in mount.options or not any(option.startswith("mode=") for option in mount.options)
    return "bind" in mount.options or "rbind" in mount.options


def _probe_places(host: Host, spec: Spec, bundle: str) -> bool:
    """Fill `copied`, `tmpfs_modes`, `made_at`; where an earlier mount covers the place, what the image has there is not
    what is there."""
    from pyoci.tree import find, listing, resolve

    path = spec.root.path if spec.root else ""
    root = path if path.startswith("/") else f"{bundle}/{path}"
    covered: list[str] = []
    linked = False
    for index, mount in enumerate(spec.mounts):
        place = mount.destination.rstrip("/") + "/"
        if _looks_at_image(mount) and not any(place.startswith(one) for one in covered):
            try:
                if mount.type == "tmpfs" and "tmpcopyup" in mount.options:
                    host.copied[mount.destination] = listing(root, mount.destination, f"/mounts/{index}/options")
                elif mount.type == "tmpfs" and (handle := find(root, mount.destination)) >= 0:
                    host.tmpfs_modes[mount.destination] = f"{posix.fstat(handle).st_mode & 0o7777:o}"
                    posix.close(handle)
                made, links, missing = resolve(root, mount.destination)
                if links and missing:
                    host.made_at[mount.destination] = made
                linked = linked or bool(links)
            except OSError:
                pass  # an image without it, or that we may not read: init says so where it matters
        covered.append(place)
    try:
        return linked or bool(resolve(root, "/dev")[1])
    except OSError:
        return False


def source_type(path: str) -> str:
    """ "dir", "file" or "none"."""
    try:
        mode = posix.stat(path).st_mode
    except OSError:
        return "none"
    return "dir" if mode & S_IFMT == S_IFDIR else "file"


def look_at(path: str) -> tuple[str, bool]:
    """`source_type`, and whether the path is the file's own: no symbolic link in it, nor "..", nor a magic link of
    procfs, which may lead to another mount namespace."""
    try:
        fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
    except OSError:
        return "none", False
    try:
        mode = posix.fstat(fd).st_mode
        return "dir" if mode & S_IFMT == S_IFDIR else "file", posix.readlink(f"/proc/self/fd/{fd}") == path
    finally:
        posix.close(fd)


def _hexadecimal(status: bytes, label: bytes) -> int:
    start = status.index(label) + len(label)
    return int(status[start : status.index(b"\n", start)], 16)
