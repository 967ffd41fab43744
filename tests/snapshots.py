"""A package and a launcher of a test's own, whose snapshots are taken, spoilt and looked at."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import containers
import pytest
from containers import HERE, Box

needed = [
    *containers.needed,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="snapshots are for x86_64 only"),
]
STATE = ("state", "nobody")
ANSWER = (1, "", "pyoci: container 'nobody': container does not exist\n")
NO_PYTHON = 77


class Kept(Box):
    """Containers made with a launcher of their own.  `python(False)` takes the interpreter away, which ends with 77."""

    def __init__(self, folder: Path, launcher: Path) -> None:
        super().__init__(folder)
        self.prefix = folder / "env"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.package = self.prefix / "lib" / version / "site-packages" / "pyoci"
        ignored = shutil.ignore_patterns("*.archive", "*.snapshot")
        shutil.copytree(HERE, self.package, ignore=ignored)
        (self.prefix / "bin").mkdir()
        self.launcher = self.prefix / "bin" / "pyoci"
        shutil.copy(launcher, self.launcher)
        (folder / "none").mkdir()
        (folder / "none" / version).write_text(f"#!/bin/sh\nexit {NO_PYTHON}\n")
        (folder / "none" / version).chmod(0o755)
        self.python(True)

    def python(self, there: bool) -> None:
        base = Path(getattr(sys, "_base_executable", sys.executable)).resolve().parent
        (self.prefix / "pyvenv.cfg").write_text(f"home = {base if there else self.folder / 'none'}\n")

    def command(self, *args: str) -> list[str]:
        return [str(self.launcher), "--root", str(self.states), *args]

    def __call__(self, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Once more where the interpreter was started, which has done nothing: one process in two thousand has its own
        stack where the snapshot's would have to be."""
        done = super().__call__(*args, **more)
        for _ in range(2):
            if done.returncode == NO_PYTHON:
                done = super().__call__(*args, **more)
        return done

    def take(self) -> Path:
        """The snapshot, after a command that takes it."""
        assert self.answer() == ANSWER
        (path,) = (self.package / "__pycache__").glob("*.snapshot")
        assert path.stat().st_size > 1 << 20, "no snapshot on this machine: see pyoci --debug state nobody"
        assert path.stat().st_mode & 0o777 == 0o600
        return path

    def answer(self, *args: str, **more: Any) -> tuple[int, str, str]:
        done = self(*(args or STATE), **more)
        return done.returncode, done.stdout, done.stderr

    def resumes(self) -> bool:
        """Whether a command needs no interpreter to be started."""
        self.python(False)
        done = self(*STATE)
        self.python(True)
        assert done.returncode in (1, NO_PYTHON), done
        return done.returncode == 1


@pytest.fixture
def kept(tmp_path: Path, build: Callable[..., Path]) -> Iterator[Kept]:
    old = os.umask(0o022)
    made = Kept(tmp_path, build(platform.machine()) / "pyoci")
    try:
        yield made
    finally:
        made.python(True)
        made.close()
        os.umask(old)
