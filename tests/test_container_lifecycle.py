"""A container's life, by the real command: create, state, start, kill, delete, run, and what is refused when."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from containers import LIMIT, Box, box, needed, processes_of, until  # noqa: F401 - box is a fixture

pytestmark = needed


def test_from_create_to_delete(box: Box) -> None:
    box.create("echo ran > /tmp/out; exec sleep 100")
    state = box.state()
    assert {name: state[name] for name in ("ociVersion", "id", "status", "bundle")} == {
        "ociVersion": box.config["ociVersion"], "id": box.id, "status": "created", "bundle": str(box.bundle),
    }  # fmt: skip
    assert state["pid"] in processes_of(box.id)
    assert not (box.rootfs / "tmp/out").exists()
    assert box.id in box.ok("list")
    assert "already" not in box.ok("start", box.id)
    assert box.output() == "ran\n"
    assert box.status() == "running"
    box.ok("kill", box.id, "KILL")
    until(lambda: box.status() == "stopped")
    assert box.state()["pid"] == 0
    box.ok("delete", box.id)
    box.gone()


def test_debug_tells_the_steps(box: Box) -> None:
    """One line each, with the pid that it is about; in the log, if there is one, and else on stderr."""
    box.process["args"] = ["sleep", "100"]
    box.write()
    log = box.folder / "log"
    words = ("--debug", "--log", str(log), "--log-format", "json")

    def told(*args: str) -> list[dict[str, object]]:
        log.unlink(missing_ok=True)
        # whoever waits for the end of the output would wait for the container
        done = subprocess.run(box.command(*words, *args), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE if args[0] != "create" else None, timeout=LIMIT, check=True)
        assert not done.stderr
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert {record["level"] for record in records} == {"debug"}
        assert records[0]["msg"] == f"pyoci {args[0]}"
        return records[1:]

    def pids(records: list[dict[str, object]], message: str) -> list[object]:
        return [record["pid"] for record in records if record["msg"] == message]

    made = told("create", "--bundle", str(box.bundle), box.id)
    pid = box.state()["pid"]
    assert next(record["msg"] for record in made) == "planned"
    assert pids(made, "the process is made") == pids(made, "created()") == [pid] != pids(made, "init is started")
    assert pids(told("start", box.id), "the program runs") == [pid]
    (changed,) = told("update", "--pids-limit", "9", box.id)
    assert (str(changed["msg"])[:6], changed["origin"]) == ("write(", "/linux/resources/pids/limit")
    assert [pids(told(name, box.id), word) for name, word in (("pause", "frozen"), ("resume", "thawed"))] == [[pid]] * 2
    joined = told("exec", box.id, "true")
    assert pids(joined, "joins") == [pid] and pids(joined, "the program runs") == pids(joined, "the process is made")
    assert pids(told("kill", box.id, "KILL"), "signal sent") == [pid]
    until(lambda: box.status() == "stopped")
    assert [record["msg"] for record in told("delete", box.id)] == ["removed"]
    box.gone()
    box.process["args"] = ["echo", "hi"]
    box.write()
    done = box("--debug", "run", "--bundle", str(box.bundle), box.id)
    assert (done.returncode, done.stdout) == (0, "hi\n")
    lines = done.stderr.splitlines()
    assert all(" level=debug msg=" in line for line in lines)
    assert any('msg="the program has ended"' in line and line.endswith(" status=0") for line in lines)


def test_an_id_can_be_used_again(box: Box) -> None:
    """By a container of another bundle, which has nothing of the first."""
    box.config["annotations"] = {"of": "the first"}
    first = box.start("exec sleep 100")
    box.ok("delete", "--force", box.id)
    box.gone()
    del box.config["annotations"]
    second = box.start("exec sleep 100")
    assert second != first and processes_of(box.id) == [second]
    assert not box.state().get("annotations")


def test_a_relative_bundle_is_an_absolute_path_in_the_state(box: Box) -> None:
    """runtime.md#state: also of --bundle's default, the working directory, where config.json is (bundle.md)."""
    box.process["args"] = ["sleep", "100"]
    box.write()
    null = subprocess.DEVNULL
    for words in (["--bundle", box.bundle.name], []):
        cwd = box.bundle if not words else box.folder
        command = box.command("create", *words, box.id)
        subprocess.run(command, check=True, cwd=cwd, stdin=null, stdout=null, stderr=null, timeout=LIMIT)
        assert box.state()["bundle"] == str(box.bundle)
        box.ok("delete", box.id)


def test_each_command_refuses_the_wrong_state(box: Box) -> None:
    for command in ("state", "start", "kill", "delete", "pause", "resume", "exec"):
        more = ["true"] if command == "exec" else []
        assert "does not exist" in box.fails(command, box.id, *more)
    box.ok("delete", "--force", box.id)
    box.create("exec sleep 100")
    assert "exists" in box.fails("create", "--bundle", str(box.bundle), box.id)
    assert box.status() == "created"
    box.ok("start", box.id)
    assert "cannot start an already running container" in box.fails("start", box.id)
    assert "not stopped" in box.fails("delete", box.id)
    assert box.status() == "running"
    assert "exists" in box.fails("run", "--bundle", str(box.bundle), box.id)
    box.ok("pause", box.id)
    assert box.status() == "paused"
    assert "paused" in box.fails("start", box.id)
    assert "paused" in box.fails("exec", box.id, "true")
    box.ok("resume", box.id)
    box.ok("kill", box.id, "KILL")
    until(lambda: box.status() == "stopped")
    assert "cannot start a container that has stopped" in box.fails("start", box.id)
    assert "container not running" in box.fails("kill", box.id, "TERM")
    assert "stopped" in box.fails("exec", box.id, "true")
    box.ok("delete", box.id)
    box.gone()


def test_created_container_can_be_deleted_and_killed(box: Box) -> None:
    box.create()
    box.ok("delete", box.id)
    box.gone()
    box.create()
    box.ok("kill", box.id, "KILL")
    until(lambda: box.status() == "stopped")
    box.ok("delete", box.id)
    box.gone()


def test_paused_container_is_deleted_by_force(box: Box) -> None:
    box.start()
    box.ok("pause", box.id)
    box.ok("delete", "--force", box.id)
    box.gone()


# the last: nobody in its namespace can kill process 1
@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$; exit 3", 3)])
def test_exit_status(box: Box, script: str, status: int) -> None:
    box.process["args"] = ["sh", "-c", script]
    box.write()
    assert box("run", "--bundle", str(box.bundle), box.id).returncode == status
    box.gone()


def test_death_by_signal_is_128_more(box: Box) -> None:
    box.process["args"] = ["sleep", "100"]
    box.write()
    run = subprocess.Popen(box.command("run", "--bundle", str(box.bundle), box.id), stdin=subprocess.DEVNULL)
    box.others.append(run)
    until(lambda: (box.states / box.id / "state.json").exists() and box.status() == "running")
    box.ok("kill", box.id, "KILL")
    assert run.wait(LIMIT) == 128 + signal.SIGKILL
    box.gone()


def test_run_passes_signals_on(box: Box) -> None:
    box.process["args"] = ["sh", "-c", "trap 'exit 7' USR1; echo up > /tmp/out; while :; do sleep 0.01; done"]
    box.write()
    run = subprocess.Popen(box.command("run", "--bundle", str(box.bundle), box.id), stdin=subprocess.DEVNULL)
    box.others.append(run)
    box.output()
    run.send_signal(signal.SIGUSR1)
    assert run.wait(LIMIT) == 7
    box.gone()


def test_run_detached_and_run_keep(box: Box) -> None:
    box.process["args"] = ["sh", "-c", "echo up > /tmp/out; exec sleep 100"]
    box.write()
    words = box.command("run", "-d", "--bundle", str(box.bundle), box.id)
    subprocess.run(words, check=True, timeout=LIMIT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert box.status() == "running"
    box.output()
    box.ok("delete", "--force", box.id)
    box.gone()
    box.process["args"] = ["true"]
    box.write()
    box.ok("run", "--keep", "--bundle", str(box.bundle), box.id)
    assert box.status() == "stopped"
    box.ok("delete", box.id)
    box.gone()


def test_standard_streams(box: Box) -> None:
    box.process["args"] = ["sh", "-c", "cat; echo error >&2; exit 3"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id, input="typed\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "typed\n", "error\n")


def test_changes_after_create_have_no_effect(box: Box) -> None:
    box.create("echo first > /tmp/out")
    box.process["args"] = ["sh", "-c", "echo second > /tmp/out"]
    box.write()
    box.ok("start", box.id)
    assert box.output() == "first\n"
    (box.bundle / "config.json").write_text("{")
    until(lambda: box.status() == "stopped")


def test_of_two_creates_one_wins(box: Box) -> None:
    box.process["args"] = ["sleep", "100"]
    box.write()
    words = box.command("create", "--bundle", str(box.bundle), box.id)
    for _ in range(3):
        rivals = []
        for number in range(3):
            with (box.folder / f"error{number}").open("w") as error:
                null = subprocess.DEVNULL
                rivals.append(subprocess.Popen(words, stdin=null, stdout=null, stderr=error))
        codes = [rival.wait(LIMIT) for rival in rivals]
        errors = [(box.folder / f"error{number}").read_text() for number in range(3)]
        assert sorted(code != 0 for code in codes) == [False, True, True], (codes, errors)
        assert all("exists" in text for code, text in zip(codes, errors, strict=True) if code)
        assert box.status() == "created"
        assert len(processes_of(box.id)) == 1
        box.ok("delete", "--force", box.id)
        box.gone()


def test_pid_file_has_no_newline(box: Box) -> None:
    file = box.folder / "pid"
    box.create("sleep 100", "--pid-file", str(file))
    assert file.read_text() == str(box.pid())


def test_program_that_is_not_there(box: Box) -> None:
    box.process["args"] = ["no-such-program"]
    box.write()
    error = box.fails("create", "--bundle", str(box.bundle), box.id)
    assert 'exec: "no-such-program": executable file not found in $PATH' in error
    box.gone()
    (box.rootfs / "bin/text").write_text("no program")
    (box.rootfs / "bin/text").chmod(0o755)
    box.process["args"] = ["/bin/text"]
    box.write()
    subprocess.run(box.command("create", "--bundle", str(box.bundle), box.id), check=True, stdin=subprocess.DEVNULL)
    assert "/bin/text" in box.fails("start", box.id)
    until(lambda: box.status() == "stopped")


def test_annotations_are_in_the_state(box: Box) -> None:
    box.config["annotations"] = {"org.example.key": "välue"}
    box.create()
    assert box.state()["annotations"] == {"org.example.key": "välue"}


@pytest.mark.parametrize(("text", "code"), [("SIGUSR1", 11), ("12", 22), ("", 33), ("SIGNOPE", 0)])
def test_the_images_stop_signal(box: Box, text: str, code: int) -> None:
    """config.md#annotations: the signal that SHOULD be sent to kill the container, where the caller names none."""
    box.config["annotations"] = {"org.opencontainers.image.stopSignal": text}
    traps = "trap 'exit 11' USR1; trap 'exit 22' USR2; trap 'exit 33' TERM; echo ready >/tmp/out; "
    box.process["args"] = ["sh", "-c", f"{traps} while :; do busybox sleep 0.05; done"]
    box.write()
    words = box.command("run", "--bundle", str(box.bundle), box.id)
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as running:
        box.output()
        if code:
            box.ok("kill", box.id)
        else:
            assert f'stopSignal: unknown signal "{text}"' in box.fails("kill", box.id)
            box.ok("kill", box.id, "TERM")
        assert running.wait(LIMIT) == (code or 33)


def test_failing_create_leaves_nothing(box: Box) -> None:
    mounts = list(box.config["mounts"])
    for words in (
        ("no-such-fs", "none"), ("bind", "/no/such/source", "bind"), ("tmpfs", "tmpfs", "no-such-option=1"),
    ):  # fmt: skip
        box.config["mounts"] = list(mounts)
        box.mount("/x", *words)
        file = box.folder / "pid"
        box.process["args"] = ["true"]
        box.write()
        error = box.fails("create", "--bundle", str(box.bundle), "--pid-file", str(file), box.id)
        assert f"/mounts/{len(box.config['mounts']) - 1}" in error
        assert not file.exists()
        box.gone()
    (box.bundle / "config.json").write_text('{"ociVersion": "1.0.0", "root": {"path": 7}, "process": {"cwd": "x"}}')
    error = box.fails("create", "--bundle", str(box.bundle), box.id)
    assert "/root/path" in error and "/process/args" in error
    box.gone()


def test_preserved_descriptors_and_no_others(box: Box) -> None:
    ours, theirs = os.pipe()
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    # 3 is to be kept; 4 and 9 are what an engine forgot to close
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 20); os.dup2(int(sys.argv[2]), 21); os.dup2(20, 3); "
        "os.dup2(21, 4); os.dup2(21, 9); os.execv(sys.argv[3], sys.argv[3:])"
    )
    box.process["args"] = ["sh", "-c", "ls /proc/self/fd; echo kept >&3"]
    box.write()
    for options, expected in (([], "0 1 2 3"), (["--preserve-fds", "1"], "0 1 2 3 4")):
        words = box.command("run", *options, "--bundle", str(box.bundle), box.id)
        done = subprocess.run(
            [sys.executable, "-c", script, str(theirs), str(leaked), *words],
            capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, pass_fds=(theirs, leaked),
            check=False,
        )  # fmt: skip
        # ls itself has one open: the directory
        assert done.stdout.split() == expected.split(), done
    os.close(theirs)
    assert os.read(ours, 100) == b"kept\n"
    os.close(ours)
    os.close(leaked)


def test_a_preserved_descriptor_that_is_not_open_is_an_error(box: Box) -> None:
    """Its number would be given to a descriptor of ours, below those that are closed before execve."""
    box.write()
    said = box.fails("run", "--preserve-fds", "40", "--bundle", str(box.bundle), box.id)
    assert "--preserve-fds: descriptor 3 is not open" in said
    box.gone()


def test_signals_are_as_at_boot(box: Box) -> None:
    box.process["args"] = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"]
    box.write()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        shown = box.ok("run", "--bundle", str(box.bundle), box.id)
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert [line.split()[1] for line in shown.splitlines()] == ["0" * 16, "0" * 16]


def test_waiting_container_costs_little(box: Box) -> None:
    box.create()
    status = Path(f"/proc/{box.pid()}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert rss <= 100
    assert processes_of(box.id) == [box.pid()]


def test_kill_all_reaches_a_shared_pid_namespace(box: Box) -> None:
    box.without("pid")
    box.start("sleep 200 & echo up > /tmp/out; exec sleep 100")
    box.output()
    assert len(processes_of(box.id)) == 2
    box.ok("kill", "--all", box.id, "KILL")
    until(lambda: processes_of(box.id) == [])
    assert box.status() == "stopped"
    box.ok("kill", "--all", box.id, "KILL")
    box.ok("delete", box.id)
    box.gone()


def test_killing_what_its_first_process_has_left(box: Box) -> None:
    """In a pid namespace of somebody else's they live on, and are the container's still."""
    box.without("pid")
    box.start("sleep 200 & echo up > /tmp/out; exec sleep 100")
    box.output()
    os.kill(box.pid(), signal.SIGKILL)
    until(lambda: box.status() == "stopped")
    assert "container not running" in box.fails("kill", box.id, "TERM")
    box.ok("kill", box.id, "KILL")
    until(lambda: processes_of(box.id) == [])
    assert "container not running" in box.fails("kill", box.id, "KILL")
    box.ok("delete", box.id)
    box.gone()


def test_socket_path_of_any_length(box: Box) -> None:
    deep = box.folder / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    box.states = deep
    box.start()
    assert box.status() == "running"
    assert not any(entry.name.startswith(box.id + "-") for entry in deep.iterdir())


def test_memory_of_time(box: Box) -> None:
    before = time.time()
    box.create()
    created = box.state()["created"]
    assert created.endswith("Z") and created[:10] == time.strftime("%Y-%m-%d", time.gmtime(before))


def test_list_json(box: Box) -> None:
    box.create()
    (shown,) = json.loads(box.ok("list", "--format", "json"))
    assert (shown["id"], shown["status"], shown["pid"]) == (box.id, "created", box.pid())
    assert box.ok("list", "-q").split() == [box.id]


def test_start_socket_is_not_the_containers(box: Box) -> None:
    """Once the program runs nobody listens any more."""
    box.start()
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(box.states / box.id, os.O_RDONLY)
    with pytest.raises(ConnectionRefusedError):
        asking.connect(f"/proc/self/fd/{folder}/start.sock")
    os.close(folder)
    asking.close()
