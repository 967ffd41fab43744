"""Seccomp filters do what the configuration says: asked of the kernel, and for other machines of a BPF interpreter."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
from typing import Any

import pytest
from filters import ARCH, AUDIT_ARCH, MARK, OPERATORS, profile, rule, simulate

from pyoci import seccomp as cache
from pyoci.errors import ConfigError, PyociError
from pyoci.kernel.seccomp import (
    ACTIONS,
    ERRNO_MAX,
    FLAGS,
    SECCOMP_FILTER_FLAG_LOG,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_FILTER_FLAG_TSYNC,
    SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    filter_flags,
)
from pyoci.kernel.syscalls import numbers
from pyoci.spec.types import Seccomp, SyscallArg, SyscallRule

try:
    ctypes.CDLL("libseccomp.so.2")
except OSError:
    pytestmark = pytest.mark.skip(reason="libseccomp.so.2 is not installed")

GETPRIORITY = {"x86_64": 140, "aarch64": 141}
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1


def under(program: bytes, number: int, *args: int, flags: int = 0) -> tuple[int, int, int]:
    """The kernel's own answer to one call in a child under the filter: result, errno, and the signal that ended it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    memory = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(memory))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            words = [ctypes.c_ulong(word) for word in args]
            call = ctypes.c_long(number)
            install = libc.syscall(
                ctypes.c_long(numbers(ARCH)["seccomp"]), SECCOMP_SET_MODE_FILTER, flags, ctypes.c_char_p(fprog)
            )
            if install != 0:
                os.write(writer, struct.pack("<qi", -2, ctypes.get_errno()))
                os._exit(0)
            ctypes.set_errno(0)
            result = libc.syscall(call, *words)
            os.write(writer, struct.pack("<qi", result, ctypes.get_errno()))
        finally:
            os._exit(0)
    os.close(writer)
    answer = os.read(reader, 64)
    os.close(reader)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return 0, 0, os.WTERMSIG(status)
    result, number = struct.unpack("<qi", answer)
    return result, number, 0


# Actions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "ret", "expected"),
    [
        ("SCMP_ACT_ERRNO", None, (-1, errno.EPERM, 0)),
        ("SCMP_ACT_ERRNO", MARK, (-1, MARK, 0)),
        ("SCMP_ACT_ERRNO", 0, (0, 0, 0)),
        ("SCMP_ACT_KILL", None, (0, 0, signal.SIGSYS)),
        ("SCMP_ACT_KILL_THREAD", None, (0, 0, signal.SIGSYS)),
        ("SCMP_ACT_KILL_PROCESS", None, (0, 0, signal.SIGSYS)),
        ("SCMP_ACT_TRAP", None, (0, 0, signal.SIGSYS)),
        ("SCMP_ACT_TRACE", None, (-1, errno.ENOSYS, 0)),  # nobody traces
        ("SCMP_ACT_TRACE", 9, (-1, errno.ENOSYS, 0)),
    ],
)
def test_kernel_applies_action(action: str, ret: int | None, expected: tuple[int, int, int]) -> None:
    program = cache.compile(profile(rule("getcwd", action, ret)), ARCH)
    assert under(program, numbers(ARCH)["getcwd"], 0, 0) == expected
    assert under(program, numbers(ARCH)["getpid"])[1:] == (0, 0)


@pytest.mark.parametrize("action", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"])
def test_kernel_lets_pass(action: str) -> None:
    """The default refuses; what the profile names is let through (LOG writes to the audit log besides)."""
    names = tuple(n for n in numbers(ARCH) if n not in ("getcwd", "chdir", "getppid"))
    extra = ("brk", "futex", "madvise", "rt_sigreturn")
    program = cache.compile(
        profile(
            SyscallRule(names=names + extra, action="SCMP_ACT_ALLOW"), rule("getppid", action, None),
            default="SCMP_ACT_ERRNO", errno_ret=MARK,
        ),
        ARCH,
    )  # fmt: skip
    assert under(program, numbers(ARCH)["getcwd"], 0, 0) == (-1, MARK, 0)
    assert under(program, numbers(ARCH)["getppid"]) == (os.getpid(), 0, 0)


@pytest.mark.parametrize(("action", "number"), ACTIONS.items())
def test_every_action_is_the_kernels_number(action: str, number: int) -> None:
    default = "SCMP_ACT_ERRNO" if action == "SCMP_ACT_ALLOW" else "SCMP_ACT_ALLOW"
    program = cache.compile(profile(rule("getcwd", action, None), default=default), ARCH)
    low = errno.EPERM if action in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else 0
    assert simulate(program, numbers(ARCH)["getcwd"]) == number | low
    if action not in ("SCMP_ACT_ALLOW", default):
        whole = cache.compile(profile(default=action), ARCH)
        assert simulate(whole, numbers(ARCH)["getcwd"]) == number | low


def test_default_errno() -> None:
    program = cache.compile(profile(default="SCMP_ACT_ERRNO", errno_ret=38), ARCH)
    assert simulate(program, 3) == ACTIONS["SCMP_ACT_ERRNO"] | 38


# Rules ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "first", "second", "matching", "other"), OPERATORS)
def test_operators(op: str, first: int, second: int, matching: tuple[int, ...], other: tuple[int, ...]) -> None:
    """getpriority of a kind that does not exist is EINVAL, unless the filter answers first."""
    program = cache.compile(
        profile(rule("getpriority", "SCMP_ACT_ERRNO", MARK, SyscallArg(index=0, value=first, value_two=second, op=op))),
        ARCH,
    )
    for value in matching:
        assert under(program, GETPRIORITY[ARCH], value, 0) == (-1, MARK, 0), value
    for value in other:
        assert under(program, GETPRIORITY[ARCH], value, 0) == (-1, errno.EINVAL, 0), value


def test_all_arguments_of_a_rule_must_match() -> None:
    args = (SyscallArg(0, 5, 0, "SCMP_CMP_EQ"), SyscallArg(1, 9, 0, "SCMP_CMP_GT"))
    program = cache.compile(profile(rule("getpriority", "SCMP_ACT_ERRNO", MARK, *args)), ARCH)
    assert under(program, GETPRIORITY[ARCH], 5, 10) == (-1, MARK, 0)
    assert under(program, GETPRIORITY[ARCH], 5, 9) == (-1, errno.EINVAL, 0)
    assert under(program, GETPRIORITY[ARCH], 6, 10) == (-1, errno.EINVAL, 0)


def test_one_argument_compared_twice_means_either() -> None:
    args = (SyscallArg(0, 5, 0, "SCMP_CMP_EQ"), SyscallArg(0, 8, 0, "SCMP_CMP_EQ"))
    program = cache.compile(profile(rule("getpriority", "SCMP_ACT_ERRNO", MARK, *args)), ARCH)
    assert [under(program, GETPRIORITY[ARCH], which, 0)[1] for which in (5, 6, 8)] == [MARK, errno.EINVAL, MARK]


def test_rules_that_say_what_the_default_says_are_skipped() -> None:
    program = cache.compile(profile(rule("getcwd", "SCMP_ACT_ALLOW", None), rule("getcwd")), ARCH)
    assert under(program, numbers(ARCH)["getcwd"], 0, 0) == (-1, MARK, 0)


def test_several_rules_for_one_call() -> None:
    """As libseccomp has it: of two alike the first counts, and one without conditions replaces those with some."""
    refuse = ACTIONS["SCMP_ACT_ERRNO"]
    getcwd = numbers(ARCH)["getcwd"]
    one = rule("getcwd", "SCMP_ACT_ERRNO", 1, SyscallArg(0, 1, 0, "SCMP_CMP_EQ"))
    two = rule("getcwd", "SCMP_ACT_ERRNO", 2, SyscallArg(0, 2, 0, "SCMP_CMP_EQ"))
    three = rule("getcwd", "SCMP_ACT_ERRNO", 3)
    program = cache.compile(profile(one, two), ARCH)
    assert [simulate(program, getcwd, ARCH, n) for n in (1, 2)] == [refuse | 1, refuse | 2]
    program = cache.compile(profile(one, two, three, rule("getcwd", "SCMP_ACT_ERRNO", 4)), ARCH)
    assert [simulate(program, getcwd, ARCH, n) for n in (1, 2, 3)] == [refuse | 3] * 3


def test_unknown_calls_are_skipped() -> None:
    program = cache.compile(
        profile(SyscallRule(names=("call_of_2040", "getcwd", "arm_fadvise64_64"), action="SCMP_ACT_ERRNO")), ARCH
    )
    assert under(program, numbers(ARCH)["getcwd"], 0, 0) == (-1, errno.EPERM, 0)


def test_a_large_profile() -> None:
    """Every call that plans know, each with another answer: the binary tree of comparisons finds all of them."""
    table = numbers(ARCH)
    rules = tuple(rule(name, "SCMP_ACT_ERRNO", 1 + index) for index, name in enumerate(table))
    program = cache.compile(profile(*rules, default="SCMP_ACT_KILL_PROCESS"), ARCH)
    for index, number in enumerate(table.values()):
        assert simulate(program, number) == ACTIONS["SCMP_ACT_ERRNO"] | 1 + index
    assert simulate(program, 1023) == ACTIONS["SCMP_ACT_KILL_PROCESS"]


# Calls that are newer than the profile ------------------------------------------------------------------------------

NEW = 1000  # no kernel has it yet
ENOSYS = ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
EPERM = ACTIONS["SCMP_ACT_ERRNO"] | errno.EPERM


def everyday(*more: SyscallRule, default: str = "SCMP_ACT_ERRNO", **others: Any) -> Seccomp:
    """What `under` needs, and no call newer than close_range; not getcwd."""
    names = [name for name, number in numbers(ARCH).items() if number <= numbers(ARCH)["close_range"]]
    names = [name for name in names if name != "getcwd"]
    allow = SyscallRule(names=(*names, "brk", "futex", "madvise", "rt_sigreturn"), action="SCMP_ACT_ALLOW")
    return profile(allow, *more, default=default, **others)


def test_newer_calls_are_not_there() -> None:
    """Refused, but as an older kernel would: ENOSYS makes a program try the older call, EPERM makes it fail."""
    program = cache.compile(everyday(), ARCH)
    newest = numbers(ARCH)["close_range"]
    assert under(program, NEW) == (-1, errno.ENOSYS, 0)
    assert under(program, newest + 1) == (-1, errno.ENOSYS, 0)
    assert under(program, numbers(ARCH)["getcwd"], 0, 0) == (-1, errno.EPERM, 0)
    assert under(program, newest, 1000, 0, 0)[1] == errno.EINVAL  # the kernel's own answer
    assert [simulate(program, n) for n in (newest + 1, 0xFFFF, 0x3FFFFFFF)] == [ENOSYS] * 3


def test_any_rule_is_a_decision_about_its_call() -> None:
    program = cache.compile(everyday(rule("faccessat2", "SCMP_ACT_ERRNO", MARK)), ARCH)
    found = [simulate(program, numbers(ARCH)["faccessat2"] + n) for n in (-1, 0, 1)]
    assert found[1:] == [ACTIONS["SCMP_ACT_ERRNO"] | MARK, ENOSYS]


@pytest.mark.parametrize(
    ("default", "ret", "expected"),
    [
        ("SCMP_ACT_ERRNO", None, ENOSYS),
        ("SCMP_ACT_ERRNO", errno.EPERM, ENOSYS),
        ("SCMP_ACT_ERRNO", MARK, ENOSYS),
        ("SCMP_ACT_ERRNO", errno.ENOSYS, ENOSYS),
        ("SCMP_ACT_KILL", None, ACTIONS["SCMP_ACT_KILL"]),
        ("SCMP_ACT_KILL_PROCESS", None, ACTIONS["SCMP_ACT_KILL_PROCESS"]),
        ("SCMP_ACT_TRAP", None, ACTIONS["SCMP_ACT_TRAP"]),
        ("SCMP_ACT_TRACE", 5, ACTIONS["SCMP_ACT_TRACE"] | 5),
        ("SCMP_ACT_LOG", None, ACTIONS["SCMP_ACT_LOG"]),
    ],
)
def test_other_defaults_hold_for_newer_calls_too(default: str, ret: int | None, expected: int) -> None:
    program = cache.compile(everyday(default=default, errno_ret=ret), ARCH)
    assert simulate(program, NEW) == expected
    if ret == errno.ENOSYS:  # nothing to add
        assert len(program) < len(cache.compile(everyday(), ARCH))


def test_a_profile_without_calls_is_older_than_all() -> None:
    program = cache.compile(profile(default="SCMP_ACT_ERRNO"), ARCH)
    assert [simulate(program, n) for n in (0, NEW)] == [EPERM] * 2
    program = cache.compile(profile(rule("call_of_2040"), default="SCMP_ACT_ERRNO"), ARCH)
    assert [simulate(program, n) for n in (0, NEW)] == [EPERM] * 2


LITTLE = ("X86", "X86_64", "X32", "ARM", "AARCH64", "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC64LE", "RISCV64")
X32_BIT = 0x40000000
KERNELS_OWN = 0x4000003E  # libseccomp's number of x32, which the kernel does not know


@pytest.mark.parametrize("listed", [(name,) for name in LITTLE] + [LITTLE, ("X86", "X86_64", "X32")])
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_newer_calls_of_every_architecture(monkeypatch: pytest.MonkeyPatch, arch: str, listed: tuple[str, ...]) -> None:
    """For each architecture of the filter, above its own newest call ENOSYS, and below what there was before."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    seccomp = profile(
        SyscallRule(names=("read", "exit_group", "chown", "socket", "openat2"), action="SCMP_ACT_ALLOW"),
        default="SCMP_ACT_ERRNO",
        architectures=tuple("SCMP_ARCH_" + name for name in listed),
    )
    program = cache.compile(seccomp, arch)
    monkeypatch.setattr("pyoci.newer_calls.prologue", lambda newest: b"")
    before = cache.compile(seccomp, arch)
    tokens = {library.seccomp_arch_resolve_name(name.lower().encode()) for name in (*listed, arch)}
    for token in {*tokens, *AUDIT_ARCH.values()}:
        openat2 = library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), b"openat2")
        kernels = AUDIT_ARCH["x86_64"] if token == KERNELS_OWN else token
        low = X32_BIT if token == KERNELS_OWN else 0
        for number in (*range(low, low + 600), *range(openat2 - 2, openat2 + 600)):
            expected = simulate(before, number, kernels)
            if token in tokens and number > openat2 and (kernels != AUDIT_ARCH["x86_64"] or low == number & X32_BIT):
                expected = ENOSYS
            assert simulate(program, number, kernels) == expected, (hex(token), number)
        assert simulate(program, openat2, kernels) in (ACTIONS["SCMP_ACT_ALLOW"], ACTIONS["SCMP_ACT_KILL"])


# Architectures and flags ---------------------------------------------------------------------------------------------

SAME_ORDER = ("X86", "X86_64", "X32", "ARM", "AARCH64", "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC64LE", "RISCV64")
BIG_ENDIAN = ("MIPS", "MIPS64", "MIPS64N32", "PPC", "PPC64", "S390", "S390X", "PARISC", "PARISC64")
NEWER = ("LOONGARCH64", "M68K", "SH", "SHEB")  # than some libseccomp that is in use


@pytest.mark.parametrize("name", SAME_ORDER + BIG_ENDIAN + NEWER)
def test_every_architecture(name: str) -> None:
    """All 23 are known; one whose bytes are the other way round cannot share a filter with the machine's own."""
    seccomp = profile(rule("getcwd"), architectures=("SCMP_ARCH_" + name,))
    if name in SAME_ORDER:
        assert cache.compile(seccomp, ARCH)
        return
    try:
        cache.compile(seccomp, ARCH)
    except ConfigError as error:
        assert error.problems[0].pointer == "/linux/seccomp/architectures/0"
    else:
        assert name in NEWER


@pytest.mark.parametrize("action", sorted(ERRNO_MAX))
def test_the_largest_errno(action: str) -> None:
    """What spec/seccomp_rules.py lets through libseccomp compiles, as the default too."""
    most = ERRNO_MAX[action]
    program = cache.compile(profile(default=action, errno_ret=most), ARCH)
    assert simulate(program, numbers(ARCH)["getcwd"], ARCH) == ACTIONS[action] | most
    program = cache.compile(profile(rule("getcwd", action, most)), ARCH)
    assert simulate(program, numbers(ARCH)["getcwd"], ARCH) == ACTIONS[action] | most


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_for_another_machine(arch: str) -> None:
    program = cache.compile(profile(rule("getcwd"), rule("chown", "SCMP_ACT_ERRNO", 5)), arch)
    assert simulate(program, numbers(arch)["getcwd"], arch) == ACTIONS["SCMP_ACT_ERRNO"] | MARK
    assert simulate(program, numbers(arch)["openat"], arch) == ACTIONS["SCMP_ACT_ALLOW"]
    other = "aarch64" if arch == "x86_64" else "x86_64"
    assert simulate(program, numbers(other)["openat"], other) == ACTIONS["SCMP_ACT_KILL"]


def test_listed_architectures_are_added_to_the_machines_own() -> None:
    both = profile(rule("getcwd"), architectures=("SCMP_ARCH_X86", "SCMP_ARCH_X86_64"))
    program = cache.compile(both, "x86_64")
    assert simulate(program, 79, "x86_64") == ACTIONS["SCMP_ACT_ERRNO"] | MARK
    assert simulate(program, 183, "x86") == ACTIONS["SCMP_ACT_ERRNO"] | MARK
    assert simulate(program, 183, "arm") == ACTIONS["SCMP_ACT_KILL"]


def test_flags() -> None:
    assert filter_flags(()) == 0
    assert filter_flags(tuple(FLAGS)) == 1 | 2 | 4  # WAIT_KILLABLE_RECV means nothing without a listener
    assert filter_flags(("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",), listener=True) == (
        SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV | SECCOMP_FILTER_FLAG_NEW_LISTENER
    )
    # seccomp(2): with both, one of them alone could be returned
    assert filter_flags(("SECCOMP_FILTER_FLAG_TSYNC",), listener=True) == 1 | 16 | SECCOMP_FILTER_FLAG_NEW_LISTENER
    with pytest.raises(KeyError):
        filter_flags(("SECCOMP_FILTER_FLAG_X",))


@pytest.mark.parametrize("names", [(name,) for name in FLAGS] + [tuple(FLAGS)])
def test_kernel_takes_the_flags(names: tuple[str, ...]) -> None:
    program = cache.compile(profile(rule("getcwd")), ARCH)
    assert under(program, numbers(ARCH)["getcwd"], 0, 0, flags=filter_flags(names)) == (-1, MARK, 0)
    assert SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG == 3


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seccomp", "pointer"),
    [
        (profile(default="SCMP_ACT_X"), "/linux/seccomp/defaultAction"),
        (profile(default="SCMP_ACT_KILL", errno_ret=1), "/linux/seccomp/defaultErrnoRet"),
        (profile(default="SCMP_ACT_ERRNO", errno_ret=4096), "/linux/seccomp/defaultErrnoRet"),
        (profile(rule("getcwd", "SCMP_ACT_KILL", 1)), "/linux/seccomp/syscalls/0/errnoRet"),
        (profile(rule("getcwd", "SCMP_ACT_X", 1)), "/linux/seccomp/syscalls/0/action"),
        (profile(architectures=("SCMP_ARCH_VAX",)), "/linux/seccomp/architectures/0"),
        (profile(architectures=("x86_64",)), "/linux/seccomp/architectures/0"),
        (
            profile(rule("getcwd"), rule("chdir", "SCMP_ACT_ERRNO", 1, SyscallArg(6, 1, 0, "SCMP_CMP_EQ"))),
            "/linux/seccomp/syscalls/1/args/0/index",
        ),
        (
            profile(rule("chdir", "SCMP_ACT_ERRNO", 1, SyscallArg(0, 1, 0, "SCMP_CMP_XX"))),
            "/linux/seccomp/syscalls/0/args/0/op",
        ),
        (
            profile(rule("chdir", "SCMP_ACT_ERRNO", 1, SyscallArg(0, 1, 1 << 64, "SCMP_CMP_EQ"))),
            "/linux/seccomp/syscalls/0/args/0/valueTwo",
        ),
    ],
)
def test_errors_point_at_the_property(seccomp: Seccomp, pointer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cache.compile(seccomp, ARCH)
    assert [problem.pointer for problem in caught.value.problems] == [pointer]


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyoci.libseccomp.LIBRARY", "libseccomp.so.none")
    with pytest.raises(PyociError, match="libseccomp2"):
        cache.compile(profile(), ARCH)


def test_other_machine_is_refused() -> None:
    with pytest.raises(PyociError, match="vax"):
        cache.compile(profile(), "vax")
