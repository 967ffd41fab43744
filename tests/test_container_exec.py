"""exec into real containers, and terminals of both kinds."""

from __future__ import annotations

import array
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from containers import LIMIT, Box, box, needed  # noqa: F401 - box is a fixture

pytestmark = needed
KILL, CHOWN = 1 << 5, 1 << 0


@pytest.fixture
def running(box: Box) -> Box:  # noqa: F811
    box.start("exec sleep 100")
    return box


def test_streams_and_exit_status(running: Box) -> None:
    assert running.exec("cat", input="typed\n") == "typed\n"
    assert running("exec", running.id, "sh", "-c", "exit 9").returncode == 9
    assert running("exec", running.id, "sh", "-c", "kill -TERM $$").returncode == 128 + 15
    done = running("exec", running.id, "no-such-program")
    assert done.returncode != 0 and "executable file not found in $PATH" in done.stderr


def test_options_of_the_command_line(running: Box) -> None:
    assert running.exec("id", options=["--user", "5:6", "--additional-gids", "7,8"]) == "uid=5 gid=6 groups=7,8\n"
    assert running.exec("pwd", options=["--cwd", "/tmp"]) == "/tmp\n"
    assert running.exec("sh", "-c", "echo $A$B", options=["--env", "A=1", "-e", "B=2"]) == "12\n"
    # getenv(3) takes the first of several
    found = running.exec("env", options=["-e", "PATH=/bin", "-e", "A=1", "-e", "A=2"]).split()
    assert sorted(entry for entry in found if entry[:2] in ("PA", "A=")) == ["A=2", "PATH=/bin"]
    assert "/process/cwd" in running.fails("exec", "--cwd", "/nowhere/at/all", running.id, "pwd")


def test_words_that_are_no_text(running: Box) -> None:
    """Arguments, variables and directories are bytes to the kernel."""
    words = [os.fsencode(word) for word in running.command("exec", "-e")]
    program = (b"sh", b"-c", b"echo $A $0; pwd", b"\xff")
    command = [*words, b"A=caf\xe9", b"--cwd", b"/caf\xe9", running.id.encode(), *program]
    os.mkdir(os.fsencode(running.rootfs) + b"/caf\xe9")
    done = subprocess.run(command, capture_output=True, check=False, timeout=LIMIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"caf\xe9 \xff\n/caf\xe9\n", b"")
    done = subprocess.run([*words, b"A=1", running.id.encode(), b"caf\xe9"], capture_output=True, check=False)
    assert done.returncode == 255 and b"executable file not found" in done.stderr, done


def test_capabilities(running: Box) -> None:
    lines = running.exec("grep", "Cap", "/proc/self/status", options=["--cap", "CAP_CHOWN"]).splitlines()
    found = {line[3:6]: int(line.split()[1], 16) for line in lines}
    assert found["Eff"] & CHOWN and found["Prm"] & CHOWN and found["Bnd"] & CHOWN
    assert found["Inh"] == found["Amb"] == 0
    plain = running.exec("grep", "CapEff", "/proc/self/status")
    assert not int(plain.split()[1], 16) & CHOWN and int(plain.split()[1], 16) & KILL


def test_capabilities_that_are_inherited(box: Box) -> None:
    """Where config.json has an inheritable set, programs of another user keep what --cap gives of it."""
    box.capabilities("CAP_KILL", "CAP_CHOWN", inheritable=["CAP_CHOWN"], ambient=[])
    box.start("exec sleep 100")
    words = ["--cap", "CAP_CHOWN", "--cap", "CAP_KILL", "--user", "5:5"]
    lines = box.exec("grep", "Cap", "/proc/self/status", options=words).splitlines()
    found = {line[3:6]: int(line.split()[1], 16) for line in lines}
    assert found["Inh"] == found["Amb"] == found["Eff"] == found["Prm"] == CHOWN


def test_no_new_privileges(box: Box) -> None:
    box.process["noNewPrivileges"] = False
    box.start("exec sleep 100")
    assert box.exec("grep", "NoNewPrivs", "/proc/self/status").split()[1] == "0"
    assert box.exec("grep", "NoNewPrivs", "/proc/self/status", options=["--no-new-privs"]).split()[1] == "1"


def test_process_file(running: Box) -> None:
    process = {
        "args": ["sh", "-c", "id -u; pwd; echo $A; ulimit -n; umask; cat /proc/self/oom_score_adj"],
        "cwd": "/tmp", "env": ["A=b", "PATH=/bin"], "user": {"uid": 9, "gid": 9, "umask": 63}, "oomScoreAdj": 55,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}],
    }  # fmt: skip
    file = running.folder / "process.json"
    file.write_text(json.dumps(process))
    shown = running.ok("exec", "--process", str(file), running.id)
    assert shown.split() == ["9", "/tmp", "b", "77", "0077", "55"]


def test_it_is_in_the_containers_namespaces_and_cgroups(running: Box) -> None:
    pid = running.pid()
    shown = running.exec("sh", "-c", "for n in mnt pid net ipc uts; do readlink /proc/self/ns/$n; done; hostname")
    names = ("mnt", "pid", "net", "ipc", "uts")
    assert shown.split() == [*(os.readlink(f"/proc/{pid}/ns/{name}") for name in names), "pyoci"]
    file = running.folder / "pid"
    null = subprocess.DEVNULL
    words = running.command("exec", "--detach", "--pid-file", str(file), running.id, "sleep", "100")
    subprocess.run(words, check=True, stdin=null, stdout=null, timeout=LIMIT)
    other = int(file.read_text())
    assert file.read_text() == str(other)
    assert Path(f"/proc/{other}/cgroup").read_text() == Path(f"/proc/{pid}/cgroup").read_text()
    assert Path(f"/proc/{other}/root").readlink() == Path(f"/proc/{pid}/root").readlink()
    assert json.loads(running.ok("ps", "--format", "json", running.id)) == sorted([pid, other])


def test_into_a_created_container(box: Box) -> None:
    box.create("exec sleep 100")
    assert box.exec("cat", "/proc/1/comm").strip() != "sleep"
    assert box.status() == "created"
    box.ok("start", box.id)
    assert box.status() == "running"


def test_nothing_of_ours_is_open(running: Box) -> None:
    assert running.exec("ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]
    reader, writer = os.pipe()
    script = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
    words = running.command("exec", "--preserve-fds", "1", running.id, "sh", "-c", "echo kept >&3; ls /proc/self/fd")
    done = subprocess.run(
        [sys.executable, "-c", script, str(writer), *words], pass_fds=(writer,), timeout=LIMIT,
        stdin=subprocess.DEVNULL, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert os.read(reader, 10) == b"kept\n"
    assert done.stdout.split() == ["0", "1", "2", "3", "4"]
    os.close(reader)
    os.close(writer)


def test_working_directory_is_no_descriptor_of_ours(running: Box) -> None:
    for number in range(3, 12):
        running.fails("exec", "--cwd", f"/proc/self/fd/{number}", running.id, "ls")


def test_paused_container_on_request(running: Box) -> None:
    running.ok("pause", running.id)
    words = running.command("exec", "--ignore-paused", running.id, "echo", "thawed")
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    time.sleep(0.1)
    assert child.poll() is None
    running.ok("resume", running.id)
    assert child.communicate(timeout=LIMIT)[0] == "thawed\n"


# -- terminals


class Terminal:
    """A program with a pseudoterminal of its own as its controlling terminal; we are the person in front of it."""

    def __init__(self, words: list[str], rows: int = 30, columns: int = 100) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execv(words[0], words)
        self.seen = b""

    def expect(self, text: bytes) -> None:
        end = time.monotonic() + LIMIT
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:
                    assert text in self.seen, self.seen

    def type(self, text: bytes) -> None:
        self.seen = b""
        os.write(self.master, text)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> int:
        end = time.monotonic() + LIMIT
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.master)
                return os.waitstatus_to_exitcode(status)
            if select.select([self.master], [], [], 0.01)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:
                    pass
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)


def converse(terminal: Terminal) -> None:
    """The shell in the container has a terminal in all respects."""
    terminal.type(b"tty; stty size\n")
    terminal.expect(b"/dev/pts/0")
    terminal.expect(b"30 100")
    terminal.resize(40, 120)
    terminal.type(b"sleep 0.1; stty size\n")
    terminal.expect(b"40 120")
    terminal.type(b"sleep 100\n")
    time.sleep(0.1)
    terminal.type(b"\x03")  # interrupts sleep, not us
    terminal.type(b"echo st''ill here $?\n")
    terminal.expect(b"still here")
    terminal.type(b"exit 6\n")


def test_run_on_a_terminal(box: Box) -> None:
    box.process["terminal"] = True
    box.process["args"] = ["sh"]
    box.write()
    terminal = Terminal(box.command("run", "--bundle", str(box.bundle), box.id))
    converse(terminal)
    assert terminal.close() == 6
    box.gone()


def test_exec_on_a_terminal(running: Box) -> None:
    terminal = Terminal(running.command("exec", "--tty", running.id, "sh"))
    converse(terminal)
    assert terminal.close() == 6


def receive(listener: socket.socket) -> int:
    """The master end that comes over an engine's socket."""
    connection, _ = listener.accept()
    with connection:
        fds = array.array("i")
        _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_LEN(fds.itemsize))
        ((level, kind, data),) = ancillary
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        fds.frombytes(data[: fds.itemsize])
        return int(fds[0])


@pytest.fixture
def listener(box: Box) -> socket.socket:  # noqa: F811
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(box.folder / "console.sock"))
    made.listen(1)
    made.settimeout(LIMIT)
    return made


def read_until(master: int, text: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + LIMIT
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([master], [], [], 0.5)[0]:
            seen += os.read(master, 4096)
    return seen


@pytest.mark.parametrize("user", [0, 1000])
def test_console_socket(box: Box, listener: socket.socket, user: int) -> None:
    box.process["terminal"] = True
    box.process["consoleSize"] = {"height": 11, "width": 22}
    box.process["user"] = {"uid": user, "gid": user}
    script = "tty; stty size; ls -l /dev/console; exec 3</dev/tty && echo controlling; stat -c 'owner %u' $(tty); cat"
    box.create(script, "--console-socket", str(box.folder / "console.sock"))
    master = receive(listener)
    listener.close()
    box.ok("start", box.id)
    seen = read_until(master, b"owner")
    for text in (b"/dev/pts/0", b"11 22", b"controlling", b"owner %d" % user):
        assert text in seen + (b"" if b"\n" in seen[seen.index(b"owner") :] else read_until(master, b"\n"))
    os.write(master, b"echoed\n")
    read_until(master, b"echoed\r\nechoed")
    os.close(master)


def test_console_socket_for_exec(running: Box, listener: socket.socket) -> None:
    words = ["--tty", "--detach", "--console-socket", str(running.folder / "console.sock")]
    null = subprocess.DEVNULL
    subprocess.run(
        running.command("exec", *words, running.id, "tty"), check=True, stdin=null, stdout=null, timeout=LIMIT
    )
    master = receive(listener)
    listener.close()
    assert b"/dev/pts/" in read_until(master, b"\n")
    os.close(master)


def test_the_console_socket_is_closed_once_it_has_the_terminal(running: Box, listener: socket.socket) -> None:
    """Not when the process ends: whoever reads to the end of the connection would wait for that."""
    words = ["--tty", "--console-socket", str(running.folder / "console.sock")]
    command = running.command("exec", *words, running.id, "sleep", "100")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as call:
        try:
            connection, _ = listener.accept()
            listener.close()
            with connection:
                connection.settimeout(LIMIT)
                _, (master,), _, _ = socket.recv_fds(connection, 4096, 1)
                assert connection.recv(1) == b""
            assert call.poll() is None
            os.close(master)  # which hangs up
            assert call.wait(LIMIT) == 128 + signal.SIGHUP
        finally:
            call.terminate()


def test_terminal_needs_somebody(box: Box) -> None:
    box.process["terminal"] = True
    assert "--console-socket" in box.refused(command="create")
    box.process["terminal"] = False
    box.write()
    box.fails("create", "--console-socket", "/no/such/socket", "--bundle", str(box.bundle), box.id)
    box.process["terminal"] = True
    box.write()
    error = box.fails("create", "--console-socket", "/no/such/socket", "--bundle", str(box.bundle), box.id)
    assert "/no/such/socket" in error
    box.gone()


def test_terminal_is_given_back(box: Box) -> None:
    """Our terminal's settings after run are what they were before, also when the container dies badly."""
    box.process["terminal"] = True
    box.process["args"] = ["sh", "-c", "stty raw; kill -9 $$; exit 3"]
    box.write()
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    done = subprocess.run(
        box.command("run", "--bundle", str(box.bundle), box.id), stdin=slave, stdout=slave, stderr=slave,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
