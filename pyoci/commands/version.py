"""`pyoci --version`: the first lines are those that engines parse (`NAME version X`, `commit: Y`, `spec: Z`)."""

from __future__ import annotations

import posix
import sys

from pyoci import SPEC_VERSION, VERSION
from pyoci.log import output


def show() -> int:
    """Print the versions of pyoci, of the specification that it follows and of what it uses."""
    lines = [f"pyoci version {VERSION}", f"commit: {VERSION}+{sources()}", f"spec: {SPEC_VERSION}"]
    lines.append(f"python: {'.'.join(map(str, sys.version_info[:3]))}")
    seccomp = libseccomp()
    if seccomp:
        lines.append(f"libseccomp: {seccomp}")
    output("\n".join(lines) + "\n")
    return 0


def sources() -> str:
    """Twelve digits that stand for the text of the package: engines want to tell two builds of a version apart, and
    what is installed from a directory knows no commit."""
    import hashlib

    top = __file__.rpartition("/commands/")[0]
    digest = hashlib.sha256()
    directories = [top]
    for directory in directories:
        for name in sorted(posix.listdir(directory)):
            path = f"{directory}/{name}"
            if name.endswith(".py"):
                with open(path, "rb") as file:  # noqa: PTH123 - pathlib takes longer than all of this
                    digest.update(path[len(top) :].encode() + b"\0" + file.read())
            elif "." not in name and name != "__pycache__":
                try:
                    posix.listdir(path)
                except NotADirectoryError:
                    continue
                directories.append(path)
    return digest.hexdigest()[:12]


def libseccomp() -> str:
    """The version of the libseccomp that filters would be made with, "" when there is none (seccomp_version(3))."""
    import ctypes

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return ""
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return ".".join(map(str, library.seccomp_version().contents))
