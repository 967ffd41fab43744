"""The commands that need no plan: state, kill, delete, list, ps, pause, resume, spec; on states made by hand."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pyoci
from pyoci import log, signals
from pyoci.__main__ import OPTIONS, START
from pyoci.cli import main
from pyoci.commands import spec as specifying
from pyoci.commands.list import table
from pyoci.commands.ps import chosen
from pyoci.container import teardown
from pyoci.errors import PyociError
from pyoci.state import State, Store, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Capture = pytest.CaptureFixture[str]

PATHS = [path for path in sys.path if path]


class Root:
    """A directory of states, and commands on it."""

    def __init__(self, path: str, capture: Capture) -> None:
        self.path = path
        self.capture = capture
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        status = main(["--root", self.path, *argv])
        shown = self.capture.readouterr()
        return status, shown.out, shown.err

    def add(self, id: str, phase: str = "running", command: tuple[str, ...] = ("sleep", "100"), **more: Any) -> State:
        """A container whose init is `command`, our child."""
        child = subprocess.Popen(command)
        self.processes.append(child)
        found = process(child.pid)
        assert found is not None
        state = State(
            id,
            "/b",
            "/b/rootfs",
            pid=child.pid,
            pid_start=found[1],
            phase=phase,
            listen=False,
            oci_version="1.3.0",
            created="2026-01-01T00:00:00.000000001Z",
            namespaces=["pid"],
            **more,
        )
        store = Store.create(self.path, id)
        store.save(state)
        store.close()
        return state


@pytest.fixture
def root(tmp_path: Path, capfd: Capture) -> Iterator[Root]:
    made = Root(str(tmp_path / "root"), capfd)
    yield made
    for child in made.processes:
        child.kill()
        child.wait()
    log.configure()


def ended(root: Root, index: int = 0) -> int:
    return root.processes[index].wait(10)


def test_state(root: Root) -> None:
    state = root.add("c1", annotations={"k": "v"})
    status, out, err = root("state", "c1")
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "ociVersion": "1.3.0",
        "id": "c1",
        "pid": state.pid,
        "status": "running",
        "bundle": "/b",
        "rootfs": "/b/rootfs",
        "created": "2026-01-01T00:00:00.000000001Z",
        "annotations": {"k": "v"},
        "owner": "root",
    }
    root.processes[0].kill()
    ended(root)
    shown = json.loads(root("state", "c1")[1])
    assert (shown["status"], shown["pid"]) == ("stopped", 0)


@pytest.mark.parametrize("name", ["", "TERM", "sigterm", "15"])
def test_kill(root: Root, name: str) -> None:
    root.add("c1")
    assert root("kill", "c1", *([name] if name else [])) == (0, "", "")
    assert ended(root) == -signal.SIGTERM


def test_kill_with_nothing(root: Root) -> None:
    root.add("c1")
    assert root("kill", "c1", "0")[0] == 0
    assert root.processes[0].poll() is None


def test_kill_of_what_has_stopped(root: Root) -> None:
    root.add("c1")
    root.processes[0].kill()
    ended(root)
    before = root("state", "c1")
    status, _, err = root("kill", "c1", "KILL")
    assert status == 1
    assert "container not running" in err
    assert root("kill", "--all", "c1", "9") == (0, "", "")
    assert root("kill", "c1", "9", "-a") == (0, "", "")
    assert root("state", "c1") == before


def test_kill_never_hits_another_process(root: Root) -> None:
    """The same pid with another start time is somebody else."""
    state = root.add("c1")
    store = Store.open(root.path, "c1")
    state.pid_start -= 1
    store.save(state)
    store.close()
    assert root("kill", "c1", "KILL")[0] == 1
    assert root("delete", "--force", "c1")[0] == 0
    assert root.processes[0].poll() is None


def test_kill_works_while_another_command_waits(root: Root) -> None:
    root.add("c1")
    store = Store.open(root.path, "c1")
    store.lock()
    assert root("kill", "c1", "KILL")[0] == 0
    assert ended(root) == -signal.SIGKILL
    store.close()


def test_delete_of_what_runs(root: Root) -> None:
    root.add("c1")
    status, _, err = root("delete", "c1")
    assert status == 1
    assert err == "pyoci: cannot delete container c1 that is not stopped: running; kill it first, or use --force\n"
    assert root.processes[0].poll() is None
    assert root("delete", "-f", "c1") == (0, "", "")
    assert ended(root) == -signal.SIGKILL
    assert os.listdir(root.path) == []


def test_delete_of_what_was_never_started(root: Root) -> None:
    root.add("c1", phase="created")
    assert root("delete", "c1")[0] == 0
    assert ended(root) == -signal.SIGKILL


def test_delete_runs_poststop_hooks(root: Root, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hooks = [{"path": "/nohook"}, {"path": "/bin/sh", "args": ["sh", "-c", f"cat >{out}"]}]
    root.add("c1", hooks={"poststop": hooks})
    status, _, err = root("delete", "--force", "c1")
    assert status == 0
    assert err.startswith("pyoci: warning: error running poststop hook #0")
    assert json.loads(out.read_text())["status"] == "stopped"
    assert os.listdir(root.path) == []


def killed_at_once(store: Store) -> None:
    """create was killed between mkdir and the first write."""


def killed_while_writing(store: Store) -> None:
    with open(f"{store.path}/.state.json.new", "wb") as file:
        file.write(b'{"id":')


def killed_before_clone(store: Store) -> None:
    store.save(State("c1", "/b", "/r", cgroup_paths={}))


def killed_with_more_files(store: Store) -> None:
    killed_before_clone(store)
    for name in ("config.json", "inputs.json", "start.sock"):
        store.write(name, b"")


DEBRIS = [killed_at_once, killed_while_writing, killed_before_clone, killed_with_more_files]


@pytest.mark.parametrize("leave", DEBRIS)
@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_delete_of_what_a_killed_create_left(root: Root, leave: Callable[[Store], None], flags: list[str]) -> None:
    store = Store.create(root.path, "c1")
    leave(store)
    store.close()
    assert root("run", "-b", "/nonexistent", "c1")[0] == 1
    assert root("list")[0] == 0
    assert root("kill", "c1")[0] == 1
    assert root("delete", *flags, "c1") == (0, "", "")
    assert os.listdir(root.path) == []


def test_delete_of_a_create_that_was_killed_with_its_process_alive(root: Root) -> None:
    root.add("c1", phase="creating")
    assert json.loads(root("state", "c1")[1])["status"] == "stopped"
    assert root("delete", "c1")[0] == 0
    assert ended(root) == -signal.SIGKILL


def test_a_killed_delete_can_be_repeated(root: Root) -> None:
    """Killed at every system call that changes something in the directory."""
    for calls in range(1, 6):
        store = Store.create(root.path, "c1")
        store.save(State("c1", "/b", "/r"))
        for name in ("a", "b"):
            store.write(name, b"")
        store.close()
        script = f"""
import sys; sys.path[:0] = {PATHS!r}
import os, posix
left = {calls}
def counted(call):
    def now(*args, **names):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), 9)
        return call(*args, **names)
    return now
posix.unlink, posix.rmdir = counted(posix.unlink), counted(posix.rmdir)
from pyoci.cli import main
sys.exit(main(["--root", {root.path!r}, "delete", "c1"]))
"""
        done = subprocess.run([sys.executable, "-c", script], check=False)
        assert done.returncode == (-9 if calls < 5 else 0)
        assert root("delete", "--force", "c1")[0] == 0
        assert os.listdir(root.path) == []


def test_delete_waits_for_others(root: Root) -> None:
    root.add("c1")
    store = Store.open(root.path, "c1")
    store.lock()
    timer = threading.Timer(0.3, store.close)
    timer.start()
    began = time.monotonic()
    assert root("delete", "--force", "c1")[0] == 0
    assert time.monotonic() - began > 0.25
    timer.join()


def test_many_deletes_at_once(root: Root) -> None:
    for _ in range(5):
        root.add("c1")
        command = [sys.executable, "-c", f"import sys; sys.path[:0] = {PATHS!r}; from pyoci.cli import main; "]
        command[-1] += f"sys.exit(main(['--root', {root.path!r}, 'delete', '--force', 'c1']))"
        racers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
        for racer in racers:
            _, err = racer.communicate(timeout=30)
            assert (racer.returncode, err) == (0, b"")
        assert os.listdir(root.path) == []


def test_a_process_that_does_not_die(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.add("c1")
    monkeypatch.setattr(teardown, "PATIENCE", 0.05)
    monkeypatch.setattr(signals, "send", lambda pidfd, number: None)
    status, _, err = root("delete", "--force", "c1")
    assert status == 1
    assert "did not end" in err
    assert os.listdir(root.path) == ["c1"]


def test_list(root: Root) -> None:
    for id in ("b", "a-much-longer-name"):
        root.add(id)
    assert root("list", "-q") == (0, "a-much-longer-name\nb\n", "")
    status, out, err = root("list")
    head, first, second = out.splitlines()
    assert (status, err) == (0, "")
    assert head.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert first.split()[:3] == ["a-much-longer-name", str(root.processes[1].pid), "running"]
    assert first.index("running") == second.index("running") == head.index("STATUS")
    status, out, err = root("list", "--format", "json")
    assert out.count("\n") == 1
    assert [entry["id"] for entry in json.loads(out)] == ["a-much-longer-name", "b"]
    assert list(json.loads(out)[0]) == ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"]


def test_list_goes_on_when_something_is_broken(root: Root) -> None:
    root.add("good")
    for id, data in (("damaged", b"{"), ("empty", None)):
        store = Store.create(root.path, id)
        if data:
            store.write("state.json", data)
        store.close()
    os.chmod(os.path.join(root.path, Store.create(root.path, "open").id), 0o777)
    status, out, err = root("list", "-q")
    assert (status, out) == (0, "good\n")
    assert len(err.splitlines()) == 3
    for words in ("damaged/state.json is damaged", "creation was cut off", "open is writable by others"):
        assert words in err


@pytest.mark.parametrize("then", ["locked", "written", "deleted"])
def test_list_beside_a_create(root: Root, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """Between mkdir and flock nothing says that somebody is at work."""
    store = Store.create(root.path, "new")

    def meanwhile(seconds: float) -> None:
        if then == "locked":
            store.lock()
        elif then == "written":
            store.write("creating.json", b"{}")
        else:
            os.rmdir(store.path)

    monkeypatch.setattr("pyoci.commands.list.sleep", meanwhile)
    assert root("list", "-q") == (0, "", "")
    store.close()


def test_list_of_nothing(root: Root, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Capture) -> None:
    status, _, err = root("list")
    assert status == 1
    assert err == f"pyoci: open {root.path}: no such file or directory\n"
    monkeypatch.setattr("pyoci.directory.default_root", lambda: str(tmp_path / "none"))
    assert main(["list", "-f", "json"]) == 0
    assert capfd.readouterr().out == "[]\n"
    assert main(["list", "-q"]) == 0
    assert capfd.readouterr().out == ""


def test_tables_are_not_for_drawing() -> None:
    assert table([["A", "B"], ["\x1b[31m", "x"]]) == "A           B\n\\x1b[31m    x\n"


def test_chosen_lines() -> None:
    text = b"UID  PID PPID CMD\nroot 10 1 a\nroot 1 10 b 10\nroot 100 1 c\n\n"
    assert chosen(text, frozenset({10})) == b"UID  PID PPID CMD\nroot 10 1 a\n"
    with pytest.raises(PyociError, match="no column PID"):
        chosen(b"CMD\na\n", frozenset({10}))


def freezers() -> list[tuple[str, str]]:
    """Where a cgroup that can be frozen can be made: (controller, directory)."""
    found = []
    for controller, directory in (("freezer", "/sys/fs/cgroup/freezer"), ("", "/sys/fs/cgroup/unified")):
        if os.path.exists(f"{directory}/cgroup.procs"):
            found.append((controller, directory))
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        found.append(("", "/sys/fs/cgroup"))
    return found


@pytest.fixture(params=["freezer", ""], ids=["v1", "v2"])
def cgroup(request: pytest.FixtureRequest, root: Root) -> Iterator[dict[str, str]]:
    base = dict(freezers()).get(request.param)
    if base is None or not os.access(base, os.W_OK):
        pytest.skip(f"there is no writable cgroup hierarchy of {request.param or 'v2'} here")
    path = f"{base}/pyoci-test-{os.getpid()}"
    os.mkdir(path)
    yield {request.param: path}
    if os.path.isdir(path):
        for file, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if os.path.exists(f"{path}/{file}"):
                with open(f"{path}/{file}", "w", encoding="ascii") as control:
                    control.write(word)
        for child in root.processes:
            child.kill()
            child.wait()
        os.rmdir(path)


def join(cgroup: dict[str, str], pid: int) -> None:
    for path in cgroup.values():
        with open(f"{path}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(pid))


@pytest.mark.root
def test_pause_and_resume(root: Root, cgroup: dict[str, str]) -> None:
    state = root.add("c1", cgroup_paths=cgroup, cgroup_created=list(cgroup.values()))
    join(cgroup, state.pid)
    assert root("resume", "c1") == (1, "", "pyoci: container 'c1': container not paused\n")
    assert root("pause", "c1") == (0, "", "")
    assert json.loads(root("state", "c1")[1])["status"] == "paused"
    assert root("pause", "c1") == (1, "", "pyoci: container 'c1': container not running\n")
    assert "that is not stopped: paused" in root("delete", "c1")[2]
    assert root("resume", "c1") == (0, "", "")
    assert json.loads(root("state", "c1")[1])["status"] == "running"
    status, out, _ = root("ps", "--format", "json", "c1")
    assert (status, json.loads(out)) == (0, [state.pid])
    head, line = root("ps", "c1")[1].splitlines()
    assert "PID" in head
    assert "sleep 100" in line
    assert root("ps", "c1", "-o", "pid,args")[1].splitlines()[1].split() == [str(state.pid), "sleep", "100"]
    status, out, err = root("ps", "c1", "--nonsense")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("pyoci: ps --nonsense: ") and err.endswith(" (exit status 1)\n")


@pytest.mark.root
@pytest.mark.parametrize("words", [("kill", "c1", "KILL"), ("kill", "--all", "c1", "9"), ("delete", "--force", "c1")])
def test_even_paused_containers_die(root: Root, cgroup: dict[str, str], words: tuple[str, ...]) -> None:
    state = root.add("c1", cgroup_paths=cgroup, cgroup_created=list(cgroup.values()))
    join(cgroup, state.pid)
    assert root("pause", "c1")[0] == 0
    assert root(*words)[0] == 0
    assert ended(root) == -signal.SIGKILL


@pytest.mark.root
def test_a_cgroup_that_is_gone(root: Root, cgroup: dict[str, str]) -> None:
    """systemd takes a scope's away when its last process has ended, and engines' commands may come after that."""
    root.add("c1", cgroup_paths=cgroup, cgroup_created=list(cgroup.values()))
    (path,) = cgroup.values()
    os.rmdir(path)
    status, _, error = root("pause", "c1")
    assert (status, error.count("\n")) == (1, 1)
    assert f'config-linux.md#cgroups-path: write("{path}/' in error and "the cgroup is gone" in error
    assert root("kill", "--all", "c1", "USR1") == (0, "", "")
    for child in root.processes:
        child.kill()
        child.wait()
    assert root("pause", "c1") == (1, "", "pyoci: container 'c1': container not running\n")
    for number in ("TERM", "KILL"):
        assert root("kill", "--all", "c1", number) == (0, "", "")
    assert root("delete", "c1") == (0, "", "")


@pytest.mark.root
def test_delete_kills_and_removes_what_is_in_the_cgroup(root: Root, cgroup: dict[str, str]) -> None:
    (path,) = cgroup.values()
    root.add("c1", cgroup_paths=cgroup, cgroup_created=[path])
    os.mkdir(f"{path}/below")
    with subprocess.Popen(["sleep", "100"]) as other:
        join({"": f"{path}/below"}, other.pid)
        assert root("delete", "-f", "c1") == (0, "", "")
        assert other.wait(10) == -signal.SIGKILL
    assert not os.path.exists(path)


@pytest.mark.root
def test_kill_all_reaches_the_rest(root: Root, cgroup: dict[str, str]) -> None:
    """Also when init has ended, which in a shared pid namespace the others survive."""
    state = root.add("c1", cgroup_paths=cgroup, cgroup_created=list(cgroup.values()))
    join(cgroup, state.pid)
    with subprocess.Popen(["sleep", "100"]) as other:
        join(cgroup, other.pid)
        assert root("kill", "--all", "c1", "USR1")[0] == 0
        assert ended(root) == -signal.SIGUSR1
        assert other.wait(10) == -signal.SIGUSR1
    with subprocess.Popen(["sleep", "100"]) as other:
        join(cgroup, other.pid)
        assert root("kill", "--all", "c1", "9")[0] == 0
        assert other.wait(10) == -signal.SIGKILL


@pytest.mark.root
def test_unrecorded_cgroups_go_if_they_are_empty(root: Root, cgroup: dict[str, str]) -> None:
    (path,) = cgroup.values()
    store = Store.create(root.path, "c1")
    store.save(State("c1", "/b", "/r", cgroup_paths=cgroup))
    store.close()
    with subprocess.Popen(["sleep", "0.3"]) as leaving:
        join(cgroup, leaving.pid)
        waiter = threading.Thread(target=leaving.wait)
        waiter.start()
        assert root("delete", "c1") == (0, "", "")
        waiter.join()
        assert leaving.returncode == 0
    assert not os.path.exists(path)


def test_spec(tmp_path: Path, capfd: Capture) -> None:
    assert main(["spec", "-b", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == specifying.default(specifying._cgroup2())
    process = written["process"]
    assert process["args"] == ["sh"]
    assert process["terminal"] is True
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}  # CVE-2022-29162
    assert written["root"] == {"path": "rootfs", "readonly": True}
    assert main(["spec", "-b", str(tmp_path)]) == 1
    assert "exists" in capfd.readouterr().err
    assert main(["spec", "-b", str(tmp_path / "none")]) == 1
    assert "no such file or directory" in capfd.readouterr().err


def test_spec_on_a_disk_that_is_full(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(specifying, "write_all", full)
    assert main(["spec", "-b", str(tmp_path)]) == 1
    assert capfd.readouterr().err == f"pyoci: write {tmp_path}/config.json: no space left on device\n"
    assert os.listdir(tmp_path) == []


def test_plan_for_a_reader_that_has_gone_away(tmp_path: Path) -> None:
    """`pyoci plan | head` is no error; nor is a bundle whose path is no text."""
    bundle = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(bundle)
    os.mkdir(bundle + b"/rootfs")
    (tmp_path / "config.json").write_text(json.dumps(specifying.default(False)))
    os.rename(tmp_path / "config.json", bundle + b"/config.json")
    packages = str(Path(str(pyoci.__file__)).parent.parent)
    words = [sys.executable, *OPTIONS, "-c", START, packages, packages]
    for command in (["plan", "-b"], ["plan", "-f", "json", "-b"], ["validate"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([*words, *command, bundle], stdout=writing, stderr=subprocess.PIPE, check=False)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b""), command
    shown = subprocess.run([*words, "plan", "-b", bundle], capture_output=True, check=True).stdout
    assert b"xe9/rootfs" in shown


def test_the_cgroup_namespace_is_for_v2() -> None:
    kinds = [[entry["type"] for entry in specifying.default(v2)["linux"]["namespaces"]] for v2 in (False, True)]
    assert kinds == [["pid", "network", "ipc", "uts", "mount"], ["pid", "network", "ipc", "uts", "mount", "cgroup"]]


def test_rootless_spec() -> None:
    spec = specifying.rootless(specifying.default(False), 1000, 100)
    linux = spec["linux"]
    assert [entry["type"] for entry in linux["namespaces"]] == ["pid", "ipc", "uts", "mount", "user"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": 100, "size": 1}]
    assert "resources" not in linux
    options = {mount["destination"]: mount.get("options", []) for mount in spec["mounts"]}
    assert "gid=5" not in options["/dev/pts"]
    assert options["/sys"][0] == "rbind"


@pytest.mark.parametrize("rootless", [False, True])
def test_specs_are_valid(rootless: bool) -> None:
    from pyoci.spec.load import load

    spec = specifying.default(True)
    if rootless:
        spec = specifying.rootless(spec, 1000, 1000)
    assert load(json.dumps(spec).encode()).hostname == "pyoci"


def test_a_half_written_spec_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(specifying, "write_all", full)
    assert main(["spec", "-b", str(tmp_path)]) == 1
    assert os.listdir(tmp_path) == []


def test_children_are_ours_even_if_the_caller_ignores_them(root: Root, tmp_path: Path) -> None:
    """With SIGCHLD ignored the kernel would reap a hook before we know how it ended."""
    out = tmp_path / "out"
    root.add("c1", hooks={"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >{out}; exit 3"]}]})
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        status, _, err = root("delete", "--force", "c1")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert status == 0
    assert "exit status 3" in err


def test_locks_are_not_inherited_by_hooks(root: Root, tmp_path: Path) -> None:
    """A hook's daemon must not keep the container busy."""
    pid = tmp_path / "pid"
    root.add("c1", hooks={"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"sleep 5 & echo $! >{pid}"]}]})
    store = Store.open(root.path, "c1")
    assert root("delete", "--force", "c1")[0] == 0
    fcntl.flock(store.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    store.close()
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_reader_that_goes_away(root: Root) -> None:
    root.add("c1")
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    os.dup2(writer, 1)
    try:
        assert main(["--root", root.path, "state", "c1"]) == 0
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)


def test_containers_of_other_runtimes(root: Root) -> None:
    """Engines give several runtimes one root: theirs are not listed, and nothing is done to them."""
    root.add("good")
    # what runc, crun and one that pyoci has not heard of keep there
    others = {
        "theirs-r": {"state.json": '{"id": "theirs-r", "init_process_pid": 1, "created": "2026-01-01T00:00:00Z"}'},
        "theirs-c": {"status": "{}", "config.json": "{}"},
        "theirs-x": {"anything": ""},
    }
    for id, files in others.items():
        with Store.create(root.path, id) as store:
            for name, text in files.items():
                store.write(name, text.encode())
    assert root("list", "-q") == (0, "good\n", "")
    for id, files in others.items():
        for verb in (["state"], ["start"], ["kill"], ["delete"], ["delete", "--force"]):
            status, _, err = root(*verb, id)
            assert status == 1
            assert f"container {id!r}: {root.path}/{id} is not pyoci's but another runtime's" in err
            assert len(err.splitlines()) == 1
        assert set(os.listdir(os.path.join(root.path, id))) == set(files)
    assert root("delete", "--force", "--regex", "theirs") == (0, "", "")
    assert set(others) < set(os.listdir(root.path))


def test_a_creation_that_was_cut_off_is_not_taken_for_another_runtimes(root: Root) -> None:
    """Killed while it wrote the first state."""
    with Store.create(root.path, "cut") as store:
        store.write(".creating.json.new", b"{")
    assert "creation was cut off" in root("list")[2]
    assert root("delete", "cut") == (0, "", "")
    assert not os.path.exists(os.path.join(root.path, "cut"))
