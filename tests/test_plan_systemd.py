"""Units of systemd's as plans: names, places, properties; pure, for hosts that need not exist."""

from __future__ import annotations

import pytest
from test_plan_cgroups import hybrid_host, v1_host, v2_host

from pyoci.errors import ConfigError
from pyoci.gvariant import parse
from pyoci.host import Host
from pyoci.plan.cgroups import CgroupPlan, plan_cgroups
from pyoci.plan.ops import RUNTIME, walk
from pyoci.plan.systemd import mask, plan_unit_update, unit_of
from pyoci.spec.types import (
    BlockIO,
    Cpu,
    DeviceRule,
    Linux,
    Memory,
    Pids,
    Resources,
    Spec,
    ThrottleDevice,
    WeightDevice,
)


def on(host: Host, instance: str = "system", cgroup: str = "") -> Host:
    host.systemd, host.systemd_cgroup = instance, cgroup
    return host


def plan(
    host: Host, resources: Resources | None = None, path: str | None = None, annotations: dict[str, str] | None = None
) -> CgroupPlan:
    spec = Spec(
        oci_version="1.3.0",
        annotations=annotations or {},
        linux=Linux(cgroups_path=path, resources=resources),
    )
    return plan_cgroups(spec, host, "id", host.euid != 0, "systemd")


def properties(made: CgroupPlan) -> dict[str, object]:
    """What the unit is told, by name."""
    ops = [op for op in walk(made.before_clone) if op.call == "unit_property"]
    return {op.args[0].decode(): parse(op.args[1].decode())[1] for op in ops}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("written", "user", "name", "slice", "directory"),
    [
        ("", False, "pyoci-id.scope", "system.slice", "system.slice/pyoci-id.scope"),
        ("", True, "pyoci-id.scope", "user.slice", "user.slice/pyoci-id.scope"),
        ("machine.slice:libpod:abc", False, "libpod-abc.scope", "machine.slice", "machine.slice/libpod-abc.scope"),
        (":p:n", False, "p-n.scope", "system.slice", "system.slice/p-n.scope"),
        ("a-b-c.slice:p:n", False, "p-n.scope", "a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
        ("-.slice:p:n", False, "p-n.scope", "-.slice", "p-n.scope"),
        ("-:p:n", False, "p-n.scope", "-.slice", "p-n.scope"),
        ("s.slice::n", False, "n.scope", "s.slice", "s.slice/n.scope"),
        ("s.slice:p:a+b", False, "p-a\\x2bb.scope", "s.slice", "s.slice/p-a\\x2bb.scope"),
        ("x.slice:p:a-b.slice", False, "a-b.slice", "a.slice", "a.slice/a-b.slice"),
        ("s.slice::cgroup.x", False, "cgroup.x.scope", "s.slice", "s.slice/_cgroup.x.scope"),
    ],
)
def test_names(written: str, user: bool, name: str, slice: str, directory: str) -> None:
    unit = unit_of(written, "id", user)
    assert (unit.name, unit.slice, unit.directory) == (name, slice, directory)


@pytest.mark.parametrize(
    "written",
    [
        "/a/b", "a:b", "a.slice:b:", "a:b:c", "a--b.slice:p:n", "-a.slice:p:n", "../x.slice:p:n", "s.slice:p/q:n",
        "a.slice:p:b--c.slice", "s.slice:p:" + "n" * 300, "a:b:c:d",
    ],
)  # fmt: skip
def test_names_that_are_none(written: str) -> None:
    with pytest.raises(ConfigError) as caught:
        unit_of(written, "id", False)
    assert "/linux/cgroupsPath" in str(caught.value)


def test_v2() -> None:
    resources = Resources(
        memory=Memory(limit=1 << 20, swap=3 << 20, reservation=4096),
        cpu=Cpu(shares=1024, quota=33333, period=50000, cpus="0-2,9", mems="0"),
        pids=Pids(7),
        block_io=BlockIO(
            weight=10,
            weight_device=(WeightDevice(8, 0, 1000),),
            throttle_read_bps_device=(ThrottleDevice(8, 0, 5),),
            throttle_write_iops_device=(ThrottleDevice(8, 16, 6),),
        ),
        unified={"memory.high": "4096", "pids.max": "9"},
    )
    made = plan(on(v2_host()), resources, "s.slice:p:n")
    assert made.unit == "system p-n.scope"
    assert made.paths == {"": "/sys/fs/cgroup/s.slice/p-n.scope"}
    assert made.create == []
    told = properties(made)
    assert told == {
        "DefaultDependencies": False,
        "CollectMode": "inactive-or-failed",
        "Slice": "s.slice",
        "Delegate": True,
        "CPUAccounting": True,
        "MemoryAccounting": True,
        "IOAccounting": True,
        "TasksAccounting": True,
        "MemoryMax": 1 << 20,
        "MemorySwapMax": 2 << 20,
        "MemoryLow": 4096,
        "MemoryHigh": 4096,
        "CPUWeight": 100,
        "CPUQuotaPeriodUSec": 50000,
        "CPUQuotaPerSecUSec": 670000,  # 66.666 %, rounded up to what systemd keeps
        "AllowedCPUs": b"\x07\x02",
        "AllowedMemoryNodes": b"\x01",
        "TasksMax": 9,
        "IOWeight": 1,
        "IODeviceWeight": [("/dev/block/8:0", 10000)],
        "IOReadBandwidthMax": [("/dev/block/8:0", 5)],
        "IOWriteIOPSMax": [("/dev/block/8:16", 6)],
    }
    calls = [op.call for op in made.before_clone if op.performer == RUNTIME]
    assert calls.index("start_unit") == len(told) + 1  # pids.max of unified comes twice
    assert calls[calls.index("start_unit") + 1] == "adopt_cgroup"
    assert made.before_clone[-1].result == "cgroup"


def test_unlimited_is_infinity() -> None:
    told = properties(plan(on(v2_host()), Resources(memory=Memory(limit=-1), cpu=Cpu(quota=-1), pids=Pids(-1))))
    infinity = (1 << 64) - 1
    names = ("MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "TasksMax")
    assert [told[name] for name in names] == [infinity] * 4


@pytest.mark.parametrize("limit", [1, 0])
def test_a_limit_of_one_is_told_when_the_unit_has_that_one(limit: int) -> None:
    made = plan(on(v2_host()), Resources(pids=Pids(limit)))
    assert "TasksMax" not in properties(made)
    *_, write, told, changed = made.enter
    assert isinstance(write.args[0], bytes) and write.args[0].endswith(b"/pids.max") and write.args[1] == b"1"
    assert told.args == (b"TasksMax", b"uint64 1")
    assert changed.call == "set_unit"
    updated = plan_unit_update(Resources(pids=Pids(limit)), "system p-n.scope", {"": "/x"})
    assert [op.call for op in updated] == ["unit_property", "set_unit"]


def test_v1_and_its_devices() -> None:
    devices = (
        DeviceRule(False, "a", None, None, "rwm"),
        DeviceRule(True, "c", 10, 200, "rwm"),
        DeviceRule(True, "b", 8, None, "r"),
    )
    resources = Resources(
        memory=Memory(limit=1 << 20), cpu=Cpu(shares=77), block_io=BlockIO(weight=50), devices=devices
    )
    made = plan(on(v1_host()), resources, "s.slice:p:n")
    assert made.paths["memory"] == "/sys/fs/cgroup/memory/s.slice/p-n.scope"
    assert made.paths["name=systemd"] == "/sys/fs/cgroup/systemd/s.slice/p-n.scope"
    told = properties(made)
    assert (told["MemoryLimit"], told["CPUShares"], told["BlockIOWeight"]) == (1 << 20, 77, 50)
    assert told["DevicePolicy"] == "strict"
    allowed = dict(told["DeviceAllow"])  # type: ignore[call-overload]
    assert allowed["/dev/char/10:200"] == "rwm"
    assert allowed["/dev/char/1:3"] == "rwm"
    assert allowed["char-*"] == "m"
    assert not [name for name in allowed if "8:" in name and "block" in name], "systemd has no word for 8:*"
    # what is written to the files comes when they are there
    calls = [op.call for op in made.before_clone]
    files = [place for place, op in enumerate(made.before_clone) if b"/devices." in str(op.args).encode()]
    assert files
    assert min(files) > calls.index("start_unit")
    cpuset = next(op for op in made.before_clone if op.call == "adopt_cpuset")
    assert cpuset.args == (b"/sys/fs/cgroup/cpuset/s.slice/p-n.scope",)


def test_v2_devices_are_a_program_of_ours() -> None:
    made = plan(on(v2_host()), Resources(devices=(DeviceRule(False, "a", None, None, "rwm"),)), "s.slice:p:n")
    assert "DevicePolicy" not in properties(made)
    assert [op.call for op in made.before_clone][-3:] == ["bpf", "bpf", "close"]


def test_hybrid_has_both() -> None:
    made = plan(on(hybrid_host()), None, "s.slice:p:n")
    assert made.clone_into == b"/sys/fs/cgroup/unified/s.slice/p-n.scope"
    assert "memory" in made.paths


def test_a_user_has_what_is_delegated() -> None:
    host = on(v2_host(controllers=("memory", "pids")), "user", "/user.slice/user-1000.slice/user@1000.service")
    host.euid = 1000
    made = plan(host, Resources(memory=Memory(limit=1 << 20)))
    assert made.unit == "user pyoci-id.scope"
    own = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/user.slice/pyoci-id.scope"
    assert made.paths == {"": own}
    with pytest.raises(ConfigError) as caught:
        plan(host, Resources(cpu=Cpu(cpus="0")))
    assert "cpuset" in str(caught.value)
    assert "Delegate=" in str(caught.value)
    host = on(hybrid_host(), "user", "/user.slice")
    assert set(plan(host).paths) == {"", "name=systemd"}


def test_annotations() -> None:
    given = {
        "org.systemd.property.CPUWeight": "uint64 33",
        "org.systemd.property.TimeoutStopSec": "2.5",
        "org.systemd.property.After": "['a.service']",
        "other": "x",
    }
    made = plan(on(v2_host()), Resources(cpu=Cpu(shares=2)), None, given)
    told = properties(made)
    assert (told["CPUWeight"], told["TimeoutStopUSec"], told["After"]) == (33, 2500000, ["a.service"])
    weights = [op for op in made.before_clone if op.args[0] == b"CPUWeight"]
    assert [op.origin for op in weights] == ["/annotations/org.systemd.property.CPUWeight"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("CPUWeight", "uint64", "no value"),
        ("CPUWeight", "many", "strings are quoted"),
        ("PIDs", "[uint32 1]", "pyoci's to set"),
        ("Slice", "'x.slice'", "pyoci's to set"),
        ("A-B", "1", "not the name of a property"),
        ("TimeoutStopSec", "'1'", "number of seconds"),
    ],
)
def test_annotations_that_are_none(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(on(v2_host()), None, None, {f"org.systemd.property.{name}": text})
    assert words in str(caught.value)
    assert f"/annotations/org.systemd.property.{name}" in str(caught.value)


def test_updates_are_told() -> None:
    resources = Resources(memory=Memory(limit=5), pids=Pids(3))
    ops = plan_unit_update(resources, "system p-n.scope", {"": "/x"})
    assert [op.call for op in ops] == ["unit_property", "unit_property", "set_unit"]
    assert ops[-1].args == (b"p-n.scope",)
    assert plan_unit_update(Resources(), "system p-n.scope", {"": "/x"}) == []


@pytest.mark.parametrize(
    ("cpu", "weight"),
    [
        (Cpu(idle=1), 0), (Cpu(idle=1, shares=1024), 0), (Cpu(idle=0), (1 << 64) - 1), (Cpu(idle=0, shares=1024), 100),
    ],
)  # fmt: skip
def test_idle_is_a_weight_of_systemds(cpu: Cpu, weight: int) -> None:
    assert properties(plan(on(v2_host()), Resources(cpu=cpu)))["CPUWeight"] == weight
    if cpu.idle is not None and cpu.shares is None:
        unified = {"cpu.idle": str(cpu.idle)}
        assert properties(plan(on(v2_host()), Resources(unified=unified)))["CPUWeight"] == weight
    told = properties(plan(on(v1_host()), Resources(cpu=cpu)))
    assert ("CPUShares" in told) == (cpu.shares is not None and not cpu.idle)


def test_none_of_memory_is_little_for_systemd() -> None:
    """It refuses to hear of none."""
    told = properties(plan(on(v2_host()), Resources(unified={"memory.high": "0", "memory.low": "0"})))
    assert (told["MemoryHigh"], told["MemoryLow"]) == (1, 0)


def test_masks() -> None:
    assert mask("0") == b"\1"
    assert mask("8") == b"\0\1"
    assert mask("0-3,7") == b"\x8f"
    assert len(mask("8191")) == 1024
    # no kernel has these: not told, and not counted out one by one
    assert mask("0-999999999") == b""
    ops = plan_unit_update(Resources(cpu=Cpu(cpus="0-999999999")), "system p-n.scope", {"": "/x"})
    assert ops == []


def test_disabled() -> None:
    spec = Spec(oci_version="1.3.0", linux=Linux(resources=Resources(devices=(DeviceRule(False),))))
    made = plan_cgroups(spec, v2_host(), "id", False, "disabled")
    assert (made.paths, made.create, made.before_clone, made.enter) == ({}, [], [], [])
    spec = Spec(oci_version="1.3.0", linux=Linux(resources=Resources(pids=Pids(5))))
    with pytest.raises(ConfigError) as caught:
        plan_cgroups(spec, v2_host(), "id", False, "disabled")
    assert "/linux/resources/pids/limit: cannot be done without cgroups" in str(caught.value)
