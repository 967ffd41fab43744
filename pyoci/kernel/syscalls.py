"""System call numbers by name, for the architectures that init is built for.

One small module per architecture holds the numbers, so that a command loads only its own.
"""

from __future__ import annotations

ARCHITECTURES = ("x86_64", "aarch64")


def numbers(arch: str) -> dict[str, int]:
    """Name -> number of the system calls that plans may use on `arch` (a machine name of uname(2)).

    Raises KeyError for an architecture that init is not built for.
    """
    if arch == "x86_64":
        from pyoci.kernel.syscalls_x86_64 import NUMBERS
    elif arch == "aarch64":
        from pyoci.kernel.syscalls_aarch64 import NUMBERS
    else:
        raise KeyError(arch)
    return NUMBERS
