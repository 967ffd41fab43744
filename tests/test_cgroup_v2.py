"""Limits of cgroup v2 that bite, where v2 has the controllers (on a machine with v1 as well: in a virtual machine)."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from scratch import Group, until

from pyoci.cgroup import live
from pyoci.errors import PyociError
from pyoci.host import probe
from pyoci.plan.cgroups import plan_update
from pyoci.spec.types import (
    BlockIO,
    Cpu,
    HugepageLimit,
    Memory,
    Pids,
    Resources,
    ThrottleDevice,
    WeightDevice,
)

pytestmark = pytest.mark.root


@pytest.fixture
def group() -> Iterator[Group]:
    host = probe()
    if "memory" not in host.cgroup_controllers or host.euid != 0:
        pytest.skip("cgroup v2 has no memory controller here")
    group = Group(host)
    try:
        yield group
    finally:
        group.close()


def needs(group: Group, *controllers: str) -> None:
    missing = set(controllers) - set(group.host.cgroup_controllers)
    if missing:
        pytest.skip(f"cgroup v2 has no {', '.join(sorted(missing))} here")


def test_usage_can_be_watched_without_any_limit(group: Group) -> None:
    group.create()
    group.start()
    assert int(group.read("", "pids.current")) == 1
    until(lambda: int(group.read("", "memory.current")) > 0)


def test_memory_limit_bites(group: Group) -> None:
    limit = 30 << 20
    paths = group.create(Resources(memory=Memory(limit=limit, swap=limit, reservation=limit // 2)))
    assert group.read("", "memory.max") == str(limit)
    assert group.read("", "memory.low") == str(limit // 2)
    if Path(paths[""], "memory.swap.max").exists():
        assert group.read("", "memory.swap.max") == "0"
    assert live.oom_kills(paths) == 0
    assert group.start("x = b'x' * (100 << 20)").wait(60) == -signal.SIGKILL
    assert live.oom_kills(paths) == 1


def test_memory_limits_change(group: Group) -> None:
    paths = group.create(Resources(memory=Memory(limit=40 << 20)))
    for limit, shown in ((80 << 20, str(80 << 20)), (-1, "max")):
        resources = Resources(memory=Memory(limit=limit))
        group.run_ops(tuple(plan_update(resources, paths, group.host.cgroup_controllers)))
        assert group.read("", "memory.max") == shown
    group.start("x = b'x' * (30 << 20); import time; time.sleep(60)")
    until(lambda: int(group.read("", "memory.current")) > 30 << 20)
    lower = Resources(memory=Memory(limit=1 << 20, check_before_update=True))
    with pytest.raises(PyociError, match="is below the"):
        group.run_ops(tuple(plan_update(lower, paths, group.host.cgroup_controllers)))


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
print(made, flush=True)
"""


def test_pids_limit_bites(group: Group) -> None:
    group.create(Resources(pids=Pids(4)))
    assert group.read("", "pids.max") == "4"
    assert group.line(group.start(FORK)) == "3"


def test_a_pids_limit_of_none_comes_after_the_process(group: Group) -> None:
    group.create(Resources(pids=Pids(0)))
    assert group.read("", "pids.max") == "max"
    child = group.start(FORK)
    assert group.line(child) == "0"


def test_cpu_limits_are_those_of_the_kernel(group: Group) -> None:
    needs(group, "cpu")
    paths = group.create(Resources(cpu=Cpu(shares=512, quota=20000, period=50000, burst=10000)))
    names = ("cpu.weight", "cpu.max", "cpu.max.burst")
    assert [group.read("", name) for name in names] == ["59", "20000 50000", "10000"]
    cpu = Cpu(quota=5000, period=10000, burst=1000, idle=1)
    group.run_ops(tuple(plan_update(Resources(cpu=cpu), paths, group.host.cgroup_controllers)))
    assert [group.read("", name) for name in (*names[1:], "cpu.idle")] == ["5000 10000", "1000", "1"]
    cpu = Cpu(quota=-1, burst=0, idle=0, shares=1024)
    group.run_ops(tuple(plan_update(Resources(cpu=cpu), paths, group.host.cgroup_controllers)))
    assert [group.read("", name) for name in names] == ["100", "max 10000", "0"]


def test_cpus(group: Group) -> None:
    needs(group, "cpuset")
    group.create(Resources(cpu=Cpu(cpus="0", mems="0")))
    assert group.read("", "cpuset.cpus.effective") == "0"
    assert group.run("import os; print(os.sched_getaffinity(0))").strip() == "{0}"


def test_huge_pages(group: Group) -> None:
    needs(group, "hugetlb")
    group.create(Resources(hugepage_limits=(HugepageLimit("2MB", 4 << 20),)))
    assert group.read("", "hugetlb.2MB.rsvd.max") == str(4 << 20)


RESERVE = """
import mmap
kept = []
try:
    for _ in range(4):
        kept.append(mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))  # MAP_HUGETLB
except OSError as error:
    print(len(kept), error.errno)
else:
    print(len(kept))
"""


def test_huge_pages_that_are_reserved_bite(group: Group) -> None:
    """Not at the first touch, with SIGBUS, but when they are asked for."""
    needs(group, "hugetlb")
    total = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    before = total.read_text()
    total.write_text("8")
    try:
        if int(total.read_text()) < 4:
            pytest.skip("no memory for huge pages")
        group.create(Resources(hugepage_limits=(HugepageLimit("2MB", 4 << 20),)))
        assert group.run(RESERVE).split() == ["2", str(errno.ENOMEM)]
    finally:
        total.write_text(before)


def test_rdma(group: Group) -> None:
    """No such device here: the kernel's own refusal, with the device's name."""
    needs(group, "rdma")
    with pytest.raises(AssertionError, match=r"rdma\.max.*nosuch0 hca_handle=3"):
        group.create(Resources(rdma={"nosuch0": {"hcaHandles": 3}}))


def block_device() -> tuple[int, int]:
    for entry in sorted(Path("/sys/block").iterdir()):
        if int((entry / "size").read_text()) and not entry.name.startswith("loop"):
            major, _, minor = (entry / "dev").read_text().strip().partition(":")
            return int(major), int(minor)
    pytest.skip("no block device")


def test_io(group: Group) -> None:
    needs(group, "io")
    major, minor = block_device()
    block_io = BlockIO(
        throttle_read_bps_device=(ThrottleDevice(major, minor, 1 << 20),),
        throttle_write_iops_device=(ThrottleDevice(major, minor, 50),),
    )
    paths = group.create(Resources(block_io=block_io))
    assert group.read("", "io.max") == f"{major}:{minor} rbps=1048576 wbps=max riops=max wiops=50"
    weights = [name for name in ("io.weight", "io.bfq.weight") if Path(paths[""], name).exists()]
    if weights:
        update = plan_update(Resources(block_io=BlockIO(weight=500)), paths, group.host.cgroup_controllers)
        group.run_ops(tuple(update))
        assert "500" in group.read("", weights[-1]) or "4950" in group.read("", weights[-1])
    block_io = BlockIO(weight_device=(WeightDevice(major, minor, 10),))
    try:
        group.run_ops(tuple(plan_update(Resources(block_io=block_io), paths, group.host.cgroup_controllers)))
    except AssertionError as error:
        # said, not swallowed: neither scheduler serves this device
        assert "not supported" in str(error) or "No such file" in str(error)
    else:
        assert any(f"{major}:{minor} 1" in group.read("", name) for name in weights)


def test_files_by_name(group: Group) -> None:
    paths = group.create(Resources(unified={"memory.high": "50000000", "cgroup.max.depth": "7", "pids.max": "9"}))
    assert int(group.read("", "memory.high")) == 50000000 // os.sysconf("SC_PAGESIZE") * os.sysconf("SC_PAGESIZE")
    assert (group.read("", "cgroup.max.depth"), group.read("", "pids.max")) == ("7", "9")
    with pytest.raises(AssertionError, match=r"memory\.nonsense"):
        update = plan_update(Resources(unified={"memory.nonsense": "1"}), paths, group.host.cgroup_controllers)
        group.run_ops(tuple(update))


def test_processes_in_a_parent_are_named(group: Group) -> None:
    """A cgroup with processes cannot give its children controllers (the "no internal process" rule)."""
    top = group.host.cgroup_mounts[""]
    occupied = Path(top, group.name)
    occupied.mkdir()
    inside = group.start()
    (occupied / "cgroup.procs").write_text(str(inside.pid))
    try:
        with pytest.raises(PyociError, match=rf"/linux/resources/memory/limit: .*own \({inside.pid} python"):
            group.create(Resources(memory=Memory(limit=1 << 30)))
    finally:
        inside.kill()
        inside.wait()
        live.kill_all({"": str(occupied)})
        live.remove({"": str(occupied)}, [*group.created, str(occupied)])
