"""Messages: where they go, and that none is lost."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from pyoci import log, syslog
from pyoci.errors import PyociError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _as_new() -> Iterator[None]:
    log.configure()
    yield
    log.configure()


def test_records_are_appended_whole(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("before\n")
    log.configure(str(file), "json")
    log.warning("careful")
    log.error("broken \x07 \udcff")
    before, first, second = file.read_text().splitlines()
    assert before == "before"
    assert [json.loads(line)["level"] for line in (first, second)] == ["warning", "error"]
    assert json.loads(second)["msg"] == "broken \\x07 \\udcff"


def test_warnings_are_told_apart(capfd: Capture) -> None:
    log.warning("careful")
    assert capfd.readouterr().err == "pyoci: warning: careful\n"
    log.configure(level="error")
    log.warning("careful")
    assert capfd.readouterr().err == ""


def test_debug_only_when_asked(tmp_path: Path, capfd: Capture) -> None:
    log.debug("unseen", number=1)
    file = tmp_path / "log"
    log.configure(str(file), "json", "debug")
    assert vars(log)["debugging"] is True
    log.debug("seen", number=1)
    record = json.loads(file.read_text())
    assert (record["msg"], record["number"], record["level"]) == ("seen", 1, "debug")
    # as runc and crun write it, and scripts look for it
    assert '"level":"debug"' in file.read_text()
    assert capfd.readouterr().err == ""


def test_debug_to_stderr(capfd: Capture) -> None:
    log.configure(level="debug")
    log.debug("seen", path="/x y")
    shown = capfd.readouterr().err
    assert "level=debug msg=seen" in shown
    assert 'path="/x y"' in shown


def test_a_log_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PyociError, match="is a directory"):
        log.configure(str(tmp_path))


def test_the_log_is_not_inherited(tmp_path: Path) -> None:
    log.configure(str(tmp_path / "log"))
    assert not os.get_inheritable(log._descriptor)


def test_a_full_log_does_not_hide_the_error(capfd: Capture) -> None:
    log.configure("/dev/full", "json")
    log.error("the reason")
    shown = capfd.readouterr().err
    assert "pyoci: the reason\n" in shown
    assert "cannot write to the log" in shown


def test_without_structlog_the_error_is_still_told(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "structlog", None)
    log.configure(str(tmp_path / "log"))
    log.error("the reason")
    assert "pyoci: the reason\n" in capfd.readouterr().err


def test_printable() -> None:
    assert log.printable("plain é 日本") == "plain é 日本"
    assert log.printable("a\nb\x1b[0m\udcff") == "a\\nb\\x1b[0m\\udcff"


def test_output_to_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    os.dup2(writer, 1)
    try:
        log.output("x" * 100_000)
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)


def test_output_to_a_full_disk() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    saved = os.dup(1)
    os.dup2(full, 1)
    try:
        with pytest.raises(PyociError, match="no space left on device"):
            log.output("x")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(full)


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What the system's log listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "socket"))
        one.settimeout(5)
        for kind in syslog.SOCKETS:
            monkeypatch.setitem(syslog.SOCKETS, kind, str(tmp_path / "socket"))
        yield one


def test_syslog(listener: socket.socket, capfd: Capture) -> None:
    log.configure("syslog:mine", "json")
    log.error("broken")
    record = listener.recv(1000).decode()
    assert re.fullmatch(rf"<11>[A-Z][a-z]{{2}} [ 0-3]\d \d\d:\d\d:\d\d mine\[{os.getpid()}\]: broken", record)
    assert capfd.readouterr().err == "pyoci: broken\n"
    log.warning("careful")
    assert listener.recv(1000).startswith(b"<12>")
    assert capfd.readouterr().err == ""


def test_journald(listener: socket.socket) -> None:
    log.configure("journald:", level="debug")
    log.error("two\nlines")
    assert listener.recv(1000) == b"MESSAGE=two\\nlines\nPRIORITY=3\nSYSLOG_IDENTIFIER=pyoci\n"
    log.debug("seen", number=1)
    assert listener.recv(1000).startswith(b"MESSAGE=seen number=1\nPRIORITY=7\n")


def test_a_daemon_that_does_not_read(
    listener: socket.socket, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is short (net.unix.max_dgram_qlen); a command ends all the same, and its error is told."""
    monkeypatch.setattr(syslog, "PATIENCE", 0.1)
    log.configure("syslog:mine")
    with pytest.raises(TimeoutError):
        for _ in range(10_000):
            assert log._system is not None
            log._system.send("error", "filling")
    log.error("broken")
    assert capfd.readouterr().err == "pyoci: cannot write to the log: timed out\npyoci: broken\n"
    log.configure()


def test_a_system_without_that_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(syslog.SOCKETS, "journald", "/nonexistent")
    with pytest.raises(PyociError, match=r"--log journald:x: connect /nonexistent: no such file or directory"):
        log.configure("journald:x")


def test_a_file_by_its_scheme(tmp_path: Path) -> None:
    log.configure(f"file:{tmp_path}/log", "json")
    log.error("broken")
    assert json.loads((tmp_path / "log").read_text())["msg"] == "broken"


def test_a_warning_is_the_logs_alone(tmp_path: Path, capfd: Capture) -> None:
    """stderr is the container's when engines create one, and a warning in its output is nobody's wish."""
    log.configure(str(tmp_path / "log"), "json")
    log.warning("careful")
    assert capfd.readouterr().err == ""
    assert json.loads((tmp_path / "log").read_text())["level"] == "warning"
