"""A container that shares the runtime's mount namespace: its mounts are there, and gone with it, however it ends.

All of it in a mount namespace of the test's own whose mounts are shared with a second one, as systemd has it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import LIMIT, Box, box, needed, until  # noqa: F401 - a fixture

pytestmark = needed


class Shared:
    """`box` in a mount namespace where all is shared, and a second namespace that is its peer."""

    def __init__(self, box: Box) -> None:  # noqa: F811
        self.box = box
        self.first = self.hold(["unshare", "-m", "--propagation", "private"], "mount --make-rshared /")
        self.enter = ["nsenter", f"--mount=/proc/{self.first}/ns/mnt"]
        self.second = self.hold([*self.enter, "unshare", "-m", "--propagation", "unchanged"], ":")
        plain = box.command
        box.command = lambda *args: [*self.enter, *plain(*args)]  # type: ignore[method-assign]
        box.without("mount")
        self.before = {pid: self.mounts(pid) for pid in (self.first, self.second)}

    def hold(self, unshare: list[str], script: str) -> int:
        ready = self.box.folder / f"ready{len(self.box.others)}"
        child = subprocess.Popen([*unshare, "sh", "-c", f"{script}; touch {ready}; exec sleep 1000"])
        self.box.others.append(child)
        until(ready.exists)
        return child.pid

    def mounts(self, pid: int) -> list[str]:
        """Mount points in the process's namespace."""
        return sorted(line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines())

    def inside(self) -> list[str]:
        """Mount points in the container's root, seen from outside."""
        root = str(self.box.rootfs)
        return [point.removeprefix(root) or "/" for point in self.mounts(self.first) if point.startswith(root)]

    def clean(self) -> None:
        """All is mounted as before, in both namespaces, and nothing was left in the image's /dev."""
        for pid, before in self.before.items():
            assert self.mounts(pid) == before
        assert os.listdir(self.box.rootfs / "dev") == []


@pytest.fixture
def shared(box: Box) -> Iterator[Shared]:  # noqa: F811
    plain = box.command
    made = Shared(box)
    yield made
    for id in box.ids:
        box("delete", "--force", id)
    made.clean()
    box.command = plain  # type: ignore[method-assign]


def test_it_has_its_mounts_in_the_runtimes_namespace(shared: Shared) -> None:
    pid = shared.box.start()
    assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink(f"/proc/{shared.first}/ns/mnt")
    assert {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/sys"} <= set(shared.inside())
    script = "echo > /dev/null; head -c 1 /dev/zero | wc -c; cat /proc/1/comm"
    assert shared.box.exec("sh", "-c", script) == "1\nsleep\n"
    # a masked and a read-only path of the default configuration
    script = "cat /proc/keys; (echo > /proc/sys/kernel/hostname) 2>/dev/null || echo no"
    assert shared.box.exec("sh", "-c", script) == "no\n"
    # what is mounted in it is nobody else's: only the root itself was put on a shared mount
    second = [point for point in shared.mounts(shared.second) if point.startswith(str(shared.box.rootfs))]
    assert second == [str(shared.box.rootfs)]
    shared.box.ok("kill", shared.box.id, "KILL")
    until(lambda: shared.box.status() == "stopped")
    assert "/proc" in shared.inside()
    shared.box.ok("delete", shared.box.id)
    shared.clean()


def test_every_namespace_is_the_runtimes(shared: Shared) -> None:
    """What runtime-tools' linux_ns_itype asks for."""
    shared.box.linux["namespaces"] = []
    shared.box.config.pop("hostname")
    pid = shared.box.start()
    for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/{shared.first}/ns/{kind}"), kind
    shared.box.ok("delete", "--force", shared.box.id)
    shared.clean()


def test_a_terminal_is_taken_down_too(shared: Shared) -> None:
    """Its console is a mount."""
    mounts = shared.box.config["mounts"]
    shared.box.config["mounts"] = [entry for entry in mounts if entry["destination"] == "/dev/pts"]
    (shared.box.rootfs / "dev/pts").mkdir()
    for name in ("maskedPaths", "readonlyPaths"):
        shared.box.linux.pop(name, None)
    shared.box.process["terminal"] = True
    shared.box.run("tty; test -c /dev/console")
    # its devices are the image's, because nothing was mounted on /dev
    for path in (shared.box.rootfs / "dev").iterdir():
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def test_a_root_behind_a_link(shared: Shared) -> None:
    (shared.box.bundle / "link").symlink_to("rootfs")
    shared.box.config["root"]["path"] = "link"
    shared.box.start()
    assert "/proc" in shared.inside()
    shared.box.ok("delete", "--force", shared.box.id)
    shared.clean()


def test_run_takes_them_down(shared: Shared) -> None:
    assert shared.box.run("cat /proc/self/comm").strip() == "cat"
    shared.clean()


def test_a_read_only_root(shared: Shared) -> None:
    shared.box.config["root"]["readonly"] = True
    shared.box.config["mounts"] = []
    for name in ("maskedPaths", "readonlyPaths"):
        shared.box.linux.pop(name, None)
    assert shared.box.run("touch /x 2>/dev/null || echo refused") == "refused\n"
    (shared.box.rootfs / "x").touch()
    for name in os.listdir(shared.box.rootfs / "dev"):
        (shared.box.rootfs / "dev" / name).unlink()


def test_mounts_on_top_of_it_go_with_it(shared: Shared) -> None:
    """Mounted by somebody else, in the root and over it, while the container runs."""
    shared.box.start()
    for place in (shared.box.rootfs / "tmp", shared.box.rootfs):
        subprocess.run([*shared.enter, "mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    shared.box.ok("delete", "--force", shared.box.id)
    shared.clean()


@pytest.mark.parametrize("value", ["", "shared", "slave", "private", "unbindable"])
def test_a_root_that_was_a_mount_before_still_is(shared: Shared, value: str) -> None:
    if value:
        shared.box.linux["rootfsPropagation"] = value
    root = str(shared.box.rootfs)
    for words in (("--bind", root, root), ("--make-private", root), ("--make-shared", root)):
        subprocess.run([*shared.enter, "mount", *words], check=True)
    shared.before = {pid: shared.mounts(pid) for pid in shared.before}
    shared.box.start()
    shared.box.ok("delete", "--force", shared.box.id)
    shared.clean()


def test_a_root_that_would_be_lost(shared: Shared) -> None:
    """The kernel takes such a mount away with whatever is unmounted on top of it."""
    root = str(shared.box.rootfs)
    subprocess.run([*shared.enter, "mount", "--bind", root, root], check=True)
    shared.before = {pid: shared.mounts(pid) for pid in shared.before}
    assert "/root/path: " in (error := shared.box.refused()) and "mount --make-private" in error
    shared.clean()


def test_two_in_one_root(shared: Shared) -> None:
    """Created one after the other, deleted in either order."""
    shared.box.start()
    other = shared.box.new_id()
    shared.box.create(id=other)
    shared.box.ok("delete", "--force", other)
    assert shared.box.exec("cat", "/proc/1/comm") == "sleep\n"
    shared.box.ok("delete", "--force", shared.box.id)
    shared.clean()


@pytest.mark.parametrize("change", ["mount", "program", "hook"])
def test_a_create_that_fails(shared: Shared, change: str) -> None:
    if change == "mount":
        shared.box.mount("/b", "tmpfs", "tmpfs", "nonsense=1")
    if change == "hook":
        shared.box.config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}
    shared.box.refused_with(["nothing"] if change == "program" else ["true"])
    shared.clean()


def test_everybodys_root_is_not_mounted_on(shared: Shared) -> None:
    shared.box.config["root"] = {"path": "/", "readonly": True}
    shared.box.config["mounts"] = []
    for name in ("maskedPaths", "readonlyPaths"):
        shared.box.linux.pop(name, None)
    assert "/root/path: / is everybody's root" in shared.box.refused_with(["/bin/true"])


@pytest.mark.parametrize("delay", [step / 2000 for step in range(0, 60, 3)])
def test_killed_at_any_moment(shared: Shared, delay: float) -> None:
    """The runtime alone is killed; what it started may go on for a moment."""
    shared.box.process["args"] = ["sleep", "100"]
    shared.box.write()
    words = shared.box.command("create", "--bundle", str(shared.box.bundle), shared.box.id)
    more: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    child = subprocess.Popen(words, **more)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait(LIMIT)
    shared.box.ok("delete", "--force", shared.box.id)
    time.sleep(0.02)  # for what a process that was not known could still do
    for pid, before in shared.before.items():
        assert shared.mounts(pid) == before


def test_killed_while_all_is_mounted(shared: Shared) -> None:
    """While its hook runs, everything is there; init waits, and is ended by delete."""
    ready = shared.box.folder / "hook-runs"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {ready}; exec sleep 3"]}
    shared.box.config["hooks"] = {"createRuntime": [hook]}
    shared.box.write()
    more: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    child = subprocess.Popen(shared.box.command("create", "--bundle", str(shared.box.bundle), shared.box.id), **more)
    until(ready.exists)
    child.kill()
    child.wait()
    assert "/proc" in shared.inside()
    shared.box.ok("delete", "--force", shared.box.id)
    shared.clean()


def test_from_another_namespace(shared: Shared) -> None:
    """Its mounts cannot be taken down from there: said, and not forgotten."""
    shared.box.start()
    command = shared.box.command("delete", "--force", shared.box.id)[len(shared.enter) :]
    words = ["nsenter", f"--mount=/proc/{shared.second}/ns/mnt", *command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode and "the container's mounts are in another mount namespace" in done.stderr
    shared.box.ok("delete", "--force", shared.box.id)
    shared.clean()
