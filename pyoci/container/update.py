"""update: change the limits of a container that exists."""

from __future__ import annotations

from pyoci import log
from pyoci.errors import WrongState
from pyoci.spec.load import load_resources
from pyoci.state import Store, status

UNLIMITED = 1 << 62  # v1 writes no limit as the largest number of pages in a long

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyoci.plan.ops import Op
    from pyoci.spec.types import Resources
    from pyoci.state import State


def _plan(state: State, resources: Resources) -> list[Op]:
    from pyoci.host import probe
    from pyoci.plan.cgroups import plan_update

    ops = plan_update(resources, state.cgroup_paths, probe().cgroup_controllers, state.oci_version)
    if state.unit:
        from pyoci.plan.systemd import plan_unit_update

        # systemd writes its own idea of the limits again when it likes to, so it has to know.  What the kernel refuses
        # it never hears of; and what it has rounded is written once more.
        told = plan_unit_update(resources, state.unit, state.cgroup_paths, state.oci_version)
        if told:
            ops = [*ops, *told, *ops]
    return ops


def _complete(resources: Resources, paths: Mapping[str, str]) -> None:
    """Limits that say nothing alone, and of which only one is given: the other is the one that there is."""

    def present(*places: tuple[str, str]) -> list[str]:
        """The words of the first of these files, (controller, name), that there is."""
        from pyoci.cgroup.files import read

        for controller, name in places:
            if controller in paths:
                try:
                    return read(f"{paths[controller]}/{name}").decode("ascii", "replace").split()
                except OSError:
                    continue  # no such controller there
        return []

    memory, cpu = resources.memory, resources.cpu
    if memory is not None and memory.limit is None and (memory.swap or 0) > 0:
        (text,) = present(("memory", "memory.limit_in_bytes"), ("", "memory.max")) or [""]
        if text.isdigit() and int(text) < UNLIMITED:
            memory.limit = int(text)
    if cpu is None:
        return
    if bool(cpu.quota) != bool(cpu.period):
        both = [*present(("cpu", "cpu.cfs_quota_us")), *present(("cpu", "cpu.cfs_period_us"))]
        both = both or present(("", "cpu.max"))
        if len(both) == 2:
            cpu.quota = cpu.quota or (-1 if both[0] == "max" else int(both[0]))
            cpu.period = cpu.period or int(both[1])
    if cpu.idle == 0 and present(("cpu", "cpu.idle"), ("", "cpu.idle")) == ["0"]:
        cpu.idle = None  # it is not idle: nothing to take back


def update(root: str, container_id: str, data: bytes, source: str, schemata: tuple[str, ...] = ()) -> None:
    """Apply `data`, the object /linux/resources or a part of it; `source` is what messages call it; `schemata` are for
    the container's own group of resctrl.

    All of it is checked and planned before any of it is done; the first write that is refused ends it.
    """
    from pyoci.cgroup.perform import perform
    from pyoci.launch import Failure, perform_write, run_ops, tell

    with Store.open(root, container_id) as store:
        store.lock()
        state = store.load()
        resources = load_resources(data, source, lambda given: _complete(given, state.cgroup_paths))
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
            told.reach()

        def do(op: Op) -> None:
            if op.call == "write":
                perform_write(op, state.pid)
            elif told is not None and told.knows(op.call):
                told.perform(op)
            else:
                perform(op)
            if log.debugging:
                tell(op, state.pid)

        try:
            run_ops(ops, do)
        except Failure as error:
            from pyoci.container.failure import explain

            raise explain(error) from None
        if schemata:
            resctrl.change(group, schemata)
