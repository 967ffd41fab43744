"""exec's further flags: whose cgroup, whose pidfd; and what engines are told when it cannot be."""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import CGROUPS, LIMIT, Box, box, needed, until  # noqa: F401 - box is a fixture

from pyoci.cgroup import choice
from pyoci.errors import PyociError

pytestmark = needed


class Engine:
    """A socket as engines make it for --pidfd-socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.settimeout(LIMIT)

    def receive(self) -> int:
        """The one descriptor of the one message."""
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(LIMIT)
            data, ancillary, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(16))
            assert data
            ((level, kind, content),) = ancillary
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            (descriptor,) = array.array("i", content)
            assert connection.recv(1) == b""
        return descriptor


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path / "pidfd.sock")
    yield made
    made.listener.close()


def pid_of(pidfd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise AssertionError(pidfd)


def ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def test_pidfd_of_a_created_container(box: Box, engine: Engine) -> None:  # noqa: F811
    box.create("exec sleep 100", "--pidfd-socket", str(engine.path))
    pidfd = engine.receive()
    assert pid_of(pidfd) == box.pid() and not ended(pidfd)
    box.ok("kill", box.id, "KILL")
    until(lambda: ended(pidfd))
    os.close(pidfd)


def test_pidfd_of_run(box: Box, engine: Engine) -> None:  # noqa: F811
    box.process["args"] = ["sleep", "100"]
    box.write()
    words = box.command("run", "--detach", "--bundle", str(box.bundle), "--pidfd-socket", str(engine.path), box.id)
    null = subprocess.DEVNULL
    subprocess.run(words, check=True, stdin=null, stdout=null, timeout=LIMIT)
    pidfd = engine.receive()
    assert pid_of(pidfd) == box.pid()
    os.close(pidfd)


def test_pidfd_of_exec(box: Box, engine: Engine) -> None:  # noqa: F811
    box.start("exec sleep 100")
    # relative, as engines may give it
    script = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    exec_ = box.command("exec", "--pidfd-socket", engine.path.name, box.id, "sleep", "100")
    child = subprocess.Popen(["python3", "-c", script, str(engine.path.parent), *exec_], stdin=subprocess.DEVNULL)
    pidfd = engine.receive()
    pid = pid_of(pidfd)
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    assert child.wait(LIMIT) == 128 + signal.SIGTERM
    os.close(pidfd)


@pytest.mark.parametrize("command", ["create", "run"])
def test_nobody_takes_the_pidfd(box: Box, tmp_path: Path, command: str) -> None:  # noqa: F811
    box.process["args"] = ["sleep", "100"]
    box.write()
    for path, reason in ((tmp_path / "nothing", "no such file"), (tmp_path / "bundle/config.json", "refused")):
        error = box.fails(command, "--bundle", str(box.bundle), "--pidfd-socket", str(path), box.id)
        assert f"--pidfd-socket: connect {path}" in error and reason in error.lower()
        box.gone()


def test_nobody_takes_the_pidfd_of_exec(box: Box, tmp_path: Path) -> None:  # noqa: F811
    box.start("exec sleep 100")
    error = box.fails("exec", "--pidfd-socket", str(tmp_path / "nothing"), box.id, "touch", "/tmp/ran")
    assert "--pidfd-socket: connect" in error
    assert not (box.rootfs / "tmp/ran").exists()


# -- cgroups


@pytest.fixture
def below(box: Box) -> Iterator[Callable[[str, str], Path]]:  # noqa: F811
    """`below("memory", "x")` makes a cgroup below the container's in that hierarchy."""
    made: list[Path] = []

    def make(hierarchy: str, name: str) -> Path:
        path = CGROUPS / hierarchy / box.id / name
        path.mkdir()
        for file in ("cpuset.cpus", "cpuset.mems") if "cpuset" in hierarchy else ():
            (path / file).write_text((path.parent / file).read_text())
        made.append(path)
        return path

    yield make
    # delete removes them, with what the container itself made there
    box.ok("delete", "--force", box.id)
    assert [path for path in made if path.exists()] == []


HIERARCHIES = sorted(path.name for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink())
needs_v1 = pytest.mark.skipif(not (CGROUPS / "memory/tasks").exists(), reason="needs cgroup v1's memory controller")


@needs_v1
def test_in_a_cgroup_below_the_containers(box: Box, below: Callable[[str, str], Path]) -> None:  # noqa: F811
    box.start("exec sleep 100")
    below("memory", "inner")
    shown = box.exec("cat", "/proc/self/cgroup", options=["--cgroup", "memory:inner"])
    assert f"memory:/{box.id}/inner\n" in shown
    assert f"pids:/{box.id}\n" in shown
    below("pids", "other")
    shown = box.exec("cat", "/proc/self/cgroup", options=["--cgroup", "memory:/inner", "--cgroup", "pids:other"])
    assert f"memory:/{box.id}/inner\n" in shown and f"pids:/{box.id}/other\n" in shown
    shown = box.exec("cat", "/proc/self/cgroup", options=["--cgroup", "/"])
    assert f"memory:/{box.id}\n" in shown


@needs_v1
def test_the_limit_of_that_cgroup_bites(box: Box, below: Callable[[str, str], Path]) -> None:  # noqa: F811
    box.start("exec sleep 100")
    (below("pids", "few") / "pids.max").write_text("1")
    script = "(true) && echo forked"
    assert box.exec("sh", "-c", script) == "forked\n"
    done = box("exec", "--cgroup", "pids:few", box.id, "sh", "-c", script)
    assert done.returncode != 0 and "forked" not in done.stdout and "can't fork" in done.stderr


@needs_v1
def test_all_hierarchies_at_once(box: Box, below: Callable[[str, str], Path]) -> None:  # noqa: F811
    box.start("exec sleep 100")
    own = [name for name in HIERARCHIES if (CGROUPS / name / box.id).exists()]
    for name in own:
        below(name, "all")
    lines = box.exec("cat", "/proc/self/cgroup", options=["--cgroup", "all"]).splitlines()
    inside = [line for line in lines if f"/{box.id}" in line]
    assert inside and all(line.endswith(f"/{box.id}/all") for line in inside)


def test_controllers_of_one_hierarchy_go_together(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct/c", "cpu,cpuacct/c/x", "cpu,cpuacct/c/y", "pids/c", "unified/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cgroup.procs").touch()
    joint, pids, unified = (f"{tmp_path}/{name}/c" for name in ("cpu,cpuacct", "pids", "unified"))
    paths = {"": unified, "cpu": joint, "cpuacct": joint, "pids": pids}
    chosen = choice.below(paths, choice.parse(["cpu:x"]))
    assert chosen == paths | {"cpu": joint + "/x", "cpuacct": joint + "/x"}
    assert choice.below(paths, choice.parse(["cpu,cpuacct:x"])) == chosen
    with pytest.raises(PyociError, match="one hierarchy"):
        choice.below(paths, choice.parse(["cpu:x", "cpuacct:y"]))
    with pytest.raises(PyociError, match="no such cgroup"):
        choice.below(paths, choice.parse(["x"]))


def test_an_empty_cpuset_is_refused(box: Box) -> None:  # noqa: F811
    if not (CGROUPS / "cpuset/cgroup.procs").exists():
        pytest.skip("needs cgroup v1's cpuset controller")
    box.start("exec sleep 100")
    (CGROUPS / "cpuset" / box.id / "empty").mkdir()
    assert "write its cpuset.cpus" in box.fails("exec", "--cgroup", "cpuset:empty", box.id, "true")


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["nowhere"], "no such cgroup"),
        (["../other"], 'without ".."'),
        (["a/../../b"], 'without ".."'),
        ([":a"], "no controller"),
        (["frobnication:a"], "no cgroup of that controller"),
        (["a", "b"], "CONTROLLER:"),
        (["memory:a", "memory:b"], "two paths"),
    ],
)
def test_cgroups_that_cannot_be(box: Box, arguments: list[str], phrase: str) -> None:  # noqa: F811
    box.start("exec sleep 100")
    flags = [word for argument in arguments for word in ("--cgroup", argument)]
    assert phrase in box.fails("exec", *flags, box.id, "touch", "/tmp/ran")
    assert not (box.rootfs / "tmp/ran").exists()


@needs_v1
def test_a_frozen_cgroup_is_refused(box: Box, below: Callable[[str, str], Path]) -> None:  # noqa: F811
    box.start("exec sleep 100")
    (below("freezer", "ice") / "freezer.state").write_text("FROZEN")
    error = box.fails("exec", "--cgroup", "freezer:ice", box.id, "true")
    assert "is frozen" in error and "--ignore-paused" in error
    words = box.command("exec", "--ignore-paused", "--cgroup", "freezer:ice", box.id, "echo", "thawed")
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    time.sleep(0.1)
    assert child.poll() is None
    (CGROUPS / "freezer" / box.id / "ice/freezer.state").write_text("THAWED")
    assert child.communicate(timeout=LIMIT)[0] == "thawed\n"


@needs_v1
def test_into_a_container_whose_cgroup_is_gone(box: Box) -> None:  # noqa: F811
    pid = box.start("exec sleep 100")
    own = CGROUPS / "memory" / box.id
    other = CGROUPS / "memory" / f"{box.id}-other"
    other.mkdir()
    try:
        (other / "cgroup.procs").write_text(str(pid))
        own.rmdir()
        assert f"memory:/{box.id}-other\n" in box.exec("cat", "/proc/self/cgroup")
        box.ok("kill", box.id, "KILL")
        until(lambda: box.status() == "stopped")
    finally:
        until(lambda: not (other / "cgroup.procs").read_text())
        other.rmdir()


def test_a_paused_container_says_how(box: Box) -> None:  # noqa: F811
    box.start("exec sleep 100")
    box.ok("pause", box.id)
    done = box("exec", box.id, "true")
    assert done.returncode == 255
    assert "cannot exec in a paused container (use --ignore-paused to override)" in done.stderr
    box.ok("resume", box.id)


# -- and where v2 is all there is: in a mount namespace of the test's own


@pytest.fixture
def pure_v2(box: Box) -> Box:  # noqa: F811
    """A box whose commands see v2 only; we see its cgroups at UNIFIED."""
    if not (UNIFIED / "cgroup.procs").exists():
        pytest.skip("v2 is not mounted at /sys/fs/cgroup/unified: tests of v2's own machine do this there")
    script = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\""
    words, plain = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"], box.command
    box.command = lambda *args: [*words, *plain(*args)]  # type: ignore[method-assign]
    box.config["linux"].pop("resources", None)
    return box


UNIFIED = CGROUPS / "unified"


def of_v2(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("0::"))


def test_v2_in_a_cgroup_below(pure_v2: Box) -> None:
    pure_v2.start("exec sleep 100")
    own = UNIFIED / pure_v2.id
    (own / "sub/deep").mkdir(parents=True)
    for path in ("sub/deep", "/sub/deep", "sub//./deep/"):
        shown = pure_v2.exec("cat", "/proc/self/cgroup", options=["--cgroup", path])
        assert of_v2(shown) == f"0::/{pure_v2.id}/sub/deep"
    assert "one cgroup for all" in pure_v2.fails("exec", "--cgroup", "memory:sub", pure_v2.id, "true")
    (own / "sub/cgroup.freeze").write_text("1")
    assert "is frozen" in pure_v2.fails("exec", "--cgroup", "sub/deep", pure_v2.id, "true")


def test_v2_whose_own_cgroup_takes_no_process(pure_v2: Box) -> None:
    """As systemd in a container does: its init is in a child, and the children have controllers."""
    pid = pure_v2.start("exec sleep 100")
    own = UNIFIED / pure_v2.id
    (own / "init").mkdir()
    (own / "init/cgroup.procs").write_text(str(pid))
    controllers = (own / "cgroup.controllers").read_text().split()
    if not controllers:
        pytest.skip("v2 has no controller here")
    (own / "cgroup.subtree_control").write_text(f"+{controllers[0]}")
    assert of_v2(pure_v2.exec("cat", "/proc/self/cgroup")) == f"0::/{pure_v2.id}/init"
    # what is asked for is not replaced by something else
    assert "clone3" in pure_v2.fails("exec", "--cgroup", "/", pure_v2.id, "true")


def test_v2_whose_own_cgroup_is_gone(pure_v2: Box) -> None:
    pid = pure_v2.start("exec sleep 100")
    other = UNIFIED / f"{pure_v2.id}-other"
    other.mkdir()
    try:
        (other / "cgroup.procs").write_text(str(pid))
        (UNIFIED / pure_v2.id).rmdir()
        assert of_v2(pure_v2.exec("cat", "/proc/self/cgroup")) == f"0::/{pure_v2.id}-other"
    finally:
        pure_v2.ok("delete", "--force", pure_v2.id)
        until(lambda: not (other / "cgroup.procs").read_text())
        other.rmdir()


def test_v2_threaded(pure_v2: Box) -> None:
    """The container's cgroup as the domain of a threaded one takes processes, and so does the threaded one."""
    pure_v2.start("exec sleep 100")
    child = UNIFIED / pure_v2.id / "threads"
    child.mkdir()
    (child / "cgroup.type").write_text("threaded")
    assert of_v2(pure_v2.exec("cat", "/proc/self/cgroup")) == f"0::/{pure_v2.id}"
    shown = pure_v2.exec("cat", "/proc/self/cgroup", options=["--cgroup", "threads"])
    assert of_v2(shown) == f"0::/{pure_v2.id}/threads"


@pytest.mark.parametrize("name", ["CAP_NONSENSE", "NET_RAW", "cap_net_raw"])
def test_a_capability_that_is_none(box: Box, name: str) -> None:  # noqa: F811
    """Names are those of the kernel's header; another one is a warning, not an error (config.md#linux-process)."""
    box.start()
    done = box("exec", "--cap", name, box.id, "grep", "CapEff", "/proc/self/status")
    assert (done.returncode, done.stdout) == (0, "CapEff:\t0000000020000420\n")
    assert done.stderr.startswith("pyoci: warning: capabilities left out") and done.stderr.endswith(f": {name}\n")


def test_a_capability_where_there_are_none(box: Box) -> None:  # noqa: F811
    del box.process["capabilities"]
    box.start()
    assert box.exec("grep", "CapEff", "/proc/self/status") == "CapEff:\t0000000000000000\n"
    shown = box.exec("grep", "-E", "Cap(Eff|Inh)", "/proc/self/status", options=("--cap", "CAP_NET_RAW"))
    assert shown.split() == ["CapInh:", "0" * 16, "CapEff:", "0000000000002000"]
