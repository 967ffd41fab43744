"""Plans as people and programs read them."""

from __future__ import annotations

import json
from errno import ENOENT, EPERM
from typing import Any

import cases
import generate
import pytest
from hypothesis import given, reject, settings

from pyoci.errors import ConfigError
from pyoci.host import Host
from pyoci.jsontext import dumps
from pyoci.kernel import flags as k
from pyoci.plan import render
from pyoci.plan.container import PlanOptions
from pyoci.plan.ops import RUNTIME, Address, Asset, Blob, Buffer, Op, Ref, Struct, Vector, walk

ORIGIN = "/mounts/0"


def shown(call: str, *args: object, result: str | None = None) -> str:
    return render.call(Op(call, args, ORIGIN, result))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (k.O_CLOEXEC, "O_CLOEXEC"),
        (k.O_PATH | k.O_CLOEXEC, "O_CLOEXEC|O_PATH"),
        (k.O_RDWR | 1 << 30, "O_RDWR|0x40000000"),
    ],
)
def test_bits(value: int, expected: str) -> None:
    assert render.bits(value, render.OPEN) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"/a b", '"/a b"'),
        ("ü".encode(), '"ü"'),
        (b'"\\', '"\\"\\\\"'),
        (b"\n\t\x1b[31m", '"\\n\\t\\x1b[31m"'),
        (b"\xff", '"\\\\xff"'),
        ("\u202e".encode(), '"\\u202e"'),  # no terminal shall show one thing and mean another
        (b"x" * 201, '"' + "x" * 200 + '"...'),
    ],
)
def test_strings_are_one_line_and_plain(text: bytes, expected: str) -> None:
    assert render.quote(text) == expected


@pytest.mark.parametrize(
    ("expected", "call", "args"),
    [
        ('openat(AT_FDCWD, "/x", O_CLOEXEC)', "openat", (k.AT_FDCWD, b"/x", k.O_CLOEXEC)),
        (
            'openat2(@rootfs, "x", {flags=O_PATH, resolve=RESOLVE_IN_ROOT}, 24)',
            "openat2",
            (Ref("rootfs"), b"x", Struct("open_how", flags=k.O_PATH, mode=0, resolve=k.RESOLVE_IN_ROOT), 24),
        ),
        ('mkdirat(@dev, "x", 0755)', "mkdirat", (Ref("dev"), b"x", 0o755)),
        ("prctl(PR_SET_DUMPABLE, 0)", "prctl", (k.PR_SET_DUMPABLE, 0, 0, 0, 0)),
        ("prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN)", "prctl", (k.PR_CAPBSET_DROP, 21, 0, 0, 0)),
        (
            "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL)",
            "prctl",
            (k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, 5, 0, 0),
        ),
        (
            "prlimit64(0, RLIMIT_NOFILE, {rlim_cur=1, rlim_max=2}, 0)",
            "prlimit64",
            (0, 7, Struct("rlimit64", rlim_cur=1, rlim_max=2), 0),
        ),
        ("unshare(CLONE_NEWCGROUP)", "unshare", (k.CLONE_NEWCGROUP,)),
        ("close_range(6, -1, CLOSE_RANGE_CLOEXEC)", "close_range", (6, k.UINT_MAX, k.CLOSE_RANGE_CLOEXEC)),
        ('execve("/x", ["x", "-y"], ["A=b"])', "execve", (b"/x", Vector([b"x", b"-y"]), Vector([b"A=b"]))),
        (
            'mount_setattr(@tree, "", 0, {attr_set=MOUNT_ATTR_NOATIME, attr_clr=MOUNT_ATTR__ATIME}, 32)',
            "mount_setattr",
            (Ref("tree"), b"", 0, Struct("mount_attr", attr_set=0x10, attr_clr=k.MOUNT_ATTR__ATIME), 32),
        ),
        ("setgroups(1, <[5]>)", "setgroups", (1, Blob(b"\5\0\0\0", "[5]"))),
        ("write(3, <4 bytes>, 4)", "write", (3, Blob(bytes(4)), 4)),
        ('execve("/x", [], [<pid-4>])', "execve", (b"/x", Vector([]), Vector([Address("pid", -4)]))),
        ("getcwd(<4096 bytes>, 4096)", "getcwd", (Buffer("cwd", 4096), 4096)),
        ("expect(<cwd+8>, 255, 47, 2)", "expect", (Address("cwd", 8), 255, 47, 2)),
        (
            "seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG|SECCOMP_FILTER_FLAG_NEW_LISTENER, "
            "{len=<seccomp: instructions>, filter=<seccomp>})",
            "seccomp",
            (1, 2 | 8, Struct("sock_fprog", len=Asset("seccomp", count=True), filter=Asset("seccomp"))),
        ),
    ],
)
def test_calls_look_as_in_strace(expected: str, call: str, args: tuple[object, ...]) -> None:
    assert shown(call, *args) == expected


def test_results_are_named() -> None:
    assert shown("setsid", result="session") == "setsid() = @session"


def test_an_error_shows_no_environment() -> None:
    op = Op("execve", (b"/x", Vector([b"x"]), Vector([b"PASSWORD=secret", b"A=b"])), ORIGIN)
    assert render.call(op, environment=False) == 'execve("/x", ["x"], <2 variables>)'


GUARDED = [
    Op("write", (b"/file", b"1"), "/linux/resources", performer=RUNTIME),
    Op(
        "openat",
        (k.AT_FDCWD, b"/a", k.O_CLOEXEC),
        ORIGIN,
        "a",
        tolerate=(ENOENT, EPERM),
        otherwise=[Op("openat", (k.AT_FDCWD, b"/b", k.O_CLOEXEC), ORIGIN, "a", tolerate=(ENOENT,))],
    ),
    Op("fchdir", (Ref("a"),), ORIGIN, tolerate=(EPERM,), then=[Op("close", (Ref("a"),), "/root/path")]),
]


def test_text_has_a_column_for_each_performer() -> None:
    left = " " * 25
    lines = (
        ("runtime                  init", "origin"),
        ('write("/file", "1")', "/linux/resources"),
        (left + 'openat(AT_FDCWD, "/a", O_CLOEXEC) = @a or ENOENT|EPERM', "/mounts/0"),
        (left + '  else: openat(AT_FDCWD, "/b", O_CLOEXEC) = @a or ENOENT', "/mounts/0"),
        (left + "fchdir(@a) or EPERM", "/mounts/0"),
        (left + "  then: close(@a)", "/root/path"),
    )
    assert render.text(GUARDED, (24, 70)).splitlines() == [f"{call:<95} {origin}" for call, origin in lines]


def test_json_says_the_same() -> None:
    written, opened, moved = json.loads(dumps(render.to_json(GUARDED)))
    assert (written["performer"], written["call"], written["args"]) == ("runtime", "write", ['"/file"', '"1"'])
    assert (opened["result"], opened["tolerate"], opened["origin"]) == ("a", ["ENOENT", "EPERM"], ORIGIN)
    assert [inner["args"][1] for inner in opened["otherwise"]] == ['"/b"']
    assert (moved["result"], moved["then"][0]["call"], moved["otherwise"]) == (None, "close", [])


@settings(max_examples=40, deadline=None)
@given(document=generate.documents(), machine=generate.hosts(), options=generate.plan_options)
def test_every_plan_can_be_read(document: dict[str, Any], machine: Host, options: PlanOptions) -> None:
    """A line an op, no flag without a name, and JSON that is JSON."""
    try:
        ops = cases.container(document, machine, options).ops
    except ConfigError:
        reject()
    text = render.text(ops)
    assert len(text.splitlines()) == 1 + len(list(walk(ops)))
    for op in walk(ops):
        assert "|0x" not in render.call(op)
    assert len(json.loads(dumps(render.to_json(ops)))) == len(ops)
