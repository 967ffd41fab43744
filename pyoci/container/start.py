"""start: tell the waiting init to go on, and hear from it whether the program really runs."""

from __future__ import annotations

import _socket
import posix
import sys
from errno import ECONNREFUSED, ENOENT

from pyoci import VERSION, log
from pyoci.errors import PyociError, WrongState
from pyoci.reports import AT_BARRIER, FAILED, REPORT, TEXT_MAX
from pyoci.state import NO_PROCESS, SOCKET, Store, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.state import State

REFUSED = {
    "creating": "cannot start a container that is still being created",
    "running": "cannot start an already running container",
    "paused": "cannot start a container in the paused state",
    "stopped": "cannot start a container that has stopped",
}


def start(root: str, container_id: str) -> None:
    """See `pyoci.container.start`."""
    store = Store.open(root, container_id)
    try:
        # runtime.md#start: an error, not a wait for the hooks of create
        if store.busy() and store.load().phase == "creating":
            raise WrongState(f"container {container_id!r}: {REFUSED['creating']}")
        store.lock()
        state = store.load()
        made = sys._xoptions.get("pyoci-connection")
        if made:
            # The launcher has connected, and init has something to say (launcher/shortcut.c): that it failed.
            connection = _socket.socket(fileno=int(made))
            try:
                _attend(connection, store, state)
            finally:
                connection.close()
            return
        found = status(store, state)
        if found != "created":
            raise WrongState(f"container {container_id!r}: {REFUSED[found]}")
        if store.has(NO_PROCESS):
            raise WrongState(f"/process: container {container_id!r} was created without process, and start needs one")
        proxy = None
        if posix.environ.get(b"NOTIFY_SOCKET"):
            from pyoci.readiness import Proxy

            proxy = Proxy.of(store)
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            try:
                # Connecting is the signal: init has been waiting in accept.
                connection.connect(f"/proc/self/fd/{store.fd}/{SOCKET}")
            except OSError as error:
                if error.errno not in (ECONNREFUSED, ENOENT):
                    raise
                raise WrongState(f"container {container_id!r}: {REFUSED['stopped']}") from None
            _attend(connection, store, state)
        finally:
            connection.close()
        try:
            poststart(state)
        except PyociError:
            destroy(store, state)
            raise
        if proxy is not None:
            # others may work on the container while we wait
            store.unlock()
            proxy.until_ready(state)
    finally:
        store.close()


def _attend(connection: _socket.socket, store: Store, state: State) -> None:
    """Serve init until it executes the program, which closes the connection."""
    while True:
        try:
            message = connection.recv(REPORT.size + TEXT_MAX)
        except ConnectionResetError:
            message = b""
        if not message:
            if log.debugging:
                log.debug("the program runs", pid=state.pid)
            return
        kind, index, value, length = REPORT.unpack_from(message)
        if kind == AT_BARRIER:
            try:
                start_container_hooks(store, state)
            except PyociError:
                connection.close()
                destroy(store, state)
                raise
            connection.send(b"\0")
        elif kind == FAILED:
            text = message[REPORT.size : REPORT.size + length].decode("utf-8", "replace").strip()
            raise _decode(store, state, index, value, text)


def start_container_hooks(store: Store, state: State) -> None:
    """The startContainer hooks, in the container's namespaces."""
    from pyoci.container.perform import run_container_hooks
    from pyoci.hooks import remembered
    from pyoci.host import probe

    run_container_hooks("startContainer", remembered(state.hooks, "startContainer"), state, probe(), store=store)


def poststart(state: State) -> None:
    """The poststart hooks; since 1.3 of the specification their failure ends the container (runtime.md#lifecycle)."""
    if not state.hooks.get("poststart"):
        return
    from pyoci.container.perform import run_container_hooks
    from pyoci.hooks import remembered

    run_container_hooks("poststart", remembered(state.hooks, "poststart"), state, None, "running")


def destroy(store: Store, state: State) -> None:
    """What the failure of a hook of start leads to (runtime.md#lifecycle, from step 7 or 9 to 12 and 13): the container
    is stopped, what create made is undone, and the poststop hooks run.  Nothing is left for delete."""
    from pyoci.container.teardown import dismantle, end

    try:
        end(state, False)
        dismantle(store, state)
    except (OSError, PyociError) as second:
        # the hook's failure is the error
        log.warning(f"container {state.id!r}: after a hook of start has failed: {second}")


def _decode(store: Store, state: State, index: int, number: int, text: str) -> PyociError:
    """The op that failed: the plan is made again from what create kept, because equal inputs give equal plans."""
    from pyoci.container.failure import explain
    from pyoci.container.replay import program_of
    from pyoci.launch import Failure

    try:
        if state.version != VERSION:
            raise PyociError(f"it was made by pyoci {state.version or 'of an earlier version'}, and this is {VERSION}")
        op = program_of(store).index[index]
    except (IndexError, OSError, PyociError) as error:
        from pyoci.kernel.errnos import words

        return PyociError(f"the container's program could not be executed: {words(number)} (its plan is lost: {error})")
    return explain(Failure(op, number, text), root=state.rootfs)
