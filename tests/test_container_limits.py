"""Limits that few ask for, in containers: read back from the kernel, seen to bite, or refused with a reason.

Some need another layout of cgroups than the machine's: they make one in a mount namespace of their own.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from containers import CGROUPS, Box, box, needed  # noqa: F401 - a fixture

from pyoci.container.advice import effective
from pyoci.host import probe
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.plan.container import PlanOptions, plan_container
from pyoci.plan.ops import Struct, walk
from pyoci.spec.load import load

pytestmark = needed
V1 = (CGROUPS / "cpu").is_dir()
V2_ALONE = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
NETWORK = (
    "mount -t tmpfs tmpfs /sys/fs/cgroup && cd /sys/fs/cgroup && for c in devices freezer pids net_cls net_prio; do "
    "mkdir $c && mount -t cgroup -o $c cgroup $c || exit 99; done"
)


class Layout:
    """Commands that see the cgroups that a script of mounts makes."""

    def __init__(self, box: Box, mounts: str) -> None:  # noqa: F811
        self.box = box
        self.words = ["unshare", "-m", "--propagation", "private", "sh", "-c", f'{mounts}\ncd / ; exec "$@"', "sh"]

    def __call__(self, *words: str, status: int = 0) -> str:
        done = subprocess.run([*self.words, *words], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 99:
            pytest.skip(f"the kernel does not give these hierarchies: {done.stderr.strip()}")
        assert done.returncode == status, done
        return done.stdout + done.stderr

    def run(self, script: str) -> str:
        """What a container prints."""
        self.box.process["args"] = ["sh", "-c", script]
        self.box.write()
        return self(*self.box.command("run", "--bundle", str(self.box.bundle), self.box.id))


def device(kind: str, major: int, minor: int, access: str = "rwm", allow: bool = True) -> dict[str, Any]:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


def test_device_rules_replace_those_of_a_container_before(box: Box) -> None:  # noqa: F811
    """In a cgroup of v2 that was there before and stays, as often as one likes."""
    layout = Layout(box, V2_ALONE)
    cgroup = CGROUPS / box.id
    layout("mkdir", str(cgroup))
    try:
        script = "head -c 1 /dev/zero >/dev/null && echo zero; head -c 1 /dev/urandom >/dev/null && echo random"
        everything = {"allow": False, "access": "rwm"}
        for _ in range(3):
            for name, minor in (("zero", 5), ("random", 9)):
                other = device("c", 1, 14 - minor, allow=False)
                box.linux["resources"]["devices"] = [everything, device("c", 1, minor), other]
                # the shell has closed its own end before, so head's failure is all that it says
                assert layout.run(f"{{ {script}; }} 2>/dev/null; exit 0") == f"{name}\n"
        # everything is allowed by a list, too
        box.linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
        assert layout.run(f"{{ {script}; }} 2>/dev/null; exit 0") == "zero\nrandom\n"
    finally:
        layout("rmdir", str(cgroup))


HIGH = [{"type": "RLIMIT_NOFILE", "soft": 700, "hard": 900}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]


def in_a_user_namespace(box: Box) -> None:  # noqa: F811
    box.namespace("user")
    box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 1000}]
    for path in (box.folder, *box.folder.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o055)
    (box.rootfs / "tmp").chmod(0o777)
    box.process["rlimits"] = HIGH


def test_a_hard_limit_is_raised_before_the_user_namespace(box: Box) -> None:  # noqa: F811
    """Nobody can raise one from within (setrlimit(2)).  The soft one is then still ours: init needs descriptors."""
    in_a_user_namespace(box)
    host, options = probe(), PlanOptions("c", "/b")
    host.limits = {"RLIMIT_NOFILE": "300 400", "RLIMIT_CORE": "0 0"}
    spec = load(json.dumps(box.config).encode())
    ops = [op for op in walk(plan_container(spec, host, options).ops) if op.call in ("prlimit64", "clone3")]
    assert [op.call for op in ops] == ["prlimit64", "clone3", "prlimit64", "prlimit64"]
    limits = [op.args[2] for op in (ops[0], ops[2])]
    assert [each.fields for each in limits if isinstance(each, Struct)] == [
        {"rlim_cur": 300, "rlim_max": 900}, {"rlim_cur": 700, "rlim_max": 900},
    ]  # fmt: skip
    host.limits = {"RLIMIT_NOFILE": "300 900"}
    assert [op.call for op in walk(plan_container(spec, host, options).ops)].count("prlimit64") == 2


def test_a_hard_limit_above_ours_in_a_user_namespace(box: Box) -> None:  # noqa: F811
    """Of the container's process, of startContainer hooks and of exec."""
    if not effective() >> CAPABILITIES["CAP_SYS_RESOURCE"] & 1:
        pytest.skip("raising a limit needs CAP_SYS_RESOURCE: test_vm.py has it")
    in_a_user_namespace(box)
    script = "ulimit -Sn; ulimit -Hn"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"({script}) >/tmp/hook"]}
    box.config["hooks"] = {"startContainer": [hook]}
    box.process["args"] = ["sh", "-c", f"({script}) >/tmp/out; exec sleep 100"]
    box.write()
    lower = ["sh", "-c", 'ulimit -Sn 300; ulimit -Hn 400; exec "$@"', "sh"]
    run = ("run", "--detach", "--bundle", str(box.bundle), box.id)
    for words, shown in ((run, ""), (("exec", box.id, "sh", "-c", script), "700\n900\n")):
        with (box.folder / "said").open("w+") as said:
            null = subprocess.DEVNULL
            subprocess.run([*lower, *box.command(*words)], check=True, stdin=null, stdout=said, stderr=said, timeout=60)
            said.seek(0)
            assert said.read() == shown
    assert box.output("out").split() == box.output("hook").split() == ["700", "900"]


@pytest.mark.parametrize("change", ["", "read-only", "without a cgroup namespace", "another user"])
def test_the_cgroup_belongs_to_the_containers_root(box: Box, change: str) -> None:  # noqa: F811
    """config-linux.md#cgroup-ownership: so that it can make cgroups in its own, and only if all is as it says there."""
    layout = Layout(box, V2_ALONE)
    box.namespace("user")
    box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 1000}]
    for path in (box.folder, *box.folder.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o055)
    box.config["mounts"] = [entry for entry in box.config["mounts"] if entry["type"] != "cgroup"]
    box.mount("/sys/fs/cgroup", "cgroup", "cgroup", *(["ro"] if change == "read-only" else []))
    box.without("cgroup")
    if change != "without a cgroup namespace":
        box.namespace("cgroup")
    if change == "another user":
        box.process["user"] = {"uid": 7, "gid": 7}
    script = (
        f"cd /sys/fs/cgroup/{box.id} 2>/dev/null || cd /sys/fs/cgroup; mkdir own 2>/dev/null &&"
        " echo $$ >own/cgroup.procs 2>/dev/null && grep -c . own/cgroup.procs;"
        " stat -c %u . cgroup.procs cgroup.freeze"
    )
    delegated = Path("/sys/kernel/cgroup/delegate").read_text().split()
    assert "cgroup.procs" in delegated and "cgroup.freeze" not in delegated
    shown = layout.run(script).split()
    nobody = "65534"
    if change == "":
        assert shown[0] in ("1", "2")  # the shell, and perhaps grep
        assert shown[1:] == ["0", "0", nobody]
    elif change == "another user":
        # the container's process is another user: the cgroup is that user's
        assert shown[1:] == ["7", "7", nobody]
    else:
        assert shown == [nobody] * 3


def test_device_rules_after_updates(box: Box) -> None:  # noqa: F811
    """An engine's update has the whole of /linux/resources, twice: the list bites as before."""
    layout = Layout(box, V2_ALONE)
    box.linux["resources"]["devices"] = [{"allow": False, "access": "rwm"}, device("c", 1, 5, allow=False)]
    box.process["args"] = ["sleep", "100"]
    box.write()
    pyoci = shlex.join(box.command())
    update = json.dumps({"devices": [{"allow": True, "access": "rwm"}], "unified": {"cgroup.max.depth": "3"}})
    script = f"""
        {pyoci} run --detach --bundle {box.bundle} {box.id} </dev/null >/dev/null 2>&1 || exit 98
        for i in 1 2; do
            echo '{update}' | {pyoci} update --resources - {box.id} || exit 97
            {pyoci} exec {box.id} sh -c 'head -c 1 /dev/zero >/dev/null 2>&1 || echo denied'
        done
        cat /sys/fs/cgroup/{box.id}/cgroup.max.depth
        {pyoci} delete --force {box.id}
    """
    assert layout("sh", "-c", script) == "denied\ndenied\n3\n"


@pytest.mark.skipif(not V1, reason="v1's cpu controller")
def test_real_time(box: Box) -> None:  # noqa: F811
    """Without runtime of its own a cgroup has no real-time process; with it, it has."""
    if not (CGROUPS / "cpu/cpu.rt_runtime_us").exists():
        pytest.skip("a kernel without real-time groups")
    box.process["scheduler"] = {"policy": "SCHED_FIFO", "priority": 1}
    box.linux["resources"]["cpu"] = {"realtimeRuntime": 10000, "realtimePeriod": 500000}
    box.start("sleep 100")
    group = CGROUPS / "cpu" / box.id
    assert (group / "cpu.rt_runtime_us").read_text() == "10000\n"
    assert (group / "cpu.rt_period_us").read_text() == "500000\n"
    assert os.sched_getscheduler(box.pid()) == os.SCHED_FIFO
    box.ok("update", "--cpu-rt-runtime", "5000", "--cpu-rt-period", "400000", box.id)
    assert (group / "cpu.rt_runtime_us").read_text() == "5000\n"
    box.ok("delete", "--force", box.id)
    del box.linux["resources"]["cpu"]
    assert "/process/scheduler" in box.refused()


@pytest.mark.skipif(not V1, reason="v1's cpu controller")
def test_real_time_that_the_parent_has_not(box: Box) -> None:  # noqa: F811
    if not (CGROUPS / "cpu/cpu.rt_runtime_us").exists():
        pytest.skip("a kernel without real-time groups")
    parent = CGROUPS / "cpu" / box.new_id()
    parent.mkdir()
    try:
        box.linux["resources"]["cpu"] = {"realtimeRuntime": 10000}
        box.process["args"] = ["true"]
        box.write()
        path = box.bundle / "config.json"
        config = json.loads(path.read_text())
        config["linux"]["cgroupsPath"] = f"/{parent.name}/{box.id}"
        path.write_text(json.dumps(config))
        error = box.fails("run", "--bundle", str(box.bundle), box.id)
        assert "/linux/resources/cpu/realtimeRuntime" in error and "each parent cgroup needs real-time runtime" in error
        box.gone()
        assert not (parent / box.id).exists()
    finally:
        parent.rmdir()


def test_the_network_controllers_of_v1(box: Box) -> None:  # noqa: F811
    layout = Layout(box, NETWORK)
    network = {"classID": 0x100001, "priorities": [{"name": "lo", "priority": 7}]}
    box.linux["resources"] = {"network": network}
    box.process["args"] = ["sleep", "100"]
    box.write()
    pyoci = shlex.join(box.command())
    script = f"""
        {pyoci} create --bundle {box.bundle} {box.id} </dev/null >/dev/null 2>&1 || exit 98
        cat /sys/fs/cgroup/net_cls/{box.id}/net_cls.classid
        grep lo /sys/fs/cgroup/net_prio/{box.id}/net_prio.ifpriomap
        {pyoci} state {box.id} | tr -d ' ,' | grep '"pid"' | cut -d: -f2 >{box.folder}/pid
        grep -c $(cat {box.folder}/pid) /sys/fs/cgroup/net_*/{box.id}/cgroup.procs | cut -d: -f2
        {pyoci} delete --force {box.id}
    """
    assert layout("sh", "-c", script) == "1048577\nlo 7\n1\n1\n"
    network["priorities"] = [{"name": "nosuch0", "priority": 7}]
    box.write()
    error = layout(*box.command("run", "--bundle", str(box.bundle), box.id), status=1)
    assert "/linux/resources/network/priorities/0" in error and "network namespace" in error
    box.gone()


def test_rdma_without_its_controller(box: Box) -> None:  # noqa: F811
    if "rdma" in Path("/proc/cgroups").read_text():
        pytest.skip("the kernel has it; tests/test_cgroup_v2.py")
    box.linux["resources"] = {"rdma": {"mlx5_0": {"hcaHandles": 3}}}
    error = box.refused()
    assert "/linux/resources/rdma/mlx5_0" in error and "controller 'rdma'" in error


@pytest.mark.parametrize("name", ["../memory.high", "a/memory.high", "..", "cgroup.procs", "memory"])
def test_names_that_are_no_limits(box: Box, name: str) -> None:  # noqa: F811
    box.linux["resources"] = {"unified": {name: "1"}}
    assert f"/linux/resources/unified/{name.replace('/', '~1')}" in box.refused()
