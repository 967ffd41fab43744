"""Everything that pyoci refuses or fails at is one of these.

    PyociError                 one line: what was asked, what was tried, what refused, what to do
    +-- UsageError             the command line cannot be read
    +-- ConfigError            config.json (or process.json) is wrong: every problem found, with JSON pointers
    +-- NotFound               no container with this id
    +-- Exists                 the id is taken
    +-- WrongState             the operation does not fit the container's status
    +-- CallError              a call was refused: its name, arguments, errno and origin
    +-- HookError              a hook failed

The phrases that engines search for ("container does not exist", "container not running", ...) are made here and nowhere
else.  A message is one line: engines read the last line of stderr and of the log.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


# The pointer of a whole document is the empty string (RFC 6901), which nobody would see in a line of text.
WHOLE = "(whole document)"

# here, because where there is no descriptor left nothing can be imported any more
OPEN_FILES = "the limit of open files is too low for this container: raise it (ulimit -n)"


class PyociError(Exception):
    """`str(error)` is the one line for stderr and the log; `exit_status` is what the command ends with."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(message.replace("\n", " "))


class UsageError(PyociError):
    """The command line is wrong."""


class Problem:
    """One thing wrong in a document: where (JSON pointer, "" for all of it), what, and the clause, if any."""

    __slots__ = ("clause", "message", "pointer")

    def __init__(self, pointer: str, message: str, clause: str = "") -> None:
        self.pointer = pointer
        self.message = message
        self.clause = clause

    def __str__(self) -> str:
        clause = f" ({self.clause})" if self.clause else ""
        return f"{self.pointer or WHOLE}: {self.message}{clause}"


class ConfigError(PyociError):
    """`problems` holds all that is wrong; the message shows every one, joined by "; " and capped."""

    SHOWN = 10

    def __init__(self, problems: Sequence[Problem], source: str = "config.json") -> None:
        shown = "; ".join(str(problem) for problem in problems[: self.SHOWN])
        more = len(problems) - self.SHOWN
        super().__init__(f"{source}: {shown}" + (f"; and {more} more" if more > 0 else ""))
        self.problems = tuple(problems)


class NotFound(PyociError):
    """No container of this id under this root."""

    def __init__(self, container_id: str) -> None:
        super().__init__(f"container {container_id!r}: container does not exist")


class Foreign(PyociError):
    """The directory is that of another runtime's container: engines may give several runtimes one root."""

    def __init__(self, container_id: str, path: str, why: str) -> None:
        super().__init__(f"container {container_id!r}: {path} is not pyoci's but another runtime's, {why}; use it")


class Exists(PyociError):
    """The id is taken."""

    def __init__(self, container_id: str) -> None:
        super().__init__(f"container {container_id!r}: container with given ID already exists")


class WrongState(PyociError):
    """The container's status does not allow this operation."""


class HookError(PyociError):
    """A hook could not be started, failed, or ran out of time."""


class CallError(PyociError):
    """A kernel call was refused.

    origin  JSON pointer or clause that asked for it; call  its printed form; number  the errno; detail  the
    kernel's own words where it has some; hint  what to do.
    """

    def __init__(self, origin: str, call: str, number: int, words: str, detail: str = "", hint: str = "") -> None:
        message = f"{origin}: {call}: {words}"
        if detail:
            message += f" (kernel: {detail})"
        if hint:
            message += f"; {hint}"
        super().__init__(message)
        self.origin = origin
        self.call = call
        self.errno = number
