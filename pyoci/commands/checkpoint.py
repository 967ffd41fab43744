"""checkpoint: write a running container to files, with CRIU."""

from __future__ import annotations

from pyoci.errors import PyociError
from pyoci.options import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed
    from pyoci.container.checkpoint import CheckpointOptions

IMAGES = "checkpoint"  # in the working directory, as for other runtimes
MOST = 9  # digits of a descriptor's number


def images(options: Parsed) -> CheckpointOptions:
    """The flags that checkpoint and restore share."""
    from pyoci.container.checkpoint import CheckpointOptions
    from pyoci.criu.rpc import CGROUP_MODES, NETWORK_LOCKS

    found = CheckpointOptions(absolute(options.text("image-path") or IMAGES), options.path("work-path"))
    for name in CheckpointOptions.__slots__:
        flag = name.replace("_", "-")
        if options.flag(flag):
            setattr(found, name, True)
    found.cgroups_mode = _one_of(options, "manage-cgroups-mode", tuple(CGROUP_MODES))
    found.network_lock = _one_of(options, "network-lock", tuple(NETWORK_LOCKS))
    for name in options.many("empty-ns"):
        if name != "network":
            raise PyociError(f"--empty-ns {name!r}: only network can be made empty")
        found.empty_network = True
    status = options.text("status-fd", "-1")
    if status != "-1":
        if not (status.isascii() and status.isdigit() and len(status) <= MOST):
            raise PyociError(f"--status-fd {status!r}: not the number of a descriptor")
        found.status_fd = int(status)
        check_open(found.status_fd)
    found.page_server = options.text("page-server")
    found.parent_path = options.text("parent-path")
    return found


def check_open(fd: int) -> None:
    """--status-fd must be something that our caller gave us."""
    import posix

    try:
        given = posix.get_inheritable(fd)
    except OSError:
        given = False
    if not given:
        raise PyociError(f"--status-fd {fd}: descriptor {fd} is not open")


def _one_of(options: Parsed, name: str, allowed: tuple[str, ...]) -> str:
    value = options.text(name)
    if value and value not in allowed:
        raise PyociError(f"--{name} {value!r}: must be one of {', '.join(allowed)}")
    return value


def run(settings: Globals, options: Parsed) -> int:
    """Without --leave-running and --pre-dump the container is deleted once it is written."""
    from pyoci.container.checkpoint import checkpoint

    found = images(options)
    if found.parent_path.startswith("/"):
        raise PyociError(f"--parent-path {found.parent_path}: must be relative to --image-path")
    if found.pre_dump and found.lazy_pages:
        raise PyociError("--pre-dump and --lazy-pages exclude each other")
    if found.lazy_pages and not found.page_server:
        raise PyociError("--lazy-pages: say with --page-server ADDRESS:PORT where the memory can be asked for")
    checkpoint(settings.root, options.args[0], found)
    return 0
