"""kill: send a signal to a container."""

from __future__ import annotations

import posix

from pyoci import log, signals
from pyoci.errors import PyociError, WrongState
from pyoci.state import Store, alive, open_init, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed
    from pyoci.state import State


STOP_SIGNAL = "org.opencontainers.image.stopSignal"


def run(settings: Globals, options: Parsed) -> int:
    """runtime.md#kill.  Takes no lock: a signal must get through while another command waits for the container."""
    number = signals.parse(options.args[1]) if len(options.args) > 1 else None
    everyone = options.flag("all")
    if options.flag("regex"):
        from pyoci.matching import each

        each(settings.root, options.args[0], lambda id: _kill(settings.root, id, number, everyone))
    else:
        _kill(settings.root, options.args[0], number, everyone)
    return 0


def _kill(root: str, id: str, asked: int | None, everyone: bool) -> None:
    with Store.open(root, id) as store:
        state = store.load()
        found = status(store, state)
    number = _stop_signal(state) if asked is None else asked
    if everyone and state.cgroup_paths:
        from pyoci.cgroup.live import signal_all

        # Also when init has ended: in a shared pid namespace the kernel does not end the others with it.
        signal_all(state.cgroup_paths, number)
        return
    if everyone and found in ("created", "running") and number != signals.SIGKILL:
        _signal_members(state, number)
        return
    if not (found in ("created", "running", "paused") and _send_to_init(state, number)):
        if everyone:
            return
        if number == signals.SIGKILL and found == "stopped" and _others(state):
            _finish(state, False)
            return
        raise WrongState(f"container {state.id!r}: container not running")
    if number == signals.SIGKILL:
        _finish(state, found == "paused")


def _stop_signal(state: State) -> int:
    """config.md#annotations: what the image says that it wants to be stopped by, unless the caller says another."""
    text = state.annotations.get(STOP_SIGNAL, "")
    if not text:
        return signals.SIGTERM
    try:
        return signals.parse(text)
    except PyociError as error:
        raise PyociError(f"/annotations/{STOP_SIGNAL}: {error}; name the signal: kill {state.id} TERM") from None


def _signal_members(state: State, number: int) -> None:
    """Without a cgroup: each of them.  (SIGKILL to init is for all in its pid namespace.)"""
    from pyoci.cgroup.live import signal_each
    from pyoci.pid_namespace import members

    def everyone() -> list[int]:
        found = members(state.pid, "pid" in state.namespaces)
        # its number may be another's by now, and that one's pid namespace the host's
        return found if alive(state) else []

    signal_each(everyone, number)


def _send_to_init(state: State, number: int) -> bool:
    descriptor = open_init(state)
    if descriptor is None:
        return False
    try:
        signals.send(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        posix.close(descriptor)
    if log.debugging:
        log.debug("signal sent", pid=state.pid, signal=number)
    return True


def _others(state: State) -> bool:
    """Whether processes are left of a container whose first has ended: its pid namespace is not its own."""
    from pyoci.cgroup import live

    return "pid" not in state.namespaces and bool(state.cgroup_created) and live.nonempty(state.cgroup_paths)


def _finish(state: State, paused: bool) -> None:
    """What SIGKILL to init does not do by itself."""
    from pyoci.cgroup import live

    if "pid" not in state.namespaces and state.cgroup_created:
        live.signal_all(state.cgroup_paths, signals.SIGKILL)
        return
    if paused:
        live.thaw(state.cgroup_paths)  # v1 keeps even SIGKILL waiting
    live.thaw_inside(state.cgroup_paths)
