"""Values of config.json as the kernel has them, where no other test of containers looks."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from containers import Box, box, needed  # noqa: F401 - box is a fixture

pytestmark = needed
V1_MEMORY = Path("/sys/fs/cgroup/memory")
v1 = pytest.mark.skipif(not V1_MEMORY.is_dir(), reason="cgroup v1's memory controller is not mounted")

LABELS = {
    "AS": "Max address space", "CORE": "Max core file size", "CPU": "Max cpu time", "DATA": "Max data size",
    "FSIZE": "Max file size", "LOCKS": "Max file locks", "MEMLOCK": "Max locked memory",
    "MSGQUEUE": "Max msgqueue size", "NICE": "Max nice priority", "NOFILE": "Max open files",
    "NPROC": "Max processes", "RSS": "Max resident set", "RTPRIO": "Max realtime priority",
    "RTTIME": "Max realtime timeout", "SIGPENDING": "Max pending signals", "STACK": "Max stack size",
}  # fmt: skip


def test_every_limit(box: Box) -> None:
    """All of getrlimit(2), lowered: a soft limit below a hard one, both as the kernel has them."""
    wanted = {}
    for number, name in enumerate(LABELS):
        wanted[name] = (0, 0) if name in ("NICE", "RTPRIO") else (2**30 + number, 2**30 + 2**20 + number)
    wanted["NOFILE"] = (100, 101)
    wanted["LOCKS"] = (10, 11)
    for name, kind in (("MEMLOCK", resource.RLIMIT_MEMLOCK), ("MSGQUEUE", resource.RLIMIT_MSGQUEUE),
                       ("NPROC", resource.RLIMIT_NPROC), ("SIGPENDING", resource.RLIMIT_SIGPENDING)):  # fmt: skip
        hard = resource.getrlimit(kind)[1]
        wanted[name] = (1000, 1001) if hard == resource.RLIM_INFINITY or hard > 1001 else (hard, hard)
    box.process["rlimits"] = [
        {"type": f"RLIMIT_{name}", "soft": soft, "hard": hard} for name, (soft, hard) in wanted.items()
    ]
    lines = box.run("cat /proc/self/limits").splitlines()
    found = {line[:26].strip(): tuple(line[26:].split()[:2]) for line in lines}
    assert {name: found[label] for name, label in LABELS.items()} == {
        name: (str(soft), str(hard)) for name, (soft, hard) in wanted.items()
    }


def memory_group(pid: int) -> Path:
    """The directory of a process's group of v1's memory controller."""
    return V1_MEMORY / Path(f"/proc/{pid}/cgroup").read_text().partition(":memory:/")[2].splitlines()[0]


@v1
def test_use_hierarchy(box: Box) -> None:
    """v1: what a group below the container's uses counts against the container's limit."""
    box.linux.setdefault("resources", {})["memory"] = {"useHierarchy": True, "limit": 64 << 20}
    pid = box.start("exec sleep 100")
    group = memory_group(pid)
    assert (group / "memory.use_hierarchy").read_text() == "1\n"
    below = group / "below"
    below.mkdir()
    try:
        stat = (below / "memory.stat").read_text()
        assert f"hierarchical_memory_limit {64 << 20}\n" in stat
    finally:
        below.rmdir()


@v1
def test_memory_of_v1(box: Box) -> None:
    memory = {"limit": 64 << 20, "swappiness": 13, "disableOOMKiller": True, "kernelTCP": 8 << 20}
    box.linux.setdefault("resources", {})["memory"] = memory
    group = memory_group(box.start("exec sleep 100"))
    assert (group / "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
    assert (group / "memory.swappiness").read_text() == "13\n"
    assert "oom_kill_disable 1\n" in (group / "memory.oom_control").read_text()
    assert (group / "memory.kmem.tcp.limit_in_bytes").read_text() == f"{8 << 20}\n"


def test_relative_destination(box: Box) -> None:
    """config.md#mounts: taken from the root, not from anybody's working directory."""
    box.mount("tmp/there", "tmpfs", "tmpfs")
    box.process["cwd"] = "/etc"
    assert box.run("grep -c ' /tmp/there ' /proc/self/mountinfo") == "1\n"


def test_unknown_properties(box: Box) -> None:
    """config.md#extensibility: ignored, and annotations that nobody knows too."""
    box.config |= {"org.example": {"x": [1]}, "annotations": {"org.example.unknown": "x", "org.opencontainers.x": ""}}
    box.process["unknown"] = box.linux["unknown"] = box.linux.setdefault("resources", {})["unknown"] = {"a": None}
    box.config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "unknown": 1})
    assert box.run("echo ran") == "ran\n"


def test_environment_of_hooks(box: Box) -> None:
    """config.md#posix-platform-hooks: env is what it is given, of which ours is no part."""
    where = box.rootfs / "tmp" / "env"
    for number, env in enumerate([[], ["A=1", "B="]]):
        copy = ["dd", "if=/proc/self/environ", f"of={where}{number}"]
        hooks = box.config.setdefault("hooks", {}).setdefault("createRuntime", [])
        hooks.append({"path": "/bin/busybox", "args": copy, "env": env})
    box.create()
    assert Path(f"{where}0").read_bytes() == b""
    assert sorted(Path(f"{where}1").read_bytes().split(b"\0")) == [b"", b"A=1", b"B="]


def test_listener_that_nobody_needs(box: Box) -> None:
    """config-linux.md#seccomp: listenerPath is ignored without SCMP_ACT_NOTIFY, so nobody has to listen there."""
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(box.folder / "nobody.sock"),
                            "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}]}  # fmt: skip
    assert box.run("grep Seccomp: /proc/self/status").split() == ["Seccomp:", "2"]


@v1
def test_kernel_memory_of_v1(box: Box) -> None:
    """Linux limits the kernel's memory no more: it takes the value for nothing, or refuses it, and we say so."""
    box.linux.setdefault("resources", {})["memory"] = {"limit": 64 << 20, "kernel": 16 << 20}
    box.process["args"] = ["cat", "/proc/self/cgroup"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    assert done.returncode == 0 or "/linux/resources/memory/kernel" in done.stderr
    assert (done.returncode == 0) == (":memory:" in done.stdout)
