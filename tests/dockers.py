"""A Docker daemon of a test's own, with pyoci as its default runtime, and two ways to ask it."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from containers import CGROUPS, until

PYOCI = Path(sys.executable).parent / "pyoci"
ABSENT = [name for name in ("dockerd", "docker", "containerd", "unshare") if shutil.which(name) is None]
needed = [
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
"""


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

    def clear(self) -> None:
        """Remove all containers."""
        for id in self.client("ps", "--all", "--quiet").stdout.split():
            self.client("rm", "--force", id)


@contextmanager
def running(options: tuple[str, ...] = (), prepare: str = "") -> Iterator[Docker]:
    """A daemon, started with `options` after `prepare` (sh) in a mount namespace of its own, with an image `bb`."""
    folder = Path(tempfile.mkdtemp(prefix="pyoci-docker-"))
    folder.chmod(0o711)
    docker = Docker(folder)
    (folder / "traced").write_text(f'#!/bin/sh\necho "$*" >>{folder}/calls\nexec {PYOCI} "$@"\n')
    (folder / "traced").chmod(0o755)
    traced = str(folder / "traced")
    settings = {
        "runtimes": {
            "pyoci": {"path": str(PYOCI)},
            "traced": {"path": traced},
            "debugged": {"path": traced, "runtimeArgs": ["--debug"]},
        },
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
    script = f'{ALONE}{prepare}\nexec "$@"'
    alone = ["unshare", "-m", "-n", "--propagation", "private", "sh", "-ec", script, "sh"]
    with (folder / "log").open("wb") as log:
        words = [*alone, "dockerd", *options, "--config-file", str(folder / "daemon.json")]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until(lambda: docker.client("version").returncode == 0, f"the daemon: {(folder / 'log').read_text()[-2000:]}")
        root = folder / "image"
        (root / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin" / "busybox")
        for name in (
            "cat", "head", "hostname", "id", "ip", "ls", "mount", "ps", "sh", "sleep", "stat", "touch", "true"
        ):  # fmt: skip
            (root / "bin" / name).symlink_to("busybox")
        (root / "shared").write_text("of the image\n")
        subprocess.run(["tar", "-C", str(root), "-cf", str(folder / "image.tar"), "."], check=True)
        docker("import", str(folder / "image.tar"), "bb:latest")
        yield docker
    finally:
        docker.clear()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
