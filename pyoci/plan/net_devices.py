"""Network devices that are moved into the container (config-linux.md#network-devices): when, and under which name.

The runtime does it, because a device belongs to the namespace that it leaves: whoever moves it needs rights there.
All of them are looked for before anything is made.  They are moved before the container's sysctls, which may be about
them, and before hooks, which may configure them.
"""

from __future__ import annotations

from pyoci.jsontext import escape
from pyoci.plan.ops import RUNTIME, Op, Ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Json

HINT = "moving a network device needs CAP_NET_ADMIN where it is and where it goes"


def _each(devices: Json) -> list[tuple[bytes, bytes, str]]:
    """(name, name in the container, origin) of each device."""
    found = []
    for name, device in devices.items():
        new = device.get("name") if isinstance(device, dict) else None
        new = new if isinstance(new, str) and new else name
        found.append((name.encode(), new.encode(), f"/linux/netDevices/{escape(name)}"))
    return found


def find(devices: Json) -> list[Op]:
    """The runtime's: each device is there, and can be moved."""
    return [Op("find_net_device", (name, new), origin, performer=RUNTIME) for name, new, origin in _each(devices)]


def move(devices: Json) -> list[Op]:
    """The runtime's, while init is in its network namespace: each device is there, with its addresses, and up."""
    return [
        Op("move_net_device", (name, new, Ref("pid")), origin, performer=RUNTIME, hint=HINT)
        for name, new, origin in _each(devices)
    ]
