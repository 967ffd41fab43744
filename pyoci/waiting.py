"""An interpreter that has imported everything and waits for its command line: what a snapshot is taken of.

`wait` never returns in the process that calls it first.  In every process that resumes the snapshot it goes on, and
runs the command of that process (launcher/snapshot.c writes what is read here).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix
import sys
from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# arguments, variables of the environment, whether byte code may be written, the descriptor that is read, the connection
# to init that the launcher made (-1: none), is it a trial, bits of the signals that are ignored
MESSAGE = Struct("<IIIiiIQ")
# Bytes that are read at most; the launcher looks that it is enough.  No more than malloc(3) has at hand: larger blocks
# are new pages.
SIZE = 1 << 16
# Variables that decide which code the loader or the C library maps; launcher/launcher.c drops the same.
FORBIDDEN = (b"GLIBC_TUNABLES", b"GCONV_PATH", b"LOCPATH")
# What the interpreter ignores for itself when it starts.
IGNORED = (_signal.SIGPIPE, _signal.SIGXFSZ)
OF_THE_LIBRARY = (32, 33)  # signals that the C library keeps for itself


def wait(descriptor: int, ready: int) -> None:
    """Tell `ready` which memory a command uses and that we are ready, wait in read(2), and run what is read."""
    import gc

    from pyoci.__main__ import CompiledFinder, command
    from pyoci.container.rehearsal import rehearse, show_used
    from pyoci.launch import template

    template()
    rehearse()
    gc.collect()
    gc.freeze()
    show_used(ready)
    posix.write(ready, b"\0")
    posix.close(ready)
    data = posix.read(descriptor, SIZE)  # the snapshot is taken here
    count, variables, may_write, descriptor, connection, trial, ignored = MESSAGE.unpack_from(data)
    posix.close(descriptor)
    words = data[MESSAGE.size :].split(b"\0")
    del data
    sys.argv[:] = ["pyoci", *[word.decode("utf-8", "surrogateescape") for word in words[1:count]]]
    sys.dont_write_bytecode = not may_write
    _take_environment(words[count : count + variables])
    _take_signals(ignored)
    if connection >= 0:
        sys._xoptions["pyoci-connection"] = str(connection)
    CompiledFinder.unjudged = True
    if trial:
        posix.write(1, b"resumed\n")
    command(resumed=True)


def _take_environment(variables: Iterable[bytes]) -> None:
    """The environment of this process, for Python and for the C library; but for what changes which code is loaded."""
    environ = posix.environ
    environ.clear()
    for variable in variables:
        name, equals, value = variable.partition(b"=")
        if equals and name and not name.startswith(b"LD_") and name not in FORBIDDEN:
            environ.setdefault(name, value)  # the first of two, as getenv(3) and the interpreter have it
    # The C library's own copy takes ten times as long, and is needed by none but those who import `os`.
    from pyoci.__main__ import CompiledFinder

    CompiledFinder.environment = environ


def _take_signals(ignored: int) -> None:
    """What the interpreter does at its start: signals that the caller ignores stay ignored, SIGINT is an exception."""
    signal, ignore = _signal.signal, _signal.SIG_IGN
    for number in IGNORED:
        signal(number, ignore)
    if not ignored >> _signal.SIGINT - 1 & 1:
        signal(_signal.SIGINT, _signal.default_int_handler)
    while ignored:
        number = ignored.bit_length()
        ignored ^= 1 << number - 1
        if number not in OF_THE_LIBRARY:
            signal(number, ignore)
