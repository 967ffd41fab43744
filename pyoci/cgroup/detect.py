"""Which cgroup hierarchies are mounted, where, and where in them we are ourselves (cgroups(7), proc_pid_mountinfo(5)).

What a mount is, its file system type says: a directory called `unified` may be anything, and runtimes have left plain
directories there.
"""

from __future__ import annotations

import posix

from pyoci.cgroup.files import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Detected = tuple[str, dict[str, str], dict[str, str], tuple[str, ...]]

TOP = "/sys/fs/cgroup"


def detect() -> Detected:
    """(mode, mounts, own cgroups, controllers of v2).

    mode         "v2", "v1", "hybrid" (both are mounted) or "none"
    mounts       controller, "name=x" for a named hierarchy, or "" for v2 -> mount point
    own cgroups  the same keys -> our cgroup as a path below that mount point
    controllers  cgroup.controllers at v2's mount point, () without v2
    """
    mode, mounts, own = assign(read("/proc/self/mountinfo"), read("/proc/self/cgroup"), _device)
    controllers: tuple[str, ...] = ()
    if "" in mounts:
        controllers = tuple(read(mounts[""] + "/cgroup.controllers").decode().split())
    return mode, mounts, own, controllers


def assign(
    mountinfo: bytes, memberships: bytes, device: Callable[[str], str]
) -> tuple[str, dict[str, str], dict[str, str]]:
    """The decision behind `detect`; `device(path)` is "major:minor" of what is at `path`, or "".

    A mount is only taken if its device is what is found at its mount point: another mount may hide it.  Those elsewhere
    than below /sys/fs/cgroup count for what is not mounted there.
    """
    own: dict[str, str] = {}
    for line in memberships.decode("utf-8", "surrogateescape").split("\n"):
        names, colon, path = line.partition(":")[2].partition(":")
        if not colon:
            continue
        for name in names.split(","):
            own[name] = path.removesuffix(" (deleted)")
    standard: list[tuple[str, str, str, str, str]] = []
    elsewhere: list[tuple[str, str, str, str, str]] = []
    # Only the lines that matter are decoded: there may be thousands of others.
    at = mountinfo.find(b" - cgroup")
    while at >= 0:
        start = mountinfo.rfind(b"\n", 0, at) + 1
        end = mountinfo.find(b"\n", at)
        fields = mountinfo[start:at].decode("utf-8", "surrogateescape").split(" ")
        rest = mountinfo[at + 3 : end if end >= 0 else None].decode("utf-8", "surrogateescape")
        kind, _, options = rest.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            point = unescape(fields[4])
            candidate = (point, fields[2], unescape(fields[3]), kind, options)
            (standard if point == TOP or point.startswith(TOP + "/") else elsewhere).append(candidate)
        at = mountinfo.find(b" - cgroup", at + 1)
    mounts: dict[str, str] = {}
    paths: dict[str, str] = {}
    usual = len(standard)
    for index, (point, number, root, kind, options) in enumerate(standard + elsewhere):
        given = [""] if kind == "cgroup2" else [name for name in options.split(",") if name and name in own]
        new = [name for name in given if name not in mounts]
        if index >= usual > 0 and (kind == "cgroup2" or root != "/"):
            # of a copy of /sys for somebody else
            new = []
        if new and device(point) == number:
            for name in new:
                mounts[name] = point
                paths[name] = _below(own.get(name, "/"), root)
    mode = "hybrid"
    if "" not in mounts:
        mode = "v1" if mounts else "none"
    elif len(mounts) == 1:
        mode = "v2"
    return mode, mounts, paths


def bases(mounts: dict[str, str], own: dict[str, str]) -> dict[str, str]:
    """Without root's rights: where we may make cgroups and enter them, for the hierarchies in which we may.

    That is below our own cgroup in v1; in v2 beside it, or below it if it is all that is ours (cgroups(7)).
    """
    found: dict[str, str] = {}
    for name, mount in mounts.items():
        here = own.get(name, "/").rstrip("/")
        for base in (here,) if name else (here.rpartition("/")[0], here):
            directory = mount.rstrip("/") + base
            # v2: whoever moves a process must be allowed to write to cgroup.procs of the nearest common ancestor
            if posix.access(directory, posix.W_OK) and (name or posix.access(f"{directory}/cgroup.procs", posix.W_OK)):
                found[name] = base
                break
    return found


def _below(path: str, root: str) -> str:
    """The cgroup `path` as seen from a mount whose root is the cgroup `root`; "/" where it is not below."""
    if root == "/":
        return path if not path.startswith("/..") else "/"
    return path[len(root) :] if path.startswith(root + "/") else "/"


def unescape(text: str) -> str:
    """mountinfo writes blank, tab, newline and backslash as three octal digits."""
    if "\\" not in text:
        return text
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _device(path: str) -> str:
    try:
        number = posix.stat(path).st_dev
    except OSError:
        return ""
    return f"{posix.major(number)}:{posix.minor(number)}"
