"""restore: make a container of the files that checkpoint wrote, with CRIU."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def run(settings: Globals, options: Parsed) -> int:
    """Exits like the container's first process, or with 0 when detached."""
    from pyoci.commands.checkpoint import images
    from pyoci.commands.create import create_options
    from pyoci.container.restore import restore

    return restore(
        create_options(settings, options),
        images(options),
        options.text("lsm-profile"),
        options.text("lsm-mount-context"),
    )
