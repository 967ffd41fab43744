"""delete: remove a container and all that create made for it."""

from __future__ import annotations

import errno
import posix
import time

from pyoci.errors import NotFound, WrongState
from pyoci.state import Store, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed
    from pyoci.state import State

UNRECORDED = 1.0  # seconds for a process that lost its creator to end


def run(settings: Globals, options: Parsed) -> int:
    """runtime.md#delete, and as in other runtimes also of a container that was never started.

    Whatever a killed command left is removed: what is remembered is written before it is made.
    """
    force = options.flag("force")
    if options.flag("regex"):
        from pyoci.matching import each

        each(settings.root, options.args[0], lambda id: _open(settings.root, id, force))
    else:
        _open(settings.root, options.args[0], force)
    return 0


def _open(root: str, id: str, force: bool) -> None:
    try:
        with Store.open(root, id) as store:
            store.lock()
            delete(store, force)
    except NotFound:
        if not force:
            raise


def delete(store: Store, force: bool) -> None:
    """Delete the container whose lock is held."""
    try:
        state = store.load()
    except NotFound:
        # create was killed before it wrote down anything, and it writes before it makes anything
        store.remove()
        return
    found = status(store, state)
    if found in ("running", "paused") and not force:
        hint = "kill it first, or use --force"
        raise WrongState(f"cannot delete container {state.id} that is not stopped: {found}; {hint}")
    from pyoci.container.teardown import dismantle, end

    end(state, found == "paused")
    if state.phase == "creating" and not state.cgroup_created:
        _remove_unrecorded(state)
    dismantle(store, state)
    if state.phase == "creating" and state.net_devices:
        from pyoci.netdevice import tell_lost

        tell_lost(state.net_devices)


def _remove_unrecorded(state: State) -> None:
    """The cgroups of a create that was killed before it could write down which ones it made.

    They may have been there before, so nothing in them is touched: only empty ones go.  The init that such a create
    leaves ends by itself, but may need a moment.
    """
    until = time.monotonic() + UNRECORDED
    for path in dict.fromkeys(state.cgroup_paths.values()):
        while True:
            try:
                posix.rmdir(path)
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < until:
                    time.sleep(0.005)
                    continue
            break
