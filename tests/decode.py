"""The image of a program read back, as init and the kernel would see it; the inverse of pyoci.program, written anew.

It shares with the assembler only the layout of an op and the numbers; what a value becomes in memory is stated twice,
there and here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from pyoci.kernel.flags import open_flags
from pyoci.kernel.layouts import LAYOUTS
from pyoci.kernel.syscalls import numbers
from pyoci.plan.ops import INIT, Address, Asset, Blob, Buffer, Op, Ref, Struct, Vector
from pyoci.program import (
    ADDRESS,
    AWAIT,
    BARRIER,
    CLONE,
    EXPECT,
    FLAG_CLOSE,
    FLAG_FSLOG,
    FORK,
    HEADER,
    MAGIC,
    MOVE,
    OFFER,
    OP,
    SPAWN,
    TEXT,
    Program,
)

WORD = (1 << 64) - 1


class Decoded:
    """One op of an image."""

    def __init__(self, fields: tuple[int, ...]) -> None:
        self.nr, self.skip_ok, self.skip_err, self.load, self.flags = fields[:5]
        self.tolerate = tuple(number for number in fields[5:11] if number)
        self.args = fields[11:17]
        self.result = fields[17]


class Image:
    """The program's part of an image at its address."""

    def __init__(self, image: bytes) -> None:
        self.memory = image[TEXT:]
        magic, count, self.control, first = HEADER.unpack_from(self.memory)
        assert magic == MAGIC
        assert first + count * OP.size == len(self.memory)
        self.ops = [Decoded(OP.unpack_from(self.memory, first + index * OP.size)) for index in range(count)]
        self.end_of_data = ADDRESS + first

    def read(self, address: int, size: int) -> bytes:
        """What is there; an address outside the data is a mistake."""
        assert ADDRESS + HEADER.size <= address, hex(address)
        assert address + size <= self.end_of_data, hex(address)
        return self.memory[address - ADDRESS : address - ADDRESS + size]

    def word(self, address: int, width: int = 8) -> int:
        return int.from_bytes(self.read(address, width), "little")

    def string(self, address: int) -> bytes:
        end = self.memory.index(b"\0", address - ADDRESS)
        return self.read(address, end - (address - ADDRESS))


class Check:
    """Compares an assembled program with the ops that it was made from, argument by argument."""

    def __init__(
        self, program: Program, arch: str, fds: Mapping[str, int], assets: Mapping[str, bytes], template: bytes = b""
    ) -> None:
        assert program.image[: len(template)][:32] == template[:32]
        self.program = program
        self.image = Image(program.image)
        self.arch = arch
        self.numbers = numbers(arch)
        self.fds = fds
        self.assets = assets
        self.registers: dict[str, int] = {}
        self.buffers: dict[str, int] = {}
        self.moves: list[tuple[str, int, int]] = []  # register's name, address, width, due before the next call
        self.closing: list[int] = []  # registers that the last op closes besides
        self.place = 0
        assert self.image.control == fds["control"]

    def all(self, ops: Sequence[Op]) -> None:
        """Every op of `ops`, and nothing else, is in the image."""
        self.sequence(ops)
        assert self.place == len(self.image.ops) == len(self.program.index)
        assert self.closing == []

    def sequence(self, ops: Sequence[Op]) -> None:
        due: list[Op] | None = None
        for op in ops:
            if op.performer == INIT:
                due = None
                if self.closing:
                    # the op before does this as well, in one go
                    assert isinstance(op.args[0], Ref) and op.call == "close" and not op.tolerate, op
                    assert self.closing.pop() == self.registers[op.args[0].name]
                else:
                    self.call(op)
            elif due is None:
                assert self.image.ops[self.place].nr == (AWAIT if op.call == "listener" else BARRIER)
                due = self.program.barriers[self.place]
                assert due[0] is op
                self.place += 1
            else:
                assert op in due

    def call(self, op: Op) -> None:
        moved: list[tuple[int, int, int]] = []
        while self.image.ops[self.place].nr == MOVE:
            move = self.image.ops[self.place]
            assert not move.load and not move.tolerate and not move.result and not move.skip_ok
            moved.append((move.args[0], move.args[1], move.args[2]))
            assert self.program.index[self.place] is op
            self.place += 1
        decoded = self.image.ops[self.place]
        assert self.program.index[self.place] is op
        self.place += 1
        expected = {"expect": EXPECT, "clone3": FORK, "clone": CLONE, "spawn": SPAWN, "offer": OFFER}.get(op.call)
        assert decoded.nr == (self.numbers[op.call] if expected is None else expected), op
        assert decoded.tolerate == op.tolerate
        assert bool(decoded.flags & FLAG_FSLOG) == (op.call in ("fsconfig", "fsmount"))
        closes = [word for position, word in enumerate(decoded.args) if decoded.flags & FLAG_CLOSE << position]
        self.moves = []
        for position, value in enumerate(op.args):
            self.argument(op, position, value, decoded.args[position], bool(decoded.load >> position & 1))
        assert not any(decoded.args[len(op.args) :])
        assert [(self.registers[name], address, width) for name, address, width in self.moves] == moved, op
        if op.result is None:
            assert not decoded.result
        else:
            assert self.registers.setdefault(op.result, decoded.result) == decoded.result
            self.image.read(decoded.result, 8)
        if closes:
            assert not (op.otherwise or op.then or op.tolerate), op
            assert all(decoded.load >> decoded.args.index(word) & 1 for word in closes)
            self.closing = closes
            return
        first = self.place
        self.sequence(op.otherwise or op.then)
        length = self.place - first
        assert (decoded.skip_ok, decoded.skip_err) == (length if op.otherwise else 0, length if op.then else 0)

    def argument(self, op: Op, position: int, value: object, word: int, load: bool) -> None:
        if isinstance(value, Ref) and value.name not in self.fds:
            assert load and word == self.registers[value.name], op
            return
        assert not load, op
        if isinstance(value, int) and (op.call, position) == ("openat", 2):
            assert word == open_flags(self.arch, value)
        else:
            self.value(value, word)

    def value(self, value: object, word: int) -> None:
        image = self.image
        if isinstance(value, int):
            assert word == value & WORD
        elif isinstance(value, bytes):
            assert image.string(word) == value
        elif isinstance(value, Ref):
            assert word == self.fds[value.name]
        elif isinstance(value, Struct):
            self.struct(value, word)
        elif isinstance(value, Vector):
            addresses = [image.word(word + 8 * index) for index in range(len(value.items) + 1)]
            assert addresses.pop() == 0
            for address, item in zip(addresses, value.items, strict=True):
                self.value(item, address)
        elif isinstance(value, Blob):
            assert image.read(word, len(value.data)) == value.data
        elif isinstance(value, Asset):
            content = self.assets[value.name]
            assert word == len(content) // 8 if value.count else image.read(word, len(content)) == content
        elif isinstance(value, Buffer):
            before = len(value.before)
            assert image.read(word - before, before + value.size) == value.before + bytes(value.size)
            self.buffers[value.name] = word
        elif isinstance(value, Address):
            assert word == self.buffers[value.name] + value.offset
        else:
            raise AssertionError(value)

    def struct(self, value: Struct, address: int) -> None:
        size, layout = LAYOUTS[value.layout]
        rest = bytearray(self.image.read(address, size))
        for name, field in value.fields.items():
            offset, width = layout[name]
            found = int.from_bytes(rest[offset : offset + width], "little")
            rest[offset : offset + width] = bytes(width)
            if isinstance(field, Ref) and field.name not in self.fds:
                self.moves.append((field.name, address + offset, width))
                assert found == 0
            elif isinstance(field, int):
                wanted = open_flags(self.arch, field) if (value.layout, name) == ("open_how", "flags") else field
                assert found == wanted & ((1 << 8 * width) - 1)
            else:
                self.value(field, found)
        assert not any(rest), "what is not named is zero"


def segments(image: bytes) -> list[tuple[int, int, int, int, int, int]]:
    """(type, flags, offset, address, size in the file, size in memory) of each program header."""
    start, size, count = struct.unpack_from("<Q", image, 32)[0], *struct.unpack_from("<HH", image, 54)
    headers = [struct.unpack_from("<IIQQQQQ", image, start + size * index) for index in range(count)]
    return [(kind, flags, offset, at, length, memory) for kind, flags, offset, at, _, length, memory in headers]
