"""Intel RDT on machines without it: a file system with the kernel's rules (resctrl.py), which pyoci is told is resctrl.

What no test here sees is the hardware: that a cache is shared out.  That tasks forked later are in their parent's group
is the kernel's doing (Documentation/filesystems/resctrl.rst).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Images, images, works  # noqa: F401 - a fixture
from containers import LIMIT, Box, box, needed, until  # noqa: F401 - a fixture

pytestmark = [*needed, pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="a kernel without FUSE")]
FULL = "    L3:0=7ff;1=7ff\n    MB:0=100;1=100\n"


class Rdt:
    """The file system, in a mount namespace of its own, where pyoci runs."""

    def __init__(self, box: Box, groups: int = 4) -> None:  # noqa: F811
        self.box = box
        self.top = box.folder / "resctrl"
        self.top.mkdir()
        script = str(Path(__file__).with_name("resctrl.py"))
        words = ["unshare", "-m", "--propagation", "private", sys.executable, script, str(self.top), str(groups)]
        self.server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        box.others.append(self.server)
        assert self.server.stdout is not None
        with self.server.stdout as said:
            assert said.readline() == "mounted\n"
        self.enter = ["nsenter", f"--mount=/proc/{self.server.pid}/ns/mnt"]
        # FUSE has its own name in mountinfo: a process is shown one where this is resctrl
        shown = Path(f"/proc/{self.server.pid}/mountinfo").read_text()
        (box.folder / "mountinfo").write_text(shown.replace(" - fuse resctrl ", " - resctrl resctrl "))
        told = f'mount --bind {box.folder}/mountinfo /proc/$$/mountinfo; exec "$@"'
        plain = box.command
        box.command = lambda *args: [*self.enter, "sh", "-c", told, "sh", *plain(*args)]  # type: ignore[method-assign]

    def sh(self, script: str, status: int = 0) -> str:
        """What a shell prints whose directory is the file system."""
        words = [*self.enter, "sh", "-c", f"cd {self.top} && {script}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == status, (script, done)
        return done.stdout

    def groups(self) -> set[str]:
        """Names of all groups, MON groups with the one above."""
        found = self.sh("find . -name tasks").splitlines()
        return {line.removeprefix("./").removesuffix("tasks").rstrip("/").replace("mon_groups/", "") for line in found}

    def asked(self, **value: Any) -> None:
        """/linux/intelRdt"""
        self.box.linux["intelRdt"] = value


@pytest.fixture
def rdt(box: Box) -> Iterator[Rdt]:  # noqa: F811
    plain = box.command
    made = Rdt(box)
    yield made
    for id in box.ids:
        box("delete", "--force", id)
    box.command = plain  # type: ignore[method-assign]


def test_who_does_not_ask_is_left_alone(rdt: Rdt) -> None:
    """config-linux.md#intelrdt: nothing of resctrl is touched, with it mounted and there."""
    before = rdt.sh("find . -type f | sort | xargs cat")
    rdt.box.start("exec sleep 100")
    assert rdt.groups() == {""}
    assert rdt.sh("cat tasks") == ""
    rdt.box.ok("delete", "--force", rdt.box.id)
    assert rdt.sh("find . -type f | sort | xargs cat") == before


def test_a_group_of_its_own(rdt: Rdt) -> None:
    """An empty object asks for a group with the container's name, which ends with it."""
    rdt.asked()
    pid = rdt.box.start()
    id = rdt.box.id
    assert rdt.groups() == {"", id}
    assert rdt.sh(f"cat {id}/tasks; cat {id}/schemata") == f"{pid}\n{FULL}"
    rdt.box.ok("delete", "--force", id)
    assert rdt.groups() == {""}


def test_the_process_is_in_it_before_its_program_runs(rdt: Rdt) -> None:
    rdt.asked(enableMonitoring=True)
    rdt.box.create()
    pid, id = rdt.box.pid(), rdt.box.id
    assert rdt.sh(f"cat {id}/tasks {id}/mon_groups/{id}/tasks") == f"{pid}\n{pid}\n"


def test_schemata_are_written_last(rdt: Rdt) -> None:
    rdt.asked(l3CacheSchema="L3:0=f;1=f", memBwSchema="MB:0=20;1=30", schemata=["L3:1=ff", "MB:1=70"])
    rdt.box.start()
    assert rdt.sh(f"cat {rdt.box.id}/schemata") == "    L3:0=f;1=ff\n    MB:0=20;1=70\n"


def test_run_removes_it(rdt: Rdt) -> None:
    rdt.asked(enableMonitoring=True, l3CacheSchema="L3:0=f")
    assert rdt.box.run("echo out") == "out\n"
    assert rdt.groups() == {""}


def test_a_class_that_is_made_and_shared(rdt: Rdt) -> None:
    """The first one makes it, the second must ask for the same, and it stays."""
    rdt.asked(closID="shared", l3CacheSchema="L3:0=f;1=0f", memBwSchema="MB:0=15", enableMonitoring=True)
    first = rdt.box.start()
    rdt.asked(closID="shared", schemata=["L3:0=00F", "MB:0=15"])
    other = rdt.box.new_id()
    rdt.box.create(id=other)
    second = rdt.box.state(other)["pid"]
    assert rdt.sh("cat shared/tasks; cat shared/schemata").splitlines() == [
        *sorted((str(first), str(second)), key=int), "    L3:0=f;1=f", "    MB:0=20;1=100",
    ]  # fmt: skip
    for id in (rdt.box.id, other):
        rdt.box.ok("delete", "--force", id)
    assert rdt.groups() == {"", "shared"}


@pytest.mark.parametrize(
    "value",
    [{"schemata": ["L3:0=f"]}, {"l3CacheSchema": "L3:1=7f"}, {"memBwSchema": "MB:0=50"}, {"schemata": ["L2:0=1"]}],
)
def test_a_class_that_is_there_with_other_schemata(rdt: Rdt, value: dict[str, Any]) -> None:
    rdt.sh("mkdir there; printf 'L3:0=ff\\n' > there/schemata")
    before = rdt.sh("cat there/schemata")
    rdt.asked(closID="there", **value)
    error = rdt.box.refused()
    assert error.startswith("pyoci run failed: /linux/intelRdt/closID: the class of service ")
    assert (rdt.groups(), rdt.sh("cat there/schemata there/tasks")) == ({"", "there"}, before)


def test_a_class_that_is_there(rdt: Rdt) -> None:
    rdt.asked(closID="there")
    assert "/linux/intelRdt/closID: match_resctrl" in (error := rdt.box.refused()) and "must be there before" in error
    rdt.sh("mkdir there; printf 'L3:0=ff\\n' > there/schemata")
    before = rdt.sh("cat there/schemata")
    rdt.box.id = rdt.box.new_id()
    pid = rdt.box.start()
    assert rdt.sh("cat there/tasks there/schemata") == f"{pid}\n{before}"
    rdt.box.ok("delete", "--force", rdt.box.id)
    assert rdt.groups() == {"", "there"}


def test_the_default_class(rdt: Rdt) -> None:
    rdt.asked(closID="/", enableMonitoring=True, schemata=["MB:0=100"])
    pid = rdt.box.start()
    id = rdt.box.id
    assert rdt.sh(f"cat tasks mon_groups/{id}/tasks schemata") == f"{pid}\n{pid}\n{FULL}"
    rdt.box.ok("delete", "--force", id)
    assert rdt.groups() == {""} and rdt.sh("cat schemata") == FULL


def test_a_name_that_is_taken(rdt: Rdt) -> None:
    """The container's own group is nobody else's: not taken over, not removed."""
    rdt.sh(f"mkdir {rdt.box.id}")
    rdt.asked(schemata=["L3:0=f"])
    assert "/linux/intelRdt: mkdir_resctrl(" in (error := rdt.box.refused()) and "file exists" in error
    assert (rdt.groups(), rdt.sh(f"cat {rdt.box.id}/schemata")) == ({"", rdt.box.id}, FULL)


@pytest.mark.parametrize("name", [{}, {"closID": "new"}])
def test_what_the_kernel_refuses_is_said_and_leaves_nothing(rdt: Rdt, name: dict[str, Any]) -> None:
    rdt.asked(**name, l3CacheSchema="L3:0=ff", schemata=["L3:9=1"])
    error = rdt.box.refused()
    assert "/linux/intelRdt/schemata: write_resctrl(" in error and "(kernel: Mask out of range 1)" in error
    assert rdt.groups() == {""}


def test_no_group_is_left(rdt: Rdt) -> None:
    rdt.sh("mkdir a b c d")
    rdt.asked()
    error = rdt.box.refused()
    assert "/linux/intelRdt: mkdir_resctrl(" in error and "(kernel: Out of CLOSIDs)" in error


@pytest.mark.parametrize("name", [{}, {"closID": "new", "schemata": ["L3:0=f"]}])
def test_a_later_failure_leaves_nothing(rdt: Rdt, name: dict[str, Any]) -> None:
    rdt.asked(**name, enableMonitoring=True)
    rdt.box.mount("/b", "bind", str(rdt.box.folder / "nothing"), "bind")
    assert "/mounts/" in rdt.box.refused()
    assert rdt.groups() == {""}


def test_update_changes_its_own_group_only(rdt: Rdt) -> None:
    rdt.asked(schemata=["L3:0=f"])
    rdt.box.start()
    rdt.box.ok("update", "--l3-cache-schema", "L3:0=3f", "--mem-bw-schema", "MB:1=50", rdt.box.id)
    assert rdt.sh(f"cat {rdt.box.id}/schemata") == "    L3:0=3f;1=7ff\n    MB:0=100;1=50\n"
    assert "(kernel: Mask out of range 1)" in rdt.box.fails("update", "--l3-cache-schema", "L3:9=1", rdt.box.id)
    rdt.asked(closID="/")
    other = rdt.box.new_id()
    rdt.box.create(id=other)
    assert "no class of service of its own" in rdt.box.fails("update", "--mem-bw-schema", "MB:0=10", other)
    assert rdt.sh("cat schemata") == FULL


def test_exec_is_in_the_same_groups(rdt: Rdt) -> None:
    rdt.asked(enableMonitoring=True)
    rdt.box.start()
    id, file = rdt.box.id, rdt.box.folder / "pid"
    words = rdt.box.command("exec", "--detach", "--pid-file", str(file), id, "sleep", "100")
    null = subprocess.DEVNULL
    subprocess.run(words, stdin=null, stdout=null, stderr=null, timeout=LIMIT, check=True)
    assert file.read_text() in rdt.sh(f"cat {id}/mon_groups/{id}/tasks").splitlines()


def test_a_create_that_is_killed_is_deleted(rdt: Rdt) -> None:
    """Killed while its hook runs, after the groups were made."""
    rdt.asked(enableMonitoring=True)
    ready = rdt.box.folder / "ready"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {ready}; exec sleep 5"]}
    rdt.box.config["hooks"] = {"createRuntime": [hook]}
    rdt.box.write()
    child = subprocess.Popen(rdt.box.command("create", "--bundle", str(rdt.box.bundle), rdt.box.id))
    until(ready.exists)
    assert rdt.groups() == {"", rdt.box.id, f"{rdt.box.id}/{rdt.box.id}"}
    child.kill()
    child.wait()
    rdt.box.ok("delete", "--force", rdt.box.id)
    assert rdt.groups() == {""}


def test_without_resctrl(box: Box) -> None:  # noqa: F811
    if " - resctrl " in Path("/proc/self/mountinfo").read_text():
        pytest.skip("this machine has resctrl")
    box.linux["intelRdt"] = {}
    assert "/linux/intelRdt: no resctrl file system is mounted" in box.refused()


def test_events_show_the_group(rdt: Rdt) -> None:
    rdt.asked(l3CacheSchema="L3:0=f;1=ff")
    rdt.box.start()
    shown = json.loads(rdt.box.ok("events", "--stats", rdt.box.id))["data"]["intel_rdt"]
    assert shown["l3_cache_schema_root"] == "L3:0=7ff;1=7ff"
    assert shown["l3_cache_schema"].replace("00f", "f").replace("0ff", "ff") == "L3:0=f;1=ff"
    assert shown["mem_bw_info"] == {"bandwidth_gran": 10}


@works
def test_restored_into_its_groups(rdt: Rdt, images: Images) -> None:  # noqa: F811
    """They are made with their schemata before CRIU is, as they are for create, and end with the container."""
    rdt.asked(enableMonitoring=True, schemata=["L3:0=f"])
    rdt.box.start()
    id = rdt.box.id
    images.checkpoint()
    assert rdt.groups() == {""}
    images.restore()
    assert rdt.groups() == {"", id, f"{id}/{id}"}
    assert rdt.sh(f"cat {id}/schemata").startswith("    L3:0=f;")
    # the file system of these tests does not know of forks: it is CRIU that was put there, and all that it makes is
    # born there (Documentation/filesystems/resctrl.rst)
    (criu,) = rdt.sh(f"cat {id}/tasks").split()
    assert rdt.sh(f"cat {id}/mon_groups/{id}/tasks").split() == [criu]
    rdt.box.ok("delete", "--force", id)
    assert rdt.groups() == {""}


@works
def test_a_restore_that_fails_removes_them(rdt: Rdt, images: Images) -> None:  # noqa: F811
    rdt.asked()
    rdt.box.start()
    images.checkpoint()
    (images.images / "pstree.img").write_bytes(b"")
    assert "criu restore failed: " in images.refused()
    assert rdt.groups() == {""}
