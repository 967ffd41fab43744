"""The vocabulary of a plan: `Op`, its arguments, and `Plan`.

A plan is a guarded straight line.  Each `Op` is one kernel call (or one of the few pseudo-calls that `init` and
the runtime know), made by one performer, for one reason: its `origin`, a JSON pointer into config.json or a clause of
the specification.  An op that may fail in expected ways names those errnos in `tolerate`; then exactly one of two
blocks may hang on it: `otherwise` (run only after a tolerated failure) or `then` (run only after success).  Blocks
only ever lead forward, so every plan ends.

This module is a value language: it imports nothing and touches nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INIT = "init"
RUNTIME = "runtime"


class Ref:
    """The result of an earlier op, by name: written `@name` in a printed plan.

    `name` is the `result` of that op, or a name that the launcher provides: `control`, `listen`, `console`, and for the
    runtime's ops `pid`, the container's init as the runtime sees it.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return "@" + self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


class Struct:
    """Memory with a layout from `kernel.layouts`, passed by address.

    `fields` maps field names to values: int, bytes (the address of a NUL-terminated copy), Ref (the value is stored
    into the field just before the call), Struct, Vector, Blob or Buffer (its address).  Unnamed fields are zero.
    """

    __slots__ = ("fields", "layout")

    def __init__(self, layout: str, **fields: Arg) -> None:
        self.layout = layout
        self.fields = fields


class Vector:
    """A NULL-terminated array of addresses of NUL-terminated strings: argv, envp.  An item may be in a `Buffer`."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[bytes | Address]) -> None:
        self.items = items


class Blob:
    """Bytes passed by address without a NUL, shown in a printed plan as `label` instead of their content."""

    __slots__ = ("data", "label")

    def __init__(self, data: bytes, label: str = "") -> None:
        self.data = data
        self.label = label


class Asset:
    """Bytes that are known only when the plan is assembled (a compiled seccomp filter): `assets[name]`.

    `count` asks for the number of 8-byte instructions in the asset instead of its address.
    """

    __slots__ = ("count", "name")

    def __init__(self, name: str, count: bool = False) -> None:
        self.name = name
        self.count = count


class Buffer:
    """`size` zeroed bytes that the call writes; a later op passes the same memory by `Address(name)`.

    `before` is what is right in front of them: the beginning of a string whose rest the call writes.
    """

    __slots__ = ("before", "name", "size")

    def __init__(self, name: str, size: int, before: bytes = b"") -> None:
        self.name = name
        self.size = size
        self.before = before


class Address:
    """The memory of the `Buffer` called `name`, `offset` bytes into it."""

    __slots__ = ("name", "offset")

    def __init__(self, name: str, offset: int = 0) -> None:
        self.name = name
        self.offset = offset


if TYPE_CHECKING:
    Arg = int | bytes | Ref | Struct | Vector | Blob | Asset | Buffer | Address


class Op:
    """One call: `call(*args)`, its result kept as `@result`.

    call       name of a system call, or a pseudo-call: init's are `program.PSEUDO`, the runtime's are what
               `container.perform` (and for `mounts` and exec, their own modules) has a branch for.
    origin     JSON pointer into config.json ("/mounts/3"), or a clause of the specification ("runtime.md#lifecycle").
    result     name under which later ops refer to the value, or None.
    performer  INIT or RUNTIME.
    tolerate   errnos after which the plan goes on (with `otherwise`, and without `then`).
    hint       one sentence of remedy for the error message, or "".
    """

    __slots__ = ("args", "call", "hint", "origin", "otherwise", "performer", "result", "then", "tolerate")

    def __init__(
        self,
        call: str,
        args: tuple[object, ...],
        origin: str,
        result: str | None = None,
        performer: str = INIT,
        tolerate: tuple[int, ...] = (),
        otherwise: Sequence[Op] = (),
        then: Sequence[Op] = (),
        hint: str = "",
    ) -> None:
        self.call = call
        self.args = args
        self.origin = origin
        self.result = result
        self.performer = performer
        self.tolerate = tolerate
        self.otherwise = otherwise
        self.then = then
        self.hint = hint

    def __repr__(self) -> str:
        return f"<{self.performer} {self.call}{self.args!r} {self.origin}>"


def walk(ops: Sequence[Op]) -> Iterator[Op]:
    """Every op in printed order, blocks after the op that they hang on."""
    for op in ops:
        yield op
        if op.otherwise:
            yield from walk(op.otherwise)
        if op.then:
            yield from walk(op.then)
