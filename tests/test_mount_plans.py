"""The plans of `mounts add` and `mounts remove`: what must hold for them, and what really happens is a word of them.

`mounts` has a document of its own (an array of mounts), and enters a container whose processes may be hostile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cases
import invariants
import pytest
from test_strace import Follower, Runtime, basic, bundle, init_of, machine, parse, runtime  # noqa: F401 - fixtures
from test_strace import pytestmark as marks

from pyoci.errors import ConfigError
from pyoci.kernel import flags as k
from pyoci.plan import mounting
from pyoci.plan.ops import RUNTIME, Op, Ref, Struct
from pyoci.program import leading
from pyoci.spec.load import load
from pyoci.state import Store

MAP = [{"containerID": 0, "hostID": 1000, "size": 10}]
MOUNTS: list[dict[str, Any]] = [
    {"destination": "/etc/one", "source": "/src/file", "options": ["bind", "ro"]},
    {"destination": "/tree", "type": "none", "source": "/src", "options": ["rbind", "rro", "rslave"]},
    {"destination": "/own", "source": "/src", "options": ["bind", "idmap"], "uidMappings": MAP, "gidMappings": MAP},
    {"destination": "/tmp/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "ro", "noexec"]},
    {"destination": "p", "type": "proc", "source": "proc", "options": ["nosuid"]},
    {"destination": "/q", "type": "mqueue", "source": "mqueue"},
    {"destination": "/layers", "type": "overlay", "source": "overlay", "options": ["lowerdir=a:b"]},
]
SPACES = ("pid", "network", "mount", "ipc", "uts", "cgroup")
def traced(test: Any) -> Any:
    """What strace needs, of this test alone."""
    for mark in marks:
        test = mark(test)
    return test


CHECKS = (
    invariants.performers_know_their_calls,
    invariants.origins_can_be_looked_up,
    invariants.guards_lead_forward_one_way,
    invariants.names_are_given_before_they_are_used,
    invariants.descriptors_are_close_on_exec,
    invariants.nothing_of_the_images_is_opened,
    invariants.equal_inputs_are_equal_bytes_that_read_back,
)


def added(mounts: list[dict[str, Any]], user: bool) -> mounting.Addition:
    document = basic("true")
    document["mounts"] = mounts
    spec = load(json.dumps(document).encode())
    spec.process = None
    spaces = [*SPACES, "user"] if user else list(SPACES)
    made = cases.host("v2")
    made.source_types = {"/src": "dir", "/src/file": "file"}
    made.direct_sources = ("/src", "/src/file")
    mounting.check(spec, spaces, True)
    return mounting.plan_add(spec, made, "/bundle", {"": "/sys/fs/cgroup/id"}, spaces, user)


def removed(user: bool) -> mounting.Addition:
    spaces = [*SPACES, "user"] if user else list(SPACES)
    return mounting.plan_remove([(0, "/etc/one", 4711), (1, "/tree", 4712)], spaces)


def undone(user: bool) -> mounting.Addition:
    return mounting.plan_undo(2, [*SPACES, "user"] if user else list(SPACES))


def listed(user: bool) -> list[dict[str, Any]]:
    """What may be added; the kernel keeps overlay from the root of another user namespace."""
    return [entry for entry in MOUNTS if not user or entry.get("type") != "overlay"]


def ops_of(make: Callable[[], mounting.Addition]) -> list[Op]:
    return make().ops


def examples() -> Iterator[Any]:
    for user in (False, True):
        for name, make in (
            ("add", partial(added, listed(user), user)),
            ("one", partial(added, listed(user)[:1], user)),
            ("remove", partial(removed, user)),
            ("undo", partial(undone, user)),
        ):
            document = {"mounts": listed(user)}
            case = cases.Case("mounts", document, partial(ops_of, make), make().fds, True, {"": "/cgroup"})
            yield pytest.param(case, id=f"{name}-user" if user else name)


CASES = pytest.mark.parametrize("case", list(examples()))


@pytest.mark.parametrize(("more", "refused"), [([], True), (["CAP_SYS_ADMIN"], False), (["user"], False)])
def test_no_procfs_among_processes_that_may_trace_its_maker(more: list[str], refused: bool) -> None:
    document = basic("true")
    document["mounts"] = [MOUNTS[0], *[entry for entry in MOUNTS if entry.get("type") == "proc"]]
    document["process"]["capabilities"] = {"bounding": ["CAP_SYS_PTRACE", *[name for name in more if name != "user"]]}
    spec = load(json.dumps(document).encode())
    spaces = [*SPACES, *[name for name in more if name == "user"]]
    if refused:
        with pytest.raises(ConfigError, match="/mounts/1/type: proc is made by a process of the host's"):
            mounting.check(spec, spaces, True)
    else:
        mounting.check(spec, spaces, True)


@CASES
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_every_plan(check: invariants.Invariant, case: cases.Case) -> None:
    check(case)


@CASES
def test_nobody_in_the_container_can_trace_us(case: cases.Case) -> None:
    """Not dumpable before the first setns; and again after an id has changed, which makes a process dumpable."""
    hidden = case.where(lambda op: op.call == "prctl" and op.args[:2] == (k.PR_SET_DUMPABLE, 0))
    (entered,) = case.calls("setns")
    assert hidden[0] < entered < case.calls("clone3")[0]
    changed = case.calls("setresuid")
    assert not changed or changed[-1] < hidden[-1]


@CASES
def test_only_the_namespaces_that_are_needed_are_entered(case: cases.Case) -> None:
    flags = case.all[case.calls("setns")[0]].args[1]
    assert isinstance(flags, int) and flags & k.NAMESPACES["mount"]
    types = {case.all[place].args[0] for place in case.calls("fsopen")}
    for name, type_ in (("pid", b"proc"), ("ipc", b"mqueue"), ("network", b"sysfs"), ("cgroup", b"cgroup2")):
        assert bool(flags & k.NAMESPACES[name]) == (type_ in types), name
    assert not flags & k.NAMESPACES["uts"]


@CASES
def test_in_the_container_nothing_is_named_by_a_path(case: cases.Case) -> None:
    """From setns on a path is looked up below the container's root and without magic links, or is "/" itself."""
    inside = [op for op in case.all[case.calls("setns")[0] :] if op.performer != RUNTIME]
    for op in inside:
        if op.call == "openat2":
            how = op.args[2]
            assert isinstance(how, Struct) and isinstance(resolve := how.fields["resolve"], int)
            assert resolve & (k.RESOLVE_IN_ROOT | k.RESOLVE_BENEATH) and resolve & k.RESOLVE_NO_MAGICLINKS, op
        elif op.call == "openat":
            assert op.args[1] == b"/", op
        elif op.call == "umount2":
            # the name of a descriptor, in the host's procfs, which is the working directory
            before = inside[inside.index(op) - 2 : inside.index(op)]
            assert op.args[0] == mounting.NAMED and [each.call for each in before] == ["dup3", "fchdir"], op
        elif op.call in invariants.PATHS:
            directory, path, name_only = invariants.PATHS[op.call]
            assert directory is not None and isinstance(op.args[directory], Ref), op
            named = op.args[path]
            assert named == b"" or (name_only and isinstance(named, bytes) and b"/" not in named), op
        elif op.call == "open_tree":
            raise AssertionError(op)


@CASES
def test_what_is_mounted_is_known_before(case: cases.Case) -> None:
    """The runtime has the tree's descriptor, and has written it down, when it is attached; all or none are."""
    attached = case.calls("move_mount")
    known = case.where(lambda op: op.call == "remember")
    assert len(attached) == len(known)
    for index, (before, place) in enumerate(zip(known, attached, strict=True)):
        assert before < place and case.all[before].args == (index,) and case.all[before - 1].call == "sendmsg"


def traced_words(runtime: Runtime, ops: list[Op], fds: dict[str, int], *words: str) -> Follower:  # noqa: F811
    """Run `mounts ...` under strace; its init does what the plan says, to the end and nothing besides."""
    runtime.run("mounts", *words, trace=True)
    follower = Follower(init_of(parse(runtime.log.read_text())), fds)
    follower.follow(ops[leading(ops) :])
    assert {call.name for call in follower.stages[1][follower.place :]} <= {"exit_group"}
    return follower


@traced
def test_what_happens_is_a_word_of_the_plan(bundle: Path, runtime: Runtime) -> None:  # noqa: F811
    (bundle / "rootfs/bin/sleep").symlink_to("busybox")
    document = basic("sleep", "100")
    document["root"]["readonly"] = False
    machine(document, bundle)
    name = f"strace-{os.getpid()}-mounts"
    runtime.run("run", "--detach", "--bundle", str(bundle), name)
    document["mounts"] = [
        {"destination": "/etc/one", "source": "/etc/passwd", "options": ["bind", "ro"]},
        {"destination": "/made/tree", "type": "none", "source": "/etc", "options": ["rbind", "rro", "rprivate"]},
        {"destination": "/tmp/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "ro"]},
        {"destination": "/p", "type": "proc", "source": "proc", "options": ["nosuid"]},
    ]
    file = runtime.folder / "mounts.json"
    file.write_text(json.dumps(document["mounts"]))
    spec, host = machine(document, bundle)
    spec.process = None
    store = Store.open(runtime.root, name)
    try:
        state = store.load()
        plan = mounting.plan_add(spec, host, str(bundle), state.cgroup_paths, state.namespaces, False)
        assert traced_words(runtime, plan.ops, plan.fds, "add", name, str(file)).count > 60
        known = json.loads(store.read("mounts.json"))
    finally:
        store.close()
    assert [entry["destination"] for entry in known] == [entry["destination"] for entry in document["mounts"]]
    lines = [line.split() for line in Path(f"/proc/{state.pid}/mountinfo").read_text().splitlines()]
    places = {entry["destination"]: next(line for line in lines if line[4] == entry["destination"]) for entry in known}
    file.write_text(json.dumps(document["mounts"][:2]))
    found = [(index, known[index]["destination"], known[index]["id"]) for index in range(2)]
    plan = mounting.plan_remove(found, state.namespaces)
    assert traced_words(runtime, plan.ops, plan.fds, "remove", name, str(file)).count > 20
    left = {line.split()[4] for line in Path(f"/proc/{state.pid}/mountinfo").read_text().splitlines()}
    assert set(places) & left == {"/tmp/t", "/p"}
