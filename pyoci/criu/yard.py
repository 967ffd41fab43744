"""cgroup2 for CRIU, as it is mounted: a "yard" (criu(8)), where it finds hierarchies instead of mounting them.

Its own mount of cgroup2, outside of cgroup namespaces, would take away the options that all of the machine's have:
nsdelegate, memory_recursiveprot (cgroups(7)).  Of the other hierarchies nothing is lost.
"""

from __future__ import annotations

import posix

from pyoci.cgroup.detect import detect
from pyoci.mountinfo import rows
from pyoci.plan.external import YARD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.state import State, Store

UNIFIED = "unified"


def lay(store: Store, state: State) -> str:
    """The path of a directory with links to all hierarchies where the container has cgroups, for a dump; "" where CRIU
    can do without, or where a mount does not show its whole hierarchy."""
    if "" not in state.cgroup_paths:
        return ""
    _, mounts, _, _ = detect()
    whole = {row.place for row in rows().values() if row.root == "/"}
    links: dict[str, str] = {}
    with open(f"/proc/{state.pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            names = line.split(":")[1]
            mount = mounts.get(names.split(",")[0], "")
            if not mount:
                continue
            if mount not in whole:
                return ""
            links[names.removeprefix("name=") or UNIFIED] = mount
    try:
        posix.mkdir(YARD, 0o700, dir_fd=store.fd)
    except FileExistsError:
        pass  # of an earlier checkpoint that has left it running
    for name, mount in links.items():
        try:
            posix.symlink(mount, f"{YARD}/{name}", dir_fd=store.fd)
        except FileExistsError:
            pass
    return f"/proc/{posix.getpid()}/fd/{store.fd}/{YARD}"
