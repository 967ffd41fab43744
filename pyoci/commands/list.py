"""list: show all containers of a root."""

from __future__ import annotations

from time import sleep

from pyoci import log
from pyoci.errors import Foreign, NotFound, PyociError, UsageError
from pyoci.jsontext import dumps
from pyoci.state import DRAFT, FILE, Store, document, ids, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyoci.cli import Globals, Parsed

LOOKS, PAUSE = 5, 0.01  # seconds between two
COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")


def run(settings: Globals, options: Parsed) -> int:
    """A table, one line of JSON, or only the IDs; what cannot be read is a warning, and the rest is still shown."""
    form = options.text("format", "table")
    if form not in ("table", "json"):
        raise UsageError("invalid format option")
    try:
        names = ids(settings.root)
    except FileNotFoundError:
        if settings.root_given:
            raise PyociError(f"open {settings.root}: no such file or directory") from None
        names = []
    except OSError as error:
        from pyoci.kernel.errnos import words

        raise PyociError(f"open {settings.root}: {words(error.errno or 0)}") from None
    shown = [entry for entry in (_entry(settings.root, name) for name in names) if entry is not None]
    if options.flag("quiet"):
        text = "".join([f"{entry['id']}\n" for entry in shown])
    elif form == "json":
        text = dumps(shown) + "\n"
    else:
        text = table([[name.upper() for name in COLUMNS], *([str(entry[name]) for name in COLUMNS] for entry in shown)])
    log.output(text)
    return 0


def _entry(root: str, name: str) -> dict[str, Any] | None:
    try:
        with Store.open(root, name) as store:
            try:
                state = store.load()
            except NotFound:
                if _cut_off(store):
                    log.warning(f"container {name!r}: its creation was cut off; `pyoci delete {name}` cleans up")
                return None
            return document(state, status(store, state))
    except (NotFound, Foreign):
        return None  # deleted between listing and looking, or never ours
    except PyociError as error:
        log.warning(str(error))
        return None


def _cut_off(store: Store) -> bool:
    """Whether the create that made this directory is gone.  One that has just made it is about to lock it."""
    for _ in range(LOOKS):
        if store.busy() or store.has(FILE) or store.has(DRAFT) or not store.at_path():
            return False
        sleep(PAUSE)
    return True


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of at least 12 characters, 3 of them blank, as other runtimes' scripts expect them."""
    widths = [max(12, *(len(log.printable(row[column])) + 3 for row in rows)) for column in range(len(rows[0]))]
    widths[-1] = 0
    return "".join(
        ["".join([log.printable(cell).ljust(w) for cell, w in zip(row, widths, strict=True)]) + "\n" for row in rows]
    )
