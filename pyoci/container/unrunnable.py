"""Why the kernel does not execute a program that is there: it says "no such file" of what the program needs, too.

Looked up after execve(2) has failed, in the image, which is hostile: the file is found without following a link out of
the root, and only read if it is a regular one.
"""

from __future__ import annotations

import posix
from errno import EACCES, ENOENT, ENOEXEC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.launch import Failure

EXPLAINED = (ENOENT, ENOEXEC, EACCES)
HEAD = 4096  # bytes of a program that are looked at
INTERPRETER = 256  # bytes of a "#!" line that the kernel reads (BINPRM_BUF_SIZE)
MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv", 21: "ppc64", 22: "s390"}
PT_INTERP = 3
ELF_MOST = 56 * 64  # bytes of program headers


def why(failure: Failure, root: str) -> str:
    """One sentence for the failed execve, or "" where the kernel's words say it all; `root` is the container's root."""
    path = failure.op.args[0]
    if failure.op.call != "execve" or failure.errno not in EXPLAINED or not isinstance(path, bytes):
        return ""
    if not path.startswith(b"/"):
        return ""
    try:
        return _look(root, path.decode("utf-8", "surrogateescape"), failure.errno)
    except (OSError, ValueError, IndexError):
        return ""


def _look(root: str, path: str, number: int) -> str:
    kind, data = _read(root, path)
    if kind == "directory":
        return "it is a directory"
    if kind != "file":
        return ""
    if data[:2] == b"#!":
        return _script(root, data, number)
    if data[:4] == b"\x7fELF":
        return _elf(root, data)
    if number == ENOEXEC:
        return "it is empty" if not data else 'it is neither an ELF file nor a script that begins with "#!"'
    return ""


def _read(root: str, path: str) -> tuple[str, bytes]:
    """("", b"") for what is not there, ("directory", b""), ("other", b""), or ("file", its beginning)."""
    from stat import S_ISDIR, S_ISREG

    from pyoci.tree import find, open_file

    handle = find(root, path)
    if handle < 0:
        return "", b""
    try:
        mode = posix.fstat(handle).st_mode
        if not S_ISREG(mode):
            return "directory" if S_ISDIR(mode) else "other", b""
        fd = open_file(handle)
    finally:
        posix.close(handle)
    if fd < 0:
        return "file", b""
    try:
        return "file", posix.read(fd, HEAD)
    finally:
        posix.close(fd)


def _script(root: str, data: bytes, number: int) -> str:
    line = data[2:INTERPRETER].partition(b"\n")[0]
    words = line.split()
    if not words:
        return 'its first line, "#!", names no interpreter'
    name = words[0].decode("utf-8", "backslashreplace")
    if line.endswith(b"\r") and len(words) == 1:
        shown = f"its first line ends with a carriage return, so its interpreter would be {name + chr(92)}r"
        return f"{shown}: it has line ends of DOS"
    kind, _ = _read(root, name)
    if not kind:
        return f"its interpreter (#!) {name[:200]} is not in the container"
    if number == EACCES:
        return f"it, or its interpreter (#!) {name[:200]}, may not be executed"
    return ""


def _elf(root: str, data: bytes) -> str:
    order = "little" if data[5] == 1 else "big"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], order)  # type: ignore[arg-type]

    machine, ours = number(18, 2), posix.uname().machine
    named = MACHINES.get(machine, f"machine number {machine}")
    if named not in (ours, "i386" if ours == "x86_64" else "arm"):
        return f"it is a program for {named}, and this machine is {ours}"
    if data[4] != 2:  # noqa: PLR2004 - ELFCLASS64; the headers of others are laid out differently
        return ""
    start, size, count = number(32, 8), number(54, 2), number(56, 2)
    for header in range(start, min(start + size * count, start + ELF_MOST, len(data)), size or 56):
        if number(header, 4) == PT_INTERP:
            offset, length = number(header + 8, 8), number(header + 32, 8)
            name = data[offset : offset + min(length, HEAD)].rstrip(b"\0").decode("utf-8", "backslashreplace")
            if name and not _read(root, name)[0]:
                return f"its dynamic loader {name[:200]} is not in the container"
    return ""
