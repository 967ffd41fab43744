"""Limits that bite: cgroups of real containers on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from containers import CGROUPS, LIMIT, Box, box, cgroups_of, needed, until  # noqa: F401 - box is a fixture

pytestmark = needed


def v1(controller: str) -> Path:
    """Where the v1 hierarchy of `controller` is mounted."""
    path = CGROUPS / controller
    if not (path / "cgroup.procs").exists():
        pytest.skip(f"no v1 controller {controller!r} here; v2 is tested in a virtual machine")
    return path


def limit(box: Box, **resources: object) -> None:
    box.linux.setdefault("resources", {}).update(resources)


def test_container_is_in_all_of_its_cgroups(box: Box) -> None:
    pid = box.start("exec sleep 100")
    # a hierarchy that somebody has mounted elsewhere is none of ours
    mounted = {option for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup" in line
               for option in ("" if " - cgroup2 " in line else line).rpartition(" ")[2].split(",")}  # fmt: skip
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    ours = [line for line in lines if {*line[1].removeprefix("name=").split(",")} <= mounted | {"systemd"}]
    assert len(ours) > 3
    for line in ours:
        assert line[2].endswith(f"/{box.id}"), line
    assert cgroups_of(box.id)
    box.ok("delete", "--force", box.id)
    assert cgroups_of(box.id) == []


def test_memory_limit_kills(box: Box) -> None:
    path = v1("memory")
    limit(box, memory={"limit": 16 << 20, "swap": 16 << 20})
    (box.rootfs / "tmp/hungry").write_text("a=x; while :; do a=$a$a; done")
    box.start("sh /tmp/hungry; echo killed $? > /tmp/out; exec sleep 100")
    assert box.output() == "killed 137\n"
    assert (path / box.id / "memory.limit_in_bytes").read_text() == f"{16 << 20}\n"
    assert "oom_kill 1" in (path / box.id / "memory.oom_control").read_text()


def test_memory_limit_that_is_too_low_to_start(box: Box) -> None:
    v1("memory")
    limit(box, memory={"limit": 4096})
    assert "/linux/resources/memory/limit" in box.refused()


def test_processes_are_counted(box: Box) -> None:
    v1("pids")
    limit(box, pids={"limit": 5})
    script = "for n in 1 2 3 4 5 6 7 8; do sleep 5 & done 2>/tmp/err; echo done > /tmp/out; exec sleep 100"
    box.start(script)
    until(lambda: "can't fork" in (box.rootfs / "tmp/err").read_text() if (box.rootfs / "tmp/err").exists() else "")
    assert (v1("pids") / box.id / "pids.max").read_text() == "5\n"
    assert int((v1("pids") / box.id / "pids.current").read_text()) <= 5


def test_cpuset(box: Box) -> None:
    v1("cpuset")
    cpu = min(os.sched_getaffinity(0))
    limit(box, cpu={"cpus": str(cpu), "mems": "0"})
    assert f"Cpus_allowed_list:\t{cpu}\n" in box.run("grep Cpus_allowed_list /proc/self/status")


def test_cpu_time(box: Box) -> None:
    path = v1("cpu")
    if not (path / "cpu.cfs_quota_us").exists():
        pytest.skip("this kernel has no CFS bandwidth control")
    limit(box, cpu={"quota": 20000, "period": 100000, "shares": 512})
    box.start("while :; do :; done")
    folder = path / box.id
    assert (folder / "cpu.cfs_quota_us").read_text() == "20000\n"
    assert (folder / "cpu.shares").read_text() == "512\n"
    until(lambda: int((folder / "cpu.stat").read_text().split()[3]) > 0, "throttled")


def test_devices_are_denied(box: Box) -> None:
    v1("devices")
    box.capabilities("CAP_MKNOD")
    limit(box, devices=[{"allow": False, "access": "rwm"}])
    script = (
        "head -c 1 /dev/zero | wc -c; mknod /tmp/kmsg c 1 11 && echo made; head -c 1 /tmp/kmsg 2>&1; "
        "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk 2>&1; mknod /tmp/null c 1 3 && echo x > /tmp/null && echo fine"
    )
    shown = box.run(script)
    # making nodes is allowed by the specification's defaults of every runtime, opening them is not
    assert shown.splitlines()[0] == "1"
    assert shown.count("Operation not permitted") >= 2
    assert shown.splitlines()[-1] == "fine"


def test_devices_that_are_allowed(box: Box) -> None:
    v1("devices")
    box.capabilities("CAP_SYSLOG")
    rule = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    limit(box, devices=[{"allow": False, "access": "rwm"}, rule])
    box.linux["devices"] = [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]
    assert box.run("dd if=/dev/kmsg bs=8192 count=1 2>/dev/null | wc -c") != "0\n"
    assert "Operation not permitted" in box.run("(echo x > /dev/kmsg) 2>&1; exit 0")


def test_everything_is_allowed_without_a_list(box: Box) -> None:
    """The control: with all devices allowed the same node can be read."""
    v1("devices")
    box.capabilities("CAP_SYSLOG")
    limit(box, devices=[{"allow": True, "access": "rwm"}])
    box.linux["devices"] = [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]
    assert box.run("dd if=/dev/kmsg bs=8192 count=1 2>/dev/null | wc -c") != "0\n"


def test_pause_stops_everything(box: Box) -> None:
    box.start("while :; do echo x >> /tmp/beat; sleep 0.01; done")
    beat = box.rootfs / "tmp/beat"
    until(beat.exists)
    box.ok("pause", box.id)
    size = beat.stat().st_size
    subprocess.run(["sleep", "0.1"], check=True)
    assert beat.stat().st_size == size
    box.ok("resume", box.id)
    until(lambda: beat.stat().st_size > size)


def test_memory_kill_at_create_says_so(box: Box) -> None:
    """A create, too, whose limit kills init before it could say a word."""
    v1("memory")
    limit(box, memory={"limit": 8192})
    assert "memory" in box.refused(command="create")


def test_limit_that_cannot_be_is_refused(box: Box) -> None:
    limit(box, hugepageLimits=[{"pageSize": "3MB", "limit": 1}])
    assert "/linux/resources/hugepageLimits" in box.refused()
    box.linux["resources"].pop("hugepageLimits")
    limit(box, memory={"limit": 10 << 20, "swap": 1 << 20})
    assert "/linux/resources/memory" in box.refused()


def test_cgroups_path_of_several_parts(box: Box) -> None:
    """Parents that we made go as well; one that was there stays."""
    top = v1("pids") / box.id
    box.write()
    box.linux["cgroupsPath"] = f"/{box.id}/a/b"
    box.process["args"] = ["sleep", "100"]
    (box.bundle / "config.json").write_text(json.dumps(box.config))
    null = subprocess.DEVNULL
    words = box.command("run", "-d", "--bundle", str(box.bundle), box.id)
    subprocess.run(words, check=True, stdin=null, stdout=null, timeout=LIMIT)
    assert (top / "a/b/cgroup.procs").read_text() == f"{box.pid()}\n"
    box.ok("delete", "--force", box.id)
    assert cgroups_of(box.id) == []


@pytest.mark.parametrize("path", ["absolute", "relative", "none"])
def test_the_same_path_is_the_same_place(box: Box, path: str) -> None:
    """From the hierarchy's top if it is absolute; and the same place each time, or one by the id if there is none."""
    box.without("cgroup")
    box.process["args"] = ["cat", "/proc/self/cgroup"]
    seen = []
    for _ in range(2):
        box.write()
        group = {"absolute": f"/{box.id}/x", "relative": f"{box.id}/x"}.get(path)
        box.linux["cgroupsPath"] = group
        if group is None:
            del box.linux["cgroupsPath"]
        (box.bundle / "config.json").write_text(json.dumps(box.config))
        seen.append(box.ok("run", "--bundle", str(box.bundle), box.id))
        assert cgroups_of(box.id) == []
    assert seen[0] == seen[1]
    (line,) = [line for line in seen[0].splitlines() if ":pids:" in line or line.startswith("0::")][:1]
    found = line.split(":", 2)[2]
    assert found.endswith(box.id if path == "none" else f"/{box.id}/x")
    if path == "absolute":
        assert found == f"/{box.id}/x"
