"""events: what a container uses, at intervals, and each time that it runs out of memory."""

from __future__ import annotations

import posix
import select
from time import monotonic

from pyoci.cgroup.stats import stats
from pyoci.errors import PyociError, UsageError, WrongState
from pyoci.jsontext import dumps
from pyoci.log import output, warning
from pyoci.state import Store, open_init, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cgroup.oom import Watch
    from pyoci.cli import Globals, Parsed
    from pyoci.state import State

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
MOST = (1 << 63) / 1e9  # seconds: nanoseconds have 64 bits, one of them for the sign
LONGEST = 1 << 30  # milliseconds that poll(2) can wait at once


def seconds(text: str) -> float:
    """A duration as Go writes it: numbers with units, "1.5s", "100ms", "1h30m", or "0"."""
    rest = text.removeprefix("-").removeprefix("+")
    total = 0.0
    if rest == "0":
        return total
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("nuµμmsh"))]
        # "1m30s" has a digit behind its unit
        rest = rest[len(unit) :]
        if unit not in UNITS or number.count(".") > 1 or not number.strip("."):
            break
        total += float(number) * UNITS[unit]
    else:
        if text.strip("+-") and total < MOST:
            return -total if text.startswith("-") else total
    raise UsageError(f'invalid value "{text}" for flag -interval: parse error')


def run(settings: Globals, options: Parsed) -> int:
    """Each event is a line of JSON; the first statistics come after one interval, with --stats now and alone."""
    interval = seconds(options.text("interval", "5s"))
    with Store.open(settings.root, options.args[0]) as store:
        state = store.load()
        if interval <= 0:
            raise PyociError("duration interval must be greater than 0")
        if status(store, state) == "stopped":
            raise WrongState(f"container with id {state.id} is not running")
        if options.flag("stats"):
            output(_line(state, "stats"))
            return 0
        init = open_init(state)
    if init is not None:
        follow(state, init, interval)
    return 0


def _line(state: State, kind: str) -> str:
    event: dict[str, object] = {"type": kind, "id": state.id}
    if kind == "stats":
        data = event["data"] = stats(state.cgroup_paths)
        if state.resctrl:
            from pyoci import resctrl_stats

            data["intel_rdt"] = resctrl_stats.stats(state.resctrl)
    return dumps(event) + "\n"


def _watch(state: State) -> Watch | None:
    """Of statistics there is something to say in any case."""
    from pyoci.cgroup.oom import watch

    why = "its memory is not counted"
    try:
        found = watch(state.cgroup_paths)
    except OSError as error:
        from pyoci.kernel.errnos import words

        found, why = None, words(error.errno or 0)
    if found is None:
        warning(f"container {state.id!r}: no events will tell that it runs out of memory: {why}")
    return found


def follow(state: State, init: int, interval: float) -> None:
    """Until the container's init, whose pidfd `init` is, has ended, or nobody reads any more."""
    watched = _watch(state)
    poll = select.poll()
    poll.register(init, select.POLLIN)
    poll.register(1, 0)  # POLLERR when the last reader has closed the pipe
    if watched is not None:
        poll.register(watched.fd, watched.events)
    due = monotonic() + interval
    try:
        while True:
            left = max(0, min(LONGEST, int((due - monotonic()) * 1000) + 1))
            ready = dict(poll.poll(left))
            if 1 in ready:
                return
            # What kills init is told before init is gone, so this look is not too early.
            if watched is not None and (init in ready or watched.fd in ready) and watched.happened():
                output(_line(state, "oom"))
            if init in ready:
                return
            if watched is not None and watched.over and watched.fd in ready:
                poll.unregister(watched.fd)
            if monotonic() >= due:
                output(_line(state, "stats"))
                due = max(due + interval, monotonic())
    finally:
        if watched is not None:
            watched.close()
        posix.close(init)
