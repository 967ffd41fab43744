"""create: make a container from a bundle, ready to start."""

from __future__ import annotations

from pyoci.options import CreateOptions, absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def create_options(settings: Globals, options: Parsed) -> CreateOptions:
    """The options that create and run share, and run's."""
    return CreateOptions(
        settings.root,
        options.args[0],
        absolute(options.text("bundle") or "."),
        pid_file=options.path("pid-file"),
        console_socket=options.path("console-socket"),
        pidfd_socket=options.path("pidfd-socket"),
        no_pivot=options.flag("no-pivot"),
        no_new_keyring=options.flag("no-new-keyring"),
        preserve_fds=options.count("preserve-fds"),
        detach=options.flag("detach"),
        keep=options.flag("keep"),
        cgroup_manager=settings.cgroup_manager,
        rootless=settings.rootless,
        config=options.text("config"),
    )


def run(settings: Globals, options: Parsed) -> int:
    """runtime.md#create."""
    from pyoci.container.create import create

    create(create_options(settings, options))
    return 0
