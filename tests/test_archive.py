"""Archives of byte code: what is in them, when they are used, and when not."""

from __future__ import annotations

import importlib
import os
import platform
import posix
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType

import pytest

import pyoci
from pyoci import archive, archive_write
from pyoci.__main__ import OPTIONS, START

HERE = Path(str(pyoci.__file__)).parent
TAG = sys.implementation.cache_tag


class Install:
    """A copy of the package with a launcher beside it, in an environment of this interpreter."""

    def __init__(self, top: Path, launcher: Path) -> None:
        base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.package = top / "lib" / version / "site-packages" / "pyoci"
        shutil.copytree(HERE, self.package, ignore=shutil.ignore_patterns("*.archive"))
        self.launcher = top / "bin" / "pyoci"
        self.launcher.parent.mkdir()
        shutil.copy(launcher, self.launcher)
        (top / "pyvenv.cfg").write_text(f"home = {base.parent}\n")

    def run(self, *arguments: str, umask: int = 0o022) -> tuple[str, str, int]:
        done = subprocess.run(
            [self.launcher, *arguments], capture_output=True, text=True, check=False, timeout=120, umask=umask
        )
        # with a snapshot nothing is read from an archive
        for path in self.package.glob("__pycache__/*.snapshot"):
            path.unlink()
        return done.stdout, done.stderr, done.returncode

    def archives(self) -> dict[str, Path]:
        return {path.name.partition(".")[0]: path for path in (self.package / "__pycache__").glob("*.archive")}


@pytest.fixture
def install(tmp_path: Path, build: Callable[..., Path]) -> Iterator[Install]:
    old = os.umask(0o022)
    try:
        top = tmp_path / "env"
        top.mkdir()
        yield Install(top, build(platform.machine()) / "pyoci")
    finally:
        os.umask(old)


STATE = ("--root", "/nonexistent/pyoci", "state", "nobody")
ANSWER = ("", "pyoci: container 'nobody': container does not exist\n", 1)


def test_made_by_the_first_use_and_used_by_the_second(install: Install) -> None:
    assert install.run(*STATE) == ANSWER
    made = install.archives()
    assert {"pyoci", "state"} <= set(made)
    before = [path.stat().st_mtime_ns for path in made.values()]
    # what is in an archive is not read from files any more
    for path in (install.package / "cgroup").rglob("*.pyc"):
        path.unlink()
    assert install.run(*STATE) == ANSWER
    # what talks to systemd is in none, and is put into the snapshot that each use makes here
    assert {path.name.partition(".")[0] for path in (install.package / "cgroup").rglob("*.pyc")} <= {"bus", "systemd"}
    assert [path.stat().st_mtime_ns for path in install.archives().values()] == before


def test_a_changed_file_is_used_at_once(install: Install) -> None:
    install.run(*STATE)
    old = install.archives()
    source = install.package / "commands" / "state.py"
    source.write_text(source.read_text() + "\n\ndef run(settings, options):\n    return 42\n")
    assert install.run(*STATE) == ("", "", 42)
    new = install.archives()
    assert set(new) == set(old)
    assert not set(new.values()) & set(old.values())
    assert not any(path.exists() for path in old.values())
    assert install.run(*STATE) == ("", "", 42)


@pytest.mark.parametrize("name", ["pyoci", "state"])
@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "magic"])
def test_a_damaged_archive_is_not_used(install: Install, name: str, damage: str) -> None:
    install.run(*STATE)
    path = install.archives()[name]
    data = path.read_bytes()
    damaged = {"empty": b"", "cut": data[: len(data) // 2], "zeros": bytes(len(data)), "magic": b"\0\0\r\n" + data[4:]}
    path.write_bytes(damaged[damage])
    assert install.run(*STATE) == ANSWER
    # written anew; marshal's bytes are not the same every time
    assert path.read_bytes()[: archive.HEAD] == data[: archive.HEAD]
    assert install.run(*STATE) == ANSWER


def test_nothing_is_written_under_a_lax_umask(install: Install) -> None:
    """Others could write it, and then root would refuse to run."""
    assert install.run(*STATE, umask=0) == ANSWER
    assert install.archives() == {}


def test_a_directory_that_cannot_be_written_is_no_error(install: Install) -> None:
    cache = install.package / "__pycache__"
    shutil.rmtree(cache)
    cache.write_text("in the way")
    assert install.run(*STATE) == ANSWER


def test_without_the_launcher_there_are_none(install: Install) -> None:
    command = [sys.executable, *OPTIONS, "-c", START, str(install.package.parent), "", *STATE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ANSWER
    assert install.archives() == {}


def test_writers_at_once(install: Install) -> None:
    commands = [subprocess.Popen([install.launcher, *STATE], stderr=subprocess.DEVNULL) for _ in range(6)]
    assert [command.wait(120) for command in commands] == [1] * 6
    assert install.run(*STATE) == ANSWER
    assert {path.suffix for path in (install.package / "__pycache__").glob(f"*.{TAG}.*.*")} == {".archive"}


def test_tracebacks_name_file_and_line(install: Install) -> None:
    source = install.package / "commands" / "state.py"
    source.write_text(source.read_text() + "\n\ndef run(settings, options):\n    raise KeyError('surprise')\n")
    lines = len(source.read_text().splitlines())
    install.run(*STATE)
    assert f"(at state.py:{lines})" in install.run(*STATE)[1]


# ---- what is in them


@pytest.mark.parametrize("command", archive.HOT)
def test_modules_come_after_what_they_need(command: str) -> None:
    seen: set[str] = set()
    for module, path in (*archive_write.modules(archive.ALL).items(), *archive_write.modules(command).items()):
        assert module not in seen
        seen.add(module)
        name, is_package, code = archive_write.entry(module, path)
        assert (name, is_package, code.co_filename) == (module, path.name == "__init__.py", str(path))
        parent = module.rpartition(".")[0]
        assert not parent or parent in seen
        for needed in archive_write.imports(__import__("ast").parse(path.read_bytes())):
            assert archive_write.source(needed) is None or not needed.startswith("pyoci") or needed in seen


def test_documentation_is_left_out_unless_it_is_read() -> None:
    def text(module: str) -> bytes:
        import marshal

        path = archive_write.source(module)
        assert path is not None
        return marshal.dumps(archive_write.entry(module, path)[2])

    assert b"When the disk is full" not in text("pyoci.directory")
    assert b"config-linux.md#" in text("pyoci.spec.linux_rules")


def test_checks_say_which_clause_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who calls them reads their documentation: an error has the same clause with and without archives."""
    seen = 0
    for module, path in archive_write.modules("create").items():
        names: dict[str, object] = {"__name__": module, "__file__": str(path)}
        if not module.endswith(("_rules", ".validate")):
            continue
        exec(archive_write.entry(module, path)[2], names)
        there = vars(importlib.import_module(module))
        for name, function in names.items():
            if isinstance(function, FunctionType) and ".md#" in (there[name].__doc__ or "").partition(":")[0]:
                assert function.__doc__ == there[name].__doc__
                seen += 1
    assert seen > 20


def test_adopting_is_importing(tmp_path: Path) -> None:
    """A module of an archive looks to everybody like one that was imported."""
    program = f"""
import sys
sys.path.insert(0, {str(HERE.parent)!r})
from pyoci import archive, archive_write
modules = {{**archive_write.modules("pyoci"), **archive_write.modules("run")}}
entries = [archive_write.entry(name, path) for name, path in modules.items()]
mine = [name for name in sys.modules if name.partition(".")[0] == "pyoci"]
for name in mine:
    del sys.modules[name]
archive.adopt(entries)
import pyoci.container.run as r, pyoci.plan
assert r is sys.modules["pyoci.container.run"] is sys.modules["pyoci"].container.run
assert r.__name__ == "pyoci.container.run" and r.__package__ == "pyoci.container" and r.__file__.endswith("/run.py")
assert pyoci.plan.__path__ == [{str(HERE / "plan")!r}] and pyoci.plan.__package__ == "pyoci.plan"
import pyoci.plan.render
assert pyoci.plan.render.__file__.endswith("/plan/render.py")
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


def test_time_stamps_tell_files_apart(install: Install) -> None:
    """Same name, same size, another time: another fingerprint."""
    install.run(*STATE)
    old = set(install.archives().values())
    source = install.package / "log.py"
    os.utime(source, ns=(time.time_ns(), source.stat().st_mtime_ns + 1))
    install.run(*STATE)
    assert not old & set(install.archives().values())


def test_where_nothing_can_be_written_nobody_tries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A read-only file system, somebody else's installation: each command would start a second interpreter."""
    for there in (False, True):
        monkeypatch.setattr(archive, "missing", ["pyoci"])
        monkeypatch.setattr(archive, "__file__", f"{tmp_path}/archive.py")
        assert archive.wanting() is there
        (tmp_path / "__pycache__").mkdir(exist_ok=True)


def test_on_a_disk_that_is_nearly_full_nobody_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second interpreter would compile everything, for every command, and find no room for it."""
    here = os.statvfs(HERE)
    monkeypatch.setattr(archive, "missing", ["state"])
    monkeypatch.setattr(posix, "access", lambda *_: True)
    least = archive.ROOM // here.f_frsize
    for left, wanted in ((0, False), (least - 1, False), (least + 1, True)):
        disk = os.statvfs_result((*here[:4], left, *here[5:]))
        monkeypatch.setattr(posix, "statvfs", lambda _, disk=disk: disk)
        assert archive.wanting() is wanted
