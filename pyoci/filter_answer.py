"""What a compiled filter answers for a call: the classic BPF that libseccomp writes, as the kernel runs it."""

from __future__ import annotations

from _struct import Struct as Packer
from _struct import unpack_from

from pyoci.kernel.seccomp import (
    BPF_ALU_AND_K,
    BPF_JA,
    BPF_JEQ_K,
    BPF_JGE_K,
    BPF_JGT_K,
    BPF_JSET_K,
    BPF_LD_W_ABS,
    BPF_RET_K,
    INSTRUCTION,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DATA = Packer("<IIQ6Q")  # struct seccomp_data: nr, arch, instruction_pointer, args
FILTER = "<HBBI"


def answer(program: bytes, architecture: int, number: int, args: Sequence[int]) -> int:
    """SECCOMP_RET_* for the call `number(*args)` of `architecture` (AUDIT_ARCH_*); ValueError for another language."""
    data = DATA.pack(number, architecture, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    accumulator = position = 0
    while True:
        code, true, false, k = unpack_from(FILTER, program, INSTRUCTION * position)
        position += 1
        if code == BPF_LD_W_ABS:
            accumulator = int.from_bytes(data[k : k + 4], "little")
        elif code == BPF_ALU_AND_K:
            accumulator &= k
        elif code == BPF_JA:
            position += k
        elif code == BPF_RET_K:
            return int(k)
        elif code == BPF_JEQ_K:
            position += true if accumulator == k else false
        elif code == BPF_JGT_K:
            position += true if accumulator > k else false
        elif code == BPF_JGE_K:
            position += true if accumulator >= k else false
        elif code == BPF_JSET_K:
            position += true if accumulator & k else false
        else:
            raise ValueError(f"instruction {code:#x}")
