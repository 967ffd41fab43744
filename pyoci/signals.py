"""Names and numbers of signals (signal(7)), without `signal`, which is built on `enum`.

The numbers are those of x86_64 and aarch64, which agree.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed describes only what `signal` makes of it

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NUMBERS = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "TRAP": 5,
    "ABRT": 6,
    "BUS": 7,
    "FPE": 8,
    "KILL": 9,
    "USR1": 10,
    "SEGV": 11,
    "USR2": 12,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
    "STKFLT": 16,
    "CHLD": 17,
    "CONT": 18,
    "STOP": 19,
    "TSTP": 20,
    "TTIN": 21,
    "TTOU": 22,
    "URG": 23,
    "XCPU": 24,
    "XFSZ": 25,
    "VTALRM": 26,
    "PROF": 27,
    "WINCH": 28,
    "IO": 29,
    "PWR": 30,
    "SYS": 31,
}
ALIASES = {"IOT": 6, "CLD": 17, "POLL": 29}
SIGKILL = 9
SIGTERM = 15
SIGCHLD = 17
SIGWINCH = 28
# The C library keeps 32 and 33 to itself, so programs' SIGRTMIN is 34 (signal(7)).
RTMIN, RTMAX = 34, 64


def parse(text: str) -> int:
    """A signal's number from its number or its name: `9`, `KILL`, `sigkill`, `RTMIN+1`, `RTMAX-2`; 0 only tests.

    PyociError for anything else.
    """
    if text.isascii() and text.isdigit() and len(text) < 4 and int(text) <= RTMAX:
        return int(text)
    name = text.upper().removeprefix("SIG")
    number = NUMBERS.get(name) or ALIASES.get(name)
    if number:
        return number
    for base, start, sign in (("RTMIN", RTMIN, "+"), ("RTMAX", RTMAX, "-")):
        rest = name.removeprefix(base)
        if rest == name:
            continue
        if not rest:
            return start
        digits = rest[1:]
        if rest[0] == sign and digits.isascii() and digits.isdigit() and len(digits) < 3:
            number = start + int(digits) if sign == "+" else start - int(digits)
            if RTMIN <= number <= RTMAX:
                return number
    raise PyociError(f'unknown signal "{text}": signals are names, as TERM or RTMIN+1, and numbers from 0 to {RTMAX}')


def name(number: int) -> str:
    """`SIGTERM` for 15, `SIGRTMIN+1` for 35."""
    for known, value in NUMBERS.items():
        if value == number:
            return "SIG" + known
    if number == RTMIN:
        return "SIGRTMIN"
    return f"SIGRTMIN+{number - RTMIN}" if RTMIN < number <= RTMAX else f"signal {number}"


def send(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2): to exactly that process.  ProcessLookupError when it has ended and was waited for."""
    _signal.pidfd_send_signal(pidfd, number)


def hold(numbers: Iterable[int]) -> None:
    """Let these signals wait until `release`."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, numbers)


def release(numbers: Iterable[int]) -> None:
    """Deliver these signals again, those that have waited at once."""
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, numbers)


def heeded(numbers: Iterable[int]) -> list[int]:
    """Those that are not ignored: what the caller ignores stays so (nohup(1))."""
    ignored, disposition = _signal.SIG_IGN, _signal.getsignal
    return [number for number in numbers if disposition(number) != ignored]


def wait(numbers: Iterable[int]) -> int:
    """The next of these signals, all of which are held (sigwait(3))."""
    number: int = _signal.sigwait(numbers)
    return number


def catch(numbers: Iterable[int], handler: Callable[[int, object], None]) -> list[tuple[int, object]]:
    """Let `handler(number, frame)` have these signals; returns what `restore` needs.

    Signals that are ignored stay so (nohup(1)), and so do those that nobody can catch.
    """
    before = []
    for number in numbers:
        try:
            if _signal.getsignal(number) != _signal.SIG_IGN:
                before.append((number, _signal.signal(number, handler)))
        except (OSError, ValueError):
            pass  # SIGKILL, SIGSTOP, and the C library's own
    return before


def restore(before: Iterable[tuple[int, object]]) -> None:
    """Undo `catch`."""
    for number, handler in before:
        _signal.signal(number, _signal.SIG_DFL if handler is None else handler)


def default(number: int) -> None:
    """Give a signal its default action, which a caller may have taken away."""
    _signal.signal(number, _signal.SIG_DFL)


def ignore(number: int) -> None:
    """Ignore a signal."""
    _signal.signal(number, _signal.SIG_IGN)
