"""Snapshots where machines, callers and makers are not as usual."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from containers import HERE, until
from snapshots import ANSWER, NO_PYTHON, STATE, Kept, kept, needed  # noqa: F401 - kept is a fixture

from pyoci import snapshot, snapshot_write

pytestmark = needed


def elsewhere(kept: Kept) -> int:
    """The status of a command where cpuid(1) has other answers; a shell says so when there is no interpreter."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    getregs, setregs, resume, traceme = 12, 13, 7, 0
    image = kept.launcher.read_bytes()
    # cpuid and xgetbv as they stand in the one segment, which begins with the file's first byte
    places = {0x100000 + found.start(): len(found[0]) for found in re.finditer(rb"\x0f\xa2|\x0f\x01\xd0", image)}
    child = subprocess.Popen(kept.command(*STATE), preexec_fn=lambda: libc.ptrace(traceme, 0, None, None))  # noqa: PLW1509
    os.waitpid(child.pid, 0)
    with Path(f"/proc/{child.pid}/mem").open("r+b", buffering=0) as memory:
        for place in places:
            memory.seek(place)
            memory.write(b"\xcc")
    met = 0
    while True:
        assert libc.ptrace(resume, child.pid, None, None) == 0
        _, status = os.waitpid(child.pid, 0)
        if not os.WIFSTOPPED(status):
            assert met > 0
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode
        registers = (ctypes.c_ulong * 27)()
        libc.ptrace(getregs, child.pid, None, registers)
        here = registers[16] - 1
        if here in places:
            met += 1
            registers[16] = here + places[here]
            registers[10] = registers[5] = registers[11] = registers[12] = 0
            libc.ptrace(setregs, child.pid, None, registers)


def test_a_processor_with_other_abilities_has_one_of_its_own(kept: Kept) -> None:
    """The C library in a snapshot has chosen what the processor can: an image of a disk meets another one."""
    kept.take()
    kept.python(False)
    assert elsewhere(kept) == NO_PYTHON


def test_another_kernel_has_one_of_its_own(kept: Kept) -> None:
    path = kept.take()
    before = path.stat().st_ino
    kept.python(False)
    words = ["setarch", "--uname-2.6", *kept.command(*STATE)]
    assert subprocess.run(words, check=False).returncode == NO_PYTHON
    kept.python(True)
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == ANSWER
    assert path.stat().st_ino == before
    assert kept.resumes()


def test_of_other_machines_some_are_kept(kept: Kept) -> None:
    path = kept.take()
    path.unlink()
    interpreter, package, _, _ = path.name.rsplit(".", 3)
    for number in range(5):
        other = path.with_name(f"{interpreter}.{package}.{number:016x}.snapshot")
        other.touch()
        os.utime(other, (number, number))
    for left in (".snapshot", ".snapshot.trial", ".snapshot.lock"):
        path.with_name(f"{interpreter}.{'0' * 16}.{'0' * 16}{left}").touch()
    assert kept.answer() == ANSWER
    assert {entry.name for entry in path.parent.glob("*.snapshot*")} == {
        path.name,
        *(f"{interpreter}.{package}.{number:016x}.snapshot" for number in (2, 3, 4)),
    }


def test_a_limit_of_files_sizes(kept: Kept) -> None:
    """It is one of memfds as well: the signal must not end a command that writes nothing."""
    kept.take()
    for limit in (0, 16, 100):
        words = ["prlimit", f"--fsize={limit}", *kept.command(*STATE)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == ANSWER


def test_the_launchers_name_says_nothing(kept: Kept) -> None:
    kept.take()
    for name in ("pyoci.trial", "/usr/bin/pyoci.trial", ""):
        words = [name, "--root", "/nonexistent", *STATE]
        done = subprocess.run(words, executable=kept.launcher, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == ANSWER


def test_a_day_later_somebody_tries_again(kept: Kept) -> None:
    path = kept.take()
    path.write_bytes(b"")
    for old in (86400 + 60, -3600):  # in the past, or of a clock that was wrong
        os.utime(path, (time.time() - old,) * 2)
        assert kept.answer() == ANSWER
        assert path.stat().st_size > 0
        path.write_bytes(b"")


def test_a_caller_without_random_addresses_gives_them_to_nobody(kept: Kept) -> None:
    words = ["setarch", "--addr-no-randomize", "--read-implies-exec", *kept.command(*STATE)]
    assert subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == 1
    (path,) = (kept.package / "__pycache__").glob("*.snapshot")
    head = snapshot.START.unpack_from(path.read_bytes())
    assert len(head) == 2 + 17 + 11
    assert head[23] != 0x7FFF_FFFF_F000  # the end of the stack
    mappings = [snapshot.MAPPING.unpack_from(path.read_bytes(), snapshot.START.size + 32 * i) for i in range(head[26])]
    assert not [mapping for mapping in mappings if mapping[3] & 6 == 6]
    assert kept.resumes()


def test_a_maker_that_is_killed_leaves_no_process() -> None:
    """Stopped by ptrace(2), the interpreter would not notice."""
    program = f"""
import os, sys
sys.path.insert(0, {str(HERE.parent)!r})
sys._xoptions["pyoci"] = "0" * 16
from pyoci import __main__, snapshot
__main__.PLACES[:] = [{str(HERE.parent)!r}, ""]
child, reading, *_ = snapshot.waiting_interpreter()
snapshot.Frozen(child.pid, reading)
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    until(lambda: not Path(f"/proc/{int(done.stdout)}").exists())


def test_nobody_else_can_open_it_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(os.fstat(fd).st_mode & 0o777))
    before = os.open

    def opening(path: Path, flags: int, mode: int = 0o777) -> int:
        fd = before(path, flags, mode)
        seen.append(os.fstat(fd).st_mode & 0o777)
        return fd

    monkeypatch.setattr(os, "open", opening)
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "new").symlink_to(tmp_path / "theirs")
    old = os.umask(0)
    try:
        snapshot_write.write(tmp_path / "new", b"ours")
    finally:
        os.umask(old)
    assert seen == [0o600, 0o600]
    assert ((tmp_path / "new").read_text(), (tmp_path / "theirs").read_text()) == ("ours", "theirs")


def test_a_trial_may_meet_bad_luck(tmp_path: Path) -> None:
    """The addresses of a snapshot are taken in one process of many; that says nothing about the snapshot."""
    launcher = tmp_path / "pyoci"
    launcher.write_text(
        f"""#!/bin/sh
echo >>{tmp_path}/count
[ $(wc -l <{tmp_path}/count) -gt 2 ] && echo resumed
[ $3 = delete ] || {{ echo does not exist >&2; exit 1; }}
"""
    )
    launcher.chmod(0o755)
    snapshot_write.try_out(launcher)
    launcher.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(snapshot.Unfit, match="ended with 3"):
        snapshot_write.try_out(launcher)


def test_a_lock_that_was_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last holder removed it between our open and our flock, and somebody else has made another."""
    path = tmp_path / "python3.1.2.3.snapshot"
    lock = path.with_name(path.name + ".lock")

    def flock(fd: int, how: int) -> None:
        lock.rename(tmp_path / "old")
        lock.touch()

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(snapshot_write, "_make", lambda path: pytest.fail("two makers"))
    snapshot_write.make(path)
    assert lock.exists()
