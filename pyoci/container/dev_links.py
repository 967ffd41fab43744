"""Links of an image that put a volume in the place of /dev, which is the host's directory.

Devices would be made there, and names replaced: by the image's wish alone, and not by that of config.json, which has
another place for the volume.  Loaded only where an image has links on the way to a mount.
"""

from __future__ import annotations

from pyoci.errors import PyociError
from pyoci.plan.devices import binds_dev
from pyoci.tree import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Spec


def check(spec: Spec, root: str) -> None:
    """PyociError where a bind mount is what /dev leads to in the directory `root`.  One that config.json has at /dev
    itself is not added to."""
    if binds_dev(spec):
        return
    try:
        places: dict[str, int] = {}
        for index, mount in enumerate(spec.mounts):
            if "remount" not in mount.options:
                place = resolve(root, mount.destination)[0]
                places.pop(place, 0)  # the later one is the upper one
                places[place] = index
        hosts = {place for place, index in places.items() if {"bind", "rbind"} & {*spec.mounts[index].options}}
        dev = resolve(root, "/dev", hosts)[0]
    except OSError:
        return  # an image that we may not read: init says so
    above = [place for place in places if (dev + "/").startswith(place.rstrip("/") + "/")]
    # whatever /dev leads to, a later mount on that name covers it
    own = max([index for index, mount in enumerate(spec.mounts) if mount.destination.rstrip("/") == "/dev"], default=-1)
    if above and above[-1] in hosts and places[above[-1]] > own:
        index = places[above[-1]]
        why = f"devices would be made in the host's {spec.mounts[index].source}"
        raise PyociError(f"/mounts/{index}/destination: links of the image lead /dev there, and {why}")
