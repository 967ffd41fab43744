"""What really happens is a word of the printed plan: init's system calls as strace(1) sees them, op for op.

The trace must follow the plan, with guards taken as the results say, descriptors passed on as the names say, and every
string and flag as printed; between the ops only init's own reports to the runtime.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, agent  # noqa: F401 - agent is a fixture

import pyoci
from pyoci.__main__ import OPTIONS, START
from pyoci.commands.spec import default
from pyoci.container.execute import target_of
from pyoci.host import Host, probe, probe_sources
from pyoci.launch import FORKS, INIT_ELF
from pyoci.plan import join, render
from pyoci.plan.container import PlanOptions, plan_container
from pyoci.plan.ops import INIT, Op, Ref, Struct, Vector
from pyoci.program import leading
from pyoci.spec.load import load
from pyoci.spec.types import Spec
from pyoci.state import Store

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
    pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox (statically linked) is not installed"),
    pytest.mark.skipif(not Path(INIT_ELF).exists(), reason="init is not built: ./check native"),
]

CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\w+)(?: (E[A-Z0-9]+))?.*")
UNFINISHED = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
# Flags that strace calls otherwise: by a name of the call's own, or by parts of a mask.
SYNONYMS = {
    "O_CLOEXEC": r"\w+_CLOEXEC",
    "CLONE_NEWTIME": r"CLONE_NEWTIME|0x80",
    "MOUNT_ATTR__ATIME": r"MOUNT_ATTR__ATIME|0x40",
}


class Call:
    """One system call of a trace: `arguments` as strace prints them, `number` the errno or 0."""

    def __init__(self, name: str, arguments: str, result: str, error: str | None) -> None:
        self.name = name
        self.arguments = arguments
        octal = result.startswith("0") and result.isdigit()  # umask's
        self.result = 0 if result == "?" else int(result, 8 if octal else 0)
        self.number = getattr(errno, error) if error and not error.startswith("ERESTART") else 0

    def __repr__(self) -> str:
        return f"{self.name}({self.arguments}) = {self.result}" + (f" {self.number}" if self.number else "")


def parse(text: str) -> dict[int, list[Call]]:
    """The calls of each process in order."""
    calls: dict[int, list[Call]] = {}
    begun: dict[int, str] = {}
    for line in text.splitlines():
        if (match := UNFINISHED.fullmatch(line)) is not None:
            begun[int(match[1])] = match[3]
            continue
        if (match := RESUMED.fullmatch(line)) is not None:
            match = CALL.fullmatch(f"{match[1]} {match[2]}({begun.pop(int(match[1]))}{match[3]}")
        else:
            match = CALL.fullmatch(line)
        if match is not None:
            calls.setdefault(int(match[1]), []).append(Call(match[2], match[3], match[4], match[5]))
    return calls


def init_of(calls: dict[int, list[Call]]) -> list[list[Call]]:
    """The calls of stage A after its execve of the sealed image, and those of what comes after it."""
    for trace in calls.values():
        for place, call in enumerate(trace):
            if call.name == "execve" and not call.number and '"/proc/self/fd/' in call.arguments:
                stages = [trace[place + 1 :]]
                while clones := [each for each in stages[-1] if "CLONE_PARENT" in each.arguments]:
                    (clone,) = clones
                    stages.append(calls[clone.result])
                assert len(stages) > 1
                return stages
    raise AssertionError("init was never executed")


def quoted(data: bytes) -> str:
    """A string as strace prints it."""
    escapes = {10: "\\n", 9: "\\t", 13: "\\r", 11: "\\v", 12: "\\f", 34: '\\"', 92: "\\\\"}
    return '"' + "".join(escapes.get(c, chr(c) if 32 <= c < 127 else f"\\{c:o}") for c in data) + '"'


class Follower:
    """Walks a plan along a trace."""

    def __init__(self, stages: list[list[Call]], fds: dict[str, int]) -> None:
        self.stages = stages
        self.stage = 0
        self.place = 0
        self.names = dict(fds)
        self.count = 0

    def next(self) -> Call:
        call = self.stages[self.stage][self.place]
        self.place += 1
        return call

    def report(self, why: str) -> None:
        """init tells the runtime something."""
        call = self.next()
        control = self.names["control"]
        assert call.name == "write" and call.arguments.startswith(f"{control}, "), f"{why}: {call}"

    def follow(self, ops: Sequence[Op]) -> None:
        at_barrier = False
        for op in ops:
            if op.performer != INIT:
                if not at_barrier:
                    at_barrier = True
                    if op.call != "listener":  # of which a helper tells
                        self.report("barrier")
                    answer = self.next()
                    assert answer.name == "read" and answer.arguments.startswith(f"{self.names['control']}, "), answer
                continue
            at_barrier = False
            if op.call == "expect":
                continue  # a comparison in memory
            call = self.next()
            name = "clone3" if op.call == "spawn" else op.call
            assert call.name == name, f"{call} instead of {op!r} after {self.count} ops"
            self.same(op, call)
            self.count += 1
            if op.call in FORKS:
                self.report("pid")
                assert [each.name for each in self.stages[self.stage][self.place :]] in (["exit_group"], [])
                self.stage, self.place = self.stage + 1, 0
            if call.number:
                assert call.number in op.tolerate, f"{call}: {op!r}"
                self.follow(op.otherwise)
            elif op.call != "spawn":
                if op.result is not None:
                    self.names[op.result] = call.result
                self.follow(op.then)
            if op.call == "execve" and not call.number:
                return

    def same(self, op: Op, call: Call) -> None:
        """The strings, descriptors and flags of `op` are those of `call`."""
        words = call.arguments.split(", ")
        for position, value in enumerate(op.args):
            if isinstance(value, Ref):
                assert words[position] == str(self.names[value.name]), f"{call}: @{value.name} of {op!r}"
            elif isinstance(value, bytes):
                assert quoted(value) in call.arguments, f"{call}: {value!r} of {op!r}"
            elif isinstance(value, Vector):
                shown = "[" + ", ".join(quoted(item) for item in value.items if isinstance(item, bytes)) + "]"
                assert shown in call.arguments, f"{call}: {shown}"
            elif isinstance(value, Struct | int):
                for flag in re.findall(r"\b[A-Z]+_[A-Z_]+\b", render.argument(op, position)):
                    assert re.search(SYNONYMS.get(flag, rf"\b{flag}\b"), call.arguments), f"{call}: {flag} of {op!r}"


SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
SEARCH = ["PATH=/nowhere:/bin", "A=b c"]


def richer(document: dict[str, Any]) -> dict[str, Any]:
    """Something of everything: guards that are taken, and such that are not."""
    document["process"] |= {
        "user": {"uid": 1000, "gid": 1000, "umask": 0o27, "additionalGids": [5, 6]},
        "args": ["true"],
        "env": SEARCH,
        "cwd": "/made/for/it",
        "oomScoreAdj": 100,
        "noNewPrivileges": False,
        "capabilities": {kind: ["CAP_KILL"] for kind in SETS},
    }
    document["root"]["readonly"] = False
    document["mounts"] += [
        {"destination": "/new/file", "source": "/etc/passwd", "options": ["bind", "ro"]},
        {"destination": "/new/dir", "type": "none", "source": "/etc", "options": ["rbind", "rro", "rprivate"]},
    ]
    linux = document["linux"]
    linux["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "uid": 1000, "fileMode": 0o600}]
    linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    linux["maskedPaths"] += ["/etc", "/bin/busybox-is-not-here"]
    linux["rootfsPropagation"] = "shared"
    return document


def in_user_namespace(document: dict[str, Any]) -> dict[str, Any]:
    linux = document["linux"]
    linux["namespaces"] += [{"type": "user"}, {"type": "time"}]
    linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    linux["timeOffsets"] = {"boottime": {"secs": 100, "nanosecs": 0}}
    return document


def as_it_is(document: dict[str, Any]) -> dict[str, Any]:
    return document


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """busybox, and the mount points that are missing."""
    folder = tmp_path / "bundle"
    (folder / "rootfs" / "bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, folder / "rootfs" / "bin" / "busybox")
    for name in ("sh", "true"):
        (folder / "rootfs" / "bin" / name).symlink_to("busybox")
    (folder / "rootfs" / "etc").mkdir()
    return folder


class Runtime:
    """The pyoci of this test, started as the launcher starts it, with or without strace around it."""

    def __init__(self, folder: Path) -> None:
        packages = str(Path(pyoci.__file__).parent.parent)
        self.folder = folder
        self.root = str(folder / "state")
        self.command = [sys.executable, *OPTIONS, "-c", START, packages, "", "--root", self.root]
        self.log = folder / "log"
        self.trace = ["strace", "-f", "-v", "-s", "4096", "-o", str(self.log)]

    def start(self, *args: str, trace: bool = False) -> subprocess.Popen[bytes]:
        # files, because the user of a container would be given a pipe
        with (self.folder / "errors").open("w") as errors:
            command = [*(self.trace if trace else ()), *self.command, *args]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)

    def run(self, *args: str, trace: bool = False, status: int = 0) -> None:
        with self.start(*args, trace=trace) as process:
            assert process.wait(120) == status, (self.folder / "errors").read_text()

    def follow(self, ops: Sequence[Op], fds: dict[str, int]) -> Follower:
        """Follow the plan to its execve."""
        follower = Follower(init_of(parse(self.log.read_text())), fds)
        follower.follow(ops[leading(ops) :])
        last = follower.stages[follower.stage][follower.place - 1]
        assert last.name == "execve" and not last.number
        return follower


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime(tmp_path)
    yield made
    for path in Path(made.root).glob("strace-*"):
        made.run("delete", "--force", path.name)


def machine(document: dict[str, Any], bundle: Path) -> tuple[Spec, Host]:
    """Write the bundle's config.json; what is planned with it."""
    data = json.dumps(document).encode()
    (bundle / "config.json").write_bytes(data)
    spec = load(data)
    host = probe()
    probe_sources(host, spec, str(bundle))
    host.stdio_nulls, host.stdio_pipes = (0, 1), ()
    return spec, host


def basic(*args: str) -> dict[str, Any]:
    document = default(False)
    document["process"] |= {"terminal": False, "args": list(args)}
    return document


def test_a_run_with_a_listener_is_a_word_of_its_plan(bundle: Path, runtime: Runtime, agent: Agent) -> None:  # noqa: F811
    document = basic("/bin/sh", "-c", "exit 7")
    document["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": agent.path,
    }
    spec, host = machine(document, bundle)
    name = f"strace-{os.getpid()}-listener"
    runtime.run("run", "--bundle", str(bundle), name, trace=True, status=7)
    plan = plan_container(spec, host, PlanOptions(name, str(bundle), listen=False))
    follower = runtime.follow(plan.ops, plan.fds)
    (load,) = [call for call in follower.stages[1] if call.name == "seccomp"]
    for flag in ("TSYNC", "LOG", "SPEC_ALLOW", "NEW_LISTENER", "TSYNC_ESRCH"):
        assert re.search(rf"\bSECCOMP_FILTER_FLAG_{flag}\b", load.arguments), load.arguments


@pytest.mark.parametrize("change", [as_it_is, richer, in_user_namespace])
def test_a_run_is_a_word_of_its_plan(
    change: Callable[[dict[str, Any]], dict[str, Any]], bundle: Path, runtime: Runtime
) -> None:
    spec, host = machine(change(basic("/bin/sh", "-c", "exit 7")), bundle)
    if change is in_user_namespace:
        os.chown(bundle / "rootfs", 100000, 100000)  # its root makes the mount points
    name = f"strace-{os.getpid()}-{change.__name__}"
    runtime.run("run", "--bundle", str(bundle), name, trace=True, status=0 if change is richer else 7)
    plan = plan_container(spec, host, PlanOptions(name, str(bundle), listen=False))
    follower = runtime.follow(plan.ops, plan.fds)
    assert follower.count > 80, "the trace is a whole one"
    # the user's program comes up without one descriptor of ours
    assert not [number for number in opened(follower.stages[1][follower.place :]) if number > 3]


def opened(calls: Sequence[Call]) -> Iterator[int]:
    for call in calls:
        if call.name in ("open", "openat", "socket", "dup", "dup2"):
            yield call.result


def test_create_and_start_are_a_word_of_one_plan(bundle: Path, runtime: Runtime) -> None:
    document = basic("true")
    document["process"]["env"] = SEARCH
    document["hooks"] = {
        "createRuntime": [{"path": "/bin/true"}],
        "createContainer": [{"path": "/bin/true"}],
        "startContainer": [{"path": "/bin/true"}],
    }
    spec, host = machine(document, bundle)
    name = f"strace-{os.getpid()}-created"
    # strace stays until init's end
    with runtime.start("create", "--bundle", str(bundle), name, trace=True) as process:
        state = Path(runtime.root) / name / "state.json"
        deadline = time.monotonic() + 60
        while not (state.exists() and json.loads(state.read_text())["phase"] == "created"):
            assert time.monotonic() < deadline and process.poll() is None, (runtime.folder / "errors").read_text()
            time.sleep(0.01)
        runtime.run("start", name)
        assert process.wait(60) == 0
    plan = plan_container(spec, host, PlanOptions(name, str(bundle)))
    runtime.follow(plan.ops, plan.fds)


@pytest.mark.parametrize("unseen", [False, True], ids=["", "among tracers"])
def test_an_exec_is_a_word_of_its_plan(bundle: Path, runtime: Runtime, unseen: bool) -> None:
    document = basic("sh", "-c", "while :; do sleep 1; done")
    if unseen:
        document["process"]["capabilities"]["bounding"] += ["CAP_SYS_PTRACE"]
        document["process"]["oomScoreAdj"] = 100
    spec, host = machine(document, bundle)
    (bundle / "rootfs" / "bin" / "sleep").symlink_to("busybox")
    name = f"strace-{os.getpid()}-running"
    runtime.run("run", "--detach", "--bundle", str(bundle), name)
    runtime.run("exec", "--user", "1000:1000", name, "/bin/sh", "-c", "exit 3", trace=True, status=3)
    store = Store.open(runtime.root, name)
    try:
        target = target_of(store.load())
    finally:
        store.close()
    process = spec.process
    assert process is not None
    process.args = ("/bin/sh", "-c", "exit 3")
    process.user.uid = process.user.gid = 1000
    ops = join.plan_exec(process, host, target, None, None, 0, None, unseen)
    follower = runtime.follow(ops, join.descriptors(0))
    assert follower.count > 30
    assert len(follower.stages) == (3 if unseen else 2)
