"""`features`: what is claimed is what `create` accepts, and the other way round."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyoci import SPEC_VERSION
from pyoci.__main__ import OPTIONS, START
from pyoci.commands.features import document
from pyoci.commands.spec import default
from pyoci.errors import ConfigError
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.kernel.seccomp import ACTIONS
from pyoci.spec import types
from pyoci.spec.load import load

HERE = Path(str(sys.modules["pyoci"].__file__)).parent
FEATURES: dict[str, Any] = document()
LINUX: dict[str, Any] = FEATURES["linux"]
SECCOMP: dict[str, Any] = LINUX["seccomp"]
BASE: dict[str, Any] = json.loads(json.dumps(default(False)))


def accepted(pointer: str, value: object) -> bool:
    """Whether `create` would take the default configuration with `value` at `pointer`."""
    config: Any = copy.deepcopy(BASE)
    place = config
    *parents, last = pointer.split("/")[1:]
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    if isinstance(place, list):
        place[int(last) :] = [value]
    else:
        place[last] = value
    try:
        load(json.dumps(config).encode())
    except ConfigError:
        return False
    return True


def ask(**more: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *OPTIONS, "-c", START, str(HERE.parent), "", "features"]
    return subprocess.run(words, capture_output=True, text=True, check=False, **more)


def test_it_is_json_and_nothing_else() -> None:
    """Engines read standard output and error together."""
    done = ask(env={})
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == FEATURES


def test_nothing_of_the_host_is_asked(tmp_path: Path) -> None:
    """Whoever asks, and wherever: what is answered are facts about pyoci (features.md)."""
    trace = tmp_path / "trace"
    words = [sys.executable, *OPTIONS, "-c", START, str(HERE.parent), "", "features"]
    subprocess.run(["strace", "-o", str(trace), "-e", "trace=file", *words], check=True, stdout=subprocess.DEVNULL)
    asked = re.findall(r'"(/(?:sys|proc|run|dev)/[^"]*)"', trace.read_text())
    # the interpreter's own start is not ours to judge
    assert not [path for path in asked if not path.startswith(("/proc/self/", "/sys/devices/system/cpu"))]


def test_versions() -> None:
    for name in ("ociVersionMin", "ociVersionMax"):
        assert accepted("/ociVersion", FEATURES[name]), name
    assert FEATURES["ociVersionMax"] == SPEC_VERSION
    assert not accepted("/ociVersion", "0.9.0")


def test_hooks() -> None:
    names = {name for name in types.Hooks.__slots__ if name != "raw"}
    snake = {"".join("_" + c.lower() if c.isupper() else c for c in hook) for hook in FEATURES["hooks"]}
    assert snake == names
    for kind in FEATURES["hooks"]:
        assert not accepted(f"/hooks/{kind}", [{"path": "relative"}]), f"{kind} is not looked at"


def test_mount_options() -> None:
    assert len(FEATURES["mountOptions"]) == len(set(FEATURES["mountOptions"]))
    for option in FEATURES["mountOptions"]:
        mount = {"destination": "/x", "type": "tmpfs", "source": "/tmp", "options": [option]}
        if option in ("idmap", "ridmap"):
            one = [{"containerID": 0, "hostID": 0, "size": 1}]
            mount |= {"options": [option, "bind"], "uidMappings": one, "gidMappings": one}
        assert accepted("/mounts/1", mount), option
    for option in ("idmap", "ridmap", "tmpcopyup"):
        if option not in FEATURES["mountOptions"]:
            assert not accepted("/mounts/1", {"destination": "/x", "type": "tmpfs", "options": [option]}), option
    # those of config.md's table, by what they are about
    for word in ("exec", "suid", "dev", "atime", "relatime", "diratime", "strictatime", "symfollow"):
        for name in (word, f"no{word}", f"r{word}", f"rno{word}"):
            assert name in FEATURES["mountOptions"], name


def test_namespaces() -> None:
    assert set(LINUX["namespaces"]) == {"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"}


def test_capabilities() -> None:
    assert set(LINUX["capabilities"]) == set(CAPABILITIES)


def rule(**more: object) -> dict[str, object]:
    return {"defaultAction": "SCMP_ACT_ALLOW", **more}


def test_seccomp() -> None:
    assert SECCOMP["enabled"] is True
    for action in (*ACTIONS, "SCMP_ACT_X"):
        asked = rule(syscalls=[{"names": ["getcwd"], "action": action}], listenerPath="/run/listener")
        assert accepted("/linux/seccomp", asked) == (action in SECCOMP["actions"]), action
    for name in (*SECCOMP["archs"], "SCMP_ARCH_VAX"):
        assert accepted("/linux/seccomp", rule(architectures=[name])) == (name in SECCOMP["archs"]), name
    for name in (*SECCOMP["knownFlags"], "SECCOMP_FILTER_FLAG_X"):
        assert accepted("/linux/seccomp", rule(flags=[name])) == (name in SECCOMP["supportedFlags"]), name
    for name in (*SECCOMP["operators"], "SCMP_CMP_X"):
        args = [{"index": 0, "value": 1, "op": name}]
        asked = rule(syscalls=[{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "args": args}])
        assert accepted("/linux/seccomp", asked) == (name in SECCOMP["operators"]), name


def test_memory_policy() -> None:
    for mode in (*LINUX["memoryPolicy"]["modes"], "MPOL_X"):
        nodes = "" if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") else "0"
        assert accepted("/linux/memoryPolicy", {"mode": mode, "nodes": nodes}) == (mode != "MPOL_X"), mode
    for flag in (*LINUX["memoryPolicy"]["flags"], "MPOL_F_X"):
        asked = {"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]}
        assert accepted("/linux/memoryPolicy", asked) == (flag != "MPOL_F_X"), flag


@pytest.mark.parametrize(
    ("claim", "pointer", "value"),
    [
        (LINUX["apparmor"]["enabled"], "/process/apparmorProfile", "p"),
        (LINUX["selinux"]["enabled"], "/process/selinuxLabel", "l"),
        (LINUX["intelRdt"]["enabled"], "/linux/intelRdt", {}),
        (LINUX["netDevices"]["enabled"], "/linux/netDevices", {"eth0": {}}),
        (LINUX["cgroup"]["rdma"], "/linux/resources/rdma", {"mlx5_1": {"hcaHandles": 3}}),
    ],
)
def test_what_is_not_claimed_is_refused(claim: bool, pointer: str, value: object) -> None:
    assert accepted(pointer, value) is claim
