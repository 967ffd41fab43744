"""delete: remove a container and all that create made for it."""

from __future__ import annotations

import errno
import posix
import select
import time

from pyoci import signals
from pyoci.errors import NotFound, PyociError, WrongState
from pyoci.state import Store, open_init, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed
    from pyoci.state import State

PATIENCE = 10.0  # seconds for a killed process to end
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
        raise WrongState(f"cannot delete container {state.id} that is not stopped: {found}")
    end(state, found == "paused")
    if state.phase == "creating" and not state.cgroup_created:
        _remove_unrecorded(state)
    from pyoci.container.teardown import dismantle

    dismantle(store, state)


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


def end(state: State, paused: bool) -> None:
    """Kill the container's init, if it still is there, and wait until it has ended."""
    descriptor = open_init(state)
    if descriptor is None:
        return
    try:
        try:
            signals.send(descriptor, signals.SIGKILL)
        except ProcessLookupError:
            return
        if paused:
            from pyoci.cgroup.live import thaw

            thaw(state.cgroup_paths)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            raise PyociError(
                f"container {state.id!r}: process {state.pid} did not end within {PATIENCE:g} s of SIGKILL; "
                f"/proc/{state.pid}/stack shows what it waits for"
            )
    finally:
        posix.close(descriptor)
