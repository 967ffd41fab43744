"""The directories that states are kept in: one per container under a root, private, locked, written whole.

A container is a directory `<root>/<id>`, mode 0700.  Whoever changes a container holds the lock (flock(2) on its
directory); who only reads needs none, because files are replaced as a whole.  What is in these directories decides what
delete kills and removes, so none is trusted that somebody else can write to.
"""

from __future__ import annotations

import errno
import fcntl
import posix
import time

from pyoci.errors import Exists, NotFound, PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# Removed last, because delete needs it to know what else there is to remove: one or the other is there.
LAST = ("creating.json", "state.json")
ID_MAX = 255  # NAME_MAX: an id is a file name (limits.h)
ID_START = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-")
ID_ALLOWED = ID_START | {"."}
ANYBODY = 0o1002  # mode of a directory like /tmp: writable by others, and sticky
# What is kept is made of a document of at most 16 MiB (`options.MOST`), in which JSON may need six bytes for one.
MOST = 128 << 20
LOCK_PATIENCE = 30.0  # seconds; a create with slow hooks holds its lock that long
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC


def check_id(id: str) -> None:
    """PyociError unless `id` is a name for a container: no path, nothing hidden, nothing to escape."""
    if not id or len(id) > ID_MAX or id[0] not in ID_START or not ID_ALLOWED.issuperset(id):
        raise PyociError(
            f"container {id[:300]!r}: invalid container ID format: it takes letters, digits, _, +, - and . (not as the"
            f" first), {ID_MAX} characters at most"
        )


def default_root() -> str:
    """Where states are kept without --root: /run/pyoci, for others than the real root below $XDG_RUNTIME_DIR.

    Root of a user namespace is not the real root, unless it logged in as such ($USER): rootless engines run us so.
    An empty variable counts as unset, and so does a path that is not absolute (XDG Base Directory specification).
    """
    runtime = posix.environ.get(b"XDG_RUNTIME_DIR", b"").decode("utf-8", "surrogateescape")
    if not runtime.startswith("/"):
        runtime = ""
    uid = posix.geteuid()
    if uid == 0 and not (runtime and posix.environ.get(b"USER") != b"root" and _in_user_namespace()):
        return "/run/pyoci"
    return (runtime or f"/run/user/{uid}") + "/pyoci"


def _in_user_namespace() -> bool:
    return read_file("/proc/self/uid_map").split() != [b"0", b"0", b"4294967295"]


def read_file(path: str, dir_fd: int | None = None) -> bytes:
    """All of a small file (also of procfs, whose sizes are 0).  OSError as the kernel gives it."""
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=dir_fd)
    try:
        pieces = []
        while piece := posix.read(descriptor, 65536):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        posix.close(descriptor)


class Directory:
    """One container's directory: `fd` is open on it, `path` names it."""

    __slots__ = ("fd", "id", "locked", "path", "root_fd")

    def __init__(self, id: str, path: str, fd: int, root_fd: int) -> None:
        self.id = id
        self.path = path
        self.fd = fd
        self.root_fd = root_fd
        self.locked = False

    @classmethod
    def create(cls, root: str, id: str) -> Self:
        """Make the directory, and the root with its parents where they are missing; Exists if the id is taken."""
        check_id(id)
        root_fd = _open_root(root, make=True)
        try:
            posix.mkdir(id, 0o700, dir_fd=root_fd)
        except OSError as error:
            posix.close(root_fd)
            if error.errno == errno.EEXIST:
                raise Exists(id) from None
            raise PyociError(f"container {id!r}: mkdir {root}/{id}: {_words(error)}") from None
        try:
            fd = posix.open(id, _DIRECTORY, dir_fd=root_fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                posix.rmdir(id, dir_fd=root_fd)
            posix.close(root_fd)
            if error.errno == errno.ENOENT:
                raise NotFound(id) from None  # a delete was quicker
            raise
        return cls(id, f"{root}/{id}", fd, root_fd)

    @classmethod
    def open(cls, root: str, id: str) -> Self:
        """The directory of a container that exists, or NotFound."""
        check_id(id)
        try:
            root_fd = _open_root(root, make=False)
        except FileNotFoundError:
            raise NotFound(id) from None
        try:
            fd = posix.open(id, _DIRECTORY, dir_fd=root_fd)
        except OSError as error:
            posix.close(root_fd)
            if error.errno == errno.ENOENT:
                raise NotFound(id) from None
            raise PyociError(f"container {id!r}: open {root}/{id}: {_words(error)}") from None
        try:
            _check_owner(fd, f"{root}/{id}")
        except BaseException:
            posix.close(fd)
            posix.close(root_fd)
            raise
        return cls(id, f"{root}/{id}", fd, root_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory, and of the lock."""
        if self.fd >= 0:
            posix.close(self.fd)
            posix.close(self.root_fd)
        self.fd = self.root_fd = -1
        self.locked = False

    def lock(self, patience: float = LOCK_PATIENCE) -> None:
        """Wait for the lock, at most `patience` seconds; NotFound if the container was deleted meanwhile."""
        until = time.monotonic() + patience
        pause = 0.001
        while not self._try_lock():
            if time.monotonic() >= until:
                raise PyociError(f"container {self.id!r}: another command has been working on it for {patience:g} s")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        # The lock may be that of a directory which its last holder removed, with or without a new one in its place.
        if not self.at_path():
            raise NotFound(self.id)

    def _try_lock(self) -> bool:
        if not self.locked:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                raise PyociError(
                    f"container {self.id!r}: flock({self.path}): {_words(error)}; states need a file system with locks"
                    " (--root)"
                ) from None
            self.locked = True
        return True

    def unlock(self) -> None:
        """Let others work on the container."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.locked = False

    def busy(self) -> bool:
        """Whether another command holds the lock now."""
        if self.locked:
            return False
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return False

    def at_path(self) -> bool:
        """Whether the directory is (still) the one at its path."""
        mine = posix.fstat(self.fd)
        try:
            there = posix.stat(self.id, dir_fd=self.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def write(self, name: str, data: bytes) -> None:
        """Replace the file `name` at once: when the disk is full or we are killed, the old one stays."""
        temporary = f".{name}.new"
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC
        try:
            descriptor = posix.open(temporary, flags, 0o600, dir_fd=self.fd)
            try:
                view = memoryview(data)
                while view:
                    view = view[posix.write(descriptor, view) :]
            finally:
                posix.close(descriptor)
            posix.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            try:
                posix.unlink(temporary, dir_fd=self.fd)
            except OSError:
                pass  # it could not be made, which is what is reported
            raise PyociError(f"container {self.id!r}: write {self.path}/{name}: {_words(error)}") from None

    def read(self, name: str) -> bytes:
        """The content of the file `name`; FileNotFoundError where there is none, PyociError for what `write` does not
        leave: anything but a file, or one that is larger than any."""
        flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
        try:
            descriptor = posix.open(name, flags, dir_fd=self.fd)
            try:
                found = posix.fstat(descriptor)
                regular = found.st_mode & 0o170000 == 0o100000
                if not regular or found.st_size > MOST:
                    why = f"more than {MOST >> 20} MiB" if regular else "not a regular file"
                    raise PyociError(f"container {self.id!r}: {self.path}/{name} is damaged: {why}")
                pieces = []
                while piece := posix.read(descriptor, 65536):
                    pieces.append(piece)
                return b"".join(pieces)
            finally:
                posix.close(descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise PyociError(f"container {self.id!r}: open {self.path}/{name}: {_words(error)}") from None

    def has(self, name: str) -> bool:
        """Whether there is a file `name`."""
        try:
            posix.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def discard(self) -> None:
        """Remove the directory that `create` made, if nothing is in it yet."""
        try:
            posix.rmdir(self.id, dir_fd=self.root_fd)
        except OSError:
            pass  # it is another's by now

    def remove(self) -> None:
        """Remove the directory with all that is in it, the state last: killed on the way, delete can be repeated."""
        try:
            self._remove()
        except OSError as error:
            raise PyociError(f"container {self.id!r}: remove {self.path}: {_words(error)}") from None
        self.close()

    def _remove(self) -> None:
        names = posix.listdir(self.fd)
        names.sort(key=lambda name: name in LAST)
        for name in names:
            try:
                posix.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                _remove_directory(name, self.fd)
        if self.at_path():
            posix.rmdir(self.id, dir_fd=self.root_fd)


def _remove_directory(name: str, dir_fd: int) -> None:
    """A directory with files in it."""
    fd = posix.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        for file in posix.listdir(fd):
            posix.unlink(file, dir_fd=fd)
    finally:
        posix.close(fd)
    posix.rmdir(name, dir_fd=dir_fd)


def open_unplanted(path: str, flags: int, mode: int = 0o777) -> int:
    """open(2), but not of a link that somebody else has left in a directory like /tmp: what the kernel does where
    fs.protected_symlinks is on (proc(5)), which it is not by itself."""
    try:
        return posix.open(path, flags | posix.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
    link = posix.stat(path, follow_symlinks=False)
    above = posix.stat(path.rpartition("/")[0] or ("/" if path.startswith("/") else "."))
    if (
        link.st_mode & 0o170000 == 0o120000
        and above.st_mode & ANYBODY == ANYBODY
        and link.st_uid not in (posix.geteuid(), above.st_uid)
    ):
        whose = f"that user {link.st_uid} has left in a directory of everybody's"
        raise PyociError(f"{path}: a link {whose} is not followed")
    return posix.open(path, flags, mode)


def _open_root(root: str, make: bool) -> int:
    """The directory of all containers, which nobody else can write to: what is in it decides what delete kills."""
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
    try:
        fd = open_unplanted(root, flags)
    except FileNotFoundError:
        if not make:
            raise
        _make_directories(root)
        fd = open_unplanted(root, flags)
    except OSError as error:
        raise PyociError(f"open {root}: {_words(error)}; states are kept in this directory (--root)") from None
    try:
        _check_owner(fd, root)
    except BaseException:
        posix.close(fd)
        raise
    return fd


def check_root(root: str) -> None:
    """OSError or PyociError unless that is where states may be kept."""
    posix.close(_open_root(root, make=False))


def _make_directories(path: str) -> None:
    # The sticky bit keeps a directory below $XDG_RUNTIME_DIR from being cleaned up as old (XDG Base Directory spec).
    mode = 0o700 if posix.geteuid() == 0 else 0o1700
    made = ""
    for part in path.strip("/").split("/"):
        made += "/" + part
        try:
            posix.mkdir(made, mode)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno == errno.EROFS and posix.access(made, posix.F_OK):
                continue
            hint = "use --root" if posix.geteuid() == 0 else "set XDG_RUNTIME_DIR to a directory of yours or use --root"
            raise PyociError(f"mkdir {made}: {_words(error)}; {hint}") from None


def _check_owner(fd: int, path: str) -> None:
    found = posix.fstat(fd)
    if found.st_uid not in (posix.geteuid(), 0):
        raise PyociError(f"{path} belongs to user {found.st_uid}: refusing to trust what is in it")
    if found.st_mode & 0o022:
        raise PyociError(f"{path} is writable by others (mode {found.st_mode & 0o7777:04o}): chmod go-w it")


def ids(root: str) -> list[str]:
    """The containers under `root`, sorted.  FileNotFoundError when there is no such directory."""
    fd = _open_root(root, make=False)
    try:
        with posix.scandir(fd) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted([name for name in found if name[0] in ID_START and ID_ALLOWED.issuperset(name)])
    finally:
        posix.close(fd)


def _words(error: OSError) -> str:
    from pyoci.kernel.errnos import words

    return words(error.errno or 0)
