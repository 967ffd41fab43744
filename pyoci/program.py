"""From a plan to bytes: one ELF image that holds init and the ops that it replays.

Layout of the image: the template (init's ELF file, padded to `TEXT`), then the program: a header, the ops, the registers, the data.  The kernel
maps it all at exec: the template's second program header is pointed at the program, so that argv arrays, `clone_args` and
messages hold real addresses and init links nothing.  Equal inputs give equal bytes.

The layout of an op is stated once, here; `init/program.h` is generated from it (`python -m pyoci.program`), and a test holds
the two to each other.
"""

from __future__ import annotations

from _struct import Struct as Packer
from _struct import pack_into

from pyoci.kernel.flags import open_flags
from pyoci.kernel.layouts import LAYOUTS
from pyoci.plan.ops import INIT, Address, Asset, Blob, Buffer, Op, Ref, Struct, Vector

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEXT = 0x1000  # bytes of the image that hold init itself
BASE = 0x20000000  # where the image's program part would start if it began at offset 0
ADDRESS = BASE + TEXT  # of the program's header
MAGIC = 0x696F7970

# struct header: magic, number of ops, control descriptor, offset of nothing yet
HEADER = Packer("<IIii")
# struct op: nr, skip_ok, skip_err, load mask, flags, tolerated errnos, args, result address
OP = Packer("<iHHBB6B6QQ")
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
BARRIER, EXPECT, MOVE, FORK = -1, -2, -3, -4
PSEUDO = {"barrier": BARRIER, "expect": EXPECT}
FLAG_FSLOG = 1  # on failure, the kernel's words can be read from the descriptor in args[0]
REPORT = Packer("<IIiI")  # kind, op, value, length of the text that follows
FAILED, AT_BARRIER, FORKED = 1, 2, 3
TEXT_MAX = 512
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
    def __init__(self, arch: str, numbers: Mapping[str, int], assets: Mapping[str, bytes], fds: Mapping[str, int]):
        self.arch = arch
        self.numbers = numbers
        self.assets = assets
        self.fds = fds
        self.index: list[Op] = []
        self.rows: list[list[object]] = []
        self.barriers: dict[int, list[Op]] = {}
        self.registers: dict[str, int] = {}
        self.data = bytearray()
        self.strings: dict[bytes, int] = {}
        self.buffers: dict[str, int] = {}
        self.base = 0  # address of the data

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
            address = self.strings[text] = self.place(text + b"\0", 1)
        return address

    def vector(self, value: Vector) -> int:
        addresses = [self.string(item) for item in value.items]
        addresses.append(0)
        return self.place(Packer(f"<{len(addresses)}Q").pack(*addresses))

    def struct(self, value: Struct, op: Op) -> int:
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
        for name, offset, width in moves:
            self.emit(op, MOVE, [self.register(name), address + offset, width])
        return address

    def register(self, name: str) -> int:
        slot = self.registers.get(name)
        if slot is None:
            raise KeyError(f"@{name} is used before any op gives it")
        return slot

    def argument(self, value: object, op: Op) -> tuple[int, bool]:
        """The 64-bit word for `value`, and whether it is the address of a register to load."""
        kind = type(value)
        if kind is int:
            return value & 0xFFFFFFFFFFFFFFFF, False  # type: ignore[operator]
        if kind is bytes:
            return self.string(value), False  # type: ignore[arg-type]
        if kind is Ref:
            name = value.name  # type: ignore[attr-defined]
            fixed = self.fds.get(name)
            if fixed is not None:
                return fixed, False
            return self.register(name), True
        if kind is Struct:
            return self.struct(value, op), False  # type: ignore[arg-type]
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
            address = self.place(bytes(value.size))  # type: ignore[attr-defined]
            self.buffers[value.name] = address  # type: ignore[attr-defined]
            return address, False
        if kind is Address:
            return self.buffers[value.name] + value.offset, False  # type: ignore[attr-defined]
        raise TypeError(f"{op!r}: {value!r} is not an argument")

    # ops ------------------------------------------------------------------------------------------------------------

    def emit(
        self, op: Op, number: int, args: Sequence[int], load: int = 0, flags: int = 0, result: int = 0
    ) -> list[object]:
        row: list[object] = [number, 0, 0, load, flags, op.tolerate, args, result]
        self.rows.append(row)
        self.index.append(op)
        return row

    def init_op(self, op: Op) -> None:
        words: list[int] = []
        load = 0
        for position, value in enumerate(op.args):
            word, register = self.argument(value, op)
            if register:
                load |= 1 << position
            words.append(word)
        call = op.call
        number = PSEUDO.get(call)
        if number is None:
            number = FORK if call == "clone3" else self.numbers[call]
            if call == "openat":
                words[2] = open_flags(self.arch, words[2])
        flags = FLAG_FSLOG if call in ("fsconfig", "fsmount") else 0
        result = 0
        if op.result is not None:
            slot = self.registers.get(op.result)
            if slot is None:
                slot = self.registers[op.result] = self.place(bytes(8))
            result = slot
        if len(op.tolerate) > ERRNOS_MAX:
            raise ValueError(f"{op!r} tolerates too many errnos")
        row = self.emit(op, number, words, load, flags, result)
        here = len(self.rows)
        if op.otherwise:
            self.sequence(op.otherwise)
            row[1] = self.skip(len(self.rows) - here)
        elif op.then:
            self.sequence(op.then)
            row[2] = self.skip(len(self.rows) - here)

    @staticmethod
    def skip(distance: int) -> int:
        if distance > SKIP_MAX:
            raise ValueError("a block of more than 65535 ops")
        return distance

    def sequence(self, ops: Sequence[Op]) -> None:
        """Emit `ops`; a run of the runtime's ops becomes one barrier."""
        due: list[Op] | None = None
        for op in ops:
            if op.performer is INIT:
                due = None
                self.init_op(op)
            elif due is None:
                due = [op]
                self.barriers[len(self.rows)] = due
                self.emit(op, BARRIER, ())
            else:
                due.append(op)


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

    `numbers` are `arch`'s system calls by name; `fds` the descriptors that the launcher hands over, by name (`control` is one);
    `assets` what `Asset` arguments stand for.  Raises KeyError for a name that nothing gives: a mistake in a plan.
    """
    assembler = _Assembler(arch, numbers, assets, fds)
    # The data is addressed after the ops, whose number is not known before they are emitted: lay the data out at a fixed distance.
    assembler.base = ADDRESS + DATA
    assembler.sequence(ops)
    rows = assembler.rows
    data = assembler.data
    head = HEADER.size + len(data)
    # ops follow the data: header | registers and data | ops
    head += -head % 8
    size = head + len(rows) * OP.size
    program = bytearray(size)
    HEADER.pack_into(program, 0, MAGIC, len(rows), fds["control"], head)
    program[DATA : DATA + len(data)] = data
    position = head
    pack = OP.pack_into
    for number, skip_ok, skip_err, load, flags, tolerate, args, result in rows:
        errnos = (*tolerate, 0, 0, 0, 0, 0, 0)[:6]  # type: ignore[misc]
        words = (*args, 0, 0, 0, 0, 0, 0)[:6]  # type: ignore[misc]
        pack(program, position, number, skip_ok, skip_err, load, flags, *errnos, *words, result)
        position += OP.size
    return Program(_image(template, program), assembler.index, assembler.barriers)


DATA = HEADER.size


def _image(template: bytes, program: bytearray) -> bytes:
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
/* Generated from pyoci/program.py by `python -m pyoci.program`; do not edit. */
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
#define FLAG_FSLOG {FLAG_FSLOG}
#define FAILED {FAILED}
#define AT_BARRIER {AT_BARRIER}
#define FORKED {FORKED}
#define TEXT_MAX {TEXT_MAX}
"""


if __name__ == "__main__":
    import sys

    sys.stdout.write(header_text())
