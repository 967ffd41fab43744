"""checkpoint and restore of real containers: what goes on, what is refused and why."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import COUNTER, Images, count, images, works
from containers import Box, box, needed, processes_of, until

pytestmark = [*needed]
__all__ = ("box", "images")


@works
def test_a_counter_goes_on_counting(box: Box, images: Images) -> None:
    box.start(COUNTER)
    until(lambda: count(box) > 5)
    images.checkpoint()
    box.gone()
    before = count(box)
    time.sleep(0.2)
    assert count(box) == before
    pid_file = box.folder / "pid"
    images.restore("--pid-file", str(pid_file))
    state = box.state()
    assert state["status"] == "running"
    assert pid_file.read_text() == str(state["pid"])
    assert processes_of(box.id)
    until(lambda: count(box) > before + 5)
    assert count(box) < before + 1000
    # and it is a container as any other
    assert box.exec("cat", "/proc/1/comm") == "sh\n"
    box.ok("pause", box.id)
    assert box.status() == "paused"
    box.ok("resume", box.id)
    box.ok("kill", box.id, "KILL")
    until(lambda: box.status() == "stopped")
    box.ok("delete", box.id)
    box.gone()


@works
def test_memory_is_as_it_was(box: Box, images: Images) -> None:
    script = "word=$(head -c 300000 /dev/urandom | od -An -tx1 | tr -d ' \\n'); echo ${#word} > /tmp/size; "
    script = script.replace("od -An -tx1 | tr -d ' \\n'", "tr -dc 'a-z'")
    script += "echo $word > /tmp/before; trap 'echo $word > /tmp/after; echo done > /tmp/out' USR1; "
    script += "while true; do sleep 0.02; done"
    box.start(script)
    until(lambda: (box.rootfs / "tmp/before").exists() and (box.rootfs / "tmp/before").read_text().endswith("\n"))
    images.checkpoint()
    images.restore()
    box.ok("kill", box.id, "USR1")
    assert box.output() == "done\n"
    kept = (box.rootfs / "tmp/before").read_text()
    assert len(kept) > 1000
    assert (box.rootfs / "tmp/after").read_text() == kept


@works
def test_it_may_be_left_running(box: Box, images: Images) -> None:
    # in a file system of its own, which is in the images: what is in others has gone on, and does not fit any more
    pid = box.start(COUNTER.replace("/tmp/", "/dev/shm/"))

    def count(box: Box) -> int:
        return int(box.exec("cat", "/dev/shm/count") or 0)

    until(lambda: count(box) > 2)
    images.checkpoint("--leave-running")
    assert (box.status(), box.pid()) == ("running", pid)
    before = count(box)
    until(lambda: count(box) > before + 3)
    assert sorted(path.name for path in images.work.iterdir()) == ["dump.log", "stats-dump"]
    assert (images.images / "inventory.img").exists()
    box.ok("delete", "--force", box.id)
    images.restore()
    restored = count(box)
    assert restored < 200
    until(lambda: count(box) > restored + 5)


@works
def test_a_paused_container(box: Box, images: Images) -> None:
    """As containerd's `ctr tasks checkpoint` has it."""
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    box.ok("pause", box.id)
    images.checkpoint("--leave-running")
    assert box.status() == "paused"
    images.checkpoint()
    box.gone()
    before = count(box)
    images.restore()
    assert box.status() == "running"
    until(lambda: count(box) > before + 3)


@works
def test_what_it_writes_goes_to_the_new_caller(box: Box, images: Images) -> None:
    """Pipes, as engines have them, are those of restore's caller; in the foreground, its status is the program's."""
    reading, writing = os.pipe()
    script = "trap 'echo caught; exit 7' TERM; i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"
    box.create(script, stdout=writing)
    os.close(writing)
    box.ok("start", box.id)
    first = b""
    while b"\n5\n" not in first:
        first += os.read(reading, 4096)
    images.checkpoint()
    while piece := os.read(reading, 4096):
        first += piece
    os.close(reading)
    last = int(first.split()[-1])
    words = ["restore", "--bundle", str(box.bundle), *images.flags(), box.id]
    log = (box.folder / "restore.err").open("w", encoding="utf-8")
    child = subprocess.Popen(box.command(*words), stdout=subprocess.PIPE, stderr=log, text=True)
    log.close()
    box.others.append(child)
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line.strip(), (box.folder / "restore.err").read_text()
    assert int(line) == last + 1
    # what reaches us is passed on, as run does
    until(lambda: box("state", box.id).returncode == 0 and box.status() == "running")
    child.send_signal(signal.SIGTERM)
    rest, _ = child.communicate(timeout=30)
    assert rest.split()[-1] == "caught"
    assert (child.returncode, (box.folder / "restore.err").read_text()) == (7, "")
    box.gone()


@works
def test_a_terminal(box: Box, images: Images) -> None:
    box.process["terminal"] = True
    path = str(box.folder / "console")

    def terminal() -> tuple[socket.socket, list[int]]:
        listener = socket.socket(socket.AF_UNIX)
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
        listener.listen(1)
        got: list[int] = []

        def take() -> None:
            connection, _ = listener.accept()
            with connection:
                got.extend(socket.recv_fds(connection, 100, 1)[1])

        threading.Thread(target=take, daemon=True).start()
        return listener, got

    listener, first = terminal()
    box.create("stty -echo; echo ready; while read word; do echo got $word; done", "--console-socket", path)
    box.ok("start", box.id)
    until(lambda: first)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(first[0], 100)
    os.write(first[0], b"one\n")
    while b"got one" not in seen:
        seen += os.read(first[0], 100)
    listener.close()
    images.checkpoint()
    os.close(first[0])
    listener, second = terminal()
    images.restore("--console-socket", path)
    until(lambda: second)
    os.write(second[0], b"two\n")
    seen = b""
    while b"got two" not in seen:
        seen += os.read(second[0], 100)
    os.close(second[0])
    listener.close()


@works
def test_namespaces_by_path(box: Box, images: Images) -> None:
    """A network namespace that the engine made is the same one afterwards, or another that the engine says."""
    holder = subprocess.Popen(["unshare", "--net", "--uts", "--ipc", "sh", "-c", "hostname outer; echo; sleep 600"],
                              stdout=subprocess.PIPE)  # fmt: skip
    box.others.append(holder)
    assert holder.stdout is not None
    with holder.stdout as lines:
        lines.readline()
    box.config.pop("hostname", None)
    for kind, name in (("network", "net"), ("uts", "uts"), ("ipc", "ipc")):
        box.namespace(kind, f"/proc/{holder.pid}/ns/{name}")
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    images.checkpoint()
    images.restore()
    pid = box.pid()
    for name in ("net", "uts", "ipc"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/{holder.pid}/ns/{name}")
    assert box.exec("hostname") == "outer\n"


@works
def test_hooks_of_restore(box: Box, images: Images) -> None:
    """prestart and createRuntime when namespaces are there, for a network that is made anew; poststop at the end."""
    log = box.folder / "hooks"

    def hook(kind: str) -> list[dict[str, object]]:
        return [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} $(cat) >> {log}"]}]

    box.config["hooks"] = {kind: hook(kind) for kind in ("prestart", "createRuntime", "poststart", "poststop")}
    box.start(COUNTER)
    images.checkpoint()
    assert [line.split()[0] for line in log.read_text().splitlines()] == [
        "prestart", "createRuntime", "poststart", "poststop"
    ]  # fmt: skip
    created = [json.loads(line.partition(" ")[2])["status"] for line in log.read_text().splitlines()[:2]]
    log.unlink()
    images.restore()
    lines = log.read_text().splitlines()
    # hooks see what they see of create
    assert [json.loads(line.partition(" ")[2])["status"] for line in lines] == created
    assert [line.split()[0] for line in lines] == ["prestart", "createRuntime"]
    assert json.loads(lines[0].partition(" ")[2])["pid"] == box.pid()


@works
def test_a_hook_that_fails_ends_restore(box: Box, images: Images) -> None:
    box.start(COUNTER)
    images.checkpoint()
    box.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no; exit 3"]}]}
    box.write()
    error = box.fails("restore", "--detach", "--bundle", str(box.bundle), *images.flags(), box.id)
    assert "error running createRuntime hook #0" in error and "no" in error
    box.gone()


@works
def test_killed_at_any_moment(box: Box, images: Images) -> None:
    """checkpoint and restore leave what delete --force cleans, wherever they are killed."""
    box.start(COUNTER)
    for after in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        done = box("state", box.id)
        if done.returncode:
            box.start(COUNTER)
        child = subprocess.Popen(box.command("checkpoint", *images.flags(), box.id), stderr=subprocess.DEVNULL)
        time.sleep(after)
        child.kill()
        child.wait()
        time.sleep(0.1)
        box.ok("delete", "--force", box.id)
        box.gone()
        shutil.rmtree(images.images, ignore_errors=True)
    box.start(COUNTER)
    images.checkpoint()
    words = images.words()
    for after in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        child = subprocess.Popen(
            box.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(after)
        child.kill()
        child.wait()
        box.ok("delete", "--force", box.id)
        box.gone()


@works
def test_cgroups_of_others_are_not_copied(box: Box, images: Images) -> None:
    """CRIU takes whole hierarchies in which the container has no cgroup of its own, unless told which ones it has."""
    box.namespace("cgroup")
    box.start(COUNTER)
    inside = box.exec("cat", "/proc/1/cgroup")
    images.checkpoint()
    log = (images.work / "dump.log").read_text(encoding="utf-8", errors="replace")
    found = [line for line in log.splitlines() if "cg: adding cgroup" in line]
    assert [line for line in found if box.id not in line] == []
    images.restore()
    assert box.exec("cat", "/proc/1/cgroup") == inside
    assert box.id not in inside


@works
def test_limits_after_restore(box: Box, images: Images) -> None:
    """They are config.json's, and they bite."""
    box.linux["resources"] = {"pids": {"limit": 20}}
    box.start(COUNTER)
    images.checkpoint()
    images.restore()
    error = box("exec", box.id, "sh", "-c", "for i in $(seq 40); do sleep 5 & done").stderr
    assert "can't fork" in error or "retry: Resource" in error, error


@works
def test_images_that_are_none(box: Box, images: Images) -> None:
    """The reason is CRIU's, with the path of its log; nothing is left."""
    box.write()
    images.images.mkdir()
    words = images.words()
    assert "it has no inventory.img" in box.fails(*words)
    box.gone()
    (images.images / "inventory.img").write_bytes(b"something else altogether")
    error = box.fails(*words)
    assert "criu restore failed: " in error and f"(log file: {images.work}/restore.log)" in error
    assert "magic" in error.lower() or "inventory" in error, error
    box.gone()


def test_what_cannot_be_checkpointed(box: Box, images: Images) -> None:
    assert "does not exist" in box.fails("checkpoint", *images.flags(), box.id)
    box.create()
    error = box.fails("checkpoint", *images.flags(), box.id)
    assert "cannot checkpoint a container that is created" in error
    box.ok("start", box.id)
    error = box.fails("checkpoint", *images.flags(), "--parent-path", "/abs", box.id)
    assert "relative" in error
    assert "must be one of" in box.fails("checkpoint", *images.flags(), "--manage-cgroups-mode", "no", box.id)
    assert "not open" in box.fails("checkpoint", *images.flags(), "--status-fd", "77", box.id)
    for number in ("\u00b2", "9" * 11, "9" * 5000):
        assert "not the number" in box.fails("checkpoint", *images.flags(), "--status-fd", number, box.id)
    assert box.status() == "running"
    box.ok("kill", box.id, "KILL")
    until(lambda: box.status() == "stopped")
    assert "not running" in box.fails("checkpoint", *images.flags(), box.id)


@pytest.fixture
def fake() -> Iterator[Path]:
    """A directory for programs, outside of /tmp, which CRIU does not see."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def test_without_criu(box: Box, images: Images, fake: Path) -> None:
    """A CRIU that does not work here, or none: the reason is said, and the container runs on."""
    box.start(COUNTER)
    (fake / "criu").write_text("#!/bin/sh\necho 'Error (criu/fake.c:1): no such luck' >&2; exit 1\n")
    (fake / "criu").chmod(0o755)
    error = box.fails("checkpoint", *images.flags(), box.id, env={"PATH": str(fake)})
    assert "criu dump failed: no such luck (criu/fake.c:1)" in error
    assert box.status() == "running"
    other = box.new_id()
    box.write(other)
    (images.images / "inventory.img").touch()
    words = ["restore", "--detach", "--bundle", str(box.bundle), *images.flags(), other]
    error = box.fails(*words, env={"PATH": str(fake)})
    assert "criu restore failed: no such luck (criu/fake.c:1)" in error
    box.gone(other)


def test_restore_of_an_id_that_is_taken(box: Box, images: Images) -> None:
    box.start(COUNTER)
    images.images.mkdir()
    (images.images / "inventory.img").touch()
    error = box.fails("restore", "--detach", "--bundle", str(box.bundle), *images.flags(), box.id)
    assert "already exists" in error or "criu: executable" in error
    assert box.status() == "running"
