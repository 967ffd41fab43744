"""Programs that are there and cannot be executed: the reason is said, by run, start and exec alike."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import LIMIT, Box, box, needed  # noqa: F401 - box is a fixture

pytestmark = needed


def elf(machine: int, interpreter: bytes = b"") -> bytes:
    """The beginning of a 64-bit program."""
    head = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header = struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(interpreter), len(interpreter), 1)
    return head + header + interpreter


NATIVE = {"x86_64": 62, "aarch64": 183}
PROGRAMS: dict[str, tuple[Callable[[], bytes], str]] = {
    "no-interpreter": (lambda: b"#!/no/such/shell -x\n", "interpreter (#!) /no/such/shell is not in the container"),
    "dos": (lambda: b"#!/bin/sh\r\necho\r\n", "line ends of DOS"),
    "nameless": (lambda: b"#!\n", "names no interpreter"),
    "garbage": (lambda: b"garbage", "exec format error: it is neither an ELF file nor a script"),
    "empty": (lambda: b"", "exec format error: it is empty"),
    "foreign": (lambda: elf(22), "it is a program for s390"),
    "dynamic": (lambda: elf(NATIVE[os.uname().machine], b"/lib64/none.so\0"), "loader /lib64/none.so"),
    "not-executable": (lambda: b"#!/etc/plain\n", "its interpreter (#!) /etc/plain, may not be executed"),
}


@pytest.fixture
def programs(box: Box) -> Box:  # noqa: F811
    for name, (content, _) in PROGRAMS.items():
        (box.rootfs / name).write_bytes(content())
        (box.rootfs / name).chmod(0o755)
    (box.rootfs / "etc/plain").write_text("")
    return box


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_reason_in_every_command(programs: Box, name: str) -> None:
    phrase, path = PROGRAMS[name][1], f"/{name}"
    programs.process["args"] = [path]
    programs.write()
    bundle = ("--bundle", str(programs.bundle))
    error = programs.fails("run", *bundle, programs.id)
    assert phrase in error and f'exec: "{path}": ' in error and "/process/args: execve" in error
    programs.gone()
    words = programs.command("create", *bundle, programs.id)
    # the container would keep our pipes open
    null = subprocess.DEVNULL
    subprocess.run(words, check=True, stdin=null, stdout=null, stderr=null, timeout=LIMIT)
    started = programs("start", programs.id)
    assert started.returncode == 1 and phrase in started.stderr
    programs.ok("delete", programs.id)
    programs.start("exec sleep 100")
    done = programs("exec", programs.id, path)
    assert done.returncode == 255 and phrase in done.stderr and done.stderr.count("\n") == 1


def test_the_words_that_engines_look_for(programs: Box) -> None:
    programs.start("exec sleep 100")
    for words, phrase in (
        (["/no/such"], 'exec: "/no/such": no such file or directory'),
        (["nothing"], 'exec: "nothing": executable file not found in $PATH'),
        ([""], 'exec: "": executable file not found in $PATH'),
        (["/etc/plain"], 'exec: "/etc/plain": permission denied'),
        (["/etc"], 'exec: "/etc": permission denied: it is a directory'),
        (["/bin/sh/x"], "not a directory"),
    ):
        done = programs("exec", programs.id, *words)
        assert done.returncode == 255 and phrase in done.stderr, done
    for entry in ("NAME", "=x", ""):
        done = programs("exec", "--env", entry, programs.id, "true")
        assert done.returncode == 255 and "must be NAME=VALUE" in done.stderr


def test_a_directory_is_no_program_at_create(box: Box) -> None:  # noqa: F811
    """Engines tell their users what create says; what start says comes after "created"."""
    box.process["args"] = ["/etc"]
    box.write()
    error = box.fails("create", "--bundle", str(box.bundle), box.id)
    assert error.endswith('exec: "/etc": permission denied: it is a directory (/process/args)\n'), error
    box.gone()
    # one in PATH is passed over, as by execvp(3)
    (box.rootfs / "first/sh").mkdir(parents=True)
    box.process.update(args=["sh", "-c", "echo $0"], env=["PATH=/first:/bin"])
    box.write()
    assert box.ok("run", "--bundle", str(box.bundle), box.id) == "sh\n"


def test_an_image_that_lies(programs: Box, tmp_path: Path) -> None:
    """Links out of the root, fifos and endless headers: no reason is better than a hang or somebody else's file."""
    (tmp_path / "secret").write_text("#!/secret/on/the/host\n")
    lie = programs.rootfs / "lie"
    lie.write_bytes(b"#!" + str(tmp_path / "secret").encode() + b"\n")
    lie.chmod(0o755)
    os.mkfifo(programs.rootfs / "fifo", 0o755)
    (programs.rootfs / "fifo").chmod(0o755)
    huge = bytearray(elf(NATIVE[os.uname().machine], b"/x\0"))
    huge[32:40] = b"\xff" * 8
    huge[56:58] = b"\xff\xff"
    (programs.rootfs / "huge").write_bytes(huge)
    (programs.rootfs / "huge").chmod(0o755)
    programs.start("exec sleep 100")
    assert "is not in the container" in programs.fails("exec", programs.id, "/lie")
    for name in ("/fifo", "/huge"):
        error = programs.fails("exec", programs.id, name)
        assert "secret" not in error and "/process/args" in error


def test_start_makes_the_plan_again_of_a_tmpfs_with_copies(programs: Box) -> None:
    """From what create kept of the host: here with what the image has in the directory."""
    programs.mount("/etc", "tmpfs", "tmpfs", "tmpcopyup")
    programs.process["args"] = ["/garbage"]
    programs.write()
    words = programs.command("create", "--bundle", str(programs.bundle), programs.id)
    null = subprocess.DEVNULL
    subprocess.run(words, check=True, stdin=null, stdout=null, stderr=null, timeout=LIMIT)
    error = programs.fails("start", programs.id)
    assert "exec format error" in error and "/process/args: execve" in error
