"""What tests in the virtual machine share: systemd's view of units, and pyoci on the machine's own disk."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from containers import PACKAGES, until

from pyoci.__main__ import OPTIONS, START

# below nothing that others may write to, or the launcher refuses
OWN = Path("/opt/pyoci-test")


def show(unit: str, *properties: str) -> dict[str, str]:
    """Properties of a unit of the system's, as systemctl writes them."""
    words = ["systemctl", "show", unit, "--property", ",".join(properties)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def loaded(unit: str) -> bool:
    """Whether systemd knows a unit of that name."""
    return show(unit, "LoadState")["LoadState"] == "loaded"


def units(pattern: str) -> list[str]:
    """The names of the units that there are, failed ones too."""
    words = ["systemctl", "list-units", "--all", "--plain", "--no-legend", pattern]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


def all_gone(*patterns: str) -> None:
    """No unit of these names is left, and no cgroup."""
    for pattern in patterns:
        until(lambda pattern=pattern: not units(pattern), f"{pattern} go")  # type: ignore[misc]
        assert [*Path("/sys/fs/cgroup").rglob(pattern)] == []


def install(folder: Path = OWN) -> Path:
    """The program under test, where everybody may execute it and root keeps snapshots beside it.

    That is the launcher with its package, from the environment that the machine has been given; without one, or
    without its interpreter, a script that does the same.
    """
    program = folder / "bin/pyoci"
    if os.environ.get("PYOCI_TEST_PROGRAM") == str(program) and program.exists():
        return program
    shutil.rmtree(folder, ignore_errors=True)
    packages = Path(PACKAGES)
    prefix = packages.parents[2]
    configuration = prefix / "pyvenv.cfg"
    lines = configuration.read_text().splitlines() if configuration.exists() else []
    (home, *_) = [line.partition(" = ")[2] for line in lines if line.startswith("home = ")] or ["/nonexistent"]
    program.parent.mkdir(parents=True)
    if (prefix / "bin/pyoci").exists() and Path(home, packages.parent.name).exists():
        place = folder / packages.relative_to(prefix)
        for name in ("pyoci", "structlog"):
            shutil.copytree(packages / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(prefix / "bin/pyoci", program)
        shutil.copy(configuration, folder)
    else:
        shutil.copytree(packages / "pyoci", folder / "packages/pyoci")
        words = [sys.executable, *OPTIONS, "-c", START, str(folder / "packages"), "/usr/lib/python3/dist-packages"]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX,go-w", str(folder)], check=True)
    # what the first commands do for all that come after them
    for _ in range(2):
        subprocess.run([str(program), "--root", "/run/pyoci-none", "state", "none"], capture_output=True, check=False)
    return program


if __name__ == "__main__":
    install()
