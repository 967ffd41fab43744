"""The device filter: an interpreter of its instructions against a plain reading of the rules, and the kernel itself."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyoci.cgroup.detect import detect
from pyoci.cgroup.device_filter import attached, remove
from pyoci.kernel import bpf as k
from pyoci.kernel.layouts import LAYOUTS
from pyoci.kernel.syscalls import numbers
from pyoci.plan.device_bpf import LICENSE, device_program
from pyoci.plan.device_rules import DEFAULTS, Hole, Policy, v1_lines
from pyoci.spec.types import DeviceRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MASK = 0xFFFFFFFF
BITS = {"m": 1, "r": 2, "w": 4}


def interpret(program: bytes, kind: str, major: int, minor: int, bits: int) -> int:
    """Run the few instructions that a device filter has."""
    context = struct.pack("<III", bits << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = [0] * 11
    at = 0
    for _ in range(len(program)):
        code, names, offset, immediate = struct.unpack_from("<BBhI", program, at * 8)
        at += 1
        to, source = names & 15, names >> 4
        if code == k.BPF_LDX | k.BPF_MEM | k.BPF_W:
            assert source == 1
            registers[to] = int(struct.unpack_from("<I", context, offset)[0])
        elif code == k.BPF_ALU | k.BPF_AND | k.BPF_K:
            registers[to] &= immediate
        elif code == k.BPF_ALU | k.BPF_RSH | k.BPF_K:
            registers[to] = (registers[to] & MASK) >> immediate
        elif code == k.BPF_ALU64 | k.BPF_MOV | k.BPF_K:
            registers[to] = immediate
        elif code == k.BPF_JMP32 | k.BPF_JNE | k.BPF_K:
            at += offset if registers[to] & MASK != immediate else 0
        elif code == k.BPF_JMP32 | k.BPF_JEQ | k.BPF_K:
            at += offset if registers[to] & MASK == immediate else 0
        elif code == k.BPF_JMP32 | k.BPF_JSET | k.BPF_K:
            at += offset if registers[to] & immediate else 0
        elif code == k.BPF_JMP | k.BPF_JA:
            at += offset
        elif code == k.BPF_JMP | k.BPF_EXIT:
            return registers[0]
        else:
            raise AssertionError(f"instruction {code:#x}")
        assert 0 <= at < len(program) // 8
    raise AssertionError("no end")


def matches(rule: DeviceRule, kind: str, major: int, minor: int) -> bool:
    return rule.type in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor)


def reference(rules: Sequence[DeviceRule], kind: str, major: int, minor: int, bits: int) -> bool:
    """The last rule that matches decides, bit by bit; nothing is allowed at first."""
    for bit, value in BITS.items():
        if not bits & value:
            continue
        verdict = False
        for rule in rules:
            if bit in rule.access and matches(rule, kind, major, minor):
                verdict = rule.allow
        if not verdict:
            return False
    return True


def with_defaults(rules: Sequence[DeviceRule]) -> list[DeviceRule]:
    """The rules and the default devices, but for those that are denied by number or allowed anyway."""
    policy = Policy(rules)
    return [*rules, *(DeviceRule(*rule) for index, rule in policy.rules if index < 0)]


small = st.sampled_from((None, 0, 1, 3, 5))
rule_lists = st.lists(
    st.builds(
        DeviceRule,
        allow=st.booleans(),
        type=st.sampled_from("abc"),
        major=small,
        minor=small,
        access=st.sampled_from(("r", "w", "m", "rw", "rm", "wm", "rwm")),
    ),
    max_size=6,
)


def requests() -> Iterator[tuple[str, int, int, int]]:
    for kind in "bc":
        for major in (0, 1, 3, 5, 136):
            for minor in (0, 1, 3, 5):
                for bits in range(1, 8):
                    yield kind, major, minor, bits


@settings(deadline=None, max_examples=150)
@given(rule_lists)
def test_program_decides_as_the_rules_read(rules: list[DeviceRule]) -> None:
    program = device_program(Policy(rules))
    every = with_defaults(rules)
    for request in requests():
        assert interpret(program, *request) == reference(every, *request), request


@settings(deadline=None, max_examples=150)
@given(rule_lists)
def test_v1_lines_decide_as_the_rules_read(rules: list[DeviceRule]) -> None:
    """What the kernel keeps of the lines, for single bits: v1 grants several only if one exception has them all."""
    try:
        lines = v1_lines(Policy(rules))
    except Hole as hole:
        assert rules[hole.index].allow is not rules[hole.of].allow
        return
    every = with_defaults(rules)
    base = False
    exceptions: dict[tuple[str, str, str], set[str]] = {}
    for allow, _, line in lines:
        kind, _, rest = line.decode().partition(" ")
        if kind == "a":
            base, exceptions = allow, {}
            continue
        device, access = rest.split(" ")
        major, minor = device.split(":")
        known = exceptions.setdefault((kind, major, minor), set())
        if allow is base:
            assert known >= set(access), "the kernel takes back nothing but what it has"
            known -= set(access)
        else:
            known |= set(access)
    for kind, number, second, bits in requests():
        if bits not in BITS.values():
            continue
        letter = next(name for name in BITS if BITS[name] == bits)
        excepted = any(
            letter in access and key[0] == kind and key[1] in ("*", str(number)) and key[2] in ("*", str(second))
            for key, access in exceptions.items()
        )
        assert (base is not excepted) == reference(every, kind, number, second, bits)


def test_holes_are_refused_on_v1_and_kept_on_v2() -> None:
    rules = [DeviceRule(True, "c", 1, None, "rwm"), DeviceRule(False, "c", 1, 11, "rw")]
    with pytest.raises(Hole):
        v1_lines(Policy(rules))
    program = device_program(Policy(rules))
    assert interpret(program, "c", 1, 3, 6) == 1
    assert interpret(program, "c", 1, 11, 6) == 0
    assert interpret(program, "c", 1, 11, 1) == 1


def test_order_on_v1() -> None:
    """Deny all, the configuration's own, then the default devices: there runtime-tools' validation looks for them."""
    rules = [DeviceRule(False), DeviceRule(True, "c", 10, 229, "rwm"), DeviceRule(True, "a", 8, None, "mr")]
    lines = [(allow, line) for allow, _, line in v1_lines(Policy(rules))]
    assert lines[:4] == [(False, b"a"), (True, b"c 10:229 rwm"), (True, b"c 8:* rm"), (True, b"b 8:* rm")]
    assert lines[4] == (True, b"c *:* m")
    assert len(lines) == 4 + len(DEFAULTS)


def test_what_an_all_embracing_rule_makes_moot_is_gone() -> None:
    policy = Policy([DeviceRule(False), DeviceRule(True, "c", 1, 3, "r"), DeviceRule(True)])
    assert v1_lines(policy) == [(True, 2, b"a")]
    assert interpret(device_program(policy), "b", 8, 0, 7) == 1


def test_a_default_device_can_be_denied() -> None:
    policy = Policy([DeviceRule(False), DeviceRule(False, "c", 1, 8, "rwm")])
    assert b"c 1:8 rwm" not in [line for _, _, line in v1_lines(policy)]
    assert interpret(device_program(policy), "c", 1, 8, 2) == 0
    assert interpret(device_program(policy), "c", 1, 9, 2) == 1


def test_constants_are_the_kernels(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    names = [name for name in dir(k) if name.startswith("BPF_") and name != "BPF_ATTR_SIZE"]
    checks = [f'_Static_assert({name} == {getattr(k, name)}, "{name}");' for name in names]
    for name in ("access_type", "major", "minor"):
        offset = getattr(k, f"DEVICE_{name.upper()}")
        checks.append(f'_Static_assert(__builtin_offsetof(struct bpf_cgroup_dev_ctx, {name}) == {offset}, "{name}");')
    checks.append(f'_Static_assert(sizeof(union bpf_attr) <= {k.BPF_ATTR_SIZE}, "bpf_attr");')
    checks.append('_Static_assert(sizeof(struct bpf_insn) == 8, "bpf_insn");')
    source = tmp_path / "check.c"
    source.write_text("#include <linux/bpf.h>\n" + "\n".join(checks) + "\n")
    done = subprocess.run([compiler, "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The kernel --------------------------------------------------------------------------------------------------------


def bpf(command: int, layout: str, **fields: int) -> int:
    """bpf(2) with the attributes laid out as a plan's are."""
    size, offsets = LAYOUTS[layout]
    attributes = bytearray(size)
    for name, value in fields.items():
        offset, width = offsets[name]
        attributes[offset : offset + width] = value.to_bytes(width, "little")
    memory = ctypes.create_string_buffer(bytes(attributes), size)
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(numbers(platform.machine())["bpf"], command, memory, size))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), layout)
    return result


def load(program: bytes) -> int:
    """A descriptor of the program, accepted by the kernel's verifier."""
    instructions = ctypes.create_string_buffer(program, len(program))
    license = ctypes.create_string_buffer(LICENSE)
    return bpf(
        k.BPF_PROG_LOAD,
        "bpf_prog_load",
        prog_type=k.BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt=len(program) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license),
    )


@pytest.mark.root
@settings(deadline=None, max_examples=60)
@given(rule_lists)
def test_the_verifier_accepts_every_program(rules: list[DeviceRule]) -> None:
    os.close(load(device_program(Policy(rules))))


ZERO_READ_ONLY = DeviceRule(False, "c", 1, 5, "w")

TRY = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
for path, flags in (("/dev/null", os.O_RDONLY), ("/dev/zero", os.O_RDONLY), ("/dev/zero", os.O_RDWR)):
    try:
        os.close(os.open(path, flags))
        print("allowed")
    except PermissionError:
        print("denied")
"""


@pytest.mark.root
def test_the_kernel_denies_what_the_rules_deny() -> None:
    top = detect()[1].get("")
    if top is None:
        pytest.skip("no cgroup2 mount")
    # the default devices are allowed but for what is denied of them; the interpreter that tries needs others of them
    rules = [DeviceRule(False), DeviceRule(False, "c", 1, 3, "rwm"), DeviceRule(True, "c", 1, 5, "r"), ZERO_READ_ONLY]
    group = Path(top) / f"pyoci-test-bpf-{os.getpid()}"
    group.mkdir()
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    program = -1
    try:
        program = load(device_program(Policy(rules)))
        bpf(
            k.BPF_PROG_ATTACH,
            "bpf_prog_attach",
            target_fd=directory,
            attach_bpf_fd=program,
            attach_type=k.BPF_CGROUP_DEVICE,
            attach_flags=k.BPF_F_ALLOW_MULTI,
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", TRY, str(group)], capture_output=True, text=True, check=False, timeout=30
        )
        assert (done.stderr, done.stdout.split()) == ("", ["denied", "allowed", "denied"])
        assert len(attached(directory)) == 1
        remove(os.fsencode(group), "/x")
        assert attached(directory) == []
    finally:
        if program >= 0:
            os.close(program)
        os.close(directory)
        group.rmdir()
