"""Write a snapshot, try it, and give it its name; `snapshot` says what is in it.

It is named for the interpreter, the package and the kind of machine (kernel and processor) that it is of:
`__pycache__/python3.X.FINGERPRINT.MACHINE.snapshot`, as the launcher computes it.  What nobody has tried has another
name, so whoever is killed here leaves nothing that anybody would use.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from pyoci import log
from pyoci.archive_write import alone
from pyoci.snapshot import PATIENCE, Unfit, take

# What a new snapshot is called until it has been tried, and what the launcher is called that tries it.
TRIAL, TRIED_BY = ".trial", "pyoci (trial)"
# Snapshots for other machines that are kept: the package may be on a disk that several start from.
OTHERS = 3
TRIES = 3


def try_out(launcher: Path) -> None:
    """Two commands with the snapshot under its trial name; Unfit if they do not do what they should, ever."""
    for words, status, out, error in (
        (("--root", "/nonexistent", "state", "none"), 1, b"", b"does not exist"),
        (("--root", "/nonexistent", "delete", "-f", "none", "--"), 0, b"", b""),
    ):
        # one process in a thousand has its own stack where the snapshot has something
        for _ in range(TRIES):
            done = subprocess.run(
                [TRIED_BY, *words],
                executable=launcher,
                capture_output=True,
                check=False,
                timeout=PATIENCE,
                env={"A": "1"},
            )
            if (done.returncode, done.stdout) == (status, b"resumed\n" + out) and error in done.stderr:
                break
        else:
            raise Unfit(f"a trial ended with {done.returncode}: {done.stdout!r} {done.stderr!r}")


def make(path: Path) -> None:
    """Write a snapshot of this interpreter and this package.

    Where that is not possible an empty file says so, and nobody tries again until something has changed or a day has
    passed (memory may have been short); where nothing can be written, there is nothing.
    """
    with alone(path.with_name(path.name + ".lock")) as ours:
        if ours:
            try:
                _make(path)
            except OSError as error:
                log.debug("no snapshot", reason=str(error))


def _make(path: Path) -> None:
    trial = path.with_name(path.name + TRIAL)
    usual_personality()
    data = b""
    try:
        data = take()
        write(trial, data)
        # PREFIX/lib/python3.X/site-packages/pyoci/__pycache__
        try_out(path.parents[5] / "bin" / "pyoci")
    except (OSError, Unfit, subprocess.SubprocessError) as error:
        log.debug("no snapshot", reason=str(error))
        # also on a disk that is full: there is room for a name
        write(trial, b"")
    trial.replace(path)
    _clean_up(path)


def _clean_up(path: Path) -> None:
    """Remove the snapshots of other versions, with what their makers left that were killed."""
    interpreter, package, _ = path.name.removesuffix(".snapshot").rsplit(".", 2)
    others: list[tuple[float, Path]] = []
    for entry in path.parent.glob(f"{interpreter}.*.snapshot*"):
        if not entry.name.startswith(f"{interpreter}.{package}."):
            entry.unlink(missing_ok=True)
        elif entry.suffix == ".snapshot" and entry != path:
            others.append((entry.stat().st_mtime, entry))
    for _, entry in sorted(others)[:-OTHERS]:
        entry.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """A new file that nobody else can read, not even for a moment, and that is on the disk before it gets its name."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        log.write_all(fd, data)
        os.fsync(fd)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def usual_personality() -> None:
    """What the snapshot has of ours all commands would have: addresses that are no secret, memory that can be executed.

    setarch(8) and debuggers ask for such things (personality(2)).
    """
    ctypes.CDLL(None).personality(0)
