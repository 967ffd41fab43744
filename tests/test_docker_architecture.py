"""Docker's architecture as people learn it, with pyoci where the containers are made.

A client asks a daemon (with the `docker` program or with REST, over a UNIX socket); the daemon has images made of
layers, and runs an OCI runtime; the runtime makes namespaces and cgroups and is gone.  Each test reads one part of that
from both sides: from inside a container and from the machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import CGROUPS, until
from dockers import PYOCI, Docker, needed, running

pytestmark = needed
LOOP = "while :; do sleep 0.1; done"
SPIN = "while :; do :; done"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Docker]:
    with running(("-D",)) as docker:
        yield docker


@pytest.fixture
def docker(daemon: Docker) -> Iterator[Docker]:
    """The daemon, without containers afterwards."""
    yield daemon
    daemon.clear()


def test_the_client_asks_the_daemon_and_the_daemon_runs_pyoci(docker: Docker) -> None:
    assert docker("info", "--format", "{{.DefaultRuntime}}") == "pyoci"
    id = docker.run("bb", "sh", "-c", LOOP)
    words = [str(PYOCI), "--root", str(docker.folder / "exec/runtime-pyoci/moby"), "state", id]
    if not Path(words[2]).is_dir():
        words[2] = str(docker.folder / "exec/runtime-runc/moby")
    state = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    assert (state["pid"], state["status"]) == (docker.pid(id), "running")


def test_the_same_over_rest(docker: Docker) -> None:
    status, said = docker.rest("GET", "/version")
    assert status == 200
    assert json.loads(said)["Version"] == docker("version", "--format", "{{.Server.Version}}")
    wish = {"Image": "bb", "Cmd": ["sh", "-c", "echo by REST; exit 3"], "Tty": True, "NetworkDisabled": True}
    status, said = docker.rest("POST", "/containers/create", wish)
    assert status == 201, said
    id = json.loads(said)["Id"]
    assert docker.rest("POST", f"/containers/{id}/start")[0] == 204
    status, said = docker.rest("POST", f"/containers/{id}/wait")
    assert json.loads(said)["StatusCode"] == 3
    assert docker.rest("GET", f"/containers/{id}/logs?stdout=1")[1] == b"by REST\r\n"


def test_namespaces_from_both_sides(docker: Docker) -> None:
    id = docker.run("--hostname", "inside", "--cgroupns", "private", "bb", "sh", "-c", LOOP)
    pid = docker.pid(id)
    for name in ("pid", "net", "ipc", "mnt", "uts", "cgroup"):
        inside = docker("exec", id, "busybox", "readlink", f"/proc/self/ns/{name}")
        assert inside == os.readlink(f"/proc/{pid}/ns/{name}")
        assert inside != os.readlink(f"/proc/self/ns/{name}")


def test_what_each_namespace_hides(docker: Docker) -> None:
    id = docker.run("--hostname", "inside", "--cgroupns", "private", "bb", "sh", "-c", LOOP)
    pid = docker.pid(id)
    # pid: it is 1 inside and something else outside, and sees none of ours
    assert Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1] == "1"
    assert len([line for line in docker("exec", id, "ps", "-o", "pid").split() if line.isdigit()]) <= 3
    # uts
    assert docker("exec", id, "hostname") == "inside" != socket.gethostname()
    # net: loopback alone
    assert docker("exec", id, "ls", "/sys/class/net") == "lo"
    # ipc: what is shared inside is not here
    docker("exec", id, "touch", "/dev/shm/ours")
    assert not Path("/dev/shm/ours").exists()
    assert Path(f"/proc/{pid}/root/dev/shm/ours").exists()
    # mnt: another root, and a file of ours is not there
    assert docker("exec", id, "cat", "/shared") == "of the image"
    assert docker.client("exec", id, "ls", str(docker.folder)).returncode != 0
    # cgroup: the container's own is the top
    assert docker("exec", id, "busybox", "grep", ":pids:", "/proc/1/cgroup").endswith(":pids:/")
    assert f"/docker/{id}\n" in Path(f"/proc/{pid}/cgroup").read_text()


def test_a_hog_takes_no_more_than_its_share(docker: Docker) -> None:
    """Ten loops in one container, one loop in each of four others, all on one processor: a fifth each."""
    bounds = ("--cpuset-cpus", "0", "--cpu-shares", "1024")
    hog = docker.run(*bounds, "bb", "sh", "-c", f"for i in 1 2 3 4 5 6 7 8 9; do ( {SPIN} ) & done; {SPIN}")
    others = [docker.run(*bounds, "bb", "sh", "-c", SPIN) for _ in range(4)]

    def used() -> list[int]:
        return [int((CGROUPS / "cpuacct/docker" / id / "cpuacct.usage").read_text()) for id in (hog, *others)]

    before = used()
    end = time.monotonic() + 60
    # by what they had and not by the clock: the processor may have others to serve
    while sum(spent := [now - then for now, then in zip(used(), before, strict=True)]) < 3 * 10**9:
        assert time.monotonic() < end, spent
        time.sleep(0.1)
    share = sum(spent) / 5
    assert spent[0] < 1.5 * share
    assert all(one > 0.6 * share for one in spent[1:]), spent


def test_a_memory_hog_is_killed_alone(docker: Docker) -> None:
    neighbour = docker.run("--memory", "20m", "bb", "sh", "-c", LOOP)
    hog = docker.run("--memory", "20m", "--memory-swap", "20m", "bb", "sh", "-c", "x=x; while :; do x=$x$x; done")
    assert docker("wait", hog) == "137"
    assert docker.inspect(hog)["State"]["OOMKilled"] is True
    assert docker.inspect(neighbour)["State"]["Running"] is True
    assert docker("exec", neighbour, "true") == ""
    limit = CGROUPS / "memory/docker" / neighbour / "memory.limit_in_bytes"
    assert int(limit.read_text()) == 20 << 20


BOMB = "(b() { b | b & b; }; b) & exec sleep 1000"  # the first process has no need to fork


def test_a_fork_bomb_stops_at_its_limit(docker: Docker) -> None:
    """The kernel's own count: it refused forks, and there never were more processes than the limit."""
    neighbour = docker.run("bb", "sh", "-c", LOOP)
    bomb = docker.run("--pids-limit", "20", "bb", "sh", "-c", BOMB)
    place = CGROUPS / "pids/docker" / bomb
    assert (place / "pids.max").read_text() == "20\n"
    until(lambda: int((place / "pids.events").read_text().split()[1]) > 0, "a fork that the kernel refuses")
    for _ in range(50):
        assert int((place / "pids.current").read_text()) <= 20
        time.sleep(0.01)
    if (place / "pids.peak").exists():
        assert 10 < int((place / "pids.peak").read_text()) <= 20
    assert "fork" in docker.client("logs", bomb).stderr
    assert docker.inspect(bomb)["State"]["Running"] is True
    assert docker("exec", neighbour, "true") == ""
    assert docker("run", "--rm", "--network", "none", "bb", "sh", "-c", "sleep 0 & wait; echo forks") == "forks"
    docker("rm", "--force", bomb)
    assert not place.exists()


def test_images_are_shared_and_writes_are_not(docker: Docker) -> None:
    one, two = (docker.run("bb", "sh", "-c", LOOP) for _ in range(2))
    data = [docker.inspect(id)["GraphDriver"]["Data"] for id in (one, two)]
    layers = [data[i]["LowerDir"].split(":")[1:] for i in (0, 1)]
    assert layers[0] == layers[1] and layers[0]
    # not copied: the only busybox is the layer's
    assert (Path(layers[0][-1]) / "bin/busybox").exists()
    for upper in (Path(each["UpperDir"]) for each in data):
        assert not (upper / "bin").exists()
    docker("exec", one, "sh", "-c", "echo changed >/shared")
    assert docker("exec", one, "cat", "/shared") == "changed"
    assert docker("exec", two, "cat", "/shared") == "of the image"
    assert (Path(layers[0][-1]) / "shared").read_text() == "of the image\n"
    assert (Path(data[0]["UpperDir"]) / "shared").read_text() == "changed\n"
    assert not (Path(data[1]["UpperDir"]) / "shared").exists()


def test_a_failing_create_is_readable_in_the_client(docker: Docker) -> None:
    """127: no such program; 126: it is no program; 125: there is no container."""
    (docker.folder / "text").write_text("no program\n")
    volume = ("-v", f"{docker.folder}/text:/text")
    for status, said, words in (
        (127, 'exec: "nonexistent": executable file not found in $PATH', ("bb", "nonexistent")),
        (127, "/linux/sysctl/net.ipv4.nonsense", ("--sysctl", "net.ipv4.nonsense=1", "bb", "true")),
        (126, 'exec: "/text": permission denied', (*volume, "bb", "/text")),
        (126, 'exec: "/bin": permission denied: it is a directory', ("bb", "/bin")),
        (125, "/linux/sysctl/net.ipv4.ip_forward", ("--sysctl", "net.ipv4.ip_forward=many", "bb", "true")),
        (125, "/process/rlimits/0", ("--ulimit", "nofile=1073741817:1073741817", "bb", "true")),
    ):
        done = docker.client("run", "--rm", "--network", "none", *words)
        assert done.returncode == status, done
        assert said in done.stderr and "OCI runtime" in done.stderr
    assert docker("ps", "--all", "--quiet") == ""


def test_a_failing_exec_is_readable_in_the_client(docker: Docker) -> None:
    id = docker.run("bb", "sh", "-c", LOOP)
    for said, words in (
        ('exec: "nonexistent": executable file not found in $PATH', (id, "nonexistent")),
        ('exec: "/bin": permission denied', (id, "/bin")),
        ("/process/cwd", ("-w", "/nowhere", id, "true")),
    ):
        done = docker.client("exec", *words)
        assert done.returncode in (126, 127), done
        assert said in done.stdout + done.stderr


def debugged(docker: Docker, runtime: str) -> tuple[list[str], str]:
    """How the runtime was called to create a container, and what it logged meanwhile."""
    calls = docker.folder / "calls"
    calls.unlink(missing_ok=True)
    id = docker.run("--runtime", runtime, "bb", "sh", "-c", LOOP)
    created = next(call.split() for call in calls.read_text().splitlines() if " create " in call)
    log = Path(created[created.index("--log") + 1])
    text = log.read_text() if log.exists() else ""
    shim = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in parents(docker.pid(id))]
    assert any(words[0].endswith(b"containerd-shim-runc-v2") and b"-debug" in words for words in shim), shim
    return created, text


def parents(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


def test_the_daemons_debug_is_ours(docker: Docker) -> None:
    """`dockerd -D` reaches containerd and its shim as -debug, and that is where Docker's own chain ends: the shim has
    no such option for a runtime.  What reaches a runtime are its runtimeArgs."""
    _, quiet = debugged(docker, "traced")
    assert "debug" not in quiet
    created, log = debugged(docker, "debugged")
    assert "--debug" in created[: created.index("create")]
    steps = [json.loads(line) for line in log.splitlines()]
    assert any(step["level"] == "debug" and step["msg"] == "the process is made" and step["pid"] for step in steps), log
    # where docs/docker.md says that it is
    assert "/containerd/daemon/io.containerd.runtime.v2.task/moby/" in created[created.index("--log") + 1]
