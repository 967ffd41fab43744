"""What a filter answers for system calls that are newer than its profile: ENOSYS, as an older kernel would.

A C library tries a new call and falls back on an old one when the kernel says ENOSYS. A profile that refuses what it
does not list says EPERM, which is no reason to fall back: so programs break that are newer than the profile.  System
calls are numbered in the order of their invention, on every architecture; a call with a number above all that the
profile names is one that its author has not decided about.  It is as refused as before, with the words of a kernel that
does not have it.

libseccomp has no such rule.  Its compiled filter is a position-independent run of instructions, and gets these in
front of it.
"""

from __future__ import annotations

from _struct import Struct as Packer

from pyoci.kernel.errnos import ERRNOS
from pyoci.kernel.seccomp import (
    ACTIONS,
    BPF_JEQ_K,
    BPF_JGE_K,
    BPF_JGT_K,
    BPF_LD_W_ABS,
    BPF_RET_K,
    DATA_ARCH,
    DATA_NR,
    SCMP_ARCH_X32,
    SCMP_ARCH_X86_64,
    X32_SYSCALL_BIT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

ENOSYS = next(number for number, (name, _) in ERRNOS.items() if name == "ENOSYS")
ANSWER = ACTIONS["SCMP_ACT_ERRNO"] | ENOSYS
FILTER = Packer("<HBBI")  # struct sock_filter: code, jt, jf, k


def prologue(newest: Mapping[int, int]) -> bytes:
    """Instructions that answer ENOSYS for calls above `newest[architecture]`, and let all others fall out of their end.

    An architecture is a number of libseccomp's, SCMP_ARCH_*.  Calls of architectures that are not listed are none of
    our business: what follows decides.
    """
    blocks: list[tuple[int, list[bytes]]] = [
        # the last step of each block jumps over the answer, which comes right behind it
        (token, [FILTER.pack(BPF_JGT_K, 0, 1, most)])
        for token, most in newest.items()
        if token not in (SCMP_ARCH_X32, SCMP_ARCH_X86_64)
    ]
    # These two are one architecture to the kernel, told apart by a bit of the call's number.  Where the profile is for
    # only one of them, what follows refuses the other in its own way.
    plain, other = newest.get(SCMP_ARCH_X86_64), newest.get(SCMP_ARCH_X32)
    if plain is not None and other is not None:
        steps = [
            FILTER.pack(BPF_JGE_K, 1, 0, X32_SYSCALL_BIT),
            FILTER.pack(BPF_JGT_K, 1, 2, plain),
            FILTER.pack(BPF_JGT_K, 0, 1, other),
        ]
        blocks.append((SCMP_ARCH_X86_64, steps))
    elif plain is not None:
        steps = [FILTER.pack(BPF_JGE_K, 2, 0, X32_SYSCALL_BIT), FILTER.pack(BPF_JGT_K, 0, 1, plain)]
        blocks.append((SCMP_ARCH_X86_64, steps))
    elif other is not None:
        steps = [FILTER.pack(BPF_JGE_K, 0, 2, X32_SYSCALL_BIT), FILTER.pack(BPF_JGT_K, 0, 1, other)]
        blocks.append((SCMP_ARCH_X86_64, steps))
    # the accumulator holds the number after a block, so each loads the architecture for itself
    program = b""
    for token, steps in blocks:
        program += FILTER.pack(BPF_LD_W_ABS, 0, 0, DATA_ARCH)
        program += FILTER.pack(BPF_JEQ_K, 0, len(steps) + 2, token)
        program += FILTER.pack(BPF_LD_W_ABS, 0, 0, DATA_NR)
        program += b"".join(steps)
        program += FILTER.pack(BPF_RET_K, 0, 0, ANSWER)
    return program
