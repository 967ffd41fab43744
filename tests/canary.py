"""A bundle beside a canary: a tree of the host's, which is the same before and after whatever a container tries.

What test_hostile_*.py share.  Every test looks at the host's side: the canary, with its contents and times, and the
list of our mounts.  What a container was refused matters less than what it did not get.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import BUSYBOX

import pyoci
from pyoci.__main__ import START

PACKAGE = Path(pyoci.__file__).parent
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


def mounts(folder: Path) -> list[str]:
    """Those of our mounts that have to do with a folder, as source or as target."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


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
        self.mounts = mounts(folder.parent)
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
        # a created container keeps the streams that it was given
        quiet = args[0] == "create"
        given["stdout"] = given["stderr"] = subprocess.DEVNULL if quiet else subprocess.PIPE
        return subprocess.run(
            [*COMMAND, "--root", str(self.states), *args], text=True, timeout=timeout, check=False, **given,
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
        # what runs on keeps the streams that it was given
        done = subprocess.run(
            [*COMMAND, "--root", str(self.states), "run", "--detach", name],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder,
            timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0
        return name

    def compile(self, name: str, text: str) -> None:
        """A static program of C in the image's /bin; skips where that cannot be made."""
        if shutil.which("cc") is None:
            pytest.skip("no C compiler is installed")
        source = self.folder / f"{name}.c"
        source.write_text(text)
        words = ["cc", "-static", "-O1", "-w", "-o", str(self.rootfs / "bin" / name), str(source)]
        built = subprocess.run(words, capture_output=True, text=True, check=False)
        if built.returncode:
            pytest.skip(f"no static C library: {built.stderr[:100]}")

    def untouched(self) -> None:
        assert snapshot(self.canary) == self.before
        assert mounts(self.folder.parent) == self.mounts

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
