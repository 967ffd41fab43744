"""The checks of /linux/seccomp, imported where there is one."""

from __future__ import annotations

from pyoci.kernel.seccomp import ACTIONS, ERRNO_MAX, FLAGS, NOTIFY, OPERATORS, notifies
from pyoci.spec.read import Report, one_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Seccomp

ARCHITECTURES = (
    "SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64", "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64", "SCMP_ARCH_RISCV64", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_M68K", "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
)  # fmt: skip

WHERE = "/linux/seccomp"


def _action(action: str, errno_ret: int | None, where: str, names: tuple[str, str], report: Report) -> None:
    """An action of the list; a number to return only where it returns one."""
    if action not in ACTIONS:
        report.add(f"{where}/{names[0]}", one_of(action, tuple(ACTIONS)))
    elif errno_ret is not None:
        most = ERRNO_MAX.get(action)
        if most is None:
            report.add(f"{where}/{names[1]}", f"must be absent: {action} returns no errno")
        elif errno_ret > most:
            report.add(f"{where}/{names[1]}", f"must be an integer from 0 to {most} with {action}, not {errno_ret}")


def check(seccomp: Seccomp, report: Report) -> None:
    """config-linux.md#seccomp: known names; errnoRet, listenerMetadata only with what they belong to."""
    _action(seccomp.default_action, seccomp.default_errno_ret, WHERE, ("defaultAction", "defaultErrnoRet"), report)
    for index, name in enumerate(seccomp.architectures):
        if name not in ARCHITECTURES:
            report.add(f"{WHERE}/architectures/{index}", one_of(name, ARCHITECTURES))
    for index, name in enumerate(seccomp.flags):
        if name not in FLAGS:
            report.add(f"{WHERE}/flags/{index}", one_of(name, tuple(FLAGS)))
    if seccomp.listener_metadata and not (seccomp.listener_path or report.unreliable(f"{WHERE}/listenerPath")):
        report.add(f"{WHERE}/listenerMetadata", "must be absent without listenerPath")
    if notifies(seccomp) and not (seccomp.listener_path or report.unreliable(f"{WHERE}/listenerPath")):
        report.add(f"{WHERE}/listenerPath", f"is required with {NOTIFY}: somebody must answer")
    for number, rule in enumerate(seccomp.syscalls):
        where = f"{WHERE}/syscalls/{number}"
        _action(rule.action, rule.errno_ret, where, ("action", "errnoRet"), report)
        if not rule.names:
            report.add(f"{where}/names", "must have at least one name")
        elif "" in rule.names:
            report.add(f"{where}/names/{rule.names.index('')}", "must not be empty")
        for index, argument in enumerate(rule.args):
            if argument.index > 5:
                report.add(f"{where}/args/{index}/index", f"must be an integer from 0 to 5, not {argument.index}")
            if argument.op not in OPERATORS:
                report.add(f"{where}/args/{index}/op", one_of(argument.op, tuple(OPERATORS)))
