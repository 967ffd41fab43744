"""update: limits that change while a container runs, read back from the kernel, and seen to bite."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from containers import CGROUPS, Box, box, needed, until  # noqa: F401 - a fixture

from pyoci.commands.update import bytes_of
from pyoci.errors import PyociError

V1 = (CGROUPS / "memory" / "memory.limit_in_bytes").parent.exists()
pytestmark = [*needed, pytest.mark.skipif(not V1, reason="v1's files; v2's are in tests/test_cgroup_v2.py")]
MB = 1 << 20


@pytest.fixture
def running(box: Box) -> Box:  # noqa: F811
    box.start("while :; do sleep 0.05; done")
    return box


def file(box: Box, controller: str, name: str) -> str:  # noqa: F811
    """A file of the container's cgroup, wherever the container was put."""
    for line in Path(f"/proc/{box.pid()}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            for base in (CGROUPS / controller, CGROUPS / names):
                if (base / path[1:] / name).exists():
                    return (base / path[1:] / name).read_text().strip()
    raise AssertionError(controller)


def memory(box: Box) -> int:  # noqa: F811
    return int(file(box, "memory", "memory.limit_in_bytes"))


def test_memory(running: Box) -> None:
    running.ok("update", "--memory", "64M", running.id)
    assert memory(running) == 64 * MB
    # flags after the id, as people write them; up and down
    running.ok("update", running.id, "--memory=128MiB", "--memory-reservation", "16m")
    assert memory(running) == 128 * MB
    assert file(running, "memory", "memory.soft_limit_in_bytes") == str(16 * MB)
    running.ok("update", "--memory", "33554432", running.id)
    assert memory(running) == 32 * MB


def test_memory_and_swap_together(running: Box) -> None:
    """A new sum alone, beside the limit that there is."""
    together = "memory.memsw.limit_in_bytes"
    refused = running.fails("update", "--memory-swap", "96M", running.id)
    assert "/linux/resources/memory/swap" in refused and "needs a memory limit" in refused
    running.ok("update", "--memory", "64M", running.id)
    running.ok("update", "--memory-swap", "96M", running.id)
    assert (memory(running), file(running, "memory", together)) == (64 * MB, str(96 * MB))
    assert "must not be less than the memory limit" in running.fails("update", "--memory-swap", "32M", running.id)
    running.ok("update", "--memory-swap", "-1", running.id)
    assert memory(running) == 64 * MB and int(file(running, "memory", together)) > 1 << 60


def test_memory_bites(running: Box) -> None:
    eat = ["sh", "-c", "head -c 60000000 /dev/zero | tail -c 60000000 | wc -c"]
    assert running.exec(*eat).strip() == "60000000"
    running.ok("update", "--memory", "20M", running.id)
    done = running("exec", running.id, *eat)
    assert done.stdout.strip() != "60000000"


def test_processes_bite(running: Box) -> None:
    running.ok("update", "--pids-limit", "3", running.id)
    assert file(running, "pids", "pids.max") == "3"
    forks = "for i in 1 2 3 4 5; do sleep 5 & done; wait"
    assert "fork" in running("exec", running.id, "sh", "-c", forks).stderr
    running.ok("update", "--pids-limit", "-1", running.id)
    assert file(running, "pids", "pids.max") == "max"


def test_no_further_process(box: Box) -> None:  # noqa: F811
    box.start("exec sleep 100")
    box.ok("update", "--pids-limit", "0", box.id)
    assert file(box, "pids", "pids.max") == "1"


def test_processors(running: Box) -> None:
    running.ok("update", "--cpu-period", "50000", "--cpu-quota", "10000", "--cpu-share", "512", running.id)
    assert file(running, "cpu", "cpu.cfs_period_us") == "50000"
    assert file(running, "cpu", "cpu.cfs_quota_us") == "10000"
    assert file(running, "cpu", "cpu.shares") == "512"
    running.ok("update", "--cpuset-cpus", "0", running.id)
    assert file(running, "cpuset", "cpuset.cpus") == "0"
    status = Path(f"/proc/{running.pid()}/status").read_text()
    assert status.partition("Cpus_allowed_list:")[2].split()[0] == "0"


@pytest.mark.parametrize("how", ["file", "dash", "equals", "fifo"])
def test_resources_of_engines(running: Box, how: str) -> None:
    """Part of a document, from wherever it comes; names are matched as Go matches them; the flags have no say."""
    text = json.dumps({"Memory": {"limit": 48 * MB}, "CPU": {"Shares": 300}, "pids": None, "devices": None, "x": 1})
    path = running.folder / "resources.json"
    words: dict[str, tuple[str, ...]] = {
        "file": ("--resources", str(path)),
        "dash": ("--resources", "-"),
        "equals": ("--resources=-",),
        "fifo": ("-r", str(path)),
    }
    if how == "fifo":
        os.mkfifo(path)
        writer = subprocess.Popen(["sh", "-c", f"cat >{path}"], stdin=subprocess.PIPE, text=True)
        assert writer.stdin is not None
        writer.stdin.write(text)
        writer.stdin.close()
    elif how == "file":
        path.write_text(text)
    running.ok("update", *words[how], "--memory", "1G", running.id, input=text if how in ("dash", "equals") else "")
    if how == "fifo":
        writer.wait()
    assert memory(running) == 48 * MB
    assert file(running, "cpu", "cpu.shares") == "300"


def test_nothing_asked_is_nothing_done(running: Box) -> None:
    before = memory(running), file(running, "pids", "pids.max")
    running.ok("update", running.id)
    running.ok("update", "--resources", "-", running.id, input="{}")
    assert (memory(running), file(running, "pids", "pids.max")) == before


def test_a_paused_and_a_created_container(box: Box) -> None:  # noqa: F811
    box.create("sleep 100")
    box.ok("update", "--memory", "64M", box.id)
    assert memory(box) == 64 * MB
    box.ok("start", box.id)
    box.ok("pause", box.id)
    box.ok("update", "--memory", "32M", box.id)
    assert memory(box) == 32 * MB
    box.ok("resume", box.id)


def test_a_stopped_container(box: Box) -> None:  # noqa: F811
    box.start("exit 0")
    until(lambda: box.status() == "stopped")
    assert "container not running" in box.fails("update", "--memory", "64M", box.id)
    assert "does not exist" in box.fails("update", "--memory", "64M", "nobody")


@pytest.mark.parametrize(
    ("words", "text", "parts"),
    [
        (("--memory", "lots"), "", ["--memory", "'lots'", "not a size"]),
        (("--pids-limit", "many"), "", ["--pids-limit", "'many'", "not a number"]),
        (("--resources", "/nowhere"), "", ["--resources /nowhere", "no such file or directory"]),
        (("--resources", "-"), "{", ["not JSON"]),
        (("--resources", "-"), "[]", ["/linux/resources", "must be an object"]),
        (("--resources", "-"), '{"memory": {"limit": "1"}}', ["/linux/resources/memory/limit", "must be an integer"]),
        (("--resources", "-"), '{"cpu": {"idle": 7}}', ["/linux/resources/cpu/idle"]),
        (("--resources", "-"), '{"rdma": {"x": {}}}', ["/linux/resources/rdma/x"]),
        (("--cpuset-cpus", "900"), "", ["/linux/resources/cpu/cpus", "cpuset.cpus", "900"]),
        (("--l3-cache-schema", "L3:0=1"), "", ["Intel RDT", "no class of service of its own"]),
    ],
)
def test_mistakes(running: Box, words: tuple[str, ...], text: str, parts: list[str]) -> None:
    before = memory(running)
    error = running.fails("update", *words, running.id, input=text)
    for part in parts:
        assert part in error, error
    assert memory(running) == before


def test_a_limit_below_what_is_used(running: Box) -> None:
    eat = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); sleep 50"
    null = subprocess.DEVNULL
    words = running.command("exec", "--detach", running.id, "sh", "-c", eat)
    subprocess.run(words, stdin=null, stdout=null, stderr=null, check=True)
    until(lambda: int(file(running, "memory", "memory.usage_in_bytes")) > 30_000_000)
    text = json.dumps({"memory": {"limit": 4 * MB, "checkBeforeUpdate": True}})
    error = running.fails("update", "--resources", "-", running.id, input=text)
    assert "/linux/resources/memory/checkBeforeUpdate" in error and "in use" in error
    assert memory(running) != 4 * MB


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("1", 1), ("-1", -1), ("512m", 512 * MB), ("512M", 512 * MB), ("512MB", 512 * MB),
        ("1.5GiB", 1536 * MB), ("2k", 2048), ("2kb", 2048), ("3t", 3 << 40), ("7b", 7), (" 8 ", 8),
    ],
)  # fmt: skip
def test_sizes(text: str, value: int) -> None:
    assert bytes_of(text, "memory") == value


@pytest.mark.parametrize("text", ["", "m", "-2", "1x", "1e3", "nan", "0x10", "1 000", "99999999999999999999"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(PyociError, match="--memory"):
        bytes_of(text, "memory")


def test_net_cls(box: Box) -> None:  # noqa: F811
    """classID and priorities go to v1's controllers; where these are not there it is said."""
    mounts = Path("/proc/self/mountinfo").read_text()
    box.linux["resources"] = {"network": {"classID": 0x10001, "priorities": [{"name": "lo", "priority": 3}]}}
    if "net_cls" in mounts:
        pytest.skip("net_cls is mounted here, and the test is of its absence")
    error = box.refused()
    assert "/linux/resources/network/classID" in error and "net_cls" in error


def test_types() -> None:
    """What is planned for update is what is planned for create."""
    from pyoci.plan.cgroups import plan_update
    from pyoci.spec.load import load_resources

    data: dict[str, Any] = {"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 100}}}
    resources = load_resources(json.dumps(data).encode(), "test")
    (op,) = plan_update(resources, {"rdma": "/r"}, ())
    assert op.args == (b"/r/rdma.max", b"mlx5_1 hca_handle=3 hca_object=100")
    (op,) = plan_update(resources, {"": "/r"}, ("rdma",))
    assert op.args[0] == b"/r/rdma.max"
