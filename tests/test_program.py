"""Assembling: what a plan becomes in memory.  What init makes of it is tests/test_init.py's; that every plan reads back
is an invariant (tests/invariants.py)."""

from __future__ import annotations

import struct
from errno import EEXIST, ENOENT
from pathlib import Path

import pytest
from decode import Check, Image, segments

from pyoci.kernel import flags as k
from pyoci.kernel.syscalls import ARCHITECTURES, numbers
from pyoci.launch import INIT_ELF
from pyoci.plan.ops import RUNTIME, Address, Asset, Blob, Buffer, Op, Ref, Struct, Vector
from pyoci.program import (
    ADDRESS,
    BARRIER,
    EXPECT,
    FORK,
    MOVE,
    OP,
    OP_FIELDS,
    SKIP_MAX,
    TEXT,
    Program,
    assemble,
    leading,
)

FDS = {"control": 3, "listen": 4, "console": 5}
TEMPLATE = bytes(32) + (64).to_bytes(8, "little") + bytes(136)
ORIGIN = "runtime.md#lifecycle"


def op(call: str, *args: object, result: str | None = None, **more: object) -> Op:
    return Op(call, args, ORIGIN, result, **more)  # type: ignore[arg-type]


def build(*ops: Op, arch: str = "x86_64", **assets: bytes) -> Program:
    return assemble(ops, TEMPLATE, arch, numbers(arch), FDS, assets)


def image(*ops: Op, arch: str = "x86_64", **assets: bytes) -> Image:
    """The program, which must say what the ops say."""
    program = build(*ops, arch=arch, **assets)
    Check(program, arch, FDS, assets).all(ops)
    return Image(program.image)


OPEN = op("openat", k.AT_FDCWD, b"/a", k.O_CLOEXEC, result="a")
CLOSE = op("close", Ref("a"))


def test_the_layout_is_stated_twice_the_same() -> None:
    """OP packs what OP_FIELDS tells C."""
    code = {"int": "i", "unsigned short": "H", "unsigned char": "B", "unsigned long": "Q"}
    text = "<" + "".join(array.strip("[]") + code[kind] for kind, _, array in OP_FIELDS)
    assert struct.calcsize(text) == OP.size
    assert struct.calcsize("@" + text[1:]) == OP.size, "no padding in C either"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_call(arch: str) -> None:
    opened, closed = image(OPEN, CLOSE, arch=arch).ops
    assert opened.nr == numbers(arch)["openat"]
    assert opened.args[0] == (1 << 64) - 100
    assert (closed.load, closed.args[0]) == (1, opened.result)


@pytest.mark.parametrize(("arch", "flags"), [("x86_64", 0o600000), ("aarch64", 0o140000)])
def test_open_flags_are_the_architectures(arch: str, flags: int) -> None:
    """Two of the four that differ; in a register for openat, in memory for openat2."""
    value = k.O_DIRECTORY | k.O_NOFOLLOW
    how = Struct("open_how", flags=value, mode=0, resolve=0)
    both = image(op("openat", 3, b"x", value), op("openat2", 3, b"x", how, 24), arch=arch)
    assert both.ops[0].args[2] == flags
    assert both.word(both.ops[1].args[2]) == flags


def test_what_the_launcher_hands_over_is_a_number() -> None:
    (sent,) = image(op("close", Ref("console"))).ops
    assert (sent.load, sent.args[0]) == (0, FDS["console"])


def test_equal_strings_are_there_once() -> None:
    one, two, other = image(op("chdir", b"/x"), op("chdir", b"/x"), op("chdir", b"/")).ops
    assert one.args[0] == two.args[0] != other.args[0]


def test_arguments_in_memory() -> None:
    vector = Vector([b"sh", b"-c", b""])
    made = image(op("execve", b"/bin/sh", vector, Vector([])))
    (execve,) = made.ops
    assert made.read(execve.args[2], 8) == bytes(8)
    made = image(op("setgroups", 2, Blob(b"12345678")))
    assert made.read(made.ops[0].args[1], 8) == b"12345678"


def test_a_buffer_is_written_by_one_and_read_by_another() -> None:
    wrote, read = image(op("getcwd", Buffer("cwd", 64), 64), op("expect", Address("cwd", 8), 0xFF, 47, ENOENT)).ops
    assert read.nr == EXPECT
    assert read.args[0] == wrote.args[0] + 8


def test_a_filter_is_put_in_when_it_is_known() -> None:
    program = Struct("sock_fprog", len=Asset("seccomp", count=True), filter=Asset("seccomp"))
    made = image(op("seccomp", 1, 0, program), seccomp=bytes(range(24)))
    address = made.ops[0].args[2]
    assert made.word(address, 2) == 3
    assert made.read(made.word(address + 8), 24) == bytes(range(24))


def test_a_descriptor_inside_a_structure_is_moved_there() -> None:
    arguments = Struct("clone_args", flags=k.CLONE_INTO_CGROUP, cgroup=Ref("a"))
    opened, move, fork = image(OPEN, op("clone3", arguments, 88)).ops
    assert (move.nr, fork.nr) == (MOVE, FORK)
    assert move.args[:3] == (opened.result, fork.args[0] + 80, 8)


def test_a_block_is_skipped_in_one_step() -> None:
    inner = op("mkdirat", Ref("control"), b"x", 0o755, tolerate=(EEXIST,), otherwise=[CLOSE, CLOSE])
    outer = op("fchdir", Ref("a"), tolerate=(ENOENT,), otherwise=[inner, CLOSE])
    after = op("fchdir", Ref("a"), tolerate=(ENOENT,), then=[CLOSE])
    ops = image(OPEN, outer, after, CLOSE).ops
    assert [(each.skip_ok, each.skip_err) for each in ops] == [
        (0, 0), (4, 0), (2, 0), (0, 0), (0, 0), (0, 0), (0, 1), (0, 0), (0, 0),
    ]  # fmt: skip


def test_the_runtimes_ops_in_a_row_are_one_barrier() -> None:
    write, created = op("write", b"/x", b"1", performer=RUNTIME), op("created", performer=RUNTIME)
    program = build(OPEN, write, created, CLOSE, write)
    assert [each.nr for each in Image(program.image).ops].count(BARRIER) == 2
    assert program.barriers == {1: [write, created], 3: [write]}
    assert program.index[1] is write
    assert [leading(ops) for ops in ([], [OPEN, write], [write, created, OPEN])] == [0, 0, 2]


def test_the_index_names_the_op_of_every_report() -> None:
    arguments = Struct("clone_args", flags=0, cgroup=Ref("a"))
    clone = op("clone3", arguments, 88)
    assert build(OPEN, clone, CLOSE).index == [OPEN, clone, clone, CLOSE]


def test_mistakes_in_a_plan_are_refused() -> None:
    with pytest.raises(KeyError, match="@b is used before any op gives it"):
        build(op("close", Ref("b")))
    with pytest.raises(KeyError):
        build(op("no_such_call"))
    with pytest.raises(KeyError):
        build(op("seccomp", 1, 0, Asset("seccomp")))
    with pytest.raises(ValueError, match="only one can be skipped"):
        build(op("chdir", b"/", tolerate=(ENOENT,), then=[OPEN], otherwise=[OPEN]))
    with pytest.raises(ValueError, match="too many errnos"):
        build(op("chdir", b"/", tolerate=tuple(range(1, 8))))
    with pytest.raises(ValueError, match="a block of more than"):
        build(op("chdir", b"/", tolerate=(ENOENT,), otherwise=[op("setsid")] * (SKIP_MAX + 1)))
    with pytest.raises(TypeError, match="is not an argument"):
        build(op("chdir", "/"))
    with pytest.raises(ValueError, match="larger than its page"):
        assemble([OPEN], bytes(TEXT + 1), "x86_64", numbers("x86_64"), FDS, {})
    with pytest.raises(KeyError):
        numbers("riscv64")


def test_the_image_is_an_executable_with_the_program_in_it() -> None:
    """Two segments to load: init, which cannot be written, and the program, which cannot be executed."""
    if not Path(INIT_ELF).exists():
        pytest.skip("init is not built: ./check native")
    template = Path(INIT_ELF).read_bytes()[:TEXT]
    made = assemble([OPEN, CLOSE], template, "x86_64", numbers("x86_64"), FDS, {}).image
    text, program, stack = segments(made)
    load, gnu_stack, executable, writable, readable = 1, 0x6474E551, 1, 2, 4
    assert text[:3] == (load, readable | executable, 0)
    assert text[4] == text[5] <= TEXT
    size = len(made) - TEXT
    assert program == (load, readable | writable, TEXT, ADDRESS, size, size)
    assert stack[:2] == (gnu_stack, readable | writable)
    # no section headers, which would be read from behind the end
    assert made[40:48] == bytes(8) and made[60:64] == bytes(4)
