"""JSON text to values and back, without `json`.

`json` imports `re`, which costs more than the rest of a start-up together; its scanner and its encoder are in the C
module `_json`, and this module is what they need around them.  It is stricter than `json.loads`: input is UTF-8 without
a byte order mark, and duplicate names, NaN, Infinity and numbers beyond a double are errors (the specification's
glossary and RFC 8259 forbid them).

An integer of any length is read, without quadratic work: one of thousands of digits, which no property can hold, is
given as a number that no range check lets pass.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

quote = encode_basestring_ascii  # a string as JSON text in ASCII

WHITESPACE = " \t\n\r"
# Beyond every integer type of the specification, and still printed in full.
ENORMOUS = 10**100


class JSONError(ValueError):
    """Text that is not JSON.  `line` and `column` count from 1 in characters, 0 when only `pointer` is known."""

    def __init__(self, message: str, line: int = 0, column: int = 0, pointer: str = "") -> None:
        super().__init__(f"line {line}, column {column}: {message}" if line else message)
        self.message = message
        self.line = line
        self.column = column
        self.pointer = pointer


class _Refused(Exception):
    """A hook of the scanner met something that has no place in JSON; the hook is not told where."""


class _Context:
    """What `_json.make_scanner` asks for its settings."""

    strict = True
    object_hook = None
    object_pairs_hook: object = None
    parse_int: object = int
    parse_float: object = None
    parse_constant: object = None
    memo: object = None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Refused
    return made


def _float(digits: str) -> float:
    number = float(digits)
    if number - number != 0.0:
        raise _Refused
    return number


def _constant(name: str) -> object:
    raise _Refused


def _context() -> _Context:
    context = _Context()
    context.object_pairs_hook = _object
    context.parse_float = _float
    context.parse_constant = _constant
    context.memo = {}
    return context


_scan = make_scanner(_context())  # type: ignore[arg-type]  # typeshed asks for a scanner where the scanner asks for this


def loads(data: bytes) -> object:
    """The value that `data` is the JSON text of: dict, list, str, int, float, bool or None.

    Raises JSONError (a ValueError), and nothing else, for anything that is not exactly one JSON value in UTF-8.
    Strings may still hold NUL and lone surrogates, which JSON can spell: who uses a string checks it.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        start = error.start
        line = data.count(b"\n", 0, start) + 1
        column = len(data[data.rfind(b"\n", 0, start) + 1 : start].decode()) + 1
        raise JSONError(f"byte 0x{data[start]:02x} is not UTF-8", line, column) from None
    start = len(text) - len(text.lstrip(WHITESPACE))
    if start == len(text):
        raise JSONError("the document is empty", 1, 1)
    try:
        value, end = _scan(text, start)
    except Exception:  # SystemError too: 3.11's scanner forgets to raise while json.decoder is not imported
        value, end = _explain(text, start)
    if end != len(text):
        end = len(text) - len(text[end:].lstrip(WHITESPACE))
        if end != len(text):
            raise _at(text, end, f"nothing may follow the value, but there is {_shown(text, end)}")
    return value


def _explain(text: str, start: int) -> tuple[object, int]:
    """Scan again with hooks that go on and remember, then raise the JSONError for what stopped the first scan.

    Returns like the scanner where only the length of an integer did.
    """
    from json.decoder import JSONDecodeError  # the scanner raises it, if somebody has imported it

    duplicates: list[tuple[dict[str, object], str]] = []
    infinite: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made: dict[str, object] = {}
        for name, value in pairs:
            if name in made:
                duplicates.append((made, name))
            made[name] = value
        return made

    def number(digits: str) -> float:
        value = float(digits)
        if value - value != 0.0:
            infinite.append(digits)
        return value

    context = _context()
    context.object_pairs_hook = collect
    context.parse_float = number
    context.parse_int = _integer
    try:
        value, end = make_scanner(context)(text, start)  # type: ignore[arg-type]
    except RecursionError:
        raise JSONError("nested too deeply", *_deepest(text)) from None
    except StopIteration as error:
        where: int = error.value
        if text.startswith("\ufeff"):
            raise JSONError("a byte order mark is not JSON", 1, 1) from None
        raise _at(text, where, f"a value was expected, found {_shown(text, where)}") from None
    except JSONDecodeError as error:
        message = error.msg[0].lower() + error.msg[1:]
        raise _at(text, error.pos, f"{message}, found {_shown(text, error.pos)}") from None
    except _Refused:
        where = next(index for index, character in _structure(text) if character in "NI")
        name = "NaN" if text[where] == "N" else "Infinity"
        raise _at(text, where, f"{name} is not a JSON value") from None
    if infinite:
        raise _at(text, text.find(infinite[0]), f"number {infinite[0][:40]} is out of range")
    if duplicates:
        owner, name = duplicates[0]
        raise JSONError(f"name {quote(name[:200])} occurs twice in this object", 0, 0, _pointer_of(value, owner))
    return value, end


def _integer(digits: str) -> int:
    if len(digits) > 64:
        return -ENORMOUS if digits[0] == "-" else ENORMOUS
    return int(digits)


def escape(name: str) -> str:
    """One token of a JSON pointer (RFC 6901, section 3)."""
    return name.replace("~", "~0").replace("/", "~1") if "~" in name or "/" in name else name


def _pointer_of(value: object, wanted: object) -> str:
    """The JSON pointer of an object within `value`, "" when a later duplicate replaced it."""
    places: list[tuple[object, str]] = [(value, "")]
    while places:
        place, pointer = places.pop()
        if place is wanted:
            return pointer
        if isinstance(place, dict):
            places.extend((item, f"{pointer}/{escape(name)}") for name, item in place.items())
        elif isinstance(place, list):
            places.extend((item, f"{pointer}/{index}") for index, item in enumerate(place))
    return ""


def _structure(text: str) -> Iterator[tuple[int, str]]:
    """The characters outside of strings, with their places."""
    quoted = escaped = False
    for index, character in enumerate(text):
        if quoted:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        else:
            yield index, character


def _deepest(text: str) -> tuple[int, int]:
    """Line and column of the bracket that opens the 500th level, about where the scanner gives up."""
    depth = 0
    for index, character in _structure(text):
        if character in "[{":
            depth += 1
            if depth == 500:
                return _position(text, index)
        elif character in "]}":
            depth -= 1
    return 1, 1


def _position(text: str, index: int) -> tuple[int, int]:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


def _at(text: str, index: int, message: str) -> JSONError:
    return JSONError(message, *_position(text, index))


def _shown(text: str, index: int) -> str:
    if index >= len(text):
        return "the end of the document"
    return f"'{text[index]}'" if " " < text[index] <= "~" else f"U+{ord(text[index]):04X}"


def _default(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not a JSON value")


_encode = make_encoder(None, _default, quote, None, ":", ",", False, False, False)


def dumps(value: object, indent: bool = False) -> str:
    """`value` as JSON text in ASCII, on one line, or with `indent` one member per line behind two spaces per level.

    dict (with str names), list, tuple, str, int, float, bool and None are written.  TypeError for anything else,
    ValueError for NaN and infinities, RecursionError for values nested hundreds of levels deep.
    """
    if not indent:
        return "".join(_encode(value, 0))
    pieces: list[str] = []
    _write(value, "\n", pieces)
    return "".join(pieces)


def _write(value: object, newline: str, pieces: list[str]) -> None:
    deeper = newline + "  "
    if isinstance(value, dict) and value:
        mark = "{"
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{type(name).__name__} is not a name in JSON")
            pieces.append(f"{mark}{deeper}{quote(name)}: ")
            _write(item, deeper, pieces)
            mark = ","
        pieces.append(newline + "}")
    elif isinstance(value, (list, tuple)) and value:
        mark = "["
        for item in value:
            pieces.append(mark + deeper)
            _write(item, deeper, pieces)
            mark = ","
        pieces.append(newline + "]")
    else:
        pieces.extend(_encode(value, 0))
