"""`linux.seccomp` to BPF instructions, by libseccomp.so.2 through ctypes: the slow half of `pyoci.seccomp`.

ctypes is imported here, and this module only when a filter is not in the cache.  Nothing is loaded into this process:
the filter is exported as bytes, and the container's init passes them to seccomp(2).
"""

from __future__ import annotations

import ctypes
import posix

from pyoci.errors import ConfigError, Problem, PyociError
from pyoci.kernel.errnos import words
from pyoci.kernel.seccomp import (
    ACTIONS,
    ARGS_MAX,
    BPF_MAXINSNS,
    ERRNO_MAX,
    INSTRUCTION,
    OPERATORS,
    SCMP_ERROR,
    SCMP_FLTATR_CTL_OPTIMIZE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyoci.spec.types import Seccomp, SyscallArg, SyscallRule

LIBRARY = "libseccomp.so.2"
EPERM = 1
EEXIST = 17
EDOM = 33
BAD_ARCHITECTURE = 0
ARCHITECTURE_PREFIX = "SCMP_ARCH_"
BINARY_TREE = 2


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise PyociError(
            f"/linux/seccomp: cannot load {LIBRARY}: {error}; "
            "install the package libseccomp2 (Debian, Ubuntu) or libseccomp (others)"
        ) from None
    context, token, action, call = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int
    name = ctypes.c_char_p
    for function, result, arguments in (
        ("seccomp_init", context, (action,)),
        ("seccomp_release", None, (context,)),
        ("seccomp_arch_native", token, ()),
        ("seccomp_arch_resolve_name", token, (name,)),
        ("seccomp_arch_add", ctypes.c_int, (context, token)),
        ("seccomp_arch_remove", ctypes.c_int, (context, token)),
        ("seccomp_attr_set", ctypes.c_int, (context, ctypes.c_int, ctypes.c_uint32)),
        ("seccomp_syscall_resolve_name", call, (name,)),
        ("seccomp_syscall_resolve_name_arch", call, (token, name)),
        (
            "seccomp_rule_add_array",
            ctypes.c_int,
            (context, action, call, ctypes.c_uint, ctypes.POINTER(_Comparison)),
        ),
        ("seccomp_export_bpf", ctypes.c_int, (context, ctypes.c_int)),
    ):
        entry = getattr(library, function)
        entry.restype = result
        entry.argtypes = arguments
    return library


def library_file() -> bytes:
    """The path of the loaded library as the kernel sees it, empty when it cannot be told."""
    try:
        with open("/proc/self/maps", "rb") as maps:
            for line in maps:
                fields = line.rstrip(b"\n").split(None, 5)
                if len(fields) > 5 and b"/libseccomp.so" in fields[5]:
                    return fields[5]
    except OSError:
        pass  # then the filter is not cached
    return b""


def _bad(pointer: str, message: str) -> ConfigError:
    return ConfigError([Problem(pointer, message, "config-linux.md#seccomp")])


def _check(result: int, pointer: str, call: str) -> None:
    if result < 0:
        raise _bad(pointer, f"libseccomp: {call}: {words(-result)}")


def _action(action: str, errno: int | None, pointer: str, errno_pointer: str) -> int:
    """The number of `action`, the errno in its low bits; EPERM where the action takes one and none is given."""
    number = ACTIONS.get(action)
    if number is None:
        raise _bad(pointer, f"{action!r} is not an action")
    limit = ERRNO_MAX.get(action)
    if limit is None:
        if errno is not None:
            raise _bad(errno_pointer, f"{action} takes no errno")
        return number
    if errno is None:
        errno = EPERM
    if not 0 <= errno <= limit:
        raise _bad(errno_pointer, f"{errno} is not in 0..{limit}")
    return number | errno


def _comparison(arg: SyscallArg, pointer: str) -> _Comparison:
    if not 0 <= arg.index < ARGS_MAX:
        raise _bad(pointer + "/index", f"a system call has arguments 0 to {ARGS_MAX - 1}, not {arg.index}")
    if arg.op not in OPERATORS:
        raise _bad(pointer + "/op", f"{arg.op!r} is not an operator")
    for member, value in (("value", arg.value), ("valueTwo", arg.value_two)):
        if not 0 <= value < 1 << 64:
            raise _bad(f"{pointer}/{member}", f"{value} is not an unsigned 64-bit number")
    return _Comparison(arg.index, OPERATORS[arg.op], arg.value, arg.value_two)


def _conditions(rule: SyscallRule, pointer: str) -> Iterator[Sequence[_Comparison]]:
    """The conditions of each libseccomp rule that `rule` stands for.

    All of `args` must hold together.  But libseccomp takes one comparison per argument, and profiles that name an
    argument twice mean either comparison (runtimes have always applied them so): then each becomes a rule of its own.
    """
    comparisons = [_comparison(arg, f"{pointer}/args/{index}") for index, arg in enumerate(rule.args)]
    if len({comparison.arg for comparison in comparisons}) == len(comparisons):
        yield comparisons
    else:
        for comparison in comparisons:
            yield (comparison,)


def _architectures(library: ctypes.CDLL, context: int, seccomp: Seccomp, arch: str) -> list[int]:
    """The filter answers for `arch` and for what the configuration lists; calls by any other kill the thread.

    Returns the numbers of all of them.
    """
    native = library.seccomp_arch_native()
    target = library.seccomp_arch_resolve_name(arch.encode())
    if target == BAD_ARCHITECTURE:
        raise PyociError(f"/linux/seccomp: {LIBRARY} does not know the architecture {arch}")
    if target != native:
        _check(library.seccomp_arch_add(context, target), "/linux/seccomp", f"seccomp_arch_add({arch})")
        _check(library.seccomp_arch_remove(context, native), "/linux/seccomp", "seccomp_arch_remove(native)")
    tokens = [target]
    for index, name in enumerate(seccomp.architectures):
        pointer = f"/linux/seccomp/architectures/{index}"
        token = BAD_ARCHITECTURE
        if name.startswith(ARCHITECTURE_PREFIX):
            token = library.seccomp_arch_resolve_name(name.removeprefix(ARCHITECTURE_PREFIX).lower().encode())
        if token == BAD_ARCHITECTURE:
            raise _bad(pointer, f"{name!r} is not an architecture that the installed {LIBRARY} knows")
        result = library.seccomp_arch_add(context, token)
        if result == -EDOM:
            raise _bad(pointer, f"{name} has another byte order than {arch}, and no filter can be for both")
        if result != -EEXIST:
            _check(result, pointer, f"seccomp_arch_add({name})")
            tokens.append(token)
    return tokens


def _rules(library: ctypes.CDLL, context: int, seccomp: Seccomp, default: int) -> None:
    told: set[tuple[object, ...]] = set()
    for index, rule in enumerate(seccomp.syscalls):
        pointer = f"/linux/seccomp/syscalls/{index}"
        action = _action(rule.action, rule.errno_ret, pointer + "/action", pointer + "/errnoRet")
        conditions = list(_conditions(rule, pointer))
        if action == default:
            continue  # libseccomp refuses rules that change nothing
        for position, name in enumerate(rule.names):
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == SCMP_ERROR:
                continue  # newer, or older, than the library: profiles are written for many
            for condition in conditions:
                # the library looks through all that it has been told: nothing is said twice, nor what cannot fit
                rule_told = (action, number, *[(each.arg, each.op, each.datum_a, each.datum_b) for each in condition])
                if rule_told in told:
                    continue
                told.add(rule_told)
                if len(told) > BPF_MAXINSNS:
                    raise _bad("/linux/seccomp", f"has more rules than the kernel takes instructions: {BPF_MAXINSNS}")
                array = (_Comparison * len(condition))(*condition)
                _check(
                    library.seccomp_rule_add_array(context, action, number, len(condition), array),
                    f"{pointer}/names/{position}",
                    f"seccomp_rule_add_array({rule.action}, {name}, {len(condition)} comparisons)",
                )


def _newest(library: ctypes.CDLL, seccomp: Seccomp, tokens: Sequence[int]) -> dict[int, int]:
    """The highest number among the calls that the profile names, for each architecture that has any of them."""
    names = {name.encode() for rule in seccomp.syscalls for name in rule.names}
    found: dict[int, int] = {}
    for token in tokens:
        # negative: not of this architecture, unknown, or a part of another call (socketcall)
        numbers = [library.seccomp_syscall_resolve_name_arch(token, name) for name in names]
        most = max(numbers, default=-1)
        if most >= 0:
            found[token] = most
    return found


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = posix.memfd_create("seccomp", posix.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd), "/linux/seccomp", "seccomp_export_bpf")
        size = posix.fstat(fd).st_size
        return posix.pread(fd, size, 0)
    finally:
        posix.close(fd)


def compile_filter(seccomp: Seccomp, arch: str) -> bytes:
    """An array of struct sock_filter for the machine `arch` (uname(2): x86_64, aarch64).

    Raises ConfigError with the pointer of what is wrong, and PyociError when libseccomp is not installed.
    """
    default = _action(
        seccomp.default_action,
        seccomp.default_errno_ret,
        "/linux/seccomp/defaultAction",
        "/linux/seccomp/defaultErrnoRet",
    )
    library = _load()
    context = library.seccomp_init(default)
    if not context:
        raise _bad("/linux/seccomp/defaultAction", f"libseccomp: seccomp_init({seccomp.default_action}) failed")
    try:
        # A tree of comparisons instead of a list: a call costs log n. A library that cannot, does without.
        library.seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, BINARY_TREE)
        tokens = _architectures(library, context, seccomp, arch)
        _rules(library, context, seccomp, default)
        program = _export(library, context)
        if seccomp.default_action == "SCMP_ACT_ERRNO":
            from pyoci.newer_calls import ANSWER, prologue

            if default != ANSWER:
                program = prologue(_newest(library, seccomp, tokens)) + program
    finally:
        library.seccomp_release(context)
    if len(program) // INSTRUCTION > BPF_MAXINSNS:
        raise _bad(
            "/linux/seccomp", f"compiles to {len(program) // INSTRUCTION} instructions; the kernel takes {BPF_MAXINSNS}"
        )
    return program
