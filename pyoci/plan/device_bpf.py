"""The allowed device list as a program for BPF_PROG_TYPE_CGROUP_DEVICE (cgroup v2 has no files for devices).

The kernel runs it for each open and mknod of a device node with the access asked for as a set of bits; it returns 1 to
allow.  The program holds the bits that no rule has decided yet and goes through the rules from the last to the first: a
matching denial of one of them denies, a matching permission takes its bits away, and no bit left allows.  That is "the
last matching rule decides" for every bit, with holes in wider rules and all.

Registers: r2 device type, r3 undecided access bits, r4 major, r5 minor.
"""

from __future__ import annotations

from _struct import pack

from pyoci.kernel import bpf as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.plan.device_rules import Policy

    # code, registers (destination | source << 4), jump target by label or 0, immediate
    Instruction = tuple[int, int, str | int, int]

BITS = {"m": k.BPF_DEVCG_ACC_MKNOD, "r": k.BPF_DEVCG_ACC_READ, "w": k.BPF_DEVCG_ACC_WRITE}
TYPES = {"b": k.BPF_DEVCG_DEV_BLOCK, "c": k.BPF_DEVCG_DEV_CHAR}
ALL_BITS = 7
TYPE, ACCESS, MAJOR, MINOR = 2, 3, 4, 5
CONTEXT = 1
LICENSE = b"GPL"  # the kernel asks it of the program for the functions that it calls; this one calls none


def device_program(policy: Policy) -> bytes:
    """`struct bpf_insn[]` (8 bytes each) that decides as `policy` says."""
    code: list[Instruction] = [
        (k.BPF_LDX | k.BPF_MEM | k.BPF_W, TYPE | CONTEXT << 4, k.DEVICE_ACCESS_TYPE, 0),
        (k.BPF_ALU | k.BPF_AND | k.BPF_K, TYPE, 0, 0xFFFF),
        (k.BPF_LDX | k.BPF_MEM | k.BPF_W, ACCESS | CONTEXT << 4, k.DEVICE_ACCESS_TYPE, 0),
        (k.BPF_ALU | k.BPF_RSH | k.BPF_K, ACCESS, 0, 16),
        (k.BPF_LDX | k.BPF_MEM | k.BPF_W, MAJOR | CONTEXT << 4, k.DEVICE_MAJOR, 0),
        (k.BPF_LDX | k.BPF_MEM | k.BPF_W, MINOR | CONTEXT << 4, k.DEVICE_MINOR, 0),
    ]
    labels: dict[str, int] = {}
    used: set[str] = set()
    for number, (_, (allow, kind, major, minor, access)) in enumerate(reversed(policy.rules)):
        bits = sum(BITS[letter] for letter in access)
        after = f"rule{number}"
        if kind != "a":
            code.append((k.BPF_JMP32 | k.BPF_JNE | k.BPF_K, TYPE, after, TYPES[kind]))
        if major is not None:
            code.append((k.BPF_JMP32 | k.BPF_JNE | k.BPF_K, MAJOR, after, major))
        if minor is not None:
            code.append((k.BPF_JMP32 | k.BPF_JNE | k.BPF_K, MINOR, after, minor))
        if not allow:
            code.append((k.BPF_JMP32 | k.BPF_JSET | k.BPF_K, ACCESS, "deny", bits))
            used.add("deny")
        elif bits == ALL_BITS:
            code.append((k.BPF_JMP | k.BPF_JA, 0, "allow", 0))
            used.add("allow")
        else:
            code.append((k.BPF_ALU | k.BPF_AND | k.BPF_K, ACCESS, 0, ALL_BITS & ~bits))
            code.append((k.BPF_JMP32 | k.BPF_JEQ | k.BPF_K, ACCESS, "allow", 0))
            used.add("allow")
        labels[after] = len(code)
    # What the rules leave open falls through to the base.  The verifier refuses code that cannot be reached, so the
    # other verdict is there only if a rule gives it.
    for verdict in ("allow", "deny") if policy.base else ("deny", "allow"):
        if verdict in used or (verdict == "allow") is policy.base:
            labels[verdict] = len(code)
            code.append((k.BPF_ALU64 | k.BPF_MOV | k.BPF_K, 0, 0, int(verdict == "allow")))
            code.append((k.BPF_JMP | k.BPF_EXIT, 0, 0, 0))
    out = bytearray()
    for place, (operation, registers, target, immediate) in enumerate(code):
        offset = target if isinstance(target, int) else labels[target] - place - 1
        out += pack("<BBhI", operation, registers, offset, immediate)
    return bytes(out)
