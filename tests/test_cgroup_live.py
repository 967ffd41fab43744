"""Real cgroups on this machine: made by a plan's ops, biting, frozen, killed, removed.  Nothing of them may be left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scratch import Group, until

from pyoci.cgroup import live
from pyoci.cgroup.files import read, write
from pyoci.cgroup.perform import make, perform, why
from pyoci.errors import PyociError
from pyoci.host import probe
from pyoci.plan.cgroups import plan_update
from pyoci.plan.ops import RUNTIME, Op
from pyoci.spec.types import Cpu, DeviceRule, HugepageLimit, Memory, Pids, Resources

pytestmark = pytest.mark.root

@pytest.fixture
def group() -> Iterator[Group]:
    host = probe()
    if host.cgroup_mode == "none" or host.euid != 0:
        pytest.skip("no cgroup is mounted")
    group = Group(host)
    try:
        yield group
    finally:
        group.close()


def needs_v1(group: Group, *controllers: str) -> None:
    missing = [name for name in controllers if name not in group.host.cgroup_mounts]
    if missing:
        pytest.skip(f"this machine's cgroup v1 has no {', '.join(missing)}")


# Making -------------------------------------------------------------------------------------------------------------


def test_every_hierarchy_gets_a_directory_and_the_process(group: Group) -> None:
    paths = group.create()
    assert {""} | set(group.host.cgroup_mounts) - {"net_prio"} >= set(paths)
    for path in paths.values():
        assert path in group.created
        assert path.removesuffix("/c") in group.created
    child = group.start()
    for path in paths.values():
        assert read(path + "/cgroup.procs").split() == [b"%d" % child.pid]
    assert live.procs(paths) == [child.pid]
    assert live.nonempty(paths)


def test_a_cpuset_has_what_its_parent_has(group: Group) -> None:
    needs_v1(group, "cpuset")
    paths = group.create()
    for name in ("cpuset.cpus", "cpuset.mems"):
        top = read(f"{group.host.cgroup_mounts['cpuset']}/{name}")
        assert read(f"{paths['cpuset']}/{name}") == read(f"{paths['cpuset'].removesuffix('/c')}/{name}") == top


def test_a_cgroup_that_is_in_use_or_frozen_is_refused(group: Group) -> None:
    paths = group.create()
    child = group.start()
    for path in paths.values():
        with pytest.raises(PyociError, match=rf"/x: .* is not empty: {child.pid} python"):
            make(path.encode(), origin="/x")
    child.kill()
    child.wait()
    live.kill_all(paths)
    assert make(paths["" if "" in paths else "freezer"].encode()) == []
    live.freeze(paths)
    with pytest.raises(PyociError, match="is frozen"):
        make(paths["freezer" if "freezer" in paths else ""].encode())
    live.thaw(paths)


def test_what_was_there_before_is_not_removed(group: Group) -> None:
    mount = next(iter(group.host.cgroup_mounts.values()))
    before = Path(mount, group.name, "c")
    before.mkdir(parents=True)
    try:
        paths = group.create()
        assert str(before) not in group.created
        live.remove(paths, group.created)
        assert before.exists()
    finally:
        before.rmdir()
        before.parent.rmdir()


def test_a_failure_half_way_leaves_nothing(group: Group) -> None:
    mount = next(iter(group.host.cgroup_mounts.values()))
    # the kernel takes no name with a line break
    path = f"{mount}/{group.name}/x/a\nb"
    with pytest.raises(OSError, match="Invalid argument"):
        make(path.encode())
    assert not Path(mount, group.name).exists()


# Limits -------------------------------------------------------------------------------------------------------------

FORK = """
import os, time
made = 0
try:
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except BlockingIOError:
    pass
print(made)
"""


def test_pids_limit_bites(group: Group) -> None:
    needs_v1(group, "pids")
    paths = group.create(Resources(pids=Pids(4)))
    assert group.read("pids", "pids.max") == "4"
    child = group.start(FORK)
    assert group.line(child) == "3"
    child.wait()
    assert len(live.procs(paths)) == 3
    live.kill_all(paths)
    assert live.procs(paths) == []
    assert not live.nonempty(paths)


def test_a_pids_limit_of_none_stops_every_fork(group: Group) -> None:
    needs_v1(group, "pids")
    group.create(Resources(pids=Pids(0)))
    child = group.start(FORK)
    assert group.line(child) == "0"


def test_memory_limit_bites(group: Group) -> None:
    needs_v1(group, "memory")
    limit = 20 << 20
    paths = group.create(Resources(memory=Memory(limit=limit, swap=limit, reservation=limit // 2, swappiness=0)))
    assert group.read("memory", "memory.limit_in_bytes") == str(limit)
    assert group.read("memory", "memory.memsw.limit_in_bytes") == str(limit)
    assert group.read("memory", "memory.soft_limit_in_bytes") == str(limit // 2)
    assert live.oom_kills(paths) == 0
    child = group.start("x = b'x' * (100 << 20)")
    assert child.wait(60) == -signal.SIGKILL
    assert live.oom_kills(paths) == 1


def test_memory_limits_move_up_and_down(group: Group) -> None:
    """The limit may never be above that of memory and swap together, so the order depends on the direction."""
    needs_v1(group, "memory")
    paths = group.create(Resources(memory=Memory(limit=32 << 20, swap=32 << 20)))
    for limit in (64 << 20, 16 << 20, 128 << 20):
        group.run_ops(plan_update(Resources(memory=Memory(limit=limit, swap=limit)), paths, ()))
        assert group.read("memory", "memory.limit_in_bytes") == str(limit)
        assert group.read("memory", "memory.memsw.limit_in_bytes") == str(limit)
    group.run_ops(plan_update(Resources(memory=Memory(limit=-1)), paths, ()))
    assert int(group.read("memory", "memory.memsw.limit_in_bytes")) > 1 << 60
    group.start("x = b'x' * (30 << 20); print('there', flush=True); import time; time.sleep(60)")
    until(lambda: int(group.read("memory", "memory.usage_in_bytes")) > 30 << 20)
    with pytest.raises(PyociError, match="is below the"):
        group.run_ops(plan_update(Resources(memory=Memory(limit=10 << 20, check_before_update=True)), paths, ()))


def test_cpu_limits_are_those_of_the_kernel(group: Group) -> None:
    needs_v1(group, "cpu", "cpuset")
    cpu = Cpu(shares=512, quota=20000, period=50000, burst=10000, cpus="0", mems="0", idle=0)
    paths = group.create(Resources(cpu=cpu))
    shown = {name: group.read("cpu", "cpu." + name) for name in ("shares", "cfs_quota_us", "cfs_period_us", "idle")}
    assert shown == {"shares": "512", "cfs_quota_us": "20000", "cfs_period_us": "50000", "idle": "0"}
    assert group.read("cpu", "cpu.cfs_burst_us") == "10000"
    assert (group.read("cpuset", "cpuset.cpus"), group.read("cpuset", "cpuset.mems")) == ("0", "0")
    group.run_ops(plan_update(Resources(cpu=Cpu(quota=5000, period=10000, burst=1000)), paths, ()))
    assert group.read("cpu", "cpu.cfs_burst_us") == "1000"
    group.run_ops(plan_update(Resources(cpu=Cpu(quota=900000, period=1000000, burst=800000, idle=1)), paths, ()))
    assert (group.read("cpu", "cpu.cfs_burst_us"), group.read("cpu", "cpu.idle")) == ("800000", "1")
    group.run_ops(plan_update(Resources(cpu=Cpu(burst=0)), paths, ()))
    assert group.read("cpu", "cpu.cfs_burst_us") == "0"


OPEN = """
import os
for path, flags in (("/dev/null", os.O_RDWR), ("/dev/zero", os.O_RDONLY), ("/dev/kmsg", os.O_RDONLY)):
    try:
        os.close(os.open(path, flags))
        print("allowed")
    except PermissionError:
        print("denied")
"""


def test_devices_are_denied(group: Group) -> None:
    needs_v1(group, "devices")
    rules = (DeviceRule(False), DeviceRule(True, "c", 1, 11, "r"), DeviceRule(False, "c", 1, 5, "rwm"))
    group.create(Resources(devices=rules))
    assert group.read("devices", "devices.list").split("\n")[:3] == ["c 1:11 r", "c *:* m", "b *:* m"]
    assert group.run(OPEN).split() == ["allowed", "denied", "allowed"]


# Alive --------------------------------------------------------------------------------------------------------------

COUNT = """
import sys, time
while True:
    print("tick", flush=True)
    time.sleep(0.001)
"""


def test_freeze_and_thaw(group: Group) -> None:
    paths = group.create()
    child = group.start(COUNT)
    group.line(child)
    assert not live.is_frozen(paths)
    live.freeze(paths)
    live.freeze(paths)
    assert live.is_frozen(paths)
    assert cpu_time(child.pid) == cpu_time(child.pid, 0.05)
    live.thaw(paths)
    assert not live.is_frozen(paths)
    until(lambda: group.line(child) == "tick")


def cpu_time(pid: int, after: float = 0.0) -> str:
    time.sleep(after)
    return Path(f"/proc/{pid}/schedstat").read_text()


def test_v2_alone(group: Group) -> None:
    """What a v2 host would do: freeze, kill, look."""
    if "" not in group.host.cgroup_mounts:
        pytest.skip("no cgroup2 mount")
    paths = {"": group.create()[""]}
    child = group.start(COUNT)
    live.freeze(paths)
    assert live.is_frozen(paths)
    live.thaw(paths)
    assert live.procs(paths) == [child.pid]
    live.kill_all(paths)
    assert child.wait(10) == -signal.SIGKILL
    assert not live.nonempty(paths)


def test_v1_alone(group: Group) -> None:
    needs_v1(group, "freezer", "devices")
    paths = {name: path for name, path in group.create().items() if name}
    children = [group.start(), group.start(FORK)]
    assert group.line(children[1]) == "20"
    live.freeze(paths)
    live.kill_all(paths)
    assert children[0].wait(10) == -signal.SIGKILL
    assert live.procs(paths) == []


def test_paused_processes_die_too(group: Group) -> None:
    paths = group.create()
    child = group.start()
    live.freeze(paths)
    live.kill_all(paths)
    assert child.wait(10) == -signal.SIGKILL


def test_only_who_is_still_there_is_signalled() -> None:
    """A number that was a member's may be that of another process by the time that it is signalled."""
    children = [subprocess.Popen(["sleep", "100"]) for _ in range(3)]
    gone = subprocess.Popen(["true"])
    gone.wait()
    asked = [[gone.pid, *[child.pid for child in children[:2]]], [gone.pid, *[child.pid for child in children[1:]]]]
    try:
        live.signal_each(lambda: asked.pop(0), signal.SIGKILL)
        assert children[1].wait(10) == -signal.SIGKILL
        assert [child.poll() for child in (children[0], children[2])] == [None, None]
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_signal_for_all(group: Group) -> None:
    paths = group.create()
    code = "import signal, time; signal.signal(10, lambda *_: sys.exit(7)); print('x', flush=True); time.sleep(60)"
    children = [group.start(code) for _ in range(3)]
    for child in children:
        group.line(child)
    live.signal_all(paths, 10)
    assert [child.wait(10) for child in children] == [7, 7, 7]


def test_sub_cgroups_of_the_container(group: Group) -> None:
    paths = group.create()
    child = group.start()
    for path in set(paths.values()):
        Path(path, "a", "b").mkdir(parents=True)
        if Path(path, "cpuset.cpus").exists():
            continue
        write(f"{path}/a/b/cgroup.procs", b"%d" % child.pid)
    assert live.procs(paths) == [child.pid]
    live.add(paths, child.pid)
    live.kill_all(paths)
    child.wait()
    live.remove(paths, group.created)
    assert not any(Path(path).exists() for path in paths.values())
    # twice is no error
    live.remove(paths, group.created)
    assert (live.procs(paths), live.nonempty(paths)) == ([], False)
    assert (live.is_frozen(paths), live.oom_kills(paths)) == (False, 0)


def test_cgroups_nested_deeper_than_a_path_is_long(group: Group) -> None:
    """Whoever has a cgroup delegated can do that; it must be found, killed and removed all the same."""
    needs_v1(group, "freezer")
    paths = group.create()
    child = group.start()
    fd = os.open(paths["freezer"], os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("x", dir_fd=fd)
        below = os.open("x", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    write("cgroup.procs", b"%d" % child.pid, fd)
    os.close(fd)
    assert live.procs(paths) == [child.pid]
    live.kill_all(paths)
    until(lambda: child.poll() is not None)
    assert child.returncode == -signal.SIGKILL
    live.remove(paths, group.created)
    assert not Path(paths["freezer"]).exists()


def test_processes_that_the_container_has_frozen_die_too(group: Group) -> None:
    needs_v1(group, "freezer")
    paths = group.create()
    child = group.start()
    below = Path(paths["freezer"]) / "its" / "own"
    below.mkdir(parents=True)
    write(f"{below}/cgroup.procs", b"%d" % child.pid)
    for path in (below, below.parent):
        write(f"{path}/freezer.state", b"FROZEN")
    until(lambda: read(f"{below}/freezer.state") == b"FROZEN\n")
    live.kill_all(paths, 5)
    until(lambda: child.poll() is not None)
    live.remove(paths, group.created)


def test_a_cgroup_in_use_is_named(group: Group) -> None:
    paths = group.create()
    child = group.start()
    with pytest.raises(PyociError, match=rf"still in use: .*{group.name}.*{child.pid}"):
        live.remove(paths, group.created, timeout=0.05)


def test_parents_that_others_use_stay(group: Group) -> None:
    paths = group.create()
    other = f"{next(iter(paths.values())).removesuffix('/c')}/other"
    os.mkdir(other)
    live.remove(paths, group.created)
    assert Path(other).exists()
    os.rmdir(other)
    live.remove(paths, group.created)
    assert not Path(other).parent.exists()


def test_only_cgroups_are_removed(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    lookalike = tmp_path / "lookalike"
    lookalike.mkdir()
    (lookalike / "cgroup.procs").touch()
    live.remove({"": str(plain)}, [str(plain), str(lookalike)])
    assert plain.exists()
    with pytest.raises(PyociError):
        live.remove({"": str(lookalike)}, [str(lookalike)], timeout=0.01)
    assert (lookalike / "cgroup.procs").exists()


@pytest.fixture
def hugetlb(group: Group) -> Iterator[None]:
    """v2's controller for huge pages, given to the top's children for as long as the test runs."""
    if "hugetlb" not in group.host.cgroup_controllers or "" not in group.host.cgroup_mounts:
        pytest.skip("no controller in cgroup v2 to enable")
    top = group.host.cgroup_mounts[""]
    before = read(top + "/cgroup.subtree_control").split()
    perform(Op("enable_controllers", (top.encode(), b"hugetlb", b"nonsense"), "/x", None, RUNTIME))
    assert b"hugetlb" in read(top + "/cgroup.subtree_control").split()
    yield
    if b"hugetlb" not in before:
        live.kill_all(group.plan.paths)
        live.remove(group.plan.paths, group.created)
        write(top + "/cgroup.subtree_control", b"-hugetlb")


def test_huge_pages_by_v2_under_a_hybrid_layout(group: Group, hugetlb: None) -> None:
    sizes = [path.name.removeprefix("hugepages-") for path in Path("/sys/kernel/mm/hugepages").iterdir()]
    if "2048kB" not in sizes or "hugetlb" in group.host.cgroup_mounts:
        pytest.skip("no huge pages of 2 MB, or v1 has their controller")
    paths = group.create(Resources(hugepage_limits=(HugepageLimit("2MB", 4 << 20),)))
    assert group.read("", "hugetlb.2MB.rsvd.max") == str(4 << 20)
    group.run_ops(plan_update(Resources(unified={"hugetlb.2MB.max": "2097152"}), paths, group.host.cgroup_controllers))
    assert group.read("", "hugetlb.2MB.max") == str(2 << 20)


def test_where_a_further_process_goes(group: Group, hugetlb: None) -> None:
    """systemd in a container moves itself below, and gives its children controllers: then the top takes no process."""
    paths = group.create()
    child = group.start()
    assert live.exec_paths(paths, child.pid) == paths
    top = group.host.cgroup_mounts[""]
    perform(Op("enable_controllers", (f"{top}/{group.name}".encode(), b"hugetlb", b""), "/x", None, RUNTIME))
    inside = paths[""] + "/init.scope"
    os.mkdir(inside)
    write(inside + "/cgroup.procs", b"%d" % child.pid)
    write(paths[""] + "/cgroup.subtree_control", b"+hugetlb")
    assert live.exec_paths(paths, child.pid)[""] == inside
    assert "gives its children controllers (hugetlb)" in why("clone3", paths[""].encode(), 16)


def test_what_is_wrong_is_explained(group: Group, hugetlb: None) -> None:
    paths = group.create()
    child = group.start()
    parent = paths[""].removesuffix("/c").encode()

    def enable(path: bytes, controller: bytes) -> None:
        perform(Op("enable_controllers", (path, controller, b""), "/linux/resources/x", None, RUNTIME))

    if "memory" not in group.host.cgroup_controllers:
        with pytest.raises(PyociError, match=r"/linux/resources/x: the controller memory .* it has only"):
            enable(paths[""].encode(), b"memory")
    enable(parent, b"hugetlb")
    with pytest.raises(PyociError, match=rf"processes of its own \({child.pid} python"):
        enable(paths[""].encode(), b"hugetlb")
    threaded = paths[""] + "/t"
    os.mkdir(threaded)
    write(threaded + "/cgroup.type", b"threaded")
    invalid = paths[""] + "/t/u"
    os.mkdir(invalid)
    assert "'domain invalid'" in why("clone3", invalid.encode(), 95)
    assert "delegated" in why("mkdir", parent, 13)
    assert live.procs({"": paths[""]}) == [child.pid]


def test_ownership(group: Group) -> None:
    if "" not in group.host.cgroup_mounts:
        pytest.skip("no cgroup2 mount")
    path = group.create()[""]
    perform(Op("chown_cgroup", (path.encode(), 12345), "/x", None, RUNTIME))
    assert os.stat(path).st_uid == os.stat(path + "/cgroup.procs").st_uid == 12345
    assert os.stat(path + "/cgroup.freeze").st_uid == 0
