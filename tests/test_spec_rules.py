"""spec.validate: one row per rule, over a config.json that breaks no other."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoci.errors import ConfigError
from pyoci.jsontext import escape
from pyoci.spec import linux_rules, read, resource_rules, seccomp_rules, types, validate
from pyoci.spec import unsupported as refusals
from pyoci.spec.linux_rules import sysctl_path
from pyoci.spec.load import load, load_process
from pyoci.spec.resource_rules import number_list
from pyoci.spec.validate import parse_version

BASE: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "config-everything.json").read_bytes())
MISSING = object()
UINT32 = 2**32 - 1


def changed(*changes: tuple[str, object]) -> dict[str, Any]:
    """BASE with values put at pointers ("-" appends), or taken away."""
    document = copy.deepcopy(BASE)
    for pointer, value in changes:
        tokens = [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]
        parent: Any = document
        for token in tokens[:-1]:
            parent = parent[int(token)] if isinstance(parent, list) else parent.setdefault(token, {})
        last = tokens[-1]
        if value is MISSING:
            del parent[int(last) if isinstance(parent, list) else last]
        elif isinstance(parent, list):
            if last == "-":
                parent.append(value)
            else:
                parent[int(last)] = value
        else:
            parent[last] = value
    return document


def found(document: dict[str, Any]) -> dict[str, str]:
    problems: dict[str, str] = {}
    try:
        load(json.dumps(document).encode())
    except ConfigError as error:
        for problem in error.problems:
            said = f"{problem.message} ({problem.clause})"
            problems[problem.pointer] = "; ".join(filter(None, (problems.get(problem.pointer), said)))
    return problems


def test_the_base_is_good() -> None:
    assert found(BASE) == {}


def without_namespace(kind: str) -> tuple[str, object]:
    return "/linux/namespaces", [each for each in BASE["linux"]["namespaces"] if each["type"] != kind]


NO_USER = without_namespace("user")
OWN_MAPS = {name: [{"containerID": 0, "hostID": 0, "size": 1}] for name in ("uidMappings", "gidMappings")}
NO_MAPS = (("/linux/uidMappings", MISSING), ("/linux/gidMappings", MISSING))

GOOD: list[tuple[tuple[str, object], ...]] = [
    *[(("/mounts/1/options/-", option),) for option in ("idmap", "ridmap")],
    tuple((f"/mounts/1/{name}", value) for name, value in OWN_MAPS.items()),
    (NO_USER, *NO_MAPS, ("/mounts/-", {"destination": "/x", "type": "tmpfs", "options": ["idmap"], **OWN_MAPS})),
    *[(("/ociVersion", text),) for text in ("1.0.0", "1.0.2-dev", "1.3.7", "1.2.0+dev", "1.0.0-rc.5+build.001")],
    (("/process", MISSING),),
    (("/process/env", []),),
    (("/process/env", ["A=", "B==", "C=\n"]),),
    (("/process/user", {}),),
    (("/process/user/umask", 0),),
    (("/process/user/umask", 0o777),),
    (("/process/oomScoreAdj", 1000),),
    (("/process/oomScoreAdj", -1000),),
    (("/process/terminal", False), ("/process/consoleSize/height", 2**40)),
    (("/process/rlimits", [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]),),
    (("/process/capabilities/bounding", ["CAP_FUTURE", "nonsense"]),),
    (("/process/apparmorProfile", ""), ("/process/selinuxLabel", ""), ("/linux/mountLabel", "")),
    (("/linux/netDevices", {"eth0": {}, "eth1": {"name": "x%d"}, "eth2": {"name": "x%d"}, "a": {"name": "eth9"}}),),
    (("/linux/intelRdt", {}),),
    (("/linux/intelRdt", {"closID": "/", "schemata": [], "enableMonitoring": True}),),
    (("/process/execCPUAffinity", {}), ("/linux/netDevices", {}), ("/linux/resources/network", {})),
    (("/mounts/-", {"destination": "/x", "options": ["rbind"], "source": "."}),),
    (("/mounts/-", {"destination": "/x", "options": ["remount", "ro"]}),),
    (("/mounts/-", {"destination": "/x", "options": ["rshared"]}),),
    (("/mounts/-", {"destination": "/", "type": "tmpfs"}),),
    (("/hooks/prestart/0/timeout", 1),),
    (("/hooks", MISSING),),
    (("/annotations", {}),),
    (NO_USER, *NO_MAPS),
    (("/linux/namespaces/5/path", "/proc/1/ns/user"), *NO_MAPS),
    (("/linux/namespaces/5/path", "/proc/1/ns/user"),),
    (("/linux/uidMappings", [{"containerID": 0, "hostID": 0, "size": UINT32}]),),
    (
        (
            "/linux/uidMappings",
            [{"containerID": 1, "hostID": 5, "size": 1}, {"containerID": 0, "hostID": 6, "size": 1}],
        ),
    ),
    (("/linux/timeOffsets", {}), without_namespace("time")),
    (("/linux/devices/-", {"path": "/dev/u", "type": "u", "major": 4095, "minor": 2**20 - 1}),),
    (("/linux/devices/-", {"path": "/dev/fuse", "type": "u", "major": 10, "minor": 229}),),
    (("/linux/devices/-", {"path": "/dev/p", "type": "p", "major": -5, "minor": 2**40}),),
    (("/linux/cgroupsPath", "system.slice:pyoci:one"),),
    (("/linux/cgroupsPath", "relative/..path../x"),),
    (("/linux/cgroupsPath", "/a/" * 100),),
    (("/linux/maskedPaths", ["/a/..", "/..a"]),),
    (("/process/user/additionalGids", [5] * 65536),),
    (("/process/scheduler", {"policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 1024}),),
    (("/process/scheduler", {"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_KEEP_PARAMS"]}),),
    (("/linux/memoryPolicy", {"mode": "MPOL_PREFERRED"}),),
    (("/linux/memoryPolicy", {"mode": "MPOL_DEFAULT", "nodes": "", "flags": ["MPOL_F_STATIC_NODES"]}),),
    *[(("/linux/rootfsPropagation", text),) for text in linux_rules.PROPAGATIONS],
    (("/linux/sysctl", {}), without_namespace("ipc")),
    (("/linux/sysctl/kernel.domainname", "x"), ("/domainname", MISSING)),
    (("/linux/resources/memory", {"limit": 0, "swap": -1}),),
    (("/linux/resources/memory", {"swap": 0}),),
    (("/linux/resources/memory", {"limit": 5, "swap": 5}),),
    (("/linux/resources/memory/swappiness", 0),),
    (("/linux/resources/cpu", {"quota": -1, "burst": 5}),),
    (("/linux/resources/cpu", {"quota": 1000, "burst": 1000, "period": 1000}),),
    (("/linux/resources/cpu", {"quota": 0, "period": 0, "cpus": "", "mems": "0-0", "idle": 1}),),
    (("/linux/resources/pids", {}),),
    (("/linux/resources/pids/limit", -1),),
    (("/linux/resources/blockIO/weight", 0),),
    (("/linux/resources/devices/-", {"allow": False, "type": "a", "major": 2**32 - 1, "access": "m"}),),
    (("/linux/resources/hugepageLimits/0/pageSize", "1GB"),),
    (("/linux/seccomp/defaultAction", "SCMP_ACT_LOG"), ("/linux/seccomp/defaultErrnoRet", MISSING)),
    (("/linux/seccomp/syscalls/1/errnoRet", 0xFFFF),),
    (("/linux/seccomp/syscalls", []), ("/linux/seccomp/listenerPath", ""), ("/linux/seccomp/listenerMetadata", "")),
]  # fmt: skip


@pytest.mark.parametrize("changes", GOOD, ids=lambda changes: " ".join(pointer for pointer, _ in changes))
def test_good(changes: tuple[tuple[str, object], ...]) -> None:
    assert found(changed(*changes)) == {}


def mapping(container: int, host: int, size: int) -> dict[str, int]:
    return {"containerID": container, "hostID": host, "size": size}


def changes(*pairs: tuple[str, object]) -> tuple[tuple[str, object], ...]:
    return pairs


def other(**more: object) -> dict[str, object]:
    return {"policy": "SCHED_OTHER", **more}


def deadline(runtime: int = 0, deadline: int = 0, period: int = 0, **more: object) -> tuple[tuple[str, object], ...]:
    numbers = {"runtime": runtime, "deadline": deadline, "period": period}
    return changes(("/process/scheduler", {"policy": "SCHED_DEADLINE", **numbers, **more}))


def policy(mode: str, nodes: str = "", *flags: str) -> tuple[tuple[str, object], ...]:
    names = [f"MPOL_F_{flag}_NODES" for flag in flags]
    return changes(("/linux/memoryPolicy", {"mode": mode, "nodes": nodes, "flags": names}))


# (pointer of the problem, part of its message, changes); without changes other than a value: (pointer, part, value)
WRONG_DEVICES = (
    ("", "is not a name"), ("..", "is not a name"), ("a/b", "a slash"), ("a b", "white space"), ("a:b", "a colon"),
    ("sixteen-letters-", "more than 15 bytes"), ("ä" * 8, "more than 15 bytes"),
)  # fmt: skip

BAD: list[tuple[str, str, object]] = [
    *[("/ociVersion", f'"{text}" is not a SemVer', text)
      for text in ("", "invalid", "1.0", "2.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-a..b", "1.0.0+", "1.0.0-01",
                   "v1.0.0", "1.0.x", "1.0.0-\u00e9", "1. 0.0", "\u0661.0.0", "1.0.0-a_b", "-1.0.0")
      if text.isascii()],
    ("/ociVersion", '"\\u0661.0.0" is not a SemVer', "\u0661.0.0"),
    *[("/ociVersion", f'version "{text}" is not supported: 1.0.0 to 1.3.x are', text)
      for text in ("2.0.0", "0.9.0", "1.4.0", "1.10.0", "2.0.0-dev", "999999999.0.0")],
    ("/root", "is required, and missing (config.md)", MISSING),
    ("/root/path", "is required, and missing (config.md#root)", MISSING),
    ("/root/path", "must not be empty", ""),
    ("/process/cwd", "is required", MISSING),
    ("/process/cwd", 'cwd must be an absolute path, not "work"', "work"),
    ("/process/cwd", "cwd must be an absolute path", ""),
    ("/process/args", "args must not be empty (config.md#process)", []),
    ("/process/args", "args must not be empty", MISSING),
    ("/process/args/0", "must name a program", ""),
    ("/process/env/1", '"EMPTY" is not of the form NAME=value', "EMPTY"),
    ("/process/env/1", '"=x" has an empty name', "=x"),
    ("/process/env/1", '"" is not of the form NAME=value', ""),
    ("/process/user/uid", "not 4294967295", UINT32),
    ("/process/user/gid", "not 4294967295", UINT32),
    ("/process/user/additionalGids/1", "not 4294967295", UINT32),
    ("/process/user/uid", "1001 is not mapped into the user namespace", 1001),
    ("/process/user/gid", "1000 is not mapped into the user namespace", 1000),
    ("/process/user/additionalGids/0", "1000 is not mapped into the user namespace", 1000),
    ("/process/user/umask", "must be an integer from 0 to 511 (0o777), not 512", 512),
    ("/process/user/additionalGids", "must not have more than 65536 items, but has 65537", [5] * 65537),
    ("/process/consoleSize/height", "from 0 to 65535", 65536),
    ("/process/consoleSize/width", "is required", MISSING),
    ("/process/rlimits/0/type", '"RLIMIT_NOPE" is not one of RLIMIT_AS, ', "RLIMIT_NOPE"),
    ("/process/rlimits/0/type", '"NOFILE" is not one of', "NOFILE"),
    ("/process/rlimits/1/type", "RLIMIT_NOFILE is there twice (config.md#posix-process)",
     (("/process/rlimits/-", {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}),)),
    ("/process/rlimits/0/soft", "must not be greater than the hard limit 5, but is 1024",
     (("/process/rlimits/0/hard", 5),)),
    ("/process/rlimits/0/hard", "is required", MISSING),
    ("/process/oomScoreAdj", "from -1000 to 1000, not 1001", 1001),
    ("/process/oomScoreAdj", "from -1000 to 1000", -1001),
    ("/mounts/0/destination", "must not be empty", ""),
    ("/mounts/0/destination", "is required", MISSING),
    ("/mounts/0/type", "is required unless the options have bind or rbind", MISSING),
    ("/mounts/1/source", "is required for a bind mount", MISSING),
    ("/mounts/1", "must have both uidMappings and gidMappings, or neither",
     (("/mounts/1/uidMappings", [mapping(0, 0, 1)]),)),
    ("/mounts/1/uidMappings/0/size", "must be greater than zero",
     (("/mounts/1/uidMappings", [mapping(0, 0, 0)]), ("/mounts/1/gidMappings", [mapping(0, 0, 1)]))),
    ("/mounts/1/options", "that is there already cannot be given a map",
     (("/mounts/1/options/-", "idmap"), ("/mounts/1/options/-", "remount"))),
    ("/mounts/2/options", "that is there already cannot be given a map",
     (("/mounts/-", {"destination": "/x", "options": ["private", "ridmap"]}),)),
    ("/mounts/2/uidMappings", "no id-mapped cgroup mounts",
     (("/mounts/-", {"destination": "/x", "type": "cgroup", **OWN_MAPS}),)),
    ("/mounts/2/options", "a new file system in a user namespace belongs to it",
     (("/mounts/-", {"destination": "/x", "type": "tmpfs", "options": ["idmap"]}),)),
    *[("/mounts/1/options", "idmap needs the mount's own uidMappings and gidMappings, or a user namespace",
      (NO_USER, *NO_MAPS, ("/mounts/1/options/-", option))) for option in ("idmap", "ridmap")],
    *[(f"/hooks/{kind}/0/path", 'must be an absolute path, not "hook"', "hook") for kind in BASE["hooks"]],
    *[(f"/hooks/{kind}/0/timeout", "must be greater than zero, not 0", 0) for kind in BASE["hooks"]],
    ("/hooks/poststop/0/path", "is required", MISSING),
    ("/hooks/poststop/0/timeout", "must be greater than zero, not -1", -1),
    ("/hooks/prestart/0/env/0", "is not of the form NAME=value", "A"),
    *[(f"/hooks/{kind}/0/args/0", "must name the program", ((f"/hooks/{kind}/0/args", [""]),))
      for kind in BASE["hooks"]],
    ("/annotations/", "the name of an annotation must not be empty", "x"),
    ("/hostname", "needs a uts namespace", (without_namespace("uts"), ("/domainname", MISSING))),
    ("/domainname", "needs a uts namespace", (without_namespace("uts"), ("/hostname", MISSING))),
    ("/hostname", "must not be longer than 64 bytes", "x" * 65),
    ("/domainname", "must not be longer than 64 bytes", "\u00e9" * 33),
    ("/linux/namespaces/0/type", '"Pid" is not one of pid, network, mount,', "Pid"),
    ("/linux/namespaces/0/type", '"" is not one of', ""),
    ("/linux/namespaces/0/type", "is required", MISSING),
    ("/linux/namespaces/8/type", "a cgroup namespace is there twice", (("/linux/namespaces/-", {"type": "cgroup"}),)),
    ("/linux/namespaces/1/path", 'must be an absolute path, not "netns"', "netns"),
    ("/linux/uidMappings", "is required for a new user namespace", MISSING),
    ("/linux/gidMappings", "is required for a new user namespace", []),
    ("/linux/gidMappings", "needs a user namespace", (NO_USER, ("/linux/uidMappings", MISSING))),
    ("/linux/uidMappings/1", "overlaps with entry 0 in its containerID range", mapping(999, 300000, 1)),
    ("/linux/uidMappings/1", "overlaps with entry 0 in its hostID range", mapping(1000, 99999, 2)),
    ("/linux/uidMappings/1/size", "must be greater than zero", 0),
    ("/linux/uidMappings/1", "containerID 4294967295 + size 1 is beyond", mapping(UINT32, 5, 1)),
    ("/linux/uidMappings/1", "hostID 4294967295 + size 1 is beyond", mapping(1000, UINT32, 1)),
    ("/linux/uidMappings/1", "containerID 1000 + size 4294967295 is beyond", mapping(1000, 5, UINT32)),
    ("/linux/uidMappings/1/hostID", "is required", MISSING),
    ("/linux/uidMappings", "must not have more than 340 entries, but has 341", [mapping(n, n, 1) for n in range(341)]),
    ("/linux/timeOffsets", "needs a time namespace", without_namespace("time")),
    ("/linux/timeOffsets", "must be absent: a time namespace", (("/linux/namespaces/7/path", "/ns"),)),
    ("/linux/timeOffsets/realtime", '"realtime" is not one of monotonic, boottime', {"secs": 1}),
    ("/linux/timeOffsets/monotonic/nanosecs", "from 0 to 999999999", 10**9),
    ("/linux/timeOffsets/monotonic/secs", "must be an integer", "1"),
    ("/linux/timeOffsets/monotonic", "must be an object", 5),
    ("/linux/timeOffsets", "must be an object", 5),
    ("/linux/devices/0/type", '"x" is not one of c, b, u, p', "x"),
    ("/linux/devices/0/type", '"cb" is not one of', "cb"),
    ("/linux/devices/0/path", "must be the absolute path of a file", "dev/fuse"),
    ("/linux/devices/0/path", "must be the absolute path of a file", "/"),
    ("/linux/devices/0/path", "must be the absolute path of a file", ""),
    ("/linux/devices/0/path", "is required", MISSING),
    ("/linux/devices/0/major", "is required, and missing (config-linux.md#devices)", MISSING),
    ("/linux/devices/0/minor", "is required", MISSING),
    ("/linux/devices/0/minor", "is required", None),
    ("/linux/devices/0/major", "from 0 to 4095", 4096),
    ("/linux/devices/0/minor", "from 0 to 1048575", -1),
    ("/linux/devices/0/fileMode", "262144 is not a mode", 0o1000000),
    ("/linux/devices/0/uid", "from 0 to 4294967294", UINT32),
    ("/linux/devices/0/gid", "from 0 to 4294967294", UINT32),
    ("/linux/devices/2/path", '"/dev/fuse" is there before as another device',
     (("/linux/devices/-", {"path": "/dev/fuse", "type": "c", "major": 1, "minor": 3}),)),
    ("/linux/cgroupsPath", "must not have '..' as a component", "/a/../../b"),
    ("/linux/cgroupsPath", "must not have '..' as a component", ".."),
    ("/linux/cgroupsPath", "must not have a line break", "/a\nb"),
    ("/linux/cgroupsPath", "must not have more than 100 components, but has 101", "/a/" * 101),
    *[(f"/linux/sysctl/{key}", "is not a parameter of a namespace: it would change the host", "1")
      for key in ("kernel.panic", "vm.swappiness", "fs.file-max", "kernel~1sem~1x", "netx.a",
                  "kernel.shmmax.x", "user.x",
                  "fs~1mqueue~0~1x")],
    *[(f"/linux/sysctl/{key}", "is not the name of a kernel parameter", "1")
      for key in ("", "net", "net.", ".net.x", "net..x", "net~1..~1kernel~1panic", "~1net~1x", "net~1.~1x")],
    ("/linux/sysctl/net~1ipv4~1ip_forward", "is there twice in different spellings", "0"),
    ("/linux/sysctl/kernel.hostname", "must be set by /hostname", "x"),
    ("/linux/sysctl/kernel.domainname", "conflicts with /domainname", "x"),
    ("/linux/sysctl/net.ipv4.ip_forward", "needs a network namespace",
     (without_namespace("network"), ("/linux/sysctl", {"net.ipv4.ip_forward": "1"}))),
    ("/linux/sysctl/kernel~1sem", "needs a ipc namespace",
     (without_namespace("ipc"), ("/linux/sysctl", {"kernel/sem": "1"}))),
    ("/linux/sysctl/fs.mqueue.x", "needs a ipc namespace",
     (without_namespace("ipc"), ("/linux/sysctl", {"fs.mqueue.x": "1"}))),
    ("/linux/sysctl/kernel.domainname", "needs a uts namespace",
     (without_namespace("uts"), ("/hostname", MISSING), ("/domainname", MISSING),
      ("/linux/sysctl/kernel.domainname", "x"))),
    ("/linux/sysctl/net.x", "must be a string, not a number", 1),
    ("/linux/netDevices/eth0/name", "must be a string, not a number", changes(
        ("/linux/netDevices", {"eth0": {"name": 1}}))),
    ("/linux/netDevices/eth0", "must be an object", changes(("/linux/netDevices", {"eth0": "eth1"}))),
    ("/linux/netDevices", "needs a network namespace", (
        without_namespace("network"), ("/linux/sysctl", MISSING), ("/linux/netDevices", {"eth0": {}}))),
    *[(f"/linux/netDevices/{escape(name)}", part, changes(("/linux/netDevices", {name: {}})))
      for name, part in (*WRONG_DEVICES, ("lo", "cannot be moved"), ("eth%d", "percent"))],
    *[("/linux/netDevices/eth0/name", part, changes(("/linux/netDevices", {"eth0": {"name": name}})))
      for name, part in (*WRONG_DEVICES[1:], ("lo", "is taken"), ("%deth", "percent"), ("a%d%d", "percent"))],
    ("/linux/netDevices/b/name", '"x" is the name of "a" in the container already', changes(
        ("/linux/netDevices", {"a": {"name": "x"}, "b": {"name": "x"}}))),
    ("/linux/netDevices/b", '"b" is the name of "a" in the container already', changes(
        ("/linux/netDevices", {"a": {"name": "b"}, "b": {}}))),
    ("/linux/intelRdt/closID", "must be a string, not a number", changes(("/linux/intelRdt", {"closID": 5}))),
    *[("/linux/intelRdt/closID", "is neither the name of", changes(("/linux/intelRdt", {"closID": name})))
      for name in ("a/b", "..", ".", "info", "mon_groups", "a\nb", "//")],
    ("/linux/intelRdt/closID", "must not be longer", changes(("/linux/intelRdt", {"closID": "x" * 256}))),
    ("/linux/intelRdt/memBwSchema", "must start with MB:", changes(("/linux/intelRdt", {"memBwSchema": "L3:0=f"}))),
    ("/linux/intelRdt/memBwSchema", "line break", changes(("/linux/intelRdt", {"memBwSchema": "MB:0=9\nL3:0=f"}))),
    ("/linux/intelRdt/schemata/1", "line break", changes(("/linux/intelRdt", {"schemata": ["L3:0=f", "MB:0=9\nx"]}))),
    ("/linux/rootfsPropagation", '"sharing" is not one of shared,', "sharing"),
    ("/linux/maskedPaths/0", 'must be an absolute path, not "proc"', "proc"),
    ("/linux/readonlyPaths/0", "must be an absolute path", ""),
    *[("/linux/maskedPaths/0", "must not be the root itself", path) for path in ("/", "//", "/.", "/..")],
    ("/linux/readonlyPaths/0", "must not be the root itself: /root/readonly makes that read-only", "/"),
    ("/linux/resources/devices/0/allow", "is required", MISSING),
    ("/linux/resources/devices/1/type", '"u" is not one of a, b, c', "u"),
    ("/linux/resources/devices/1/access", "must be a composition of r, w and m", "rx"),
    ("/linux/resources/devices/1/access", "must be a composition of r, w and m", ""),
    ("/linux/resources/devices/1/major", "must be an integer from 0 to", -2),
    ("/linux/resources/devices/1/minor", "must be an integer from 0 to", 2**32),
    *[(f"/linux/resources/memory/{name}", "must not be less than -1, but is -2", -2)
      for name in ("limit", "reservation", "swap", "kernel", "kernelTCP") if name != "limit"],
    ("/linux/resources/memory/limit", "must not be less than -1, but is -2",
     (("/linux/resources/memory", {"limit": -2}),)),
    ("/linux/resources/memory/swappiness", "from 0 to 100, not 101", 101),
    ("/linux/resources/memory/swap", "must not be less than the memory limit 1000000, but is 999999", 999999),
    ("/linux/resources/memory/swap", "needs a memory limit", (("/linux/resources/memory/limit", MISSING),)),
    ("/linux/resources/memory/swap", "needs a memory limit", (("/linux/resources/memory/limit", -1),)),
    ("/linux/resources/cpu/burst", "must not be greater than the quota 50000, but is 50001", 50001),
    ("/linux/resources/cpu/quota", "must not be less than 1000", (("/linux/resources/cpu", {"quota": 999}),)),
    ("/linux/resources/cpu/period", "from 1000 to 1000000", 999),
    ("/linux/resources/cpu/period", "from 1000 to 1000000", 1000001),
    ("/linux/resources/cpu/idle", "from 0 to 1", 2),
    ("/linux/resources/cpu/idle", "from 0 to 1", -1),
    ("/linux/resources/cpu/realtimeRuntime", "must not be greater than realtimePeriod", 100001),
    ("/linux/resources/cpu/realtimeRuntime", "must not be less than -1", -2),
    *[(f"/linux/resources/cpu/{name}", "is not a list of numbers and ranges", text)
      for name in ("cpus", "mems")
      for text in ("a", "1-", "-1", "2-1", "1,,2", ",", "0-3-5", "\u0661", "1\n2", "9" * 20)],
    ("/linux/resources/pids/limit", "must not be less than -1", -2),
    ("/linux/resources/blockIO/weight", "from 10 to 1000", 9),
    ("/linux/resources/blockIO/leafWeight", "from 10 to 1000", 1001),
    ("/linux/resources/blockIO/weight", "from 0 to 65535", 65536),
    ("/linux/resources/blockIO/weightDevice/0", "must have weight or leafWeight", {"major": 1, "minor": 1}),
    ("/linux/resources/blockIO/weightDevice/0/weight", "from 10 to 1000", 5),
    ("/linux/resources/blockIO/weightDevice/0/leafWeight", "from 10 to 1000", 5),
    ("/linux/resources/blockIO/weightDevice/0/major", "must not be less than 0", -1),
    ("/linux/resources/blockIO/weightDevice/0/minor", "is required", MISSING),
    *[(f"/linux/resources/blockIO/{name}/0/{number}", "must not be less than 0", -1)
      for name in ("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice",
                  "throttleWriteIOPSDevice")
      for number in ("major", "minor")],
    ("/linux/resources/blockIO/throttleReadBpsDevice/0/rate", "is required", MISSING),
    *[("/linux/resources/hugepageLimits/0/pageSize", "is not a page size such as", text)
      for text in ("", "B", "MB", "2M", "2mb", "02MB", "0MB", "2 MB", "-2MB", "2TB", "\u0662MB", "2MBB")],
    ("/linux/resources/hugepageLimits/1/pageSize", "2MB is there twice", "2MB"),
    ("/linux/resources/hugepageLimits/1/limit", "is required", MISSING),
    *[(f"/linux/resources/unified/{key}", "is not the name of a cgroup file", "1")
      for key in ("", "..", ".", "memory", "..~1memory.max", "a.b~1c", ".procs", "memory.")],
    *[(f"/linux/resources/unified/{key}", "does not set a limit", "1") for key in sorted(resource_rules.CGROUP_CORE)],
    ("/linux/resources/rdma/mlx5", "must have hcaHandles or hcaObjects", {}),
    ("/linux/seccomp/defaultAction", '"SCMP_ACT_NOPE" is not one of SCMP_ACT_KILL,', "SCMP_ACT_NOPE"),
    ("/linux/seccomp/defaultAction", "is required", MISSING),
    ("/linux/seccomp/defaultErrnoRet", "must be absent: SCMP_ACT_ALLOW returns no errno",
     (("/linux/seccomp/defaultAction", "SCMP_ACT_ALLOW"),)),
    ("/linux/seccomp/defaultErrnoRet", "from 0 to 4094", 4095),
    ("/linux/seccomp/architectures/0", '"x86_64" is not one of SCMP_ARCH_X86,', "x86_64"),
    ("/linux/seccomp/flags/0", '"LOG" is not one of SECCOMP_FILTER_FLAG_TSYNC', "LOG"),
    ("/linux/seccomp/listenerMetadata", "must be absent without listenerPath",
     (("/linux/seccomp/listenerPath", MISSING),)),
    ("/linux/seccomp/listenerPath", "is required with SCMP_ACT_NOTIFY", (
        ("/linux/seccomp/syscalls/0/action", "SCMP_ACT_NOTIFY"), ("/linux/seccomp/listenerPath", MISSING),
        ("/linux/seccomp/listenerMetadata", MISSING))),
    ("/linux/seccomp/syscalls/0/action", "is not one of", "ALLOW"),
    ("/linux/seccomp/syscalls/0/action", "is required", MISSING),
    ("/linux/seccomp/syscalls/0/names", "must have at least one name", []),
    ("/linux/seccomp/syscalls/0/names", "is required", MISSING),
    ("/linux/seccomp/syscalls/0/names/1", "must not be empty", ""),
    ("/linux/seccomp/syscalls/0/errnoRet", "must be absent: SCMP_ACT_ALLOW returns no errno", 1),
    ("/linux/seccomp/syscalls/1/errnoRet", "from 0 to 65535", 65536),
    ("/linux/seccomp/syscalls/1/args/0/index", "from 0 to 5", 6),
    ("/linux/seccomp/syscalls/1/args/0/op", "is not one of SCMP_CMP_NE", "EQ"),
    ("/linux/seccomp/syscalls/1/args/0/value", "is required", MISSING),
    ("/process/scheduler/policy", "is required", changes(("/process/scheduler", {}))),
    ("/process/scheduler/policy", "is not one of SCHED_OTHER", changes(("/process/scheduler", {"policy": "OTHER"}))),
    ("/process/scheduler/nice", "must be an integer", changes(("/process/scheduler", other(nice="low")))),
    ("/process/scheduler/nice", "from -20 to 19", changes(("/process/scheduler", other(nice=20)))),
    ("/process/scheduler/runtime", "from 0 to", changes(("/process/scheduler", other(runtime=-1)))),
    ("/process/scheduler/period", "only SCHED_DEADLINE", changes(("/process/scheduler", other(period=1)))),
    ("/process/scheduler/priority", "must be 0 or absent", changes(("/process/scheduler", other(priority=1)))),
    ("/process/scheduler/priority", "is required", changes(("/process/scheduler", {"policy": "SCHED_FIFO"}))),
    ("/process/scheduler/priority", "from 1 to 99", changes(
        ("/process/scheduler", {"policy": "SCHED_RR", "priority": 100}))),
    ("/process/scheduler/runtime", "must not be less than 1024 (nanoseconds), but is 1023", deadline(1023, 5000, 5000)),
    ("/process/scheduler/deadline", "must not be less than runtime 5000, but is 4999", deadline(5000, 4999)),
    ("/process/scheduler/period", "must be 0, or not less than deadline 5001", deadline(5000, 5001, 5000)),
    ("/process/scheduler/period", "less than 2^63", deadline(5000, 5000, 2**63)),
    ("/process/scheduler/flags/0", "is not one of SCHED_FLAG_", changes(("/process/scheduler", other(flags=["X"])))),
    ("/process/ioPriority/priority", "is required", changes(("/process/ioPriority", {"class": "IOPRIO_CLASS_BE"}))),
    ("/process/ioPriority/priority", "from 0 to 7", changes(
        ("/process/ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}))),
    ("/process/ioPriority/class", "is not one of IOPRIO_CLASS_RT", changes(
        ("/process/ioPriority", {"class": "BE", "priority": 0}))),
    ("/process/execCPUAffinity/initial", "must be a string", changes(("/process/execCPUAffinity", {"initial": 5}))),
    ("/process/execCPUAffinity/final", "ends before it begins", changes(
        ("/process/execCPUAffinity", {"final": "3-1"}))),
    ("/linux/personality/domain", "is required", changes(("/linux/personality", {}))),
    ("/linux/personality/domain", "is not one of LINUX, LINUX32", changes(("/linux/personality", {"domain": "BSD"}))),
    ("/linux/personality/flags", "must be empty", changes(
        ("/linux/personality", {"domain": "LINUX", "flags": ["x"]}))),
    ("/linux/memoryPolicy/mode", "is required", changes(("/linux/memoryPolicy", {"nodes": "0"}))),
    ("/linux/memoryPolicy/mode", "is not one of MPOL_DEFAULT", changes(("/linux/memoryPolicy", {"mode": "BIND"}))),
    ("/linux/memoryPolicy/flags/0", "is not one of MPOL_F_", changes(
        ("/linux/memoryPolicy", {"mode": "MPOL_BIND", "nodes": "0", "flags": ["x"]}))),
    ("/linux/memoryPolicy/nodes", "is more than 1023", changes(
        ("/linux/memoryPolicy", {"mode": "MPOL_BIND", "nodes": "0,5000"}))),
    ("/linux/memoryPolicy/nodes", "neither a number nor a range", changes(
        ("/linux/memoryPolicy", {"mode": "MPOL_BIND", "nodes": "all"}))),
    *[("/linux/memoryPolicy/nodes", f"{mode} has no nodes", policy(mode, "0"))
      for mode in ("MPOL_DEFAULT", "MPOL_LOCAL")],
    *[("/linux/memoryPolicy/nodes", f"is required: {mode} has at least one node", policy(mode, nodes))
      for mode in ("MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE", "MPOL_PREFERRED_MANY")
      for nodes in ("", " , ")],
    ("/linux/memoryPolicy/flags", "must not have both", policy("MPOL_BIND", "0", "STATIC", "RELATIVE")),
    *[("/linux/memoryPolicy/flags", "without nodes", policy(mode, "", flag))
      for mode in ("MPOL_LOCAL", "MPOL_PREFERRED") for flag in ("STATIC", "RELATIVE")],
]  # fmt: skip

# (pointer, value) of each row of spec/unsupported.py
UNSUPPORTED: list[tuple[str, object]] = []


def is_changes(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], tuple)


@pytest.mark.parametrize(("pointer", "part", "value"), BAD)
def test_bad(pointer: str, part: str, value: Any) -> None:
    if isinstance(value, tuple) and not is_changes(value):
        value = (value,)
    document = changed(*value) if is_changes(value) else changed((pointer, value))
    problems = found(document)
    unsupported = {each for each, message in problems.items() if refusals.MESSAGE in message}
    assert set(problems) - unsupported - {pointer} == set(), problems
    assert part in problems[pointer]
    assert "(config" in problems[pointer]


def test_unsupported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing of the kind in this version: what a row would do."""
    monkeypatch.setattr(refusals, "LINUX", (("intelRdt", "intel_rdt"),))
    monkeypatch.setattr(refusals, "MOUNT_OPTIONS", ("rprivate",))
    unsupported = {"/mounts/1/options/2", "/linux/intelRdt"}
    problems = found(changed(("/linux/intelRdt", {"closID": "group"})))
    assert set(problems) == unsupported
    for pointer in unsupported:
        assert problems[pointer].endswith("is not supported by this version of pyoci (config.md#valid-values)")


def test_unsupported_rows_are_all_tested() -> None:
    tested = {pointer for pointer, _ in UNSUPPORTED}
    for where, rows in (
        ("/process", refusals.PROCESS),
        ("/linux", refusals.LINUX),
        ("/linux/resources", refusals.RESOURCES),
    ):
        assert {f"{where}/{name}" for name, _ in rows} <= tested


def test_every_check_cites_its_clause() -> None:
    checks: list[Any] = [*validate.CHECKS, *validate.PROCESS_CHECKS, *resource_rules.CHECKS, seccomp_rules.check]
    assert len(set(checks)) == len(checks)
    for check in checks:
        clause = read.clause(check)
        assert clause.startswith(("config.md#", "config-linux.md#")), check
        assert " " not in clause


def test_every_check_is_in_a_table() -> None:
    listed: set[object] = {*validate.CHECKS, *validate.PROCESS_CHECKS, *resource_rules.CHECKS, seccomp_rules.check}
    for module in (validate, linux_rules, resource_rules, seccomp_rules, refusals):
        functions: list[tuple[str, Any]] = inspect.getmembers(module, inspect.isfunction)
        for name, function in functions:
            documented = read.clause(function).startswith("config")
            if function.__module__ == module.__name__ and documented and name != "process_ids_mapped":
                assert function in listed, name


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net", None),
        ("net/../kernel/panic", None),
        ("net..x", None),
        ("net.//.kernel.x", None),
    ],
)
def test_sysctl_path(key: str, path: str | None) -> None:
    assert sysctl_path(key) == path


@given(st.text(alphabet="net./kerl-_", max_size=20))
def test_sysctl_path_stays_below_proc_sys(key: str) -> None:
    path = sysctl_path(key)
    assert path is None or not {"", ".", ".."} & set(path.split("/"))


def test_parse_version() -> None:
    assert parse_version("1.2.3") == (1, 2, 3)
    assert parse_version("10.20.30-rc.1+x.001") == (10, 20, 30)
    assert parse_version("1.0.0+a-b") == (1, 0, 0)
    assert parse_version("1.0.0-a+b+c") is None


@given(st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 9999)), min_size=1))
def test_number_lists(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{last}" if first != last else str(first) for first, last in ranges)
    assert number_list(text) == all(first <= last for first, last in ranges)


def test_checks_of_a_process_alone() -> None:
    spec = types.Spec("1.0.0", types.Root("rootfs"))
    with pytest.raises(ConfigError) as caught:
        load_process(b'{"cwd": "x", "args": [], "scheduler": {"policy": "IDLE"}}', spec)
    assert [each.pointer for each in caught.value.problems] == ["/args", "/cwd", "/scheduler/policy"]
    assert all(each.clause for each in caught.value.problems)
