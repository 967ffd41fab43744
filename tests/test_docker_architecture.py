"""Docker's architecture as people learn it, with pyoci where the containers are made.

A client asks a daemon (with the `docker` program or with REST, over a UNIX socket); the daemon has images made of
layers, and runs an OCI runtime; the runtime makes namespaces and cgroups and is gone.  Each test reads one part of that
from both sides: from inside a container and from the machine.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import until

PYOCI = Path(sys.executable).parent / "pyoci"
PROGRAMS = ("dockerd", "docker", "containerd", "unshare")
ABSENT = [name for name in PROGRAMS if shutil.which(name) is None]
CGROUPS = Path("/sys/fs/cgroup")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
    pytest.mark.skipif(not PYOCI.exists(), reason="pyoci is not installed beside this interpreter: run ./check"),
    pytest.mark.skipif(os.geteuid() != 0, reason="dockerd needs root"),
    pytest.mark.skipif(not (CGROUPS / "pids").is_dir(), reason="this Docker is asked for cgroup v1's limits"),
]
# The daemon sees cgroup v1 alone.  A hierarchy that is alive but mounted nowhere makes its containerd miss what runs
# out of memory.
ALONE = r"""
! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified
cut -d: -f2 /proc/self/cgroup | while read -r name; do
    [ -z "$name" ] || grep -Eq " - cgroup [^ ]+ ([^ ]*,)?$name(,|\$)" /proc/self/mountinfo ||
        mount -t cgroup -o "$name" cgroup /mnt
done
exec "$@"
"""
LOOP = "while :; do sleep 0.1; done"
SPIN = "while :; do :; done"


class Connection(http.client.HTTPConnection):
    """HTTP over the daemon's UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Docker:
    """A daemon, and two ways to ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = f"{folder}/s.sock"

    def client(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["docker", "-H", f"unix://{self.socket}", *words]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )

    def __call__(self, *words: str) -> str:
        done = self.client(*words)
        assert done.returncode == 0, done
        return done.stdout.strip()

    def run(self, *words: str) -> str:
        """The id of a container in the background."""
        return self("run", "--detach", "--network", "none", *words)

    def rest(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = Connection(self.socket)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        try:
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def inspect(self, id: str) -> Any:
        return json.loads(self("inspect", id))[0]

    def pid(self, id: str) -> int:
        return int(self.inspect(id)["State"]["Pid"])


@pytest.fixture(scope="module")
def daemon() -> Iterator[Docker]:
    folder = Path(tempfile.mkdtemp(prefix="pyoci-docker-"))
    docker = Docker(folder)
    (folder / "traced").write_text(f'#!/bin/sh\necho "$*" >>{folder}/calls\nexec {PYOCI} "$@"\n')
    (folder / "traced").chmod(0o755)
    traced = {"path": str(folder / "traced"), "runtimeArgs": ["--debug"]}
    settings = {
        "debug": True,
        "runtimes": {"pyoci": {"path": str(PYOCI)}, "traced": traced},
        "default-runtime": "pyoci",
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "storage-driver": "overlay2",
        "data-root": str(folder / "data"),
        "exec-root": str(folder / "exec"),
        "pidfile": str(folder / "pid"),
        "hosts": [f"unix://{docker.socket}"],
        "iptables": False,
        "ip6tables": False,
        "bridge": "none",
    }
    (folder / "daemon.json").write_text(json.dumps(settings))
    alone = ["unshare", "-m", "-n", "--propagation", "private", "sh", "-c", ALONE, "sh"]
    with (folder / "log").open("wb") as log:
        words = [*alone, "dockerd", "--config-file", str(folder / "daemon.json")]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until(lambda: docker.client("version").returncode == 0, "the daemon")
        root = folder / "image"
        (root / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin" / "busybox")
        for name in ("cat", "head", "hostname", "ip", "ls", "mount", "ps", "sh", "sleep", "stat", "touch", "true"):
            (root / "bin" / name).symlink_to("busybox")
        (root / "shared").write_text("of the image\n")
        subprocess.run(["tar", "-C", str(root), "-cf", str(folder / "image.tar"), "."], check=True)
        docker("import", str(folder / "image.tar"), "bb:latest")
        yield docker
    finally:
        for id in docker.client("ps", "--all", "--quiet").stdout.split():
            docker.client("rm", "--force", id)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def docker(daemon: Docker) -> Iterator[Docker]:
    """The daemon, without containers afterwards."""
    yield daemon
    for id in daemon.client("ps", "--all", "--quiet").stdout.split():
        daemon.client("rm", "--force", id)


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
    time.sleep(4)
    spent = [now - then for now, then in zip(used(), before, strict=True)]
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


def test_a_fork_bomb_stops_at_its_limit(docker: Docker) -> None:
    bomb = docker.run("--pids-limit", "20", "bb", "sh", "-c", "b() { b | b & b; }; b; sleep 1000")
    place = CGROUPS / "pids/docker" / bomb

    def bounced() -> bool:
        events = place / "pids.events"
        return events.exists() and int(events.read_text().split()[1]) > 0

    neighbour = docker.run("bb", "sh", "-c", LOOP)
    if docker.inspect(bomb)["State"]["Running"]:
        until(bounced, "the limit")
        assert int((place / "pids.current").read_text()) <= 20
    assert "fork" in docker.client("logs", bomb).stderr
    assert docker("exec", neighbour, "true") == ""


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
    done = docker.client("run", "--rm", "--network", "none", "bb", "nonexistent")
    assert done.returncode == 127
    assert 'exec: "nonexistent": executable file not found in $PATH' in done.stderr
    done = docker.client("run", "--rm", "--network", "none", "--sysctl", "net.ipv4.nonsense=1", "bb", "true")
    assert done.returncode != 0
    assert "/linux/sysctl" in done.stderr and "no such file or directory" in done.stderr


def test_the_daemons_debug_is_ours(docker: Docker) -> None:
    """Docker has no flag that it passes on, -D neither: a runtime's arguments are in its daemon's settings."""
    docker("run", "--rm", "--network", "none", "--runtime", "traced", "bb", "true")
    calls = (docker.folder / "calls").read_text().splitlines()
    created = [call for call in calls if " create " in call]
    assert created and all("--debug" in call.split() for call in created)
