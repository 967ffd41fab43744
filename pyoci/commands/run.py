"""run: create and start in one."""

from __future__ import annotations

from pyoci.commands.create import create_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def run(settings: Globals, options: Parsed) -> int:
    """Exits like the container's program, or with 0 when detached."""
    from pyoci.container.run import run as run_container

    return run_container(create_options(settings, options))
