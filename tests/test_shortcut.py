"""start and delete without an interpreter: when the launcher does it itself, and when it leaves it to Python."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import HEADLESS, HERE, Box, needed, until

from pyoci import shortcut
from pyoci.state import State

pytestmark = needed


class Launched(Box):
    """Containers made with the launcher.  `python(False)` takes the interpreter away, which ends with 77."""

    def __init__(self, folder: Path, launcher: Path) -> None:
        super().__init__(folder)
        self.prefix = folder / "env"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        package = self.prefix / "lib" / version / "site-packages" / "pyoci"
        shutil.copytree(HERE, package, ignore=shutil.ignore_patterns("*.archive"))
        (self.prefix / "bin").mkdir()
        shutil.copy(launcher, self.prefix / "bin" / "pyoci")
        none = folder / "none"
        none.mkdir()
        (none / version).write_text("#!/bin/sh\nexit 77\n")
        (none / version).chmod(0o755)
        self.python(True)

    def python(self, there: bool) -> None:
        base = Path(getattr(sys, "_base_executable", sys.executable)).resolve().parent
        (self.prefix / "pyvenv.cfg").write_text(f"home = {base if there else self.folder / 'none'}\n")

    def command(self, *args: str) -> list[str]:
        return [str(self.prefix / "bin" / "pyoci"), "--root", str(self.states), *args]

    def quick(self, *args: str) -> int:
        """The status of a command without an interpreter."""
        self.python(False)
        done = subprocess.run(self.command(*args), capture_output=True, timeout=30, check=False)
        self.python(True)
        assert (done.stdout, done.stderr) == (b"", b"")
        return done.returncode

    def dead(self) -> None:
        """Wait until the container has ended."""
        until(lambda: self.status() == "stopped")


NO_PYTHON = 77


@pytest.fixture
def quick(tmp_path: Path, build: Callable[..., Path]) -> Iterator[Launched]:
    old = os.umask(0o022)
    made = Launched(tmp_path, build(platform.machine()) / "pyoci")
    # under a lax umask nothing is kept: neither archives nor snapshots, which would do without an interpreter as well
    os.umask(0)
    try:
        yield made
    finally:
        made.python(True)
        made.close()
        os.umask(old)


def test_a_life_without_an_interpreter(quick: Launched) -> None:
    quick.create("echo ran >/tmp/out")
    assert quick.status() == "created"
    assert quick.quick("start", quick.id) == 0
    assert quick.output() == "ran\n"
    quick.dead()
    assert quick.quick("delete", quick.id) == 0
    quick.gone()


@pytest.mark.parametrize(
    "words",
    [
        ("--log", "{}/log", "--log-format", "json"),
        ("-log={}/log", "--log-format=text"),
        ("--systemd-cgroup", "--log="),
    ],
)
def test_flags_of_engines(quick: Launched, words: tuple[str, ...]) -> None:
    quick.create("exit 0")
    words = tuple(word.format(quick.folder) for word in words)
    assert quick.quick(*words, "start", quick.id) == 0
    quick.dead()
    assert quick.quick(*words, "delete", "--force", quick.id) == 0
    quick.gone()
    log = quick.folder / "log"
    assert not log.exists() or log.read_text() == ""


def test_a_forced_delete_of_nothing(quick: Launched) -> None:
    quick.create("exit 0")
    assert quick.quick("delete", "--force", "nobody") == 0
    assert quick.quick("delete", "nobody") == NO_PYTHON


@pytest.mark.parametrize(
    "words",
    [
        ("--debug", "start"), ("--log-format", "xml", "start"), ("--log", "/dev/null/x", "start"), ("--version",),
        ("--root",), ("start", "--help"), ("start", "--"), ("start", "-f"), ("start", "a", "b"), ("state",),
        ("--systemd-cgroup=true", "start"), ("start", ".."), ("start", "a/b"), ("start", "-a"), ("start", "x" * 256),
        ("delete", "--all"), ("delete",), ("--root", "/nonexistent", "start"), ("--log", "syslog:x", "start"),
        ("--log", "journald:x", "start"), ("--log", "file:x", "start"),
    ],
)  # fmt: skip
def test_what_is_not_usual_is_pythons(quick: Launched, words: tuple[str, ...]) -> None:
    quick.create("exit 0")
    tail = (quick.id,) if words[-1] in ("start", "--", "-f", "--help", "--all", "state") else ()
    assert quick.quick("start") == NO_PYTHON
    assert quick.quick(*words, *tail) == NO_PYTHON
    assert quick.status() == "created"
    # a log that is no file leaves none where the caller is
    assert [word for word in words if ":" in word and Path(word).exists()] == []


def test_hooks_are_pythons(quick: Launched) -> None:
    for kind in ("startContainer", "poststart", "poststop"):
        quick.config["hooks"] = {kind: [{"path": "/bin/true"}]}
        id = quick.new_id()
        quick.create("exit 0", id=id)
        assert not (quick.states / id / shortcut.FILE).exists()
        assert quick.quick("start", id) == NO_PYTHON
        quick.ok("delete", "--force", id)


def test_readiness_is_pythons(quick: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.create("exit 0")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nowhere")
    assert quick.quick("start", quick.id) == NO_PYTHON
    assert quick.status() == "created"


def test_a_program_that_cannot_be_executed_is_explained(quick: Launched) -> None:
    """The launcher has connected and cannot do so again: the connection goes to Python with init's words in it."""
    quick.create()
    (quick.rootfs / "bin/busybox").unlink()
    error = quick.fails("start", quick.id)
    assert "/process/args" in error and "execve" in error and "no such file or directory" in error
    assert quick.status() == "stopped"
    assert quick.quick("delete", quick.id) == 0
    quick.gone()


def test_a_running_container_stays(quick: Launched) -> None:
    quick.start()
    assert quick.quick("delete", quick.id) == NO_PYTHON
    assert quick.quick("start", quick.id) == NO_PYTHON
    assert "cannot delete container" in quick.fails("delete", quick.id)
    assert "cannot start an already running container" in quick.fails("start", quick.id)
    assert quick.status() == "running"
    quick.ok("delete", "--force", quick.id)
    quick.gone()


def test_a_paused_container_does_not_start(quick: Launched) -> None:
    quick.create("exit 0")
    quick.ok("pause", quick.id)
    assert quick.quick("start", quick.id) == NO_PYTHON
    assert "paused" in quick.fails("start", quick.id)
    quick.ok("resume", quick.id)
    assert quick.quick("start", quick.id) == 0


def test_processes_that_outlive_init_are_pythons(quick: Launched) -> None:
    quick.without("pid")
    quick.create("sleep 100 & exit 0")
    assert quick.quick("start", quick.id) == 0
    quick.dead()
    assert quick.quick("delete", quick.id) == NO_PYTHON
    assert (quick.states / quick.id / "state.json").exists()
    quick.ok("delete", quick.id)
    quick.gone()


def test_the_pid_of_somebody_else(quick: Launched) -> None:
    """A pid that was given again, with another start time: the container has ended."""
    quick.create("exit 0")
    quick.ok("start", quick.id)
    quick.dead()
    for name in ("state.json", shortcut.FILE):
        path = quick.states / quick.id / name
        if name == "state.json":
            path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": os.getpid(), "pid_start": 1}))
        else:
            path.write_bytes(path.read_bytes().replace(path.read_bytes().split(b"\0")[1], b"%d" % os.getpid(), 1))
    assert quick.quick("delete", quick.id) == 0
    quick.gone()


def test_a_first_thread_that_ends_alone(quick: Launched) -> None:
    """The kernel shows a zombie, and other threads run: the container has not ended."""
    quick.compile("headless", HEADLESS)
    quick.process["args"] = ["/bin/headless"]
    quick.write()
    words = quick.command("--cgroup-manager", "disabled", "create", "--bundle", str(quick.bundle), quick.id)
    null = subprocess.DEVNULL
    assert subprocess.run(words, stdin=null, stdout=null, stderr=null, timeout=30, check=False).returncode == 0
    assert quick.quick("start", quick.id) == 0
    pid = quick.pid()
    until(lambda: b") Z " in Path(f"/proc/{pid}/stat").read_bytes())
    assert quick.quick("delete", quick.id) == NO_PYTHON
    assert quick.status() == "running"
    quick.ok("kill", quick.id, "KILL")
    quick.dead()
    assert quick.quick("delete", quick.id) == 0
    quick.gone()


def test_a_held_lock_is_waited_for(quick: Launched) -> None:
    quick.create("exit 0")
    fd = os.open(quick.states / quick.id, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert quick.quick("start", quick.id) == NO_PYTHON
    threading.Timer(0.3, os.close, (fd,)).start()
    # not "creating" any more, so it waits
    quick.ok("start", quick.id)


@pytest.mark.parametrize("damage", ["none", "empty", "cut", "zeros", "other", "link", "long"])
def test_a_damaged_file_is_not_used(quick: Launched, damage: str) -> None:
    quick.create("exit 0")
    path = quick.states / quick.id / shortcut.FILE
    data = path.read_bytes()
    path.unlink()
    if damage == "link":
        (quick.folder / "elsewhere").write_bytes(data)
        path.symlink_to(quick.folder / "elsewhere")
    elif damage != "none":
        path.write_bytes(
            {
                "empty": b"",
                "cut": data[: len(data) // 2],
                "zeros": bytes(len(data)),
                "other": data.replace(b"shortcut 1", b"shortcut 2"),
                "long": data[:-5] + b"=/nowhere\0" * 3000 + data[-5:],
            }[damage]
        )
    assert quick.quick("start", quick.id) == NO_PYTHON
    quick.ok("start", quick.id)
    quick.dead()
    assert quick.quick("delete", quick.id) == NO_PYTHON
    quick.ok("delete", quick.id)
    quick.gone()


def test_without_a_state_there_is_no_container(quick: Launched) -> None:
    quick.create("exit 0")
    state = quick.states / quick.id / "state.json"
    state.rename(state.with_name("kept"))
    assert quick.quick("start", quick.id) == NO_PYTHON
    assert "container does not exist" in quick.fails("start", quick.id)
    state.with_name("kept").rename(state)
    assert quick.quick("start", quick.id) == 0


def test_without_procfs_nothing_is_known_to_have_ended(quick: Launched) -> None:
    """No file /proc/PID/stat says that there is no such process only where there is a procfs."""
    quick.process["args"] = ["sleep", "100"]
    quick.write()
    words = quick.command("--cgroup-manager", "disabled", "create", "--bundle", str(quick.bundle), quick.id)
    null = subprocess.DEVNULL
    assert subprocess.run(words, stdin=null, stdout=null, stderr=null, timeout=30, check=False).returncode == 0
    quick.ok("start", quick.id)
    hidden = ["unshare", "--mount", "sh", "-c", 'umount -l /proc; exec "$@"', "sh"]
    done = subprocess.run([*hidden, *quick.command("delete", quick.id)], capture_output=True, check=False, timeout=30)
    assert done.returncode == 1 and b"is /proc mounted?" in done.stderr
    assert quick.status() == "running"


def test_states_that_others_can_write_are_not_acted_upon(quick: Launched) -> None:
    quick.create("exit 0")
    for path in (quick.states, quick.states / quick.id):
        mode = path.stat().st_mode
        path.chmod(0o777)
        assert quick.quick("start", quick.id) == NO_PYTHON
        assert "writable by others" in quick.fails("start", quick.id)
        path.chmod(mode)
    assert quick.status() == "created"


def test_starts_at_once(quick: Launched) -> None:
    """One of many wins, the others are told."""
    quick.create("sleep 100")
    many = [
        subprocess.Popen(quick.command("start", quick.id), stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    ends = [(child.communicate(timeout=60)[1], child.returncode) for child in many]
    assert [status for _, status in ends].count(0) == 1
    assert all("cannot start an already running container" in error for error, status in ends if status)


def test_deletes_at_once(quick: Launched) -> None:
    quick.create("exit 0")
    quick.ok("start", quick.id)
    quick.dead()
    many = [subprocess.Popen(quick.command("delete", quick.id), stderr=subprocess.PIPE, text=True) for _ in range(8)]
    ends = [(child.communicate(timeout=60)[1], child.returncode) for child in many]
    assert [status for _, status in ends].count(0) == 1
    assert all("does not exist" in error for error, status in ends if status)
    quick.gone()


def test_deletes_killed_at_any_moment(quick: Launched) -> None:
    for pause in (0.0, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016):
        id = quick.new_id()
        quick.create("exit 0", id=id)
        quick.ok("start", id)
        until(lambda id=id: quick.state(id)["status"] == "stopped")  # type: ignore[misc]
        child = subprocess.Popen(quick.command("delete", id))
        time.sleep(pause)
        child.kill()
        child.wait()
        quick.ok("delete", "--force", id)
        quick.gone(id)


def test_what_a_state_may_say() -> None:
    """A new part of the state is Python's to take down until somebody says that there is nothing to do."""
    state = State("c", "/b", "/r", pid=5, pid_start=7, cgroup_paths={"cpu": "/a/c", "freezer": "/a/d"})
    state.cgroup_created = ["/a", "/a/c", "/a/d"]
    expected = [b"pyoci shortcut 1", b"5", b"7", b"/a/d/freezer.state", b"=/a/c", b"=/a/d", b"+/a", b"\nend", b""]
    assert shortcut.content(state).split(b"\0") == expected
    assert set(State.__slots__) >= shortcut.NOTHING_TO_DO
    for name in set(State.__slots__) - shortcut.NOTHING_TO_DO:
        old = getattr(state, name)
        setattr(state, name, {"something": ["to do"]})
        assert shortcut.content(state) == b"", name
        setattr(state, name, old)
    state.cgroup_paths = {"": "/sys/fs/cgroup/c"}
    assert shortcut.content(state).split(b"\0")[3] == b"/sys/fs/cgroup/c/cgroup.freeze"
    state.listen = False
    assert shortcut.content(state) == b""


def test_a_unit_that_goes_by_itself(tmp_path: Path) -> None:
    """systemd's own directory is looked for first; a unit that stays is Python's to stop."""
    state = State("a", "/b", "/b/r", pid=7, unit="system p-a.scope", listen=True, cgroup_paths={"": f"{tmp_path}/u"})
    assert f"\0-{tmp_path}/u\0".encode() in shortcut.content(state)
    state.annotations = {"org.systemd.property.CollectMode": "'inactive'"}
    assert shortcut.content(state) == b""
    state.annotations = {}
    state.unit = "system a.slice"
    assert shortcut.content(state) == b""


def test_delete_leaves_a_unit_that_is_there_to_python(quick: Launched) -> None:
    quick.create("exit 0")
    assert quick.quick("start", quick.id) == 0
    quick.dead()
    units = quick.folder / "unit"
    units.mkdir()
    path = quick.states / quick.id / "shortcut"
    head, sep, rest = path.read_bytes().partition(b"\0=")
    path.write_bytes(head + f"\0-{units}".encode() + sep + rest)
    assert quick.quick("delete", quick.id) == NO_PYTHON
    units.rmdir()
    assert quick.quick("delete", quick.id) == 0
    quick.gone()
