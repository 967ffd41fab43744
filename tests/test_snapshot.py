"""Interpreters that have started already: when a snapshot is taken, what it goes on with, and when it is not used."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import HERE, until
from snapshots import ANSWER, NO_PYTHON, STATE, Kept, kept, needed  # noqa: F401 - kept is a fixture

from pyoci import snapshot, waiting

pytestmark = needed


def test_taken_by_the_first_command_and_resumed_by_the_next(kept: Kept) -> None:
    assert not kept.resumes()
    path = kept.take()
    before = path.stat()
    assert kept.resumes()
    assert kept.answer() == ANSWER
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert [entry.suffix for entry in path.parent.glob("*.snapshot*")] == [".snapshot"]


def test_a_life_without_an_interpreter(kept: Kept) -> None:
    kept.take()
    kept.python(False)
    kept.start("echo ran >/tmp/out; sleep 100")
    assert kept.output() == "ran\n"
    assert kept.exec("cat", input="passed on") == "passed on"
    done = kept("exec", kept.id, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    kept.ok("kill", kept.id, "KILL")
    until(lambda: kept.status() == "stopped")
    kept.ok("delete", kept.id)
    kept.gone()
    kept.id = kept.new_id()
    assert kept.run("echo $$ $(hostname)") == "1 pyoci\n"
    assert "no-such-program" in kept.refused_with(["no-such-program"])


# Kernel calls of a `run` by who makes them, without cgroups: their number is the machine's.  The launcher makes one
# more for each file of the package, and a few for each mapping, of which other releases of CPython have more.
CALLS = {"launcher": 420, "interpreter": 145, "stage": 85, "init": 265}


def test_kernel_calls_of_a_run(kept: Kept) -> None:
    """A budget: one call more is a decision that shows up here."""
    kept.take()
    kept.python(False)
    kept.process["args"] = ["/bin/true"]
    kept.write()
    files = sum(path.is_file() and "__pycache__" not in path.parts for path in kept.package.rglob("*"))
    trace = kept.folder / "trace"
    command = kept.command("--cgroup-manager", "disabled", "run", "--bundle", str(kept.bundle), kept.id)
    subprocess.run(["strace", "-f", "-o", str(trace), *command], check=True, stdin=subprocess.DEVNULL)
    calls: dict[str, list[str]] = {}
    for line in trace.read_text().splitlines():
        pid, text = line.split(None, 1)
        if match := re.match(r"(\w+)\(", text):
            calls.setdefault(pid, []).append(match[1])
    first, *others = calls.values()
    resumed = first.index("arch_prctl") + 1
    others.sort(key=len)
    found = {"launcher": resumed - files, "interpreter": len(first) - resumed}
    found |= dict(zip(("stage", "init"), map(len, others), strict=True))
    assert all(found[who] <= most for who, most in CALLS.items()), found
    assert all(found[who] > most * 0.7 for who, most in CALLS.items()), f"the budget is too large by now: {found}"


def test_the_environment_is_this_commands() -> None:
    """Python's, and the C library's as soon as anybody can ask it; but for what decides which code is loaded."""
    program = """
import posix, sys
from pyoci.__main__ import CompiledFinder
from pyoci import waiting
sys.meta_path.insert(0, CompiledFinder)
given = [b"SOME=thing=with=signs", b"EMPTY=", b"LD_PRELOAD=/evil", b"GLIBC_TUNABLES=x", b"odd", b"=C:"]
given += [b"SOME=other", b"GCONV_PATH=/evil", b"LOCPATH=/evil"]
waiting._take_environment(given)
print(sorted(posix.environ.items()))
import subprocess
print(sorted(line for line in subprocess.check_output(["/usr/bin/env"]).split() if not line.startswith(b"PYTHON")))
"""
    words = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n{program}"]
    done = subprocess.run(words, env={}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[(b'EMPTY', b''), (b'SOME', b'thing=with=signs')]",
        "[b'EMPTY=', b'SOME=thing=with=signs']",
    ]


def test_arguments_and_directory_are_this_commands(kept: Kept) -> None:
    kept.take()
    kept.python(False)
    # relative paths are relative to this command's directory
    kept.process["args"] = ["pwd"]
    kept.write()
    done = subprocess.run(
        [str(kept.launcher), "--root", "../states", "run", kept.id],
        cwd=kept.bundle, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("/\n", "", 0)
    assert "invalid container ID format" in kept.fails("state", "é/\udcff")


def test_signals_that_the_caller_ignores_stay_ignored(kept: Kept) -> None:
    kept.take()
    kept.python(False)

    def ignored() -> str:
        """SigIgn of a hook, which inherits what the runtime was given."""
        hook = {"path": "/bin/sh", "args": ["sh", "-c", f"grep SigIgn /proc/self/status >{kept.folder}/signals"]}
        kept.config["hooks"] = {"prestart": [hook]}
        kept.run("true")
        return (kept.folder / "signals").read_text().split()[1]

    resumed = ignored()
    kept.python(True)
    (kept.package / "__pycache__").rename(kept.folder / "away")
    assert resumed == ignored()


def test_interrupted(kept: Kept) -> None:
    """SIGINT is passed on to the container, and is the usual exception elsewhere."""
    kept.take()
    kept.python(False)
    kept.process["args"] = ["sh", "-c", "trap 'exit 5' INT; echo up; while :; do sleep 0.05; done"]
    kept.write()
    words = kept.command("run", "--bundle", str(kept.bundle), kept.id)
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 5
    child.stdout.close()


def test_more_words_than_there_is_room_for(kept: Kept) -> None:
    kept.take()
    many = ["x" * 10_000] * 12
    kept.start()
    assert kept.exec("sh", "-c", "echo $# ${#9}", *many) == "11 10000\n"
    kept.python(False)
    assert kept("exec", kept.id, "echo", *many).returncode == NO_PYTHON


def counts(data: bytes | bytearray) -> list[int]:
    """How many mappings, files, addresses and ranges there are."""
    return [int.from_bytes(data[snapshot.START.size - 32 + 8 * i :][:8], "little") for i in range(4)]


def checked(data: bytearray) -> int:
    """Make the head's number right again; where the head ends."""
    mappings, files, addresses, ranges = counts(data)
    end = snapshot.START.size + mappings * snapshot.MAPPING.size + files * snapshot.FILE.size + addresses * 8
    end += ranges * snapshot.RANGE.size
    data[16:24] = snapshot.check(bytes(data[snapshot.CHECKED : end])).to_bytes(8, "little")
    return end


FIELDS = ("inode", "size", "modified", "changed", "modified_nanoseconds", "changed_nanoseconds")


@pytest.mark.parametrize("change", [*FIELDS, "magic", "short", "cut", "byte"])
def test_what_does_not_fit_is_taken_anew(kept: Kept, change: str) -> None:
    path = kept.take()
    good = path.read_bytes()
    data = bytearray(good)
    if change in FIELDS:
        mappings, files, *_ = counts(data)
        assert files > 1
        second = snapshot.START.size + mappings * snapshot.MAPPING.size + snapshot.FILE.size
        data[second + 208 + (0, 8, 16, 24, 32, 36)[FIELDS.index(change)]] ^= 1
        checked(data)
    elif change == "magic":
        data[0] ^= 1
    elif change == "cut":
        # a machine that lost power before all was on the disk
        del data[len(data) // 2 :]
    elif change == "byte":
        del data[-1:]
    else:
        del data[1000:]
    path.write_bytes(data)
    assert not kept.resumes()
    assert kept.answer() == ANSWER
    assert path.read_bytes()[:16] == good[:16] and path.stat().st_size > 1 << 20
    assert kept.resumes()


def test_no_bit_of_its_head_is_believed_when_it_is_wrong(kept: Kept) -> None:
    """Registers, places of mappings, addresses that are put right: all that would be jumped to or written to."""
    path = kept.take()
    good = path.read_bytes()
    end = checked(bytearray(good))
    for at in (*range(0, end, 97), end - 1):
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        assert not kept.resumes(), at
    path.write_bytes(good)
    assert kept.resumes()


def test_other_files_of_equal_size_time_and_inode(kept: Kept) -> None:
    """What a reproducible package leaves when it is unpacked over an older one."""
    kept.take()
    source = kept.package / "errors.py"
    before = source.stat()
    text = source.read_text()
    other = text.replace("container does not exist", "Container does not exist")
    assert other != text and len(other) == len(text)
    source.write_text(other)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    # whoever replaces a file removes its byte code, which the interpreter knows by size and time only
    for compiled in (source.parent / "__pycache__").glob("errors.*.pyc"):
        compiled.unlink()
    after = source.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert not kept.resumes()
    for _ in range(2):
        assert kept.answer()[2].endswith("Container does not exist\n")
    assert kept.resumes()


def dense(path: Path) -> list[tuple[int, int]]:
    """(start, bytes) of what is put into huge pages."""
    data = path.read_bytes()
    count, *_ = counts(data)
    rows = [snapshot.MAPPING.unpack_from(data, snapshot.START.size + at * snapshot.MAPPING.size) for at in range(count)]
    return [(start, length) for start, length, _, _, file in rows if file == snapshot.DENSE]


def without_huge_pages() -> None:
    """prctl(2), PR_SET_THP_DISABLE: children have it too."""
    assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0


def test_most_of_the_objects_are_in_huge_pages(kept: Kept) -> None:
    """Which a kernel may have none of: then they are copied page by page, as they are written to."""
    found = dense(kept.take())
    assert found, "neither arenas nor heap were where launcher/place.c puts them"
    assert all(length <= snapshot.HUGE for _, length in found)
    assert len({start // snapshot.HUGE for start, _ in found}) == len(found)
    kept.python(False)
    assert kept.answer() == ANSWER
    assert kept.answer(preexec_fn=without_huge_pages) == ANSWER


def test_what_commands_use_is_filled_in_one_go(kept: Kept) -> None:
    """The memory that the rehearsal has used: of files, and of what is written to and lies in no huge page."""
    data = kept.take().read_bytes()
    mappings, files, addresses, ranges = counts(data)
    at = snapshot.START.size
    places = [snapshot.MAPPING.unpack_from(data, at + snapshot.MAPPING.size * number) for number in range(mappings)]
    at += mappings * snapshot.MAPPING.size + files * snapshot.FILE.size + addresses * 8
    found = [snapshot.RANGE.unpack_from(data, at + snapshot.RANGE.size * number) for number in range(ranges)]
    assert {advice for _, _, advice in found} == {snapshot.POPULATE_READ, snapshot.POPULATE_WRITE}
    for start, length, advice in found:
        ((protection, kind),) = [
            (protection, kind)
            for first, size, _, protection, kind in places
            if first <= start and start + length <= first + size
        ]
        assert kind >= 0 or kind == snapshot.SNAPSHOT
        assert protection & 2 or advice == snapshot.POPULATE_READ
    # the interpreter's own data has hundreds of pages in use; its code too
    for advice in (snapshot.POPULATE_READ, snapshot.POPULATE_WRITE):
        assert sum(length for _, length, asked in found if asked == advice) > 50 * snapshot.PAGE


def test_a_rehearsal_changes_nothing() -> None:
    """Files are opened for reading, and nothing is called that makes, removes, mounts or starts something."""
    begin = f"import sys, posix; sys.path.insert(0, {str(HERE.parent)!r});"
    script = f"{begin} from pyoci.container.rehearsal import rehearse; rehearse(1);"
    script += " posix.access('/rehearsed', 0); rehearse(2); posix.access('/rehearsed', 0)"
    done = subprocess.run(
        ["strace", "-f", "-o", "/dev/stderr", sys.executable, "-I", "-S", "-c", script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    calls = done.stderr.split("/rehearsed")[1].splitlines()
    assert len(calls) > 20
    harmless = {
        "access", "brk", "close", "fstat", "getdents64", "getegid", "geteuid", "getgid", "getuid", "ioctl", "lseek",
        "lstat", "mmap", "mremap", "munmap", "newfstatat", "openat", "prctl", "prlimit64", "read", "readlink",
        "readlinkat", "stat", "statfs", "statx", "sysinfo", "uname", "fcntl", "faccessat", "faccessat2",
    }  # fmt: skip
    for line in calls[1:-1]:
        name = line.split(None, 1)[1].partition("(")[0]
        assert name in harmless, line
        if name == "openat":
            assert "O_RDONLY" in line or "O_PATH" in line, line
            assert "O_CREAT" not in line, line


def test_hooks_do_not_have_the_environment_that_the_interpreter_was_placed_with(kept: Kept) -> None:
    kept.take()
    kept.python(False)
    out = kept.folder / "environment"
    kept.config["hooks"] = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", f"/usr/bin/env >{out}"]}]}
    kept.start("true")
    assert "LD_PRELOAD" not in out.read_text()


def test_that_there_cannot_be_one_is_remembered(kept: Kept) -> None:
    path = kept.take()
    path.write_bytes(b"")
    assert kept.answer() == ANSWER
    assert path.stat().st_size == 0
    assert not kept.resumes()


@pytest.mark.parametrize("why", ["OSError(1, 'forbidden')", "Unfit('odd')"])
def test_where_there_cannot_be_one_nobody_tries_twice(kept: Kept, why: str) -> None:
    """No ptrace(2), no /proc/PID/syscall, ...: the next command does not spend a second on finding that out again."""
    source = kept.package / "snapshot.py"
    text = source.read_text()
    source.write_text(text.replace("    child, reading, writing, used = waiting_interpreter()", f"    raise {why}", 1))
    assert kept.answer() == ANSWER
    (path,) = (kept.package / "__pycache__").glob("*.snapshot")
    assert path.stat().st_size == 0
    before = path.stat().st_mtime_ns
    assert kept.answer() == ANSWER
    assert path.stat().st_mtime_ns == before
    assert [entry.suffix for entry in path.parent.glob("*.snapshot*")] == [".snapshot"]


def test_byte_code_that_others_can_write_is_not_read(kept: Kept) -> None:
    """A resumed interpreter has all that usual commands need; what it lacks it judges itself."""
    kept.take()
    kept.python(False)
    assert kept.answer("features")[0] == 0  # compiles what it is the first to need
    (cached,) = (kept.package / "commands" / "__pycache__").glob("features.*.pyc")
    for mode, owner in ((0o666, 0), (0o644, 1000)):
        cached.chmod(mode)
        os.chown(cached, owner, owner)
        status, out, error = kept.answer("features")
        assert (status, out) == (1, "") and str(cached) in error and "root" in error, error
        cached.chmod(0o644)
        os.chown(cached, 0, 0)
    assert kept.answer("features")[0] == 0


def test_one_that_others_can_write_is_refused(kept: Kept) -> None:
    path = kept.take()
    path.chmod(0o622)
    status, _, error = kept.answer()
    assert status == 1 and error.startswith(f"pyoci: {path}: can be written by others"), error
    path.chmod(0o600)
    os.chown(path, 1000, 1000)
    status, _, error = kept.answer()
    assert status == 1 and error.startswith(f"pyoci: {path}: belongs to another user"), error
    os.chown(path, 0, 0)
    kept.python(False)
    assert kept.answer() == ANSWER


def test_a_new_package_has_a_new_one(kept: Kept) -> None:
    old = kept.take()
    source = kept.package / "commands" / "state.py"
    other = "def run(*rest: object) -> int:\n    return 42\n\n\ndef old("
    source.write_text(source.read_text().replace("def run(", other))
    assert kept.answer() == (42, "", "")
    assert not old.exists()
    assert kept.answer() == (42, "", "")
    # one that fails its trial is not used
    (path,) = (kept.package / "__pycache__").glob("*.snapshot")
    assert path.stat().st_size == 0


def test_nothing_is_written_under_a_lax_umask(kept: Kept) -> None:
    assert kept.answer(umask=0) == ANSWER
    assert list((kept.package / "__pycache__").glob("*.snapshot*")) == []


def test_others_cannot_read_it_and_go_the_usual_way(build: Callable[..., Path]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="pyoci-snapshot-"))
    folder.chmod(0o755)
    try:
        kept = Kept(folder, build(platform.machine()) / "pyoci")
        kept.take()
        words = ["setpriv", "--reuid", "12345", "--clear-groups", str(kept.launcher), "--root", "/nonexistent", *STATE]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == ANSWER
    finally:
        shutil.rmtree(folder)


def test_many_at_once(kept: Kept) -> None:
    many = [subprocess.Popen(kept.command(*STATE), stderr=subprocess.DEVNULL) for _ in range(6)]
    assert [child.wait(120) for child in many] == [1] * 6
    kept.take()
    assert kept.resumes()
    many = [subprocess.Popen(kept.command(*STATE), stderr=subprocess.DEVNULL) for _ in range(20)]
    assert [child.wait(120) for child in many] == [1] * 20


def test_every_process_has_its_own_addresses_for_the_kernels_code(kept: Kept) -> None:
    """The vdso is elsewhere each time: a process that went on with the old address would end at its first clock."""
    kept.take()
    kept.python(False)
    for _ in range(30):
        assert kept.answer() == ANSWER
    kept.start()
    created = {kept.state()["created"]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", created.pop())


# ---- pieces


def mapping(place: str, permissions: str = "rw-p", path: str = "") -> snapshot.Mapping:
    return snapshot.Mapping(f"{place} {permissions} 00000000 00:00 0 {path}")


def test_places_of_huge_pages() -> None:
    alone = mapping("400000-500000")
    assert list(snapshot.places([alone])) == [0x400000]
    assert list(snapshot.places([alone, mapping("5ff000-601000", "r--p", "/usr/lib/libc.so.6")])) == []
    assert list(snapshot.places([alone, mapping("500000-600000", "---p")])) == [0x400000]
    assert list(snapshot.places([mapping("300000-700000", path="[heap]")])) == [0x200000, 0x400000, 0x600000]
    assert list(snapshot.places([mapping("400000-500000", "r--p"), mapping("600000-800000", path="[stack]")])) == []



def test_runs_of_zeros() -> None:
    full, none = b"x" * snapshot.PAGE, bytes(snapshot.PAGE)
    few, many = none * (snapshot.SHORTEST - 1), none * snapshot.SHORTEST
    assert list(snapshot.runs(full + few + full)) == [(0, snapshot.SHORTEST + 1, False)]
    assert list(snapshot.runs(full + many + full)) == [(0, 1, False), (1, 8, True), (9, 1, False)]
    assert list(snapshot.runs(few + full + many)) == [(0, 8, False), (8, 8, True)]
    assert list(snapshot.runs(b"")) == []


def test_layouts_are_those_of_the_launcher(root: Path) -> None:
    text = (root / "launcher" / "snapshot.c").read_text()
    sizes = [int(word) for word in re.findall(r"sizeof\(struct \w+\) == (\d+)", text)]
    assert sizes == [snapshot.MAPPING.size, snapshot.FILE.size, snapshot.START.size, waiting.MESSAGE.size]
    assert snapshot.RANGE.size == 24 and "struct range {" in text
    assert f"#define DENSE ({snapshot.DENSE})" in text and f"#define HUGE ({snapshot.HUGE >> 20}ul << 20)\n" in text
    assert f"#define HEAD {snapshot.HEAD}\n" in text and f"#define LATE {snapshot.LATE:#x} " in text
