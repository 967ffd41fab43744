"""podman as Debian ships it, with systemd making the cgroups: for root, and for a user with a systemd of its own.

In the virtual machine only: there podman asks for --systemd-cgroup by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import works
from containers import BUSYBOX, needed, until
from machine import install

pytestmark = [
    *needed,
    pytest.mark.skipif(not Path("/run/systemd/private").exists(), reason="systemd is not process 1 here"),
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed"),
]
V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
USER, UID = "pyoci-tester", 4321
IMAGE = "localhost/busybox"
FORKS = "i=0; while [ $i -lt 40 ]; do sleep 9 & i=$((i + 1)); done"
Podman = Callable[..., str]

CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
events_logger = "file"
runtime = "pyoci"
runtime_supports_json = ["pyoci"]
runtime_supports_nocgroup = ["pyoci"]
[engine.runtimes]
pyoci = ["{pyoci}"]
"""


@pytest.fixture(scope="module")
def there() -> Iterator[Path]:
    """A directory that everybody may read: an image, containers.conf."""
    folder = Path("/var/tmp/pyoci-podman")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "rootfs/bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, folder / "rootfs/bin/busybox")
    for name in ("cat", "echo", "find", "id", "sh", "sleep", "true"):
        (folder / "rootfs/bin" / name).symlink_to("busybox")
    subprocess.run(["tar", "-C", str(folder / "rootfs"), "-cf", str(folder / "image.tar"), "."], check=True)
    (folder / "containers.conf").write_text(CONF.format(pyoci=install()))
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


def caller(there: Path, *before: str) -> Podman:
    """A function that runs podman and gives what it prints."""

    def podman(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [*before, "env", f"CONTAINERS_CONF={there}/containers.conf", "podman", *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, done
        return done.stdout.strip()

    podman("import", "--quiet", "--change", 'CMD ["/bin/sh"]', f"{there}/image.tar", IMAGE)
    assert podman("info", "--format", "{{.Host.CgroupManager}}") == "systemd"
    return podman


@pytest.fixture(scope="module")
def root(there: Path) -> Podman:
    return caller(there)


@pytest.fixture(scope="module")
def user(there: Path) -> Iterator[Podman]:
    """podman of a user with subordinate ids and a systemd of its own, which all of v2's usual controllers are given."""
    if not V2:
        pytest.skip("a user has cgroups on v2 only")
    drop_in = Path("/etc/systemd/system/user@.service.d/pyoci-test.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Service]\nDelegate=cpu cpuset io memory pids\n")
    subprocess.run(["useradd", "--create-home", "--uid", str(UID), USER], check=True)
    for name in ("/etc/subuid", "/etc/subgid"):
        if USER not in Path(name).read_text():
            with Path(name).open("a") as file:
                file.write(f"{USER}:1000000:65536\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["loginctl", "enable-linger", USER], check=True)
    runtime = f"/run/user/{UID}"
    until(lambda: Path(runtime, "bus").exists(), "the user's bus")
    yield caller(there, "setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups", "--reset-env", "env",
                 f"HOME=/home/{USER}", f"XDG_RUNTIME_DIR={runtime}", "PATH=/usr/sbin:/usr/bin")  # fmt: skip
    subprocess.run(["loginctl", "disable-linger", USER], check=False)


def limits() -> tuple[str, str]:
    """A script that shows the limits, and what it has to show."""
    if V2:
        return "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max", "33554432\n50000 100000\n30"
    files = "memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max"
    return f"cd /sys/fs/cgroup; cat {files}", "33554432\n50000\n30"


def life(podman: Podman, shown: Callable[[str], str]) -> None:
    """What an engine does with a container; `shown` asks systemd for units by pattern."""
    script, expected = limits()
    bounds = ("--network=none", "--memory=32m", "--cpus=0.5", "--pids-limit=30")
    assert podman("run", "--rm", *bounds, IMAGE, "sh", "-c", script) == expected
    podman("run", "--rm", *bounds, IMAGE, "sh", "-c", "x=x; while :; do x=$x$x; done", status=137)
    id = podman("run", "--detach", *bounds, IMAGE, "sleep", "1000")
    assert f"libpod-{id}.scope" in shown(f"libpod-{id}.scope")
    assert podman("exec", id, "echo", "inside") == "inside"
    podman("exec", id, "sh", "-c", FORKS, status=2)
    used = podman("stats", "--no-stream", "--no-trunc", "--format", "{{.ID}} {{.MemUsage}} {{.PIDs}}", id)
    assert used.startswith(id) and "/ 33.55MB" in used and int(used.split()[-1]) >= 1, used
    podman("pause", id)
    assert "Paused" in podman("ps", "--all", "--format", "{{.Status}}", "--filter", f"id={id}")
    podman("unpause", id)
    podman("restart", "--time", "0", id)
    assert podman("exec", id, "echo", "again") == "again"
    podman("rm", "--force", "--time", "0", id)
    assert f"libpod-{id}.scope" not in shown(f"libpod-{id}.scope")


def pod(podman: Podman, shown: Callable[[str], str]) -> None:
    """Containers that share, in a slice of their own."""
    podman("pod", "create", "--name=p", "--network=none", "--share=net,ipc,uts,pid", "--hostname=together")
    id = podman("run", "--detach", "--pod=p", "--memory=32m", "--pids-limit=30", IMAGE, "sleep", "1000")
    assert f"libpod-{id}.scope" in shown(f"libpod-{id}.scope")
    pid = podman("inspect", "--format", "{{.State.Pid}}", id)
    assert "libpod_pod_" in Path(f"/proc/{pid}/cgroup").read_text()
    assert podman("run", "--rm", "--pod=p", IMAGE, "cat", "/proc/sys/kernel/hostname") == "together"
    podman("exec", id, "sh", "-c", "x=x; while :; do x=$x$x; done", status=137)
    assert id[:12] in podman("pod", "stats", "--no-stream", "p")
    podman("pod", "pause", "p")
    podman("pod", "unpause", "p")
    podman("pod", "rm", "--force", "--time=0", "p")
    assert "libpod" not in shown("*libpod*").replace("libpod-conmon", "")


def test_root(root: Podman) -> None:
    def shown(pattern: str) -> str:
        words = ["systemctl", "list-units", "--all", "--no-legend", pattern]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    life(root, shown)
    if V2:
        id = root("run", "--detach", "--network=none", IMAGE, "sleep", "1000")
        root("update", "--memory=64m", id)
        assert root("exec", id, "cat", "/sys/fs/cgroup/memory.max") == str(64 << 20)
        root("rm", "--force", "--time", "0", id)
        pod(root, shown)


@works
@pytest.mark.skipif(not V2, reason="on v2: elsewhere tests/test_engines.py has it, without systemd")
def test_a_checkpoint(root: Podman) -> None:
    """What goes on is in a unit again, and further in its memory."""
    script = "i=0; while :; do i=$((i+1)); echo $i >/n; sleep 0.1; done"
    id = root("run", "--detach", "--network=none", IMAGE, "sh", "-c", script)

    def count() -> int:
        return int(root("exec", id, "cat", "/n") or 0)

    def active() -> bool:
        return subprocess.run(["systemctl", "is-active", "--quiet", f"libpod-{id}.scope"], check=False).returncode == 0

    until(lambda: count() > 3)
    assert active()
    before = count()
    root("container", "checkpoint", id)
    assert not active()
    root("container", "restore", id)
    assert active()
    assert before < until(lambda: count() > before and count()) < before + 1000
    root("rm", "--force", "--time", "0", id)


def test_without_cgroups(root: Podman) -> None:
    words = ("run", "--rm", "--network=none", "--cgroups=disabled", "--cgroupns=host", IMAGE)
    said = root(*words, "cat", "/proc/self/cgroup")
    assert ":/" in said
    # conmon's may be podman's own
    assert "/libpod-" not in said.replace("/libpod-conmon-", "")


def test_a_user(user: Podman) -> None:
    def shown(pattern: str) -> str:
        words = ["systemctl", "--user", f"--machine={USER}@", "list-units", "--all", "--no-legend", pattern]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    life(user, shown)
    pod(user, shown)
    assert user("run", "--rm", "--network=none", IMAGE, "id", "-u") == "0"
    assert user("run", "--rm", "--network=none", "--userns=keep-id", IMAGE, "id", "-u") == str(UID)


def test_a_users_cgroups_are_not_the_containers_to_write(user: Podman) -> None:
    """CVE-2023-25809: not even where the container sees the host's cgroups."""
    for namespace in ("private", "host"):
        files = "/writable /sys/fs/cgroup/cgroup.procs $(find /sys/fs/cgroup -name cgroup.procs 2>/dev/null)"
        script = f"for f in {files}; do" ' (: >>"$f") 2>/dev/null && echo "$f"; done; echo done'
        words = ("run", "--rm", "--network=none", f"--cgroupns={namespace}", IMAGE, "sh", "-c", script)
        assert user(*words) == "/writable\ndone"
