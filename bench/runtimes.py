"""A runtime under measurement: its commands, timed, each container isolated in a state directory of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT = 30.0  # seconds for one command


class Failed(Exception):
    """A command ended with another status than 0, or not at all."""


class Bundle:
    """A bundle made from a runtime's own `spec`, whose root holds two static programs: /true and /wait."""

    def __init__(self, path: Path, config: dict[str, Any], programs: Path) -> None:
        self.path = path
        self.config = config
        config["ociVersion"] = "1.0.2"  # which all of them know
        config["process"]["terminal"] = False
        root = path / "rootfs"
        for name in ("proc", "dev", "sys"):
            (root / name).mkdir(parents=True)
        for name in ("true", "wait"):
            (root / name).write_bytes((programs / name).read_bytes())
            (root / name).chmod(0o755)

    def write(self, program: str, memory: int | None = None) -> None:
        """Make `program` the container's process, under a limit of `memory` bytes."""
        self.config["process"]["args"] = [program]
        resources = self.config["linux"].setdefault("resources", {})
        resources.pop("memory", None)
        if memory is not None:
            resources["memory"] = {"limit": memory}
        (self.path / "config.json").write_text(json.dumps(self.config), encoding="utf-8")


class Runtime:
    """`name` is what tables call it; `path` the executable; `folder` a place for states and messages; `options` what
    every command is given."""

    def __init__(self, name: str, path: str, folder: Path, options: Sequence[str] = ()) -> None:
        self.name = name
        self.path = path
        self.folder = folder
        self.options = options
        folder.mkdir()
        self.numbers = itertools.count()
        self.messages = folder / "stderr"
        self.pid_file = folder / "pid"
        self.null = os.open(os.devnull, os.O_RDWR)

    def version(self) -> str:
        return subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[
            0
        ]

    def container(self) -> str:
        """An id that was not used before."""
        return f"bench-{self.name}-{os.getpid()}-{next(self.numbers)}"

    def timed(self, *arguments: str) -> float:
        """Seconds that the command takes, from its spawn to its end."""
        command = [self.path, "--root", str(self.folder / "states"), *self.options, *arguments]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_DUP2, self.null, 0),
            (os.POSIX_SPAWN_DUP2, self.null, 1),
            (os.POSIX_SPAWN_OPEN, 2, str(self.messages), flags, 0o600),
        ]
        start = time.perf_counter()
        pid = os.posix_spawn(self.path, command, os.environ, file_actions=actions)
        # A watchdog costs the measured time nothing: SIGALRM interrupts the wait.
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
        try:
            status = os.waitpid(pid, 0)[1]
            elapsed = time.perf_counter() - start
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Failed(f"{' '.join(command)}: did not end in {TIMEOUT:.0f} s") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if status:
            words = self.messages.read_text(encoding="utf-8", errors="replace").strip()
            raise Failed(f"{' '.join(command)}: status {os.waitstatus_to_exitcode(status)}: {words}")
        return elapsed

    def run(self, bundle: Bundle) -> float:
        """`run` of the bundle's program."""
        container = self.container()
        try:
            return self.timed("run", "--bundle", str(bundle.path), container)
        except Failed:
            self.remove(container)
            raise

    def create(self, bundle: Bundle, container: str) -> tuple[float, int]:
        """Seconds of `create`, and the pid of the container's process, which is now a child of ours."""
        elapsed = self.timed("create", "--bundle", str(bundle.path), "--pid-file", str(self.pid_file), container)
        return elapsed, int(self.pid_file.read_text())

    def create_only(self, bundle: Bundle) -> float:
        """`create`; what it made is removed, which is not counted."""
        container = self.container()
        try:
            return self.create(bundle, container)[0]
        finally:
            self.remove(container)

    def life(self, bundle: Bundle) -> float:
        """`create`, `start` and `delete`, without the time that the program itself takes to end."""
        container = self.container()
        try:
            elapsed, pid = self.create(bundle, container)
            elapsed += self.timed("start", container)
            os.waitpid(pid, 0)
            return elapsed + self.timed("delete", container)
        except Failed:
            self.remove(container)
            raise

    def remove(self, container: str) -> None:
        """End a container, whatever its status, and reap what it leaves."""
        try:
            self.timed("delete", "--force", container)
        except Failed:
            pass  # there is none
        reap()


def reap() -> None:
    """Collect the ended processes that were left to us."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def children() -> set[int]:
    """Pids of this process's children."""
    pid = os.getpid()
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def late(number: int, frame: object) -> None:
    """Handler of SIGALRM."""
    raise TimeoutError


signal.signal(signal.SIGALRM, late)
