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
    with Store.open(settings.root, options.args[0]) as store:
        state = store.load()
        shown = document(state, status(store, state))
    output(dumps(shown, indent=True) + "\n")
    return 0
