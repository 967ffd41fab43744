"""Where in a JSON text each value is: for messages to people, who look for a line and not for a pointer."""

from __future__ import annotations

from pyoci.jsontext import escape, loads

# A string, a mark, or a number or word; the text has been read as JSON before, so what is between is white space.
TOKEN = r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+'


class Places:
    """The places of all values of one JSON text, by JSON pointer.

    duplicates  (pointer, offset) of every name that its object has already; the last value of a name has its pointer.
    """

    __slots__ = ("_offsets", "_printable", "duplicates", "text")

    def __init__(self, text: str) -> None:
        """`text` must be JSON but for duplicate names."""
        from re import DOTALL, compile

        self.text = text
        self.duplicates: list[tuple[str, int]] = []
        self._offsets: dict[str, int] = {}
        self._printable: dict[str, str] | None = None
        # of each open object or array: pointer, and the next index (-1: an object)
        frames: list[tuple[str, int]] = []
        pointer, index = "", 0
        place = ""  # pointer of the value that comes next
        name: str | None = None
        expects_name = False
        names: list[set[str]] = []
        for match in compile(TOKEN, DOTALL).finditer(text):
            token = match.group()
            first = token[0]
            if first in "}]":
                pointer, index = frames.pop()
                if first == "}":
                    names.pop()
                expects_name = False
            elif first == ",":
                if index < 0:
                    expects_name = True
                else:
                    index += 1
                    place = f"{pointer}/{index}"
            elif first == ":":
                expects_name = False
            elif expects_name:
                name = token[1:-1] if "\\" not in token else str(loads(token.encode()))
                place = f"{pointer}/{escape(name)}"
                if name in names[-1]:
                    self.duplicates.append((place, match.start()))
                names[-1].add(name)
                self._offsets[place] = match.start()
            else:
                self._offsets.setdefault(place, match.start())
                if first in "{[":
                    frames.append((pointer, index))
                    pointer = place
                    index = -1 if first == "{" else 0
                    if first == "{":
                        names.append(set())
                        expects_name = True
                    else:
                        place = f"{pointer}/0"

    def find(self, pointer: str) -> tuple[int, int]:
        """Line and column, from 1 and in characters, of the member or item, or of the nearest one that holds it.

        `pointer` may be spelled as error messages do (`spec.read.printable`).
        """
        offset = self._offsets.get(pointer)
        if offset is None:
            offset = self._offsets.get(self._spelled(pointer))
        while offset is None:
            pointer = pointer[: pointer.rfind("/")] if pointer else ""
            offset = self._offsets.get(pointer)
            if not pointer:
                break
        return self.position(offset or 0)

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a character of the text."""
        return self.text.count("\n", 0, offset) + 1, offset - self.text.rfind("\n", 0, offset)

    def _spelled(self, pointer: str) -> str:
        if self._printable is None:
            from pyoci.spec.read import printable

            self._printable = {printable(known): known for known in self._offsets if not known.isprintable()}
        return self._printable.get(pointer, pointer)
