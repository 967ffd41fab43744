"""Help, made from the tables that the parser reads."""

from __future__ import annotations

from pyoci.cli import COMMANDS, GLOBAL
from pyoci.log import error, output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.cli import Flag

HELP: Flag = ("help", "h", "bool", "", "show this help")


def overview(names: Sequence[str]) -> int:
    """Show the help of the command `names[0]`, or of pyoci when there is none."""
    if not names:
        text = general()
    elif names[0] in COMMANDS:
        text = command(names[0])
    else:
        error(f"No help topic for '{names[0]}': there is no such command (see pyoci --help)")
        return 3
    output(text)
    return 0


def general() -> str:
    """What `pyoci --help` shows."""
    lines = ["pyoci - run containers as the OCI runtime specification says", ""]
    lines += ["Usage: pyoci [GLOBAL FLAG...] COMMAND [FLAG...] [ARGUMENT...]", "", "Commands:"]
    width = max(map(len, COMMANDS)) + 2
    lines += [f"  {name:{width}}{entry[4]}" for name, entry in COMMANDS.items()]
    lines += ["", "Global flags:", *_flags(GLOBAL), "", "`pyoci COMMAND --help` shows the flags of a command."]
    return "\n".join(lines) + "\n"


def command(name: str) -> str:
    """What `pyoci NAME --help` shows."""
    arguments, _, _, _, summary, flags = COMMANDS[name]
    usage = f"Usage: pyoci [GLOBAL FLAG...] {name} [FLAG...] {arguments}".rstrip()
    return "\n".join([f"pyoci {name} - {summary}", "", usage, "", "Flags:", *_flags((*flags, HELP))]) + "\n"


def elsewhere(name: str, flags: Sequence[Flag]) -> str:
    """Where the flag `name` belongs, which is none of `flags`; "" for one that is none at all."""
    if flags is not GLOBAL:
        return "; it goes before the command" if any(name in flag[:2] for flag in GLOBAL) else ""
    names = [command for command, entry in COMMANDS.items() if any(name in flag[:2] for flag in entry[5])]
    return f"; it goes behind the command ({', '.join(names)})" if names else ""


def _flags(flags: Sequence[Flag]) -> list[str]:
    rows = []
    for name, short, kind, value, text in flags:
        left = f"--{name}" + (f", -{short}" if short else "") + (f" {value}" if value else "")
        rows.append((left, text + (" (may be repeated)" if kind == "list" else "")))
    width = max(len(left) for left, _ in rows) + 2
    return [f"  {left:{width}}{text}" for left, text in rows]
