"""The import budget: which modules each command may load.

A command of a container runtime lives for milliseconds, and an import is what it spends them on: `re` costs 5 ms,
`argparse` 7, `typing` 8, `json` 6, where the interpreter itself needs 6.  So each command that an engine calls has a
list, and what is not on it is not loaded.  To need one module more is a decision that shows up here.

The commands are run with the launcher's own options; what counts is what they load beyond the bare interpreter.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyoci
from pyoci.__main__ import OPTIONS, START
from pyoci.jsontext import dumps, loads

PYTHON = getattr(sys, "_base_executable", sys.executable)
# Runs a command as `START` does; when it ends, the names of all modules are in the file that its first argument names.
WATCHED = f"""\
import posix, sys
def leave(status, path=sys.argv.pop(1), leave=posix._exit, parent=posix.getpid()):
    if posix.getpid() == parent:
        fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC)
        posix.write(fd, chr(10).join(sys.modules).encode())
        posix.close(fd)
    leave(status)
posix._exit = leave
{START}
"""

# Nothing that an engine calls loads one of these, at any price.
FORBIDDEN = frozenset(
    (
        "argparse", "asyncio", "collections", "contextlib", "ctypes", "dataclasses", "enum", "functools", "importlib",
        "inspect", "json", "jsonschema", "logging", "multiprocessing", "os", "pathlib", "pyroute2", "re", "shutil",
        "signal", "site", "socket", "string", "structlog", "subprocess", "tempfile", "threading", "traceback", "types",
        "typing", "warnings",
    )
)  # fmt: skip

# Of the interpreter: built in, or small extensions.
C = frozenset(("_json", "_socket", "_struct", "errno", "fcntl", "gc", "marshal", "posix", "select", "time"))
# Every command that is not about pyoci itself.
BASE = frozenset(
    (
        "pyoci", "pyoci.__main__", "pyoci.cli", "pyoci.commands", "pyoci.directory", "pyoci.errors", "pyoci.jsontext",
        "pyoci.log", "pyoci.options", "pyoci.signals", "pyoci.state",
    )
)  # fmt: skip
# Looking at and stopping what runs: neither `spec` nor `plan`.
LIVE = BASE | {"pyoci.cgroup", "pyoci.cgroup.files", "pyoci.cgroup.live"}
# A program of kernel calls, read or made.
PROGRAM = frozenset(
    (
        "pyoci.container", "pyoci.kernel", "pyoci.kernel.errnos", "pyoci.kernel.flags", "pyoci.kernel.layouts",
        "pyoci.plan", "pyoci.plan.ops", "pyoci.program", "pyoci.reports",
    )
)  # fmt: skip
# From config.json to a program.
PLANNED = LIVE | PROGRAM | frozenset(
    (
        "pyoci.cgroup.detect", "pyoci.container.perform", "pyoci.host", "pyoci.kernel.bpf", "pyoci.kernel.capabilities",
        "pyoci.kernel.seccomp", "pyoci.kernel.syscalls", f"pyoci.kernel.syscalls_{platform.machine()}", "pyoci.launch",
        "pyoci.plan.cgroup_entry", "pyoci.plan.cgroup_limits", "pyoci.plan.cgroups", "pyoci.plan.container",
        "pyoci.plan.device_rules", "pyoci.plan.devices", "pyoci.plan.entry", "pyoci.plan.mounts",
        "pyoci.plan.namespaces", "pyoci.plan.options", "pyoci.plan.paths", "pyoci.plan.process", "pyoci.spec",
        "pyoci.spec.linux", "pyoci.spec.linux_rules", "pyoci.spec.load", "pyoci.spec.read", "pyoci.spec.resource_rules",
        "pyoci.spec.resource_types", "pyoci.spec.types", "pyoci.spec.unsupported", "pyoci.spec.validate",
    )
)  # fmt: skip
CREATE = PLANNED | {
    "pyoci.cgroup.perform",
    "pyoci.commands.create",
    "pyoci.container.create",
    "pyoci.container.replay",
    "pyoci.shortcut",
}
BUDGET = {
    "create": CREATE,
    "run": CREATE | {"pyoci.commands.run", "pyoci.console", "pyoci.container.run", "pyoci.container.teardown"},
    "start": LIVE | PROGRAM | {"pyoci.commands.start", "pyoci.container.start"},
    "exec": PLANNED | {"pyoci.commands.exec", "pyoci.console", "pyoci.container.execute", "pyoci.plan.join"},
    "state": LIVE | {"pyoci.commands.state"},
    "kill": LIVE | {"pyoci.commands.kill"},
    "delete": LIVE | {"pyoci.commands.delete", "pyoci.container", "pyoci.container.teardown"},
    "list": LIVE | {"pyoci.commands.list"},
    "ps": LIVE | {"pyoci.commands.ps", "pyoci.hooks"},
    "pause": LIVE | {"pyoci.commands.pause"},
    "resume": LIVE | {"pyoci.commands.resume"},
}

PAUSE = """\
void _start(void);
__asm__(".globl _start\\n_start:\\n" LOOP);
"""
# A program without anything: it sleeps until it is killed.
LOOP = {
    "x86_64": r'-DLOOP="1: mov $34,%eax\n syscall\n jmp 1b\n"',
    "aarch64": r'-DLOOP="1: mov x0,#0\n mov x1,#0\n mov x2,#0\n mov x3,#0\n mov x8,#73\n svc #0\n b 1b\n"',
}


class Watched:
    """Commands on containers below one root, and the modules that they loaded."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.packages = Path(str(pyoci.__file__)).parent.parent
        self.bare = frozenset(self.python("-c", "import sys; print(*sys.modules)")[0].split())

    def python(self, *arguments: str) -> tuple[str, int]:
        """Output (in a file: a container that goes on must not keep us waiting for its end) and status."""
        with (self.top / "output").open("w+", encoding="utf-8") as output:
            command = [PYTHON, *OPTIONS, *arguments]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, timeout=60
            )
            output.seek(0)
            return output.read(), done.returncode

    def modules(self, *arguments: str, status: int = 0) -> set[str]:
        """What the command loads beyond the bare interpreter."""
        report = self.top / "modules"
        report.unlink(missing_ok=True)
        root = str(self.top / "root")
        words = ("-c", WATCHED, str(report), str(self.packages), "", "--root", root, *arguments)
        output, found = self.python(*words)
        assert found == status, (arguments, output)
        # the stand-in for __future__ is no import; encodings.* are small and depend on the machine's names
        return {
            name
            for name in report.read_text().splitlines()
            if name not in self.bare and name != "__future__" and not name.startswith("encodings.")
        }


def hold(watched: Watched, command: str, *arguments: str, status: int = 0) -> None:
    loaded = watched.modules(command, *arguments, status=status)
    assert not loaded & FORBIDDEN
    assert sorted(loaded - C - BUDGET[command]) == [], f"{command} loads modules that are not in its budget"


@pytest.fixture
def watched() -> Iterator[Watched]:
    top = Path(tempfile.mkdtemp(prefix="pyoci-budget-"))
    try:
        yield Watched(top)
    finally:
        shutil.rmtree(top)


@pytest.fixture
def bundle(watched: Watched) -> Path:
    """A bundle whose program pauses."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed")
    folder = watched.top / "bundle"
    (folder / "rootfs").mkdir(parents=True)
    source = watched.top / "pause.c"
    source.write_text(PAUSE)
    flags = ["-nostdlib", "-static", "-fno-pic", "-no-pie", LOOP[platform.machine()]]
    subprocess.run(["cc", *flags, str(source), "-o", str(folder / "rootfs" / "pause")], check=True)
    for name in ("proc", "dev", "sys"):
        (folder / "rootfs" / name).mkdir()
    watched.modules("spec", "--bundle", str(folder))
    config = loads((folder / "config.json").read_bytes())
    assert isinstance(config, dict)
    config["process"] |= {"args": ["/pause"], "terminal": False}
    config["process"]["env"] += ["HOME=/"]  # or the image's /etc/passwd is read, see `test_a_process_without_a_home`
    (folder / "config.json").write_text(dumps(config))
    return folder


def test_no_budget_holds_what_is_forbidden() -> None:
    for command, allowed in BUDGET.items():
        assert not (allowed | C) & FORBIDDEN, command
    for command in ("state", "kill", "delete", "list", "ps", "pause", "resume"):
        assert not [name for name in BUDGET[command] if name.startswith(("pyoci.spec", "pyoci.plan", "pyoci.host"))]


def test_a_budget_names_modules_that_exist() -> None:
    package = Path(str(pyoci.__file__)).parent
    for name in frozenset[str]().union(*BUDGET.values()):
        path = package.parent / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), name


@pytest.mark.parametrize("command", ["state", "kill", "delete", "start", "exec"])
def test_a_container_that_does_not_exist(watched: Watched, command: str) -> None:
    more = ["--force"] if command == "delete" else []
    words = ["sh"] if command == "exec" else []
    loaded = watched.modules(command, *more, "nothing", *words, status={"delete": 0, "exec": 255}.get(command, 1))
    assert not loaded & FORBIDDEN
    assert sorted(loaded - C - BUDGET[command]) == []


def test_no_containers(watched: Watched) -> None:
    (watched.top / "root").mkdir(0o700)
    hold(watched, "list")


def test_help_imports_no_command(watched: Watched) -> None:
    loaded = watched.modules("--help") | watched.modules("create", "--help")
    assert {name for name in loaded if name.startswith("pyoci.commands.")} == {"pyoci.commands.usage"}
    assert not loaded & FORBIDDEN


@pytest.mark.root
def test_a_containers_life(watched: Watched, bundle: Path) -> None:
    name = f"budget-{watched.top.name[-8:]}"
    try:
        hold(watched, "create", "--bundle", str(bundle), name)
        hold(watched, "state", name)
        hold(watched, "start", name)
        hold(watched, "list")
        hold(watched, "ps", name)
        hold(watched, "exec", "--detach", name, "/pause")
        hold(watched, "pause", name)
        hold(watched, "resume", name)
        hold(watched, "kill", name, "KILL")
        deadline = time.monotonic() + 60
        look = ("-c", START, str(watched.packages), "", "--root", str(watched.top / "root"), "state", name)
        while '"stopped"' not in watched.python(*look)[0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        hold(watched, "delete", name)
    finally:
        watched.modules("delete", "--force", name)


@pytest.mark.root
def test_run(watched: Watched, bundle: Path) -> None:
    name = f"budget-{watched.top.name[-8:]}"
    try:
        hold(watched, "run", "--detach", "--bundle", str(bundle), name)
    finally:
        watched.modules("delete", "--force", name)


@pytest.mark.root
def test_a_process_without_a_home(watched: Watched, bundle: Path) -> None:
    config = loads((bundle / "config.json").read_bytes())
    assert isinstance(config, dict)
    config["process"]["env"].pop()
    (bundle / "config.json").write_text(dumps(config))
    name = f"budget-{watched.top.name[-8:]}"
    more = {"pyoci.passwd", "pyoci.tree", "stat", "_stat"}
    try:
        assert watched.modules("create", "--bundle", str(bundle), name) - C - BUDGET["create"] <= more
        assert watched.modules("exec", "--detach", name, "/pause") - C - BUDGET["exec"] <= more
    finally:
        watched.modules("delete", "--force", name)
