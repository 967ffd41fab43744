"""Docker with userns-remap: root in a container is nobody on the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import CGROUPS
from dockers import Docker, needed, running

pytestmark = needed
FIRST, COUNT, USER = 3_000_000, 65536, "pyociremap"
LOOP = "while :; do sleep 0.1; done"
# Seen by the daemon alone.
ETC = f"""
etc=/srv  # any directory
mount -t tmpfs tmpfs $etc
for f in passwd group subuid subgid; do [ -e /etc/$f ] || : >/etc/$f; cp /etc/$f $etc/$f; done
echo "{USER}:x:2999999:2999999::/:/bin/false" >>$etc/passwd
echo "{USER}:x:2999999:" >>$etc/group
for f in subuid subgid; do echo "{USER}:{FIRST}:{COUNT}" >>$etc/$f; done
for f in passwd group subuid subgid; do mount --bind $etc/$f /etc/$f; done
"""


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with running(("--userns-remap", USER), ETC) as one:
        yield one


@pytest.fixture
def id(docker: Docker) -> Iterator[str]:
    yield docker.run("--memory", "20m", "--pids-limit", "9", "bb", "sh", "-c", LOOP)
    docker.clear()


def test_ids_from_both_sides(docker: Docker, id: str) -> None:
    pid = docker.pid(id)
    assert docker("exec", id, "id", "-u") == "0"
    assert docker("exec", id, "cat", "/proc/self/uid_map").split() == ["0", str(FIRST), str(COUNT)]
    for path in (f"/proc/{pid}/uid_map", f"/proc/{pid}/gid_map"):
        assert Path(path).read_text().split() == ["0", str(FIRST), str(COUNT)]
    status = Path(f"/proc/{pid}/status").read_text()
    assert status.split("\nUid:\t")[1].split()[:4] == [str(FIRST)] * 4
    assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")


def test_files_from_both_sides(docker: Docker, id: str) -> None:
    docker("exec", id, "touch", "/made")
    docker("exec", "--user", "5", id, "touch", "/dev/shm/made")
    pid = docker.pid(id)
    assert Path(f"/proc/{pid}/root/made").stat().st_uid == FIRST
    assert Path(f"/proc/{pid}/root/dev/shm/made").stat().st_uid == FIRST + 5
    assert docker("exec", id, "stat", "-c", "%u", "/made", "/dev/shm/made").split() == ["0", "5"]


def test_devices_and_limits(docker: Docker, id: str) -> None:
    assert docker("exec", id, "stat", "-c", "%t:%T", "/dev/null", "/dev/zero").split() == ["1:3", "1:5"]
    name = f"docker/{id}"
    assert (CGROUPS / "memory" / name / "memory.limit_in_bytes").read_text() == f"{20 << 20}\n"
    assert (CGROUPS / "pids" / name / "pids.max").read_text() == "9\n"
    shown = docker.client("exec", id, "sh", "-c", "echo 1 >/sys/fs/cgroup/pids/pids.max")
    assert shown.returncode != 0 and "can.t create" in shown.stderr.replace("'", ".")
    assert docker.client("exec", id, "sh", "-c", "echo x >/proc/sys/kernel/hostname").returncode != 0


def test_one_container_without(docker: Docker) -> None:
    shown = docker("run", "--rm", "--network", "none", "--userns", "host", "bb", "cat", "/proc/self/uid_map")
    assert shown.split() == ["0", "0", "4294967295"]
