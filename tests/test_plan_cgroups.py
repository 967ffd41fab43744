"""Plans of cgroups on hosts that need not exist: v1, v2, hybrid and none; pure, so no privileges."""

from __future__ import annotations

from errno import EINVAL, ENOENT, EPERM

import pytest

from pyoci.errors import ConfigError
from pyoci.host import Host
from pyoci.kernel import bpf
from pyoci.kernel.layouts import LAYOUTS
from pyoci.plan.cgroup_entry import join_ops
from pyoci.plan.cgroup_limits import cpu_weight, io_weight, write_limits
from pyoci.plan.cgroups import CgroupPlan, plan_cgroups, plan_update
from pyoci.plan.ops import INIT, RUNTIME, Blob, Op, Ref, Struct, walk
from pyoci.spec.types import (
    BlockIO,
    Cpu,
    DeviceRule,
    HugepageLimit,
    IdMapping,
    Linux,
    Memory,
    Mount,
    Namespace,
    Pids,
    Process,
    Resources,
    Spec,
    ThrottleDevice,
    User,
    WeightDevice,
)

V1_NAMES = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "rdma")
ALL_V2 = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma")


def v1_host(own: str = "/") -> Host:
    mounts = {name: f"/sys/fs/cgroup/{name}" for name in (*V1_NAMES, "name=systemd")}
    mounts["cpu"] = mounts["cpuacct"] = "/sys/fs/cgroup/cpu,cpuacct"
    mounts["name=systemd"] = "/sys/fs/cgroup/systemd"
    values = {"cgroup_mode": "v1", "cgroup_mounts": mounts, "cgroup_self": dict.fromkeys(mounts, own)}
    return Host.from_json(dict(values))


def v2_host(own: str = "/", controllers: tuple[str, ...] = ALL_V2) -> Host:
    host = Host()
    host.cgroup_mode = "v2"
    host.cgroup_mounts = {"": "/sys/fs/cgroup"}
    host.cgroup_self = {"": own}
    host.cgroup_controllers = controllers
    return host


def hybrid_host() -> Host:
    host = v1_host()
    host.cgroup_mode = "hybrid"
    del host.cgroup_mounts["hugetlb"], host.cgroup_self["hugetlb"]
    host.cgroup_mounts[""] = "/sys/fs/cgroup/unified"
    host.cgroup_self[""] = "/"
    host.cgroup_controllers = ("hugetlb",)
    return host


def spec(resources: Resources | None = None, path: str | None = "/a/b", version: str = "1.3.0") -> Spec:
    return Spec(oci_version=version, linux=Linux(cgroups_path=path, resources=resources))


def texts(ops: list[Op]) -> list[str]:
    """Each runtime op as call, path below the container's cgroup (or whole), and data."""
    found = []
    for op in walk(ops):
        assert op.performer == RUNTIME
        words = [op.call] if op.call != "write" else []
        for arg in op.args:
            words.append(arg.decode().rpartition("/a/b/")[2] if isinstance(arg, bytes) else repr(arg))
        found.append(" ".join(words))
    return found


def limits(resources: Resources, host: Host, version: str = "1.3.0") -> list[str]:
    """The writes for `resources` alone."""
    plan = plan_cgroups(spec(resources, version=version), host, "id")
    return texts([op for op in plan.create if op.call not in MAKING])


MAKING = ("mkdir_cgroup", "mkdir_cpuset", "enable_controllers")


def problems(resources: Resources | None, host: Host, path: str | None = "/a/b") -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        plan_cgroups(spec(resources, path), host, "id")
    return {problem.pointer: problem.message for problem in caught.value.problems}


# Where --------------------------------------------------------------------------------------------------------------


def test_absolute_path_on_v1() -> None:
    plan = plan_cgroups(spec(), v1_host("/own"), "id")
    assert plan.paths["memory"] == "/sys/fs/cgroup/memory/a/b"
    assert plan.paths["cpu"] == plan.paths["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct/a/b"
    assert plan.paths["name=systemd"] == "/sys/fs/cgroup/systemd/a/b"
    made: list[tuple[str, bytes]] = []
    for op in plan.create:
        assert isinstance(op.args[0], bytes)
        made.append((op.call, op.args[0]))
    assert len(made) == len(set(plan.paths.values())) == 11
    assert ("mkdir_cpuset", b"/sys/fs/cgroup/cpuset/a/b") in made
    assert ("mkdir_cgroup", b"/sys/fs/cgroup/cpu,cpuacct/a/b") in made
    assert all(op.origin == "/linux/cgroupsPath" for op in plan.create)
    assert plan.clone_into is None
    # opened with the runtime's rights, written by the process itself
    assert all((op.call, op.performer) == ("openat", INIT) for op in plan.before_clone)
    opened = {op.result: op.args[1] for op in plan.before_clone}
    assert sorted(opened.values(), key=repr) == sorted((path + b"/tasks" for _, path in made), key=repr)
    assert {Ref(str(name)) for name in opened} == {op.args[0] for op in plan.enter if op.call == "write"}
    assert all(op.args[1:] == (b"0", 1) for op in plan.enter if op.call == "write")


def test_absent_path() -> None:
    plan = plan_cgroups(spec(path=None), v1_host("/own"), "id")
    assert plan.paths["memory"] == "/sys/fs/cgroup/memory/own/id"
    assert plan.create[0].origin == "config-linux.md#cgroups-path"
    assert plan_cgroups(spec(path=None), v2_host("/user.slice/session"), "id").paths == {
        "": "/sys/fs/cgroup/user.slice/id"
    }
    assert plan_cgroups(spec(path=""), v2_host("/"), "id").paths == {"": "/sys/fs/cgroup/id"}


def test_relative_path() -> None:
    """The same value names the same place, whatever cgroup the runtime runs in."""
    for own in ("/", "/own/cgroup"):
        assert plan_cgroups(spec(path="x/./y/"), v1_host(own), "id").paths["pids"] == "/sys/fs/cgroup/pids/x/y"
        assert plan_cgroups(spec(path="x//y"), v2_host(own), "id").paths[""] == "/sys/fs/cgroup/x/y"
    rootless = plan_cgroups(spec(path="x/y"), v2_host("/user/one"), "id", rootless=True)
    assert rootless.paths[""] == "/sys/fs/cgroup/user/x/y"


@pytest.mark.parametrize("path", ["/a/../b", "..", "/", "//./", "a\0b", "a\nb"])
def test_refused_paths(path: str) -> None:
    assert list(problems(None, v2_host(), path)) == ["/linux/cgroupsPath"]


def test_colons_are_just_characters() -> None:
    """containerd writes slice:prefix:name for any parent that ends in .slice, without asking for systemd."""
    assert plan_cgroups(spec(path="a.slice:b:c"), v2_host(), "id").paths[""] == "/sys/fs/cgroup/a.slice:b:c"
    assert plan_cgroups(spec(path="/a:b:c"), v2_host(), "id").paths[""] == "/sys/fs/cgroup/a:b:c"


def test_no_cgroups_at_all() -> None:
    plan = plan_cgroups(spec(Resources(memory=Memory(limit=0))), Host(), "id")
    assert (plan.paths, plan.create, plan.enter, plan.clone_into) == ({}, [], [], None)
    found = problems(Resources(memory=Memory(limit=1), devices=(DeviceRule(),)), Host())
    assert list(found) == ["/linux/resources/memory/limit", "/linux/resources/devices"]
    assert "this container has none" in found["/linux/resources/memory/limit"]


def test_without_roots_rights() -> None:
    devices = Resources(devices=(DeviceRule(),))
    plan = plan_cgroups(spec(devices, path=None), v2_host("/user/one"), "id", rootless=True)
    assert (plan.paths, plan.create, plan.before_clone) == ({}, [], [])
    limited = Resources(pids=Pids(10), devices=(DeviceRule(),))
    plan = plan_cgroups(spec(limited, path=None), v2_host("/user/one"), "id", rootless=True)
    assert plan.paths == {"": "/sys/fs/cgroup/user/id"}
    assert [op.call for op in plan.before_clone] == ["openat"]


# v2 -----------------------------------------------------------------------------------------------------------------


def test_v2_directory_then_controllers_then_limits() -> None:
    plan = plan_cgroups(spec(Resources(memory=Memory(limit=1 << 20))), v2_host(), "id")
    assert plan.clone_into == b"/sys/fs/cgroup/a/b"
    assert plan.enter == []
    calls = [(op.call, op.args) for op in plan.create]
    assert calls == [
        ("mkdir_cgroup", (b"/sys/fs/cgroup/a/b",)),
        ("enable_controllers", (b"/sys/fs/cgroup", b"memory", b"cpu io pids")),
        ("enable_controllers", (b"/sys/fs/cgroup/a", b"memory", b"cpu io pids")),
        ("write", (b"/sys/fs/cgroup/a/b/memory.max", b"1048576")),
    ]
    assert plan.create[1].origin == "/linux/resources/memory/limit"
    opened = plan.before_clone[0]
    assert (opened.call, opened.args[1], opened.result) == ("openat", b"/sys/fs/cgroup/a/b", "cgroup")


def test_memory_on_v2() -> None:
    memory = Memory(limit=100, swap=150, reservation=50)
    assert limits(Resources(memory=memory), v2_host()) == ["memory.swap.max 50", "memory.max 100", "memory.low 50"]
    assert limits(Resources(memory=Memory(limit=-1)), v2_host()) == ["memory.swap.max max", "memory.max max"]
    assert limits(Resources(memory=Memory(limit=100, swap=-1)), v2_host()) == ["memory.swap.max max", "memory.max 100"]
    assert limits(Resources(memory=Memory(limit=100)), v2_host()) == ["memory.max 100"]
    nothing = Memory(limit=0, swap=0, reservation=0, kernel=0, kernel_tcp=-1, use_hierarchy=True)
    assert limits(Resources(memory=nothing), v2_host()) == []


def test_memory_that_v2_cannot() -> None:
    memory = Memory(swap=10, kernel=1, kernel_tcp=1, swappiness=0, disable_oom_killer=True)
    assert list(problems(Resources(memory=memory), v2_host())) == [
        f"/linux/resources/memory/{name}" for name in ("kernel", "kernelTCP", "swappiness", "disableOOMKiller", "swap")
    ]
    assert list(problems(Resources(memory=Memory(limit=10, swap=5)), v2_host())) == ["/linux/resources/memory/swap"]


def test_cpu_on_v2() -> None:
    cpu = Cpu(shares=1024, quota=50000, period=100000, burst=1000, cpus="0-1", mems="0", idle=1)
    assert limits(Resources(cpu=cpu), v2_host()) == [
        "cpu.weight 100",
        "cpu.max.burst 1000",
        "cpu.max 50000 100000",
        "cpu.max.burst 1000",
        "cpu.idle 1",
        "cpuset.cpus 0-1",
        "cpuset.mems 0",
    ]
    assert limits(Resources(cpu=Cpu(quota=-1)), v2_host()) == ["cpu.max max"]
    assert limits(Resources(cpu=Cpu(period=5000)), v2_host()) == ["cpu.max max 5000"]
    assert limits(Resources(cpu=Cpu(shares=0, quota=0, period=0, cpus="", mems="")), v2_host()) == []
    assert list(problems(Resources(cpu=Cpu(realtime_runtime=1)), v2_host())) == ["/linux/resources/cpu/realtimeRuntime"]


def test_conversions() -> None:
    assert [cpu_weight(shares) for shares in (2, 1024, 262144)] == [1, 100, 10000]
    weights = [cpu_weight(shares) for shares in range(2, 262145, 97)]
    assert weights == sorted(weights)
    assert (io_weight(10), io_weight(1000)) == (1, 10000)


def test_block_io_on_v2() -> None:
    block_io = BlockIO(
        weight=500,
        weight_device=(WeightDevice(8, 0, 10),),
        throttle_read_bps_device=(ThrottleDevice(8, 0, 100),),
        throttle_write_iops_device=(ThrottleDevice(8, 16, 0),),
    )
    assert limits(Resources(block_io=block_io), v2_host()) == [
        "io.weight default 4950",
        "io.bfq.weight 500",
        "io.bfq.weight 500",
        "io.weight 8:0 1",
        "io.bfq.weight 8:0 10",
        "io.bfq.weight 8:0 10",
        "io.max 8:0 rbps=100",
        "io.max 8:16 wiops=max",
    ]


def test_other_controllers_on_v2() -> None:
    resources = Resources(
        hugepage_limits=(HugepageLimit("2MB", 0),),
        rdma={"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
        unified={"memory.high": "10", "io.max": "8:0 rbps=1\n8:16 wbps=1\n", "cgroup.max.depth": "2"},
    )
    assert limits(resources, v2_host()) == [
        "hugetlb.2MB.rsvd.max 0",
        "hugetlb.2MB.max 0",
        "rdma.max mlx5_1 hca_handle=3 hca_object=10000",
        "memory.high 10",
        "write_lines io.max 8:0 rbps=1\n8:16 wbps=1\n",
        "cgroup.max.depth 2",
    ]


def test_what_v2_lacks_is_named() -> None:
    resources = Resources(
        memory=Memory(limit=10), unified={"misc.max": "1", "nonsense/": "1"}, network={"classID": 5, "priorities": []}
    )
    found = problems(resources, v2_host(controllers=("hugetlb",)))
    assert "needs the cgroup controller 'memory'" in found["/linux/resources/memory/limit"]
    assert "hugetlb" in found["/linux/resources/memory/limit"]
    assert "'misc'" in found["/linux/resources/unified/misc.max"]
    assert "/linux/resources/unified/nonsense~1" in found
    assert "v1 controller 'net_cls'" in found["/linux/resources/network/classID"]


def test_pids() -> None:
    assert limits(Resources(pids=Pids(10)), v2_host()) == ["pids.max 10"]
    assert limits(Resources(pids=Pids(-1)), v1_host()) == ["pids.max max"]
    # clone3 would be refused by a limit of none: it is written when the process is there
    none = plan_cgroups(spec(Resources(pids=Pids(0))), v2_host(), "id")
    assert texts(none.enter) == ["pids.max 1"]
    # before 1.3 zero was none for everybody
    older = plan_cgroups(spec(Resources(pids=Pids(0)), version="1.0.2-dev"), v2_host(), "id")
    assert (older.enter, len(older.create)) == ([], 3)


def test_devices_on_v2() -> None:
    plan = plan_cgroups(spec(Resources(devices=(DeviceRule(),))), v2_host(), "id")
    opened, load, attach, closed = plan.before_clone
    assert (opened.result, load.result) == ("cgroup", "device_filter")
    attributes = load.args[1]
    assert isinstance(attributes, Struct)
    code = attributes.fields["insns"]
    assert isinstance(code, Blob)
    assert attributes.fields["insn_cnt"] == len(code.data) // 8
    for op in (load, attach):
        structure = op.args[1]
        assert isinstance(structure, Struct)
        size, fields = LAYOUTS[structure.layout]
        assert set(structure.fields) <= set(fields)
        assert op.args[2] == size == bpf.BPF_ATTR_SIZE
        assert op.origin == "/linux/resources/devices"
    assert closed.args == (Ref("device_filter"),)
    everything = plan_cgroups(spec(Resources(devices=(DeviceRule(True),))), v2_host(), "id")
    assert [op.call for op in everything.before_clone] == ["openat"]


def owned(**changes: object) -> CgroupPlan:
    parts: dict[str, object] = {
        "namespaces": (Namespace("cgroup"), Namespace("user")),
        "uid_mappings": (IdMapping(0, 100000, 65536),),
        "options": ("nosuid",),
        "uid": 5,
    }
    parts.update(changes)
    config = Spec(
        linux=Linux(namespaces=parts["namespaces"], uid_mappings=parts["uid_mappings"]),  # type: ignore[arg-type]
        mounts=(Mount("/sys/fs/cgroup", "cgroup", "cgroup", parts["options"]),),  # type: ignore[arg-type]
        process=Process(user=User(uid=parts["uid"])),  # type: ignore[arg-type]
    )
    return plan_cgroups(config, v2_host(), "id")


def test_cgroup_ownership() -> None:
    """config-linux.md#cgroup-ownership: v2, a new cgroup namespace, a cgroup mount that is not read-only."""
    assert [op.args[1] for op in owned().create if op.call == "chown_cgroup"] == [100005]
    assert [op.args[1] for op in owned(namespaces=(Namespace("cgroup"),)).create if op.call == "chown_cgroup"] == [5]
    for other in (
        owned(options=("ro",)),
        owned(namespaces=(Namespace("user"),)),
        owned(namespaces=(Namespace("cgroup", "/proc/1/ns/cgroup"),)),
        owned(namespaces=(Namespace("cgroup"),), uid=0),
        owned(uid=70000),
    ):
        assert not [op for op in other.create if op.call == "chown_cgroup"]


# v1 -----------------------------------------------------------------------------------------------------------------


def test_memory_on_v1() -> None:
    memory = Memory(
        limit=100, swap=200, reservation=50, kernel=10, kernel_tcp=20, swappiness=0, disable_oom_killer=True,
        use_hierarchy=True,
    )  # fmt: skip
    plan = write_limits(Resources(memory=memory), {"memory": "/a/b"}, ())
    limit = plan.ops[0]
    assert limit.tolerate == (EINVAL,)
    # raising: the limit of both goes up before that of memory alone
    assert texts(list(limit.otherwise)) == ["memory.memsw.limit_in_bytes 200", "memory.limit_in_bytes 100"]
    assert texts(plan.ops[1:]) == [
        "memory.memsw.limit_in_bytes 200",
        "memory.soft_limit_in_bytes 50",
        "memory.kmem.limit_in_bytes 10",
        "memory.kmem.tcp.limit_in_bytes 20",
        "memory.swappiness 0",
        "memory.oom_control 1",
        "memory.use_hierarchy 1",
    ]
    unlimited = write_limits(Resources(memory=Memory(limit=-1)), {"memory": "/a/b"}, ())
    assert unlimited.ops[-1].args == (b"/a/b/memory.memsw.limit_in_bytes", b"-1")
    assert unlimited.ops[-1].tolerate == (ENOENT,)


def test_cpu_on_v1() -> None:
    cpu = Cpu(shares=5, quota=-1, period=1000, realtime_runtime=10, realtime_period=100, idle=0, burst=0)
    assert limits(Resources(cpu=cpu), v1_host())[:4] == [
        "cpu.idle 0", "cpu.shares 5", "cpu.cfs_burst_us 0", "cpu.cfs_period_us 1000"
    ]  # fmt: skip
    plan = write_limits(Resources(cpu=cpu), {"cpu": "/a/b"}, ())
    assert [(op.args[0], op.tolerate) for op in plan.ops[3:]] == [
        (b"/a/b/cpu.cfs_period_us", (EINVAL,)),
        (b"/a/b/cpu.cfs_quota_us", ()),
        (b"/a/b/cpu.rt_period_us", (EINVAL,)),
        (b"/a/b/cpu.rt_runtime_us", ()),
    ]


def test_block_io_on_v1() -> None:
    block_io = BlockIO(
        weight=500,
        leaf_weight=0,
        weight_device=(WeightDevice(8, 0, 10, 0),),
        throttle_write_bps_device=(ThrottleDevice(8, 0, 100),),
    )
    assert limits(Resources(block_io=block_io), v1_host()) == [
        "blkio.bfq.weight 500",
        "blkio.weight 500",
        "blkio.bfq.weight_device 8:0 10",
        "blkio.weight_device 8:0 10",
        "blkio.throttle.write_bps_device 8:0 100",
    ]
    leaves = BlockIO(leaf_weight=1, weight_device=(WeightDevice(8, 0, None, 7),))
    assert list(problems(Resources(block_io=leaves), v1_host())) == [
        "/linux/resources/blockIO/leafWeight",
        "/linux/resources/blockIO/weightDevice/0/leafWeight",
    ]


def test_network_and_unified_on_v1() -> None:
    resources = Resources(
        network={"classID": 1048577, "priorities": [{"name": "lo", "priority": 0}]}, unified={"memory.high": "1"}
    )
    found = problems(resources, v1_host())
    assert list(found) == ["/linux/resources/network/priorities", "/linux/resources/unified/memory.high"]
    host = v1_host()
    host.cgroup_mounts["net_prio"] = "/sys/fs/cgroup/net_prio"
    resources.unified.clear()
    assert limits(resources, host) == ["net_cls.classid 1048577", "net_prio.ifpriomap lo 0"]


def test_devices_on_v1() -> None:
    rules = (DeviceRule(False), DeviceRule(True, "c", 10, 229), DeviceRule(True, "b", 8, None, "r"))
    plan = plan_cgroups(spec(Resources(devices=rules)), v1_host(), "id")
    writes = [op for op in plan.create if op.call not in MAKING]
    assert [(op.origin, op.args[1]) for op in writes[:3]] == [
        ("/linux/resources/devices/0", b"a"),
        ("/linux/resources/devices/1", b"c 10:229 rwm"),
        ("/linux/resources/devices/2", b"b 8:* r"),
    ]
    assert writes[3].call == "write_lines"
    assert writes[3].tolerate == (EPERM,)
    assert isinstance(writes[3].args[1], bytes)
    assert b"c 1:3 rwm\n" in writes[3].args[1]
    assert all(op.call == "openat" for op in plan.before_clone)
    hole = (DeviceRule(False), DeviceRule(True, "c", 1), DeviceRule(False, "c", 1, 3))
    assert list(problems(Resources(devices=hole), v1_host())) == ["/linux/resources/devices/2"]
    # a list that does not begin with a denial of everything begins closed all the same
    first = plan_cgroups(spec(Resources(devices=rules[1:])), v1_host(), "id")
    assert next(op.args for op in first.create if op.call == "write")[1] == b"a"


# hybrid -------------------------------------------------------------------------------------------------------------


def test_hybrid() -> None:
    resources = Resources(
        memory=Memory(limit=10), hugepage_limits=(HugepageLimit("2MB", 1),), devices=(DeviceRule(False),)
    )
    plan = plan_cgroups(spec(resources), hybrid_host(), "id")
    assert plan.clone_into == b"/sys/fs/cgroup/unified/a/b"
    assert {op.call for op in plan.before_clone} == {"openat"}
    assert plan.before_clone[0].result == "cgroup"
    assert (b"/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", b"10") in [op.args for op in plan.create]
    assert (b"/sys/fs/cgroup/unified/a/b/hugetlb.2MB.rsvd.max", b"1") in [op.args for op in plan.create]
    assert [op.args for op in plan.create if op.call == "enable_controllers"] == [
        (b"/sys/fs/cgroup/unified", b"hugetlb", b""),
        (b"/sys/fs/cgroup/unified/a", b"hugetlb", b""),
    ]
    assert len([op for op in plan.enter if op.call == "write"]) == 10
    # nothing is asked of v2: nothing is changed in it
    assert not [op for op in plan_cgroups(spec(), hybrid_host(), "id").create if op.call == "enable_controllers"]


def test_joining() -> None:
    plan = plan_cgroups(spec(), hybrid_host(), "id")
    into, opens, enter = join_ops(plan.paths)
    assert into == plan.clone_into
    assert repr(enter) == repr(plan.enter).replace("/linux/cgroupsPath", "config-linux.md#cgroups-path")
    assert len(opens) == 10
    assert join_ops({}) == (None, [], [])


def test_update() -> None:
    resources = Resources(memory=Memory(limit=10, check_before_update=True), pids=Pids(0))
    ops = plan_update(resources, {"": "/a/b"}, ALL_V2)
    assert texts(ops) == ["check_usage memory.current 10", "memory.max 10", "pids.max 1"]
    assert len(plan_update(resources, {"": "/a/b"}, ALL_V2, "1.2.0")) == 2
    with pytest.raises(ConfigError):
        plan_update(resources, {"": "/a/b"}, ())


def test_equal_inputs_give_equal_plans() -> None:
    resources = Resources(memory=Memory(limit=10), devices=(DeviceRule(False),))
    first, second = (plan_cgroups(spec(resources), hybrid_host(), "id") for _ in range(2))
    assert repr((first.paths, first.create, first.enter)) == repr((second.paths, second.create, second.enter))


@pytest.mark.parametrize(("initial", "made"), [(True, True), (False, False)])
def test_root_of_a_user_namespace_needs_no_cgroup(initial: bool, made: bool) -> None:
    """Rootless podman without systemd makes the namespace before it calls us, and names no cgroup but lists devices."""
    from pyoci.plan.container import PlanOptions, plan_container
    from pyoci.spec.types import Linux, Namespace, Process, Root, Spec

    linux = Linux((Namespace("mount"),), resources=Resources(devices=(DeviceRule(),)))
    machine = v1_host("/own")
    machine.initial_user_namespace = initial
    whole = Spec("1.2.0", Root("r"), (), Process("/", ("/a",)), linux=linux)
    assert bool(plan_container(whole, machine, PlanOptions("c", "/b")).cgroups.paths) == made
