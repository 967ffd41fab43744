"""CRIU's requests and answers, as bytes: the part of Protocol Buffers' wire format that they need.

A message is a row of fields, each a number with a kind: 0 is an integer in groups of seven bits, 2 is a length and that
many bytes (text, or a message).  The numbers are those of CRIU's images/rpc.proto, which never change their meaning;
tests/test_criu_rpc.py compares them with that file.  It is shorter than what generated code and its library would take
to load.
"""

from __future__ import annotations

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Value = int | str | bytes  # bytes: a message that has been encoded
    Fields = Sequence[tuple[str, Value]]

# message -> field -> its number
MESSAGES: dict[str, dict[str, int]] = {
    "criu_page_server_info": {"address": 1, "port": 2},
    "ext_mount_map": {"key": 1, "val": 2},
    "join_namespace": {"ns": 1, "ns_file": 2},
    "inherit_fd": {"key": 1, "fd": 2},
    "cgroup_root": {"ctrl": 1, "path": 2},
    "criu_opts": {
        "images_dir_fd": 1, "pid": 2, "leave_running": 3, "ext_unix_sk": 4, "tcp_established": 5, "shell_job": 7,
        "file_locks": 8, "log_level": 9, "log_file": 10, "ps": 11, "notify_scripts": 12, "root": 13, "parent_img": 14,
        "track_mem": 15, "auto_dedup": 16, "work_dir_fd": 17, "link_remap": 18, "ext_mnt": 23, "manage_cgroups": 24,
        "cg_root": 25, "rst_sibling": 26, "inherit_fd": 27, "manage_cgroups_mode": 34, "external": 37, "empty_ns": 38,
        "join_ns": 39, "cgroup_dump_controller": 43, "freeze_cgroup": 44, "tcp_skip_in_flight": 46,
        "lazy_pages": 48, "status_fd": 49,
        "orphan_pts_master": 50, "config_file": 51, "tcp_close": 52, "lsm_profile": 53, "cgroup_yard": 60,
        "lsm_mount_context": 63,
        "network_lock": 64,
    },
    "criu_req": {"type": 1, "opts": 2, "notify_success": 3},
    "criu_restore_resp": {"pid": 1},
    "criu_notify": {"script": 1, "pid": 2},
    "criu_resp": {"type": 1, "success": 2, "restore": 4, "notify": 5, "cr_errno": 7, "cr_errmsg": 9},
}  # fmt: skip
# enum criu_req_type
DUMP, RESTORE, PRE_DUMP, NOTIFY = 1, 2, 4, 6
# enum criu_cg_mode and enum criu_network_lock_method, as flags name them; runc's names, and what CRIU has besides
CGROUP_MODES = {"ignore": 0, "none": 1, "props": 2, "soft": 3, "full": 4, "strict": 5}
NETWORK_LOCKS = {"iptables": 1, "nftables": 2, "skip": 3}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def encode(message: str, fields: Fields) -> bytes:
    """A message of these fields, in this order; one that may be there more than once is."""
    numbers = MESSAGES[message]
    pieces: list[bytes] = []
    for name, value in fields:
        if isinstance(value, int):
            pieces += [_varint(numbers[name] << 3 | VARINT), _varint(value)]
        else:
            data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
            pieces += [_varint(numbers[name] << 3 | BYTES), _varint(len(data)), data]
    return b"".join(pieces)


def decode(message: str, data: bytes) -> dict[str, int | bytes]:
    """The fields that we know of a message; PyociError for what is none."""
    names = {number: name for name, number in MESSAGES[message].items()}
    found: dict[str, int | bytes] = {}
    at = 0
    try:
        while at < len(data):
            tag, at = _read(data, at)
            kind, value = tag & 7, b""
            number: int | bytes
            if kind == VARINT:
                number, at = _read(data, at)
            else:
                size = {FIXED64: 8, FIXED32: 4}.get(kind, 0)
                if kind == BYTES:
                    size, at = _read(data, at)
                elif not size:
                    raise IndexError
                value = data[at : at + size]
                if len(value) != size:
                    raise IndexError
                at += size
                number = value
            if tag >> 3 in names:
                found[names[tag >> 3]] = number
    except IndexError:
        raise PyociError(f"criu: its answer is no {message}: {data[:64].hex()}") from None
    return found


def _varint(value: int) -> bytes:
    # a negative number has all of its 64 bits
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
