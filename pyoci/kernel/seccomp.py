"""Numbers of seccomp(2) and of libseccomp's interface, under the names that config.json uses."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.spec.types import Seccomp

# What a filter answers for a call (SECCOMP_RET_*): the low 16 bits of ERRNO and TRACE carry a value.
ACTIONS: dict[str, int] = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
}
ERRNO_MAX = {"SCMP_ACT_ERRNO": 4094, "SCMP_ACT_TRACE": 0xFFFF}  # libseccomp takes less than MAX_ERRNO; SECCOMP_RET_DATA
NOTIFY = "SCMP_ACT_NOTIFY"

# enum scmp_compare
OPERATORS: dict[str, int] = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
ARGS_MAX = 6

SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 16
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32  # Linux 5.19
FLAGS: dict[str, int] = {
    "SECCOMP_FILTER_FLAG_TSYNC": SECCOMP_FILTER_FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}

SCMP_FLTATR_CTL_OPTIMIZE = 8
SCMP_ERROR = -1  # __NR_SCMP_ERROR: no such system call on any architecture
SCMP_ARCH_X86_64 = 0xC000003E
SCMP_ARCH_X32 = 0x4000003E  # libseccomp's own: to the kernel it is x86_64, with this bit in the number of the call
X32_SYSCALL_BIT = 0x40000000
ARCHITECTURES = {"x86_64": SCMP_ARCH_X86_64, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, by uname(2)'s name

# classic BPF as libseccomp and we write it (linux/bpf_common.h), and what it looks at (struct seccomp_data)
BPF_LD_W_ABS = 0x20
BPF_ALU_AND_K = 0x54
BPF_JA = 0x05
BPF_JEQ_K = 0x15
BPF_JGT_K = 0x25
BPF_JGE_K = 0x35
BPF_JSET_K = 0x45
BPF_RET_K = 0x06
DATA_NR = 0
DATA_ARCH = 4
BPF_MAXINSNS = 4096
INSTRUCTION = 8  # sizeof(struct sock_filter)


def filter_flags(names: Sequence[str], listener: bool = False) -> int:
    """The flags for seccomp(2), from `linux.seccomp.flags`; raises KeyError for an unknown name.

    WAIT_KILLABLE_RECV says how a notified call waits.  Without a listener nothing is ever notified and the kernel
    answers EINVAL, so it is passed on only with one.  TSYNC then needs TSYNC_ESRCH (Linux 5.7), because seccomp(2) can
    only return one of a descriptor and the thread that stood in the way.
    """
    bits = SECCOMP_FILTER_FLAG_NEW_LISTENER if listener else 0
    for name in names:
        bits |= FLAGS[name]
    if listener and bits & SECCOMP_FILTER_FLAG_TSYNC:
        bits |= SECCOMP_FILTER_FLAG_TSYNC_ESRCH
    return bits if listener else bits & ~SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV


def notifies(seccomp: Seccomp) -> bool:
    """Whether the filter has a listener: config-linux.md#seccomp, SCMP_ACT_NOTIFY."""
    return seccomp.default_action == NOTIFY or any(rule.action == NOTIFY for rule in seccomp.syscalls)
