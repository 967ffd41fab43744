"""Everything that create made is taken down here, by delete, by the end of run and by a create that fails."""

from __future__ import annotations

import posix
import select
from time import monotonic

from pyoci import log, signals
from pyoci.errors import PyociError
from pyoci.state import open_init, open_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.state import State, Store


PATIENCE = 10.0  # seconds for a killed process to end
LOOK = 0.1  # before it is asked what keeps it


def dismantle(store: Store, state: State, poststop: bool = True) -> None:
    """Kill what still runs, remove the cgroups that create made, run the poststop hooks, forget the container.

    The container's lock must be held.  Mounts go with the mount namespace, so with its last process;
    without one of its own they are taken down.
    """
    if state.criu_pid:
        _end_criu(state)
    unit_is_gone = True
    if state.unit:
        from pyoci.cgroup.systemd import is_gone

        # a create that was killed may not have got as far as a cgroup
        unit_is_gone = state.phase != "creating" and is_gone(state)
    if state.cgroup_paths:
        from pyoci.cgroup.live import kill_all, remove

        # a cgroup that was there before may hold somebody else's processes
        ours = {name: path for name, path in state.cgroup_paths.items() if path in state.cgroup_created}
        if ours:
            kill_all(ours)
        remove(state.cgroup_paths, state.cgroup_created)
    if state.mounts:
        from pyoci import rootmount

        rootmount.take_down(state.mounts)
    if state.resctrl:
        from pyoci import resctrl

        resctrl.remove(state.resctrl)
    if not unit_is_gone:
        from pyoci.cgroup.systemd import stop

        try:
            stop(state, store.path)
        except PyociError as error:
            # its processes and cgroups are gone, so systemd will notice by itself
            log.warning(f"container {state.id!r}: {error}")
    if poststop and state.hooks.get("poststop"):
        from pyoci.hooks import remembered, run_hooks
        from pyoci.jsontext import dumps
        from pyoci.state import document

        text = dumps(document(state, "stopped")).encode()
        run_hooks("poststop", remembered(state.hooks, "poststop"), text, tolerate=True)
    store.remove()
    if log.debugging:
        log.debug("removed", id=state.id, cgroups=",".join(state.cgroup_created))


def _end_criu(state: State) -> None:
    """A CRIU that a killed checkpoint has left waits for somebody to ask for the container's memory."""
    descriptor = open_process(state.criu_pid, state.criu_start)
    if descriptor is None:
        return
    try:
        signals.send(descriptor, signals.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        posix.close(descriptor)


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
        if log.debugging:
            log.debug("signal sent", pid=state.pid, signal=int(signals.SIGKILL))
        if state.criu_pid:
            # it traces the processes, and init's end waits for theirs, which waits for the tracer
            _end_criu(state)
        if paused:
            from pyoci.cgroup.live import thaw

            thaw(state.cgroup_paths)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        until = monotonic() + PATIENCE
        while not poll.poll(LOOK * 1000):
            if monotonic() > until:
                raise PyociError(
                    f"container {state.id!r}: process {state.pid} did not end within {PATIENCE:g} s of SIGKILL; "
                    f"/proc/{state.pid}/stack shows what it waits for"
                )
            if state.cgroup_paths:
                from pyoci.cgroup.live import thaw_inside

                # again and again: one that is not frozen may freeze others
                thaw_inside(state.cgroup_paths)
    finally:
        posix.close(descriptor)
