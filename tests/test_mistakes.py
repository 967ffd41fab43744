"""The invariants have teeth: each way of breaking a good plan is noticed by the one that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_invariants as invariants

from pyoci.commands.spec import default
from pyoci.kernel import flags as k
from pyoci.plan.container import PlanOptions
from pyoci.plan.ops import Op, Ref, Vector

Condition = Callable[[Op], bool]
Change = Callable[[list[Op]], None]


def plan() -> invariants.Case:
    """A terminal, a hook, a filter without no_new_privs, cgroup v2."""
    document: dict[str, Any] = default(True)
    del document["process"]["noNewPrivileges"]
    document["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    document["hooks"] = {"createContainer": [{"path": "/x"}]}
    return invariants.container(document, invariants.host("v2"), PlanOptions("id", "/bundle", console="console"))


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
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_noticed(name: str) -> None:
    change, check = MISTAKES[name]
    case = plan()
    check(case)
    change(case.ops)
    document = case.document
    broken = invariants.Case("container", document, lambda: case.ops, case.fds, True, {"": "/sys/fs/cgroup/id"})
    with pytest.raises((AssertionError, KeyError)):
        check(broken)
