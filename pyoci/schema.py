"""Everything that is wrong with a config.json, each thing with its place: the schema and the prose together.

The schema (`schemas/config.json`) says what is allowed where; the rules of `spec` say the rest, and are what create
goes by.  Both are asked, so that neither can differ from the other unnoticed.  For people: nothing here is on the way
of a container.
"""

from __future__ import annotations

from pyoci.errors import WHOLE, ConfigError, PyociError
from pyoci.jsonplaces import Places
from pyoci.jsontext import JSONError, escape, loads, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

MISSING = object()
KINDS = ("config", "features", "state")


class Finding:
    """One thing to say about a document.

    level    "error", or "warning" for what create accepts.
    strict   whether a warning is an error for who wants to be strict.
    pointer  JSON pointer of what it is about, a missing member included; line and column are where that is, or what
    should hold it, from 1.  found and allowed are texts, "" where there is nothing to say; clause is the
    specification's.
    """

    __slots__ = ("allowed", "clause", "column", "found", "hint", "level", "line", "message", "pointer", "strict")

    def __init__(self, level: str, pointer: str, message: str, *, strict: bool = False, hint: str = "") -> None:
        self.level = level
        self.pointer = pointer
        self.message = message
        self.strict = strict
        self.hint = hint
        self.found = self.allowed = self.clause = ""
        self.line = self.column = 0

    def to_json(self) -> dict[str, object]:
        """A JSON object with a member for everything but `strict`."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "strict"}

    def __str__(self) -> str:
        from pyoci.spec.read import printable

        where = printable(self.pointer) or WHOLE
        if len(where) > 300:
            where = f"{where[:200]}...{where[-50:]}"
        text = f"{self.line}:{self.column}: {self.level}: {where}: {self.message}"
        if self.hint:
            text += f"; did you mean {quote(self.hint)}?"
        # most messages have both in them
        if self.found not in self.message:
            text += f" [found: {self.found}]"
        if not all(part.strip('"') in self.message for part in self.allowed.split(", ")):
            text += f" [allowed: {self.allowed}]"
        return text + (f" ({self.clause})" if self.clause else "")


def schema(name: str) -> dict[str, Any]:
    """One of the package's schemas: "config", "state" or "features"."""
    from pathlib import Path

    read = loads((Path(__file__).parent / "schemas" / f"{name}.json").read_bytes())
    assert isinstance(read, dict)
    return read


def validator(root: dict[str, Any]) -> Any:
    """What finds the violations of a schema; 1.0 is no integer for it, as for create."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import extend
    except ModuleNotFoundError:
        message = "the Python package jsonschema is not installed (Debian: python3-jsonschema)"
        raise PyociError(message) from None
    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return extend(Draft202012Validator, type_checker=checker)(root)  # type: ignore[no-untyped-call]


class Walk:
    """A document beside its schema."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root

    def resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        """What a reference within the schema refers to."""
        while "$ref" in node:
            target = self.root
            for part in node["$ref"].split("/")[1:]:
                target = target[part]
            node = target
        return node

    def below(self, node: dict[str, Any], name: str) -> dict[str, Any] | None:
        """The schema of a member or item of what `node` describes, None for what it does not know."""
        node = self.resolve(node)
        if node.get("type") == "array":
            return self.resolve(node["items"]) if "items" in node else None
        properties = node.get("properties", {})
        if name not in properties:
            name = next((exact for exact in properties if exact.lower() == name.lower()), name)
        found = properties.get(name, node.get("additionalProperties"))
        return self.resolve(found) if isinstance(found, dict) else None

    def at(self, pointer: str) -> tuple[dict[str, Any] | None, str]:
        """The schema of what `pointer` points to, and the nearest clause around it."""
        node: dict[str, Any] | None = self.root
        clause = self.root.get("x-clause", "")
        for token in pointer.split("/")[1:]:
            node = self.below(node, token.replace("~1", "/").replace("~0", "~")) if node is not None else None
            if node is not None:
                clause = node.get("x-clause", clause)
        return node, clause

    def canonical(self, value: object, node: dict[str, Any] | None) -> object:
        """`value` as the schema wants it: without members that are null, names that differ in case only made right."""
        if isinstance(value, list):
            return [self.canonical(item, self.below(node, "") if node else None) for item in value]
        if not isinstance(value, dict):
            return value
        made: dict[str, object] = {}
        exact: dict[str, str] = {name.lower(): name for name in (node or {}).get("properties", {})}
        for name, item in value.items():
            if item is not None:
                known = exact.get(name.lower(), name)
                right = str(known if value.get(known) is None else name)
                made[right] = self.canonical(item, self.below(node, right) if node else None)
        return made

    def strangers(self, value: object, node: dict[str, Any] | None, where: str = "") -> Iterator[Finding]:
        """The names that the schema does not know: create ignores them, and their writer may not want that."""
        if node is None:
            return
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.strangers(item, self.below(node, ""), f"{where}/{index}")
        elif isinstance(value, dict):
            properties = node.get("properties", {})
            open_ended = "additionalProperties" in node
            for name, item in value.items():
                place = f"{where}/{escape(name)}"
                if name not in properties and not open_ended:
                    finding = self._stranger(name, value, properties, node.get("x-ignored", ()), place)
                    if finding is not None:
                        yield finding
                yield from self.strangers(item, self.below(node, name), place)

    def _stranger(
        self, name: str, owner: dict[str, Any], known: dict[str, Any], ignored: Sequence[str], place: str
    ) -> Finding | None:
        if name in ignored:
            return Finding("warning", place, "is of another platform, and ignored")
        exact = next((exact for exact in known if exact.lower() == name.lower()), None)
        if exact is not None and owner.get(exact) is None:
            return Finding("warning", place, f"is read as {exact}", strict=True, hint=exact)
        from difflib import get_close_matches

        near = get_close_matches(name[:100], known, n=1)
        return Finding(
            "warning", place, "is unknown, and ignored", strict=True, hint=near[0] if near else ""
        )


def pointer_of(path: Sequence[object]) -> str:
    """A path of jsonschema's as a JSON pointer."""
    return "".join(f"/{escape(str(part))}" for part in path)


def violations(root: dict[str, Any], document: object) -> dict[str, str]:
    """What the schema says against a canonical document: pointer -> message."""
    found: dict[str, str] = {}
    for error in validator(root).iter_errors(document):
        pointer = pointer_of(error.absolute_path)
        if error.validator == "required":
            for name in error.validator_value:
                if name not in error.instance:
                    found.setdefault(f"{pointer}/{name}", "is required, and missing")
        elif "propertyNames" in list(error.absolute_schema_path)[-2:-1]:
            found.setdefault(f"{pointer}/{escape(error.instance)}", "is not a name that is allowed here")
        else:
            found.setdefault(pointer, f"violates {error.validator}")
    return found


def allowed(node: dict[str, Any] | None) -> str:
    """What a schema allows, in words."""
    if node is None:
        return ""
    if "enum" in node:
        return ", ".join(quote(item) for item in node["enum"])
    kind: str = node.get("type", "")
    if kind == "integer" and "minimum" in node:
        return f"an integer from {node['minimum']} to {node['maximum']}"
    if kind == "array":
        least = f", at least {node['minItems']}" if "minItems" in node else ""
        return f"an array of {node.get('items', {}).get('type', 'object')}s{least}"
    words = {"string": "a string", "boolean": "true or false", "object": "an object"}.get(kind, "")
    if "pattern" in node:
        words += f" that matches {node['pattern']}"
    if "minLength" in node:
        words += " that is not empty"
    if "maxLength" in node:
        words += f" of at most {node['maxLength']} characters"
    return words


def value_at(document: object, pointer: str) -> object:
    """What `pointer` points to, MISSING where nothing is."""
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(name, MISSING)
        elif isinstance(document, list) and name.isdigit() and len(name) < 10 and int(name) < len(document):
            document = document[int(name)]
        else:
            return MISSING
    return document


def briefly(value: object) -> str:
    """A value on one line of bearable length."""
    from pyoci.jsontext import dumps

    if value is MISSING:
        return "nothing"
    if isinstance(value, (dict, list)):
        kind, what = ("an object", "members") if isinstance(value, dict) else ("an array", "items")
        counted = f"{len(value)} {what.removesuffix('s') if len(value) == 1 else what}"
        return f"{kind} with {counted}" if value else f"an empty {kind[3:]}"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = value if isinstance(value, str) else None
    return dumps(text[:100] + "..." if text is not None and len(text) > 100 else value)


def examine(data: bytes) -> list[Finding]:
    """All that there is to say about the text of a config.json, in the order of the text."""
    try:
        document = loads(data)
    except JSONError as error:
        return unreadable(data, error)
    from pyoci.spec.load import load

    root = schema("config")
    walk = Walk(root)
    places = Places(data.decode())
    findings: list[Finding] = []
    try:
        load(data)
    except ConfigError as error:
        for problem in error.problems:
            finding = Finding("error", problem.pointer, problem.message)
            finding.clause = problem.clause
            findings.append(finding)
    said = {finding.pointer.lower() for finding in findings}
    broken = violations(root, walk.canonical(document, root))
    findings += [Finding("error", where, message) for where, message in broken.items() if not _covered(where, said)]
    findings += walk.strangers(document, root)
    findings += unknown_capabilities(document)
    for finding in findings:
        finding.line, finding.column = places.find(finding.pointer)
        explain(finding, walk, document)
    findings.sort(key=lambda each: (each.line, each.column, each.level))
    return findings


def _covered(pointer: str, said: set[str]) -> bool:
    from pyoci.spec.read import printable

    return printable(pointer).lower() in said


def explain(finding: Finding, walk: Walk, document: object) -> None:
    """Add what the schema and the document know about the place of a finding."""
    node, clause = walk.at(finding.pointer)
    finding.clause = finding.clause or clause
    value = value_at(document, finding.pointer)
    if finding.level == "error":
        finding.found = briefly(value)
        # where the value is one that the schema allows, a rule is about more than the value
        if not (node and isinstance(value, (str, int)) and validator(walk.root).evolve(schema=node).is_valid(value)):
            finding.allowed = allowed(node)
        names = [name for name in (node or {}).get("enum", ()) if name]
        if isinstance(value, str) and names and value not in names:
            from difflib import get_close_matches

            near = get_close_matches(value[:100], names, n=1)
            finding.hint = near[0] if near else ""


def unknown_capabilities(document: object) -> Iterator[Finding]:
    """Capabilities that nobody knows: create leaves them out with a warning."""
    from difflib import get_close_matches

    from pyoci.kernel.capabilities import CAPABILITIES

    sets = value_at(document, "/process/capabilities")
    for kind, listed in sets.items() if isinstance(sets, dict) else ():
        for index, name in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(name, str) and name not in CAPABILITIES:
                near = get_close_matches(name[:100].upper(), CAPABILITIES, n=1)
                place = f"/process/capabilities/{escape(kind)}/{index}"
                hint = near[0] if near else ""
                message = f"{quote(name[:100])} is no capability that is known, and left out"
                yield Finding("warning", place, message, strict=True, hint=hint)


def unreadable(data: bytes, error: JSONError) -> list[Finding]:
    """What is not JSON, or all names that an object has twice."""
    clause = "glossary.md#json"
    if not error.line and not error.message.startswith("nested"):
        places = Places(data.decode())
        found = [Finding("error", pointer, "the object has this name already") for pointer, _ in places.duplicates]
        for finding, (_, offset) in zip(found, places.duplicates, strict=True):
            finding.line, finding.column = places.position(offset)
            finding.clause = clause
        if found:
            return found
    finding = Finding("error", error.pointer, f"not JSON: {error.message}")
    finding.line, finding.column, finding.clause = error.line or 1, error.column or 1, clause
    return [finding]
