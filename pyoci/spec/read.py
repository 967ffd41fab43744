"""Reading parsed JSON into the classes of `types` by tables, keeping count of everything that does not fit.

A *reader* is a function `(value, where, report)` that returns the value to keep, or `WRONG` after reporting why not;
`where` is the value's JSON pointer.  A `Shape` is the reader of a JSON object: a table from property names to attribute
and reader.  What is wrong keeps its default, so that one mistake does not hide the next.
"""

from __future__ import annotations

from pyoci.errors import Problem
from pyoci.jsontext import escape, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Reader = Callable[[object, str, "Report"], object]
    Finish = Callable[[object, dict[str, object], str, "Report"], None]

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
UINT16 = (0, 2**16 - 1)
UINT32 = (0, 2**32 - 1)
UINT64 = (0, 2**64 - 1)

WRONG: object = object()

_KINDS = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def clause(check: Callable[..., None]) -> str:
    """The clause that a check enforces: its docstring up to the colon."""
    return (check.__doc__ or "").partition(":")[0]


MOST = 1000  # problems kept: nobody mends a document by the thousand and first


class Report:
    """The problems found so far.

    careful  the text holds escapes, and so can spell what no C string holds: look at every string.
    doubted  pointers of what could not be read, when others are to be checked against them; see `unreliable`.
    """

    __slots__ = ("_above", "_doubted", "careful", "problems")

    def __init__(self, careful: bool = True, doubted: Sequence[Problem] = ()) -> None:
        self.careful = careful
        self.problems: list[Problem] = []
        self._doubted = {problem.pointer for problem in doubted}
        self._above = {above for pointer in self._doubted for above in _ancestors(pointer)}

    def add(self, pointer: str, message: str, clause: str = "") -> None:
        if len(self.problems) < MOST:
            self.problems.append(Problem(printable(pointer), message, clause))

    def apply(self, check: Callable[..., None], *about: object) -> None:
        """Let `check` add what it finds wrong with `about`, under the clause that its docstring begins with."""
        since = len(self.problems)
        check(*about, self)
        if len(self.problems) != since:
            self.cite(clause(check), since)

    def cite(self, clause: str, since: int) -> None:
        """Give the problems from number `since` on their clause, where they have none yet."""
        for problem in self.problems[since:]:
            problem.clause = problem.clause or clause

    def unreliable(self, pointer: str) -> bool:
        """Whether something at, below or around `pointer` could not be read: then nothing follows from its value."""
        if not self._doubted:
            return False
        pointer = printable(pointer)
        if pointer in self._doubted or pointer in self._above:
            return True
        return not self._doubted.isdisjoint(_ancestors(pointer))


def printable(pointer: str) -> str:
    """A pointer as an error message shows it: odd characters as a JSON string spells them (RFC 6901, section 5)."""
    return pointer if pointer.isprintable() else quote(pointer)[1:-1]


def _ancestors(pointer: str) -> list[str]:
    """The pointers of everything that holds what `pointer` points to, the document ("") included."""
    found = []
    while pointer:
        pointer = pointer[: pointer.rfind("/")]
        found.append(pointer)
    return found


def shown(value: str) -> str:
    """A string from the document as an error message quotes it: one line, ASCII, of bearable length."""
    return quote(value if len(value) <= 100 else value[:100] + "...")


def _expected(what: str, value: object) -> str:
    return f"must be {what}, not {_KINDS.get(type(value), 'null')}"


def _unfit(value: str) -> str | None:
    """Why a string cannot be passed to the kernel, None if it can."""
    if "\0" in value:
        return "must not contain NUL"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "must not contain half of a surrogate pair"
    return None


def text(value: object, where: str, report: Report) -> object:
    """Reader of a string without NUL."""
    if type(value) is not str:
        report.add(where, _expected("a string", value))
        return WRONG
    if report.careful and (reason := _unfit(value)):
        report.add(where, reason)
        return WRONG
    return value


def text_or_none(value: object, where: str, report: Report) -> object:
    """Reader of a string whose empty form is the same as none at all (engines write both)."""
    return text(value, where, report) or None


def texts(value: object, where: str, report: Report) -> object:
    """Reader of an array of strings."""
    if type(value) is not list:
        report.add(where, _expected("an array of strings", value))
        return WRONG
    for index, item in enumerate(value):
        if type(item) is not str or report.careful:
            text(item, f"{where}/{index}", report)
    # Wrong items stay as empty strings: an index must stay the item's index.
    return tuple([item if type(item) is str else "" for item in value])


def text_map(value: object, where: str, report: Report) -> object:
    """Reader of an object with strings as values."""
    if type(value) is not dict:
        report.add(where, _expected("an object with strings as values", value))
        return WRONG
    made: dict[str, str] = {}
    for name, item in value.items():
        if item is None:
            continue
        place = f"{where}/{escape(name)}"
        if report.careful and (reason := _unfit(name)):
            report.add(where, f"name {shown(name)} {reason}")
        elif (kept := text(item, place, report)) is not WRONG:
            made[name] = kept  # type: ignore[assignment]
    return made


def flag(value: object, where: str, report: Report) -> object:
    """Reader of a boolean."""
    if value is True or value is False:
        return value
    report.add(where, _expected("true or false", value))
    return WRONG


def integer(limits: tuple[int, int]) -> Reader:
    """The reader of an integer of (least, most); 1.0 and true are none."""
    least, most = limits

    def read(value: object, where: str, report: Report) -> object:
        if type(value) is int:
            if least <= value <= most:
                return value
            report.add(where, f"must be an integer from {least} to {most}, not {_number(value)}")
        elif type(value) is float:
            report.add(where, f"must be an integer without fraction or exponent, not {value!r}")
        else:
            report.add(where, _expected("an integer", value))
        return WRONG

    return read


def _number(value: int) -> str:
    return str(value) if -(10**30) < value < 10**30 else "a number of more than 30 digits"


def integers(limits: tuple[int, int]) -> Reader:
    """The reader of an array of integers of (least, most)."""
    one = integer(limits)

    def read(value: object, where: str, report: Report) -> object:
        if type(value) is not list:
            report.add(where, _expected("an array of integers", value))
            return WRONG
        items = [one(item, f"{where}/{index}", report) for index, item in enumerate(value)]
        return tuple([0 if item is WRONG else item for item in items])

    return read


class Shape:
    """The reader of one kind of object.

    make      class whose attributes take the values; None makes a JSON object of them, under their exact names.
    clause    the section of the specification that describes the object.
    fields    property name -> (attribute, reader).
    required  names of the properties that must be there.
    finish    called with (made, JSON object, where, report) for what no table can say.

    Names match exactly; where an exact one is absent, one that differs in case is taken, as Go's decoder does for
    the peers and as engines have come to rely on.  Unknown properties are ignored (config.md#extensibility).
    """

    __slots__ = ("clause", "fields", "finish", "folded", "make", "required")

    def __init__(
        self,
        make: Callable[[], object] | None,
        clause: str,
        fields: dict[str, tuple[str, Reader]],
        required: tuple[str, ...] = (),
        finish: Finish | None = None,
    ) -> None:
        self.make = make
        self.clause = clause
        self.fields = fields
        self.required = required
        self.finish = finish
        self.folded: dict[str, str] = {}

    def __call__(self, value: object, where: str, report: Report) -> object:
        since = len(report.problems)
        if type(value) is not dict:
            report.add(where, _expected("an object", value), self.clause)
            return WRONG if self.make is None else self.make()
        made = None if self.make is None else self.make()
        fields = self.fields
        plain: dict[str, object] = {}
        for name, item in value.items():
            if item is None:
                continue
            field = fields.get(name)
            if field is None:
                field = self._fold(name, value)
                if field is None:
                    continue
            kept = field[1](item, f"{where}/{name}", report)  # no name of the specification needs escaping
            if kept is WRONG:
                continue
            if made is not None:
                setattr(made, field[0], kept)
            else:
                exact = name if name in fields else self.folded[name.lower()]
                plain[exact] = list(kept) if type(kept) is tuple else kept
        for name in self.required:
            if value.get(name) is None:
                self._missing(name, value, where, report)
        if self.finish is not None:
            self.finish(made, value, where, report)
        if len(report.problems) != since:
            report.cite(self.clause, since)
        return plain if made is None else made

    def _fold(self, name: str, value: dict[str, object]) -> tuple[str, Reader] | None:
        if not self.folded:
            self.folded = {exact.lower(): exact for exact in self.fields}
        exact = self.folded.get(name.lower())
        return None if exact is None or value.get(exact) is not None else self.fields[exact]

    def _missing(self, name: str, value: dict[str, object], where: str, report: Report) -> None:
        strangers = [other for other, item in value.items() if other not in self.fields and item is not None]
        if any(other.lower() == name.lower() for other in strangers):
            return
        near = [other for other in strangers if _distance(other.lower(), name.lower()) <= 2]
        hint = f"; is {shown(near[0])} a misspelling of it?" if near else ""
        report.add(f"{where}/{name}", f"is required, and missing{hint}")


def _distance(one: str, other: str) -> int:
    """How many letters were added, dropped or replaced (Levenshtein); anything large for lengths far apart."""
    if abs(len(one) - len(other)) > 2:
        return 99
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, against in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != against))
    return row[-1]


def objects(shape: Shape) -> Reader:
    """The reader of an array of objects of one shape; a wrong item stays as a default, so that indexes stay true."""

    def read(value: object, where: str, report: Report) -> object:
        if type(value) is not list:
            report.add(where, _expected("an array of objects", value))
            return WRONG
        return tuple([shape(item, f"{where}/{index}", report) for index, item in enumerate(value)])

    return read


def object_map(shape: Shape) -> Reader:
    """The reader of an object with objects of one shape as values."""

    def read(value: object, where: str, report: Report) -> object:
        if type(value) is not dict:
            report.add(where, _expected("an object with objects as values", value))
            return WRONG
        made: dict[str, object] = {}
        for name, item in value.items():
            if report.careful and (reason := _unfit(name)):
                report.add(where, f"name {shown(name)} {reason}")
            if item is not None and (kept := shape(item, f"{where}/{escape(name)}", report)) is not WRONG:
                made[name] = kept
        return made

    return read


def one_of(value: str, known: Sequence[str]) -> str:
    """What to say of a value outside of a closed list."""
    return f"{shown(value)} is not one of {', '.join(known)}"
