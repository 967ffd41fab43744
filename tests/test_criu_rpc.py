"""CRIU's messages: bytes there and back, and the numbers of CRIU's own description of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoci.criu.rpc import CGROUP_MODES, DUMP, MESSAGES, NETWORK_LOCKS, NOTIFY, PRE_DUMP, RESTORE, decode, encode
from pyoci.criu.service import reasons
from pyoci.errors import PyociError

PROTO = Path("/usr/include/criu/rpc.proto")


@pytest.mark.skipif(not PROTO.exists(), reason="no /usr/include/criu/rpc.proto: install libcriu-dev or criu")
def test_numbers_are_those_of_criu() -> None:
    text = PROTO.read_text(encoding="utf-8")
    for message, fields in MESSAGES.items():
        body = re.search(rf"message {message} \{{(.*?)\n\}}", text, re.DOTALL)
        assert body is not None, message
        known = {name: int(number) for name, number in re.findall(r"(\w+)\s*=\s*(\d+)", body[1])}
        # later than the oldest CRIU that we work with
        assert {name: known.get(name, number) for name, number in fields.items()} == fields, message
    enums = dict(re.findall(r"enum (\w+) \{(.*?)\n\}", text, re.DOTALL))

    def values(name: str) -> dict[str, int]:
        return {word: int(number) for word, number in re.findall(r"(\w+)\s*=\s*(\d+)", enums[name])}

    kinds = values("criu_req_type")
    assert (kinds["DUMP"], kinds["RESTORE"], kinds["PRE_DUMP"], kinds["NOTIFY"]) == (DUMP, RESTORE, PRE_DUMP, NOTIFY)
    modes = {("none" if name == "CG_NONE" else name.lower()): number for name, number in values("criu_cg_mode").items()}
    modes.pop("default")
    assert modes == CGROUP_MODES
    locks = {name.lower(): number for name, number in values("criu_network_lock_method").items()}
    assert NETWORK_LOCKS.items() >= locks.items()


def test_bytes_of_a_request() -> None:
    """As protoc's decoder reads them: a field's number and kind, then its value."""
    assert encode("criu_req", [("type", DUMP)]) == b"\x08\x01"
    assert encode("criu_opts", [("images_dir_fd", 300), ("log_file", "a.log")]) == b"\x08\xac\x02\x52\x05a.log"
    assert encode("criu_opts", [("status_fd", -1)]) == b"\x88\x03" + b"\xff" * 9 + b"\x01"
    inside = encode("ext_mount_map", [("key", "/a"), ("val", "/b")])
    assert encode("criu_opts", [("ext_mnt", inside)]) == b"\xba\x01\x08\x0a\x02/a\x12\x02/b"


@given(number=st.integers(0, 2**64 - 1), text=st.binary(max_size=300))
def test_there_and_back(number: int, text: bytes) -> None:
    data = encode("criu_resp", [("type", number), ("cr_errmsg", text), ("success", True)])
    assert decode("criu_resp", data) == {"type": number, "cr_errmsg": text, "success": 1}


@given(st.binary(max_size=60))
def test_anything_is_an_answer_or_an_error(data: bytes) -> None:
    try:
        decode("criu_resp", data)
    except PyociError as error:
        assert "its answer is no criu_resp" in str(error)


def test_reasons_are_the_first_and_last_errors() -> None:
    log = "".join(f"(00.00{n}) Error (criu/a.c:{n}): reason {n}\n" for n in range(9))
    log = (
        "(00.1) Error (criu/tun.c:85): tun: Unable to create tun: no\n"
        + log
        + "(00.2)      1: Error (b.c:2): last\nx\n"
    )
    assert reasons(log)[-2:] == ["reason 8 (criu/a.c:8)", "last (b.c:2)"]
    assert [line.split()[1] for line in reasons(log)[:3]] == ["0", "1", "2"]
    assert len(reasons(log)) == 6
    assert reasons("no such thing\nError without a place") == []
