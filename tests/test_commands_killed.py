"""Commands that are killed at any moment, and commands that meet: `delete --force` leaves nothing, ids stay unique.

Real containers: a static busybox in a bundle made from `pyoci spec`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyoci.__main__ import OPTIONS, START

PACKAGES = next(path for path in sys.path if path and os.path.exists(f"{path}/pyoci/cli.py"))
BUSYBOX = "/bin/busybox"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs a static busybox (package busybox-static)"),
    pytest.mark.skipif(
        not os.path.exists(f"{PACKAGES}/pyoci/init/init.elf"), reason="the native part is not built (./check native)"
    ),
]


class Runtime:
    """Commands as processes of their own, on containers whose ids begin alike."""

    def __init__(self, base: Path) -> None:
        self.root = str(base / "root")
        os.mkdir(self.root, 0o700)
        self.bundle = str(base / "bundle")
        self.prefix = f"pyoci-test-{os.getpid()}-"
        binaries = base / "bundle" / "rootfs" / "bin"
        binaries.mkdir(parents=True)
        shutil.copy(BUSYBOX, binaries)
        (binaries / "sleep").symlink_to("busybox")
        self("spec", "--bundle", self.bundle)
        config = base / "bundle" / "config.json"
        spec = json.loads(config.read_text())
        spec["process"].update(terminal=False, args=["sleep", "1000"])
        config.write_text(json.dumps(spec))

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        # not a pipe: the container would keep it open
        command = [sys.executable, *OPTIONS, "-c", START, PACKAGES, "", "--root", self.root, *argv]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __call__(self, *argv: str) -> int:
        return self.start(*argv).wait(60)

    def left(self) -> list[str]:
        """Cgroups, states and processes of our containers that still exist."""
        # others make and remove cgroups meanwhile: os.walk passes over what has gone
        folders = (Path(top) / name for top, names, _ in os.walk("/sys/fs/cgroup") for name in names)
        found = [str(path) for path in folders if path.name.startswith(self.prefix)]
        return found + [name for name in os.listdir(self.root) if name.startswith(self.prefix)]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime(tmp_path_factory.mktemp("killed"))


def inits(runtime: Runtime) -> list[int]:
    """Processes in the bundle's root."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.path.samefile(f"/proc/{entry}/root", f"{runtime.bundle}/rootfs"):
                found.append(int(entry))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("command", ["create", "run", "start", "delete"])
def test_killed_at_any_moment(runtime: Runtime, command: str) -> None:
    chance = random.Random(command)
    for number in range(12):
        id = f"{runtime.prefix}{command}{number}"
        if command in ("start", "delete"):
            assert runtime("create", "-b", runtime.bundle, id) == 0
            argv = [command, *(["--force"] if command == "delete" else []), id]
        else:
            argv = [command, "-b", runtime.bundle, *(["-d"] if command == "run" else []), id]
        running = runtime.start(*argv)
        time.sleep(chance.random() * 0.06)
        running.kill()
        running.wait()
        assert runtime("list") == 0
        assert runtime("delete", "--force", id) == 0
        assert runtime.left() == []
        deadline = time.monotonic() + 30
        while (alive := inits(runtime)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not alive


def test_an_id_is_given_once(runtime: Runtime) -> None:
    id = f"{runtime.prefix}same"
    for _ in range(3):
        racers = [runtime.start("create", "-b", runtime.bundle, id) for _ in range(4)]
        assert sorted(racer.wait(60) for racer in racers) == [0, 1, 1, 1]
        starters = [runtime.start("start", id) for _ in range(3)]
        assert sorted(starter.wait(60) for starter in starters) == [0, 1, 1]
        assert runtime("delete", "--force", id) == 0
        assert runtime.left() == []


def test_creates_and_deletes_that_meet(runtime: Runtime) -> None:
    id = f"{runtime.prefix}meet"
    for _ in range(4):
        racers = [runtime.start("create", "-b", runtime.bundle, id), runtime.start("delete", "--force", id)]
        racers += [runtime.start("delete", "--force", id), runtime.start("state", id), runtime.start("list")]
        for racer in racers:
            racer.wait(60)
        assert runtime("delete", "--force", id) == 0
        assert runtime.left() == []
