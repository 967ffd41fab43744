"""Hooks exactly by the specification's table (config.md#posix-platform-hooks): one row for each kind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from containers import BUSYBOX, Box, box, needed, until  # noqa: F401 - box is a fixture

pytestmark = needed
NAMESPACES = ("mnt", "net", "uts", "ipc")


class Row(NamedTuple):
    """What the table says of one kind.  `pid` is how whoever reads it calls the container's process."""

    during: str  # the operation that runs it
    namespaces: str  # "runtime" or "container"
    path: str  # whose namespace its path is resolved in
    statuses: tuple[str, ...]  # on its standard input
    pid: str  # "runtime", "container", or "none": there is no process any more
    program: bool  # whether the program runs before it
    failure: str  # "error" or "warning"


TABLE = {
    "prestart": Row("create", "runtime", "runtime", ("creating", "created"), "runtime", False, "error"),
    "createRuntime": Row("create", "runtime", "runtime", ("creating", "created"), "runtime", False, "error"),
    "createContainer": Row("create", "container", "runtime", ("creating", "created"), "container", False, "error"),
    "startContainer": Row("start", "container", "container", ("created",), "container", False, "error"),
    "poststart": Row("start", "runtime", "runtime", ("running",), "runtime", True, "error"),
    "poststop": Row("delete", "runtime", "runtime", ("stopped",), "none", True, "warning"),
}
OPERATIONS = ("create", "start", "delete")
KINDS = pytest.mark.parametrize("kind", TABLE)


class Hooked:
    """A box whose program notes that it runs, and hooks with a program that exists on one side only."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.paths = {"runtime": box.folder / "only-outside", "container": box.rootfs / "only-inside"}
        for path in self.paths.values():
            path.write_bytes(BUSYBOX.read_bytes())
            path.chmod(0o755)

    def add(self, kind: str, script: str, path: str = "", **more: Any) -> None:
        """A hook; its directory is the container's /tmp, from wherever it sees that."""
        row = TABLE[kind]
        where = {"runtime": str(self.paths["runtime"]), "container": "/only-inside"}[path or row.path]
        folder = "/tmp" if kind == "startContainer" else f"{self.box.rootfs}/tmp"
        entry = {"path": where, "args": ["sh", "-c", f"cd {folder}; {script}"], "env": ["PATH=/bin"]} | more
        self.box.config.setdefault("hooks", {}).setdefault(kind, []).append(entry)

    def file(self, name: str) -> Path:
        return self.box.rootfs / "tmp" / name

    def program(self) -> None:
        self.box.process["args"] = ["sh", "-c", "touch /tmp/program; exec sleep 100"]
        self.box.write()

    def do(self, operation: str) -> None:
        """One operation of the lifecycle, which must succeed."""
        if operation == "create":
            self.box.create("touch /tmp/program; exec sleep 100")
        elif operation == "start":
            self.box.ok("start", self.box.id)
        else:
            self.box.ok("kill", self.box.id, "KILL")
            until(lambda: self.box.status() == "stopped")
            self.box.ok("delete", self.box.id)

    def until(self, operation: str) -> None:
        """All operations before this one."""
        for name in OPERATIONS[: OPERATIONS.index(operation)]:
            self.do(name)

    def last(self, operation: str) -> tuple[bool, str]:
        """Whether an operation with a hook that fails succeeds, and what it says."""
        box = self.box
        words = {
            "create": ("create", "--bundle", str(box.bundle), box.id),
            "start": ("start", box.id),
            "delete": ("delete", "--force", box.id),
        }[operation]
        if operation == "create":
            self.program()
        done = box(*words)
        assert "Traceback" not in done.stderr
        return done.returncode == 0, done.stderr


@pytest.fixture
def hooked(box: Box) -> Hooked:
    return Hooked(box)


@KINDS
def test_when_where_and_with_what(hooked: Hooked, kind: str) -> None:
    """In which operation, in whose namespaces, with which state on standard input; not before and not twice."""
    row, box = TABLE[kind], hooked.box
    links = "; ".join(f"readlink /proc/self/ns/{name} >> ns" for name in NAMESPACES)
    hooked.add(kind, f"cat > state; {links}; test -e program && touch after; echo x >> count")
    box.config["annotations"] = {"org.example.key": "value"}
    pid, namespaces = 0, {"runtime": [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES]}
    for operation in OPERATIONS:
        assert hooked.file("count").exists() == (OPERATIONS.index(operation) > OPERATIONS.index(row.during)), operation
        hooked.do(operation)
        if operation == "create":
            pid = box.pid()
            namespaces["container"] = [os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES]
            assert namespaces["container"] != namespaces["runtime"]
            assert not hooked.file("program").exists()
        elif operation == "start":
            until(hooked.file("program").exists)
    assert hooked.file("count").read_text() == "x\n"
    assert hooked.file("ns").read_text().split() == namespaces[row.namespaces]
    state = json.loads(hooked.file("state").read_text())
    assert state["status"] in row.statuses
    assert state["pid"] == {"runtime": pid, "container": 1, "none": 0}[row.pid]
    assert (state["id"], state["bundle"], state["annotations"]) == (
        box.id, str(box.bundle), {"org.example.key": "value"},
    )  # fmt: skip
    # poststart comes after the program's execution, and races with what the program does first
    if kind != "poststart":
        assert hooked.file("after").exists() == row.program


@KINDS
def test_its_path_is_of_one_side(hooked: Hooked, kind: str) -> None:
    """A program that only the other side has is not found.  (That its own side's is, the other tests show.)"""
    row = TABLE[kind]
    other = {"runtime": "container", "container": "runtime"}[row.path]
    hooked.add(kind, "touch ran", path=other)
    hooked.until(row.during)
    good, said = hooked.last(row.during)
    assert good == (row.failure == "warning")
    assert f"/hooks/{kind}/0" in said and "no such file" in said
    assert not hooked.file("ran").exists()


@KINDS
@pytest.mark.parametrize("how", ["status", "signal", "timeout"])
def test_its_failure(hooked: Hooked, kind: str, how: str) -> None:
    """An error ends the container before later hooks, and then come poststop hooks; a warning ends nothing."""
    row, box = TABLE[kind], hooked.box
    script = {"status": "exit 5", "signal": "kill -9 $$", "timeout": "touch begun; sleep 60; touch ended"}[how]
    limit: dict[str, Any] = {"timeout": 1} if how == "timeout" else {}
    hooked.add(kind, script, **limit)
    hooked.add(kind, "touch next")
    if kind != "poststop":
        hooked.add("poststop", "touch poststop")
    hooked.until(row.during)
    good, said = hooked.last(row.during)
    assert f"/hooks/{kind}/0" in said
    assert {"status": "exit status 5", "signal": "SIGKILL", "timeout": "timeout"}[how] in said
    assert hooked.file("begun").exists() == (how == "timeout")
    if row.failure == "warning":
        assert good and hooked.file("next").exists()
    else:
        assert not good and not hooked.file("next").exists()
        assert hooked.file("program").exists() <= row.program
        assert hooked.file("poststop").exists()
    box.gone()
    assert not hooked.file("ended").exists()
