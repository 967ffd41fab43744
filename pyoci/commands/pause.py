"""pause: freeze a container's processes."""

from __future__ import annotations

from pyoci import log
from pyoci.errors import PyociError, WrongState
from pyoci.state import Store, alive, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def run(settings: Globals, options: Parsed) -> int:
    """The container's status becomes "paused"."""
    from pyoci.cgroup.live import freeze

    with Store.open(settings.root, options.args[0]) as store:
        store.lock()
        state = store.load()
        if status(store, state) not in ("created", "running"):
            raise WrongState(f"container {state.id!r}: container not running")
        try:
            freeze(state.cgroup_paths)
        except PyociError:
            if not alive(state):  # its cgroup may have gone with it
                raise WrongState(f"container {state.id!r}: container not running") from None
            raise
        if log.debugging:
            log.debug("frozen", id=state.id, pid=state.pid)
    return 0
