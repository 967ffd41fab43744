"""What is built, and that it works where it is installed: the wheel, every CPython here, minimal Debian systems."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCES = ("bench", "bundles", "conformance", "cross", "launcher", "pyoci", "schemas", "tests")
SOURCE_FILES = ("README.md", "check", "meson.build", "pyproject.toml")
ARCHES = sorted({platform.machine(), "aarch64"})
REPRODUCIBLE = {"SOURCE_DATE_EPOCH": "1700000000"}


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: str | None = None) -> str:
    """Standard output of a command that must succeed; what it says goes into the failure."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env, cwd=cwd, timeout=900
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as it is, without what was made in it."""
    top = tmp_path_factory.mktemp("source") / "pyoci"
    top.mkdir()
    made = shutil.ignore_patterns("__pycache__", "*.elf", "*.pyc")
    for name in SOURCES:
        if (root / name).exists():
            shutil.copytree(root / name, top / name, symlinks=True, ignore=made)
    for name in SOURCE_FILES:
        shutil.copy(root / name, top / name)
    return top


def build_wheel(source: Path, target: Path, arch: str = platform.machine()) -> Path:
    """The wheel of a tree, built with this interpreter's meson-python."""
    words: list[str] = []
    environment = {**os.environ, **REPRODUCIBLE}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    if arch != platform.machine():
        words = [f"--config-settings=setup-args=--cross-file={source}/cross/{arch}.ini"]
        environment["_PYTHON_HOST_PLATFORM"] = f"linux-{arch}"
        if shutil.which(f"{arch}-linux-gnu-gcc") is None:
            pytest.skip(f"{arch}-linux-gnu-gcc is not installed")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    run(*pip, "--wheel-dir", target, *words, source, env=environment)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


# ---- what is built


@pytest.mark.parametrize("arch", ARCHES)
def test_the_wheel_fits_every_cpython_of_its_architecture(source: Path, tmp_path: Path, arch: str) -> None:
    wheel = build_wheel(source, tmp_path, arch)
    name, version, tag = wheel.stem.split("-", 2)
    assert (name, tag) == ("pyoci_runtime", f"py3-none-linux_{arch}")
    with zipfile.ZipFile(wheel) as content:
        info = f"{name}-{version}.dist-info"
        metadata = content.read(f"{info}/METADATA").decode()
        names = content.namelist()
    for line in ("Name: pyoci-runtime", "Requires-Python: >=3.11"):
        assert line in metadata
    needs = {line.split()[1] for line in metadata.splitlines() if line.startswith("Requires-Dist:") and ";" not in line}
    assert {re.split("[>=]", need)[0] for need in needs} == {"jsonschema", "pyroute2", "structlog"}
    scripts = [name for name in names if ".data/scripts/" in name]
    assert [name.rpartition("/")[2] for name in scripts] == ["pyoci"]
    # the one library knows nothing of Python (launcher/place.c)
    libraries = ["place.so"] if arch == "x86_64" else []
    assert [name.rpartition("/")[2] for name in names if name.endswith((".so", ".pyc", ".c", ".h", ".ld"))] == libraries
    package = {name.partition("/purelib/")[2] for name in names if "/purelib/" in name}
    assert "pyoci/init/init.elf" in package
    modules = {str(path.relative_to(source)) for path in (source / "pyoci").rglob("*.py")}
    assert {name for name in package if name.endswith(".py")} == modules


def test_two_builds_are_equal(source: Path, tmp_path: Path) -> None:
    """The same sources somewhere else, at another time, give the same wheel, byte for byte."""
    elsewhere = tmp_path / "a" / "longer" / "path" / "to" / "it"
    shutil.copytree(source, elsewhere, symlinks=True)
    first = build_wheel(source, tmp_path / "first")
    second = build_wheel(elsewhere, tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


class Segment:
    """A program header."""

    def __init__(self, raw: bytes) -> None:
        self.type, self.flags, self.offset, _, _, self.file_size, self.size, _ = struct.unpack("<IIQQQQQQ", raw)


def segments(elf: bytes) -> list[Segment]:
    offset, size, count = (*struct.unpack_from("<Q", elf, 32), *struct.unpack_from("<HH", elf, 54))
    return [Segment(elf[offset + i * size : offset + (i + 1) * size]) for i in range(count)]


LOAD, DYNAMIC, INTERP, NOTE, STACK = 1, 2, 3, 4, 0x6474E551
EXECUTE, WRITE = 1, 2


@pytest.mark.parametrize("name", ["init.elf", "pyoci"])
@pytest.mark.parametrize("arch", ARCHES)
def test_native_files_need_nothing_and_say_nothing(build: Callable[..., Path], arch: str, name: str) -> None:
    """Static, no loader, no build id, no symbols, nothing writable and executable; small; twice the same."""
    elf = (build(arch) / name).read_bytes()
    assert elf[:7] == b"\x7fELF\x02\x01\x01"
    assert {"x86_64": 62, "aarch64": 183}[arch] == struct.unpack_from("<H", elf, 18)[0]
    headers = segments(elf)
    types = {header.type for header in headers}
    assert not types & {DYNAMIC, INTERP, NOTE}
    assert STACK in types
    assert not [header for header in headers if header.flags & EXECUTE and header.flags & WRITE]
    assert not [header for header in headers if header.type == STACK and header.flags & EXECUTE]
    for word in (b".symtab", b"GCC", b"/tmp", b".debug", str(Path.home()).encode()):
        assert word not in elf
    assert len(elf) < {"init.elf": 10_000, "pyoci": 30_000}[name]
    assert elf == (build(arch, again=True) / name).read_bytes()


# ---- where it is installed


def interpreters() -> list[str]:
    """Every CPython of 3.11 or later that is here, one of each version."""
    home = Path.home()
    patterns = [*Path("/usr/bin").glob("python3.*"), *Path("/usr/local/bin").glob("python3.*")]
    patterns += [*home.glob(".pyenv/versions/*/bin/python3.*"), *home.glob(".local/share/uv/python/*/bin/python3.*")]
    found: dict[str, str] = {}
    for path in patterns:
        if re.fullmatch(r"python3\.\d+", path.name) and int(path.name[8:]) >= 11:  # noqa: PLR2004
            script = "import sys; print(sys.version.split()[0] if sys.implementation.name == 'cpython' else '')"
            done = subprocess.run([path, "-I", "-c", script], capture_output=True, text=True, check=False)
            if done.returncode == 0 and (version := done.stdout.strip()):
                found.setdefault(version, str(path))
    return [found[version] for version in sorted(found)]


@pytest.mark.slow
@pytest.mark.parametrize("python", interpreters())
def test_every_cpython_here(python: str, wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    done = subprocess.run([python, "-m", "venv", environment], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{python} cannot make a virtual environment: {done.stdout.strip().splitlines()[-1:]}")
    run(environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    version = run(python, "-I", "-c", "import platform; print(platform.python_version())").strip()
    installed = environment / "bin" / "pyoci"
    assert installed.read_bytes()[:4] == b"\x7fELF"

    foreign = {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere", "LD_LIBRARY_PATH": "/nowhere"}
    link = tmp_path / "usr" / "local" / "bin" / "pyoci"
    link.parent.mkdir(parents=True)
    link.symlink_to(installed)
    for command in (installed, link):
        said = run(command, "--version", env=foreign, cwd="/")
        assert said.startswith("pyoci version ")
        assert f"\npython: {version}\n" in said

    # the third-party modules are found where they serve: structlog when a record is written
    log = tmp_path / "log"
    words: list[str | Path] = [link, "--root", tmp_path / "root", "--log", log, "--log-format", "json"]
    words += ["state", "nothing"]
    failed = subprocess.run(words, capture_output=True, text=True, env={}, check=False)
    assert (failed.returncode, failed.stderr) == (1, "pyoci: container 'nothing': container does not exist\n")
    assert json.loads(log.read_text())["msg"] == "container 'nothing': container does not exist"


# ---- minimal systems

# Runs as root in namespaces of its own: makes its first argument the root directory, and a shell runs the second there.
ENTER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), f"{name}{args}: {os.strerror(ctypes.get_errno())}")
BIND, REC, DETACH = 0x1000, 0x4000, 2
new = os.fsencode(sys.argv[1])
call("mount", new, new, None, BIND, None)
os.chdir(new)
call("mount", b"proc", b"proc", b"proc", 0, None)
for name in (b"sys", b"dev"):
    call("mount", b"/" + name, name, None, BIND | REC, None)
for name in (b"run", b"tmp"):
    call("mount", b"tmpfs", name, b"tmpfs", 0, None)
call("pivot_root", b".", b".")
call("umount2", b".", DETACH)
os.chdir("/")
os.execv("/bin/sh", ["sh", "-c", sys.argv[2]])
"""


class System:
    """A Debian system in a directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}

    def sh(self, command: str, cwd: str = "/") -> str:
        """What a shell command in it says; it must succeed.  `/` is a mount point, as it is on a machine."""
        enter = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
        words = [*enter, sys.executable, "-c", ENTER, str(self.top), f"cd {cwd} && {command}"]
        return run(*words, env=self.environment)

    def give(self, path: Path) -> str:
        """A copy of one of our files or directories; its path in the system."""
        target = self.top / "given" / path.name
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
        return f"/given/{path.name}"

    def give_network(self) -> None:
        """Reach what we reach: names, proxies, certificates, pip's and apt's settings as they are here."""
        shutil.copy("/etc/resolv.conf", self.top / "etc/resolv.conf")
        shutil.copy("/etc/hosts", self.top / "etc/hosts")
        for name, value in os.environ.items():
            if name.lower().endswith("_proxy"):
                self.environment[name] = value
            elif name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") and Path(value).is_file():
                self.environment[name] = self.give(Path(value))
        for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
            key, _, value = line.partition("=")
            option = key.rpartition(".")[2]
            words = [
                self.give(Path(word)) if word.startswith("/") and Path(word).exists() else word
                for word in str(ast.literal_eval(value)).split()
            ]
            self.environment["PIP_" + option.upper().replace("-", "_")] = " ".join(words)
        acquire = re.compile(r"Acquire::(https?|ftp)::(Proxy|proxy|CaInfo|Verify-[A-Za-z]+)\b")
        lines = [line for line in run("apt-config", "dump").splitlines() if acquire.match(line)]
        lines.append('Acquire::Check-Valid-Until "false";')  # a mirror may stand still while the clock goes on
        (self.top / "etc/apt/apt.conf.d/90host").write_text("".join(f"{line}\n" for line in lines))


def mirror() -> str:
    """The Debian mirror that this machine uses."""
    listed = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    for address in listed:
        if "security" not in address:
            return address
    pytest.skip("apt has no package lists here: apt-get update")


@pytest.fixture
def system(request: pytest.FixtureRequest, cache: Path, tmp_path: Path) -> Iterator[System]:
    """A fresh minimal system of the suite that the test's parameter names."""
    suite = request.param
    for tool in ("debootstrap", "apt-get", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    kept = cache / "debootstrap" / suite
    if not (kept / "complete").exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        words = ["debootstrap", "--variant=minbase", suite, str(kept / "root"), mirror()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode and suite == "sid":
            pytest.skip(f"sid cannot be installed today: {done.stdout.splitlines()[-1:]}")
        assert done.returncode == 0, done.stdout + done.stderr
        (kept / "complete").touch()
    top = tmp_path / "system"
    run("cp", "-a", "--reflink=auto", kept / "root", top)
    system = System(top)
    system.give_network()
    yield system
    run("rm", "-rf", "--one-file-system", top)


def first_command(root: Path) -> str:
    """The README's first command, as it stands there."""
    found = re.search(r"^```sh\n(.*?)^```$", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].strip()


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("system", ["bookworm", "trixie", "sid"], indirect=True)
def test_the_first_command_of_the_readme_on_a_minimal_system(system: System, root: Path, source: Path) -> None:
    shutil.copytree(source, system.top / "srv" / "pyoci", symlinks=True)
    said = system.sh(first_command(root), cwd="/srv/pyoci")
    assert 'I am process 1 on "host-shell"' in said
    assert "Read-only file system" in said
    system.sh("ln -s /opt/pyoci/bin/pyoci /usr/local/bin/pyoci")
    assert system.sh("pyoci --version").startswith("pyoci version ")
    assert system.sh("pyoci list --quiet && ls /run/pyoci 2>/dev/null || true") == ""
