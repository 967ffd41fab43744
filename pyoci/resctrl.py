"""Groups of resctrl: the runtime's ops for /linux/intelRdt, exec's, and what delete removes (config-linux.md#intelrdt).

    match_resctrl(path, lines)    the group exists (else ENOENT), and its schemata say what the lines do
    mkdir_resctrl(path)           it is made
    write_resctrl(path, lines)    its schemata are changed
    enter_resctrl(path, pid)      the process is in it

The state keeps a container's groups as a map from their directories to JOINED or MADE, in the order in which a process
enters them; delete removes those that were made for it alone.
"""

from __future__ import annotations

import posix
from errno import ENOENT

from pyoci.cgroup.files import write
from pyoci.directory import read_file
from pyoci.errors import CallError, PyociError
from pyoci.kernel.errnos import words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.plan.ops import Op

JOINED, MADE = "joined", "made"
DECIMAL = ("MB", "SMBA")  # resources whose values are numbers, and rounded up by the kernel; all others are bit masks


def perform(op: Op, pid: int) -> list[str]:
    """Perform `op`; the directories that it made.  OSError where `op` may tolerate it, else what the kernel says."""
    path = op.args[0]
    assert isinstance(path, bytes)
    lines = op.args[1] if len(op.args) > 1 else b""
    lines = lines if isinstance(lines, bytes) else b"%d" % pid
    try:
        if op.call == "mkdir_resctrl":
            posix.mkdir(path, 0o755)
            return [path.decode("utf-8", "surrogateescape")]
        if op.call == "enter_resctrl":
            write(path + b"/tasks", lines)
        elif op.call == "match_resctrl":
            match(path.decode("utf-8", "surrogateescape"), lines.decode(), op.origin)
        elif op.call == "write_resctrl":
            write(path + b"/schemata", lines)
        else:
            raise ValueError(f"{op.call} is not a call on resctrl")
    except OSError as error:
        number = error.errno or 0
        if number in op.tolerate:
            raise
        shown = [path.decode("utf-8", "replace"), *([repr(lines.decode())] if lines else [])]
        asked = f"{op.call}({', '.join(shown)})"
        raise CallError(op.origin, asked, number, words(number), status(path), op.hint) from None
    return []


def status(path: bytes) -> str:
    """What the kernel says of the last thing that was tried, "" if that went well."""
    top = path.decode("utf-8", "surrogateescape")
    while top:
        try:
            said = read_file(f"{top}/info/last_cmd_status").decode("utf-8", "replace").strip()
        except OSError:
            top = top.rpartition("/")[0]
            continue
        return "" if said == "ok" else said
    return ""


def parse(text: str) -> dict[tuple[str, str], int | str]:
    """(resource, domain) -> value of the lines of a schemata file; what cannot be read is kept as it is."""
    found: dict[tuple[str, str], int | str] = {}
    for line in text.splitlines():
        resource, colon, domains = line.partition(":")
        resource = resource.strip()
        if not colon:
            if resource:
                found[resource, ""] = ""
            continue
        for domain in domains.split(";"):
            number, _, value = (part.strip() for part in domain.partition("="))
            try:
                found[resource, number] = int(value, 10 if resource in DECIMAL else 16)
            except ValueError:
                found[resource, number] = value
    return found


def match(path: str, lines: str, origin: str) -> None:
    """PyociError unless the group's schemata say what `lines` do; OSError where there is no group."""
    posix.stat(path)
    there = parse(read_file(f"{path}/schemata").decode()) if lines else {}
    for (resource, domain), value in parse(lines).items():
        found = there.get((resource, domain))
        if found != value and not (isinstance(value, int) and found == _rounded(path, resource, value)):
            raise PyociError(
                f"{origin}: the class of service {path} is there with other schemata: its {resource}:{domain} is "
                f"{_shown(found, resource)}, not {_shown(value, resource)}; a shared one cannot be changed"
            )


def _shown(value: int | str | None, resource: str) -> str:
    if value is None:
        return "absent"
    return format(value, "d" if resource in DECIMAL else "x") if isinstance(value, int) else repr(value)


def _rounded(path: str, resource: str, value: int) -> int:
    """What the kernel makes of a bandwidth: the next multiple of what the hardware can do."""
    if resource not in DECIMAL:
        return value
    top = path
    while top:
        try:
            step = int(read_file(f"{top}/info/{resource}/bandwidth_gran"))
            return -(-value // step) * step
        except (OSError, ValueError, ZeroDivisionError):
            top = top.rpartition("/")[0]
    return value


def own(groups: dict[str, str]) -> bytes:
    """The group that is the container's alone; PyociError where it has none: a shared one is not its to change."""
    for path, how in groups.items():
        if how == MADE and "/mon_groups/" not in path:
            return path.encode("utf-8", "surrogateescape")
    raise PyociError("Intel RDT: the container has no class of service of its own whose schemata could be changed")


def change(path: bytes, lines: tuple[str, ...]) -> None:
    """Change the schemata of the group, a write(2) a line."""
    for line in lines:
        try:
            write(path + b"/schemata", line.encode() + b"\n")
        except OSError as error:
            number = error.errno or 0
            asked = f"write({path.decode('utf-8', 'replace')}/schemata, {line!r})"
            raise CallError("update", asked, number, words(number), status(path)) from None


def intended(control: str, monitor: str, own: bool) -> dict[str, str]:
    """For the state, before anything is made: which groups a process enters, and which will be the container's."""
    found: dict[str, str] = {}
    for path, mine in ((control, own), (monitor, True)):
        if path:
            found[path] = MADE if mine and not posix.access(path, posix.F_OK) else JOINED
    return found


def failed(groups: dict[str, str], made: list[str]) -> dict[str, str]:
    """What a create that fails has to remove: what it made, but for a shared group that others are in by now."""
    found = {}
    for path in made:
        if groups.get(path) == JOINED and _tasks(path):
            continue
        found[path] = MADE
    return found


def _tasks(path: str) -> bytes:
    try:
        return read_file(f"{path}/tasks")
    except OSError:
        return b""


def remove(groups: dict[str, str]) -> None:
    """Remove those that were made for the container, the inner one first."""
    for path in reversed(list(groups)):
        if groups[path] == MADE:
            try:
                posix.rmdir(path)
            except OSError as error:
                if error.errno != ENOENT:
                    raise PyociError(f"rmdir({path}): {words(error.errno or 0)}") from None
