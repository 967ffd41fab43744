"""Hooks: what they get, how long they may take, and what is said when they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pyoci.errors import HookError, PyociError
from pyoci.hooks import OUTPUT_MAX, Hook, remembered, run_hooks, spawn

if TYPE_CHECKING:
    from pathlib import Path

    from pyoci.hooks import AnyHook

STATE = b'{"ociVersion": "1.3.0", "id": "c1"}'


def shell(script: str, *args: str, env: list[str] | None = None, timeout: int | None = None) -> Hook:
    return Hook({"path": "/bin/sh", "args": ["sh", "-c", script, *args], "env": env, "timeout": timeout})


def test_in_order_with_the_state_on_stdin(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hooks = [shell(f"echo {n} >>{out}; cat >>{out}; echo >>{out}") for n in range(3)]
    run_hooks("poststart", hooks, STATE)
    assert out.read_text() == "".join(f"{n}\n{STATE.decode()}\n" for n in range(3))


def test_exactly_the_arguments_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    out = tmp_path / "out"
    script = "import json, os, sys; print(json.dumps([sys.orig_argv, dict(os.environ)]))"
    for env in (None, [], ["A=1", "B=2=3", "C="]):
        hook = Hook(
            {"path": sys.executable, "args": ["me", "-I", "-c", script + "; sys.stdout.flush()", "x y"], "env": env}
        )
        target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def start(hook: AnyHook, stdin: int, output: int, target: int = target) -> int:
            return spawn(hook, stdin, target)

        run_hooks("poststart", [hook], STATE, start)
        os.close(target)
        argv, environment = json.loads(out.read_text())
        assert argv[0] == "me"
        assert argv[-1] == "x y"
        environment.pop("LC_CTYPE", None)  # CPython's own (PEP 538)
        assert environment == dict(entry.split("=", 1) for entry in env or [])


def test_without_arguments_it_gets_its_name(tmp_path: Path) -> None:
    program = tmp_path / "hook"
    program.write_text(f'#!/bin/sh\necho "$0 $#" >{tmp_path}/out\n')
    program.chmod(0o755)
    run_hooks("poststart", [Hook({"path": str(program)})], STATE)
    assert (tmp_path / "out").read_text() == f"{program} 0\n"


def test_a_long_state_that_nobody_reads() -> None:
    run_hooks("poststart", [shell("exit 0")], b"x" * 10_000_000)


def test_a_long_state_that_somebody_reads(tmp_path: Path) -> None:
    run_hooks("poststart", [shell(f"wc -c >{tmp_path}/out")], b"x" * 10_000_000)
    assert int((tmp_path / "out").read_text()) == 10_000_000


def test_the_state_cannot_be_written() -> None:
    with pytest.raises(HookError, match="exit status 7"):
        run_hooks("poststart", [shell("echo x >&0 || exit 7")], STATE)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (Hook({"path": "/nohook"}), "/nohook: no such file or directory"),
        (Hook({"path": "/"}), "/: permission denied"),
        (shell("exit 3"), "/bin/sh: exit status 3 after 0."),
        (shell("kill -9 $$"), "/bin/sh: killed by SIGKILL after 0."),
        (shell("echo the reason >&2; exit 1"), "s: the reason"),
        (shell("echo the reason; exit 1"), "s: the reason"),
    ],
)
def test_failures(hook: Hook, words: str) -> None:
    with pytest.raises(HookError) as caught:
        run_hooks("createRuntime", [shell("exit 0"), hook, shell("exit 9")], STATE)
    assert str(caught.value).startswith("error running createRuntime hook #1: /hooks/createRuntime/1: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_the_end_of_its_output_is_kept() -> None:
    with pytest.raises(HookError) as caught:
        run_hooks("prestart", [shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1")], STATE)
    text = str(caught.value)
    assert text.endswith("x the end")
    assert OUTPUT_MAX < len(text) < OUTPUT_MAX + 200


def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    with pytest.raises(HookError):
        run_hooks("prestart", [shell("exit 1"), shell(f"touch {tmp_path}/ran")], STATE)
    assert not (tmp_path / "ran").exists()


def test_tolerated_failures_are_warnings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hooks = [shell("exit 1"), Hook({"path": "/nohook"}), shell(f"touch {tmp_path}/ran")]
    run_hooks("poststop", hooks, STATE, tolerate=True)
    assert (tmp_path / "ran").exists()
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("pyoci: warning: error running poststop hook #0: ")
    assert "no such file or directory" in second


@pytest.mark.parametrize(
    "script", ["exec sleep 100", "sleep 100", "while :; do echo x; done", "trap '' TERM; sleep 100"]
)
def test_time_runs_out(script: str) -> None:
    began = time.monotonic()
    with pytest.raises(HookError, match=r"ran out of time .* after [1-9]\d?\.\d+ s"):
        run_hooks("prestart", [shell(script, timeout=1)], STATE)
    assert 1 <= time.monotonic() - began < 50


def test_what_a_late_hook_started_dies_with_it(tmp_path: Path) -> None:
    with pytest.raises(HookError):
        run_hooks("prestart", [shell(f"sleep 100 & echo $! >{tmp_path}/pid; wait", timeout=1)], STATE)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    pytest.fail("still there")


def test_a_timeout_that_is_not_reached() -> None:
    for timeout in (100, 2**31 // 1000 + 1, 2**31, 2**63 - 1):  # poll(2) counts milliseconds in 31 bits
        run_hooks("prestart", [shell("exit 0", timeout=timeout)], STATE)


def test_a_daemon_does_not_hold_us_up(tmp_path: Path) -> None:
    began = time.monotonic()
    run_hooks("prestart", [shell(f"sleep 100 & echo $! >{tmp_path}/pid")], STATE)
    assert time.monotonic() - began < 50
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_nothing_of_ours_is_inherited(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        script = f"ls /proc/self/fd >{tmp_path}/fds; cat /proc/self/status >{tmp_path}/status"
        run_hooks("prestart", [shell(script, env=["PATH=/bin:/usr/bin"])], STATE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(reader)
        os.close(writer)
    assert (tmp_path / "fds").read_text().split() == ["0", "1", "2", "3"]  # 3 is ls's own
    fields = dict(line.split(":\t", 1) for line in (tmp_path / "status").read_text().splitlines())
    # 32 and 33 are the C library's own, which it lets nobody reset
    assert int(fields["SigIgn"], 16) & ~(3 << 31) == 0
    assert int(fields["SigBlk"], 16) == 0


def test_another_way_to_start_them() -> None:
    started: list[str] = []

    def start(hook: AnyHook, stdin: int, output: int) -> int:
        started.append(hook.path)
        with os.fdopen(os.dup(stdin), "rb") as file:
            assert file.read() == STATE
        return spawn(shell("echo said elsewhere; exit 4"), stdin, output)

    with pytest.raises(HookError, match=r"/elsewhere: exit status 4 after .*: said elsewhere"):
        run_hooks("startContainer", [Hook({"path": "/elsewhere"})], STATE, start)
    assert started == ["/elsewhere"]

    def refuse(hook: AnyHook, stdin: int, output: int) -> int:
        raise PyociError("setns: no such process")

    with pytest.raises(HookError, match=r"#0: .*: setns: no such process"):
        run_hooks("startContainer", [Hook({"path": "/elsewhere"})], STATE, refuse)


def test_interrupted_hooks_do_not_stay(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]!r}
from pyoci.hooks import Hook, run_hooks
args = ["sh", "-c", "echo $$ >{tmp_path}/pid; exec sleep 100"]
run_hooks("prestart", [Hook({{"path": "/bin/sh", "args": args}})], b"")
"""
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 30
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) != 0
    assert not os.path.exists(f"/proc/{int((tmp_path / 'pid').read_text())}")


def test_no_descriptor_is_left() -> None:
    before = set(os.listdir("/proc/self/fd"))
    run_hooks("prestart", [shell("exit 0")] * 3, STATE)
    run_hooks("poststop", [shell("exit 1"), Hook({"path": "/nohook"})], STATE, tolerate=True)
    assert set(os.listdir("/proc/self/fd")) == before


def test_remembered() -> None:
    raw = {"poststop": [{"path": "/x", "args": ["x", "y"], "timeout": 3}, {"path": "/z"}]}
    first, second = remembered(raw, "poststop")
    assert (first.path, first.args, first.env, first.timeout) == ("/x", ["x", "y"], None, 3)
    assert (second.path, second.args, second.env, second.timeout) == ("/z", (), None, None)
    assert remembered(raw, "poststart") == []
