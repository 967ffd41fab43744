"""events: what a container uses, beside what the kernel and runc say, and the moments when memory runs out.

These tests suit any layout of cgroups; tests/test_vm.py runs them under v2.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from containers import CGROUPS, Box, box, needed, until  # noqa: F401 - a fixture

from pyoci import resctrl_stats
from pyoci.cgroup import oom
from pyoci.cgroup.stats import block_io_table, io_stat, numbers, stats
from pyoci.commands.events import seconds
from pyoci.errors import UsageError

pytestmark = needed
V2 = (CGROUPS / "cgroup.controllers").exists()
MB = 1 << 20
# for ever in user mode: a test that is a builtin of the shell makes no system call
SPIN = "while [ a = a ]; do :; done"


def data(box: Box) -> dict[str, Any]:  # noqa: F811
    """The answer of --stats."""
    text = box.ok("events", "--stats", box.id)
    assert text.startswith(f'{{"type":"stats","id":"{box.id}","data":{{"cpu":{{"usage":{{')
    assert text.endswith("}\n") and text.count("\n") == 1 and ": " not in text
    found: dict[str, Any] = json.loads(text)["data"]
    return found


def group(box: Box, controller: str) -> Path:  # noqa: F811
    """The directory of the container's cgroup, as the state has it."""
    paths: dict[str, str] = json.loads((box.states / box.id / "state.json").read_text())["cgroup_paths"]
    return Path(paths.get(controller, paths.get("", "")))


def test_processor_time(box: Box) -> None:  # noqa: F811
    # so little that it is held back even where others leave it nearly nothing
    box.linux["resources"]["cpu"] = {"quota": 2000, "period": 50000}
    box.start(SPIN)

    def counted() -> bool:
        """Of user and kernel the kernel knows what it has seen at its ticks, later than the total."""
        shown = data(box)["cpu"]
        usage = shown["usage"]
        seen = usage["user"] + usage["kernel"] > 0 and (V2 or sum(usage["percpu_user"]) > 0)
        return bool(seen and shown["throttling"].get("throttledTime", 0) > 1_000_000)

    until(counted)
    kernel = group(box, "cpuacct") / ("cpu.stat" if V2 else "cpuacct.usage")

    def used() -> int:
        text = kernel.read_text()
        return int(text.split()[1]) * 1000 if V2 else int(text)

    before, shown, after = used(), data(box)["cpu"], used()
    assert before <= shown["usage"]["total"] <= after
    assert shown["usage"]["user"] + shown["usage"]["kernel"] > 0
    assert shown["throttling"]["periods"] >= shown["throttling"]["throttledPeriods"]
    assert shown["throttling"]["throttledTime"] > 1_000_000
    if V2:
        assert shown["psi"]["some"].keys() == {"avg10", "avg60", "avg300", "total"}
        assert shown["psi"]["full"]["total"] > 0
    else:
        assert len(shown["usage"]["percpu"]) == len(shown["usage"]["percpu_user"]) == os.cpu_count()
        assert sum(shown["usage"]["percpu_user"]) > 0


def test_memory_and_processes(box: Box) -> None:  # noqa: F811
    box.linux["resources"] |= {"memory": {"limit": 64 * MB, "swap": 96 * MB}, "pids": {"limit": 7}}
    box.start("x=$(head -c 20000000 /dev/zero | tr '\\0' x); while :; do sleep 100; done")
    until(lambda: data(box)["memory"]["usage"]["usage"] > 20_000_000 and data(box)["pids"]["current"] == 2)
    shown = data(box)
    memory, raw = shown["memory"], shown["memory"]["raw"]
    assert memory["usage"]["limit"] == 64 * MB
    assert memory["usage"]["max"] >= memory["usage"]["usage"]
    if memory["swap"]["limit"]:  # a kernel without swap accounting says nothing
        assert memory["swap"]["limit"] == 96 * MB
        assert memory["swap"]["usage"] >= memory["usage"]["usage"]
    assert raw["anon" if V2 else "total_rss"] > 20_000_000
    assert list(raw) == sorted(raw)
    assert memory.get("cache", 0) == raw["file" if V2 else "cache"]
    assert shown["pids"] == {"current": 2, "limit": 7}


def test_what_a_limit_refused_is_counted(box: Box) -> None:  # noqa: F811
    box.linux["resources"]["memory"] = {"limit": 20 * MB}
    box.start("while :; do sleep 0.05; done")
    before = data(box)["memory"]["usage"]["failcnt"]
    box.exec("sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count=40 2>/dev/null")
    assert data(box)["memory"]["usage"]["failcnt"] > before


def test_block_io(box: Box) -> None:  # noqa: F811
    box.start("while :; do sleep 0.05; done")
    box.exec("sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count=3 conv=fsync 2>/dev/null")
    kernel = group(box, "blkio") / ("io.stat" if V2 else "blkio.throttle.io_service_bytes_recursive")
    text = kernel.read_text()
    if ("wbytes=" if V2 else "Write ") not in text:
        pytest.skip("this file system has no device that the kernel counts")
    tables = data(box)["blkio"]
    for name, least in (("ioServiceBytesRecursive", 3 * MB), ("ioServicedRecursive", 1)):
        written = sum(entry.get("value", 0) for entry in tables[name] if entry["op"] == "Write")
        assert written >= least
        for entry in tables[name]:
            assert f"{entry.get('major', 0)}:{entry.get('minor', 0)} " in text


def test_huge_pages(box: Box) -> None:  # noqa: F811
    box.start()
    sizes = {path.name.split(".")[1] for path in group(box, "hugetlb").glob("hugetlb.*.rsvd.*")}
    assert data(box)["hugetlb"] == {size: {"failcnt": 0} for size in sizes}


def names(value: object, at: str = "") -> list[str]:
    """Every place in a document, in its order."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in [f"{at}/{name}", *names(item, f"{at}/{name}")]]
    return []


@pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed")
def test_the_names_are_those_of_runc(box: Box) -> None:  # noqa: F811
    """All of its names, in its order; more only where its version knows less, or what is 0 is left out."""
    box.linux["resources"] |= {"memory": {"limit": 64 * MB}, "pids": {"limit": 9}}
    box.start(SPIN)
    until(lambda: data(box)["cpu"]["usage"]["user"] > 0)
    ours = {"id": box.id, "data": data(box)}
    words = ["runc", "--root", str(box.folder / "runc")]
    other = box.new_id()
    box.write(other)
    null = subprocess.DEVNULL
    bundle = str(box.bundle)
    subprocess.run([*words, "run", "-d", "-b", bundle, other], stdin=null, stdout=null, stderr=null, check=True)
    try:
        time.sleep(0.1)
        done = subprocess.run([*words, "events", "--stats", other], capture_output=True, text=True, check=True)
    finally:
        subprocess.run([*words, "delete", "--force", other], check=True)
    theirs = names(json.loads(done.stdout)["data"])
    found = names(ours["data"])
    optional = ("/memory/cache", "/memory/usage/max", "/psi", "/hugetlb/", "/blkio/io", "/throttling/")
    assert [name for name in theirs if name not in found and not any(part in name for part in optional)] == []
    assert [name for name in found if name not in theirs and not any(part in name for part in optional)] == []
    assert [name for name in found if name in theirs] == [name for name in theirs if name in found]


class Follower:
    """`events` in the background, and its lines."""

    def __init__(self, box: Box, *flags: str) -> None:  # noqa: F811
        words = box.command("events", *flags, box.id)
        self.child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        box.others.append(self.child)
        # the watch is there when it sleeps in poll(2)
        until(lambda: b"poll" in Path(f"/proc/{self.child.pid}/wchan").read_bytes())

    def line(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        assert select.select([self.child.stdout], [], [], 20)[0], "no event came"
        found: dict[str, Any] = json.loads(self.child.stdout.readline())
        return found

    def some(self) -> list[dict[str, Any]]:
        """One event, and what follows soon."""
        assert self.child.stdout is not None
        source = self.child.stdout.fileno()
        text = os.read(source, 1 << 16)
        while select.select([source], [], [], 0.3)[0] and (more := os.read(source, 1 << 16)):
            text += more
        return [json.loads(line) for line in text.splitlines()]

    def rest(self) -> list[dict[str, Any]]:
        """What comes until it ends, by itself and well."""
        out, error = self.child.communicate(timeout=20)
        assert (self.child.returncode, error) == (0, "")
        return [json.loads(line) for line in out.splitlines()]


def eats(box: Box) -> None:  # noqa: F811
    """A container whose further processes get killed for want of memory, but not its first."""
    box.linux["resources"]["memory"] = {"limit": 20 * MB, "swap": 20 * MB}
    box.start("while :; do sleep 0.05; done")


# more than the limit, in the memory of the shell itself
EAT = "x=$(head -c 40000000 /dev/zero | tr '\\0' x); echo survived"


def test_statistics_come_at_intervals_until_the_end(box: Box) -> None:  # noqa: F811
    box.start()
    follower = Follower(box, "--interval", "30ms")
    for _ in range(3):
        assert follower.line()["type"] == "stats"
    box.ok("kill", box.id, "KILL")
    assert {event["type"] for event in follower.rest()} <= {"stats"}


def test_memory_that_runs_out_is_told(box: Box) -> None:  # noqa: F811
    eats(box)
    follower = Follower(box, "--interval", "1h")
    for _ in range(2):
        # while the one it kills still holds its memory, the kernel may take another: not the container's first process
        done = box("exec", box.id, "sh", "-c", f"echo 1000 >/proc/self/oom_score_adj; {EAT}")
        assert (done.returncode, done.stdout) == (137, ""), done.stderr
        # v1 tells it of the shell's child as well, when that is killed first
        told = follower.some()
        assert told and all(event == {"type": "oom", "id": box.id} for event in told)
    box.ok("kill", box.id, "KILL")
    assert follower.rest() == []


def test_the_death_of_the_first_process_for_want_of_memory_is_told(box: Box) -> None:  # noqa: F811
    box.linux["resources"]["memory"] = {"limit": 20 * MB, "swap": 20 * MB}
    fifo = box.rootfs / "tmp" / "go"
    os.mkfifo(fifo)
    box.start(f"cat /tmp/go; {EAT}")
    follower = Follower(box, "--interval", "1h")
    fifo.write_text("now\n")
    events = follower.rest()
    assert events and all(event == {"type": "oom", "id": box.id} for event in events)


def test_it_ends_when_the_container_is_deleted_or_nobody_reads(box: Box) -> None:  # noqa: F811
    box.start()
    deleted, left = Follower(box), Follower(box)
    assert left.child.stdout is not None and left.child.stderr is not None
    left.child.stdout.close()
    assert left.child.wait(20) == 0
    left.child.stderr.close()
    box.ok("delete", "--force", box.id)
    assert deleted.rest() == []


def test_created_and_paused_containers_have_statistics(box: Box) -> None:  # noqa: F811
    box.create("sleep 100")
    assert data(box)["pids"]["current"] == 1
    box.ok("start", box.id)
    box.ok("pause", box.id)
    assert data(box)["pids"]["current"] == 1
    box.ok("resume", box.id)


def test_mistakes(box: Box) -> None:  # noqa: F811
    assert "container does not exist" in box.fails("events", "nobody")
    box.start("exit 0")
    until(lambda: box.status() == "stopped")
    for flags in ([], ["--stats"]):
        assert f"container with id {box.id} is not running" in box.fails("events", *flags, box.id)
    assert "duration interval must be greater than 0" in box.fails("events", "--interval", "0s", box.id)
    assert "invalid value" in box.fails("events", "--interval", "5", box.id)
    assert "exactly 1 argument" in box.fails("events")


@pytest.mark.parametrize(
    ("text", "value"),
    [("5s", 5), ("100ms", 0.1), ("1h2m3.5s", 3723.5), ("2µs", 2e-6), (".5s", 0.5), ("-1s", -1), ("0", 0)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1.2.3s", ".s", "1s2", "-", "nan", "--1s", "9" * 400 + "h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="invalid value"):
        seconds(text)


def test_tables_of_block_io() -> None:
    assert block_io_table("8:0 Read 4096\n8:0 Write 0\n0:3 Sync 1\nTotal 4097\n") == [
        {"major": 8, "op": "Read", "value": 4096},
        {"major": 8, "op": "Write"},
        {"minor": 3, "op": "Sync", "value": 1},
    ]
    assert block_io_table("8:16 77\n") == [{"major": 8, "minor": 16, "value": 77}]
    text = "7:0 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=9\n9:1 \n"
    byte = [{"major": 8, "op": op, "value": value} for op, value in (("Read", 1), ("Write", 2), ("Discard", 5))]
    times = [{"major": 8, "op": op, "value": value} for op, value in (("Read", 3), ("Write", 4), ("Discard", 6))]
    assert [entry for table, entry in io_stat(text) if table == "ioServiceBytesRecursive"] == byte
    assert [entry for table, entry in io_stat(text) if table == "ioServicedRecursive"] == times


def test_lists_of_processors() -> None:
    assert (numbers("0-2,5\n"), numbers("\n"), numbers("7")) == ([0, 1, 2, 5], [], [7])


def test_every_table_of_v1(tmp_path: Path) -> None:
    """A kernel with CFQ, or with BFQ and its debugging, has more tables than this machine."""
    (tmp_path / "blkio.bfq.io_serviced_recursive").write_text("Total 0\n")
    (tmp_path / "blkio.io_serviced_recursive").write_text("8:0 Read 1\nTotal 1\n")
    (tmp_path / "blkio.throttle.io_serviced_recursive").write_text("8:0 Read 9\nTotal 9\n")
    for number, name in enumerate(("io_service_bytes", "io_queued", "io_service_time", "io_wait_time", "io_merged")):
        (tmp_path / f"blkio.bfq.{name}_recursive").write_text(f"8:0 Read {number + 2}\n")
    (tmp_path / "blkio.bfq.time_recursive").write_text("8:0 50\n")
    (tmp_path / "blkio.sectors_recursive").write_text("8:0 60\n")
    shown = stats({"blkio": str(tmp_path)})["blkio"]
    assert {name: [entry["value"] for entry in table] for name, table in shown.items()} == {
        "ioServiceBytesRecursive": [2], "ioServicedRecursive": [1], "ioQueueRecursive": [3],
        "ioServiceTimeRecursive": [4], "ioWaitTimeRecursive": [5], "ioMergedRecursive": [6], "ioTimeRecursive": [50],
        "sectorsRecursive": [60],
    }  # fmt: skip


def test_v1_counts_huge_pages(tmp_path: Path) -> None:
    for name, value in (("usage_in_bytes", 1), ("rsvd.usage_in_bytes", 4 * MB), ("rsvd.max_usage_in_bytes", 6 * MB)):
        (tmp_path / f"hugetlb.2MB.{name}").write_text(f"{value}\n")
    (tmp_path / "hugetlb.2MB.rsvd.failcnt").write_text("3\n")
    (tmp_path / "hugetlb.1GB.usage_in_bytes").write_text("0\n")
    shown = stats({"hugetlb": str(tmp_path)})["hugetlb"]
    assert shown == {"1GB": {"failcnt": 0}, "2MB": {"usage": 4 * MB, "max": 6 * MB, "failcnt": 3}}


def test_without_any_cgroup() -> None:
    shown = stats({})
    assert shown["pids"] == {} and shown["memory"]["usage"] == {"limit": 0, "failcnt": 0}
    assert oom.watch({}) is None


def test_intel_rdt(tmp_path: Path) -> None:
    """A tree as the kernel's documentation has it, with a monitoring group in the container's."""
    files = {
        "info/L3/cbm_mask": "7ff", "info/L3/min_cbm_bits": "1", "info/L3/num_closids": "16",
        "info/MB/bandwidth_gran": "10", "info/MB/delay_linear": "1", "info/MB/min_bandwidth": "10",
        "info/MB/num_closids": "8", "schemata": "    MB:0=100;1=100\n    L3:0=7ff;1=7ff",
        "own/schemata": "    MB:0= 20;1=100\n    L3:0=00f;1=7ff",
        "own/mon_groups/c/mon_data/mon_L3_00/llc_occupancy": "4096",
        "own/mon_groups/c/mon_data/mon_L3_00/mbm_total_bytes": "70",
        "own/mon_groups/c/mon_data/mon_L3_00/mbm_local_bytes": "60",
        "own/mon_groups/c/mon_data/mon_L3_01/llc_occupancy": "Unavailable",
        "own/mon_groups/c/mon_data/mon_L3_01/mbm_total_bytes": "7",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    own = str(tmp_path / "own")
    assert resctrl_stats.stats({own: "made", f"{own}/mon_groups/c": "made"}) == {
        "l3_cache_info": {"cbm_mask": "7ff", "min_cbm_bits": 1, "num_closids": 16},
        "l3_cache_schema_root": "L3:0=7ff;1=7ff",
        "l3_cache_schema": "L3:0=00f;1=7ff",
        "mem_bw_info": {"bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 10, "num_closids": 8},
        "mem_bw_schema_root": "MB:0=100;1=100",
        "mem_bw_schema": "MB:0= 20;1=100",
        "mbm_stats": [
            {"mbm_total_bytes": 70, "mbm_local_bytes": 60},
            {"mbm_total_bytes": 7, "mbm_local_bytes": 0},
        ],
        "cmt_stats": [{"llc_occupancy": 4096}, {"llc_occupancy": 0}],
    }
    assert resctrl_stats.stats({}) == {}
