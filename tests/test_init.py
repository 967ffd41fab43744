"""init itself: small programs, assembled for each architecture and executed; another architecture's under user-mode
emulation."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from errno import EBADF, EEXIST, ENOENT, EPERM
from pathlib import Path

import pytest

from pyoci.kernel import flags as k
from pyoci.kernel.syscalls import numbers
from pyoci.launch import INIT_ELF
from pyoci.plan.ops import RUNTIME, Address, Blob, Buffer, Op, Ref, Struct, Vector
from pyoci.program import TEXT, assemble, header_text
from pyoci.reports import AT_BARRIER, FAILED, FORKED, REPORT, TEXT_MAX

SOURCE = Path(__file__).parent.parent / "pyoci" / "init"
LINK = [
    *("-O2", "-ffreestanding", "-nostdlib", "-static", "-fno-stack-protector", "-fno-pic", "-no-pie"),
    *("-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,norelro"),
    *("-Wall", "-Wextra", "-Werror", "-s"),
]
OFFERED = 5  # not a report of init's: a helper offers a descriptor
ARCHES = {
    "x86_64": ("gcc", "qemu-x86_64-static"),
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"),
}


class Machine:
    """Runs programs of one architecture."""

    def __init__(self, arch: str, template: bytes, emulator: list[str], folder: Path) -> None:
        self.arch = arch
        self.template = template
        self.emulator = emulator
        self.folder = folder

    def run(self, ops: list[Op], answers: int = 0, **fds: int) -> tuple[list[tuple[int, int, int, bytes]], int]:
        """The reports, (kind, op, value, text), and the exit status; `answers` barriers are let go."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = {"control": theirs.fileno(), **fds}
        image = self.folder / "image"
        image.write_bytes(assemble(ops, self.template, self.arch, numbers(self.arch), given, {}).image)
        image.chmod(0o700)
        with subprocess.Popen([*self.emulator, str(image)], pass_fds=list(given.values()), env={}) as process:
            theirs.close()
            reports = []
            ours.settimeout(30)
            while message := ours.recv(REPORT.size + TEXT_MAX):
                kind, op, value, length = REPORT.unpack_from(message)
                reports.append((kind, op, value, message[REPORT.size : REPORT.size + length]))
                if kind in (AT_BARRIER, OFFERED):
                    if not answers:
                        break
                    answers -= 1
                    ours.send(b"\0")
            ours.close()
            return reports, process.wait(30)


@pytest.fixture(scope="module", params=list(ARCHES))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    arch = request.param
    compiler, emulator = ARCHES[arch]
    folder = tmp_path_factory.mktemp(arch)
    native = platform.machine() == arch
    if native and compiler == "aarch64-linux-gnu-gcc":
        compiler = "gcc"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    if not native and shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed")
    elf = folder / "init.elf"
    extra = ["-fcf-protection=none"] if arch == "x86_64" else []
    command = [compiler, *LINK, *extra, f"-Wl,-T,{SOURCE / 'init.ld'}", str(SOURCE / "init.c"), "-o", str(elf)]
    subprocess.run(command, check=True)
    return Machine(arch, elf.read_bytes()[:TEXT], [] if native else [emulator], folder)


def say(pipe: int, text: bytes) -> Op:
    return Op("write", (pipe, Blob(text), len(text)), "test")


def said(ops: list[Op], machine: Machine, answers: int = 0) -> tuple[bytes, list[tuple[int, int, int, bytes]], int]:
    """What the ops wrote to the pipe that they are given as descriptor 50, the reports, and the exit status."""
    reading, writing = os.pipe()
    os.dup2(writing, 50)
    os.close(writing)
    try:
        reports, status = machine.run(ops, answers, pipe=50)
    finally:
        os.close(50)
    text = os.read(reading, 4096)
    os.close(reading)
    return text, reports, status


def test_a_straight_line_ends_well(machine: Machine) -> None:
    assert said([say(50, b"one "), say(50, b"two")], machine) == (b"one two", [], 0)


def test_failure_is_reported_and_ends_it(machine: Machine) -> None:
    text, reports, status = said([say(50, b"a"), Op("close", (99,), "test"), say(50, b"b")], machine)
    assert (text, reports, status) == (b"a", [(FAILED, 1, EBADF, b"")], 127)


def test_guards(machine: Machine) -> None:
    """`otherwise` runs only after a tolerated failure, `then` only after success, and they nest."""
    nowhere = (k.AT_FDCWD, b"/proc/nonexistent", k.O_RDONLY)  # which nobody can make
    missing = Op("openat", nowhere, "t", tolerate=(ENOENT,), otherwise=[say(50, b"missing ")])
    there = Op("openat", (k.AT_FDCWD, b"/", k.O_RDONLY), "t", tolerate=(ENOENT,), otherwise=[say(50, b"no ")])
    skipped = Op("openat", nowhere, "t", tolerate=(ENOENT,), then=[say(50, b"no ")])
    inner = Op("close", (98,), "t", tolerate=(EBADF,), otherwise=[say(50, b"inner ")])
    outer = Op("close", (98,), "t", tolerate=(EPERM, EBADF), otherwise=[say(50, b"outer "), inner, say(50, b"after ")])
    taken = Op("openat", (k.AT_FDCWD, b"/", k.O_RDONLY), "t", "root", then=[say(50, b"then ")])
    text, reports, status = said([missing, there, skipped, outer, taken, say(50, b"end")], machine)
    assert (text, reports, status) == (b"missing outer inner after then end", [], 0)


def test_results_are_passed_on(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    ops = [
        Op("openat", (k.AT_FDCWD, str(tmp_path).encode(), k.O_PATH | k.O_DIRECTORY), "t", "folder"),
        Op("openat", (Ref("folder"), b"file", k.O_WRONLY | k.O_CREAT | k.O_NOFOLLOW, 0o600), "t", "file"),
        Op("write", (Ref("file"), b"content", 7), "t"),
        Op("close", (Ref("file"),), "t"),
    ]
    assert machine.run(ops) == ([], 0)
    assert path.read_text() == "content"


def test_a_result_inside_a_structure(machine: Machine) -> None:
    """A descriptor that init opened itself, sent over a socket: its number is only known at run time."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Struct("cmsg_fd", cmsg_len=20, cmsg_level=k.SOL_SOCKET, cmsg_type=k.SCM_RIGHTS, fd=Ref("sent"))
    vector = Struct("iovec", iov_base=Blob(b"hello"), iov_len=5)
    message = Struct("msghdr", msg_iov=vector, msg_iovlen=1, msg_control=control, msg_controllen=24)
    ops = [
        Op("openat", (k.AT_FDCWD, b"/usr", k.O_PATH | k.O_DIRECTORY), "t", "sent"),
        Op("sendmsg", (Ref("peer"), message, k.MSG_NOSIGNAL), "t"),
    ]
    with ours, theirs:
        assert machine.run(ops, peer=theirs.fileno()) == ([], 0)
        data, received, _, _ = socket.recv_fds(ours, 10, 1)
    assert data == b"hello"
    assert os.path.samestat(os.fstat(received[0]), os.stat("/usr"))
    os.close(received[0])


def test_expect(machine: Machine) -> None:
    here = Op("getcwd", (Buffer("cwd", 4096), 4096), "t")
    absolute = Op("expect", (Address("cwd"), 0xFF, ord("/"), ENOENT), "t")
    assert machine.run([here, absolute]) == ([], 0)
    wrong = Op("expect", (Address("cwd"), 0xFF, ord("("), EEXIST), "t")
    assert machine.run([here, wrong]) == ([(FAILED, 1, EEXIST, b"")], 127)


def test_barrier(machine: Machine) -> None:
    wait = Op("anything", (), "t", performer=RUNTIME)
    text, reports, status = said([say(50, b"before "), wait, wait, say(50, b"after")], machine, 1)
    assert (text, status) == (b"before after", 0)
    # two ops of the runtime in a row are one barrier
    assert reports == [(AT_BARRIER, 1, 0, b"")]


def test_a_helper_offers_what_comes_later(machine: Machine) -> None:
    """Two processes with one table of descriptors; the second one tells of a barrier where the first one only waits."""
    if machine.emulator:
        pytest.skip("the emulator has no clone3")
    control = Struct("cmsg_fd", cmsg_len=20, cmsg_level=k.SOL_SOCKET, cmsg_type=k.SCM_RIGHTS, fd=Ref("later"))
    payload = Blob(OFFERED.to_bytes(4, "little") + bytes(12))
    message = Struct(
        "msghdr", msg_iov=Struct("iovec", iov_base=payload, iov_len=16), msg_iovlen=1, msg_control=control,
        msg_controllen=24,
    )  # fmt: skip
    helper = [
        say(50, b"helper "),
        Op("offer", (Ref("control"), message, k.MSG_NOSIGNAL), "t"),
        Op("close", (Ref("later"),), "t"),
        Op("exit_group", (0,), "t"),
    ]
    arguments = Struct("clone_args", flags=k.CLONE_FILES, exit_signal=k.SIGCHLD)
    wait = Op("anything", (), "t", performer=RUNTIME)
    ops = [
        Op("openat", (k.AT_FDCWD, b"/", k.O_CLOEXEC), "t", "later"),
        Op("close", (Ref("later"),), "t"),
        Op("spawn", (arguments, 88), "t", otherwise=helper),
        wait,  # which the helper outlasts
        Op("openat", (k.AT_FDCWD, b"/", k.O_CLOEXEC), "t"),
        Op("listener", (), "t", performer=RUNTIME),
        say(50, b"first"),
    ]
    text, reports, status = said(ops, machine, 2)
    assert (text, status) == (b"helper first", 0)
    assert [kind for kind, _, _, _ in reports] == [AT_BARRIER, OFFERED]


def test_a_runtime_that_dies_takes_init_with_it(machine: Machine) -> None:
    text, reports, status = said([Op("anything", (), "t", performer=RUNTIME), say(50, b"never")], machine)
    assert (text, reports, status) == (b"", [(AT_BARRIER, 0, 0, b"")], 1)


def test_execve_with_arguments_and_environment(machine: Machine) -> None:
    if machine.emulator:
        pytest.skip("the emulator does not emulate what it executes")
    command = Vector([b"sh", b"-c", b'echo "$0 $1 $NAME" >/proc/self/fd/50', b"zero", b"one"])
    ops = [Op("execve", (b"/bin/sh", command, Vector([b"NAME=value"])), "t")]
    assert said(ops, machine) == (b"zero one value\n", [], 0)


@pytest.mark.parametrize("call", ["clone3", "clone"])
def test_clone(machine: Machine, call: str) -> None:
    if machine.emulator and call == "clone3":
        pytest.skip("the emulator has no clone3")
    given = (Struct("clone_args", exit_signal=k.SIGCHLD), 88) if call == "clone3" else (k.SIGCHLD, 0, 0, 0, 0)
    ops = [Op(call, given, "t"), say(50, b"child")]
    text, reports, status = said(ops, machine)
    assert (text, status) == (b"child", 0)
    assert [(kind, op) for kind, op, _, _ in reports] == [(FORKED, 0)]
    assert reports[0][2] > 0


def test_the_kernels_words(machine: Machine) -> None:
    if machine.emulator or os.geteuid() != 0:
        pytest.skip("needs root, and a kernel of this architecture")
    ops = [
        Op("fsopen", (b"tmpfs", 1), "t", "fs"),
        Op("fsconfig", (Ref("fs"), k.FSCONFIG_SET_STRING, b"size", b"nonsense", 0), "t"),
    ]
    reports, status = machine.run(ops)
    (kind, op, _, text), *rest = reports
    assert (kind, op, rest, status) == (FAILED, 1, [], 127)
    assert b"Bad value for 'size'" in text


def test_the_generated_header_is_current() -> None:
    assert (SOURCE / "program.h").read_text() == header_text(), "python3 -m pyoci.program > pyoci/init/program.h"


def test_the_installed_init_fits_its_page() -> None:
    elf = Path(INIT_ELF)
    if not elf.exists():
        pytest.skip("init is built at install")
    data = elf.read_bytes()
    first = int.from_bytes(data[32:40], "little")
    size = int.from_bytes(data[first + 32 : first + 40], "little")
    assert 0 < size <= TEXT


def test_equal_plans_are_equal_bytes(machine: Machine) -> None:
    def image() -> bytes:
        ops = [say(50, b"x"), Op("openat", (k.AT_FDCWD, b"/", k.O_DIRECTORY), "t", "a"), Op("close", (Ref("a"),), "t")]
        return assemble(ops, machine.template, machine.arch, numbers(machine.arch), {"control": 3}, {}).image

    assert image() == image()


def test_a_name_that_nothing_gives_is_a_mistake(machine: Machine) -> None:
    with pytest.raises(KeyError, match="@nobody is used before any op gives it"):
        assemble(
            [Op("close", (Ref("nobody"),), "t")],
            machine.template,
            machine.arch,
            numbers(machine.arch),
            {"control": 3},
            {},
        )
