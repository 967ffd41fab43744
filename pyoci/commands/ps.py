"""ps: show a container's processes, all that are in its cgroups; without any, all in its pid namespace."""

from __future__ import annotations

import posix

from pyoci.errors import PyociError, UsageError
from pyoci.hooks import RESET
from pyoci.jsontext import dumps
from pyoci.log import output
from pyoci.state import Store, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed

WHERE = ("/usr/bin/ps", "/bin/ps")  # not by $PATH: engines call us without one


def run(settings: Globals, options: Parsed) -> int:
    """The pids as JSON, or the lines of ps(1) about them; ps gets the arguments after the ID (`-ef`)."""
    from pyoci.cgroup.live import procs

    form = options.text("format", "table")
    if form not in ("table", "json"):
        raise UsageError("invalid format option")
    with Store.open(settings.root, options.args[0]) as store:
        state = store.load()
        found = "" if state.cgroup_paths else status(store, state)
    if state.cgroup_paths:
        pids = sorted(procs(state.cgroup_paths))
    elif found in ("created", "running"):
        from pyoci.pid_namespace import members

        pids = members(state.pid, "pid" in state.namespaces)
    else:
        pids = []
    if form == "json":
        output(dumps(pids) + "\n")
    else:
        output(chosen(listing(options.args[1:] or ["-ef"]), frozenset(pids)))
    return 0


def chosen(text: bytes, pids: frozenset[int]) -> bytes:
    """The first line of `text`, and those that have one of `pids` in the column that the first one calls PID."""
    head, *lines = text.splitlines(keepends=True) or [b""]
    titles = head.split()
    if b"PID" not in titles:
        raise PyociError("ps: its output has no column PID")
    column = titles.index(b"PID")
    kept = [
        line for line in lines if (words := line.split()) and len(words) > column and _number(words[column]) in pids
    ]
    return b"".join([head, *kept])


def _number(word: bytes) -> int:
    return int(word) if word.isdigit() else -1


def listing(args: list[str]) -> bytes:
    """What ps(1) prints.  PyociError has the first line of what it says instead."""
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    said = posix.memfd_create("ps", posix.MFD_CLOEXEC)
    pid = 0
    for path in WHERE:
        try:
            pid = posix.posix_spawn(
                path,
                ["ps", *args],
                posix.environ,
                file_actions=[(posix.POSIX_SPAWN_DUP2, writer, 1), (posix.POSIX_SPAWN_DUP2, said, 2)],
                setsigdef=RESET,
            )
            break
        except FileNotFoundError:
            continue
    posix.close(writer)
    if not pid:
        raise PyociError("ps: there is no ps(1) here (Debian: procps); --format json shows the pids without it")
    pieces = []
    while piece := posix.read(reader, 65536):
        pieces.append(piece)
    posix.close(reader)
    status = posix.waitstatus_to_exitcode(posix.waitpid(pid, 0)[1])
    first = posix.pread(said, 4096, 0).strip().partition(b"\n")[0].decode("utf-8", "backslashreplace")
    posix.close(said)
    if status != 0:
        raise PyociError(f"ps {' '.join(args)}: {first or 'failed'} (exit status {status})")
    return b"".join(pieces)
