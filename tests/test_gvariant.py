"""GVariant text: what `org.systemd.property.*` annotations and planned properties are written in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoci.gvariant import KEYWORDS, RANGES, parse, show


@pytest.mark.parametrize(
    ("text", "signature", "value"),
    [
        ("5", "i", 5),
        (" -0x10 ", "i", -16),
        ("uint64 18446744073709551615", "t", (1 << 64) - 1),
        ("byte 0377", "y", 255),
        ("1.5", "d", 1.5),
        ("double 2", "d", 2.0),
        ("true", "b", True),
        ("'it\\'s'", "s", "it's"),
        ('"a\\tb\\u00e9"', "s", "a\tbé"),
        ("objectpath '/a'", "o", "/a"),
        ("['a', 'b']", "as", ["a", "b"]),
        ("@as []", "as", []),
        ("@ay [1, 2]", "ay", b"\1\2"),
        ("[byte 1, 2]", "ay", b"\1\2"),
        ("[uint64 1, 2]", "at", [1, 2]),
        ("('x', uint32 7, true)", "(sub)", ("x", 7, True)),
        ("[('/dev/null', 'rw')]", "a(ss)", [("/dev/null", "rw")]),
        ("@a(st) [('/dev/sda', 5)]", "a(st)", [("/dev/sda", 5)]),
        ("(1,)", "(i)", (1,)),
    ],
)
def test_values(text: str, signature: str, value: object) -> None:
    assert parse(text) == (signature, value)


@pytest.mark.parametrize(
    "text",
    [
        "", "word", "'open", "[1, 'a']", "[", "[1", "(1", "()", "@q", "@as [1]", "byte 256", "2147483648", "uint32 -1",
        "1 2", "[]", "boolean 1", "int32 'a'", "nothing", "<1>", "{'a': 1}", "'a\\u00zz'", "'\\u0000'", "[" * 100,
        "'\\ud800'", "'\udcff'",
        "@" + "(" * 5000, "true 5", "@(ss) ('a',)", "@(s) ('a', 'b')", "string 5", "1e", "\\U",
    ],
)  # fmt: skip
def test_mistakes_are_value_errors(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@given(st.text(max_size=30))
def test_nothing_else_is_raised(text: str) -> None:
    try:
        parse(text)
    except ValueError:
        pass


scalars = st.one_of(
    *(st.tuples(st.just(kind), st.integers(*RANGES[kind])) for kind in RANGES),
    st.tuples(st.just("b"), st.booleans()),
    st.tuples(st.just("s"), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
)


@given(scalars)
def test_what_is_shown_reads_back(value: tuple[str, object]) -> None:
    assert parse(show(value[1], value[0])) == value
    assert value[0] in KEYWORDS.values()


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("ay", b""),
        ("ay", b"\0\xff"),
        ("as", []),
        ("as", ["it's", "\\"]),
        ("a(st)", [("/a", 5)]),
        ("(sbt)", ("x", True, 3)),
    ],
)
def test_what_is_shown_of_arrays_reads_back(signature: str, value: object) -> None:
    assert parse(show(value, signature)) == (signature, value)
