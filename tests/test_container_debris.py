"""A command that is killed at any moment leaves nothing that `delete --force` does not remove."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import CGROUPS, LIMIT, Box, box, cgroups_of, needed, processes_of, until  # noqa: F401 - a fixture

pytestmark = needed
ROUNDS = 20
UNIFIED = next((path for path in (CGROUPS / "unified", CGROUPS) if (path / "cgroup.procs").exists()), None)


@pytest.fixture
def pen(box: Box) -> Iterator[Path]:  # noqa: F811
    """A v2 cgroup that all processes of the runtime are in until they are the container's."""
    if UNIFIED is None:
        pytest.skip("no cgroup v2 hierarchy is mounted: nothing tells whose a lost process is")
    path = UNIFIED / f"{box.id}-pen"
    path.mkdir()
    yield path
    until(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


def killed(box: Box, pen: Path, delay: float, *words: str) -> None:
    """Run pyoci in the pen and kill it, and only it, after `delay` seconds."""
    script = f'echo $$ > {pen}/cgroup.procs; exec "$@"'
    null = subprocess.DEVNULL
    child = subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *box.command(*words)], stdin=null, stdout=null, stderr=null
    )
    words_of = Path(f"/proc/{child.pid}/cmdline")
    until(lambda: not words_of.read_bytes().startswith(b"/bin/sh") or child.poll() is not None)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait(LIMIT)


def clean(box: Box, pen: Path, what: str) -> None:
    done = box("delete", "--force", box.id)
    assert (done.returncode, done.stderr) == (0, ""), what
    until(lambda: not (pen / "cgroup.procs").read_text(), f"processes of ours end ({what})")
    left = (os.listdir(box.states) if box.states.exists() else [], cgroups_of(box.id), processes_of(box.id))
    assert left == ([name for name in left[0] if name.startswith(".")], [], []), what
    assert str(box.folder) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("command", ["create", "run"])
def test_killed_while_creating(box: Box, pen: Path, command: str) -> None:
    box.process["args"] = ["sleep", "100"]
    box.write()
    chance = random.Random(command)
    for _ in range(ROUNDS):
        delay = chance.uniform(0, 0.030)
        killed(box, pen, delay, command, "--bundle", str(box.bundle), box.id)
        clean(box, pen, f"{command} killed after {delay * 1000:.1f} ms")


@pytest.mark.parametrize("command", ["start", "delete"])
def test_killed_later(box: Box, pen: Path, command: str) -> None:
    chance = random.Random(command)
    for _ in range(ROUNDS // 2):
        box.create("exec sleep 100")
        delay = chance.uniform(0, 0.020)
        killed(box, pen, delay, command, box.id)
        clean(box, pen, f"{command} killed after {delay * 1000:.1f} ms")


def test_killed_exec_leaves_a_container_that_works(box: Box, pen: Path) -> None:
    box.start("exec sleep 100")
    chance = random.Random("exec")
    for _ in range(ROUNDS // 2):
        killed(box, pen, chance.uniform(0, 0.020), "exec", box.id, "true")
        assert box.exec("echo", "fine") == "fine\n"
    until(lambda: processes_of(box.id) == [box.pid()])
    clean(box, pen, "exec")


def test_killed_in_a_hook(box: Box, pen: Path) -> None:
    box.config["hooks"] = {"createRuntime": [{"path": "/bin/busybox", "args": ["sleep", "1"]}]}
    box.process["args"] = ["sleep", "100"]
    box.write()
    killed(box, pen, 0.15, "create", "--bundle", str(box.bundle), box.id)
    clean(box, pen, "create killed in a hook")


def test_many_deletes_at_once(box: Box) -> None:
    box.start("exec sleep 100")
    words = box.command("delete", "--force", box.id)
    rivals = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    found = [(rival.communicate(timeout=LIMIT)[1], rival.returncode) for rival in rivals]
    assert found == [("", 0)] * 4
    box.gone()


def test_container_is_deleted_while_run_waits(box: Box) -> None:
    box.process["args"] = ["sleep", "100"]
    box.write()
    run = subprocess.Popen(box.command("run", "--bundle", str(box.bundle), box.id), stdin=subprocess.DEVNULL)
    box.others.append(run)
    until(lambda: (box.states / box.id / "state.json").exists() and box.status() == "running")
    box.ok("delete", "--force", box.id)
    assert run.wait(LIMIT) == 128 + signal.SIGKILL
    box.gone()
