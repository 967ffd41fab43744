"""The flags of seccomp(2) by the specification's names (config-linux.md#seccomp)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Seccomp

FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}


def flag_bits(seccomp: Seccomp) -> int:
    """`flags` as seccomp(2) takes them."""
    bits = 0
    for name in seccomp.flags:
        bits |= FLAGS[name]
    return bits
