"""A drop-in's command line: all flags of other runtimes are taken, or refused for a reason that is written down.

`data/flags.txt` is the list; where runc and crun are installed, their own help is compared with it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Box, box, needed, until  # noqa: F401 - box is a fixture

from pyoci import cli
from pyoci.errors import UsageError

LIST = Path(__file__).parent / "data/flags.txt"
# commands that are no part of a container's life, or of their own making
OURS = {"plan", "validate"}


def listed() -> Iterator[tuple[str, str, str]]:
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            command, flag, verdict = line.split(" ", 2)
            yield command, flag, verdict


def flags_of(command: str) -> dict[str, cli.Flag]:
    table = cli.GLOBAL if command == "-" else cli.COMMANDS[command][5]
    return {flag[0]: flag for flag in table}


@pytest.mark.parametrize(("command", "flag", "verdict"), list(listed()))
def test_a_flag_of_theirs(command: str, flag: str, verdict: str) -> None:
    table = cli.GLOBAL if command == "-" else cli.COMMANDS[command][5]
    if flag == "-":
        return  # the command is there, and needs no flag
    kind = flags_of(command).get(flag, ("", "", "", "", ""))[2]
    words = [f"--{flag}"] if kind == "bool" else [f"--{flag}", "1"]
    if verdict == "yes":
        assert flag in cli.parse(table, words, True).values
    else:
        assert verdict.startswith("no: ")
        with pytest.raises(UsageError, match="not defined"):
            cli.parse(table, words, True)


def test_all_of_ours_are_on_the_list() -> None:
    """What only pyoci has is written down as well, in the list's own words: or it could vanish unseen."""
    names = {(command, flag) for command, flag, _ in listed()}
    for command in cli.COMMANDS.keys() - OURS:
        missing = [flag for flag in flags_of(command) if (command, flag) not in names]
        assert missing == [], command


def helps(program: str, *words: str) -> set[str]:
    """Long flags in what a program's help says, its aliases left out."""
    done = subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=False, timeout=30)
    return set(re.findall(r"^ +(?:-., )?--([a-z][a-z0-9-]+)", done.stdout, re.MULTILINE)) - {"help", "usage"}


@pytest.mark.parametrize("program", ["runc", "crun"])
def test_the_list_has_all_that_is_installed(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    known = {(command, flag) for command, flag, _ in listed()}
    for command in ("-", *cli.COMMANDS.keys() - OURS):
        shown = helps(program) if command == "-" else helps(program, command)
        if command == "features" or (command, program) == ("update", "runc"):
            shown = {flag for flag in shown if flag != "version"}
        assert {(command, flag) for flag in shown} - known == set(), (program, command)
    assert helps(program, "create") > {"bundle", "pid-file"}


def test_dockers_parser_of_version() -> None:
    """moby looks for the word "version" in the first line, and for "commit:" at the beginning of one."""
    from pyoci import VERSION
    from pyoci.commands.version import sources

    done = subprocess.run(
        ["python3", "-P", "-c", "from pyoci.cli import main; main(['--version'])"],
        capture_output=True, text=True, check=False, cwd="/",
        env={"PYTHONPATH": str(Path(cli.__file__).parent.parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == f"pyoci version {VERSION}"
    assert lines[1] == f"commit: {VERSION}+{sources()}"
    assert re.fullmatch(r"spec: 1\.[0-9]+\.[0-9]+", lines[2])


@pytest.mark.root
class TestContainers:
    pytestmark = needed

    def test_many_at_once(self, box: Box) -> None:  # noqa: F811
        a, b, c = box.new_id() + "-a", box.new_id() + "-b", box.id
        box.ids += [a, b]
        for id in (a, b, c):
            box.create("exec sleep 100", id=id)
            box.ok("start", id)
        box.ok("kill", "--regex", "[-][ab]$", "KILL")
        until(lambda: {box.state(id)["status"] for id in (a, b)} == {"stopped"})
        assert box.state(c)["status"] == "running"
        assert "not a regular expression" in box.fails("delete", "--regex", "(")
        done = box("delete", "--regex", "pyoci-test")
        assert done.returncode == 0 and f"{c} that is not stopped" in done.stderr
        assert json.loads(box.ok("list", "--format", "json"))[0]["id"] == c
        assert box.ok("delete", "--regex", "--force", "pyoci-test") == ""
        for id in (a, b, c):
            box.gone(id)
        assert box.ok("delete", "--regex", "pyoci-test") == ""

    def test_another_configuration(self, box: Box) -> None:  # noqa: F811
        box.process["args"] = ["echo", "other"]
        box.write()
        (box.bundle / "config.json").rename(box.bundle / "other.json")
        run = ("run", "--bundle", str(box.bundle))
        assert box.ok(*run, "--config", "other.json", box.id) == "other\n"
        assert box.ok(*run, "-f", str(box.bundle / "other.json"), box.id) == "other\n"
        assert "none.json not found" in box.fails(*run, "-f", "none.json", box.id)
        # and later commands know it
        box.process["args"] = ["sleep", "100"]
        (box.bundle / "other.json").write_text(json.dumps(box.config))
        words = box.command("create", "--bundle", str(box.bundle), "--config", "other.json", "--no-subreaper", box.id)
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=30)
        box.ok("start", box.id)
        assert box.exec("echo", "in") == "in\n"

    def test_signals_by_every_name(self, box: Box) -> None:  # noqa: F811
        box.start("trap 'echo got >> /tmp/out' USR1 34; echo ready > /tmp/ready; while :; do sleep 0.01; done")
        box.output("ready")
        for word in ("USR1", "sigusr1", "SIGUSR1", "10", "34", "RTMIN", "sigrtmin"):
            (box.rootfs / "tmp/out").unlink(missing_ok=True)
            box.ok("kill", box.id, word)
            assert box.output() == "got\n", word
        box.ok("kill", box.id, "0")
        for word in ("SIGNOPE", "65", "-1", "", "RTMIN+31", "1e1", "9 "):
            assert "unknown signal" in box.fails("kill", box.id, word), word

    def test_specs_name(self, box: Box) -> None:  # noqa: F811
        box.ok("spec", "--bundle", str(box.bundle), "--file", "mine.json")
        assert json.loads((box.bundle / "mine.json").read_text())["ociVersion"]

    def test_an_engines_global_flags(self, box: Box) -> None:  # noqa: F811
        log = str(box.folder / "log")
        words = ("--criu", "/usr/sbin/criu", "--rootless=auto", "--log", log, "--log-format", "json")
        box.create("exec sleep 100")
        assert json.loads(box.ok(*words, "state", box.id))["id"] == box.id
        assert box("list", "-q").stdout == box.id + "\n"
        (pid,) = json.loads(box.ok("ps", "--format", "json", box.id))
        table = box.ok("ps", box.id, "-e", "-o", "pid,comm").splitlines()
        assert table[0].split() == ["PID", "COMMAND"] and [line.split()[0] for line in table[1:]] == [str(pid)]
