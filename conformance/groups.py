"""Cgroups that a run had for itself (inside.sh), from outside, when its processes have ended with their namespaces."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path


def below(group: str) -> Iterator[Path]:
    """A group and all in it, in all hierarchies, from below."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        for base in (controllers.removeprefix("name="), "") if controllers else ("unified", ""):
            for where, _, _ in os.walk(f"/sys/fs/cgroup/{base}{path}/{group}", topdown=False):
                yield Path(where)


def thaw(group: str) -> None:
    """What is frozen by v1 cannot be killed."""
    for place in below(group):
        if (place / "freezer.state").exists():
            (place / "freezer.state").write_text("THAWED")


def tidy(group: str) -> None:
    """Remove a group in all hierarchies."""
    thaw(group)
    for place in below(group):
        for _ in range(50):
            try:
                place.rmdir()
                break
            except OSError:
                time.sleep(0.1)  # the last of them is still ending
