"""Hostile programs: they go for the runtime's own files, its descriptors, and the interpreter's modules."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from canary import COMMAND, PACKAGE, Bundle, bundle  # noqa: F401 - bundle is a fixture
from containers import BUSYBOX, HEADLESS, needed, until

pytestmark = needed


# -- the runtime's own program and descriptors


def test_entrypoint_that_is_the_runtime(bundle: Bundle) -> None:
    """CVE-2019-5736: what /proc/self/exe is can be executed, and changed by nobody."""
    parts = [Path(sys.executable).resolve(), *PACKAGE.rglob("*.py"), PACKAGE / "init" / "init.elf"]
    before = [hashlib.sha256(path.read_bytes()).digest() for path in parts]
    entry = bundle.rootfs / "entry"
    entry.write_text("#!/proc/self/exe\n")
    entry.chmod(0o755)
    for args in (["/entry"], ["/proc/self/exe"], ["/proc/self/exe", "init"]):
        assert bundle.run(*args).returncode
    name = bundle.start()
    for args in (["/entry"], ["/proc/self/exe"], ["/proc/1/exe"]):
        bundle.call("exec", name, *args)
    assert [hashlib.sha256(path.read_bytes()).digest() for path in parts] == before


@pytest.mark.parametrize("path", ["/proc/self/fd/{}", "/proc/self/fd/{}/../..", "/proc/1/fd/{}", "/link{}"])
def test_descriptor_as_working_directory(bundle: Bundle, path: str) -> None:
    """CVE-2024-21626, from the configuration and from exec."""
    leaked = os.open(bundle.canary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(12):
            (bundle.rootfs / f"link{number}").symlink_to(f"/proc/self/fd/{number}")
            bundle.process["cwd"] = path.format(number)
            done = bundle.run("/bin/ls", pass_fds=(leaked,))
            assert "canary" not in done.stdout and "marker" not in done.stdout and not done.stdout.count("file")
        bundle.process["cwd"] = "/"
        name = bundle.start()
        for number in range(12):
            done = bundle.call("exec", "--cwd", path.format(number), name, "/bin/ls", pass_fds=(leaked,))
            assert not done.stdout.count("file")
    finally:
        os.close(leaked)


@pytest.mark.parametrize("how", ["run", "create", "exec"])
def test_descriptor_as_program(bundle: Bundle, how: str) -> None:
    """What the caller left open is no way to a program of the host's, by any number."""
    shutil.copy(BUSYBOX, bundle.folder / "true")
    name = bundle.start() if how == "exec" else ""
    ran = []
    opened = " ".join(f"{number}<{bundle.folder}" for number in range(3, 10))
    for number in range(3, 10):
        args = [f"/proc/self/fd/{number}/true"]
        if how != "exec":
            bundle.process["args"] = args
            bundle.write()
            name = bundle.name()
        command = [*COMMAND, "--root", str(bundle.states), how, name, *(args if how == "exec" else [])]
        done = subprocess.run(
            ["/bin/bash", "-c", f'exec "$@" {opened}', "bash", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
            cwd=bundle.folder, timeout=30,
        )  # fmt: skip
        code = done.returncode
        if how == "create" and code == 0:
            code = bundle.call("start", name).returncode
        if code == 0:
            ran.append(number)
    assert ran == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "2>&-"])
def test_standard_stream_that_is_closed(bundle: Bundle, closed: str) -> None:
    """A descriptor of the runtime's or of init's does not become the program's stdin."""
    bundle.process["args"] = ["/bin/sh", "-c", "for n in 0 1 2 3 4 5 6; do readlink /proc/self/fd/$n; done >/tmp/fds"]
    bundle.write()
    subprocess.run(
        ["bash", "-c", f'exec "$@" {closed}', "bash", *COMMAND, "--root", str(bundle.states), "run", bundle.name()],
        cwd=bundle.folder, timeout=30, check=False,
    )  # fmt: skip
    seen = bundle.rootfs / "tmp" / "fds"
    lines = seen.read_text().splitlines() if seen.exists() else []
    assert not [
        line for line in lines if "state" in line or "memfd" in line or "socket" in line or str(bundle.folder) in line
    ]


def test_open_descriptors_of_the_program(bundle: Bundle) -> None:
    """Only the standard streams, and what is preserved; also in exec."""
    script = "ls /proc/self/fd | wc -l"
    leaked = [os.open(bundle.canary, os.O_RDONLY) for _ in range(5)]
    try:
        assert bundle.shell(script, pass_fds=leaked) == "4\n"
        name = bundle.start()
        assert bundle.call("exec", name, "/bin/sh", "-c", script, pass_fds=leaked).stdout == "4\n"
        environment = {**os.environ, "LISTEN_FDS": "0"}
        assert bundle.shell(script, pass_fds=leaked, env=environment) == "4\n"
    finally:
        for descriptor in leaked:
            os.close(descriptor)


def test_preserved_descriptor_that_is_not_open(bundle: Bundle) -> None:
    """init's own handles must not take the numbers that the caller promised to fill."""
    bundle.process["args"] = ["/proc/self/fd/3/bin/busybox", "true"]
    bundle.write()
    for number in range(3, 9):
        bundle.process["args"] = [f"/proc/self/fd/{number}/bin/busybox", "true"]
        bundle.write()
        assert bundle.call("run", "--preserve-fds", "6", bundle.name()).returncode


# -- Python's own dangers

POISON = "open({marker!r}, 'w').close()\nraise SystemExit(99)\n"
MODULES = (
    "errno", "re", "json", "socket", "_socket", "pwd", "traceback", "linecache", "codecs", "os", "posix", "ctypes",
    "sitecustomize", "usercustomize", "readline", "termios", "locale", "__future__", "pyoci",
)  # fmt: skip


def test_poisoned_modules(bundle: Bundle) -> None:
    """No Python from the image, the bundle, the working directory or the environment is ever executed."""
    marker = bundle.folder / "poisoned"
    text = POISON.format(marker=str(marker))
    library = bundle.rootfs / sys.base_prefix.lstrip("/") / "lib" / f"python3.{sys.version_info.minor}"
    places = [bundle.folder, bundle.rootfs, library, library / "lib-dynload", library / "encodings"]
    places += [bundle.rootfs / str(PACKAGE).lstrip("/")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        for module in (*MODULES, "__init__", "idna", "latin_1"):
            (place / f"{module}.py").write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": str(bundle.folder),
        "PYTHONSTARTUP": str(bundle.folder / "os.py"),
        "PYTHONHOME": str(bundle.folder),
        "PYTHONUSERBASE": str(bundle.folder),
        "PYTHONINSPECT": "1",
        "PYTHONBREAKPOINT": "poisoned",
        "HOME": str(bundle.folder),
    }
    assert bundle.run("/bin/cat", "/proc/self/environ", env=environment).stdout == "PATH=/bin\0HOME=/\0"
    name = bundle.start()
    assert bundle.call("exec", name, "/bin/true", env=environment).returncode == 0
    assert bundle.call("exec", name, "/bin/missing", env=environment).returncode
    assert bundle.call("state", name, env=environment).returncode == 0
    bundle.process["cwd"] = "/proc/self/fd/3"
    assert bundle.run("/bin/missing", env=environment).returncode
    assert not marker.exists()


# -- programs whose first thread ends before the others (pthread_exit)


def beats(bundle: Bundle) -> bool:
    """Whether the program still runs."""
    path = bundle.rootfs / "tmp" / "beat"
    path.unlink(missing_ok=True)
    time.sleep(0.2)
    return path.exists()


@pytest.mark.parametrize("how", ["kill", "kill --all", "delete --force"])
@pytest.mark.parametrize("pids", ["own", "host"])
def test_first_thread_ends_first(bundle: Bundle, how: str, pids: str) -> None:
    """The kernel shows a zombie, and the container runs: so it is said, and it can be ended."""
    bundle.compile("headless", HEADLESS)
    if pids == "host":
        bundle.config["linux"]["namespaces"].remove({"type": "pid"})
    name = bundle.start("/bin/headless")
    pid = json.loads(bundle.call("state", name).stdout)["pid"]
    until(lambda: b") Z " in Path(f"/proc/{pid}/stat").read_bytes())
    assert beats(bundle)
    assert json.loads(bundle.call("state", name).stdout)["status"] == "running"
    assert bundle.call("ps", "--format", "json", name).stdout == f"[{pid}]\n"
    images = str(bundle.folder / "images")
    (bundle.folder / "mounts.json").write_text(json.dumps([{"destination": "/tmp/more", "type": "tmpfs"}]))
    dump = ["checkpoint", "--image-path", images, name]
    for words in (["exec", name, "/bin/true"], ["mounts", "add", name, "-"], dump):
        with (bundle.folder / "mounts.json").open(encoding="utf-8") as file:
            done = bundle.call(*words, stdin=file)
        assert done.returncode and "first thread" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = bundle.call("delete", name)
    assert done.returncode == 1 and "running" in done.stderr and beats(bundle)
    if how.startswith("kill"):
        done = bundle.call(*how.split(), name, "KILL")
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: json.loads(bundle.call("state", name).stdout)["status"] == "stopped")
        assert not beats(bundle)
        done = bundle.call("delete", name)
    else:
        done = bundle.call("delete", "--force", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert not beats(bundle)


@pytest.mark.parametrize("how", ["kill --all", "delete --force"])
def test_first_thread_of_another_process_ends_first(bundle: Bundle, how: str) -> None:
    """Not init's, and without a pid namespace that would end it: cgroup.kill's signal is lost on it."""
    bundle.compile("headless", HEADLESS)
    bundle.config["linux"]["namespaces"].remove({"type": "pid"})
    name = bundle.start("/bin/headless", "child")
    until((bundle.rootfs / "tmp" / "beat").exists)
    done = bundle.call(*how.split(), name, *(["KILL"] if how.startswith("kill") else []))
    assert (done.returncode, done.stderr) == (0, "")
    time.sleep(0.1)
    assert not beats(bundle)
