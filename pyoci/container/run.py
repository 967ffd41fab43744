"""run: create and start without the pause between them."""

from __future__ import annotations

import posix

from pyoci import log
from pyoci.container.create import Creation, draw
from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.options import CreateOptions
    from pyoci.state import Store

KILLED = 128 + 9


def _say_memory(cgroup_paths: dict[str, str]) -> None:
    """An exit status of 137 says nothing of who killed it: say so when it was the memory limit."""
    from pyoci.cgroup.live import oom_kills

    try:
        kills = oom_kills(cgroup_paths)
    except OSError:
        return
    if kills:
        log.warning(f"/linux/resources/memory/limit: the memory limit killed the container ({kills} times)")


def run(options: CreateOptions) -> int:
    """See `pyoci.container.run`."""
    console = "console" if options.console_socket else None if options.detach else "control"
    blueprint = draw(options, False, console)
    if blueprint.spec.process is None:
        raise PyociError("/process: process property must not be empty")
    creation = Creation(options, blueprint, False)
    session = creation.build()
    store, state = creation.store, creation.state
    if state.phase != "running":
        state.phase = "running"
        store.save(state)
    if state.hooks.get("poststart"):
        from pyoci.container.start import poststart

        try:
            poststart(state)
        except BaseException as error:
            creation.undo(error)
            raise
    # others may work on the container while we wait
    store.unlock()
    if creation.proxy is not None:
        if options.detach:
            creation.proxy.until_ready(state)
        else:
            creation.proxy.in_background()
    if options.detach:
        store.close()
        return 0
    from pyoci.console import attend

    pidfd = posix.pidfd_open(session.pid)
    result = attend(session.pid, pidfd, session.descriptor if session.descriptor >= 0 else None)
    posix.close(pidfd)
    if log.debugging:
        log.debug("the program has ended", pid=session.pid, status=result)
    if creation.proxy is not None:
        creation.proxy.finish()
    if result == KILLED:
        _say_memory(state.cgroup_paths)
    if not options.keep:
        forget(store)
    return result


def forget(store: Store) -> None:
    """Delete a container that has ended before our eyes."""
    from pyoci.container.teardown import dismantle
    from pyoci.errors import NotFound

    try:
        store.lock()
        dismantle(store, store.load())
    except NotFound:
        pass  # somebody has deleted it meanwhile
