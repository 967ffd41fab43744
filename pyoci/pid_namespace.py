"""Who belongs to a container that has no cgroup of its own: its pid namespace, and descent, say so."""

from __future__ import annotations

import posix


def members(init: int, own: bool) -> list[int]:
    """Pids of the container whose first process is `init`, ascending: those in its pid namespace, if that is its `own`,
    and all descendants (pid_namespaces(7)).  What exec brought in and is in a namespace of others is not seen.
    """
    parents: dict[int, int] = {}
    found = {init}
    space = _space(init) if own else ""
    for name in posix.listdir("/proc"):
        if name.isdigit():
            pid = int(name)
            parents[pid] = _parent(pid)
            if space and _space(pid) == space:
                found.add(pid)
    # a child's pid may be below its parent's
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        found |= more
        grown = bool(more)
    return sorted(pid for pid in found if parents.get(pid, -1) >= 0)


def _space(pid: int) -> str:
    try:
        return posix.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    """-1 for a process that is gone (proc_pid_stat(5): the name before may hold anything)."""
    from pyoci.cgroup.files import look
    from pyoci.state import over

    words = look(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(words[1]) if words and not over(words) else -1
