"""From a plan to bytes: one ELF image that holds init and the ops that it replays.

Layout of the image: the template (init's ELF file, padded to `TEXT`), then the program: a header, the data with the
registers in it, the ops.  The kernel maps it all at exec: the template's second program header is pointed at the
program, so that argv arrays, `clone_args` and messages hold real addresses and init links nothing.  Equal inputs give
equal bytes.

The layout of an op is stated once, here; `init/program.h` is generated from it (`python3 -m pyoci.program`), and a
test holds the two to each other.
"""

from __future__ import annotations

from _struct import Struct as Packer
from _struct import pack_into

from pyoci.kernel.flags import open_flags
from pyoci.kernel.layouts import LAYOUTS
from pyoci.plan.ops import INIT, Address, Asset, Blob, Buffer, Op, Ref, Struct, Vector
from pyoci.reports import AT_BARRIER, FAILED, FORKED, REPORT, TEXT_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEXT = 0x1000  # bytes of the image that hold init itself
BASE = 0x20000000  # where the image's program part would start if it began at offset 0
ADDRESS = BASE + TEXT  # of the program's header
MAGIC = 0x696F7970

# struct header: magic, number of ops, control descriptor, offset of the first op from the header
HEADER = Packer("<IIii")
# struct op: nr, skip_ok, skip_err, load mask, flags, tolerated errnos, args, result address
OP = Packer("<iHHBB6B6QQ")
# the same in 64-bit words, which is how ops are collected: one word up to skip_err, one for the bytes, six, one
OP_WORDS = 9
OP_FIELDS = (
    ("int", "nr", ""),
    ("unsigned short", "skip_ok", ""),
    ("unsigned short", "skip_err", ""),
    ("unsigned char", "load", ""),
    ("unsigned char", "flags", ""),
    ("unsigned char", "tolerate", "[6]"),
    ("unsigned long", "args", "[6]"),
    ("unsigned long", "result", ""),
)
# pseudo-calls: negative where a system call has its number
BARRIER, EXPECT, MOVE, FORK, SPAWN, OFFER, AWAIT, CLONE = -1, -2, -3, -4, -5, -6, -7, -8
PSEUDO = {"expect": EXPECT, "spawn": SPAWN, "offer": OFFER}
FORKS = {"clone3": FORK, "clone": CLONE}  # calls that another process returns from, too
QUIET = "listener"  # a runtime's op at whose barrier init only waits: see plan/listener.py
FSLOG = ("fsconfig", "fsmount")  # calls whose context keeps the kernel's words
WORD = 0xFFFFFFFFFFFFFFFF
NR = 0xFFFFFFFF  # the bits of `nr` in the first word
ZEROS = tuple((0,) * (6 - given) for given in range(7))  # for the arguments that are not given
FLAG_FSLOG = 1  # on failure, the kernel's words can be read from the descriptor in args[0]
FLAG_CLOSE = 2  # and the next five bits: after success, args[0] (args[1], ...) is a descriptor to close
SKIP_MAX = 0xFFFF
ERRNOS_MAX = 6


class Program:
    """An assembled plan: `image` is what is executed; `index[i]` is the plan's op that the image's op `i` performs.

    `barriers` maps the image's op index of a barrier to the runtime's ops that are due there.
    """

    __slots__ = ("barriers", "image", "index")

    def __init__(self, image: bytes, index: list[Op], barriers: dict[int, list[Op]]) -> None:
        self.image = image
        self.index = index
        self.barriers = barriers


class _Assembler:
    """Collects the data and the ops of one program.  Half of what is decided for a container passes through here, so
    the loops name what they use often, and equal memory is laid out once."""

    def __init__(self, arch: str, numbers: Mapping[str, int], assets: Mapping[str, bytes], fds: Mapping[str, int]):
        self.arch = arch
        self.numbers = numbers
        self.assets = assets
        self.fds = fds
        self.index: list[Op] = []
        self.code: list[int] = []  # OP_WORDS for each op
        self.barriers: dict[int, list[Op]] = {}
        self.registers: dict[str, int] = {}
        self.base = ADDRESS + DATA  # address of the data
        self.data = bytearray()
        self.strings: dict[bytes, int] = {}
        self.structs: dict[Struct, int] = {}
        self.buffers: dict[str, int] = {}
        self.tolerated: dict[tuple[int, ...], int] = {}

    # data -----------------------------------------------------------------------------------------------------------

    def place(self, content: bytes, align: int = 8) -> int:
        data = self.data
        data.extend(bytes(-len(data) % align))
        address = self.base + len(data)
        data.extend(content)
        return address

    def string(self, text: bytes) -> int:
        address = self.strings.get(text)
        if address is None:
            data = self.data
            address = self.strings[text] = self.base + len(data)
            data += text
            data.append(0)
        return address

    def vector(self, value: Vector) -> int:
        addresses = [
            self.string(item) if type(item) is bytes else self.argument(item, None)[0] for item in value.items
        ]
        addresses.append(0)
        return self.place(Packer(f"<{len(addresses)}Q").pack(*addresses))

    def struct(self, value: Struct, op: Op) -> int:
        """Its address; what it gets from earlier ops is moved there first, so only one without can be shared."""
        address = self.structs.get(value)
        if address is not None:
            return address
        size, layout = LAYOUTS[value.layout]
        content = bytearray(size)
        moves: list[tuple[str, int, int]] = []
        for name, field in value.fields.items():
            offset, width = layout[name]
            if isinstance(field, Ref) and field.name not in self.fds:
                moves.append((field.name, offset, width))
                continue
            number = self.argument(field, op)[0]
            if name == "flags" and value.layout == "open_how":
                number = open_flags(self.arch, number)
            content[offset : offset + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        address = self.place(bytes(content))
        if not moves:
            self.structs[value] = address
        for name, offset, width in moves:
            self.emit(op, MOVE, (self.register(name), address + offset, width))
        return address

    def register(self, name: str) -> int:
        slot = self.registers.get(name)
        if slot is None:
            raise KeyError(f"@{name} is used before any op gives it")
        return slot

    def argument(self, value: object, op: Op | None) -> tuple[int, bool]:
        """The 64-bit word for `value`, and whether it is the address of a register to load."""
        kind = type(value)
        if kind is Struct:
            return self.struct(value, op), False  # type: ignore[arg-type]
        if kind is int:
            return value & WORD, False  # type: ignore[operator]
        if kind is bytes:
            return self.string(value), False  # type: ignore[arg-type]
        if kind is Ref:
            name = value.name  # type: ignore[attr-defined]
            fixed = self.fds.get(name)
            if fixed is not None:
                return fixed, False
            return self.register(name), True
        if kind is Vector:
            return self.vector(value), False  # type: ignore[arg-type]
        if kind is Blob:
            return self.place(value.data), False  # type: ignore[attr-defined]
        if kind is Asset:
            content = self.assets[value.name]  # type: ignore[attr-defined]
            if value.count:  # type: ignore[attr-defined]
                return len(content) // 8, False
            return self.place(content), False
        if kind is Buffer:
            before = value.before  # type: ignore[attr-defined]
            address = self.place(before + bytes(value.size)) + len(before)  # type: ignore[attr-defined]
            self.buffers[value.name] = address  # type: ignore[attr-defined]
            return address, False
        if kind is Address:
            return self.buffers[value.name] + value.offset, False  # type: ignore[attr-defined]
        raise TypeError(f"{op!r}: {value!r} is not an argument")

    # ops ------------------------------------------------------------------------------------------------------------

    def emit(self, op: Op, number: int, words: Sequence[int]) -> None:
        """An op that always succeeds: a MOVE or a barrier."""
        self.code += (number & NR, 0, *words, *ZEROS[len(words)], 0)
        self.index.append(op)

    def sequence(self, ops: Sequence[Op]) -> None:
        """Emit `ops`; a run of the runtime's ops becomes one barrier."""
        strings, registers, fds, numbers = self.strings, self.registers, self.fds, self.numbers
        code, index, zeros, tolerated = self.code, self.index, ZEROS, self.tolerated
        due: list[Op] | None = None
        last = -1  # the op before, if it can close what it has used
        for op in ops:
            if op.performer is not INIT:
                last = -1
                if due is None:
                    due = self.barriers[len(index)] = []
                    self.emit(op, AWAIT if op.call == QUIET else BARRIER, ())
                due.append(op)
                continue
            due = None
            call = op.call
            if last >= 0 and call == "close" and self.folded(op, last):
                continue
            second = 0  # the second word: load mask, flags, tolerated errnos
            words: list[int] = []
            for value in op.args:
                kind = type(value)
                if kind is int:
                    words.append(value if value >= 0 else value & WORD)  # type: ignore[operator,arg-type]
                elif kind is bytes:
                    words.append(strings.get(value) or self.string(value))  # type: ignore[arg-type,call-overload]
                elif kind is Ref and value.name in registers and value.name not in fds:  # type: ignore[attr-defined]
                    second |= 1 << len(words)
                    words.append(registers[value.name])  # type: ignore[attr-defined]
                else:
                    word, register = self.argument(value, op)
                    if register:
                        second |= 1 << len(words)
                    words.append(word)
            first = numbers.get(call)
            if first is None:
                first = PSEUDO[call] & NR
            elif call == "openat":
                words[2] = open_flags(self.arch, words[2])
            elif call in FORKS:
                first = FORKS[call] & NR
            elif call in FSLOG:
                second |= FLAG_FSLOG << 8
            result = 0
            if op.result is not None:
                result = registers.get(op.result) or registers.setdefault(op.result, self.place(bytes(8)))
            tolerate = op.tolerate
            if tolerate:
                second |= tolerated.get(tolerate) or self.errnos(op)
            last = len(code)
            code += (first, second, *words, *zeros[len(words)], result)
            index.append(op)
            if op.otherwise or op.then:
                self.block(op, last)
                last = -1
            elif tolerate or call == "close":
                last = -1

    def folded(self, op: Op, last: int) -> bool:
        """Let the op at `last` close what it has used: a fifth of all ops close what the op before was the last to use.

        It must be one that either succeeds or ends everything, and that has read the descriptor from a register.  init
        closes the last argument first: the calls are made in the order of the plan.
        """
        value = op.args[0]
        register = self.registers.get(value.name) if type(value) is Ref else None
        code = self.code
        if code[last + OP_WORDS - 1] == register:
            return False  # which holds another descriptor by then
        second = code[last + 1]
        for position in range(6):
            if second >> 8 & FLAG_CLOSE << position:
                break  # an argument before those that are closed already
            if code[last + 2 + position] == register and second >> position & 1:
                code[last + 1] |= FLAG_CLOSE << position << 8
                return True
        return False

    def errnos(self, op: Op) -> int:
        known = self.tolerated.get(op.tolerate)
        if known is not None:
            return known
        if len(op.tolerate) > ERRNOS_MAX:
            raise ValueError(f"{op!r} tolerates too many errnos")
        # above load mask and flags
        self.tolerated[op.tolerate] = word = int.from_bytes(bytes(op.tolerate), "little") << 16
        return word

    def block(self, op: Op, here: int) -> None:
        """What hangs on `op`, whose first word is at `here`, and how far to skip when it is not its turn."""
        if op.otherwise and op.then:
            raise ValueError(
                f"{op!r} has a block for success and one for failure: without jumps only one can be skipped"
            )
        body = len(self.index)
        self.sequence(op.otherwise or op.then)
        distance = len(self.index) - body
        if distance > SKIP_MAX:
            raise ValueError("a block of more than 65535 ops")
        # skip_ok or skip_err: see OP_FIELDS
        self.code[here] |= distance << (32 if op.otherwise else 48)


def leading(ops: Sequence[Op]) -> int:
    """How many ops at the start of a plan are the runtime's: they are performed before init is spawned."""
    count = 0
    for op in ops:
        if op.performer is INIT:
            break
        count += 1
    return count


def assemble(
    ops: Sequence[Op],
    template: bytes,
    arch: str,
    numbers: Mapping[str, int],
    fds: Mapping[str, int],
    assets: Mapping[str, bytes],
) -> Program:
    """Lay `ops` out behind init's ELF `template`.

    `numbers` are `arch`'s system calls by name; `fds` the descriptors that init is started with, by name, `control`
    among them; `assets` what `Asset` arguments stand for.  Raises KeyError for a name that nothing gives: a mistake in
    a plan.
    """
    assembler = _Assembler(arch, numbers, assets, fds)
    # the data before the ops: its addresses must be known before it is known how many ops there are
    assembler.sequence(ops)
    data = assembler.data
    data.extend(bytes(-len(data) % 8))
    first = DATA + len(data)
    header = HEADER.pack(MAGIC, len(assembler.index), fds["control"], first)
    code = assembler.code
    image = _image(template, header + data + Packer(f"<{len(code)}Q").pack(*code))
    return Program(image, assembler.index, assembler.barriers)


DATA = HEADER.size


def _image(template: bytes, program: bytes) -> bytes:
    """`template` with its second program header pointed at `program` (ELF64, little-endian)."""
    if len(template) > TEXT:
        raise ValueError("init is larger than its page")
    image = bytearray(TEXT + len(program))
    image[: len(template)] = template
    image[TEXT:] = program
    headers = int.from_bytes(template[32:40], "little")
    second = headers + 56
    pack_into("<QQQQQ", image, second + 8, TEXT, ADDRESS, ADDRESS, len(program), len(program))
    # No section headers: their table is not carried along.
    image[40:48] = bytes(8)
    image[60:64] = bytes(4)
    return bytes(image)


def header_text() -> str:
    """The C header that init.c includes."""
    fields = "\n".join(f"    {kind} {name}{array};" for kind, name, array in OP_FIELDS)
    return f"""\
/* Generated from pyoci/program.py by `python3 -m pyoci.program`; do not edit. */
struct header {{
    unsigned int magic;
    unsigned int ops;
    int control;
    int first; /* offset of the first op from the header */
}};

struct op {{
{fields}
}};

struct report {{
    unsigned int kind;
    unsigned int op;
    int value;
    unsigned int length;
}};

_Static_assert(sizeof(struct header) == {HEADER.size}, "header");
_Static_assert(sizeof(struct op) == {OP.size}, "op");
_Static_assert(sizeof(struct report) == {REPORT.size}, "report");

#define MAGIC {MAGIC:#x}u
#define BARRIER ({BARRIER})
#define EXPECT ({EXPECT})
#define MOVE ({MOVE})
#define FORK ({FORK})
#define SPAWN ({SPAWN})
#define OFFER ({OFFER})
#define AWAIT ({AWAIT})
#define CLONE ({CLONE})
#define FLAG_FSLOG {FLAG_FSLOG}
#define FLAG_CLOSE {FLAG_CLOSE}
#define FAILED {FAILED}
#define AT_BARRIER {AT_BARRIER}
#define FORKED {FORKED}
#define TEXT_MAX {TEXT_MAX}
"""


if __name__ == "__main__":
    import sys

    sys.stdout.write(header_text())
