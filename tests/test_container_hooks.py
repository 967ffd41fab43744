"""Hooks of all six kinds: when, where, with what on stdin, and what their failure does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

import pytest
from containers import LIMIT, Box, box, cgroups_of, needed, until  # noqa: F401 - box is a fixture

pytestmark = needed
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
OF_CREATE = KINDS[:3]
INSIDE = "startContainer"
BUSYBOX = "/bin/busybox"  # on the host and in the container


def hook(box: Box, kind: str, script: str = ":", number: int = 0, **more: Any) -> None:
    """A hook that notes its turn, its stdin and its namespaces in files of its own, and then runs `script`."""
    folder = "/tmp" if kind == INSIDE else f"{box.rootfs}/tmp"
    text = (
        f"cd {folder}; echo {kind}{number} >> order; cat > {kind}{number}.state; "
        f"for n in mnt pid net uts ipc; do readlink /proc/self/ns/$n; done > {kind}{number}.ns; {script}"
    )
    entry = {"path": BUSYBOX, "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"]} | more
    box.config.setdefault("hooks", {}).setdefault(kind, []).append(entry)


def read(box: Box, name: str) -> str:
    path = box.rootfs / "tmp" / name
    return path.read_text() if path.exists() else ""


def order(box: Box) -> list[str]:
    return read(box, "order").split()


def test_order_and_state(box: Box) -> None:
    for kind in KINDS:
        for number in (0, 1):
            hook(box, kind, number=number)
    box.config["annotations"] = {"a": "b"}
    box.create("echo process0 >> /tmp/order; exec sleep 100")
    pid = box.pid()
    assert order(box) == [f"{kind}{number}" for kind in OF_CREATE for number in (0, 1)]
    box.ok("start", box.id)
    until(lambda: "process0" in order(box))
    until(lambda: "poststart1" in order(box))
    box.ok("delete", "--force", box.id)
    found = order(box)
    assert found[6:8] == ["startContainer0", "startContainer1"]
    assert sorted(found[8:11]) == ["poststart0", "poststart1", "process0"]
    assert found[11:] == ["poststop0", "poststop1"]
    statuses = {
        "prestart": ("creating", "created"), "createRuntime": ("creating", "created"),
        "createContainer": ("creating", "created"), "startContainer": ("created",), "poststart": ("running",),
        "poststop": ("stopped",),
    }  # fmt: skip
    for kind, allowed in statuses.items():
        state = json.loads(read(box, f"{kind}0.state"))
        assert state["status"] in allowed, kind
        assert (state["id"], state["bundle"], state["ociVersion"]) == (
            box.id, str(box.bundle), box.config["ociVersion"],
        )  # fmt: skip
        assert state["annotations"] == {"a": "b"}
        # the pid as whoever reads it sees the process (runtime.md#state)
        assert state["pid"] == {"poststop": 0, "createContainer": 1, "startContainer": 1}.get(kind, pid), kind


def test_namespaces(box: Box) -> None:
    for kind in KINDS:
        hook(box, kind)
    pid = box.start("exec sleep 100")
    until(lambda: read(box, "poststart0.ns").count("\n") == 5)
    theirs, ours = (
        [os.readlink(f"/proc/{who}/ns/{name}") for name in ("mnt", "pid", "net", "uts", "ipc")] for who in (pid, "self")
    )
    for kind in ("prestart", "createRuntime", "poststart"):
        assert read(box, f"{kind}0.ns").split() == ours, kind
    for kind in ("createContainer", "startContainer"):
        # the process itself stays out of a pid namespace that it joins, unless it is forked anew
        assert [name for name in read(box, f"{kind}0.ns").split() if not name.startswith("pid")] == [
            name for name in theirs if not name.startswith("pid")
        ], kind


def test_create_container_is_before_pivot_root(box: Box) -> None:
    """Its paths are the host's, in the container's mount namespace."""
    hook(box, "createContainer", f"ls {box.bundle} > seen; stat -c %m /proc/self/exe >> seen")
    box.create()
    assert read(box, "seen").split()[:2] == ["config.json", "rootfs"]


def test_hooks_of_create_can_mount_into_the_root(box: Box) -> None:
    """As hooks that bring devices and libraries do, from inside the mount namespace or by entering it."""
    hook(box, "createContainer", f"mount -t tmpfs inner {box.rootfs}/etc")
    find = 'grep -o "\\"pid\\": *[0-9]*" createRuntime0.state | grep -o "[0-9]*$"'
    hook(box, "createRuntime", f"nsenter -t $({find}) -m {BUSYBOX} mount -t tmpfs outer {box.rootfs}/tmp")
    assert box.run("grep -c -e inner -e outer /proc/self/mountinfo") == "2\n"


def test_pid_leads_to_the_namespaces(box: Box) -> None:
    """What engines do in createRuntime: find the network namespace by the pid in the state."""
    find = 'grep -o "\\"pid\\": *[0-9]*" createRuntime0.state | grep -o "[0-9]*$"'
    script = f"readlink /proc/$({find})/ns/net > net"
    hook(box, "createRuntime", script)
    box.create()
    assert read(box, "net").strip() == os.readlink(f"/proc/{box.pid()}/ns/net")


def test_where_hooks_are_run(box: Box) -> None:
    """Where they are with other runtimes: in the bundle, those of createContainer in the container's root, and those of
    the image at its top."""
    expected = {kind: str(box.bundle) for kind in ("prestart", "createRuntime")}
    expected |= {"createContainer": str(box.rootfs), INSIDE: "/"}
    for kind in expected:
        folder = "/tmp" if kind == INSIDE else f"{box.rootfs}/tmp"
        entry = {"path": BUSYBOX, "args": ["sh", "-c", f"pwd > {folder}/{kind}"]}
        box.config.setdefault("hooks", {})[kind] = [entry]
    box.start("exec sleep 100", cwd="/usr")
    for kind, place in expected.items():
        assert read(box, kind).strip() == place, kind


def test_environment_of_the_image_s_hooks(box: Box) -> None:
    """Without one of their own it is the process's, with the HOME that it gets."""
    box.process["env"] = ["PATH=/bin", "ONE=two"]
    (box.rootfs / "etc/passwd").write_text("root:x:0:0::/its/home:/bin/sh\n")
    script = "echo $ONE:$HOME > /tmp/"
    box.config["hooks"] = {
        INSIDE: [
            {"path": "/bin/sh", "args": ["sh", "-c", f"{script}none"]},
            {"path": "/bin/sh", "args": ["sh", "-c", f"{script}own"], "env": ["ONE=1"]},
            {"path": "/bin/sh", "args": ["sh", "-c", f"{script}empty"], "env": []},
        ]
    }
    box.start("exec sleep 100")
    assert [read(box, name) for name in ("none", "own", "empty")] == ["two:/its/home\n", "1:\n", ":\n"]


def test_relative_paths_are_the_callers_after_hooks(box: Box) -> None:
    hook(box, "createRuntime")
    box.create("exec sleep 100", "--pid-file", "pid", cwd=str(box.folder))
    assert (box.folder / "pid").read_text() == str(box.pid())


@pytest.mark.parametrize("kind", OF_CREATE)
def test_failure_of_a_hook_of_create(box: Box, kind: str) -> None:
    hook(box, kind, "echo because >&2; exit 5")
    hook(box, kind, number=1)
    hook(box, "poststop")
    error = box.refused(command="create")
    assert f"/hooks/{kind}/0" in error and "exit status 5" in error and "because" in error
    assert order(box) == [f"{kind}0", "poststop0"]


def test_failure_of_start_container(box: Box) -> None:
    hook(box, "startContainer", "exit 5")
    box.create("echo ran > /tmp/ran")
    error = box.fails("start", box.id)
    assert "/hooks/startContainer/0" in error and "exit status 5" in error
    assert read(box, "ran") == ""
    box.gone()
    assert "does not exist" in box.fails("delete", box.id)
    box.ok("delete", "--force", box.id)


def test_failure_of_poststart(box: Box) -> None:
    hook(box, "poststart", "exit 5")
    hook(box, "poststop")
    box.create("exec sleep 100")
    assert "/hooks/poststart/0" in box.fails("start", box.id)
    assert order(box) == ["poststart0", "poststop0"]
    box.gone()


@pytest.mark.parametrize("kind", ["startContainer", "poststart"])
def test_a_start_that_fails_twice(box: Box, kind: str) -> None:
    """What goes wrong while the container is taken down is a warning; the hook's failure stays the error."""
    hook(box, kind, "exit 5")
    hook(box, "poststop", "exit 6")
    box.create("exec sleep 100")
    error = box("start", box.id)
    assert error.returncode == 1 and "/hooks/poststop/0" in error.stderr
    assert f"/hooks/{kind}/0" in error.stderr.splitlines()[-1]
    box.gone()


def test_failure_of_poststop_is_a_warning(box: Box) -> None:
    hook(box, "poststop", "exit 5")
    hook(box, "poststop", number=1)
    box.start("exec sleep 100")
    done = box("delete", "--force", box.id)
    assert done.returncode == 0 and "/hooks/poststop/0" in done.stderr
    assert order(box) == ["poststop0", "poststop1"]
    box.gone()


@pytest.mark.parametrize("kind", KINDS[:5])
def test_failure_in_run(box: Box, kind: str) -> None:
    hook(box, kind, "exit 5")
    hook(box, "poststop")
    assert f"/hooks/{kind}/0" in box.refused("sleep 100")
    assert order(box) == [f"{kind}0", "poststop0"]


@pytest.mark.parametrize("kind", ["createRuntime", "startContainer"])
def test_time_limit(box: Box, kind: str) -> None:
    box.config["hooks"] = {kind: [{"path": BUSYBOX, "args": ["sleep", "60"], "timeout": 1}]}
    before = time.monotonic()
    assert "timeout" in box.refused("sleep 100")
    assert time.monotonic() - before < 30


def test_hook_that_is_not_there(box: Box) -> None:
    box.config["hooks"] = {"createRuntime": [{"path": "/no/such/hook"}]}
    error = box.refused()
    assert "/hooks/createRuntime/0" in error and "no such file" in error


def test_arguments_and_environment(box: Box) -> None:
    script = f"cd {box.rootfs}/tmp; echo $0 $1 > args; cat /proc/self/environ > env; ls /proc/self/fd > fds"
    entry = {"path": BUSYBOX, "args": ["sh", "-c", script, "name", "one"], "env": ["A=1"]}
    box.config["hooks"] = {"createRuntime": [entry]}
    box.create()
    assert read(box, "args") == "name one\n"
    assert [entry for entry in read(box, "env").split("\0") if entry.startswith("A=")] == ["A=1"]
    assert "PYTHON" not in read(box, "env") and "HOME=" not in read(box, "env")
    assert read(box, "fds").split() == ["0", "1", "2", "3"]


def test_hook_may_be_busy_while_others_ask(box: Box) -> None:
    """`state` answers while create waits for a hook, and says so."""
    hook(box, "createRuntime", "touch waiting; while ! test -e go; do sleep 0.01; done")
    box.process["args"] = ["sleep", "100"]
    box.write()
    words = box.command("create", "--bundle", str(box.bundle), box.id)
    creating = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    box.others.append(creating)
    until((box.rootfs / "tmp/waiting").exists)
    assert box.status() == "creating"
    assert "still being created" in box.fails("start", box.id)
    (box.rootfs / "tmp/go").touch()
    assert creating.wait(LIMIT) == 0
    assert box.status() == "created"


def test_hooks_do_not_run_for_a_bad_configuration(box: Box) -> None:
    for kind in KINDS:
        hook(box, kind)
    box.mount("/x", "no-such-fs", "none")
    box.refused()
    assert [kind for kind in order(box) if not kind.startswith("poststop")] == []
    assert cgroups_of(box.id) == []
