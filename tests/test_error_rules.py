"""Every rule of the specification whose breach is an error, with the real command: the error, and nothing is left.

Where such a rule needs more than a configuration (a network device, resctrl, an agent, a cgroup in use) its test is
beside those of its subject; conformance/spec-rules.txt says where.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from containers import LIMIT, Box, box, needed  # noqa: F401 - box is a fixture

pytestmark = needed
Change = Callable[[Box], Any]
MAP = [{"containerID": 0, "hostID": 0, "size": 1}]


@pytest.mark.parametrize("command", ["state", "create", "start", "kill", "delete"])
def test_no_id(box: Box, command: str) -> None:
    box.write()
    assert "Traceback" not in (done := box(command, cwd=box.bundle)).stderr
    assert done.returncode != 0 and done.stderr
    assert not box.states.exists() or list(box.states.iterdir()) == []


def test_no_bundle(box: Box) -> None:
    """Without --bundle it is the working directory, and there is no config.json in this one."""
    assert "config.json" in box.fails("create", box.id, cwd=box.folder)
    assert "config.json" in box.fails("create", "--bundle", str(box.folder), box.id)
    box.gone()


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "x" * 1025, "\u00e9"])
def test_invalid_id(box: Box, id: str) -> None:
    box.write()
    box.fails("create", "--bundle", str(box.bundle), id)
    assert not box.states.exists() or list(box.states.iterdir()) == []


def test_start_without_process(box: Box) -> None:
    """config.md#process: create does without, start does not, and has no effect."""
    del box.config["process"]
    box.write()
    null = subprocess.DEVNULL
    words = box.command("create", "--bundle", str(box.bundle), box.id)
    subprocess.run(words, check=True, stdin=null, stdout=null, stderr=null, timeout=LIMIT)
    assert box.status() == "created"
    pid = box.pid()
    assert Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    for _ in range(2):
        assert "/process: " in (error := box.fails("start", box.id)) and "start needs one" in error
        assert (box.status(), box.pid()) == ("created", pid)
    box.ok("delete", box.id)
    box.gone()


def put(pointer: str, value: object) -> Change:
    """`value` at a pointer of objects."""

    def change(box: Box) -> None:
        *parents, last = pointer.split("/")[1:]
        parent = box.config
        for name in parents:
            parent = parent.setdefault(name, {})
        parent[last] = value

    return change


def mount(*options: str, **more: object) -> Change:
    entry = {"destination": "/mnt", "type": "none", "source": "/tmp", "options": ["bind", *options], **more}
    return lambda box: box.config["mounts"].append(entry)


def hook(**more: object) -> Change:
    return put("/hooks", {"createRuntime": [{"path": "/bin/true", **more}]})


def occupied(box: Box) -> None:
    """A file where a device should be, in the image itself."""
    box.config["mounts"] = [entry for entry in box.config["mounts"] if not entry["destination"].startswith("/dev")]
    (box.rootfs / "dev" / "taken").write_text("a file\n")
    box.linux["devices"] = [{"path": "/dev/taken", "type": "c", "major": 1, "minor": 3}]


def before_the_start(box: Box) -> None:
    """A clock that began a billion seconds ago."""
    box.namespace("time")
    box.linux["timeOffsets"] = {"monotonic": {"secs": -(10**9)}}


CORE = {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}
FILTER = {"defaultAction": "SCMP_ACT_ALLOW"}
# (pointer that the error names, part of what it says, change)
ERRORS: dict[str, tuple[str, str, Change]] = {
    "a property that cannot be applied": ("/linux/sysctl", "", put("/linux/sysctl", {"net.no.such": "1"})),
    "a value that cannot be applied": (
        "/linux/sysctl/net.ipv4.ip_forward", "the kernel does not take this value", put(
            "/linux/sysctl", {"net.ipv4.ip_forward": "x"})),
    "a mount below a file": ("/mounts/", "on the way to the destination", lambda box: box.mount(
        "/bin/busybox/x", "tmpfs", "tmpfs")),
    "an environment that cannot be made": (
        "/mounts", "", lambda box: box.mount("/x", "no-such-fs", "none")),
    "ociVersion": ("/ociVersion", "is not a SemVer", put("/ociVersion", "invalid")),
    "ociVersion of another major version": ("/ociVersion", "not supported", put("/ociVersion", "2.0.0")),
    "a clock that would be before the start of the machine": ("/linux/timeOffsets", "146 years", before_the_start),
    "more processes than there are numbers": ("/linux/resources/pids/limit", "no more than 4194304", put(
        "/linux/resources/pids", {"limit": 2**40})),
    "the root as a masked path": ("/linux/maskedPaths/0", "the root itself", put("/linux/maskedPaths", ["/."])),
    "the root as a read-only path": ("/linux/readonlyPaths/0", "/root/readonly", put("/linux/readonlyPaths", ["/"])),
    "cgroups one in another": ("/linux/cgroupsPath", "100 components", put("/linux/cgroupsPath", "/a" * 1500)),
    "root is missing": ("/root", "required", lambda box: box.config.pop("root")),
    "leaf weights, which Linux has no more": ("/linux/resources/blockIO/leafWeight", "5.0", put(
        "/linux/resources/blockIO", {"leafWeight": 100})),
    "root.path is not there": ("/root/path", "", put("/root/path", "nowhere")),
    "root.path is no directory": ("/root/path", "", put("/root/path", "config.json")),
    "rlimit that is unknown": ("/process/rlimits/0/type", "RLIMIT_TEST", put(
        "/process/rlimits", [{**CORE, "type": "RLIMIT_TEST"}])),
    "rlimit twice": ("/process/rlimits/1/type", "twice", put("/process/rlimits", [CORE, CORE])),
    "idmap without any map": ("/mounts/", "idmap", mount("idmap")),
    "ridmap without any map": ("/mounts/", "idmap", mount("ridmap")),
    "only uidMappings": ("/mounts/", "both", mount(uidMappings=MAP)),
    "only gidMappings": ("/mounts/", "both", mount(gidMappings=MAP)),
    "cwd is relative": ("/process/cwd", "absolute", put("/process/cwd", "tmp")),
    "hook's path is relative": ("/hooks/createRuntime/0/path", "absolute", hook(path="bin/true")),
    "hook's timeout is zero": ("/hooks/createRuntime/0/timeout", "greater than zero", hook(timeout=0)),
    "hook's timeout is less": ("/hooks/createRuntime/0/timeout", "greater than zero", hook(timeout=-1)),
    "namespace twice": ("/linux/namespaces/", "twice", lambda box: box.linux["namespaces"].append({"type": "pid"})),
    "namespace of another type": ("/linux/namespaces/", "", lambda box: box.namespace("network", "/proc/self/ns/uts")),
    "namespace's path is relative": ("/linux/namespaces/", "absolute", lambda box: box.namespace("ipc", "ns/ipc")),
    "device's path is taken": ("/linux/devices/0", "something else than this device is there", occupied),
    "cgroupsPath leads out": ("/linux/cgroupsPath", "", put("/linux/cgroupsPath", "../../out")),
    "unified, and its controller is not there": (
        "/linux/resources/unified", "", put("/linux/resources/unified", {"nosuch.max": "1"})),
    "burst above quota": ("/linux/resources/cpu/burst", "quota", put(
        "/linux/resources/cpu", {"quota": 5000, "period": 10000, "burst": 5001})),
    "defaultErrnoRet without an errno": ("/linux/seccomp/defaultErrnoRet", "returns no errno", put(
        "/linux/seccomp", {**FILTER, "defaultErrnoRet": 1})),
    "errnoRet without an errno": ("/linux/seccomp/syscalls/0/errnoRet", "returns no errno", put(
        "/linux/seccomp", {**FILTER, "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "errnoRet": 1}]})),
    "listenerMetadata without listenerPath": ("/linux/seccomp/listenerMetadata", "listenerPath", put(
        "/linux/seccomp", {**FILTER, "listenerMetadata": "x"})),
    "masked path is relative": ("/linux/maskedPaths/0", "absolute", put("/linux/maskedPaths", ["proc/kcore"])),
    "read-only path is relative": ("/linux/readonlyPaths/0", "absolute", put("/linux/readonlyPaths", ["proc/sys"])),
    "annotation without a name": ("/annotations/", "empty", put("/annotations", {"": "x"})),
}  # fmt: skip


def said(box: Box) -> str:
    """The error of create; nothing of the container may be left, and its program has not run."""
    group = box.linux.get("cgroupsPath")
    box.write()
    if group is not None:
        box.linux["cgroupsPath"] = group
        (box.bundle / "config.json").write_text(json.dumps(box.config))
    error = box.fails("create", "--bundle", str(box.bundle), box.id)
    box.gone()
    assert not (box.rootfs / "tmp/ran").exists()
    return error


@pytest.mark.parametrize("rule", ERRORS)
def test_error(box: Box, rule: str) -> None:
    pointer, part, change = ERRORS[rule]
    box.process["args"] = ["touch", "/tmp/ran"]
    change(box)
    error = said(box)
    assert pointer in error and part in error


@pytest.mark.parametrize("args", [[], None])
def test_no_args(box: Box, args: list[str] | None) -> None:
    box.process["args"] = args
    if args is None:
        del box.process["args"]
    assert "/process/args" in said(box)


@pytest.mark.skipif(os.path.isdir("/sys/fs/resctrl/info"), reason="resctrl is mounted here")
def test_intel_rdt_without_resctrl(box: Box) -> None:
    box.linux["intelRdt"] = {"closID": "x"}
    assert "/linux/intelRdt" in said(box)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[]", "", "{", '{"ociVersion": NaN}', '{"a": "\\ud800"}'])
def test_no_json(box: Box, text: str) -> None:
    box.bundle.joinpath("config.json").write_text(text)
    assert "config.json" in box.fails("create", "--bundle", str(box.bundle), box.id)
    box.gone()
