"""Hostile images, bundles, callers and neighbours: what they try must not reach the host.

Every test looks at the host's side: a canary tree, with its contents and times, is the same before and after, and so is
the list of our mounts.  What a container was refused matters less than what it did not get.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pyoci
from pyoci.__main__ import START

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(pyoci.__file__).parent
BUSYBOX = Path("/bin/busybox")
COMMAND = [sys.executable, "-I", "-S", "-X", "utf8", "-c", START, str(PACKAGE.parent), ""]
APPLETS = ("sh", "cat", "ls", "id", "true", "sleep", "touch", "mkdir", "readlink", "grep", "pwd", "wc", "echo", "stat")
NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
DEV = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}
PTS = {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}
SHM = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]}
PROC = {"destination": "/proc", "type": "proc", "source": "proc"}
SYS = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}
MASKED = ["/proc/kcore", "/proc/keys", "/sys/firmware"]
READONLY = ["/proc/sys", "/proc/sysrq-trigger"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (PACKAGE / "init" / "init.elf").exists(), reason="init is not built: ./check native"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="a static busybox is the image (package busybox-static)"),
]


def snapshot(folder: Path) -> list[tuple[object, ...]]:
    """All that can be seen of a tree without following a link: names, modes, owners, times, contents."""
    found: list[tuple[object, ...]] = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        content = ""
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        found.append((str(path), info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_rdev, content))
    return found


def mounts() -> list[str]:
    return sorted(line.split(" ", 3)[3] for line in Path("/proc/self/mountinfo").read_text().splitlines())


class Bundle:
    """A bundle with a busybox image, beside it the host's canary; commands on containers with states of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rootfs = folder / "rootfs"
        self.canary = folder.parent / "canary"
        self.states = folder.parent / "states"
        self.count = 0
        self.started: list[str] = []
        for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.rootfs / "bin" / "busybox")
        for applet in APPLETS:
            (self.rootfs / "bin" / applet).symlink_to("busybox")
        (self.canary / "directory" / "pts").mkdir(parents=True)
        (self.canary / "file").write_text("canary")
        for name in ("ptmx", "null", "console"):
            (self.canary / "directory" / name).write_text("marker")
        self.before = snapshot(self.canary)
        self.mounts = mounts()
        self.config: dict[str, Any] = {
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/true"],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "capabilities": {name: ["CAP_KILL"] for name in ("bounding", "effective", "permitted")},
                "noNewPrivileges": True,
            },
            "mounts": [PROC, DEV, PTS, SHM, SYS],
            "linux": {
                "namespaces": [{"type": name} for name in NAMESPACES],
                "maskedPaths": MASKED,
                "readonlyPaths": READONLY,
            },
        }

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["process"]
        return found

    def write(self) -> None:
        (self.folder / "config.json").write_text(json.dumps(self.config))

    def call(self, *args: str, timeout: float = 30, **more: Any) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": self.folder, **more}
        return subprocess.run(
            [*COMMAND, "--root", str(self.states), *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False, **given,
        )  # fmt: skip

    def name(self) -> str:
        self.count += 1
        return f"hostile-{os.getpid()}-{self.count}"

    def run(self, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """`pyoci run` of a shell command or of what the config says."""
        if args:
            self.process["args"] = list(args)
        self.write()
        return self.call("run", self.name(), **more)

    def shell(self, script: str, **more: Any) -> str:
        done = self.run("/bin/sh", "-c", script, **more)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def start(self, *args: str) -> str:
        """A container that runs."""
        self.process["args"] = list(args or ("/bin/sleep", "100"))
        self.write()
        name = self.name()
        self.started.append(name)
        done = self.call("run", "--detach", name)
        assert (done.returncode, done.stderr) == (0, "")
        return name

    def untouched(self) -> None:
        assert snapshot(self.canary) == self.before
        assert mounts() == self.mounts

    def close(self) -> None:
        if self.states.exists():
            for entry in self.states.iterdir():
                if not entry.name.startswith("."):
                    self.call("delete", "--force", entry.name)
            assert not [entry for entry in self.states.iterdir() if not entry.name.startswith(".")]
        self.untouched()
        left = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/hostile-{os.getpid()}-*")]
        left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"hostile-{os.getpid()}-*")]
        assert not left


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path / "bundle")
    yield made
    made.close()


# -- what an image can hold

Link = "Callable[[Bundle, Path], None]"


def absolute(bundle: Bundle, path: Path) -> None:
    path.symlink_to(bundle.canary / "directory")


def relative(bundle: Bundle, path: Path) -> None:
    path.symlink_to("../" * 30 + str(bundle.canary / "directory").lstrip("/"))


def dangling(bundle: Bundle, path: Path) -> None:
    path.symlink_to(bundle.canary / "directory" / "new")


def to_file(bundle: Bundle, path: Path) -> None:
    path.symlink_to(bundle.canary / "file")


def to_descriptor(bundle: Bundle, path: Path) -> None:
    path.symlink_to("/proc/self/fd/3")


def loop(bundle: Bundle, path: Path) -> None:
    path.symlink_to(path.name)


def fifo(bundle: Bundle, path: Path) -> None:
    os.mkfifo(path)


def device(bundle: Bundle, path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))


KINDS = (absolute, relative, dangling, to_file, to_descriptor, loop, fifo, device)
# path in the image, whether the bundle mounts something on /dev, and whether there is a terminal
PLACES = (
    ("proc", True, False),
    ("sys", True, False),
    ("dev", True, False),
    ("dev", False, False),
    ("dev/null", False, False),
    ("dev/console", False, True),
    ("dev/ptmx", False, False),
    ("dev/pts", False, True),
    ("dev/pts/ptmx", False, True),
    ("dev/shm", False, False),
    ("dev/fd", False, False),
    ("volume", True, False),
    ("work", True, False),
    ("masked", True, False),
)


@pytest.mark.parametrize(("place", "own_dev", "terminal"), PLACES)
def test_links_in_the_image(bundle: Bundle, place: str, own_dev: bool, terminal: bool) -> None:
    config, process = bundle.config, bundle.process
    pts = place != "dev/pts/ptmx"
    config["mounts"] = [PROC, SYS, *([DEV] if own_dev else []), *([PTS] if own_dev or pts else []), SHM]
    config["mounts"].append({"destination": "/volume", "type": "bind", "source": "/etc/hosts", "options": ["bind"]})
    config["mounts"].append({"destination": "/volume2", "type": "tmpfs", "source": "tmpfs"})
    config["linux"]["maskedPaths"] = [*MASKED, "/masked"]
    config["linux"]["readonlyPaths"] = [*READONLY, "/masked"]
    config["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]
    process["terminal"] = terminal
    process["cwd"] = "/work"
    for kind in KINDS:
        path = bundle.rootfs / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif path.exists():
            shutil.rmtree(path)
        kind(bundle, path)
        done = bundle.run("/bin/sh", "-c", "echo x >/dev/null; ls / >/dev/null; pwd >/work/where", timeout=10)
        bundle.untouched()
        assert "Traceback" not in done.stderr
        if place in ("proc", "sys"):
            assert done.returncode, f"{place} was mounted through a {kind.__name__} link"


def test_volume_with_links_over_the_runtime_s_files(bundle: Bundle) -> None:
    """/dev is the attacker's, its null a way to a file of procfs (CVE-2025-31133)."""
    volume = bundle.folder / "volume"
    volume.mkdir()
    (volume / "null").symlink_to("/proc/sys/kernel/core_pattern")
    (volume / "console").symlink_to("/proc/sysrq-trigger")
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    bundle.config["mounts"] = [
        PROC,
        {"destination": "/dev", "type": "bind", "source": str(volume), "options": ["bind", "rw"]},
    ]
    bundle.config["linux"]["maskedPaths"] = ["/proc/uptime", "/proc/kcore"]
    bundle.config["linux"]["readonlyPaths"] = ["/proc/sys"]
    told = bundle.shell("cat /proc/uptime; stat -c %F,%t,%T /proc/uptime; echo pwned 2>&1 >/proc/sys/kernel/core_pattern || true")
    assert told.splitlines()[0] == "character special file,1,3"
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_device_that_is_something_else_is_refused(bundle: Bundle) -> None:
    bundle.config["mounts"] = [PROC]
    os.mknod(bundle.rootfs / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    done = bundle.run()
    assert done.returncode
    assert "device is there already" in done.stderr


@pytest.mark.parametrize("over", ["/proc", "/proc/sys", "/proc/self/attr"])
def test_sysctl_is_the_true_one(bundle: Bundle, over: str) -> None:
    """Whatever lies on /proc, the parameter is written, or the container does not start (CVE-2025-52881)."""
    fake = bundle.folder / "fake"
    (fake / "net" / "ipv4").mkdir(parents=True)
    (fake / "net" / "ipv4" / "ip_forward").write_text("fake")
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_default_ttl": "77"}
    bundle.config["linux"]["maskedPaths"] = bundle.config["linux"]["readonlyPaths"] = []
    second = {**PROC, "destination": "/true"}
    lying = {"destination": over, "type": "bind", "source": str(fake), "options": ["bind"]}
    bundle.config["mounts"] = [PROC, lying, second, DEV]
    done = bundle.run("/bin/cat", "/true/sys/net/ipv4/ip_default_ttl")
    assert done.returncode or done.stdout == "77\n"
    assert (fake / "net" / "ipv4" / "ip_forward").read_text() == "fake"
