"""What CRI-O does with a runtime, call by call, through the real conmon: without CRI-O, which no Debian 12 has.

The calls and what is read of their answers are those of CRI-O's runtime_oci.go: conmon makes the container and tells of
it on a pipe; `start`, `state`, `kill`, `update --resources -`, `exec` with conmon, `delete --force` are called beside
it; of `features` stdout and stderr are read as one.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import CGROUPS, COMMAND, INSTALLED, LIMIT, Box, needed, until

pytestmark = [
    *needed,
    pytest.mark.skipif(shutil.which("conmon") is None, reason="conmon is not installed"),
    pytest.mark.skipif(not INSTALLED.exists(), reason="conmon is given one word to call: pyoci installed, ./check"),
]


class Monitored(Box):
    """Containers whose parent is a conmon."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("exits", "persist", "socket"):
            (folder / name).mkdir()
        self.monitors: list[subprocess.Popen[bytes]] = []

    def conmon(self, *more: str) -> tuple[dict[str, Any], str]:
        """Start one; what it tells about the runtime's answer, and the container's or exec's log."""
        log = self.folder / f"log{len(self.monitors)}"
        told, tells = os.pipe()
        waits, go = os.pipe()
        words = [
            "conmon", "-b", str(self.bundle), "-c", self.id, "--exit-dir", str(self.folder / "exits"), "-l", str(log),
            "--log-level", "info", "-n", self.id, "-P", str(self.folder / "conmon.pid"), "-p", str(self.pid_file),
            "--persist-dir", str(self.folder / "persist"), "-r", COMMAND[0], "--runtime-arg", f"--root={self.states}",
            "--socket-dir-path", str(self.folder / "socket"), "-u", self.id, "--sync", *more,
        ]  # fmt: skip
        environment = {"PATH": os.environ["PATH"], "_OCI_SYNCPIPE": str(tells), "_OCI_STARTPIPE": str(waits)}
        null = subprocess.DEVNULL
        self.monitors.append(
            subprocess.Popen(words, env=environment, stdin=null, stdout=null, stderr=null, pass_fds=(tells, waits))
        )
        os.close(tells)
        os.close(waits)
        # CRI-O has moved it into its cgroup by now
        os.write(go, b"\0")
        os.close(go)
        with open(told, "rb", buffering=0) as answers:
            assert select.select([answers], [], [], LIMIT)[0], "conmon says nothing"
            return json.loads(answers.read(4096)), str(log)

    @property
    def pid_file(self) -> Path:
        return self.folder / f"pid{len(self.monitors)}"

    def made(self, script: str) -> int:
        self.process["args"] = ["sh", "-c", script]
        self.write()
        answer, self.log = self.conmon()
        assert answer.get("pid", -1) > 0, answer
        return int(answer["pid"])

    def logged(self, path: str = "") -> list[str]:
        """The text of the log's lines, which are TIME STREAM F TEXT."""
        return [line.split(" ", 3)[3] for line in Path(path or self.log).read_text().splitlines()]

    def close(self) -> None:
        super().close()
        for monitor in self.monitors:
            monitor.wait(LIMIT)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Monitored]:
    made = Monitored(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_the_life_of_a_container(box: Monitored) -> None:
    pid = box.made("echo out; echo err >&2; trap 'exit 9' TERM; while :; do sleep 0.05; done")
    state = box.state()
    # CRI-O reads pid and status, and compares the pid with conmon's
    assert (state["status"], state["pid"], state["id"], state["ociVersion"][:2]) == ("created", pid, box.id, "1.")
    box.ok("start", box.id)
    assert box.status() == "running"
    assert until(lambda: len(box.logged()) == 2 and sorted(box.logged())) == ["err", "out"]
    # StopContainer: the signal by number, then the exit file of conmon
    box.ok("kill", box.id, "15")
    exit_file = box.folder / "exits" / box.id
    until(exit_file.exists)
    assert until(exit_file.read_text) == "9"
    assert box.status() == "stopped"
    box.ok("delete", "--force", box.id)
    box.gone()


def test_errors_are_those_that_are_looked_for(box: Monitored) -> None:
    """Phrases that are compared with upper and lower case, and a create that tells conmon why."""
    box.made("true")
    box.ok("start", box.id)
    until((box.folder / "exits" / box.id).exists)
    assert "container not running" in box.fails("kill", box.id, "9")
    box.ok("delete", "--force", box.id)
    assert "does not exist" in box.fails("state", box.id)
    # to delete what is gone is what CRI-O does after a crash
    box.ok("delete", "--force", box.id)
    box.process["args"] = ["/no/such/program"]
    box.write()
    answer, _ = box.conmon()
    if answer.get("pid", -1) > 0:
        # the program is looked for when it is executed: the answer is start's
        assert "no such file or directory" in box.fails("start", box.id)
        box.ok("delete", "--force", box.id)
    else:
        assert "no such file or directory" in answer["message"]


def test_exec_through_conmon(box: Monitored) -> None:
    """ExecSync: the process in a file, its output in a log, its status on the pipe."""
    box.made("sleep 100")
    box.ok("start", box.id)
    process = {**box.process, "args": ["sh", "-c", "echo inside $$; echo wrong >&2; exit 5"]}
    (box.folder / "process.json").write_text(json.dumps(process))
    answer, log = box.conmon("-e", "--exec-process-spec", str(box.folder / "process.json"))
    # an exec that ends at once may be told with its status in one go
    assert "pid" in answer or "exit_code" in answer, answer
    lines = until(lambda: len(box.logged(log)) == 2 and box.logged(log))
    assert any(line.startswith("inside ") for line in lines)
    assert "wrong" in lines
    box.ok("kill", box.id, "9")


@pytest.mark.skipif(not (CGROUPS / "memory").is_dir(), reason="reads limits in cgroup v1")
def test_update_of_limits_from_a_pipe(box: Monitored) -> None:
    """UpdateContainerResources: `update --resources - ID`, with the kernel showing what was asked for."""
    box.made("sleep 100")
    box.ok("start", box.id)
    resources = {"memory": {"limit": 64 << 20}, "cpu": {"shares": 512, "quota": 50000, "period": 100000}}
    box.ok("update", "--resources", "-", box.id, input=json.dumps(resources))
    own = Path(f"/proc/{box.pid()}/cgroup").read_text()
    memory = next(line.split(":", 2)[2] for line in own.splitlines() if line.split(":")[1] == "memory")
    assert (CGROUPS / "memory" / memory.strip("/") / "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
    cpu = next(line.split(":", 2)[2] for line in own.splitlines() if "cpu" in line.split(":")[1].split(","))
    assert (CGROUPS / "cpu" / cpu.strip("/") / "cpu.cfs_quota_us").read_text() == "50000\n"
    box.ok("kill", box.id, "9")


def test_features_and_version_with_both_streams_in_one(box: Monitored) -> None:
    """Any word on stderr would break the JSON; the version is the first line's."""
    for environment in ({}, {"PATH": "/usr/bin:/bin", "LANG": "de_DE.UTF-8"}):
        done = subprocess.run(
            [COMMAND[0], "features"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=True
        )
        found = json.loads(done.stdout)
        assert "rro" in found["mountOptions"] and found["ociVersionMax"].startswith("1.")
    said = subprocess.check_output([COMMAND[0], "--version"], text=True)
    assert said.splitlines()[0].startswith("pyoci version ")


def test_a_container_that_loses_its_monitor(box: Monitored) -> None:
    """conmon killed: the container goes on or ends, but what is left of it can be deleted."""
    box.made("sleep 100")
    box.ok("start", box.id)
    box.monitors[-1].kill()
    box.monitors[-1].wait(LIMIT)
    time.sleep(0.1)
    box.ok("delete", "--force", box.id)
    box.gone()
