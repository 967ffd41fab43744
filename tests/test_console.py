"""The caller's end of a container: terminals, signals, exit statuses, and descriptors that change hands."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pytest

from pyoci import signals
from pyoci.console import FORWARDED, attend, connect_console_socket, exit_status
from pyoci.errors import PyociError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATHS = [path for path in sys.path if path]
# `pyoci run` in little: the rest of the arguments is a program, on a terminal of its own if the first says so.
ATTEND = f"""
import os, pty, signal, sys; sys.path[:0] = {PATHS!r}
from pyoci.console import attend, hold_signals
# as `run` does before its container can say anything: signals that come before the handlers wait for them
hold_signals()
if sys.argv[1] == "tty":
    pid, master = pty.fork()
else:
    pid, master = os.fork(), None
if pid == 0:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if master is None:
        os.setsid()
    os.execvp(sys.argv[2], sys.argv[2:])
status = attend(pid, os.pidfd_open(pid), master)
os._exit(status)
"""


class Caller:
    """A program under `attend`, with a terminal of 40x100 for its standard streams."""

    def __init__(self, *command: str, kind: str = "tty") -> None:
        self.master, self.slave = pty.openpty()
        self.resize(40, 100)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", ATTEND, kind, *command], stdin=self.slave, stdout=self.slave, stderr=self.slave
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def expect(self, pattern: str, seconds: float = 30) -> str:
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen.decode(errors="replace"))):
            assert select.select([self.master], [], [], until - time.monotonic())[0], f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen[found.end() :]
        return found.group()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def caller() -> Iterator[type[Caller]]:
    made: list[Caller] = []

    class Kept(Caller):
        def __init__(self, *command: str, kind: str = "tty") -> None:
            super().__init__(*command, kind=kind)
            made.append(self)

    yield Kept
    for one in made:
        one.close()


def test_a_shell_on_the_callers_terminal(caller: type[Caller]) -> None:
    shell = caller("sh", "-c", "stty size; echo ready; read line; echo got $line; exit 7")
    shell.expect("40 100")
    shell.expect("ready")
    raw = termios.tcgetattr(shell.slave)
    assert not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    shell.type("hello\r")
    shell.expect("got hello")
    assert shell.process.wait(10) == 7
    assert termios.tcgetattr(shell.slave) == shell.before


def test_keys_are_the_containers(caller: type[Caller]) -> None:
    """Ctrl-C becomes SIGINT there, not here."""
    shell = caller("sh", "-c", "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done")
    shell.expect("ready")
    shell.type("\x03")
    shell.expect("interrupted")
    assert shell.process.wait(10) == 3


def test_the_window_follows(caller: type[Caller]) -> None:
    shell = caller("sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done")
    shell.expect("ready")
    shell.resize(50, 120)
    shell.process.send_signal(signal.SIGWINCH)
    shell.expect("50 120")
    shell.process.send_signal(signal.SIGHUP)
    assert shell.process.wait(10) == 128 + signal.SIGHUP


def test_all_of_a_long_output_arrives(caller: type[Caller]) -> None:
    shell = caller("sh", "-c", "stty -opost; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo end")
    for number in range(0, 20000, 1999):
        shell.expect(rf"line {number}\n")
    shell.expect("line 19999\nend\n")
    assert shell.process.wait(10) == 0


def test_the_terminal_comes_back_when_killed_by_a_forwarded_signal(caller: type[Caller]) -> None:
    shell = caller("sh", "-c", "echo ready; exec sleep 100")
    shell.expect("ready")
    shell.process.send_signal(signal.SIGTERM)
    assert shell.process.wait(10) == 128 + signal.SIGTERM
    assert termios.tcgetattr(shell.slave) == shell.before


def test_our_terminal_hangs_up(caller: type[Caller]) -> None:
    shell = caller("sh", "-c", "echo ready; exec sleep 0.5")
    shell.expect("ready")
    os.close(shell.master)
    shell.master = os.dup(shell.slave)
    assert shell.process.wait(10) == 0


def test_a_pipe_for_input_ends_it() -> None:
    """What is piped in arrives, and its end is an end of file there."""
    done = subprocess.run(
        [sys.executable, "-c", ATTEND, "tty", "sh", "-c", "stty -echo; echo ready; cat; echo end"],
        input=b"some text\n",
        stdout=subprocess.PIPE,
        timeout=20,
        check=True,
    )
    assert done.stdout.replace(b"\r", b"").endswith(b"some text\nend\n")


@pytest.mark.parametrize(
    ("typed", "script", "shown"),
    [
        (b"some text\n", "cat; cat", b"some text\n"),  # each of them reads to the end
        (b"half a line", "cat", b"half a line"),  # of which the first end of file is the end
    ],
)
def test_the_end_of_a_pipe_is_there_for_every_reader(typed: bytes, script: str, shown: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTEND, "tty", "sh", "-c", f"stty -echo; {script}; echo end"],
        input=typed,
        stdout=subprocess.PIPE,
        timeout=20,
        check=True,
    )
    assert done.stdout.replace(b"\r", b"").endswith(shown + b"end\n")


def test_closed_streams_are_no_problem() -> None:
    command = ["sh", "-c", 'exec "$0" "$@" <&- >&-', sys.executable, "-c", ATTEND, "tty", "sh", "-c", "echo x; exit 4"]
    assert subprocess.run(command, timeout=20, check=False).returncode == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_signals_are_passed_on(number: int) -> None:
    name = signals.name(number).removeprefix("SIG")
    script = f"trap 'echo got; exit 9' {number}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [sys.executable, "-c", ATTEND, "plain", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        assert running.stdout.readline() == "got\n", name
        assert running.wait(10) == 9


def test_ignored_signals_stay_ignored() -> None:
    """nohup(1) means the container as well."""
    script = "echo ready; sleep 0.5; exit 5"
    with subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", ATTEND, "plain", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGHUP)
        assert running.wait(10) == 5


def test_what_is_not_passed_on() -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGPIPE):
        assert number not in FORWARDED
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP} <= set(FORWARDED)


def test_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGWINCH)]
    child = subprocess.Popen(["true"])
    descriptor = os.pidfd_open(child.pid)
    assert attend(child.pid, descriptor) == 0
    os.close(descriptor)
    child.returncode = 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGWINCH)] == before


def test_exit_statuses() -> None:
    for script, expected in (("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -15 $$", 143)):
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], {})
        assert exit_status(os.waitpid(pid, 0)[1]) == expected


def test_console_sockets_may_have_long_paths(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    here = os.open(folder, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/console.sock")
        listener.listen(1)
        descriptor = connect_console_socket(f"{folder}/console.sock")
        assert not os.get_inheritable(descriptor)
        peer, _ = listener.accept()
        os.write(descriptor, b"x")
        assert peer.recv(1) == b"x"
        peer.close()
        os.close(descriptor)
    os.close(here)


def test_console_sockets_that_are_none(tmp_path: Path) -> None:
    for path, words in ((f"{tmp_path}/no", "no such file"), ("/no/such/dir", "no such file"), (__file__, "refused")):
        with pytest.raises(PyociError, match=f"--console-socket: .*{words}"):
            connect_console_socket(path)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9),
        ("0", 0),
        ("KILL", 9),
        ("SIGKILL", 9),
        ("sigkill", 9),
        ("Term", 15),
        ("64", 64),
        ("RTMIN", 34),
        ("SIGRTMIN+1", 35),
        ("rtmin+30", 64),
        ("RTMAX", 64),
        ("RTMAX-2", 62),
        ("IOT", 6),
        ("CLD", 17),
        ("POLL", 29),
    ],
)
def test_signals_by_name(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NOPE",
        "-1",
        "-9",
        "65",
        "999999",
        "SIG",
        "RTMIN+31",
        "RTMIN-1",
        "RTMAX+1",
        "RTMIN+",
        "RTMIN1",
        "9 ",
        "\u0669",
    ],
)
def test_no_signals(text: str) -> None:
    with pytest.raises(PyociError, match="unknown signal"):
        signals.parse(text)


def test_signals_are_this_machines() -> None:
    for each in signal.Signals:
        if each.name not in ("SIGRTMIN", "SIGRTMAX"):
            assert signals.parse(each.name) == each
            assert signals.parse(signals.name(each)) == each
    assert signals.name(signal.SIGRTMIN + 1) == "SIGRTMIN+1"
    assert (signals.RTMIN, signals.RTMAX) == (signal.SIGRTMIN, signal.SIGRTMAX)
