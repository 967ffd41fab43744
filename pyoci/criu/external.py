"""What of a container is not its own, and so not in its images: mounts from the host, descriptors of its caller's.

CRIU calls such things external.  A mount has a name in the images, its destination in config.json, and at restore
config.json says where that comes from: the images, which may be anybody's, cannot name a place on the host.
"""

from __future__ import annotations

import posix
from stat import S_IFDIR, S_ISCHR, S_ISDIR

from pyoci.mountinfo import mount_of, rows
from pyoci.plan.devices import binds_dev
from pyoci.plan.external import External, clean, device_paths
from pyoci.tree import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyoci.mountinfo import Row
    from pyoci.spec.types import Mount, Spec

TTYS = (4, 5, *range(136, 144))  # majors of terminals (Documentation/admin-guide/devices.txt)


def is_bind(mount: Mount) -> bool:
    """Whether a mount's content is the host's."""
    return mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options


def of_container(pid: int, spec: Spec) -> list[tuple[str, str]]:
    """(mount point in the container, name in the images) of every mount that is the host's."""
    there = rows(pid)
    found: dict[int, str] = {}
    root = f"/proc/{pid}/root"
    binds = {clean(mount.destination) for mount in spec.mounts if is_bind(mount)}
    others = [clean(path) for path in (*spec.linux.masked_paths, *device_paths(spec))]
    own = -1 if binds_dev(spec) else _file_system(root)
    for name in (*sorted(binds), *others):
        # through links of the image's, as the mount was made
        handle = find(root, name)
        if handle < 0:
            continue
        try:
            row = there.get(mount_of(handle))
            status = posix.fstat(handle)
        finally:
            posix.close(handle)
        # what hides a file is the container's own /dev/null, where /dev is its own
        if row is None or row.place == "/" or row.id in found or (name not in binds and status.st_dev == own):
            continue
        mode = status.st_mode
        # an empty file system over a masked directory is the container's own; so is a device that nothing is mounted on
        if name in binds or (S_ISCHR(mode) and row.place.rpartition("/")[2] == name.rpartition("/")[2]):
            found[row.id] = name
    # cgroups are the host's, and not to be mounted anew: outside of the container's cgroup namespace CRIU's mount of
    # cgroup2 would take away the options that all of the machine's have (nsdelegate; cgroups(7))
    for row in there.values():
        if row.kind in ("cgroup", "cgroup2"):
            found.setdefault(row.id, row.place)
    # what came with a recursive bind
    for row in there.values():
        if row.id not in found:
            above = there.get(row.parent)
            if above is not None and above.id in found and _below(row.place, above.place):
                found[row.id] = found[above.id] + row.place[len(above.place.rstrip("/")) :]
    return [(there[id_].place, name) for id_, name in found.items()]


def _file_system(root: str) -> int:
    """st_dev of what a container's /dev is on."""
    handle = find(root, "/dev")
    if handle < 0:
        return -1
    try:
        return posix.fstat(handle).st_dev
    finally:
        posix.close(handle)


def _below(place: str, above: str) -> bool:
    return place.startswith(above.rstrip("/") + "/")


def on_this_host(mounts: list[External], mapped: bool) -> list[External]:
    """What is mounted for each, and what comes with those that are recursive; the part of `External` that the machine
    says.  Root of a user namespace (`mapped`) would not get through the directories above a source."""
    there = rows()
    found: list[External] = []
    for mount in mounts:
        found.append(mount)
        if mount.recursive is not None and mount.source != "/":
            source = _without_links(mount.source)
            for number, row in enumerate(there.values()):
                if _below(row.place, source):
                    below = row.place[len(source.rstrip("/")) :]
                    kind = "dir" if S_ISDIR(_mode(row.place)) else "file"
                    label = f"{mount.label}_{number}"
                    found.append(External(mount.name + below, row.place, label, kind, mount.origin, mount.recursive))
    if not mapped:
        for mount in found:
            _widen(mount, there)
    return found


def _without_links(path: str) -> str:
    """The path as mounts have it, such as /usr/lib for /lib."""
    try:
        handle = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
    except OSError:
        return path  # init's open says why
    try:
        return posix.readlink(f"/proc/self/fd/{handle}")
    finally:
        posix.close(handle)


def _mode(path: str) -> int:
    try:
        return posix.stat(path).st_mode
    except OSError:
        return S_IFDIR


def _widen(mount: External, there: dict[int, Row]) -> None:
    try:
        handle = posix.open(mount.source, posix.O_PATH | posix.O_CLOEXEC)
    except OSError:
        return  # init's open says why
    try:
        row = there.get(mount_of(handle))
        path = posix.readlink(f"/proc/self/fd/{handle}")
    finally:
        posix.close(handle)
    if row is None or path == row.place or not (row.place == "/" or _below(path, row.place)):
        return
    above = posix.open(row.place, posix.O_PATH | posix.O_CLOEXEC)
    try:
        if mount_of(above) != row.id:
            return  # covered
    finally:
        posix.close(above)
    mount.top, mount.below, mount.kind = row.place, path[len(row.place.rstrip("/")) :], "dir"


def of_host(mounts: list[External], folder: str) -> Iterator[tuple[str, str]]:
    """(name in the images, path for CRIU) of all that config.json can mean by a name."""
    for mount in mounts:
        yield mount.name, f"{folder}/{mount.label}{mount.below}"


def stdio(pid: int) -> tuple[list[str], list[str]]:
    """Descriptors 0, 1 and 2 of the container: (what restore shall put ours in place of, what is external at dump).

    "" where there is nothing to replace, because the container has the file itself.
    """
    inside = rows(pid)
    kept: list[str] = []
    external: list[str] = []
    for number in range(3):
        try:
            link = posix.readlink(f"/proc/{pid}/fd/{number}")
            status = posix.stat(f"/proc/{pid}/fd/{number}")
            mount = mount_of(number, pid)
        except OSError:
            kept.append("")
            continue
        if link.startswith(("pipe:", "socket:")):
            kept.append(link)
            continue
        if mount in inside:
            kept.append(link)
            continue
        if S_ISCHR(status.st_mode) and posix.major(status.st_rdev) in TTYS:
            key = f"tty[{status.st_rdev:x}:{status.st_dev:x}]"
        else:
            key = f"file[{mount:x}:{status.st_ino:x}]"
        kept.append(key)
        external.append(key)
    return kept, list(dict.fromkeys(external))
