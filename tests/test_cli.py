"""The command line: grammar, words and statuses that engines rely on."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from pyoci import cli, log
from pyoci.cli import COMMANDS, GLOBAL, main, parse
from pyoci.errors import PyociError, UsageError
from pyoci.options import MAX_ID, absolute, parse_id, parse_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _log_as_new() -> Iterator[None]:
    yield
    log.configure()


RUN = COMMANDS["run"][5]
EXEC = COMMANDS["exec"][5]


@pytest.mark.parametrize(
    "argv",
    [
        ["--bundle", "/b", "-d", "c1"],
        ["-bundle=/b", "--detach", "c1"],
        ["c1", "-b", "/b", "-detach=true"],
        ["--bundle=/a", "c1", "--bundle=/b", "--detach=1"],
        ["-b=/b", "-d", "--", "c1"],
    ],
)
def test_one_meaning_many_spellings(argv: list[str]) -> None:
    parsed = parse(RUN, argv, False)
    assert parsed.text("bundle") == "/b"
    assert parsed.flag("detach")
    assert parsed.args == ["c1"]


def test_a_value_may_look_like_a_flag_or_hold_an_equals_sign() -> None:
    parsed = parse(EXEC, ["-e", "-x", "--env=A=B=C", "c", "sh", "-c", "--env=D"], True)
    assert parsed.many("env") == ["-x", "A=B=C"]
    assert parsed.args == ["c", "sh", "-c", "--env=D"]


def test_letters_of_switches_may_be_joined() -> None:
    assert parse(EXEC, ["-td", "c"], True).values == {"tty": True, "detach": True}
    with pytest.raises(UsageError, match="-te"):
        parse(EXEC, ["-te", "c"], True)


def test_numbers_and_a_dash_are_arguments() -> None:
    assert parse(COMMANDS["kill"][5], ["c", "-9", "-"], False).args == ["c", "-9", "-"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nope"], "flag provided but not defined: -nope"),
        (["--bundle"], "flag needs an argument: -bundle"),
        (["--preserve-fds", "x"], 'invalid value "x" for flag -preserve-fds: parse error'),
        (["--preserve-fds=-1"], "parse error"),
        (["--detach=maybe"], "parse error"),
    ],
)
def test_what_cannot_be_read(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        parse(RUN, argv, False)


def test_false_takes_a_switch_back() -> None:
    assert not parse(RUN, ["-d", "--detach=false"], False).flag("detach")


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["frobnicate"], 3, "No help topic for 'frobnicate'"),
        (["help", "frobnicate"], 3, "No help topic for 'frobnicate'"),
        (["run", "--nope", "c"], 1, "Incorrect Usage: flag provided but not defined: -nope"),
        (["--nope"], 1, "Incorrect Usage: flag provided but not defined: -nope"),
        (["run", "--systemd-cgroup", "c"], 1, "not defined: -systemd-cgroup; it goes before the command"),
        (["--bundle", ".", "run", "c"], 1, "not defined: -bundle; it goes behind the command (create, run, restore"),
        (["run"], 1, 'Incorrect Usage: "run" requires exactly 1 argument(s)'),
        (["state", "a", "b"], 1, "Incorrect Usage"),
        (["kill"], 1, "minimum of 1 argument(s)"),
        (["kill", "a", "b", "c"], 1, "maximum of 2 argument(s)"),
        (["--log-format", "xx", "list"], 1, "invalid log-format: xx"),
        (["--log-level", "loud", "list"], 1, "invalid log-level: loud"),
        (["--log", "/proc/nonexistent/log", "list"], 1, "open /proc/nonexistent/log: no such file or directory"),
        (["--cgroup-manager", "docker", "run", "c"], 1, "cgroupfs, systemd or disabled"),
        (["--rootless", "perhaps", "list"], 1, "-rootless"),
        (["exec", "c"], 255, "exec failed: exec args cannot be empty"),
        (["exec", "-u", "root", "c", "sh"], 255, 'exec failed: bad uid "root"'),
        (["kill", "c", "NOPE"], 1, 'unknown signal "NOPE"'),
        (["state", "a/b"], 1, "invalid container ID format"),
        (["state", "nope"], 1, "container does not exist"),
        (["delete", "nope"], 1, "container does not exist"),
        (["kill", "nope", "9"], 1, "container does not exist"),
        (["list", "-f", "xml"], 1, "invalid format option"),
    ],
)
def test_failures_are_one_line(tmp_path: Path, capfd: Capture, argv: list[str], status: int, words: str) -> None:
    assert main(["--root", str(tmp_path), *argv]) == status
    shown = capfd.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("pyoci")
    assert shown.out == ""


@pytest.mark.parametrize("argv", [["--nope", "list"], ["--log-format", "xx", "list"], ["--log-level", "loud", "list"]])
def test_the_log_gets_what_is_wrong_with_the_flags_behind_it(tmp_path: Path, capfd: Capture, argv: list[str]) -> None:
    file = tmp_path / "log"
    assert main(["--log", str(file), *argv]) == 1
    message = capfd.readouterr().err.removeprefix("pyoci: ").strip()
    assert message and file.read_text().count("\n") == 1
    assert f'msg="{message}"' in file.read_text()


def test_delete_force_of_nothing_succeeds(tmp_path: Path, capfd: Capture) -> None:
    assert main(["--root", str(tmp_path), "delete", "--force", "nope"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_gets_the_line_too(tmp_path: Path, capfd: Capture, form: str) -> None:
    file = tmp_path / "log"
    assert main(["--root", str(tmp_path), "--log", str(file), f"--log-format={form}", "state", "c"]) == 1
    assert capfd.readouterr().err == "pyoci: container 'c': container does not exist\n"
    written = file.read_text()
    if form == "json":
        record = json.loads(written)  # the whole file is one value: podman reads it so
        assert set(record) == {"level", "msg", "time"}
        assert record["level"] == "error"
        assert record["msg"] == "container 'c': container does not exist"
        assert datetime.fromisoformat(record["time"]).tzinfo is not None
    else:
        assert "level=error msg=\"container 'c': container does not exist\"" in written
    assert written.endswith("\n")


def test_json_without_a_file_is_json_on_stderr(tmp_path: Path, capfd: Capture) -> None:
    assert main(["--root", str(tmp_path), "--log-format", "json", "state", "c"]) == 1
    assert json.loads(capfd.readouterr().err)["level"] == "error"


def test_nothing_is_logged_on_success(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert main(["--root", str(tmp_path), "--log", str(file), "list"]) == 0
    assert file.read_text() == ""


def test_run_and_create_say_so(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: object) -> int:
        raise PyociError("because\nof \x1b[31mthis")

    monkeypatch.setattr("pyoci.container.run.run", fail)
    monkeypatch.setattr("pyoci.container.execute.exec_", fail)
    assert main(["run", "c"]) == 1
    assert capfd.readouterr().err == "pyoci run failed: because of \\x1b[31mthis\n"
    assert main(["exec", "c", "sh"]) == 255
    assert capfd.readouterr().err == "pyoci: exec failed: because of \\x1b[31mthis\n"


def test_a_bug_is_one_line_too(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: object) -> int:
        raise KeyError("surprise")

    monkeypatch.setattr("pyoci.container.run.run", broken)
    assert main(["run", "c"]) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("pyoci run failed: internal error: KeyError: 'surprise' (at test_cli.py:")
    assert shown.count("\n") == 1
    assert main(["--debug", "run", "c"]) == 1
    assert "Traceback" in capfd.readouterr().err


def test_interrupted(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyoci.container.run.run", interrupted)
    assert main(["run", "c"]) == 130
    assert capfd.readouterr().err == "pyoci run failed: interrupted\n"


def test_options_reach_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyoci.options import CreateOptions, ExecOptions

    seen: list[object] = []

    def see(options: object) -> int:
        seen.append(options)
        return 41 + len(seen)

    monkeypatch.setattr("pyoci.container.run.run", see)
    monkeypatch.setattr("pyoci.container.execute.exec_", see)
    monkeypatch.chdir(tmp_path)
    root = str(tmp_path / "root")
    assert main(["--root", "root", "run", "-d", "--pid-file=p", "--preserve-fds", "3", "c", "--keep"]) == 42
    created = seen[0]
    assert isinstance(created, CreateOptions)
    assert (created.root, created.id, created.bundle) == (root, "c", str(tmp_path))
    assert (created.pid_file, created.preserve_fds, created.detach, created.keep) == (f"{tmp_path}/p", 3, True, True)
    assert created.console_socket == ""
    argv = [
        "-u",
        "7:8",
        "-e",
        "A=1",
        "-e",
        "B=2",
        "-g",
        "3,4",
        "--cap",
        "CAP_KILL",
        "-t",
        "--cwd",
        "/x",
        "c",
        "sh",
        "-d",
    ]
    assert main(["--root", "root", "exec", *argv]) == 43
    executed = seen[1]
    assert isinstance(executed, ExecOptions)
    assert (executed.uid, executed.gid, executed.additional_gids) == (7, 8, (3, 4))
    assert (executed.env, executed.caps, executed.args) == (("A=1", "B=2"), ("CAP_KILL",), ("sh", "-d"))
    assert executed.tty
    assert not executed.detach


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(name: str, flag: str, capfd: Capture) -> None:
    assert main([name, flag]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    for long, *_ in COMMANDS[name][5]:
        assert f"--{long}" in shown.out


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_overview(argv: list[str], capfd: Capture) -> None:
    assert main(argv) == 0
    shown = capfd.readouterr().out
    for name in [*COMMANDS, *(f"--{flag[0]}" for flag in GLOBAL)]:
        assert name in shown


def test_help_of_a_command(capfd: Capture) -> None:
    assert main(["help", "kill"]) == 0
    assert "--all" in capfd.readouterr().out


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_version_is_what_engines_parse(flag: str, capfd: Capture) -> None:
    assert main([flag]) == 0
    first, second, third, *_ = capfd.readouterr().out.splitlines()
    assert first.startswith("pyoci version ") and second.startswith("commit: ")
    assert third == "spec: 1.3.0"


def test_every_command_has_a_module() -> None:
    from importlib.util import find_spec

    for name in COMMANDS:
        if name != "plan":
            assert find_spec(f"pyoci.commands.{name}") is not None
            assert callable(__import__(f"pyoci.commands.{name}", fromlist=["run"]).run)


def test_flags_are_unambiguous() -> None:
    for _, _, _, _, _, flags in [*COMMANDS.values(), ("", 0, 0, False, "", GLOBAL)]:
        names = [name for flag in flags for name in flag[:2] if name]
        assert len(names) == len(set(names))
        assert all(flag[2] in ("bool", "text", "count", "list") for flag in flags)


# The table of CVE-2026-30892, where `-u 1` became root, and its neighbours.
@pytest.mark.parametrize(
    ("text", "user"),
    [("1", (1, None)), ("1:2", (1, 2)), ("0", (0, None)), ("0:0", (0, 0)), ("4294967294:4294967294", (MAX_ID, MAX_ID))],
)
def test_users(text: str, user: tuple[int, int | None]) -> None:
    assert parse_user(text) == user


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:",
        ":2",
        "-1",
        "+1",
        "4294967295",
        "4294967296",
        "99999999999999999999",
        "01",
        "1 ",
        " 1",
        "a",
        "1:a",
        "1:2:3",
        "1:-1",
        "0x1",
        "1_0",
        "1:4294967295",
        "\u0661",
        "1\n",
        "root",
        "1:²",
    ],
)
def test_no_users(text: str) -> None:
    with pytest.raises(PyociError, match=r"bad [ug]id"):
        parse_user(text)


def test_ids_are_named_in_errors() -> None:
    with pytest.raises(PyociError, match='bad gid "x"'):
        parse_id("x", "gid")


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(".") == str(tmp_path)
    assert absolute("a//b/./c/") == f"{tmp_path}/a/b/c"
    assert absolute("/") == "/"
    assert absolute("/a/../b") == "/a/../b"


def test_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        assert main(["--root", str(tmp_path), "list"]) == 0
        assert main(["--root", "x", "list"]) == 1
    finally:
        os.chdir("/")
    assert "working directory that does not exist" in capfd.readouterr().err


def test_global_flags_are_recognised_by_engines_spelling() -> None:
    parsed = parse(GLOBAL, ["--log-format=json", "--log", "/l", "-systemd-cgroup", "create", "--bundle", "b"], True)
    assert parsed.args == ["create", "--bundle", "b"]
    assert parsed.flag("systemd-cgroup")


def test_prefixes_name_commands() -> None:
    assert set(cli.PREFIX) <= set(COMMANDS)
