"""Device filters that an earlier container has left on a cgroup of v2, taken off it.

A program stays attached as long as the cgroup is there, and the kernel asks all of them: in a cgroup that was there
before, the rules of the container before would hold for the next one, too (bpf(2), BPF_PROG_QUERY, BPF_PROG_DETACH).
ctypes is imported here, and this module only for a cgroup that exists already.
"""

from __future__ import annotations

import ctypes
import posix
import sys

from pyoci.errors import PyociError
from pyoci.kernel import bpf
from pyoci.kernel.errnos import words
from pyoci.kernel.layouts import LAYOUTS
from pyoci.kernel.syscalls import numbers

MOST = 64  # programs that one cgroup can have (BPF_CGROUP_MAX_PROGS)


def _call(command: int, layout: str, **fields: int) -> tuple[int, bytes]:
    """The result, and the attributes as the kernel left them.  OSError as bpf(2) gives it."""
    _, places = LAYOUTS[layout]
    attributes = bytearray(bpf.BPF_ATTR_SIZE)
    for name, value in fields.items():
        offset, width = places[name]
        attributes[offset : offset + width] = value.to_bytes(width, "little")
    memory = ctypes.create_string_buffer(bytes(attributes), len(attributes))
    library = ctypes.CDLL(None, use_errno=True)
    number = numbers(posix.uname().machine)["bpf"]
    result = library.syscall(ctypes.c_long(number), ctypes.c_long(command), memory, ctypes.c_long(len(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return result, memory.raw


def attached(directory: int) -> list[int]:
    """Ids of the programs of the cgroup's own, its parents' left out; `directory` is a descriptor."""
    found = (ctypes.c_uint32 * MOST)()
    kind = {"target_fd": directory, "attach_type": bpf.BPF_CGROUP_DEVICE}
    _, answer = _call(
        bpf.BPF_PROG_QUERY, "bpf_prog_query", **kind, prog_ids=ctypes.addressof(found), prog_cnt=len(found)
    )
    offset, width = LAYOUTS["bpf_prog_query"][1]["prog_cnt"]
    return list(found[: int.from_bytes(answer[offset : offset + width], sys.byteorder)])


def remove(path: bytes, origin: str) -> None:
    """Take all of them off the cgroup `path`, which must have no process."""
    directory = posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        for id in attached(directory):
            program, _ = _call(bpf.BPF_PROG_GET_FD_BY_ID, "bpf_prog_get_fd_by_id", prog_id=id)
            try:
                kind = {"target_fd": directory, "attach_bpf_fd": program, "attach_type": bpf.BPF_CGROUP_DEVICE}
                _call(bpf.BPF_PROG_DETACH, "bpf_prog_attach", **kind)
            finally:
                posix.close(program)
    except OSError as error:
        shown = path.decode("utf-8", "replace")
        raise PyociError(
            f"{origin}: the cgroup {shown} was there before, and its device filter cannot be replaced:"
            f" bpf: {words(error.errno or 0)}; remove the cgroup first, or name another"
        ) from None
    finally:
        posix.close(directory)
