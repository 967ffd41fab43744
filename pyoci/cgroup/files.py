"""Reading and writing the files of a cgroup, each value whole."""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def read(path: str | bytes, dir_fd: int | None = None) -> bytes:
    """All of the file."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=dir_fd)
    try:
        chunks = []
        while chunk := posix.read(fd, 1 << 18):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        posix.close(fd)


def look(path: str | bytes) -> bytes:
    """All of the file, or nothing if it cannot be read: for what only explains or advises."""
    try:
        return read(path)
    except OSError:
        return b""


def write(path: str | bytes, data: bytes, dir_fd: int | None = None) -> None:
    """One write(2)."""
    write_lines(path, (data,), dir_fd)


def write_lines(path: str | bytes, lines: Iterable[bytes], dir_fd: int | None = None) -> None:
    """A write(2) for each line; all are tried, then the first failure is raised."""
    first: OSError | None = None
    fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC, dir_fd=dir_fd)
    try:
        for line in lines:
            try:
                posix.write(fd, line)
            except OSError as error:
                first = first or error
    finally:
        posix.close(fd)
    if first is not None:
        raise first
