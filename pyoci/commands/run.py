"""run: create and start in one."""

from __future__ import annotations

from pyoci.commands.create import create_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def run(settings: Globals, options: Parsed) -> int:
    """Exits like the container's program, or with 0 when detached."""
    from pyoci import container

    return container.run(create_options(settings, options))
