"""Containers for tests: a bundle with busybox, the real command, and a look at what is left afterwards."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pyoci
from pyoci.__main__ import OPTIONS, START
from pyoci.commands.spec import default
from pyoci.launch import INIT_ELF

BUSYBOX = Path("/bin/busybox")
CGROUPS = Path("/sys/fs/cgroup")
HERE = Path(pyoci.__file__).resolve().parent
PACKAGES = str(HERE.parent)
# What is installed, if it is: with the launcher, and so with everything that it does instead of the interpreter.  The
# virtual machine has it elsewhere (tests/machine.py).
INSTALLED = Path(os.environ.get("PYOCI_TEST_PROGRAM") or Path(sys.executable).parent / "pyoci")
COMMAND = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, *OPTIONS, "-c", START, PACKAGES, ""]
APPLETS = (
    "cat", "chmod", "dd", "echo", "env", "grep", "head", "hostname", "id", "ip", "kill", "ls", "mkdir", "mount",
    "mknod", "pwd", "readlink", "rmdir", "seq", "sh", "sleep", "stat", "stty", "tail", "touch",
    "tr", "true", "tty", "umount", "wc",
)  # fmt: skip
LIMIT = 30  # seconds that any one command may take
_numbers = itertools.count()


def _static(path: Path) -> bool:
    content = path.read_bytes() if path.exists() else b""
    return content[:4] == b"\x7fELF" and b"/ld-" not in content[:4096]


needed = [
    pytest.mark.root,
    pytest.mark.skipif(not _static(BUSYBOX), reason="no static /bin/busybox: install busybox-static"),
    pytest.mark.skipif(not Path(INIT_ELF).exists(), reason="init is not built: ./check native"),
]


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """The first true value of `condition`; it must come in the time that a command may take on a busy machine."""
    end = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what or condition}"
        time.sleep(0.003)
    return found


def processes_of(id: str) -> list[int]:
    """The processes in any cgroup of the container `id`, zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                groups = Path(f"/proc/{entry}/cgroup").read_text(encoding="utf-8")
                state = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            except OSError:
                continue
            if id in groups and state not in "ZX":
                found.append(int(entry))
    return found


def cgroups_of(id: str) -> list[Path]:
    """The cgroups of the container `id` that exist, in all hierarchies."""
    return [path for path in (*CGROUPS.glob(f"*/{id}"), CGROUPS / id) if path.exists()]


def disk_of(path: Path) -> tuple[int, int]:
    """Major and minor number of the disk that `path` is on."""
    number = os.stat(path).st_dev
    major, minor = os.major(number), os.minor(number)
    known = Path(f"/sys/dev/block/{major}:{minor}")
    if not known.exists() or (known / "partition").exists():
        pytest.skip(f"{path} is not on a disk that is one file system; limits are for whole disks")
    return major, minor


# its first thread ends (pthread_exit), another goes on writing /tmp/beat; with an argument, in a child
HEADLESS = r"""
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *beat(void *nothing)
{
    for (int count = 0;; count++) {
        FILE *file = fopen("/tmp/beat", "w");
        if (file) {
            fprintf(file, "%d", count);
            fclose(file);
        }
        usleep(20000);
    }
}
int main(int argc, char **argv)
{
    pthread_t thread;
    if (argc > 1 && fork()) {
        pause();
    }
    pthread_create(&thread, NULL, beat, NULL);
    pthread_exit(NULL);
}
"""


class Box:
    """One test's bundle and containers.  `box("state", box.id)` runs the command, `box.config` is what it reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states = folder / "states"
        self.bundle = folder / "bundle"
        self.rootfs = self.bundle / "rootfs"
        self.ids: list[str] = []
        self.others: list[subprocess.Popen[Any]] = []
        (self.rootfs / "bin").mkdir(parents=True)
        for name in ("dev", "etc", "proc", "sys", "tmp"):
            (self.rootfs / name).mkdir()
        (self.rootfs / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
        (self.rootfs / "bin/busybox").chmod(0o755)
        for name in APPLETS:
            (self.rootfs / "bin" / name).symlink_to("busybox")
        self.config: dict[str, Any] = json.loads(json.dumps(default(False)))
        self.config["process"]["terminal"] = False
        self.config["process"]["env"] = ["PATH=/bin", "HOME=/tmp"]
        self.config["root"]["readonly"] = False
        self.id = self.new_id()

    def new_id(self) -> str:
        """A name that nobody else uses; what is made under it is removed in the end, and must be gone then."""
        id = f"pyoci-test-{os.getpid()}-{next(_numbers)}"
        self.ids.append(id)
        return id

    @property
    def process(self) -> dict[str, Any]:
        """/process of the configuration."""
        value: dict[str, Any] = self.config["process"]
        return value

    @property
    def linux(self) -> dict[str, Any]:
        """/linux of the configuration."""
        value: dict[str, Any] = self.config["linux"]
        return value

    def namespace(self, kind: str, path: str | None = None) -> None:
        """A namespace of this kind, new or at `path`, whatever was said before."""
        self.without(kind)
        self.linux["namespaces"].append({"type": kind} | ({"path": path} if path else {}))

    def without(self, kind: str) -> None:
        """The runtime's own namespace of this kind."""
        self.linux["namespaces"] = [entry for entry in self.linux["namespaces"] if entry["type"] != kind]

    def mount(self, destination: str, type: str = "", source: str = "", *options: str) -> None:
        """One more entry of /mounts."""
        entry: dict[str, Any] = {"destination": destination}
        entry |= {name: value for name, value in (("type", type), ("source", source)) if value}
        self.config["mounts"].append(entry | ({"options": list(options)} if options else {}))

    def capabilities(self, *names: str, **sets: list[str]) -> None:
        """Bounding, effective and permitted sets, unless said otherwise."""
        given = {kind: list(names) for kind in ("bounding", "effective", "permitted")}
        self.process["capabilities"] = given | sets

    def write(self, id: str = "") -> None:
        """config.json for the container `id`, in cgroups of that name."""
        self.linux["cgroupsPath"] = f"/{id or self.id}"
        (self.bundle / "config.json").write_text(json.dumps(self.config), encoding="utf-8")

    def command(self, *args: str) -> list[str]:
        """The words that run pyoci."""
        return [*COMMAND, "--root", str(self.states), *args]

    def __call__(self, *args: str, input: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
        """Run pyoci, and wait until its output is closed."""
        return subprocess.run(
            self.command(*args), input=input, capture_output=True, text=True, timeout=LIMIT, check=False, **more
        )

    def ok(self, *args: str, **more: Any) -> str:
        """What a command prints that must succeed, with nothing to say on stderr."""
        done = self(*args, **more)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def fails(self, *args: str, **more: Any) -> str:
        """The one line on stderr of a command that must fail."""
        done = self(*args, **more)
        assert done.returncode != 0, done
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    def run(self, script: str = "", *, input: str = "") -> str:
        """What a container prints that runs the shell `script` (or /process/args) and must succeed."""
        if script:
            self.process["args"] = ["sh", "-c", script]
        self.write()
        return self.ok("run", "--bundle", str(self.bundle), self.id, input=input)

    def unshared(self, before: str, script: str) -> str:
        """What a container prints whose runtime is in a mount namespace where `before` was run."""
        self.process["args"] = ["sh", "-c", script]
        self.write()
        words = ["unshare", "-m", "--propagation", "private", "sh", "-ec", f'{before}; exec "$@"', "sh"]
        done = subprocess.run(
            [*words, *self.command("run", "--bundle", str(self.bundle), self.id)],
            capture_output=True, text=True, timeout=LIMIT, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def compile(self, name: str, text: str) -> None:
        """A static program of C in the root's /bin; skips where that cannot be made."""
        if shutil.which("cc") is None:
            pytest.skip("no C compiler is installed")
        source = self.folder / f"{name}.c"
        source.write_text(text)
        words = ["cc", "-static", "-O1", "-w", "-o", str(self.rootfs / "bin" / name), str(source)]
        built = subprocess.run(words, capture_output=True, text=True, check=False)
        if built.returncode:
            pytest.skip(f"no static C library: {built.stderr[:100]}")

    def refused(self, script: str = "exit 0", command: str = "run") -> str:
        """The error of a container that cannot be made; nothing of it may be left."""
        self.process["args"] = ["sh", "-c", script]
        self.write()
        error = self.fails(command, "--bundle", str(self.bundle), self.id)
        self.gone()
        return error

    def refused_with(self, args: list[str]) -> str:
        """As `refused`, of a container with these /process/args."""
        self.process["args"] = args
        self.write()
        error = self.fails("run", "--bundle", str(self.bundle), self.id)
        self.gone()
        return error

    def create(self, script: str = "sleep 100", *options: str, id: str = "", **more: Any) -> None:
        """A container that waits for start.  Its stdio is /dev/null: it would keep our pipes open."""
        self.process["args"] = ["sh", "-c", script]
        self.write(id)
        words = self.command("create", "--bundle", str(self.bundle), *options, id or self.id)
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | more
        with (self.folder / "create.err").open("w+", encoding="utf-8") as error:
            done = subprocess.run(words, stderr=error, timeout=LIMIT, check=False, **more)
            error.seek(0)
            assert (done.returncode, said := error.read()) == (0, ""), said

    def start(self, script: str = "sleep 100", *options: str, **more: Any) -> int:
        """A container that runs; the pid of its init."""
        self.create(script, *options, **more)
        self.ok("start", self.id)
        return self.pid()

    def state(self, id: str = "") -> dict[str, Any]:
        """The answer of `state`."""
        value: dict[str, Any] = json.loads(self.ok("state", id or self.id))
        return value

    def status(self) -> str:
        """The container's status."""
        value: str = self.state()["status"]
        return value

    def pid(self) -> int:
        """The pid of the container's init, in our namespace."""
        value: int = self.state()["pid"]
        return value

    def exec(self, *args: str, options: Sequence[str] = (), input: str = "") -> str:
        """What `exec ID ...` prints."""
        return self.ok("exec", *options, self.id, *args, input=input)

    def output(self, name: str = "out") -> str:
        """What the container wrote to a file in its /tmp, waiting until there is a whole line."""
        path = self.rootfs / "tmp" / name
        return str(until(lambda: path.exists() and (text := path.read_text()).endswith("\n") and text, f"{path}"))

    def gone(self, id: str = "") -> None:
        """Nothing is left of the container `id`."""
        id = id or self.id
        assert not (self.states / id).exists()
        assert cgroups_of(id) == []
        assert processes_of(id) == []
        assert str(self.folder) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")

    def close(self) -> None:
        """Delete all containers, and see that they are gone."""
        for child in self.others:
            child.kill()
            child.wait()
            # of a test that failed: left open, they would fail another when the collector finds them
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        left = []
        for id in self.ids:
            done = self("delete", "--force", id)
            if (done.returncode, done.stderr) != (0, ""):
                left.append(done.stderr)
        assert left == []
        for id in self.ids:
            self.gone(id)
        if self.states.exists():
            assert [entry for entry in os.listdir(self.states) if not entry.startswith(".")] == []


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A bundle with busybox and a root directory for states."""
    made = Box(tmp_path)
    try:
        yield made
    finally:
        made.close()
