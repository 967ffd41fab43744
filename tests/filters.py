"""Profiles of seccomp for tests, and what a compiled filter answers."""

from __future__ import annotations

import platform
import struct

from pyoci.spec.types import Seccomp, SyscallArg, SyscallRule

ARCH = platform.machine()
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "x86": 0x40000003, "arm": 0x40000028}
MARK = 77  # an errno that no call here gives by itself
HIGH = 1 << 32
# (operator, first value, second, numbers that match, numbers that do not)
OPERATORS = [
    ("SCMP_CMP_NE", 5, 0, (4, 6, HIGH + 5), (5,)),
    ("SCMP_CMP_LT", 5, 0, (3, 4), (5, 6, HIGH + 4)),
    ("SCMP_CMP_LE", 5, 0, (4, 5), (6, HIGH + 5)),
    ("SCMP_CMP_EQ", HIGH + 5, 0, (HIGH + 5,), (5, 4, HIGH + 6)),
    ("SCMP_CMP_GE", 5, 0, (5, 6, HIGH), (3, 4)),
    ("SCMP_CMP_GT", 5, 0, (6, HIGH), (4, 5)),
    ("SCMP_CMP_MASKED_EQ", 0x70, 0x20, (0x20, 0x2F, 0x120), (0x30, 0x60, 0x40)),
]


def profile(
    *rules: SyscallRule,
    default: str = "SCMP_ACT_ALLOW",
    errno_ret: int | None = None,
    architectures: tuple[str, ...] = (),
    raw: dict[str, object] | None = None,
) -> Seccomp:
    return Seccomp(
        default_action=default, default_errno_ret=errno_ret, architectures=architectures, syscalls=rules, raw=raw
    )


def rule(name: str, action: str = "SCMP_ACT_ERRNO", ret: int | None = MARK, *args: SyscallArg) -> SyscallRule:
    return SyscallRule(names=(name,), action=action, errno_ret=ret, args=args)


def simulate(program: bytes, number: int, arch: str | int = ARCH, *args: int) -> int:
    """What the filter returns (SECCOMP_RET_*): classic BPF as the kernel runs it on struct seccomp_data."""
    arch = arch if isinstance(arch, int) else AUDIT_ARCH[arch]
    data = struct.pack("<IIQ6Q", number, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    accumulator = position = 0
    while True:
        code, true, false, k = struct.unpack_from("<HBBI", program, 8 * position)
        position += 1
        if code == 0x20:  # ld [k]
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:  # and #k
            accumulator &= k
        elif code == 0x05:  # ja
            position += k
        elif code == 0x06:  # ret
            return int(k)
        else:
            met = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[code]
            position += true if met else false
