"""Containers in units of systemd's, where systemd is process 1 (on a machine without it: in a virtual machine).

What systemd says of the unit and what the kernel says of its cgroup are both looked at: a limit that only one of them
knows is lost at the next reload, or was never there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import COUNTER, Images, count, works
from containers import Box, disk_of, needed, until
from machine import loaded, show

from pyoci.host import probe

pytestmark = [
    *needed,
    pytest.mark.skipif(not Path("/run/systemd/private").exists(), reason="systemd is not process 1 here"),
]
V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")


class Unit(Box):
    """A box whose containers are the units `t-ID.scope` in pyoci-test.slice, or what `path` says."""

    path = ""

    @property
    def unit(self) -> str:
        """The unit of the box's own container."""
        return f"t-{self.id}.scope"

    def command(self, *args: str) -> list[str]:
        return super().command("--systemd-cgroup", *args)

    def write(self, id: str = "") -> None:
        self.linux["cgroupsPath"] = self.path or f"pyoci-test.slice:t:{id or self.id}"
        (self.bundle / "config.json").write_text(json.dumps(self.config), encoding="utf-8")

    def file(self, controller: str, name: str) -> str:
        """A file of the unit's cgroup."""
        top = Path("/sys/fs/cgroup") if V2 else Path("/sys/fs/cgroup") / controller
        return (top / "pyoci.slice/pyoci-test.slice" / self.unit / name).read_text().strip()

    def nothing_left(self) -> None:
        """No cgroup, no unit, no state."""
        until(lambda: not [*Path("/sys/fs/cgroup").rglob(self.unit)], "the unit's cgroups go")
        assert not loaded(self.unit)
        assert not (self.states / self.id).exists()


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    made = Unit(tmp_path)
    try:
        yield made
    finally:
        made.close()
    made.nothing_left()


@pytest.mark.parametrize("limit", [1, 0])
def test_no_further_process(unit: Unit, limit: int) -> None:
    """Also of the unit's first process, which makes the container's; systemd has no limit of 0."""
    unit.linux["resources"] = {"pids": {"limit": limit}}
    unit.start("exec sleep 100")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert unit.file("pids", "pids.max") == show(unit.unit, "TasksMax")["TasksMax"] == "1"
    unit.ok("update", "--pids-limit", "-1", unit.id)
    assert show(unit.unit, "TasksMax")["TasksMax"] == "infinity"
    unit.ok("update", "--pids-limit", str(limit), unit.id)
    assert unit.file("pids", "pids.max") == show(unit.unit, "TasksMax")["TasksMax"] == "1"
    unit.ok("delete", "--force", unit.id)


def test_limits_are_systemds_and_the_kernels(unit: Unit) -> None:
    unit.linux["resources"] = {
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 512, "quota": 20000, "period": 50000} | ({"cpus": "0", "mems": "0"} if V2 else {}),
        "pids": {"limit": 9},
    }
    unit.config["annotations"] = {"org.systemd.property.TimeoutStopSec": "7"}
    unit.start()
    names = "ActiveState Delegate MemoryMax MemoryLimit CPUWeight CPUShares CPUQuotaPerSecUSec TasksMax AllowedCPUs"
    told = show(unit.unit, *names.split(), "TimeoutStopUSec", "Slice", "ControlGroup")
    assert told["ActiveState"] == "active"
    assert told["Delegate"] == "yes"
    assert told["MemoryMax" if V2 else "MemoryLimit"] == str(64 << 20)
    assert (told["CPUWeight"] == "59") if V2 else (told["CPUShares"] == "512")
    assert told["CPUQuotaPerSecUSec"] == "400ms"
    assert told["TasksMax"] == "9"
    assert told["TimeoutStopUSec"] == "7s"
    assert told["Slice"] == "pyoci-test.slice"
    assert told["ControlGroup"] == f"/pyoci.slice/pyoci-test.slice/{unit.unit}"

    def of_kernel() -> None:
        assert unit.file("pids", "pids.max") == "9"
        if V2:
            assert unit.file("", "memory.max") == str(64 << 20)
            assert unit.file("", "cpu.max") == "20000 50000"
            assert unit.file("", "cpuset.cpus.effective") == "0"
        else:
            assert unit.file("memory", "memory.limit_in_bytes") == str(64 << 20)
            assert unit.file("cpu", "cpu.cfs_quota_us") == "20000"

    of_kernel()
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    of_kernel()


def test_pids_bite(unit: Unit) -> None:
    unit.linux["resources"] = {"pids": {"limit": 4}}
    unit.start()
    done = unit("exec", unit.id, "sh", "-c", "for i in 1 2 3 4 5; do sleep 5 & done; echo all")
    assert "can't fork" in done.stderr
    assert "all" not in done.stdout


def test_memory_bites(unit: Unit) -> None:
    unit.linux["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    unit.start()
    done = unit("exec", unit.id, "sh", "-c", "x=x; while :; do x=$x$x; done")
    assert done.returncode == 128 + signal.SIGKILL, done
    counted = unit.file("", "memory.events") if V2 else unit.file("memory", "memory.oom_control")
    assert "oom_kill 1" in counted.splitlines()
    assert unit.status() == "running"


def test_devices_stay_denied_after_a_reload(unit: Unit) -> None:
    unit.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    unit.capabilities("CAP_MKNOD")
    unit.start("mknod /tmp/full c 1 7; mknod /tmp/kmsg c 1 11; sleep 100")
    look = "head -c1 /tmp/full >/dev/null && echo full; head -c1 /tmp/kmsg >/dev/null && echo kmsg; true"
    until(lambda: unit("exec", unit.id, "ls", "/tmp/kmsg").returncode == 0)
    for _ in range(2):
        done = unit("exec", unit.id, "sh", "-c", look)
        assert done.stdout == "full\n", done
        assert "not permitted" in done.stderr
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        subprocess.run(["systemctl", "set-property", "--runtime", unit.unit, "CPUWeight=50"], check=True)


def test_update_tells_systemd(unit: Unit) -> None:
    unit.start()
    unit.ok("update", "--memory", "48M", "--pids-limit", "11", "--cpu-quota", "30000", unit.id)
    told = show(unit.unit, "MemoryMax", "MemoryLimit", "TasksMax", "CPUQuotaPerSecUSec")
    assert told["MemoryMax" if V2 else "MemoryLimit"] == str(48 << 20)
    assert (told["TasksMax"], told["CPUQuotaPerSecUSec"]) == ("11", "300ms")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert unit.file("pids", "pids.max") == "11"


RUN_THEM_AGAIN = "CPUAccounting=yes MemoryAccounting=yes IOAccounting=yes TasksAccounting=yes"


@pytest.mark.skipif(not V2, reason="most of these properties are for v2 only")
def test_every_flag_of_update_is_systemds_and_the_kernels(unit: Unit) -> None:
    """Each alone, beside what there was before; both views are the same whatever systemd writes anew."""
    unit.linux["resources"] = {"cpu": {"quota": 20000, "period": 50000}, "memory": {"limit": 64 << 20}}
    unit.linux["resources"]["devices"] = [{"allow": False, "access": "rwm"}]
    unit.start()
    now: dict[str, tuple[str, str, str]] = {}  # file -> its text, property, its text
    swap, weight = ("memory.swap.max", "MemorySwapMax"), ("cpu.weight", "CPUWeight")
    period, quota = "CPUQuotaPeriodUSec", "CPUQuotaPerSecUSec"
    for words, name, text, property, told in (
        ("--memory 48M", "memory.max", str(48 << 20), "MemoryMax", str(48 << 20)),
        ("--memory-swap 64M", swap[0], str(16 << 20), swap[1], str(16 << 20)),
        ("--memory-reservation 8M", "memory.low", str(8 << 20), "MemoryLow", str(8 << 20)),
        ("--memory-swap -1", swap[0], "max", swap[1], "infinity"),
        ("--cpu-quota -1", "cpu.max", "max 50000", quota, "infinity"),
        ("--cpu-quota 10000", "cpu.max", "10000 50000", quota, "200ms"),
        ("--cpu-period 100000", "cpu.max", "10000 100000", quota, "100ms"),
        ("--cpu-period 20000", "cpu.max", "10000 20000", period, "20ms"),
        ("--cpu-quota 3333", "cpu.max", "3333 20000", quota, "170ms"),
        ("--cpu-quota 8000", "cpu.max", "8000 20000", quota, "400ms"),
        ("--cpu-share 512", weight[0], "59", weight[1], "59"),
        ("--cpu-idle 1", "cpu.idle", "1", weight[1], "idle"),
        ("--cpu-idle 0", "cpu.idle", "0", weight[1], "[not set]"),
        ("--cpu-share 2048 --cpu-idle 0", weight[0], "174", weight[1], "174"),
        ("--cpu-idle 0", weight[0], "174", weight[1], "174"),
        ("--cpuset-cpus 1", "cpuset.cpus", "1", "AllowedCPUs", "1"),
        ("--cpuset-mems 0", "cpuset.mems", "0", "AllowedMemoryNodes", "0"),
        ("--pids-limit 11", "pids.max", "11", "TasksMax", "11"),
        ("--pids-limit -1", "pids.max", "max", "TasksMax", "infinity"),
        ("--blkio-weight 100", "io.weight", "default 910", "IOWeight", "910"),
    ):
        unit.ok("update", *words.split(), unit.id)
        now[name] = (text, property, told)
        if name == weight[0]:
            now.pop("cpu.idle", None)
        assert unit.file("", name) == text, words
        assert show(unit.unit, property) == {property: told}, words
    for again in (["daemon-reload"], ["set-property", "--runtime", unit.unit, *RUN_THEM_AGAIN.split()]):
        subprocess.run(["systemctl", *again], check=True)
        for name, (text, property, told) in now.items():
            assert (unit.file("", name), show(unit.unit, property)[property]) == (text, told), (again, name)


@pytest.fixture
def block_link(tmp_path: Path) -> Iterator[str]:
    """/dev/block/MAJOR:MINOR of a disk, which is udev's to make, and systemd's to look for."""
    link = Path("/dev/block/{}:{}".format(*disk_of(tmp_path)))
    made = not link.exists()
    if made:
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(f"../{Path('/sys/dev/block', link.name).resolve().name}")
    yield link.name
    if made:
        link.unlink()


@pytest.mark.skipif(not V2, reason="v1's have names of their own")
def test_disks_are_systemds_and_the_kernels(unit: Unit, block_link: str) -> None:
    major, minor = map(int, block_link.split(":"))
    place = {"major": major, "minor": minor}
    throttles = {"throttleReadBpsDevice": 1 << 20, "throttleWriteBpsDevice": 2 << 20, "throttleReadIOPSDevice": 300,
                 "throttleWriteIOPSDevice": 400}  # fmt: skip
    unit.linux["resources"] = {"blockIO": {name: [{**place, "rate": rate}] for name, rate in throttles.items()}}
    unit.start()
    names = ("IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax")
    for words in ([], ["daemon-reload"], ["set-property", "--runtime", unit.unit, *RUN_THEM_AGAIN.split()]):
        if words:
            subprocess.run(["systemctl", *words], check=True)
        told = show(unit.unit, *names)
        assert [told[name].split() for name in names] == [
            [f"/dev/block/{block_link}", str(rate)] for rate in throttles.values()
        ]
        assert unit.file("", "io.max") == f"{block_link} rbps=1048576 wbps=2097152 riops=300 wiops=400"


@pytest.mark.skipif(not V2, reason="v1's have names of their own")
def test_a_disk_that_systemd_does_not_find(unit: Unit) -> None:
    """Without udev: the kernel has the limit all the same."""
    major, minor = disk_of(unit.rootfs)
    assert not Path(f"/dev/block/{major}:{minor}").exists()
    limit = [{"major": major, "minor": minor, "rate": 1 << 20}]
    unit.linux["resources"] = {"blockIO": {"throttleReadBpsDevice": limit}}
    unit.start()
    assert unit.file("", "io.max") == f"{major}:{minor} rbps=1048576 wbps=max riops=max wiops=max"


def test_what_the_kernel_refuses_is_not_told(unit: Unit) -> None:
    unit.linux["resources"] = {"pids": {"limit": 9}}
    unit.start()
    given = {"pids": {"limit": 7}, "unified": {"pids.nonsense": "1"}} if V2 else {"memory": {"limit": 1}}
    properties = ("TasksMax", "MemoryMax", "MemoryLimit")
    before = show(unit.unit, *properties)
    assert "/linux/resources/" in unit.fails("update", "--resources", "-", unit.id, input=json.dumps(given))
    assert show(unit.unit, *properties) == before


def test_a_name_that_is_taken(unit: Unit) -> None:
    """Somebody else's unit is not ours to stop, whatever becomes of create."""
    words = ["systemd-run", "--scope", "--quiet", f"--unit={unit.unit}", "sleep", "60"]
    with subprocess.Popen(words) as other:
        until(lambda: show(unit.unit, "ActiveState")["ActiveState"] == "active")
        unit.process["args"] = ["true"]
        unit.write()
        error = unit.fails("create", "--bundle", str(unit.bundle), unit.id)
        assert f"systemd has a unit {unit.unit} already" in error
        assert not (unit.states / unit.id).exists()
        assert other.poll() is None
        other.kill()
    until(lambda: not loaded(unit.unit))


def test_systemds_words_are_passed_on(unit: Unit) -> None:
    unit.config["annotations"] = {"org.systemd.property.NoSuchThing": "true"}
    unit.process["args"] = ["true"]
    unit.write()
    error = unit.fails("create", "--bundle", str(unit.bundle), unit.id)
    assert "systemd refused StartTransientUnit" in error
    assert "NoSuchThing" in error
    assert not (unit.states / unit.id).exists()


def test_pause_and_a_second_life(unit: Unit) -> None:
    unit.start()
    unit.ok("pause", unit.id)
    assert unit.status() == "paused"
    unit.ok("delete", "--force", unit.id)
    unit.nothing_left()
    unit.start()
    assert unit.status() == "running"


@works
def test_checkpoint_and_restore(unit: Unit) -> None:
    """The unit ends with the checkpoint; restore makes it again, with its limits, and what goes on is in it."""
    unit.linux["resources"] = {"pids": {"limit": 20}}
    unit.process["noNewPrivileges"] = True
    unit.start(COUNTER)
    until(lambda: count(unit) > 2)
    images = Images(unit)
    images.checkpoint()
    unit.nothing_left()
    before = count(unit)
    images.restore()
    until(lambda: count(unit) > before + 2)
    assert count(unit) < before + 1000
    told = show(unit.unit, "ActiveState", "TasksMax", "ControlGroup")
    assert told == {
        "ActiveState": "active", "TasksMax": "20", "ControlGroup": f"/pyoci.slice/pyoci-test.slice/{unit.unit}",
    }  # fmt: skip
    assert unit.file("pids", "pids.max") == "20"
    assert str(unit.pid()) in unit.file("pids", "cgroup.procs").split()
    assert "NoNewPrivs:\t1" in Path(f"/proc/{unit.pid()}/status").read_text()
    unit.ok("pause", unit.id)
    assert unit.status() == "paused"
    unit.ok("resume", unit.id)


def test_a_killed_create_leaves_what_delete_can_remove(unit: Unit) -> None:
    unit.process["args"] = ["sleep", "100"]
    unit.write()
    words = unit.command("create", "--bundle", str(unit.bundle), unit.id)
    for delay in (0.3, 0.6, 0.9, 1.2):
        null = subprocess.DEVNULL
        creator = subprocess.Popen(words, stdin=null, stdout=null, stderr=null)
        time.sleep(delay)
        creator.kill()
        creator.wait()
        unit.ok("delete", "--force", unit.id)
        unit.nothing_left()


def test_a_failed_create_leaves_nothing(unit: Unit) -> None:
    unit.process["args"] = ["/no/such/program"]
    unit.write()
    unit.fails("run", "--bundle", str(unit.bundle), unit.id)
    unit.nothing_left()


def test_without_a_bus(unit: Unit) -> None:
    """Root's way when there is no bus is systemd's own socket; when that is not there either, a sentence."""
    hide = "mount -t tmpfs none /run/dbus && "
    unit.process["args"] = ["true"]
    unit.write()
    run = unit.command("run", "--bundle", str(unit.bundle), unit.id)
    direct = ["unshare", "-m", "sh", "-c", hide + 'exec "$@"', "sh", *run]
    assert subprocess.run(direct, capture_output=True, text=True, check=False).returncode == 0
    hide += "mount -t tmpfs none /run/systemd && "
    none = ["unshare", "-m", "sh", "-c", hide + 'exec "$@"', "sh", *run]
    done = subprocess.run(none, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the system's systemd cannot be reached (/run/dbus/system_bus_socket: no such file" in done.stderr


def test_the_host_says_whose_systemd(unit: Unit) -> None:
    assert probe().systemd == ""
    unit.process["args"] = ["true"]
    unit.write()
    assert '"systemd": "system"' in unit.ok("plan", "--show-host", "--bundle", str(unit.bundle))
    assert "start_unit(" in unit.ok("plan", "--bundle", str(unit.bundle))


def test_processor_time_bites(unit: Unit) -> None:
    unit.linux["resources"] = {"cpu": {"quota": 5000, "period": 50000}}
    unit.start()
    unit("exec", unit.id, "busybox", "timeout", "1", "sh", "-c", "while :; do :; done")
    counted = dict(line.split() for line in unit.file("cpu" if not V2 else "", "cpu.stat").splitlines())
    assert int(counted["nr_throttled"]) > 2, counted
    if V2:
        # what has been handed out already may be used later: 5 ms for each processor
        most = 5000 * (int(counted["nr_periods"]) + 2) + 10_000 * (os.cpu_count() or 1)
        assert int(counted["usage_usec"]) < most, counted


@pytest.mark.skipif(not V2, reason="who may write to cgroups is said for v2 only")
def test_a_systemd_in_the_container_may_use_its_cgroup(unit: Unit) -> None:
    """What the kernel names as delegatable belongs to root of the container's user namespace."""
    unit.namespace("user")
    unit.namespace("cgroup")
    ids = [{"containerID": 0, "hostID": 300000, "size": 65536}]
    unit.linux["uidMappings"] = unit.linux["gidMappings"] = ids
    unit.config["mounts"] = [one for one in unit.config["mounts"] if one["destination"] != "/sys/fs/cgroup"]
    unit.mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime")
    for path in (unit.folder, *unit.folder.parents):
        if path.owner() == "root" and path.is_relative_to("/tmp/pytest-of-root"):
            path.chmod(0o755)
    unit.start("mkdir /sys/fs/cgroup/own && echo 1 >/sys/fs/cgroup/own/cgroup.procs; sleep 100")
    cgroup = Path("/sys/fs/cgroup/pyoci.slice/pyoci-test.slice", unit.unit)
    until(lambda: (cgroup / "own/cgroup.procs").read_text() if (cgroup / "own").exists() else "", "it moves itself")
    for name in Path("/sys/kernel/cgroup/delegate").read_text().split():
        if (cgroup / name).exists():
            assert (cgroup / name).stat().st_uid == 300000, name
    assert (cgroup.stat().st_uid, (cgroup / "pids.max").stat().st_uid) == (300000, 0)


def test_a_unit_that_failed_is_reset(unit: Unit) -> None:
    """Also one of somebody else's that nobody uses: it has the name, and systemd keeps it until it is told."""
    words = ["systemd-run", "--scope", "--quiet", f"--unit={unit.unit}", "-p", "CollectMode=inactive"]
    subprocess.run([*words, "-p", "RuntimeMaxSec=1", "sleep", "60"], check=False)
    until(lambda: show(unit.unit, "ActiveState")["ActiveState"] == "failed", "the unit fails")
    properties = {"RuntimeMaxSec": "6", "TimeoutStopSec": "1", "CollectMode": "'inactive'"}
    unit.config["annotations"] = {f"org.systemd.property.{name}": text for name, text in properties.items()}
    unit.start()
    until(lambda: unit.status() == "stopped", "systemd ends the container")
    until(lambda: show(unit.unit, "ActiveState")["ActiveState"] == "failed")
    unit.ok("delete", unit.id)
    unit.nothing_left()


def test_the_same_again_after_running_out_of_memory(unit: Unit) -> None:
    """Its unit has just failed, and is there at once for the next one."""
    unit.linux["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    unit.process["args"] = ["sh", "-c", "x=x; while :; do x=$x$x; done"]
    unit.write()
    for _ in range(2):
        done = unit("run", "--bundle", str(unit.bundle), unit.id)
        assert done.returncode == 128 + signal.SIGKILL, done
    unit.config["annotations"] = {"org.systemd.property.CollectMode": "'inactive'"}
    unit.write()
    for _ in range(2):
        done = unit("run", "--bundle", str(unit.bundle), unit.id)
        assert done.returncode == 128 + signal.SIGKILL, done
    unit.nothing_left()


@pytest.mark.parametrize("written", ["a/b:c:d", "x.service:p:n", "a--b.slice:p:n", "s.slice:p"])
def test_a_name_that_is_none(unit: Unit, written: str) -> None:
    unit.path = written
    unit.write()
    assert "/linux/cgroupsPath: " in unit.fails("create", "--bundle", str(unit.bundle), unit.id)
