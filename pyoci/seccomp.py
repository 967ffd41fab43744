"""Seccomp filters: compiled by libseccomp once, then read from a cache.

libseccomp needs ctypes and some milliseconds for an engine's default profile; reading the result of the last time
takes some hundredths of one.  A cache of security policy must never answer with another filter than was asked for, so
nothing here rests on a digest: a file holds the whole input beside the output, and is used only if the input is the
same to the byte, if its checksum holds, if it and its directory belong to us and to nobody else, and if the library
that made it is still the one on disk.  Whatever is wrong with the cache (corrupt, foreign, full disk, no permission)
costs only a compilation.

A file, little-endian: MAGIC, u32 length of the input, u32 length of the library's identity, input, identity,
instructions, checksum of all before (8 bytes).
"""

from __future__ import annotations

# The hash of CPython's own hash-checked .pyc files, which costs no import.  It names files and finds damage; it proves
# nothing.
from _imp import source_hash
from posix import (
    O_CLOEXEC,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_RDONLY,
    O_WRONLY,
    close,
    fstat,
    geteuid,
    getpid,
    listdir,
    mkdir,
    read,
    rename,
    stat,
    unlink,
    write,
)
from posix import open as open_fd

from pyoci.kernel.flags import S_IFMT, S_IFREG
from pyoci.kernel.seccomp import BPF_MAXINSNS, INSTRUCTION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import stat_result

    from pyoci.spec.types import Seccomp

MAGIC = b"pyoBPF\x02\n"  # another number for every change of what is made of the same profile
SALT = 0x70796F6369
CHECKSUM = 8
LISTENER = ("listenerPath", "listenerMetadata")
FILE_MAX = 1 << 20  # bytes; a larger profile is not cached
FILES_MAX = 64  # profiles; a full cache is emptied


def compile(seccomp: Seccomp, arch: str) -> bytes:
    """The filter for the machine `arch` (x86_64, aarch64): an array of struct sock_filter, 8 bytes each.

    Raises ConfigError or PyociError: see `pyoci.libseccomp`.
    """
    from pyoci.libseccomp import compile_filter

    return compile_filter(seccomp, arch)


def cached(store_root: str, seccomp: Seccomp, arch: str) -> bytes:
    """As `compile`, kept in `<store_root>/.cache/seccomp/`, which is made when needed (`store_root` itself is not)."""
    if not seccomp.raw:
        return compile(seccomp, arch)  # not from a document: nothing to know it by
    raw = seccomp.raw
    if seccomp.listener_path:
        # who answers is not in the filter, and may be another one for every container
        raw = {name: value for name, value in raw.items() if name not in LISTENER}
    text = repr((arch, raw)).encode("utf-8", "surrogatepass")
    name = source_hash(SALT, text).hex()
    directory = _directory(store_root)
    if directory < 0:
        return compile(seccomp, arch)
    try:
        program = _read(directory, name, text)
        if program is None:
            program = compile(seccomp, arch)
            _write(directory, name, text, program)
        return program
    finally:
        close(directory)


def _owned(status: stat_result, others: int) -> bool:
    return status.st_uid == geteuid() and not status.st_mode & others


def _directory(store_root: str) -> int:
    """A descriptor of the cache's directory, or -1 if there is none that only we can write."""
    path = store_root + "/.cache/seccomp"
    for attempt in (0, 1):
        try:
            fd = open_fd(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        except FileNotFoundError:
            if attempt:
                return -1
            if not _make(store_root, store_root + "/.cache", path):
                return -1
            continue
        except OSError:
            return -1
        if _owned(fstat(fd), 0o077):
            return fd
        close(fd)
        return -1
    return -1


def _make(store_root: str, *paths: str) -> bool:
    """False where nothing is to be made, because states are not to be kept there, either."""
    from pyoci.directory import check_root
    from pyoci.errors import PyociError

    try:
        check_root(store_root)
    except (OSError, PyociError):
        return False
    for path in paths:
        try:
            mkdir(path, 0o700)
        except OSError:
            continue  # there already, or the cache cannot be: the next open tells
    return True


def _read(directory: int, name: str, text: bytes) -> bytes | None:
    try:
        fd = open_fd(name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        status = fstat(fd)
        if status.st_mode & S_IFMT != S_IFREG or not _owned(status, 0o077) or status.st_size > FILE_MAX:
            return None
        content = read(fd, status.st_size + 1)
    except OSError:
        return None
    finally:
        close(fd)
    head = len(MAGIC) + 8
    end = len(content) - CHECKSUM
    start = head + len(text)
    if (
        end < start
        or content[: len(MAGIC)] != MAGIC
        or content[end:] != source_hash(SALT, content[:end])
        or int.from_bytes(content[head - 8 : head - 4], "little") != len(text)
        or content[head:start] != text
    ):
        return None
    first = start + int.from_bytes(content[head - 4 : head], "little")
    size = end - first
    if size <= 0 or size % INSTRUCTION or size > BPF_MAXINSNS * INSTRUCTION:
        return None
    identity = content[start:first]
    if not identity or identity != _identity(identity.partition(b"\0")[0]):
        return None
    return content[first:end]


def _identity(path: bytes) -> bytes:
    """The library's path and what changes when another version is installed there; empty when it is not there."""
    try:
        status = stat(path)
    except (OSError, ValueError):
        return b""
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return path + f"\0{status.st_dev}:{status.st_ino}:{times}:{status.st_size}".encode()


def _write(directory: int, name: str, text: bytes, program: bytes) -> None:
    from pyoci.libseccomp import library_file

    path = library_file()
    identity = _identity(path)
    content = MAGIC + len(text).to_bytes(4, "little") + len(identity).to_bytes(4, "little") + text + identity + program
    content += source_hash(SALT, content)
    if not identity or len(content) > FILE_MAX:
        return
    temporary = f".{name}.{getpid()}"
    try:
        names = listdir(directory)
        if len(names) >= FILES_MAX:
            for old in names:
                unlink(old, dir_fd=directory)
        fd = open_fd(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            complete = write(fd, content) == len(content)
        finally:
            close(fd)
        if complete:
            rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            return
    except OSError:
        pass  # no room, or no right: the next one compiles again
    try:
        unlink(temporary, dir_fd=directory)
    except OSError:
        pass  # it could not be made either
