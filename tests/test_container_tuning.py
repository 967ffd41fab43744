"""Scheduler, I/O priority, processors, personality and memory policy of a container, read from inside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from containers import Box, box, needed  # noqa: F401 - a fixture

from pyoci.container.advice import effective
from pyoci.host import probe
from pyoci.kernel.capabilities import CAPABILITIES

pytestmark = needed
NICE, PRIORITY, POLICY = 18, 39, 40  # fields of /proc/PID/stat, from 0
BATCH, IDLE, DEADLINE = "3", "5", "6"
STAT = "cat /proc/self/stat"
numa = pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="a kernel without NUMA")
two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")


def stat(box: Box) -> list[str]:  # noqa: F811
    return box.run(STAT).split()


def test_a_policy_with_a_nice_value(box: Box) -> None:  # noqa: F811
    box.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    found = stat(box)
    assert (found[NICE], found[POLICY]) == ("7", BATCH)


def test_a_policy_that_is_reset_in_children(box: Box) -> None:  # noqa: F811
    box.process["scheduler"] = {"policy": "SCHED_OTHER", "nice": -5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    first, second = box.run("cat /proc/1/stat; cat /proc/self/stat; true").splitlines()
    assert (first.split()[NICE], second.split()[NICE]) == ("-5", "0")
    box.process["scheduler"] = {"policy": "SCHED_IDLE"}
    box.id = box.new_id()
    assert stat(box)[POLICY] == IDLE


def test_what_the_kernel_refuses_is_said(box: Box) -> None:  # noqa: F811
    box.process["scheduler"] = {"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 10**15}
    error = box.refused()
    assert "/process/scheduler" in error and "sched_setattr" in error and "invalid argument" in error


def test_a_policy_with_a_deadline(box: Box) -> None:  # noqa: F811
    """Its process cannot fork: it is the program itself that looks."""
    box.process["scheduler"] = {
        "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 20_000_000, "period": 30_000_000,
    }  # fmt: skip
    box.process["args"] = ["cat", "/proc/self/stat"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    if "device or resource busy" in done.stderr:
        pytest.skip("the host's time is promised to others")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[POLICY] == DEADLINE


@pytest.mark.parametrize(
    ("scheduler", "hint"),
    [
        ({"policy": "SCHED_ISO"}, "no such policy"),
        ({"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 10**15}, "sched_deadline_period_max_us"),
    ],
)
def test_what_a_policy_needs_is_said(box: Box, scheduler: dict[str, Any], hint: str) -> None:  # noqa: F811
    box.process["scheduler"] = scheduler
    error = box.refused()
    assert "/process/scheduler: sched_setattr(" in error and hint in error


def test_a_nice_value_in_a_user_namespace(box: Box) -> None:  # noqa: F811
    """What only the machine's own root may do needs a limit that allows it there."""
    box.namespace("user")
    box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 1000}]
    box.process["scheduler"] = {"policy": "SCHED_OTHER", "nice": -5}
    error = box.refused()
    assert "/process/scheduler: sched_setattr(" in error and "an RLIMIT_NICE in /process/rlimits" in error
    if not effective() >> CAPABILITIES["CAP_SYS_RESOURCE"] & 1:
        pytest.skip("raising that limit needs CAP_SYS_RESOURCE")
    box.process["rlimits"] = [{"type": "RLIMIT_NICE", "soft": 25, "hard": 25}]
    box.process["args"] = ["cat", "/proc/self/stat"]
    box.write()
    assert box.ok("run", "--bundle", str(box.bundle), box.id).split()[NICE] == "-5"


@pytest.mark.parametrize("policy", ["SCHED_FIFO", "SCHED_RR"])
def test_a_policy_of_real_time(box: Box, policy: str) -> None:  # noqa: F811
    """It is the process's, or what it needs is said (with cgroup v1 see test_container_limits.py)."""
    box.process["scheduler"] = {"policy": policy, "priority": 3}
    box.process["args"] = ["cat", "/proc/self/stat"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    if done.returncode:
        assert "realtimeRuntime" in done.stderr and "operation not permitted" in done.stderr
        assert Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists(), "it needs CAP_SYS_NICE, which root should have"
    else:
        assert done.stdout.split()[POLICY] == {"SCHED_FIFO": "1", "SCHED_RR": "2"}[policy]
        assert done.stdout.split()[PRIORITY] == "3"


@pytest.mark.parametrize(
    ("kind", "priority", "shown"),
    [
        ("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"), ("IOPRIO_CLASS_IDLE", 0, "idle"),
        ("IOPRIO_CLASS_RT", 2, "realtime: prio 2"),
    ],
)  # fmt: skip
def test_io_priority(box: Box, kind: str, priority: int, shown: str) -> None:  # noqa: F811
    box.process["ioPriority"] = {"class": kind, "priority": priority}
    assert box.run("busybox ionice").strip() == shown


def test_idle_has_no_priority(box: Box) -> None:  # noqa: F811
    box.process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE"}
    assert box.run("busybox ionice").strip() == "idle"


def test_personality(box: Box) -> None:  # noqa: F811
    machine = os.uname().machine
    narrow = {"x86_64": "i686", "aarch64": "armv8l"}[machine]
    assert box.run("busybox uname -m").strip() == machine
    box.linux["personality"] = {"domain": "LINUX32"}
    assert box.run("busybox uname -m").strip() == narrow
    box.linux["personality"] = {"domain": "LINUX"}
    box.start()
    assert box.exec("busybox", "uname", "-m").strip() == machine


def test_personality_of_exec(box: Box) -> None:  # noqa: F811
    box.linux["personality"] = {"domain": "LINUX32"}
    box.start()
    assert box.exec("busybox", "uname", "-m").strip() != os.uname().machine


@numa
@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ({"mode": "MPOL_BIND", "nodes": "0"}, "bind:0"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, "bind=static:0"),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0-0"}, "interleave:0"),
        ({"mode": "MPOL_PREFERRED", "nodes": "0"}, "prefer:0"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}, "bind=relative:0"),
        ({"mode": "MPOL_PREFERRED_MANY", "nodes": "0"}, "prefer (many):0"),
        ({"mode": "MPOL_PREFERRED", "nodes": ""}, "local"),
        ({"mode": "MPOL_LOCAL"}, "local"),
        ({"mode": "MPOL_DEFAULT", "nodes": ""}, "default"),
    ],
)
def test_memory_policy(box: Box, policy: dict[str, Any], shown: str) -> None:  # noqa: F811
    box.linux["memoryPolicy"] = policy
    lines = box.run("cat /proc/self/numa_maps").splitlines()
    assert all(f"{line.partition(' ')[2]} ".startswith(f"{shown} ") for line in lines)


@numa
@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ({"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0"}, "weighted interleave:0"),  # Linux 6.9
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}, "bind"),  # shown since 6.12
    ],
)
def test_memory_policy_of_newer_kernels(box: Box, policy: dict[str, Any], shown: str) -> None:  # noqa: F811
    if policy["mode"] == "MPOL_WEIGHTED_INTERLEAVE" and probe().kernel < (6, 9):
        pytest.skip("Linux 6.9")
    box.linux["memoryPolicy"] = policy
    lines = box.run("cat /proc/self/numa_maps").splitlines()
    assert lines and all(line.partition(" ")[2].startswith(shown) for line in lines)


@numa
def test_a_node_that_is_not_there(box: Box) -> None:  # noqa: F811
    box.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "1000"}
    error = box.refused()
    assert "/linux/memoryPolicy" in error and "set_mempolicy" in error and "1000" in error


def allowed(box: Box, process: dict[str, Any]) -> str:  # noqa: F811
    """The processors of a process that is executed with this process.json."""
    file = box.folder / "process.json"
    words = ["cat", "/proc/self/status"]
    file.write_text(json.dumps({**box.process, "args": words, **process}))
    text = box.ok("exec", "--process", str(file), box.id)
    return text.partition("Cpus_allowed_list:")[2].split()[0]


def test_a_process_json_has_its_own(box: Box) -> None:  # noqa: F811
    """exec: what the container's process has is not another's; what another is given, it has."""
    box.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    box.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    box.start()
    script = ["sh", "-c", "busybox ionice; cat /proc/self/oom_score_adj; cat /proc/self/stat"]
    priority, score, line = box.exec(*script).splitlines()
    assert (priority, line.split()[NICE], line.split()[POLICY]) == ("best-effort: prio 6", "7", BATCH)
    file = box.folder / "process.json"
    given = {
        "cwd": "/", "args": script, "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, "oomScoreAdj": 77,
        "scheduler": {"policy": "SCHED_IDLE"}, "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0},
    }  # fmt: skip
    file.write_text(json.dumps(given))
    priority, score, line = box.ok("exec", "--process", str(file), box.id).splitlines()
    assert (priority, score, line.split()[POLICY]) == ("idle", "77", IDLE)
    for name, value, said in (
        ("scheduler", {"policy": "SCHED_OTHER", "priority": 5}, "/scheduler/priority: must be 0 or absent"),
        ("scheduler", {"policy": "SCHED_NOPE"}, '/scheduler/policy: "SCHED_NOPE" is not one of'),
        ("ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}, "/ioPriority"),
        ("execCPUAffinity", {"initial": "x"}, "/execCPUAffinity/initial: must be a list"),
    ):
        file.write_text(json.dumps(given | {name: value}))
        assert said in box.fails("exec", "--process", str(file), box.id)


@two
def test_processors_of_exec(box: Box) -> None:  # noqa: F811
    box.start()
    every = allowed(box, {})
    assert allowed(box, {"execCPUAffinity": {"initial": "0"}}) == "0"
    assert allowed(box, {"execCPUAffinity": {"initial": "0", "final": "1"}}) == "1"
    assert allowed(box, {"execCPUAffinity": {"final": "0-1"}}) == "0-1"
    assert every == allowed(box, {"execCPUAffinity": {}})
    # of a container's own process it says nothing
    box.process["execCPUAffinity"] = {"initial": "1"}
    box.id = box.new_id()
    text = box.run("cat /proc/self/status")
    assert text.partition("Cpus_allowed_list:")[2].split()[0] == every


@two
def test_processors_that_are_not_there(box: Box) -> None:  # noqa: F811
    box.start()
    (box.folder / "process.json").write_text(
        json.dumps({**box.process, "args": ["true"], "execCPUAffinity": {"initial": "900"}})
    )
    error = box.fails("exec", "--process", str(box.folder / "process.json"), box.id)
    assert "/process/execCPUAffinity/initial" in error and "sched_setaffinity" in error


@two
def test_the_callers_processors_are_not_the_containers(box: Box) -> None:  # noqa: F811
    """An engine that is pinned to a processor does not pin its containers: the cpuset decides."""
    every = box.run("cat /proc/self/status").partition("Cpus_allowed_list:")[2].split()[0]
    box.process["args"] = ["cat", "/proc/self/status"]
    box.write()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    try:
        text = box.ok("run", "--bundle", str(box.bundle), box.id)
        box.start()
        inside = box.exec("cat", "/proc/self/status")
    finally:
        os.sched_setaffinity(0, before)
    assert text.partition("Cpus_allowed_list:")[2].split()[0] == every
    assert inside.partition("Cpus_allowed_list:")[2].split()[0] == every
