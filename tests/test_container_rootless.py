"""Containers of a user without any privilege, in a user namespace with nothing but its own ids."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Agent
from containers import Box, needed

from pyoci.commands.spec import default, rootless
from pyoci.kernel.syscalls import numbers

pytestmark = needed
USER = 15000
BECOME = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]


class Unprivileged(Box):
    """All commands are that user's."""

    def command(self, *args: str) -> list[str]:
        return [*BECOME, *super().command(*args)]

    def write(self, id: str = "") -> None:
        # without a path of its own: the user has no cgroup to make others in
        (self.bundle / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        for path in (self.bundle, *self.bundle.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)


@pytest.fixture
def box() -> Iterator[Unprivileged]:
    """A bundle, and a place for states, that belong to the user."""
    words = [*BECOME, "unshare", "--user", "--time", "true"]
    probe = subprocess.run(words, capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"users may not make user and time namespaces here: {probe.stderr.strip()}")
    folder = Path(tempfile.mkdtemp(prefix="pyoci-test-"))
    folder.chmod(0o755)
    os.chown(folder, USER, USER)
    made = Unprivileged(folder)
    if subprocess.run(made.command("--version"), capture_output=True, check=False).returncode:
        shutil.rmtree(folder)
        pytest.skip("the user may not execute what is under test here")
    made.config = rootless(default(False), USER, USER)
    made.process["terminal"] = False
    made.process["env"] = ["PATH=/bin", "HOME=/tmp"]
    made.config["root"]["readonly"] = False
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


def test_who_it_is(box: Unprivileged) -> None:
    shown = box.run("id -u; id -g; cat /proc/self/uid_map /proc/self/setgroups")
    assert shown.split() == ["0", "0", "0", str(USER), "1", "deny"]


def test_as_root_of_a_user_namespace(box: Unprivileged) -> None:
    """As engines of users without subordinate ids call us: setgroups(2) is denied (user_namespaces(7)), and their /dev
    has what is below it locked to it (mount_namespaces(7))."""
    box.config = rootless(default(False), 0, 0)
    box.process.update(terminal=False, args=["sh", "-c", "cat /proc/self/uid_map; exec sleep 100"])
    box.write()
    script = f"""p='{" ".join(box.command()[len(BECOME) :])}'; b='{box.bundle}'
        $p run --detach --bundle $b x </dev/null >$b/out 2>&1; $p exec x id -u </dev/null; $p delete --force x
        cat $b/out"""
    words = [*BECOME, "unshare", "--map-root-user", "--mount", "--", "sh", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["0", "0", "0", "1"], "")
    # groups that are asked for are not left out
    box.process["user"]["additionalGids"] = [0]
    box.write()
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert "/process/user/additionalGids" in done.stdout


def test_clocks(box: Unprivileged) -> None:
    """The offsets are written while the new process's files are still its user's."""
    box.namespace("time")
    box.linux["timeOffsets"] = {"boottime": {"secs": 1000000}, "monotonic": {"secs": 500, "nanosecs": 5}}
    text = box.run("cat /proc/uptime; cat /proc/self/timens_offsets")
    real = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 1000000 + real - 30 < float(text.split()[0]) < 1000000 + real + 30
    assert [line.split() for line in text.splitlines()[1:]] == [["monotonic", "500", "5"], ["boottime", "1000000", "0"]]


def test_clocks_of_exec(box: Unprivileged) -> None:
    box.namespace("time")
    box.linux["timeOffsets"] = {"boottime": {"secs": 1000000}}
    box.start()
    assert float(box.exec("cat", "/proc/uptime").split()[0]) > 1000000


def test_seccomp_agent(box: Unprivileged) -> None:
    """What is handed over needs no privilege to be taken from init: its helper sends it."""
    made = Agent(str(box.folder / "agent.sock"))
    os.chmod(made.path, 0o666)
    made.answers[numbers(platform.machine())["getcwd"]] = -errno.EXDEV
    rule = {"names": ["getcwd"], "action": "SCMP_ACT_NOTIFY"}
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "listenerPath": made.path}
    box.start("exec sleep 100")
    for command in (["exec", box.id], ["run", "--bundle", str(box.bundle), box.new_id()]):
        box.process["args"] = ["env", "-u", "PWD", "busybox", "pwd"]
        box.write()
        error = box.fails(*command, *(box.process["args"] if command[0] == "exec" else ()))
        assert os.strerror(errno.EXDEV) in error
    assert [each.message["state"]["status"] for each in made.told] == ["creating", "running", "creating"]
    made.close()


def test_home(box: Unprivileged) -> None:
    (box.rootfs / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    box.process["env"] = ["PATH=/bin"]
    assert box.run("echo $HOME") == "/root\n"
    box.id = box.new_id()
    box.start()
    box.exec("sh", "-c", "echo 'root:x:0:0::/new:/bin/sh' > /etc/passwd")
    assert box.exec("sh", "-c", "echo $HOME") == "/new\n"


def test_namespaces_by_path_belong_to_the_user_namespace_by_path(box: Unprivileged) -> None:
    """Two user namespaces of one user's, and a network namespace that belongs to the second."""
    holders = []
    try:
        for _ in range(2):
            words = [*BECOME, "unshare", "--map-root-user", "--net", "--ipc", "--uts", "sh", "-c", "echo; exec cat"]
            holders.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert holders[-1].stdout is not None and holders[-1].stdout.readline() == b"\n"
        first, second = (holder.pid for holder in holders)
        for kind in ("uid", "gid"):
            box.linux.pop(f"{kind}Mappings")
        box.config.pop("hostname")
        box.namespace("user", f"/proc/{first}/ns/user")
        for kind, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts")):
            box.namespace(kind, f"/proc/{first}/ns/{name}")
        assert box.run("readlink /proc/self/ns/net") == os.readlink(f"/proc/{first}/ns/net") + "\n"
        box.id = box.new_id()
        box.namespace("network", f"/proc/{second}/ns/net")
        error = box.refused()
        assert f"belongs to the user namespace /proc/{first}/ns/user (/linux/namespaces/" in error
        assert "operation not permitted" in error
    finally:
        for holder in holders:
            holder.communicate()


def test_nice(box: Unprivileged) -> None:
    box.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 5}
    box.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 7}
    assert box.run("busybox ionice; cat /proc/self/stat").startswith("best-effort: prio 7\n")
    box.process["scheduler"] = {"policy": "SCHED_FIFO", "priority": 5}
    box.id = box.new_id()
    error = box.refused()
    assert "/process/scheduler" in error and "operation not permitted" in error and "CAP_SYS_NICE" in error


def test_readiness(box: Unprivileged) -> None:
    address = str(box.folder / "manager.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        os.chmod(address, 0o777)
        environment = {**os.environ, "NOTIFY_SOCKET": address}
        box.create("test -S /run/notify/notify.sock; echo $? >/tmp/out", env=environment)
        done = box("start", box.id, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
    assert box.output() == "0\n"


def test_nothing_is_left_of_what_fails(box: Unprivileged) -> None:
    box.mount("/x", "bind", "/no/such/source", "bind")
    assert "/mounts/" in box.refused()
