"""$NOTIFY_SOCKET: what a container's program says of its readiness reaches the caller's service manager."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import LIMIT, Box, box, needed, until  # noqa: F401 - a fixture

from pyoci.plan.container import PlanOptions, plan_container
from pyoci.plan.ops import walk

SAY = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
int main(int argc, char **argv)
{
    struct sockaddr_un to = {AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    const char *place = getenv("NOTIFY_SOCKET");
    if (!place)
        return 7;
    strcpy(to.sun_path, place);
    return sendto(fd, argv[1], strlen(argv[1]), 0, (struct sockaddr *)&to, sizeof to) < 0;
}
"""


class Manager:
    """A service manager's end of $NOTIFY_SOCKET."""

    def __init__(self, box: Box, address: str) -> None:  # noqa: F811
        self.box = box
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(10)
        self.environment = {**os.environ, "NOTIFY_SOCKET": address}

    def said(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(10)
        return False

    def popen(self, *args: str, **more: Any) -> subprocess.Popen[str]:
        null = subprocess.DEVNULL
        streams: dict[str, Any] = {"stdin": null, "stdout": null, "stderr": null} | more
        child = subprocess.Popen(self.box.command(*args), text=True, env=self.environment, **streams)
        self.box.others.append(child)
        return child


@pytest.fixture
def manager(box: Box) -> Iterator[Manager]:  # noqa: F811
    box.compile("say", SAY)
    made = Manager(box, str(box.folder / "manager.sock"))
    yield made
    made.socket.close()


class TestContainers:
    pytestmark = needed

    def test_start_returns_when_the_program_is_ready(self, box: Box, manager: Manager) -> None:  # noqa: F811
        box.process["user"] = {"uid": 1000, "gid": 1000}
        (box.rootfs / "tmp").chmod(0o777)
        ready = "while [ ! -e /tmp/go ]; do sleep 0.01; done; say 'MAINPID=1\nSTATUS=here\nREADY=1\nFDSTORE=1'"
        then = "while [ ! -e /tmp/returned ]; do sleep 0.01; done"
        script = f"say 'STATUS=wait'; {ready}; {then}; say 'STATUS=later'; echo $? >/tmp/out; sleep 100"
        box.create(script, env=manager.environment)
        state = box.states / box.id
        assert (state / "notify").is_dir()
        assert not (state / "notify/notify.sock").exists(), "nobody listens before start"
        start = manager.popen("start", box.id)
        assert manager.said() == ["STATUS=wait"]
        assert start.poll() is None
        assert box.status() == "running", "others may look and work meanwhile"
        (box.rootfs / "tmp/go").touch()
        assert manager.said() == ["STATUS=here", "READY=1", f"MAINPID={box.pid()}"]
        assert start.wait(LIMIT) == 0
        assert not (state / "notify/notify.sock").exists()
        (box.rootfs / "tmp/returned").touch()
        assert box.output() == "1\n", "nobody listens after it"
        assert manager.silent()
        box.ok("delete", "--force", box.id)
        box.gone()

    def test_run_detached(self, box: Box, manager: Manager) -> None:  # noqa: F811
        box.process["args"] = ["sh", "-c", "say READY=1; sleep 100"]
        box.write()
        run = manager.popen("run", "--detach", "--bundle", str(box.bundle), box.id)
        assert manager.said() == ["READY=1", f"MAINPID={until(lambda: box.status() == 'running' and box.pid())}"]
        assert run.wait(LIMIT) == 0
        assert box.status() == "running"

    def test_run_passes_on_as_long_as_it_runs(self, box: Box, manager: Manager) -> None:  # noqa: F811
        box.process["args"] = ["sh", "-c", "say 'READY=1\nNOTIFYACCESS=all'; say STOPPING=1; say MAINPID=5; exit 7"]
        box.write()
        run = manager.popen("run", "--bundle", str(box.bundle), box.id, stderr=subprocess.PIPE)
        assert [manager.said(), manager.said()] == [["READY=1"], ["STOPPING=1"]]
        assert (run.communicate(timeout=LIMIT)[1], run.returncode) == ("", 7)
        assert manager.silent()
        box.gone()

    def test_last_words(self, box: Box, manager: Manager) -> None:  # noqa: F811
        """What is said right before the end is passed on, however soon that is."""
        box.process["args"] = ["say", "READY=1\nSTATUS=bye"]
        box.write()
        for _ in range(20):
            assert manager.popen("run", "--bundle", str(box.bundle), box.id).wait(LIMIT) == 0
            assert manager.said() == ["READY=1", "STATUS=bye"]

    @pytest.mark.parametrize("sent", ["TERM", "USR1"])
    def test_signals_still_reach_the_program(self, box: Box, manager: Manager, sent: str) -> None:  # noqa: F811
        """The thread that passes messages on takes no signal from who waits for it."""
        box.process["args"] = ["sh", "-c", f"trap 'exit 9' {sent}; say READY=1; while :; do sleep 0.05; done"]
        box.write()
        run = manager.popen("run", "--bundle", str(box.bundle), box.id)
        assert manager.said() == ["READY=1"]
        run.send_signal({"TERM": 15, "USR1": 10}[sent])
        assert run.wait(LIMIT) == 9

    def test_a_program_that_ends_without_a_word(self, box: Box, manager: Manager) -> None:  # noqa: F811
        box.create("exit 0", env=manager.environment)
        assert manager.popen("start", box.id).wait(LIMIT) == 0
        assert manager.silent()
        assert box.status() == "stopped"

    def test_deleted_while_start_waits(self, box: Box, manager: Manager) -> None:  # noqa: F811
        box.create("say STATUS=alive; sleep 100", env=manager.environment)
        start = manager.popen("start", box.id)
        assert manager.said() == ["STATUS=alive"]
        box.ok("delete", "--force", box.id)
        box.gone()
        assert start.wait(LIMIT) == 0

    def test_killed_while_start_waits(self, box: Box, manager: Manager) -> None:  # noqa: F811
        box.create("say STATUS=alive; sleep 100", env=manager.environment)
        start = manager.popen("start", box.id)
        assert manager.said() == ["STATUS=alive"]
        start.kill()
        start.wait()
        assert box.status() == "running"
        box.ok("delete", "--force", box.id)
        box.gone()

    def test_who_has_no_manager(self, box: Box, manager: Manager) -> None:  # noqa: F811
        """start without the variable is not to wait; the container has a socket that nobody listens on."""
        box.create("say READY=1; echo $? >/tmp/out; sleep 100", env=manager.environment)
        box.ok("start", box.id)
        assert box.output() == "1\n"

    def test_an_engine_that_does_it_itself(self, box: Box, manager: Manager) -> None:  # noqa: F811
        (box.folder / "engines").mkdir()
        engine = Manager(box, str(box.folder / "engines/notify.sock"))
        box.mount("/run/notify", "bind", str(box.folder / "engines"), "bind")
        box.process["env"] += ["NOTIFY_SOCKET=/run/notify/notify.sock"]
        box.create("say READY=1; sleep 100", env=manager.environment)
        assert not (box.states / box.id / "notify").exists()
        assert manager.popen("start", box.id).wait(LIMIT) == 0
        assert engine.said() == ["READY=1"]
        assert manager.silent()
        engine.socket.close()

    def test_a_manager_that_is_gone(self, box: Box, manager: Manager) -> None:  # noqa: F811
        box.create("say READY=1; sleep 100", env=manager.environment)
        Path(manager.address).unlink()
        done = box("start", box.id, env=manager.environment)
        assert done.returncode == 0
        assert "NOTIFY_SOCKET" in done.stderr and "no such file or directory" in done.stderr

    def test_an_abstract_address(self, box: Box, manager: Manager) -> None:  # noqa: F811
        abstract = Manager(box, f"@pyoci-test-{os.getpid()}")
        box.create("say READY=1; sleep 100", env=abstract.environment)
        assert abstract.popen("start", box.id).wait(LIMIT) == 0
        assert abstract.said()[0] == "READY=1"
        abstract.socket.close()

    def test_the_container_cannot_change_the_directory(self, box: Box, manager: Manager) -> None:  # noqa: F811
        script = "touch /run/notify/x 2>/tmp/error; grep ' /run/notify ' /proc/self/mountinfo >/tmp/out; sleep 100"
        box.create(script, env=manager.environment)
        manager.popen("start", box.id)
        options = box.output().split()[5].split(",")
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
        assert "Read-only file system" in (box.rootfs / "tmp/error").read_text()
        assert list((box.states / box.id / "notify").iterdir()) == [box.states / box.id / "notify/notify.sock"]

    def test_in_a_user_namespace_with_a_strict_umask(self, box: Box, manager: Manager) -> None:  # noqa: F811
        (box.rootfs / "run/notify").mkdir(parents=True)  # the image is not the container root's to write
        box.namespace("user")
        box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        before = os.umask(0o077)
        try:
            box.create("say READY=1; sleep 100", env=manager.environment)
            start = manager.popen("start", box.id)
        finally:
            os.umask(before)
        assert manager.said()[0] == "READY=1"
        assert start.wait(LIMIT) == 0

    def test_a_create_that_fails(self, box: Box, manager: Manager) -> None:  # noqa: F811
        box.mount("/x", "bind", "/no/such/source", "bind")
        box.write()
        done = box("create", "--bundle", str(box.bundle), box.id, env=manager.environment)
        assert done.returncode == 1 and "/mounts/" in done.stderr
        box.gone()


def test_the_plan() -> None:
    from pyoci.host import Host
    from pyoci.spec.types import Linux, Namespace, Process, Root, Spec

    spec = Spec("1.2.0", Root("r"), (), Process("/", ("/a",)), linux=Linux((Namespace("mount"),)))
    ops = list(walk(plan_container(spec, Host(), PlanOptions("c", "/b", notify="/state/c/notify")).ops))
    assert b"/state/c/notify" in [op.args[1] for op in ops if op.call == "open_tree"]
    assert "NOTIFY_SOCKET=/run/notify/notify.sock" in str(ops[-1].args[2].items)  # type: ignore[attr-defined]
    assert not [op for op in walk(plan_container(spec, Host(), PlanOptions("c", "/b")).ops) if b"notify" in op.args]
