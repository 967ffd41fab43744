"""Which cgroups a further process of a container gets into, when the container's own are not what is asked for or not
there any more.

Only loaded by exec, for --cgroup and after a refusal.
"""

from __future__ import annotations

import posix

from pyoci.cgroup.files import look
from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FLAG = "--cgroup"


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """The values of --cgroup as controller -> path; "" stands for all of them, and then it is the only one."""
    found: dict[str, str] = {}
    for argument in arguments:
        names, colon, path = argument.rpartition(":")
        if not colon and len(arguments) > 1:
            raise PyociError(f"{FLAG} {argument}: more than one needs CONTROLLER: before the path")
        for name in names.split(",") if colon else ("",):
            if colon and not name:
                raise PyociError(f"{FLAG} {argument}: there is no controller before the colon")
            if name in found:
                raise PyociError(f"{FLAG} {argument}: controller {name} has two paths")
            found[name] = path
    for path in found.values():
        if ".." in path.split("/") or "\0" in path:
            raise PyociError(f"{FLAG} {path}: must be a cgroup below the container's, without \"..\"")
    return found


def below(paths: Mapping[str, str], wanted: Mapping[str, str], paused: bool = False) -> dict[str, str]:
    """`paths` with what `wanted` (of `parse`) says for some controllers, or for all.

    Controllers that are one hierarchy go together.  PyociError for controllers that the container has not, for cgroups
    that are not there and, unless `paused`, for those that are frozen: who is put into one stands still for good.
    """
    everywhere = wanted.get("")
    # beside v1's hierarchies, v2's is followed only where it has that cgroup
    hybrid = len(paths) > 1
    result = dict(paths)
    for name, path in wanted.items():
        if name and name not in paths:
            known = ", ".join(sorted(filter(None, paths)))
            there = f"it has {known}" if known else "cgroup v2 has one cgroup for all controllers: give a path only"
            raise PyociError(f"{FLAG} {name}:{path}: the container is in no cgroup of that controller; {there}")
    for controller, base in paths.items():
        if everywhere is not None:
            directory = _join(base, everywhere)
            if hybrid and not controller and not _is_cgroup(directory):
                continue
        else:
            mates = {name: wanted[name] for name, other in paths.items() if other == base and name in wanted}
            if not mates:
                continue
            directories = {_join(base, path) for path in mates.values()}
            if len(directories) > 1:
                raise PyociError(f"{FLAG}: {', '.join(mates)} are one hierarchy, and cannot have two cgroups")
            directory = directories.pop()
        if not _is_cgroup(directory):
            raise PyociError(f"{FLAG}: no such cgroup: {directory}")
        if not paused and _frozen(directory):
            raise PyociError(f"{FLAG}: {directory} is frozen; a process in it would stand still (--ignore-paused)")
        if controller == "cpuset" and not look(directory + "/cpuset.cpus").strip():
            raise PyociError(f"{FLAG}: {directory} has no processors: write its cpuset.cpus and cpuset.mems first")
        result[controller] = directory
    return result


def of_init(paths: Mapping[str, str], init: int) -> dict[str, str]:
    """The same controllers' cgroups that the process `init` is in now: it can have been moved out of `paths`, which
    may be gone then; and v2's own may take no process any more, because it has given its children controllers."""
    from pyoci.cgroup.detect import detect

    _, mounts, _, _ = detect()
    result = dict(paths)
    text = look(f"/proc/{init}/cgroup").decode("utf-8", "surrogateescape")
    for line in text.split("\n"):
        names, colon, path = line.partition(":")[2].partition(":")
        if not colon or path.startswith("/../") or path.endswith(" (deleted)"):
            continue
        for name in names.split(","):
            if name in paths and name in mounts:
                result[name] = mounts[name] + path.rstrip("/")
    return result


def _join(base: str, path: str) -> str:
    return "/".join([base, *[part for part in path.split("/") if part not in ("", ".")]])


def _is_cgroup(directory: str) -> bool:
    return posix.access(directory + "/cgroup.procs", posix.F_OK)


def _frozen(directory: str) -> bool:
    """Whether what is put there would stand still, because of it or of what is above it."""
    if b"\nfrozen 1" in b"\n" + look(directory + "/cgroup.events"):
        return True
    return look(directory + "/freezer.state").strip() in (b"FROZEN", b"FREEZING")
