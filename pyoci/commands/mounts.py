"""mounts: add mounts to a container that runs, remove them again, or show them."""

from __future__ import annotations

from pyoci.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def run(settings: Globals, options: Parsed) -> int:
    """`mounts add|remove ID FILE`, `mounts list ID`."""
    from pyoci.container import mounting

    what, id, *files = options.args
    if what not in ("add", "remove", "list"):
        raise UsageError(f'mounts {what}: "add", "remove" or "list"')
    if len(files) != (0 if what == "list" else 1):
        raise UsageError(f'"mounts {what}" requires exactly {1 if what == "list" else 2} argument(s)')
    if what == "list":
        from pyoci.jsontext import dumps
        from pyoci.log import output
        from pyoci.state import Store

        with Store.open(settings.root, id) as store:
            store.load()
            found = mounting.remembered(store)
        shown = [{name: value for name, value in entry.items() if name != "id"} for entry in found]
        output(dumps(shown, indent=True) + "\n")
        return 0
    from pyoci.options import read_document

    name = files[0]
    source = "standard input" if name == "-" else name[:300]
    data = read_document(name, source)
    (mounting.add if what == "add" else mounting.remove)(settings.root, id, data, source)
    return 0
