"""GVariant text, as in `org.systemd.property.*` annotations and in a planned unit's properties: a type and a value.

What D-Bus has no type for (maybe types) is not accepted, and neither are dictionaries, which no property is.  A number
without a type is an int32, or a double if it has a point; the first element of an array says what the others are
(https://docs.gtk.org/glib/gvariant-text-format.html).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

KEYWORDS = {
    "boolean": "b", "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t",
    "double": "d", "string": "s", "objectpath": "o", "signature": "g",
}  # fmt: skip
RANGES = {
    "y": (0, 255), "n": (-1 << 15, (1 << 15) - 1), "q": (0, (1 << 16) - 1), "i": (-1 << 31, (1 << 31) - 1),
    "u": (0, (1 << 32) - 1), "x": (-1 << 63, (1 << 63) - 1), "t": (0, (1 << 64) - 1),
}  # fmt: skip
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
DEPTH = 16
WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def parse(text: str) -> tuple[str, object]:
    """(D-Bus signature, value): bool, int, float, str, list, tuple, or bytes for an array of bytes.

    ValueError says what is wrong with it.
    """
    reader = _Reader(text)
    found = reader.value("", 0)
    reader.blank()
    if reader.at < len(text):
        raise ValueError(f"{text[reader.at :]!r} is left over")
    return found


class _Reader:
    __slots__ = ("at", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def blank(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t\n\r":
            self.at += 1

    def peek(self) -> str:
        self.blank()
        return self.text[self.at : self.at + 1]

    def take(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self.at += 1
        return True

    def value(self, expected: str, depth: int) -> tuple[str, object]:
        if depth > DEPTH:
            raise ValueError("nested too deeply")
        first = self.peek()
        if first == "@":
            start = self.at + 1
            self.at = end = _signature_end(self.text, start)
            given = self.text[start:end]
            if expected and given != expected:
                raise ValueError(f"a {given} where a {expected} should be")
            return self.value(given, depth + 1)
        if first == "[":
            return self.array(expected, depth)
        if first == "(":
            return self.tuple(expected, depth)
        if first in ("'", '"'):
            return _fit(self.string(), expected or "s")
        word = self.word()
        if word in KEYWORDS:
            kind = KEYWORDS[word]
            if expected and kind != expected:
                raise ValueError(f"a {word} where a {expected} should be")
            return self.value(kind, depth + 1)
        if word in ("true", "false"):
            return _fit(word == "true", expected or "b")
        return _number(word, expected)

    def array(self, expected: str, depth: int) -> tuple[str, object]:
        if expected and not expected.startswith("a"):
            raise ValueError(f"an array where a {expected} should be")
        element = expected[1:]
        self.take("[")
        values: list[object] = []
        while not self.take("]"):
            if values and not self.take(","):
                raise ValueError("an array without its end")
            element, value = self.value(element, depth + 1)
            values.append(value)
        if not element:
            raise ValueError("an empty array needs a type, such as @as []")
        return "a" + element, bytes(values) if element == "y" else values  # type: ignore[arg-type]

    def tuple(self, expected: str, depth: int) -> tuple[str, object]:
        parts: Sequence[str] = ()
        if expected:
            if not expected.startswith("("):
                raise ValueError(f"a tuple where a {expected} should be")
            parts = members(expected)
        self.take("(")
        kinds: list[str] = []
        values: list[object] = []
        while not self.take(")"):
            if values and not self.take(","):
                raise ValueError("a tuple without its end")
            if self.take(")"):
                break  # ("only one",)
            if parts and len(values) >= len(parts):
                raise ValueError(f"more values than in {expected}")
            kind, value = self.value(parts[len(values)] if parts else "", depth + 1)
            kinds.append(kind)
            values.append(value)
        signature = f"({''.join(kinds)})"
        if not values or (expected and signature != expected):
            raise ValueError(f"{signature} where a {expected or 'tuple'} should be")
        return signature, tuple(values)

    def string(self) -> str:
        quote = self.text[self.at]
        self.at += 1
        out: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            self.at += 1
            if character == quote:
                return "".join(out)
            if character == "\\":
                character = self.text[self.at : self.at + 1]
                self.at += 1
                if character in ("u", "U"):
                    digits = 4 if character == "u" else 8
                    number = int(self.text[self.at : self.at + digits] or "x", 16)
                    self.at += digits
                    character = chr(number)
                else:
                    character = ESCAPES.get(character, character)
            out.append(character)
        raise ValueError("a string without its end")

    def word(self) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] in WORD:
            self.at += 1
        if start == self.at:
            raise ValueError(f"{self.text[start : start + 1]!r} begins no value" if self.text[start:] else "no value")
        return self.text[start : self.at]


def _fit(value: object, expected: str) -> tuple[str, object]:
    fits = expected == "b" if isinstance(value, bool) else expected in ("s", "o", "g")
    if not fits:
        raise ValueError(f"{value!r} where a {expected} should be")
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a string with a NUL in it")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("a string with half a character (a surrogate) in it")
    return expected, value


def _number(word: str, expected: str) -> tuple[str, object]:
    digits = word.lstrip("+-")
    kind = expected or ("i" if digits.isdigit() or digits.lower().startswith("0x") else "d")
    try:
        if kind == "d":
            return kind, float(word)
        octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
        value = int(word, 8 if octal else 0)
    except ValueError:
        raise ValueError(f"{word!r} is not a value; strings are quoted") from None
    if kind not in RANGES:
        raise ValueError(f"{word} where a {kind} should be")
    least, most = RANGES[kind]
    if not least <= value <= most:
        raise ValueError(f"{word} is not within {least} to {most}; another type is written before it: uint64 {word}")
    return kind, value


def _signature_end(text: str, start: int, depth: int = 0) -> int:
    """Behind one complete type at `start`."""
    if depth > DEPTH:
        raise ValueError("a type that is nested too deeply")
    at = start
    while text[at : at + 1] == "a":
        at += 1
    first = text[at : at + 1]
    if first == "(":
        at += 1
        while text[at : at + 1] != ")":
            at = _signature_end(text, at, depth + 1)
        return at + 1
    if not first or first not in "bynqiuxtdsogv":
        raise ValueError(f"@{text[start : at + 1]} is not a type")
    return at + 1


def members(signature: str) -> list[str]:
    """The types in a tuple's."""
    found: list[str] = []
    at = 1
    while at < len(signature) - 1:
        end = _signature_end(signature, at)
        found.append(signature[at:end])
        at = end
    return found


def show(value: object, signature: str) -> str:
    """`value` as text that `parse` reads back with that signature."""
    if signature == "s":
        return "'" + "".join("\\" + c if c in "\\'" else c for c in str(value)) + "'"
    if signature == "b":
        return "true" if value else "false"
    if signature.startswith("a"):
        assert isinstance(value, (list, tuple, bytes))
        return f"@{signature} [{', '.join(_bare(item, signature[1:]) for item in value)}]"
    if signature.startswith("("):
        assert isinstance(value, tuple)
        return f"({', '.join(map(show, value, members(signature)))})"
    name = next(name for name, kind in KEYWORDS.items() if kind == signature)
    return f"{name} {value}" if signature not in "id" else str(value)


def _bare(value: object, signature: str) -> str:
    """`value` where its type is known already."""
    if signature.startswith("("):
        assert isinstance(value, tuple)
        return f"({', '.join(map(_bare, value, members(signature)))})"
    return show(value, signature) if signature in ("s", "b") else str(value)
