"""What an interpreter does before a snapshot is taken of it (`pyoci.waiting`): the work of a command, for practice.

CPython makes instructions faster that have run some times (PEP 659).  A command does everything once, so without
practice it would run the slowest form of each, and write to the pages that they lie in.  Also, the last rehearsal tells
which memory a command uses: the launcher has it filled at once, where each page would be a fault of its own.

All that is rehearsed only reads: what is found in the machine is forgotten, as it may be otherwise when a command runs.
"""

from __future__ import annotations

import posix
from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pyoci.host import Host

# A function is specialised at its eighth call (CPython 3.11), an instruction when its counter has run out (3.12).
TIMES = 24
PAGE = 4096
# bits of a page in /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)
PRESENT, OF_FILE, EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
# address, bytes, whether it is written to
USED = Struct("<QQQ")


def rehearse(times: int = TIMES) -> None:
    """What `run` and `exec` of a usual container do, but for what they change."""
    from pyoci.errors import PyociError
    from pyoci.host import probe

    for turn in range(times):
        try:
            host = probe()
        except (OSError, PyociError):
            return  # a machine without cgroups, say: the command will tell
        _command_line()
        _create(host, turn)


def _command_line() -> None:
    from pyoci.cli import COMMANDS, GLOBAL, parse

    rest = parse(GLOBAL, ("--root", "/run/pyoci", "run", "--bundle", "/", "rehearsal"), True).args
    parse(COMMANDS[rest[0]][5], rest[1:], False)


def _create(host: Host, turn: int) -> None:
    from pyoci.commands.spec import default
    from pyoci.container.create import warn_capabilities
    from pyoci.host import probe_sources
    from pyoci.jsontext import dumps, loads
    from pyoci.kernel.syscalls import numbers
    from pyoci.launch import template
    from pyoci.plan.container import PlanOptions, plan_container
    from pyoci.plan.join import Target, descriptors, plan_exec
    from pyoci.program import assemble, leading
    from pyoci.spec.load import load
    from pyoci.state import State

    config = default(cgroup2=turn % 2 == 1)
    config["process"]["terminal"] = False
    assets: dict[str, bytes] = {}
    if turn % 4 > 1:
        _as_engines_do(config)
        assets["seccomp"] = bytes(8)
    spec = load(dumps(config).encode())
    assert spec.process is not None
    probe_sources(host, spec, "/")
    plan = plan_container(spec, host, PlanOptions("rehearsal", "/", listen=turn % 3 == 0, console="control"))
    warn_capabilities(spec, host)
    ops = plan.ops[leading(plan.ops) :]
    assemble(ops, template(), host.arch, numbers(host.arch), plan.fds, assets)
    state = State("rehearsal", "/", "/", annotations=spec.annotations, cgroup_paths=plan.cgroups.paths)
    State.from_json(loads(dumps(state.to_json()).encode()))
    ops = plan_exec(spec.process, host, Target(1, ["pid", "mount"], None, [], [], False), None, None, 0, spec.linux)
    assemble(ops, template(), host.arch, numbers(host.arch), descriptors(0), {})


def _as_engines_do(config: dict[str, Any]) -> None:
    config["mounts"] += [
        {"destination": place, "type": "bind", "source": "/", "options": ["bind", "rprivate", "nosuid", "ro"]}
        for place in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    ]
    config["annotations"] = {"io.container.manager": "rehearsal"}
    config["linux"]["cgroupsPath"] = "/rehearsal/rehearsal"
    config["linux"]["resources"] |= {
        "memory": {"limit": 1 << 30, "swap": 1 << 31},
        "cpu": {"shares": 1024, "quota": 100000, "period": 100000},
        "pids": {"limit": 2048},
    }
    config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": [f"name{number}" for number in range(20)], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }


def show_used(descriptor: int) -> None:
    """Write a `USED` to `descriptor` for each piece of memory that one more rehearsal uses.

    It is a child's: what that writes to it no longer has in common with us, and of files it has mapped what it looked
    at.
    """
    pid = posix.fork()
    if pid:
        posix.waitpid(pid, 0)
        return
    try:
        rehearse(1)
        posix.write(descriptor, b"".join(USED.pack(*piece) for piece in _used()))
    finally:
        posix._exit(0)


def _used() -> Iterator[tuple[int, int, bool]]:
    maps = posix.open("/proc/self/maps", posix.O_RDONLY | posix.O_CLOEXEC)
    text = b""
    while more := posix.read(maps, 0x10000):
        text += more
    pagemap = posix.open("/proc/self/pagemap", posix.O_RDONLY | posix.O_CLOEXEC)
    for line in text.splitlines():
        place, permissions = line.split()[:2]
        start, end = (int(word, 16) for word in place.split(b"-"))
        if permissions[:1] != b"r" or b" [stack]" in line or b" [v" in line:
            continue  # the stack is not mapped from the snapshot, the rest is the kernel's
        written = permissions[1:2] == b"w"
        wanted, not_wanted = (PRESENT | EXCLUSIVE, OF_FILE) if written else (PRESENT, 0)
        pages = (end - start) // PAGE
        data = posix.pread(pagemap, 8 * pages, start // PAGE * 8)
        first = -1
        for number, (word,) in enumerate((*Struct("<Q").iter_unpack(data), (0,))):
            if word & wanted == wanted and not word & not_wanted:
                first = number if first < 0 else first
            elif first >= 0:
                yield start + first * PAGE, (number - first) * PAGE, written
                first = -1
