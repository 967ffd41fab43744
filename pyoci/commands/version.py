"""`pyoci --version`: the first lines are those that engines parse (`NAME version X`, `spec: Y`)."""

from __future__ import annotations

import sys

from pyoci import SPEC_VERSION, VERSION
from pyoci.log import output


def show() -> int:
    """Print the versions of pyoci, of the specification that it follows and of what it uses."""
    lines = [f"pyoci version {VERSION}", f"spec: {SPEC_VERSION}"]
    lines.append(f"python: {'.'.join(map(str, sys.version_info[:3]))}")
    seccomp = libseccomp()
    if seccomp:
        lines.append(f"libseccomp: {seccomp}")
    output("\n".join(lines) + "\n")
    return 0


def libseccomp() -> str:
    """The version of the libseccomp that filters would be made with, "" when there is none (seccomp_version(3))."""
    import ctypes

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return ""
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return ".".join(map(str, library.seccomp_version().contents))
