"""A container's unit of systemd's: started, changed, stopped.  Loaded for --systemd-cgroup and for what it made only.

    unit_property(name, value)    what the next call tells; value as GVariant text
    start_unit(name, @stage)      start the transient unit, with init's first stage as a scope's first process
    set_unit(name)                change the properties of one that runs
    attach_unit(name, @stage)     put a stage of exec's into a user's unit, where the user itself may not
    adopt_cgroup(path)            a cgroup of the unit: there already, or made where systemd does not (v1)
    adopt_cpuset(path)            the same in v1's cpuset, where a new one has no CPU until given some
"""

from __future__ import annotations

import posix
from time import monotonic, sleep

from pyoci.cgroup.bus import UNIT, BusError, connect
from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.plan.ops import Op
    from pyoci.state import State

CALLS = frozenset(("unit_property", "start_unit", "set_unit", "adopt_cgroup", "adopt_cpuset"))
EXISTS = "org.freedesktop.systemd1.UnitExists"
UNKNOWN = "org.freedesktop.systemd1.NoSuchUnit"
NOT_LOADED = (UNKNOWN, "org.freedesktop.DBus.Error.UnknownObject")
IDLE = ("CPUWeight", ("t", 0))
SINCE = 252  # the systemd that knows it
PATIENCE = 2.0  # seconds that a unit of the same name gets to end


class Unit:
    """What is done with one container's unit."""

    __slots__ = ("description", "properties", "state")

    def __init__(self, state: State, directory: str) -> None:
        self.state = state
        # whose the unit is: a name alone may be anybody's
        self.description = f"pyoci container {state.id} ({directory})"
        self.properties: list[tuple[str, tuple[str, object]]] = []

    @staticmethod
    def knows(call: str) -> bool:
        """Whether `perform` is for it."""
        return call in CALLS

    def perform(self, op: Op, stage: int = 0) -> list[str]:
        """The directories that are the container's from now on; PyociError with systemd's words."""
        first = op.args[0]
        assert isinstance(first, bytes)
        if op.call == "unit_property":
            from pyoci.gvariant import parse

            text = op.args[1]
            assert isinstance(text, bytes)
            self.properties.append((first.decode(), parse(text.decode())))
        elif op.call == "start_unit":
            self._start(first.decode(), stage, op.origin)
            self.properties.clear()
        elif op.call == "set_unit":
            try:
                connect(self._instance).call(
                    "SetUnitProperties", (("s", first.decode()), ("b", True), ("a(sv)", self._known()))
                )
            except BusError as error:
                raise PyociError(f"{op.origin}: {error}") from error
        else:
            return self._adopt(first, op)
        return []

    @property
    def _instance(self) -> str:
        return self.state.unit.partition(" ")[0]

    def reach(self) -> None:
        """Raises PyociError where systemd cannot be told anything, before anything is done."""
        connect(self._instance)

    def _known(self) -> list[tuple[str, tuple[str, object]]]:
        """The properties, without what this systemd is too old for."""
        if IDLE in self.properties:
            # "252.38-1~deb12u1", "v255.4"
            major = connect(self._instance).get("Version").lstrip("v").partition(".")[0]
            if major.isdigit() and int(major) < SINCE:
                return [one for one in self.properties if one != IDLE]
        return list(self.properties)

    def _start(self, name: str, stage: int, origin: str) -> None:
        given = {property for property, _ in self.properties}
        properties = self._known()
        if "Description" not in given:
            properties.insert(0, ("Description", ("s", self.description)))
        if not name.endswith(".slice"):
            properties.append(("PIDs", ("au", [stage])))
        bus = connect(self._instance)
        arguments = (("s", name), ("s", "fail"), ("a(sv)", properties), ("a(sa(sv))", ()))
        end = monotonic() + PATIENCE
        while True:
            try:
                result = bus.job("StartTransientUnit", arguments)
                break
            except BusError as error:
                if error.name != EXISTS:
                    self.state.unit = ""
                    raise PyociError(f"{origin}: {error}") from error
                if monotonic() > end:
                    # somebody else's: not ours to stop when this fails
                    self.state.unit = ""
                    raise PyociError(
                        f"{origin}: systemd has a unit {name} already; end it with systemctl stop {name}, or choose"
                        " another cgroupsPath"
                    ) from None
            # one that has failed stays until it is told to go; one that ends needs a moment
            try:
                bus.call("ResetFailedUnit", (("s", name),))
            except BusError:
                pass  # it has not failed, or is gone by now: the next try tells
            sleep(0.05)
        if result != "done":
            raise PyociError(
                f"{origin}: systemd's job to start {name} ended with {result!r}; systemctl status {name} says why"
            )

    def _adopt(self, path: bytes, op: Op) -> list[str]:
        from pyoci.cgroup.perform import give_cpus, make_missing

        shown = path.decode("utf-8", "surrogateescape")
        made = []
        systemds = (self.state.cgroup_paths.get(""), self.state.cgroup_paths.get("name=systemd"))
        if shown in systemds and not self.state.unit.endswith(".slice"):
            try:
                posix.stat(path)
            except FileNotFoundError:
                where = connect(self._instance).get("ControlGroup", self._object(), UNIT.replace("Unit", "Scope"))
                raise PyociError(
                    f"{op.origin}: systemd made the unit's cgroup at {where}, not at {shown}: is /sys/fs/cgroup the"
                    " view of it that systemd has?"
                ) from None
        else:
            made = make_missing(path, op.origin)
        if op.call == "adopt_cpuset":
            give_cpus(path)
        return made if shown in made else [*made, shown]

    def _object(self) -> str:
        return connect(self._instance).call("GetUnit", (("s", self.state.unit.partition(" ")[2]),))


def must_attach(state: State) -> bool:
    """Whether a user's systemd has to put exec's process into the container's unit: where the user may not write to
    what we and the container are both below (cgroups(7), "Delegation containment")."""
    from pyoci.cgroup.detect import detect

    _, mounts, own, _ = detect()
    if "" not in mounts or "" not in state.cgroup_paths:
        return False
    common = mounts[""]
    ours = (common + own[""]).split("/")
    for at, (one, other) in enumerate(zip(ours, state.cgroup_paths[""].split("/"), strict=False)):
        if one != other:
            break
        common = "/".join(ours[: at + 1])
    return not posix.access(common + "/cgroup.procs", posix.W_OK)


def attach(state: State, stage: int) -> None:
    """Have systemd move the process `stage` into the container's unit."""
    instance, _, name = state.unit.partition(" ")
    try:
        connect(instance).call("AttachProcessesToUnit", (("s", name), ("s", ""), ("au", [stage])))
    except BusError as error:
        raise PyociError(
            f"{error}; run pyoci in a scope of your own systemd: systemd-run --user --scope pyoci ..."
        ) from error


def goes_by_itself(state: State) -> bool:
    """Whether systemd forgets the unit when its last process has ended: a scope that nobody told to stay when it has
    failed (CollectMode= of systemd.unit(5))."""
    return not state.unit.endswith(".slice") and "org.systemd.property.CollectMode" not in state.annotations


def is_gone(state: State) -> bool:
    """Whether the unit has gone by itself: then systemd has removed its cgroup.  To be asked before we do that."""
    if not goes_by_itself(state):
        return False
    for name in ("", "name=systemd"):
        if name in state.cgroup_paths:
            try:
                posix.stat(state.cgroup_paths[name])
            except FileNotFoundError:
                continue
            return False
    return True


def stop(state: State, directory: str) -> None:
    """Stop the unit and wait until it is gone; no error if it is.  Its processes have been killed already.

    A create that was killed may have found the name taken: then only a unit with our description is ours.
    """
    instance, _, name = state.unit.partition(" ")
    unit = Unit(state, directory)
    bus = connect(instance)
    try:
        if state.phase == "creating" and bus.get("Description", unit._object(), UNIT) != unit.description:
            return
        bus.job("StopUnit", (("s", name), ("s", "replace")))
    except BusError as error:
        if error.name not in NOT_LOADED:
            raise
    try:
        bus.call("ResetFailedUnit", (("s", name),))
    except BusError:
        pass  # it has not failed
