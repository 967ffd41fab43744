"""Random damage to a good config.json: load returns a Spec or raises ConfigError, and nothing else ever happens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyoci.errors import ConfigError
from pyoci.spec import types
from pyoci.spec.load import load, load_process

DATA = (Path(__file__).parent / "data" / "config-everything.json").read_bytes()
GOOD: dict[str, Any] = json.loads(DATA)

STRINGS = st.text(max_size=5) | st.sampled_from(
    ["", "/", "..", "\0", "bind", "idmap", "pid", "user", "a=b", "1.0.0", "rwm", "2MB", "0-3", "CAP_KILL", "net.x",
     "SCMP_ACT_NOTIFY", "RLIMIT_CPU", "\ud800", "shared"]
)  # fmt: skip
NUMBERS = (
    st.integers() | st.sampled_from([0, -1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 10**100]) | st.floats(allow_nan=False)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=6,
)


def containers(value: object) -> list[Any]:
    """Every object and array of a document."""
    if isinstance(value, dict):
        return [value, *(inner for item in value.values() for inner in containers(item))]
    if isinstance(value, list):
        return [value, *(inner for item in value for inner in containers(item))]
    return []


def names(value: object) -> list[str]:
    """Every property name of a document."""
    return sorted({name for each in containers(value) if isinstance(each, dict) for name in each})


NAMES = st.sampled_from(names(GOOD)) | STRINGS


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        places = containers(document)
        place = places[draw(st.integers(0, len(places) - 1))]
        value = draw(VALUES)
        if isinstance(place, dict):
            name = draw(st.sampled_from(sorted(place)) | NAMES) if place else draw(NAMES)
            match draw(st.integers(0, 2)):
                case 0:
                    place.pop(name, None)
                case 1:
                    place[name] = value
                case _:
                    place[name.swapcase()] = place.pop(name, value)
        elif place:
            index = draw(st.integers(0, len(place) - 1))
            match draw(st.integers(0, 3)):
                case 0:
                    place[index] = value
                case 1:
                    place.append(copy.deepcopy(place[index]))
                case 2:
                    del place[index]
                case _:
                    place.insert(index, value)
        else:
            place.append(value)
    return document


def judge(data: bytes) -> None:
    try:
        spec = load(data)
    except ConfigError as error:
        assert error.problems
        line = str(error)
        assert "\n" not in line
        assert line.isprintable()
        for problem in error.problems:
            assert problem.pointer == "" or problem.pointer[0] == "/"
        return
    assert isinstance(spec, types.Spec)
    assert spec == load(data)
    everything_is_encodable(spec)


def everything_is_encodable(value: object) -> None:
    """No string of a loaded Spec holds what cannot be handed to the kernel; raw objects are not walked."""
    if isinstance(value, str):
        assert b"\0" not in value.encode()
    elif isinstance(value, types.Value):
        for name in value.__slots__:
            if name != "raw":
                everything_is_encodable(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            everything_is_encodable(item)
    elif isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        for name, item in value.items():
            everything_is_encodable(name)
            everything_is_encodable(item)


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_damaged_values(document: Any) -> None:
    judge(json.dumps(document).encode())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(DATA)), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3))
def test_damaged_bytes(edits: list[tuple[int, bytes, int]]) -> None:
    data = DATA
    for place, inserted, removed in edits:
        data = data[:place] + inserted + data[place + removed :]
    judge(data)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_any_json(value: object) -> None:
    judge(json.dumps(value).encode())


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=6), st.booleans())
def test_any_process(document: dict[str, object], contained: bool) -> None:
    spec = load(DATA) if contained else None
    try:
        process = load_process(json.dumps(document).encode(), spec)
    except ConfigError as error:
        assert str(error).startswith("process.json: ")
    else:
        everything_is_encodable(process)
