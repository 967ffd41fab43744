"""The invariants have teeth: each way of breaking a good plan is noticed by the one that is there for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cases
import invariants
import pytest

from pyoci.commands.spec import default, rootless
from pyoci.kernel import flags as k
from pyoci.plan.container import PlanOptions
from pyoci.plan.ops import Op, Ref, Struct, Vector, walk

Condition = Callable[[Op], bool]
Change = Callable[[list[Op]], None]


OPTIONS = PlanOptions("id", "/bundle", console="console")


def plan() -> cases.Case:
    """A terminal, a hook, a filter without no_new_privs, an ambient capability, cgroup v2."""
    document: dict[str, Any] = default(True)
    del document["process"]["noNewPrivileges"]
    document["process"]["capabilities"] |= {"inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}
    document["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    document["hooks"] = {"createContainer": [{"path": "/x"}]}
    return cases.container(document, cases.host("v2"), OPTIONS)


def of_a_user() -> cases.Case:
    """A user namespace, and nobody's rights."""
    return cases.container(rootless(default(True), 1000, 1000), cases.host("v2", 1000), OPTIONS)


def exec_among_tracers() -> cases.Case:
    """A process that joins the pid namespace of some that may trace it."""
    joined = cases.joining(default(True), cases.host("v2"), OPTIONS)
    return next(case for case in joined if case.unseen)


def call(name: str) -> Condition:
    return lambda op: op.call == name


def hidden(op: Op) -> bool:
    return op.call == "prctl" and op.args[0] == k.PR_SET_DUMPABLE


def places(ops: list[Op], condition: Condition) -> list[int]:
    return [place for place, op in enumerate(ops) if condition(op)]


def drop(condition: Condition, which: int) -> Change:
    return lambda ops: ops.__delitem__(places(ops, condition)[which])


def swap(one: str, other: str) -> Change:
    def change(ops: list[Op]) -> None:
        first, second = places(ops, call(one))[-1], places(ops, call(other))[-1]
        ops[first], ops[second] = ops[second], ops[first]

    return change


def move(condition: Condition, before: str) -> Change:
    def change(ops: list[Op]) -> None:
        moved = ops.pop(places(ops, condition)[0])
        ops.insert(places(ops, call(before))[0], moved)

    return change


def guarded(**guards: Any) -> Change:
    return lambda ops: ops.insert(0, Op("setsid", (), "runtime.md#lifecycle", **guards))


def maps(op: Op) -> bool:
    return op.origin == "/linux/uidMappings"


def ambient(op: Op) -> bool:
    return op.call == "prctl" and op.args[0] == k.PR_CAP_AMBIENT


READABLE = Struct("open_how", flags=k.O_RDWR | k.O_CLOEXEC, resolve=k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS)


def add(before: str, name: str, *args: object, origin: str = "runtime.md#lifecycle") -> Change:
    return lambda ops: ops.insert(places(ops, call(before))[0], Op(name, args, origin))


MISTAKES: dict[str, tuple[Change, invariants.Invariant]] = {
    "groups after ids": (swap("setgroups", "setresuid"), invariants.identity_before_capabilities),
    "gid after uid": (swap("setresgid", "setresuid"), invariants.identity_before_capabilities),
    "capabilities before ids": (move(call("capset"), "setresgid"), invariants.identity_before_capabilities),
    "limits too late": (move(call("prlimit64"), "faccessat2"), invariants.limits_while_they_can_be_raised),
    "dumpable while entering": (drop(hidden, 0), invariants.nobody_can_trace_us),
    "hidden too late": (move(hidden, "setsid"), invariants.nobody_can_trace_us),
    "dumpable while waiting": (drop(hidden, -1), invariants.nobody_can_trace_us),
    "CAP_SYS_ADMIN kept": (drop(call("capset"), -1), invariants.seccomp_comes_as_late_as_it_may),
    "seccomp too early": (move(call("seccomp"), "created"), invariants.seccomp_comes_as_late_as_it_may),
    "hooks too late": (move(call("hooks"), "created"), invariants.hooks_see_the_container_before_it_is_closed),
    "cgroup namespace first": (move(call("unshare"), "clone3"), invariants.in_its_cgroup_before_it_sees_cgroups),
    "nothing closed": (drop(call("close_range"), -1), invariants.nothing_of_the_hosts_stays_open),
    "another program": (
        add("setsid", "execve", b"/x", Vector([]), Vector([])),
        invariants.one_program_and_it_is_the_users,
    ),
    "more work at start": (add("execve", "mkdirat", k.AT_FDCWD, b"x", 0o755), invariants.start_has_little_left_to_do),
    "closed twice": (add("fchdir", "close", Ref("fs")), invariants.names_are_given_before_they_are_used),
    "a name of nothing": (add("fchdir", "fchdir", Ref("nothing")), invariants.names_are_given_before_they_are_used),
    "no reason": (add("fchdir", "setsid", origin="/process/nothing"), invariants.origins_can_be_looked_up),
    "no clause": (add("fchdir", "setsid", origin="because"), invariants.origins_can_be_looked_up),
    "left open": (
        add("fchdir", "openat", k.AT_FDCWD, b"/dev/null", k.O_NOFOLLOW),
        invariants.descriptors_are_close_on_exec,
    ),
    "a path in the root": (
        add("fchdir", "mkdirat", k.AT_FDCWD, b"/x", 0o755),
        invariants.the_root_is_reached_by_handles,
    ),
    "two components": (
        add("fchdir", "mkdirat", Ref("rootfs"), b"x/y", 0o755),
        invariants.the_root_is_reached_by_handles,
    ),
    "a link followed": (
        add("fchdir", "fchmodat", Ref("rootfs"), b"x", 0o755),
        invariants.the_root_is_reached_by_handles,
    ),
    "an unknown call": (add("fchdir", "reboot"), invariants.performers_know_their_calls),
    "too many errnos": (guarded(tolerate=tuple(range(1, 8))), invariants.guards_lead_forward_one_way),
    "two blocks": (
        guarded(tolerate=(1,), then=[Op("setsid", (), "x")], otherwise=[Op("setsid", (), "x")]),
        invariants.guards_lead_forward_one_way,
    ),
    "a block for nothing": (guarded(otherwise=[Op("setsid", (), "x")]), invariants.guards_lead_forward_one_way),
    "ambient set emptied again": (move(ambient, "capset"), invariants.ambient_within_reach),
    "a file of the image's opened": (
        add("fchdir", "openat2", Ref("rootfs"), b"x", READABLE, 24),
        invariants.nothing_of_the_images_is_opened,
    ),
}
# of other plans
ELSEWHERE: dict[str, tuple[Callable[[], cases.Case], Change, invariants.Invariant]] = {
    "mapped too late": (of_a_user, move(maps, "setsid"), invariants.ids_before_anything_is_owned),
    "seen with rights": (
        exec_among_tracers, move(call("capset"), "execve"), invariants.what_can_be_traced_has_nothing_to_lose
    ),
}  # fmt: skip
ALL = {name: (plan, *mistake) for name, mistake in MISTAKES.items()} | ELSEWHERE


def with_ops(case: cases.Case, ops: list[Op], make: Callable[[], list[Op]]) -> cases.Case:
    """The same case with another plan."""
    other = copy.copy(case)
    other.ops, other.make, other.all = ops, make, list(walk(ops))
    return other


@pytest.mark.parametrize("name", ALL)
def test_mistakes_are_noticed(name: str) -> None:
    made, change, check = ALL[name]
    case = made()
    check(case)
    change(case.ops)
    with pytest.raises((AssertionError, KeyError)):
        check(with_ops(case, case.ops, lambda: case.ops))


def test_a_plan_that_is_another_one_each_time_is_noticed() -> None:
    case, other = plan(), plan()
    drop(call("umask"), 0)(other.ops)
    check = invariants.equal_inputs_are_equal_bytes_that_read_back
    check(case)
    with pytest.raises(AssertionError):
        check(with_ops(case, case.ops, lambda: other.ops))


def test_every_invariant_has_teeth() -> None:
    proven = {check for _, _, check in ALL.values()} | {invariants.equal_inputs_are_equal_bytes_that_read_back}
    assert [check.__name__ for check in invariants.INVARIANTS if check not in proven] == []
