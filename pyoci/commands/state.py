"""state: show a container's state as JSON."""

from __future__ import annotations

from pyoci.jsontext import dumps
from pyoci.log import output
from pyoci.state import Store, document, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def run(settings: Globals, options: Parsed) -> int:
    """runtime.md#query-state."""
    store = Store.open(settings.root, options.args[0])
    state = store.load()
    output(dumps(document(state, status(store, state)), indent=True) + "\n")
    return 0
