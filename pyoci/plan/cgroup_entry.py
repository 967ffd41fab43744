"""How a process gets into a container's cgroups; apart from how they are made, because `exec` needs no more."""

from __future__ import annotations

from pyoci.kernel import flags as k
from pyoci.plan.ops import Op, Ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PATH_CLAUSE = "config-linux.md#cgroups-path"


def join_ops(paths: Mapping[str, str], origin: str = PATH_CLAUSE) -> tuple[bytes | None, list[Op], list[Op]]:
    """How another process gets in: (v2 directory to be cloned into, init's ops before clone3, init's ops after it).

    v1 is entered by the process itself, writing 0 to `tasks`: moving oneself as a single thread is the one way that
    does not wait for the kernel's threadgroup lock, and so for an RCU grace period (10 ms and more).  The files are
    opened before the clone, because the kernel asks who opened them.
    """
    opens: list[Op] = []
    enter: list[Op] = []
    directories = dict.fromkeys(directory for controller, directory in paths.items() if controller)
    for number, directory in enumerate(directories):
        tasks = f"tasks{number}"
        path = f"{directory}/tasks".encode()
        opens.append(Op("openat", (k.AT_FDCWD, path, k.O_WRONLY | k.O_CLOEXEC), origin, tasks))
        enter.append(Op("write", (Ref(tasks), b"0", 1), origin))
        enter.append(Op("close", (Ref(tasks),), origin))
    return paths[""].encode() if "" in paths else None, opens, enter


def open_cgroup(directory: bytes, origin: str) -> Op:
    """`@cgroup`: the directory that clone3 puts the new process into."""
    return Op("openat", (k.AT_FDCWD, directory, k.O_RDONLY | k.O_DIRECTORY | k.O_CLOEXEC), origin, "cgroup")
