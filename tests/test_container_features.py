"""`features` says nothing that a container does not get: each name that it lists, in containers of the real command.

tests/test_features.py holds the document to the tables that config.json is read with; here the kernel is asked.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from containers import Box, box, needed  # noqa: F401 - box is a fixture

from pyoci.host import probe

pytestmark = needed
MAP = [{"containerID": 0, "hostID": 0, "size": 10}]
# what a mount option of config.md needs beside it
BESIDE: dict[str, dict[str, Any]] = {
    "idmap": {"options": ["bind"], "uidMappings": MAP, "gidMappings": MAP},
    "ridmap": {"options": ["rbind"], "uidMappings": MAP, "gidMappings": MAP},
    "bind": {}, "rbind": {},
}  # fmt: skip
# mode -> what numa_maps(5) shows of it, for node 0 where it has nodes
SHOWN = {
    "MPOL_DEFAULT": "default", "MPOL_LOCAL": "local", "MPOL_PREFERRED": "prefer:0", "MPOL_BIND": "bind:0",
    "MPOL_INTERLEAVE": "interleave:0", "MPOL_PREFERRED_MANY": "prefer (many):0",
    "MPOL_WEIGHTED_INTERLEAVE": "weighted interleave:0",
}  # fmt: skip


@pytest.fixture
def claims(box: Box) -> dict[str, Any]:  # noqa: F811
    """The answer of the installed command."""
    value: dict[str, Any] = json.loads(box.ok("features"))
    return value


def again(box: Box, script: str) -> str:  # noqa: F811
    """Another container of the same bundle."""
    box.id = box.new_id()
    return box.run(script)


@pytest.mark.parametrize("name", ["ociVersionMin", "ociVersionMax"])
def test_versions(box: Box, claims: dict[str, Any], name: str) -> None:  # noqa: F811
    box.config["ociVersion"] = claims[name]
    box.create()
    assert box.state()["status"] == "created"


def test_hooks(box: Box, claims: dict[str, Any]) -> None:  # noqa: F811
    """Each kind is run; tests/test_hook_table.py says where and when."""
    trace = box.rootfs / "tmp/trace"
    trace.touch(mode=0o666)
    box.config["hooks"] = {}
    for kind in claims["hooks"]:
        place = "/tmp/trace" if kind == "startContainer" else str(trace)
        box.config["hooks"][kind] = [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} >>{place}"]}]
    box.start()
    box.ok("delete", "--force", box.id)
    assert sorted(trace.read_text().split()) == sorted(claims["hooks"])


def test_mount_options(box: Box, claims: dict[str, Any]) -> None:  # noqa: F811
    """One container with a mount for each, of a new file system and of a directory; none is taken for data."""
    source = box.folder / "source"
    source.mkdir()
    destinations = []
    for option in claims["mountOptions"]:
        of_directory = BESIDE.get(option, {"options": ["rbind"]})
        mounts = [{"type": "none", "source": str(source), **of_directory}]
        if option == "remount":
            mounts = [{"type": "tmpfs", "source": "tmpfs"}, {"type": "none", "source": "none"}]
        elif option not in BESIDE:
            mounts.append({"type": "tmpfs", "source": "tmpfs"})
        for number, mount in enumerate(mounts):
            place = f"/m/{option}-{number if option != 'remount' else 0}"
            asked = [] if option == "remount" and number == 0 else [option]
            box.config["mounts"].append({**mount, "destination": place, "options": [*mount.get("options", ()), *asked]})
            destinations.append(place)
    shown = {line.split()[4] for line in box.run("cat /proc/self/mountinfo").splitlines()}
    assert set(destinations) <= shown
    assert len(set(destinations)) > 100


def test_namespaces(box: Box, claims: dict[str, Any]) -> None:  # noqa: F811
    """All at once, and none is ours."""
    box.linux["namespaces"] = [{"type": kind} for kind in claims["linux"]["namespaces"]]
    box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 100000}]
    pid = box.start()
    files = {"mount": "mnt", "network": "net"}
    for kind in claims["linux"]["namespaces"]:
        name = files.get(kind, kind)
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), kind


def test_capabilities(box: Box, claims: dict[str, Any]) -> None:  # noqa: F811
    """All that we have ourselves; what we have not is left out with a warning that names it, and nothing else."""
    names = claims["linux"]["capabilities"]
    box.capabilities(*names)
    box.process["args"] = ["grep", "Cap[BEP]", "/proc/self/status"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    assert done.returncode == 0
    host = probe()
    ours = host.capabilities & host.bounding
    assert {int(line.split()[1], 16) for line in done.stdout.splitlines()} == {ours}
    left_out = done.stderr.rpartition(": ")[2].replace(",", "").split()
    assert len(left_out) == len(names) - ours.bit_count()


def test_seccomp(box: Box, claims: dict[str, Any]) -> None:  # noqa: F811
    """Filters with each action, operator and flag are loaded; architectures: those that can share one with this."""
    seccomp = claims["linux"]["seccomp"]
    rules = [
        {"names": ["getsid"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 1 + number, "op": name}]}
        for number, name in enumerate(seccomp["operators"])
    ]
    calls = ["getpgid", "getpriority", "getrusage", "getsid", "sync", "times", "vhangup", "acct", "swapon"]
    # with a listener: tests/test_container_seccomp.py
    listening = {"SCMP_ACT_NOTIFY", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}
    actions = sorted({*seccomp["actions"]} - listening - {"SCMP_ACT_ALLOW"})
    rules += [{"names": [name], "action": action} for action, name in zip(actions, calls, strict=False)]
    names = {"x86_64": ("X86", "X86_64", "X32"), "aarch64": ("ARM", "AARCH64")}[probe().arch]
    architectures = [f"SCMP_ARCH_{name}" for name in names]
    assert {*architectures} <= {*seccomp["archs"]}
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "flags": sorted({*seccomp["supportedFlags"]} - listening),
        "architectures": architectures, "syscalls": rules,
    }  # fmt: skip
    assert box.run("grep Seccomp: /proc/self/status").split() == ["Seccomp:", "2"]


def test_memory_policies(box: Box, claims: dict[str, Any]) -> None:  # noqa: F811
    for mode in claims["linux"]["memoryPolicy"]["modes"]:
        if mode == "MPOL_WEIGHTED_INTERLEAVE" and probe().kernel < (6, 9):
            continue
        shown = SHOWN[mode]
        box.linux["memoryPolicy"] = {"mode": mode, "nodes": "0" if ":" in shown else ""}
        assert again(box, "head -1 /proc/self/numa_maps").partition(" ")[2].startswith(shown), mode
    for flag in claims["linux"]["memoryPolicy"]["flags"]:
        box.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]}
        assert again(box, "head -1 /proc/self/numa_maps").partition(" ")[2].startswith("bind"), flag
