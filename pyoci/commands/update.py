"""update: change the limits of a container that exists."""

from __future__ import annotations

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed

UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
# flag -> where its number goes: (object of /linux/resources, property)
BYTES = {
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
}
NUMBERS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "pids-limit": ("pids", "limit"),
}
TEXTS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}


def bytes_of(text: str, name: str) -> int:
    """A size as engines write it: bytes, or a number with a unit ("512m", "1.5GiB", "50MB"), -1 for no limit."""
    word = text.strip().lower()
    for ending in ("ib", "b"):
        if len(word) > len(ending) and word.endswith(ending) and word[-len(ending) - 1] in UNITS:
            word = word[: -len(ending)]
            break
    number, unit = (word[:-1], word[-1]) if word and word[-1] in UNITS else (word, "b")
    try:
        value = float(number) if "." in number else int(number)
    except ValueError:
        raise PyociError(f"--{name} {text!r}: not a size; write a number of bytes, or one with a unit: 512M") from None
    if not -1 <= value <= 1 << 62:
        raise PyociError(f"--{name} {text!r}: must be a number of bytes, or -1 for no limit")
    return -1 if value < 0 else int(value * UNITS[unit])


def given(options: Parsed) -> dict[str, dict[str, object]]:
    """The flags as the object that --resources would hold."""
    found: dict[str, dict[str, object]] = {}
    for name, (part, key) in BYTES.items():
        if name in options.values:
            found.setdefault(part, {})[key] = bytes_of(options.text(name), name)
    for name, (part, key) in NUMBERS.items():
        if name in options.values:
            text = options.text(name)
            try:
                found.setdefault(part, {})[key] = int(text)
            except ValueError:
                raise PyociError(f"--{name} {text!r}: not a number") from None
    for name, (part, key) in TEXTS.items():
        if name in options.values:
            found.setdefault(part, {})[key] = options.text(name)
    return found


def run(settings: Globals, options: Parsed) -> int:
    """With --resources the other flags have no say, as in other runtimes."""
    from pyoci.container.update import update

    schemata = tuple(text for name in ("l3-cache-schema", "mem-bw-schema") if (text := options.text(name)))
    name = options.text("resources")
    if name:
        from pyoci.options import read_document

        data = read_document(name, f"--resources {name[:300]}")
        update(settings.root, options.args[0], data, "standard input" if name == "-" else name, schemata)
    else:
        from pyoci.jsontext import dumps

        update(settings.root, options.args[0], dumps(given(options)).encode(), "the command line", schemata)
    return 0
