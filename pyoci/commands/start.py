"""start: run the program of a created container."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def run(settings: Globals, options: Parsed) -> int:
    """runtime.md#start."""
    from pyoci.container.start import start

    start(settings.root, options.args[0])
    return 0
