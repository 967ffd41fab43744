"""The launcher, on both architectures: what it finds, what it hands over, and what it refuses to root.

The interpreter here is a shell script that writes down what it was given.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pyoci.__main__ import OPTIONS, START

INTERPRETER = """#!/bin/sh
for word; do printf '%s\\0' "$word"; done
"""


class Install:
    """A prefix that looks like a virtual environment with pyoci in it."""

    def __init__(self, top: Path, launcher: Path, emulator: Sequence[str]) -> None:
        self.top = top
        self.emulator = emulator
        self.prefix = top / "opt" / "env"
        self.home = top / "usr" / "bin"
        self.launcher = self.prefix / "bin" / "pyoci"
        self.packages = self.prefix / "lib" / "python3.11" / "site-packages"
        self.launcher.parent.mkdir(parents=True)
        shutil.copy(launcher, self.launcher)
        self.package("python3.11")
        self.python = self.interpreter(self.home / "python3.11")
        (self.prefix / "pyvenv.cfg").write_text(f"home = {self.home}\nversion = 3.11.2\n")

    def package(self, version: str, lib: str = "lib", leaf: str = "site-packages") -> Path:
        packages = self.prefix / lib / version / leaf
        (packages / "pyoci" / "spec" / "__pycache__").mkdir(parents=True)
        (packages / "pyoci" / "__main__.py").touch()
        (packages / "pyoci" / "spec" / "__pycache__" / "load.cpython-311.pyc").touch()
        return packages

    @staticmethod
    def interpreter(path: Path, text: str = INTERPRETER) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(
        self, *arguments: str | bytes, via: Path | str | None = None, **options: object
    ) -> tuple[list[bytes], str, int]:
        """The interpreter's words, standard error, and the status."""
        command = [*self.emulator, str(via or self.launcher), *arguments]
        options.setdefault("env", {})
        options.setdefault("umask", 0o022)
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            command, capture_output=True, check=False, timeout=60, **options  # type: ignore[call-overload]
        )
        return done.stdout.split(b"\0")[:-1], done.stderr.decode(), done.returncode


@pytest.fixture(params=[platform.machine(), *({"aarch64"} - {platform.machine()})])
def install(request: pytest.FixtureRequest, build: Callable[..., Path]) -> Iterator[Install]:
    arch = request.param
    emulator = [] if arch == platform.machine() else [str(shutil.which(f"qemu-{arch}-static"))]
    launcher = build(arch) / "pyoci"
    top = Path(tempfile.mkdtemp(prefix="pyoci-launcher-"))
    top.chmod(0o755)
    old = os.umask(0o022)
    try:
        yield Install(top, launcher, emulator)
    finally:
        os.umask(old)
        shutil.rmtree(top)


def test_the_words_of_the_start(install: Install) -> None:
    words, error, status = install.run("run", "--bundle", "b", "x")
    others = f"{install.packages}:{install.prefix}/lib64/python3.11/site-packages"
    fingerprint = words[5].decode()
    expected = [*OPTIONS, "-X", fingerprint, "-c", START, str(install.packages), others, "run", "--bundle", "b", "x"]
    assert ([word.decode() for word in words], error, status) == (expected, "", 0)
    assert re.fullmatch("pyoci=[0-9a-f]{16}", fingerprint)


def test_arguments_arrive_as_they_are(install: Install) -> None:
    arguments = [b"", b" ", b"two words", b"-c", b"--", b"\xff\xfe", "é".encode(), b"new\nline", b"*"]
    words, _, _ = install.run(*arguments)
    assert words[-len(arguments) :] == arguments


def test_thousands_of_arguments(install: Install) -> None:
    arguments = [b"%d" % i for i in range(20000)]
    words, _, _ = install.run(*arguments)
    assert words[-len(arguments) :] == arguments


def test_found_through_symbolic_links(install: Install) -> None:
    first = install.top / "usr" / "local" / "bin" / "pyoci"
    first.parent.mkdir(parents=True)
    first.symlink_to("../../../opt/env/bin/pyoci")
    second = install.top / "runc"
    second.symlink_to(first)
    for link in (first, second):
        words, _, status = install.run("state", via=link)
        assert (words[8].decode(), status) == (str(install.packages), 0)


def test_found_by_a_relative_path(install: Install) -> None:
    words, _, status = install.run("x", via="./pyoci", cwd=install.launcher.parent)
    assert (words[8].decode(), status) == (str(install.packages), 0)


def test_the_newest_interpreter_that_has_the_package(install: Install) -> None:
    newest = install.package("python3.13")
    (install.prefix / "lib" / "python3.14" / "site-packages").mkdir(parents=True)
    (install.prefix / "lib" / "python3.x").mkdir()
    (install.prefix / "lib" / "python3.99.bak" / "site-packages" / "pyoci").mkdir(parents=True)
    install.interpreter(install.home / "python3.13", INTERPRETER + "printf 'thirteen\\0'")
    words, _, _ = install.run()
    assert (words[8].decode(), words[-1]) == (str(newest), b"thirteen")


@pytest.mark.parametrize(("lib", "leaf"), [("lib64", "site-packages"), ("lib", "dist-packages")])
def test_other_names_of_the_package_directory(install: Install, lib: str, leaf: str) -> None:
    shutil.rmtree(install.packages)
    packages = install.package("python3.11", lib, leaf)
    words, _, _ = install.run()
    assert words[8].decode() == str(packages)


def test_an_environment_whose_home_is_gone_uses_its_own_link(install: Install) -> None:
    elsewhere = install.interpreter(install.top / "else" / "python3.11", INTERPRETER + "printf 'else\\0'")
    (install.prefix / "bin" / "python3.11").symlink_to(elsewhere)
    shutil.rmtree(install.home)
    assert install.run()[0][-1] == b"else"


def test_a_prefix_that_is_no_environment_has_the_systems_packages_too(install: Install) -> None:
    (install.prefix / "pyvenv.cfg").unlink()
    install.interpreter(install.prefix / "bin" / "python3.11")
    others = install.run()[0][9].decode().split(":")
    assert others[0] == str(install.packages)
    assert others[-2:] == ["/usr/local/lib/python3.11/dist-packages", "/usr/lib/python3/dist-packages"]


@pytest.mark.parametrize(("value", "shared"), [("false", False), ("true", True)])
def test_system_site_packages_are_the_environments_choice(install: Install, value: str, shared: bool) -> None:
    config = install.prefix / "pyvenv.cfg"
    config.write_text(f"include-system-site-packages = {value}\r\nhome = {install.home}\r\n")
    assert ("/usr/lib/python3/dist-packages" in install.run()[0][9].decode()) is shared


def test_no_variable_reaches_the_interpreters_loader(install: Install) -> None:
    install.interpreter(install.python, "#!/bin/sh\nexec /usr/bin/env -0\n")
    given = {
        "LD_PRELOAD": "/no/such.so",
        "LD_LIBRARY_PATH": "/evil",
        "LD_AUDIT": "/no/such.so",
        "GLIBC_TUNABLES": "glibc.malloc.check=1",
        "LOCPATH": "/evil",
        "GCONV_PATH": "/evil",
        "PYTHONPATH": "/evil",
        "XDG_RUNTIME_DIR": "/run/user/1000",
        "OLD_LD": "x",
    }
    if install.emulator:  # the emulator is an ordinary program, and would obey some itself
        del given["LD_PRELOAD"], given["LD_AUDIT"]
    seen = dict(word.decode().split("=", 1) for word in install.run(env=given)[0])
    assert {name for name in seen if name.startswith(("LD_", "GLIBC", "GCONV", "LOC"))} == set()
    assert (seen["XDG_RUNTIME_DIR"], seen["OLD_LD"]) == ("/run/user/1000", "x")


def test_closed_standard_streams_become_null(install: Install) -> None:
    seen = install.top / "seen"
    install.interpreter(install.python, f"#!/bin/sh\nfor n in 0 1 2; do readlink /proc/$$/fd/$n; done >{seen}\n")
    command = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *install.emulator, str(install.launcher)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    # the script's own output is in a file while it looks
    assert seen.read_text().splitlines() == ["/dev/null", str(seen), "/dev/null"]


@pytest.mark.parametrize(("stream", "name"), [(0, "input"), (1, "output"), (2, "error")])
def test_a_directory_as_a_standard_stream_is_refused(install: Install, stream: int, name: str) -> None:
    """No interpreter starts with one for its input; a resumed one would hand the host's directory to a container."""
    directory = os.open("/", os.O_RDONLY)
    try:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        streams[("stdin", "stdout", "stderr")[stream]] = directory
        done = subprocess.run([*install.emulator, str(install.launcher)], check=False, text=True, timeout=60, **streams)  # type: ignore[call-overload]
    finally:
        os.close(directory)
    assert done.returncode == 1
    if stream != 2:
        assert done.stderr.startswith(f"pyoci: standard {name}: is a directory")


@pytest.mark.parametrize(("umask", "writes"), [(0o022, True), (0o077, True), (0o000, False), (0o002, False)])
def test_byte_code_is_not_written_under_a_lax_umask(install: Install, umask: int, writes: bool) -> None:
    words, _, _ = install.run(umask=umask)
    assert (b"-B" not in words) is writes


def test_no_package(install: Install) -> None:
    shutil.rmtree(install.packages / "pyoci")
    words, error, status = install.run()
    assert (words, status, error.count("\n")) == ([], 1, 1)
    assert str(install.prefix) in error
    assert "install" in error


def test_a_version_of_many_digits_is_none(install: Install) -> None:
    install.package("python3." + "0" * 200 + "12")
    words, error, status = install.run()
    assert (words[8].decode(), error, status) == (str(install.packages), "", 0)


def test_too_many_open_files_are_named(install: Install) -> None:
    words = ["prlimit", "--nofile=3", *install.emulator, str(install.launcher)]
    if not install.emulator:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.endswith(": too many open files\n")


@pytest.mark.parametrize(("limit", "most"), [("stack", 16 << 10), ("as", 1 << 20), ("as", 12 << 20), ("data", 4 << 20)])
def test_a_limit_that_no_interpreter_can_live_with_is_named(install: Install, limit: str, most: int) -> None:
    """Not SIGSEGV, nor somebody's traceback."""
    if not install.emulator:  # which would be limited as well
        words = ["prlimit", f"--{limit}={most}", str(install.launcher)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"pyoci: RLIMIT_{limit.upper()}: ")


def test_no_interpreter(install: Install) -> None:
    install.package("python3.987")
    words, error, status = install.run()
    assert (words, status, error.count("\n")) == ([], 1, 1)
    assert error.startswith("pyoci: python3.987: no such interpreter")


# ---- what root trusts

PLACES = (
    "opt/env/bin/pyoci",
    "opt/env/bin",
    "opt/env/pyvenv.cfg",
    "opt/env",
    "opt",
    "opt/env/lib/python3.11/site-packages",
    "opt/env/lib/python3.11/site-packages/pyoci",
    "opt/env/lib/python3.11/site-packages/pyoci/__main__.py",
    "opt/env/lib/python3.11/site-packages/pyoci/spec/__pycache__",
    "opt/env/lib/python3.11/site-packages/pyoci/spec/__pycache__/load.cpython-311.pyc",
    "usr/bin/python3.11",
    "usr/bin",
    "usr",
)


@pytest.mark.root
@pytest.mark.parametrize("place", PLACES)
def test_root_refuses_what_others_can_write(install: Install, place: str) -> None:
    path = install.top / place
    mode = path.stat().st_mode & 0o777
    for uid, gid, bits, refused in (
        (0, 0, 0o002, True),
        (0, 1000, 0o020, True),
        (1000, 0, 0, True),
        (0, 1000, 0, False),
        (0, 0, 0o020, False),
    ):
        os.chown(path, uid, gid)
        path.chmod(mode | bits)
        words, error, status = install.run("x")
        if refused:
            assert (words, status, error.count("\n")) == ([], 1, 1), error
            assert error.startswith(f"pyoci: {path}: ")
        else:
            assert (words[-1], error, status) == (b"x", "", 0)


@pytest.mark.root
@pytest.mark.parametrize("place", PLACES)
def test_root_refuses_what_an_access_control_list_lets_others_write(install: Install, place: str) -> None:
    path = install.top / place
    none = 0xFFFFFFFF
    owner, user, group, most, other = 1, 2, 4, 0x10, 0x20  # posix_acl_xattr.h
    entries = ((owner, 7, none), (user, 6, 1000), (group, 5, none), (most, 7, none), (other, 5, none))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", value)
    except OSError as problem:
        pytest.skip(f"no access control lists on this file system: {problem}")
    assert path.stat().st_mode & 0o777 == 0o775
    words, error, status = install.run("x")
    assert (words, status, error.count("\n")) == ([], 1, 1), error
    assert error.startswith(f"pyoci: {path}: can be written by others")


@pytest.mark.root
@pytest.mark.parametrize("place", ["opt", "usr", "usr/bin", "opt/env/lib/python3.11/site-packages"])
def test_a_sticky_directory_is_fine_above_and_nowhere_else(install: Install, place: str) -> None:
    (install.top / place).chmod(0o1777)
    _, error, status = install.run("x")
    assert (status == 0) is ("site-packages" not in place), error


@pytest.mark.root
def test_root_refuses_a_symbolic_link_in_the_package(install: Install) -> None:
    (install.packages / "pyoci" / "cli.py").symlink_to("/tmp/elsewhere.py")
    _, error, status = install.run("x")
    assert (status, "cli.py: is a symbolic link" in error) == (1, True)


@pytest.mark.root
def test_root_follows_the_interpreters_links_before_it_judges(install: Install) -> None:
    theirs = install.interpreter(install.top / "home" / "python3.11")
    os.chown(theirs.parent, 1000, 1000)
    install.python.unlink()
    install.python.symlink_to(theirs)
    _, error, status = install.run("x")
    assert (status, str(theirs.parent) in error) == (1, True)


@pytest.mark.root
def test_others_run_what_they_like(install: Install) -> None:
    os.chown(install.packages, 1000, 1000)
    words, error, status = install.run("x", user=65534, group=65534, extra_groups=[])
    assert (words[-1:], error, status) == ([b"x"], "", 0)


@pytest.mark.root
def test_root_of_a_user_namespace_sees_the_true_roots_files_as_nobodys(install: Install) -> None:
    """Rootless engines call the runtime as uid 0 of a namespace in which the system's files have no owner."""
    command = ["unshare", "--user", "--map-root-user", *install.emulator, str(install.launcher), "x"]
    for bits, expected in ((0, 0), (0o002, 1)):
        install.packages.chmod(0o755 | bits)
        done = subprocess.run(
            command, capture_output=True, user=65534, group=65534, extra_groups=[], env={}, check=False
        )
        assert done.returncode == expected, done.stderr
