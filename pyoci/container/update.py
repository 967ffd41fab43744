"""update: change the limits of a container that exists."""

from __future__ import annotations

from pyoci.errors import WrongState
from pyoci.spec.load import load_resources
from pyoci.state import Store, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.plan.ops import Op
    from pyoci.spec.types import Resources
    from pyoci.state import State


def _plan(state: State, resources: Resources) -> list[Op]:
    from pyoci.host import probe
    from pyoci.plan.cgroups import plan_update

    host = probe()
    ops: list[Op] = []
    if state.unit:
        from pyoci.plan.systemd import plan_unit_update

        # systemd writes its own idea of the limits again at every reload: it has to know
        ops += plan_unit_update(resources, state.unit, state.cgroup_paths)
    return ops + plan_update(resources, state.cgroup_paths, host.cgroup_controllers, state.oci_version)


def update(root: str, container_id: str, data: bytes, source: str, schemata: tuple[str, ...] = ()) -> None:
    """Apply `data`, the object /linux/resources or a part of it; `source` is what messages call it; `schemata` are for
    the container's own group of resctrl.

    All of it is checked and planned before any of it is done; the first write that is refused ends it.
    """
    from pyoci.cgroup.perform import perform
    from pyoci.launch import Failure, perform_write, run_ops

    resources = load_resources(data, source)
    with Store.open(root, container_id) as store:
        store.lock()
        state = store.load()
        if status(store, state) not in ("created", "running", "paused"):
            raise WrongState(f"container {state.id!r}: container not running")
        ops = _plan(state, resources)
        if schemata:
            from pyoci import resctrl

            group = resctrl.own(state.resctrl)
        told = None
        if state.unit:
            from pyoci.cgroup.systemd import Unit

            told = Unit(state, store.path)

        def do(op: Op) -> None:
            if op.call == "write":
                perform_write(op, state.pid)
            elif told is not None and told.knows(op.call):
                told.perform(op)
            else:
                perform(op)

        try:
            run_ops(ops, do)
        except Failure as error:
            from pyoci.container.failure import explain

            raise explain(error) from None
        if schemata:
            resctrl.change(group, schemata)
