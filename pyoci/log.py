"""Messages for people (stderr) and for engines (`--log`).

An error is one line on stderr and one record in the log: engines read the last line of either, and podman parses the
whole log file as a single JSON value.  stderr is written directly.  structlog is imported when a record is really
written, because importing it costs more than a whole run: no command that succeeds without `--debug` pays for it.
"""

from __future__ import annotations

import posix
from errno import ENXIO

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, WrappedLogger

    from pyoci.syslog import SystemLog

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
FORMATS = ("text", "json")
LONGEST = 8192  # characters of a message: names and values of a document may have megabytes, and engines read a line

# A command line is read once per process, so this is the one place with module state: where records go.
_descriptor = -1
_system: SystemLog | None = None
_json = False
_level = LEVELS["warning"]
debugging = False


def configure(path: str = "", form: str = "text", level: str = "warning") -> None:
    """Send records to the file `path` ("" = stderr), as `form`; `level` is the least that is written.

    The file is opened now, for appending: a log that cannot be written is found before anything is done, and nobody
    waits for who reads it, as somebody else may have left a fifo there.  As crun has it, `path` may be file:PATH,
    syslog:NAME or journald:NAME.
    """
    global _descriptor, _json, _level, _system, debugging  # noqa: PLW0603
    if _descriptor >= 0:
        posix.close(_descriptor)
    _descriptor = -1
    _json = form == "json"
    _level = LEVELS.get(level, LEVELS["warning"])
    debugging = _level == LEVELS["debug"]
    if _system is not None:
        _system.close()
    _system = None
    kind, colon, rest = path.partition(":")
    if colon and kind == "file":
        path = rest
    elif colon and kind in ("syslog", "journald"):
        from pyoci.syslog import SystemLog

        _system = SystemLog(kind, rest)
        path = ""
    if path:
        from pyoci.directory import open_unplanted

        try:
            flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC
            _descriptor = open_unplanted(path, flags | posix.O_NONBLOCK, 0o644)
        except OSError as error:
            from pyoci.kernel.errnos import words

            why = "nobody reads this fifo" if error.errno == ENXIO else words(error.errno or 0)
            raise PyociError(f"cannot open the log: open {path}: {why}") from None
    if form not in FORMATS:
        raise PyociError(f"invalid log-format: {form} (one of {', '.join(FORMATS)})")
    if level not in LEVELS:
        raise PyociError(f"invalid log-level: {level} (one of {', '.join(LEVELS)})")


def write_all(descriptor: int, data: bytes) -> None:
    """All of `data`, however the kernel cuts it up; OSError as write(2) gives it."""
    view = memoryview(data)
    while view:
        view = view[posix.write(descriptor, view) :]


def output(text: str | bytes) -> None:
    """The result of a command, on stdout.  A reader that has gone away is none of our business."""
    try:
        # a path in it may be no text: its bytes are given back as they were
        write_all(1, text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)
    except BrokenPipeError:
        pass
    except OSError as error:
        from pyoci.kernel.errnos import words

        raise PyociError(f"write to stdout: {words(error.errno or 0)}") from None


def printable(text: str) -> str:
    """`text` on one line and harmless on a terminal: file names and programs' output are not ours."""
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text])


def error(message: str) -> None:
    """The one line of a command that fails."""
    _tell("error", message)


def warning(message: str) -> None:
    """Something went wrong that does not stop the command."""
    if _level <= LEVELS["warning"]:
        _tell("warning", message)


def note(message: str) -> None:
    """A warning for who keeps a log, and not for stderr: of what documents have by habit, runc's default one too."""
    if _descriptor >= 0 or _system is not None:
        warning(message)
    else:
        debug(message)


def debug(message: str, **fields: object) -> None:
    """Only with --debug.  In hot places ask `log.debugging` first, and so save making the arguments."""
    if debugging and _system is not None:
        _send(_system, "debug", " ".join([message, *(f"{name}={value}" for name, value in fields.items())]))
    elif debugging:
        _record("debug", printable(message), fields, _descriptor if _descriptor >= 0 else 2)


def _tell(level: str, message: str) -> None:
    if len(message) > LONGEST:
        half = LONGEST // 2 - 30
        message = f"{message[:half]}... ({len(message) - 2 * half} characters) ...{message[-half:]}"
    message = printable(message)
    if _system is not None:
        _send(_system, level, message)
    elif _descriptor >= 0:
        _record(level, message, {}, _descriptor)
    elif _json:
        _record(level, message, {}, 2)
        return
    if level == "warning" and (_system is not None or _descriptor >= 0):
        return  # stderr may be the container's, and is what engines show of it
    prefix = "" if message.startswith("pyoci") else "pyoci: "
    if level != "error":
        prefix += level + ": "
    try:
        write_all(2, f"{prefix}{message}\n".encode())
    except OSError:
        pass  # stderr is closed: there is nobody to tell


class _Lines:
    """What structlog calls with a finished line: one write(2), so that lines of two commands never mix."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def msg(self, line: str) -> None:
        write_all(self.descriptor, line.encode() + b"\n")

    debug = info = warning = error = msg


def _send(system: SystemLog, level: str, message: str) -> None:
    try:
        system.send(level, printable(message))
    except OSError as problem:
        try:
            write_all(2, f"pyoci: cannot write to the log: {problem}\n".encode())
        except OSError:
            pass


def _record(level: str, message: str, fields: dict[str, object], descriptor: int) -> None:
    """One record with `level`, `msg` and `time` (RFC 3339), the keys that engines decode."""
    try:
        _logger(descriptor, level)(message, **fields)
    except Exception as problem:  # noqa: BLE001 - also what a structlog that is broken raises
        # The reason of a failed command must not be lost because the log is full or structlog is broken.
        try:
            write_all(2, f"pyoci: cannot write to the log: {problem}\n".encode())
        except OSError:
            pass


def _logger(descriptor: int, level: str) -> Callable[..., object]:
    import structlog

    def renamed(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["msg"] = event.pop("event")
        event["level"] = method
        return event

    render = (
        structlog.processors.JSONRenderer(sort_keys=True, separators=(",", ":"))
        if _json
        else structlog.processors.LogfmtRenderer(key_order=["time", "level", "msg"], bool_as_flag=False)
    )
    logger = structlog.wrap_logger(
        _Lines(descriptor),
        processors=[renamed, structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"), render],
        wrapper_class=structlog.BoundLogger,
        cache_logger_on_first_use=False,
    )
    method: Callable[..., object] = getattr(logger, level)
    return method
