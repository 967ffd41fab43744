"""The container's group in resctrl: made or joined, and its schemata (config-linux.md#intelrdt).

All of it is the runtime's to do.  A group is made before init exists; init is put into it while it is the container's
only process, so that everything the container starts is born in it.
"""

from __future__ import annotations

from errno import ENOENT

from pyoci.errors import ConfigError, Problem
from pyoci.plan.ops import RUNTIME, Op, Ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.host import Host
    from pyoci.spec.types import Json

POINTER = "/linux/intelRdt"
CLAUSE = "config-linux.md#intelrdt"
MISSING = "a class of service without schemata must be there before"
FULL = "a group of that name may be there already, or the processor's number of groups be used up"


class Groups:
    """`control`, the CTRL_MON group's directory; `monitor`, the MON group's in it or ""; `own` whether the first is the
    container's own, which ends with it."""

    __slots__ = ("control", "monitor", "own")

    def __init__(self, asked: Json, root: str, id: str) -> None:
        name = asked.get("closID") or ""
        assert isinstance(name, str)
        self.own = not name
        self.control = root if name == "/" else f"{root}/{name or id}"
        self.monitor = f"{self.control}/mon_groups/{id}" if asked.get("enableMonitoring") else ""


def groups(asked: Json, host: Host, id: str) -> Groups:
    """Where the container is; ConfigError where no resctrl file system is mounted."""
    if not host.resctrl:
        message = "no resctrl file system is mounted: it needs a processor with Intel RDT, and mount -t resctrl"
        raise ConfigError([Problem(POINTER, message, CLAUSE)])
    return Groups(asked, host.resctrl, id)


def make(asked: Json, found: Groups) -> list[Op]:
    """The group exists, has the schemata, and the monitoring group in it exists."""
    control = found.control.encode()
    texts: list[tuple[str, bytes]] = []
    for name in ("l3CacheSchema", "memBwSchema"):
        text = asked.get(name)
        if isinstance(text, str) and text:
            texts.append((f"{POINTER}/{name}", f"{text}\n".encode()))
    lines = asked.get("schemata")
    if isinstance(lines, list | tuple) and lines:
        # behind the others, in a write(2) of their own: they may say something else of the same domain
        texts.append((f"{POINTER}/schemata", "".join(f"{line}\n" for line in lines).encode()))
    write = [Op("write_resctrl", (control, text), origin, performer=RUNTIME) for origin, text in texts]
    ops: list[Op] = []
    if found.own:
        ops += [_mkdir(control, POINTER), *write]
    elif texts:
        # one that is there must say the same already; what comes later holds where two speak of the same domain
        ops.append(
            Op(
                "match_resctrl",
                (control, b"".join(text for _, text in texts)),
                f"{POINTER}/closID",
                performer=RUNTIME,
                tolerate=(ENOENT,),
                otherwise=[_mkdir(control, f"{POINTER}/closID"), *write],
            )
        )
    else:
        ops.append(Op("match_resctrl", (control, b""), f"{POINTER}/closID", performer=RUNTIME, hint=MISSING))
    if found.monitor:
        ops.append(_mkdir(found.monitor.encode(), f"{POINTER}/enableMonitoring"))
    return ops


def enter(found: Groups) -> list[Op]:
    """The container's first process is in them; the monitoring group takes none that is not in the group above."""
    return [
        Op("enter_resctrl", (path.encode(), Ref("pid")), POINTER, performer=RUNTIME)
        for path in (found.control, found.monitor)
        if path
    ]


def _mkdir(path: bytes, origin: str) -> Op:
    return Op("mkdir_resctrl", (path,), origin, performer=RUNTIME, hint=FULL)
