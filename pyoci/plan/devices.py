"""Devices, links and the terminal in the container's /dev (config-linux.md#devices, #default-devices)."""

from __future__ import annotations

from errno import EEXIST, EROFS

from pyoci.kernel import flags as k
from pyoci.plan.entry import read_only
from pyoci.plan.mounts import move_op
from pyoci.plan.ops import Address, Blob, Buffer, Op, Ref, Struct
from pyoci.plan.paths import EXACT, HANDLE, SCOPED, close, make_directories, openat2, parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Device, Process, Spec

DEFAULT = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
DEFAULT_CLAUSE = "config-linux.md#default-devices"
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
LINKS_CLAUSE = "runtime-linux.md#dev-symbolic-links"
TERMINAL = "/process/terminal"
FORMATS = {"c": k.S_IFCHR, "u": k.S_IFCHR, "b": k.S_IFBLK, "p": k.S_IFIFO}
# struct statx: stx_mode (16 bit), and stx_rdev_major and stx_rdev_minor side by side
STATX_MODE, STATX_RDEV, STATX_SIZE = 28, 128, 256


def makedev(major: int, minor: int) -> int:
    """dev_t as mknod(2) takes it."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32


def expect_device(handle: str, format_: int, major: int, minor: int, origin: str) -> list[Op]:
    """Fail with EEXIST unless `@handle` is this device: by type and number, never by name."""
    buffer = f"stat_{handle}"
    ops = [
        Op("statx", (Ref(handle), b"", k.AT_EMPTY_PATH, k.STATX_BASIC_STATS, Buffer(buffer, STATX_SIZE)), origin),
        Op(
            "expect",
            (Address(buffer, STATX_MODE), k.S_IFMT, format_, EEXIST),
            origin,
            hint="something else than this device is there already",
        ),
    ]
    if format_ != k.S_IFIFO:
        ops.append(
            Op(
                "expect",
                (Address(buffer, STATX_RDEV), 0xFFFFFFFFFFFFFFFF, major | minor << 32, EEXIST),
                origin,
                hint="another device is there already",
            )
        )
    return ops


class DevicePlan:
    """`sources` open the host's nodes where none may be made; `ops` make or bind them."""

    __slots__ = ("ops", "sources")

    def __init__(self) -> None:
        self.sources: list[Op] = []
        self.ops: list[Op] = []


def binds_dev(spec: Spec) -> bool:
    """Whether /dev is the caller's, or of an image's choice, and not ours to add to."""
    for mount in spec.mounts:
        if "bind" in mount.options or "rbind" in mount.options:
            names: list[str] = []
            for part in parts(mount.destination):
                if part == "..":
                    del names[-1:]
                else:
                    names.append(part)
            if names == ["dev"]:
                return True
    return False


def plan_devices(spec: Spec, by_bind: bool) -> DevicePlan:
    """The default devices, /linux/devices, and /dev's links; `by_bind` where mknod is not allowed (user namespaces)."""
    plan = DevicePlan()
    bound_dev = binds_dev(spec)
    configured = {device.path.rstrip("/") for device in spec.linux.devices}
    # A bound /dev is the caller's: it is not ours to add to.
    if not bound_dev:
        plan.ops += make_directories("/dev", DEFAULT_CLAUSE, "dev")
        for name, major, minor in DEFAULT:
            if f"/dev/{name}" not in configured:
                if by_bind:
                    _add(plan, _default(name, major, minor), DEFAULT_CLAUSE, by_bind)
                else:
                    plan.ops += MADE[name]
    for index, device in enumerate(spec.linux.devices):
        _configured(plan, device, f"/linux/devices/{index}", by_bind)
    if not bound_dev:
        plan.ops += LINKED
        plan.ops += PTMX
    return plan


def _ptmx() -> list[Op]:
    """/dev/ptmx leads to the container's own devpts: a link to pts/ptmx, or the device itself, for which the kernel
    looks at the `pts` beside it.  Anything else that an image has there is replaced; the device may be the host's own
    node, in a root that shows the host's /dev, and is left alone."""
    place = (b"pts/ptmx", Ref("dev"), b"ptmx")
    return [
        Op(
            "symlinkat",
            place,
            DEFAULT_CLAUSE,
            tolerate=(EEXIST,),
            otherwise=[
                openat2("dev", b"ptmx", HANDLE | k.O_NOFOLLOW, EXACT, DEFAULT_CLAUSE, "target"),
                Op(
                    "statx",
                    (Ref("target"), b"", k.AT_EMPTY_PATH, k.STATX_BASIC_STATS, Buffer("stat_ptmx", STATX_SIZE)),
                    DEFAULT_CLAUSE,
                ),
                Op(
                    "expect",
                    (Address("stat_ptmx", STATX_RDEV), 0xFFFFFFFFFFFFFFFF, 5 | 2 << 32, EEXIST),
                    DEFAULT_CLAUSE,
                    tolerate=(EEXIST,),
                    otherwise=[
                        Op("unlinkat", (Ref("dev"), b"ptmx", 0), DEFAULT_CLAUSE),
                        Op("symlinkat", place, DEFAULT_CLAUSE),
                    ],
                ),
                close("target", DEFAULT_CLAUSE),
            ],
        )
    ]


class _Node:
    __slots__ = ("format", "gid", "host", "major", "minor", "mode", "name", "parent", "uid")

    def __init__(  # noqa: PLR0913 - a device node has these
        self, parent: str, name: str, format_: int, mode: int, major: int, minor: int, uid: int, gid: int, host: str
    ) -> None:
        self.parent = parent
        self.name = name.encode()
        self.format = format_
        self.mode = mode
        self.major = major
        self.minor = minor
        self.uid = uid
        self.gid = gid
        self.host = host


def _default(name: str, major: int, minor: int) -> _Node:
    return _Node("dev", name, k.S_IFCHR, 0o666, major, minor, 0, 0, f"/dev/{name}")


def _made(name: str, major: int, minor: int) -> list[Op]:
    plan = DevicePlan()
    _add(plan, _default(name, major, minor), DEFAULT_CLAUSE, False)
    return plan.ops


def _configured(plan: DevicePlan, device: Device, origin: str, by_bind: bool) -> None:
    parent, _, name = device.path.rstrip("/").rpartition("/")
    handle = "rootfs"
    if parent.strip("/"):
        handle = "devices"
        plan.ops += make_directories(parent, origin, handle)
    format_ = FORMATS[device.type]
    major, minor = (0, 0) if device.type == "p" else (device.major, device.minor)
    mode = 0o666 if device.file_mode is None else device.file_mode & 0o7777
    node = _Node(handle, name, format_, mode, major, minor, device.uid or 0, device.gid or 0, device.path)
    _add(plan, node, origin, by_bind and device.type != "p")
    if handle == "devices":
        plan.ops.append(close(handle, origin))


def _add(plan: DevicePlan, node: _Node, origin: str, by_bind: bool) -> None:
    ops = plan.ops
    if by_bind:
        source = f"device{len(plan.sources)}"
        flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC
        plan.sources.append(
            Op(
                "open_tree",
                (k.AT_FDCWD, node.host.encode(), flags),
                origin,
                source,
                hint="a user namespace needs the host's node",
            )
        )
        ops.append(Op("mknodat", (Ref(node.parent), node.name, k.S_IFREG | 0o644, 0), origin, tolerate=(EEXIST,)))
        ops += expect_device(source, node.format, node.major, node.minor, origin)
        ops.append(read_only(source, origin))
        ops.append(openat2(node.parent, node.name, HANDLE | k.O_NOFOLLOW, EXACT, origin, "target"))
        ops.append(move_op(source, "target", origin))
        ops.append(close("target", origin))
        ops.append(close(source, origin))
        return
    ops.append(
        Op(
            "mknodat",
            (Ref(node.parent), node.name, node.format | node.mode, makedev(node.major, node.minor)),
            origin,
            tolerate=(EEXIST,),
            otherwise=[
                openat2(node.parent, node.name, HANDLE | k.O_NOFOLLOW, EXACT, origin, "target"),
                *expect_device("target", node.format, node.major, node.minor, origin),
                close("target", origin),
            ],
        )
    )
    if node.uid or node.gid:
        # takes the set-id bits of the mode away, which mean nothing on a device; fchmodat would bring them back, and
        # follow a link that somebody with the same volume put in the node's place
        ops.append(Op("fchownat", (Ref(node.parent), node.name, node.uid, node.gid, k.AT_SYMLINK_NOFOLLOW), origin))


# The same in every plan, so made once.
MADE = {name: _made(name, major, minor) for name, major, minor in DEFAULT}
LINKED = [
    Op("symlinkat", (target.encode(), Ref("dev"), name.encode()), LINKS_CLAUSE, tolerate=(EEXIST, EROFS))
    for name, target in LINKS
]
PTMX = _ptmx()


def null_source(own: bool) -> list[Op]:
    """`@null`: /dev/null, known by its number and not by its name (CVE-2025-31133).

    It is the container's (`own`) where that surely has one: who is root in the container can give what is seen in the
    place of a masked file another mode and owner.
    """
    origin = "/linux/maskedPaths"
    host = Op("openat", (k.AT_FDCWD, b"/dev/null", HANDLE | k.O_NOFOLLOW), origin, "null")
    return [
        openat2("rootfs", b"dev/null", HANDLE | k.O_NOFOLLOW, SCOPED, origin, "null") if own else host,
        *expect_device("null", k.S_IFCHR, 1, 3, origin),
    ]


def plan_terminal(process: Process, receiver: str, payload: bytes) -> list[Op]:
    """A pty of the container's own devpts: its master sent to `@receiver`, its peer left as `@tty` and bound on
    /dev/console.

    The peer comes from the master by TIOCGPTPEER: no path under /dev/pts is trusted (CVE-2025-52565).
    """
    hint = "a terminal needs a devpts mounted on /dev/pts"
    ops = [
        # Opening can have effects, if it is a device of the image's choice: first see that it is the one.
        openat2("rootfs", b"dev/pts/ptmx", HANDLE | k.O_NOFOLLOW, SCOPED, TERMINAL, "ptmx", hint=hint),
        *expect_device("ptmx", k.S_IFCHR, 5, 2, TERMINAL),
        close("ptmx", TERMINAL),
        openat2(
            "rootfs",
            b"dev/pts/ptmx",
            k.O_RDWR | k.O_NOCTTY | k.O_CLOEXEC,
            SCOPED,
            TERMINAL,
            "ptmx",
            hint=hint,
        ),
        Op("ioctl", (Ref("ptmx"), k.TIOCSPTLCK, Struct("int", value=0)), TERMINAL),
        Op("ioctl", (Ref("ptmx"), k.TIOCGPTPEER, k.O_RDWR | k.O_NOCTTY | k.O_CLOEXEC), TERMINAL, "tty"),
    ]
    size = process.console_size
    if size is not None:
        window = Struct("winsize", ws_row=size.height, ws_col=size.width)
        ops.append(Op("ioctl", (Ref("ptmx"), k.TIOCSWINSZ, window), "/process/consoleSize"))
    if process.user.uid:
        ops.append(Op("fchown", (Ref("tty"), process.user.uid, k.UINT_MAX), TERMINAL))
    ops += send_descriptor("ptmx", receiver, payload)
    return ops


def plan_console() -> list[Op]:
    """Bind `@tty` on /dev/console (config-linux.md#default-devices)."""
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH
    return [
        openat2("rootfs", b"dev", HANDLE | k.O_DIRECTORY, SCOPED, TERMINAL, "dev"),
        Op("mknodat", (Ref("dev"), b"console", k.S_IFREG | 0o600, 0), TERMINAL, tolerate=(EEXIST, EROFS)),
        openat2("dev", b"console", HANDLE | k.O_NOFOLLOW, EXACT, TERMINAL, "target"),
        Op("open_tree", (Ref("tty"), b"", flags), TERMINAL, "tree"),
        move_op("tree", "target", TERMINAL),
        close("tree", TERMINAL),
        close("target", TERMINAL),
    ]


def send_descriptor(name: str, receiver: str, payload: bytes) -> list[Op]:
    """Send `@name` over the socket `@receiver`, with `payload` as the message."""
    control = Struct("cmsg_fd", cmsg_len=20, cmsg_level=k.SOL_SOCKET, cmsg_type=k.SCM_RIGHTS, fd=Ref(name))
    vector = Struct("iovec", iov_base=Blob(payload, "message"), iov_len=len(payload))
    message = Struct("msghdr", msg_iov=vector, msg_iovlen=1, msg_control=control, msg_controllen=24)
    return [
        Op(
            "sendmsg",
            (Ref(receiver), message, k.MSG_NOSIGNAL),
            TERMINAL,
            hint="the other end of the console socket is gone",
        ),
        close(name, TERMINAL),
    ]


def adopt_terminal() -> list[Op]:
    """Make `@tty` the session's terminal and the three standard streams."""
    return [
        Op("ioctl", (Ref("tty"), k.TIOCSCTTY, 0), TERMINAL),
        *(Op("dup3", (Ref("tty"), number, 0), TERMINAL) for number in range(3)),
    ]
