"""The cgroups of a container that exists: who is in them, stopping, killing, taking down.

`paths` is what the state recorded: controller ("" for v2) -> absolute directory.  Under a hybrid layout a container is
in both hierarchies; v1's freezer is the one that engines look at, v2's cgroup.kill the one that leaves nobody out.
"""

from __future__ import annotations

import posix
from errno import EBUSY, EINVAL, ENODEV, ENOENT, ENOTEMPTY, EOPNOTSUPP, ESRCH
from time import monotonic, sleep

from pyoci.cgroup.files import read, write
from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

SIGKILL = 9
TIMEOUT = 10.0  # seconds that processes get to freeze or to die
TOGETHER = 200  # processes that are signalled: each is a descriptor
SHORTEST, LONGEST = 0.0005, 0.05  # seconds between two looks
GONE = (ENOENT, ENODEV)
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC


def procs(paths: Mapping[str, str]) -> list[int]:
    """Pids (in our pid namespace) of all processes in the container's cgroups and those below them, ascending."""
    found: set[int] = set()
    for directory in _roots(paths):
        found.update([int(word) for word in _read(directory + "/cgroup.procs").split()])
        for fd, name in _inside(directory):
            found.update([int(word) for word in _read(name + "/cgroup.procs", fd).split()])
    # of processes in other pid namespaces only a 0 is seen
    return sorted(found - {0})


def nonempty(paths: Mapping[str, str]) -> bool:
    """Whether any process is there; without a walk where v2 says so itself."""
    if "" in paths and "\npopulated 1" in "\n" + _read(paths[""] + "/cgroup.events"):
        return True
    return bool(procs({controller: path for controller, path in paths.items() if controller}))


def add(paths: Mapping[str, str], pid: int) -> None:
    """Move the process `pid` into all of the cgroups."""
    for directory in dict.fromkeys(paths.values()):
        write(directory + "/cgroup.procs", b"%d" % pid)


def exec_paths(paths: Mapping[str, str], init: int) -> dict[str, str]:
    """The cgroups for a further process of the container whose first process is `init`.

    They are `paths`, but in v2 the cgroup that init is in now if the container's own takes no process any more, because
    the container gave its children controllers (as systemd in a container does).
    """
    chosen = dict(paths)
    if "" in paths and _read(paths[""] + "/cgroup.subtree_control").strip():
        for line in _read(f"/proc/{init}/cgroup").split("\n"):
            if line.startswith("0::"):
                inside = _below(paths[""], line[3:])
                if inside:
                    chosen[""] = paths[""] + inside
    return chosen


def signal_all(paths: Mapping[str, str], number: int) -> None:
    """Send the signal `number` to every process; the container stands still meanwhile: none can escape by forking."""
    was_frozen = frozen = is_frozen(paths)
    if number == SIGKILL and "" in paths:
        inside = procs({"": paths[""]})
        try:
            write(paths[""] + "/cgroup.kill", b"1")
        except OSError as error:
            if error.errno not in GONE:
                inside = []  # it is not ours to write: one by one
        left = procs(paths)
        if set(inside).issuperset(left):
            # the kernel gives its signal to the first threads, and it is lost where one has ended (pthread_exit)
            from pyoci.state import headless

            if any(headless(pid) for pid in left):
                signal_each(lambda: procs(paths), SIGKILL)
            if was_frozen:
                thaw(paths)
            thaw_inside(paths)
            return
    try:
        if not was_frozen:
            freeze(paths)
            frozen = True
    except PyociError:
        # there is no such cgroup any more, or something in it cannot be stopped; what can be is signalled anyway
        pass
    signal_each(lambda: procs(paths), number)
    if frozen and (not was_frozen or number == SIGKILL):
        # a frozen process of v1 does not even die
        thaw(paths)
    if number == SIGKILL:
        thaw_inside(paths)


def signal_each(members: Callable[[], Iterable[int]], number: int) -> None:
    """Send the signal to all of `members()`.  By the time that it is used a number may be that of somebody else's
    process, and the container decides when its own end: each is held, and must be a member once more."""
    from pyoci.signals import send

    pids = list(members())
    for start in range(0, len(pids), TOGETHER):
        held: dict[int, int] = {}
        try:
            for pid in pids[start : start + TOGETHER]:
                try:
                    held[pid] = posix.pidfd_open(pid)
                except ProcessLookupError:
                    pass
            for pid in held.keys() & set(members()):
                try:
                    send(held[pid], number)
                except ProcessLookupError:
                    pass
        finally:
            for fd in held.values():
                posix.close(fd)


def thaw_inside(paths: Mapping[str, str]) -> None:
    """The cgroups of v1 that the container has made and frozen itself: what is in them does not die, either."""
    if "freezer" in paths:
        for fd, name in _inside(paths["freezer"]):
            try:
                write(name + "/freezer.state", b"THAWED", fd)
            except OSError as error:
                if error.errno not in GONE:
                    raise _refused(f'write(".../{name}/freezer.state", "THAWED")', error) from None


def kill_all(paths: Mapping[str, str], timeout: float = TIMEOUT) -> None:
    """Kill every process and wait until none is left; PyociError if some are after `timeout` seconds."""
    end = monotonic() + timeout
    pause = SHORTEST
    while nonempty(paths):
        signal_all(paths, SIGKILL)
        if not nonempty(paths):
            return
        if monotonic() > end:
            raise PyociError(f"processes of the container do not die: {', '.join(map(str, procs(paths)[:5]))}")
        sleep(pause)
        pause = min(2 * pause, LONGEST)


def is_frozen(paths: Mapping[str, str]) -> bool:
    """Whether the container is paused (or about to be)."""
    if "freezer" in paths:
        return _read(paths["freezer"] + "/freezer.state").strip() in ("FROZEN", "FREEZING")
    return "" in paths and _read(paths[""] + "/cgroup.freeze").strip() == "1"


def freeze(paths: Mapping[str, str], timeout: float = TIMEOUT) -> None:
    """Stop every process and wait for it.  PyociError, and all run again, if some do not stop within `timeout` s."""
    end = monotonic() + timeout
    pause = SHORTEST
    while True:
        # v1 may stay in FREEZING for good when a process forks meanwhile: writing again makes it try again
        _set_frozen(paths, True)
        if "freezer" in paths:
            done = _read(paths["freezer"] + "/freezer.state").strip() == "FROZEN"
        else:
            done = "frozen 1" in _read(paths[""] + "/cgroup.events")
        if done:
            return
        if monotonic() > end:
            thaw(paths)
            raise PyociError("the container cannot be paused: some of its processes do not stop")
        sleep(pause)
        pause = min(2 * pause, LONGEST)


def thaw(paths: Mapping[str, str]) -> None:
    """Let every process run; PyociError if that cannot be."""
    _set_frozen(paths, False)


def _set_frozen(paths: Mapping[str, str], frozen: bool) -> None:
    if "freezer" in paths:
        file, value = paths["freezer"] + "/freezer.state", "FROZEN" if frozen else "THAWED"
    elif "" in paths:
        file, value = paths[""] + "/cgroup.freeze", "1" if frozen else "0"
    else:
        raise PyociError(
            "the container is in no cgroup of its own that can be frozen: v2 or v1's freezer is needed, and without"
            " root's rights one that is delegated to you before the container is created"
        )
    try:
        write(file, value.encode())
    except OSError as error:
        # with the cgroup goes whoever could stand still in it
        if frozen or error.errno not in GONE:
            raise _refused(f'write("{file}", "{value}")', error) from None


def _refused(call: str, error: OSError) -> PyociError:
    from pyoci.cgroup.perform import refused

    return refused(call, error)


def oom_kills(paths: Mapping[str, str]) -> int:
    """How many processes the kernel killed for want of memory under the container's limit; 0 where it does not say."""
    text = ""
    if "memory" in paths:
        text = _read(paths["memory"] + "/memory.oom_control")
    elif "" in paths:
        text = _read(paths[""] + "/memory.events")
    for line in text.split("\n"):
        name, _, number = line.partition(" ")
        if name == "oom_kill":
            return int(number)
    return 0


def remove(paths: Mapping[str, str], created: Sequence[str], timeout: float = TIMEOUT) -> None:
    """Remove the cgroups of an ended container: `created`, and what the container made below its own.

    What was there before, and a parent that others use meanwhile, stays.  PyociError with the names of what could not
    be removed, within `timeout` seconds; a directory that is no cgroup is never touched.
    """
    own = set(paths.values())
    end = monotonic() + timeout
    left: list[str] = []
    for directory in sorted(created, key=len, reverse=True):
        if directory in own:
            if not _remove(directory, end):
                left.append(directory)
        elif _is_cgroup(directory):
            try:
                posix.rmdir(directory)
            except OSError as error:
                if error.errno not in (*GONE, EBUSY, ENOTEMPTY):
                    raise _refused(f'rmdir("{directory}")', error) from None
    if left:
        pids = ", ".join(str(pid) for pid in procs({str(n): path for n, path in enumerate(left)})[:5])
        detail = f" (processes {pids})" if pids else ""
        raise PyociError(f"cgroups that are still in use: {', '.join(left)}{detail}")


def _remove(directory: str, end: float) -> bool:
    """Remove a cgroup with all below it; the last processes may need a moment to leave it."""
    pause = SHORTEST
    while True:
        if not _is_cgroup(directory):
            return True
        try:
            posix.rmdir(directory)
            return True
        except OSError as error:
            if error.errno in GONE:
                return True
            if error.errno not in (EBUSY, ENOTEMPTY):
                raise _refused(f'rmdir("{directory}")', error) from None
        removed = False
        for fd, name in _inside(directory):
            try:
                posix.rmdir(name, dir_fd=fd)
                removed = True
            except OSError as error:
                if error.errno not in (*GONE, EBUSY, ENOTEMPTY):
                    raise _refused(f'rmdir("{directory}/.../{name}")', error) from None
        if monotonic() > end:
            return False
        if not removed:
            sleep(pause)
            pause = min(2 * pause, LONGEST)


def _is_cgroup(directory: str) -> bool:
    """Every cgroup has this file; a directory of another file system that has it is not empty, so rmdir refuses it."""
    return posix.access(directory + "/cgroup.procs", posix.F_OK)


def _roots(paths: Mapping[str, str]) -> list[str]:
    """One directory for each hierarchy in which processes are to be looked for: v2, and one of v1 for all."""
    roots = [paths[""]] if "" in paths else []
    for controller in ("freezer", "devices", *paths):
        if controller and controller in paths:
            roots.append(paths[controller])
            break
    return roots


def _inside(directory: str) -> Iterator[tuple[int, str]]:
    """The cgroups below `directory`, children before parents: each as its parent's descriptor and its name there.

    Whoever may make cgroups can nest them deeper than a call of ours may go, or a path be long.  One descriptor goes
    down and up; it is good until the next step.
    """
    try:
        fd = posix.open(directory, _DIRECTORY)
    except OSError as error:
        if error.errno in GONE:
            return
        raise
    left = [_names(fd)]  # of every directory on the way down
    way: list[str] = []
    try:
        while True:
            if left[-1]:
                name = left[-1].pop()
                try:
                    below = posix.open(name, _DIRECTORY, dir_fd=fd)
                except OSError as error:
                    if error.errno in GONE:
                        continue
                    raise
                posix.close(fd)
                fd = below
                way.append(name)
                left.append(_names(fd))
            else:
                left.pop()
                if not left:
                    return
                above = posix.open("..", _DIRECTORY, dir_fd=fd)
                posix.close(fd)
                fd = above
                yield fd, way.pop()
    finally:
        posix.close(fd)


def _names(fd: int) -> list[str]:
    try:
        with posix.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in GONE:
            return []
        raise


def _below(directory: str, path: str) -> str:
    """The part of the cgroup `path` that is below `directory`, which ends as `path` begins; "" if there is none."""
    at = len(path)
    while at > 0:
        if directory.endswith(path[:at]):
            return path[at:]
        at = path.rfind("/", 0, at)
    return ""


def _read(path: str, dir_fd: int | None = None) -> str:
    """A cgroup's file, or "" where it or the cgroup is not there (any more)."""
    try:
        return read(path, dir_fd).decode("utf-8", "surrogateescape")
    except OSError as error:
        # cgroup.procs of a threaded cgroup cannot be read: its processes are listed by the one above
        if error.errno in (*GONE, EOPNOTSUPP, EINVAL, ESRCH):
            return ""
        raise
