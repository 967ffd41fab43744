"""What the commands that make processes were asked for: command lines, read and checked, as plain values."""

from __future__ import annotations

import posix

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Bytes of any document that is given to us: ten times what ten thousand mounts take.
MOST = 16 << 20
PATH_MAX = 4096  # limits.h; the kernel takes no longer path
# (uid_t) -1 means "leave it alone" to the kernel, so the largest id is one less (chown(2), setresuid(2)).
MAX_ID = 0xFFFFFFFE


def absolute(path: str) -> str:
    """`path` from the root, without "." and doubled slashes.

    ".." stays: taking it out of the text means something else than what the kernel does when a component is a link.
    """
    if not path.startswith("/"):
        try:
            path = posix.getcwd() + "/" + path
        except OSError:
            raise PyociError(f"{path!r} is relative to a working directory that does not exist any more") from None
    path = "/" + "/".join([part for part in path.split("/") if part not in ("", ".")])
    if len(path) >= PATH_MAX // 4 and len(path.encode("utf-8", "surrogateescape")) >= PATH_MAX:
        raise PyociError(f"{path[:80]!r}...: the path is too long: {PATH_MAX - 1} bytes are the most")
    return path


def read_document(path: str, what: str, regular: bool = False) -> bytes:
    """All of a document that somebody gives us, at most `MOST` bytes; "-" is standard input unless it is a `regular`
    file.

    Read once and without seeking, because it may be a pipe; where it must not be one, nobody waits for its writer.
    PyociError begins with `what`.
    """
    try:
        flags = posix.O_RDONLY | posix.O_CLOEXEC | (posix.O_NONBLOCK if regular else 0)
        fd = 0 if path == "-" and not regular else posix.open(path, flags)
        try:
            if regular:
                from pyoci.kernel.flags import S_IFMT, S_IFREG

                if posix.fstat(fd).st_mode & S_IFMT != S_IFREG:
                    raise PyociError(f"{what}: not a regular file")
            pieces = []
            size = 0
            while piece := posix.read(fd, 1 << 16):
                pieces.append(piece)
                size += len(piece)
                if size > MOST:
                    raise PyociError(f"{what}: more than {MOST >> 20} MiB")
        finally:
            if fd:
                posix.close(fd)
    except FileNotFoundError:
        raise PyociError(f"{what}: no such file or directory") from None
    except OSError as error:
        from pyoci.kernel.errnos import words

        raise PyociError(f"{what}: {words(error.errno or 0)}") from None
    except ValueError:
        raise PyociError(f"{what}: not a path") from None
    return b"".join(pieces)


def parse_id(text: str, what: str) -> int:
    """The number of a user or group, 0 to 2^32-2, in plain decimal.

    Nothing but digits, no sign, no space and no leading zero: an id that is read as another one is somebody else's
    (CVE-2016-3697, CVE-2026-30892).  Names are the engine's business.
    """
    if not (text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0") or len(text) > 10:
        raise PyociError(f'bad {what} "{text}": it must be a decimal number from 0 to {MAX_ID}')
    number = int(text)
    if number > MAX_ID:
        raise PyociError(f'bad {what} "{text}": it must be a decimal number from 0 to {MAX_ID}')
    return number


def parse_user(text: str) -> tuple[int, int | None]:
    """`UID` or `UID:GID` -> (uid, gid); gid is None when it was not given, and then config.json's holds."""
    user, colon, group = text.partition(":")
    uid = parse_id(user, "uid")
    return uid, parse_id(group, "gid") if colon else None


class CreateOptions:
    """create and run.

    Paths are absolute, "" when not given; `preserve_fds` counts descriptors beyond stdio and $LISTEN_FDS; `rootless` is
    None unless the command line says it.
    """

    __slots__ = (
        "bundle",
        "cgroup_manager",
        "config",
        "console_socket",
        "detach",
        "id",
        "keep",
        "no_new_keyring",
        "no_pivot",
        "pid_file",
        "pidfd_socket",
        "preserve_fds",
        "root",
        "rootless",
    )

    def __init__(
        self,
        root: str,
        id: str,
        bundle: str,
        *,
        pid_file: str = "",
        console_socket: str = "",
        no_pivot: bool = False,
        no_new_keyring: bool = False,
        preserve_fds: int = 0,
        detach: bool = False,
        keep: bool = False,
        pidfd_socket: str = "",
        cgroup_manager: str = "cgroupfs",
        rootless: bool | None = None,
        config: str = "",
    ) -> None:
        self.root = root
        self.id = id
        self.bundle = bundle
        self.pid_file = pid_file
        self.console_socket = console_socket
        self.no_pivot = no_pivot
        self.no_new_keyring = no_new_keyring
        self.preserve_fds = preserve_fds
        self.detach = detach
        self.keep = keep
        self.pidfd_socket = pidfd_socket
        self.cgroup_manager = cgroup_manager
        self.rootless = rootless
        self.config = config


class ExecOptions:
    """exec: either `process_file` or `args`; the other fields change what config.json's process says.

    env is added to the container's; `cwd` "" and `uid`, `gid` None mean as in config.json; `caps` are added to the
    bounding, effective and permitted sets only (CVE-2022-29162); `cgroups` are "PATH" or
    "CONTROLLER,...:PATH".  `tty` and `no_new_privs` only ever switch on.
    """

    __slots__ = (
        "additional_gids",
        "apparmor",
        "args",
        "caps",
        "cgroups",
        "console_socket",
        "cwd",
        "detach",
        "env",
        "gid",
        "id",
        "ignore_paused",
        "no_new_privs",
        "pid_file",
        "pidfd_socket",
        "preserve_fds",
        "process_file",
        "process_label",
        "root",
        "tty",
        "uid",
    )

    def __init__(
        self,
        root: str,
        id: str,
        args: Sequence[str] = (),
        *,
        process_file: str = "",
        tty: bool = False,
        env: Sequence[str] = (),
        cwd: str = "",
        uid: int | None = None,
        gid: int | None = None,
        additional_gids: Sequence[int] = (),
        caps: Sequence[str] = (),
        no_new_privs: bool = False,
        detach: bool = False,
        pid_file: str = "",
        console_socket: str = "",
        preserve_fds: int = 0,
        ignore_paused: bool = False,
        apparmor: str = "",
        process_label: str = "",
        pidfd_socket: str = "",
        cgroups: Sequence[str] = (),
    ) -> None:
        self.root = root
        self.id = id
        self.args = tuple(args)
        self.process_file = process_file
        self.tty = tty
        self.env = tuple(env)
        self.cwd = cwd
        self.uid = uid
        self.gid = gid
        self.additional_gids = tuple(additional_gids)
        self.caps = tuple(caps)
        self.no_new_privs = no_new_privs
        self.detach = detach
        self.pid_file = pid_file
        self.console_socket = console_socket
        self.preserve_fds = preserve_fds
        self.ignore_paused = ignore_paused
        self.apparmor = apparmor
        self.process_label = process_label
        self.pidfd_socket = pidfd_socket
        self.cgroups = tuple(cgroups)
