"""jsontext: what is JSON and what is not, judged beside the standard library's `json`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoci import jsontext

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1, column 1: the document is empty"),
        (b" \n ", "line 1, column 1: the document is empty"),
        (b"{", "line 1, column 2: expecting property name"),
        (b'{"a": 1,\n  "b" 2}', "line 2, column 7: expecting ':' delimiter, found '2'"),
        (b'{"a": 1\n "b": 2}', "line 2, column 2: expecting ',' delimiter"),
        (b"[1,\n 2,\n ]", "line 3, column 2: a value was expected, found ']'"),
        (b'[1, "a]', "line 1, column 5: unterminated string"),
        (b"nul", "line 1, column 1: a value was expected, found 'n'"),
        (b"01", "line 1, column 2: nothing may follow the value, but there is '1'"),
        (b"{}\n {}", "line 2, column 2: nothing may follow the value, but there is '{'"),
        (b'"\x01"', "line 1, column 2: invalid control character"),
        (b'"\\x"', "invalid \\escape"),
        (b'{"a": [1, NaN]}', "line 1, column 11: NaN is not a JSON value"),
        (b'{"NaN": Infinity}', "line 1, column 9: Infinity is not a JSON value"),
        (b"[-Infinity]", "Infinity is not a JSON value"),
        (b"[1,\n1e999]", "line 2, column 1: number 1e999 is out of range"),
        (b"\xef\xbb\xbf{}", "line 1, column 1: a byte order mark is not JSON"),
        ("{}".encode("utf-16"), "is not UTF-8"),
        ('"é"\n'.encode() + b'"\xe9"', "line 2, column 2: byte 0xe9 is not UTF-8"),
        (b"\xed\xa0\x80", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"1" + b"0" * 5000 + b" x", "column 5003: nothing may follow the value"),
    ],
)
def test_refuses(data: bytes, message: str) -> None:
    with pytest.raises(jsontext.JSONError) as caught:
        jsontext.loads(data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        (b'{"a": 1, "a": 2}', ""),
        (b'{"x": [0, {"b/c": {"d": 1, "d": 2}}]}', "/x/1/b~1c"),
        (b'{"x": {"a": 1, "a": 2}, "x": 3}', ""),
    ],
)
def test_duplicate_names(data: bytes, pointer: str) -> None:
    with pytest.raises(jsontext.JSONError, match="occurs twice") as caught:
        jsontext.loads(data)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("digits", [5, 64, 100, 4300, 5000, 200_000])
def test_integers_of_any_length(sign: str, digits: int) -> None:
    value = jsontext.loads(b"[" + sign.encode() + b"9" * digits + b"]")
    assert isinstance(value, list)
    assert (value[0] < 0) == bool(sign)
    assert digits < 20 or abs(value[0]) > 2**64
    assert str(value[0])


def test_surrogates_are_left_to_who_uses_the_string() -> None:
    assert jsontext.loads(b'"\\ud800"') == "\ud800"
    assert jsontext.loads(b'"\\ud83d\\ude00"') == "\U0001f600"


@given(st.binary(max_size=60))
def test_bytes_are_a_value_or_a_json_error(data: bytes) -> None:
    try:
        value = jsontext.loads(data)
    except jsontext.JSONError:
        return
    assert jsontext.loads(jsontext.dumps(value).encode()) == value


@given(st.text(alphabet='{}[]",:0123456789eE.+- \n\\untrflasI', max_size=40))
def test_accepts_no_more_than_json(text: str) -> None:
    try:
        value = jsontext.loads(text.encode())
    except jsontext.JSONError:
        return
    assert json.loads(text) == value


@given(VALUES, st.booleans())
def test_round_trip(value: object, indent: bool) -> None:
    text = jsontext.dumps(value, indent)
    assert text.isascii()
    assert json.loads(text) == value
    assert jsontext.loads(text.encode()) == value
    assert ("\n" in text) <= indent


def test_layout() -> None:
    value = {"a": [1, None, True], "é": {}, "b": (), "c": {"d": "\n"}}
    assert jsontext.dumps(value) == '{"a":[1,null,true],"\\u00e9":{},"b":[],"c":{"d":"\\n"}}'
    assert jsontext.dumps(value, indent=True) == json.dumps(value, indent=2)


@pytest.mark.parametrize("indent", [False, True])
def test_what_cannot_be_written(indent: bool) -> None:
    for value in (math.nan, [math.inf]):
        with pytest.raises(ValueError, match="not JSON compliant"):
            jsontext.dumps(value, indent)
    for wrong in (b"bytes", {"a": {1}}, {(1, 2): 3}):
        with pytest.raises(TypeError):
            jsontext.dumps(wrong, indent)


def test_json_is_imported_only_to_explain() -> None:
    """Without json.decoder in memory the C scanner cannot raise its own error: that path has to work, too."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pyoci import jsontext\n"
        "jsontext.loads(b'{\"a\": [1.5, -3]}'); jsontext.dumps({'a': [1]}, True)\n"
        "assert not {'json', 're', 'typing', 'enum'} & set(sys.modules), sys.modules\n"
        "try: jsontext.loads(b'{\"a\" 1}')\n"
        "except jsontext.JSONError as error: print(error)\n"
    )
    top = Path(jsontext.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(top)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "line 1, column 6: expecting ':' delimiter, found '1'\n"
