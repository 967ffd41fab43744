"""Descriptors that a service manager has opened for the container: $LISTEN_FDS and its kin (sd_listen_fds(3)).

The specification is silent.  Peers hand them to the container's process, in front of those of --preserve-fds, when
they were meant for the runtime: when $LISTEN_PID is its pid.  Loaded only when $LISTEN_FDS is there.
"""

from __future__ import annotations

import posix

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST = 3  # SD_LISTEN_FDS_START


def received(environment: Mapping[bytes, bytes], pid: int) -> tuple[int, str]:
    """How many descriptors, from 3 on, and $LISTEN_FDNAMES ("" for none); (0, "") when they are somebody else's.

    PyociError for a number that is none, and for a descriptor that is not open: whoever says so would be believed by
    the program in the container, and there it would be something else.
    """
    if environment.get(b"LISTEN_PID", b"") != b"%d" % pid:
        return 0, ""
    text = environment.get(b"LISTEN_FDS", b"")
    if not text.isdigit() or len(text) > 9:  # noqa: PLR2004 - more than any process can have
        raise PyociError(f"LISTEN_FDS={text[:40].decode('ascii', 'backslashreplace')}: must be a number of descriptors")
    count = int(text)
    for number in range(FIRST, FIRST + count):
        try:
            posix.fstat(number)
        except OSError:
            raise PyociError(f"LISTEN_FDS={count}: descriptor {number} is not open") from None
    names = environment.get(b"LISTEN_FDNAMES", b"")
    return count, names.decode() if count and names.isascii() else ""
