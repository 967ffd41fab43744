"""Hostile images, bundles, callers and neighbours: what they try must not reach the host.

Every test looks at the host's side: a canary tree, with its contents and times, is the same before and after, and so is
the list of our mounts.  What a container was refused matters less than what it did not get.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pyoci
from pyoci.__main__ import START
from pyoci.errors import PyociError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(pyoci.__file__).parent
BUSYBOX = Path("/bin/busybox")
COMMAND = [sys.executable, "-I", "-S", "-X", "utf8", "-c", START, str(PACKAGE.parent), ""]
INSTALLED = Path(sys.executable).parent / "pyoci"
APPLETS = ("sh", "cat", "ls", "id", "true", "sleep", "touch", "mkdir", "readlink", "grep", "pwd", "wc", "echo", "stat")
NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
DEV = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}
PTS = {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}
SHM = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"]}
PROC = {"destination": "/proc", "type": "proc", "source": "proc"}
SYS = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}
MASKED = ["/proc/kcore", "/proc/keys", "/sys/firmware"]
READONLY = ["/proc/sys", "/proc/sysrq-trigger"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (PACKAGE / "init" / "init.elf").exists(), reason="init is not built: ./check native"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="a static busybox is the image (package busybox-static)"),
]


def snapshot(folder: Path) -> list[tuple[object, ...]]:
    """All that can be seen of a tree without following a link: names, modes, owners, times, contents."""
    found: list[tuple[object, ...]] = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        content = ""
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        found.append((str(path), info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_rdev, content))
    return found


def mounts(folder: Path) -> list[str]:
    """Those of our mounts that have to do with a folder, as source or as target."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


class Bundle:
    """A bundle with a busybox image, beside it the host's canary; commands on containers with states of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rootfs = folder / "rootfs"
        self.canary = folder.parent / "canary"
        self.states = folder.parent / "states"
        self.count = 0
        self.started: list[str] = []
        for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.rootfs / "bin" / "busybox")
        for applet in APPLETS:
            (self.rootfs / "bin" / applet).symlink_to("busybox")
        (self.canary / "directory" / "pts").mkdir(parents=True)
        (self.canary / "file").write_text("canary")
        for name in ("ptmx", "null", "console"):
            (self.canary / "directory" / name).write_text("marker")
        self.before = snapshot(self.canary)
        self.mounts = mounts(folder.parent)
        self.config: dict[str, Any] = {
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/true"],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "capabilities": {name: ["CAP_KILL"] for name in ("bounding", "effective", "permitted")},
                "noNewPrivileges": True,
            },
            "mounts": [PROC, DEV, PTS, SHM, SYS],
            "linux": {
                "namespaces": [{"type": name} for name in NAMESPACES],
                "maskedPaths": MASKED,
                "readonlyPaths": READONLY,
            },
        }

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["process"]
        return found

    def write(self) -> None:
        (self.folder / "config.json").write_text(json.dumps(self.config))

    def call(self, *args: str, timeout: float = 30, **more: Any) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": self.folder, **more}
        # a created container keeps the streams that it was given
        quiet = args[0] == "create"
        given["stdout"] = given["stderr"] = subprocess.DEVNULL if quiet else subprocess.PIPE
        return subprocess.run(
            [*COMMAND, "--root", str(self.states), *args], text=True, timeout=timeout, check=False, **given,
        )  # fmt: skip

    def name(self) -> str:
        self.count += 1
        return f"hostile-{os.getpid()}-{self.count}"

    def run(self, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """`pyoci run` of a shell command or of what the config says."""
        if args:
            self.process["args"] = list(args)
        self.write()
        return self.call("run", self.name(), **more)

    def shell(self, script: str, **more: Any) -> str:
        done = self.run("/bin/sh", "-c", script, **more)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def start(self, *args: str) -> str:
        """A container that runs."""
        self.process["args"] = list(args or ("/bin/sleep", "100"))
        self.write()
        name = self.name()
        self.started.append(name)
        # what runs on keeps the streams that it was given
        done = subprocess.run(
            [*COMMAND, "--root", str(self.states), "run", "--detach", name],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder,
            timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0
        return name

    def untouched(self) -> None:
        assert snapshot(self.canary) == self.before
        assert mounts(self.folder.parent) == self.mounts

    def close(self) -> None:
        if self.states.exists():
            for entry in self.states.iterdir():
                if not entry.name.startswith("."):
                    self.call("delete", "--force", entry.name)
            assert not [entry for entry in self.states.iterdir() if not entry.name.startswith(".")]
        self.untouched()
        left = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/hostile-{os.getpid()}-*")]
        left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"hostile-{os.getpid()}-*")]
        assert not left


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path / "bundle")
    yield made
    made.close()


# -- what an image can hold


def absolute(bundle: Bundle, path: Path) -> None:
    path.symlink_to(bundle.canary / "directory")


def relative(bundle: Bundle, path: Path) -> None:
    path.symlink_to("../" * 30 + str(bundle.canary / "directory").lstrip("/"))


def dangling(bundle: Bundle, path: Path) -> None:
    path.symlink_to(bundle.canary / "directory" / "new")


def to_file(bundle: Bundle, path: Path) -> None:
    path.symlink_to(bundle.canary / "file")


def to_descriptor(bundle: Bundle, path: Path) -> None:
    path.symlink_to("/proc/self/fd/3")


def loop(bundle: Bundle, path: Path) -> None:
    path.symlink_to(path.name)


def fifo(bundle: Bundle, path: Path) -> None:
    os.mkfifo(path)


def device(bundle: Bundle, path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))


KINDS = (absolute, relative, dangling, to_file, to_descriptor, loop, fifo, device)
# path in the image, whether the bundle mounts something on /dev, and whether there is a terminal
PLACES = (
    ("proc", True, False),
    ("sys", True, False),
    ("dev", True, False),
    ("dev", False, False),
    ("dev/null", False, False),
    ("dev/console", False, True),
    ("dev/ptmx", False, False),
    ("dev/pts", False, True),
    ("dev/pts/ptmx", False, True),
    ("dev/shm", False, False),
    ("dev/fd", False, False),
    ("volume", True, False),
    ("work", True, False),
    ("masked", True, False),
)


@pytest.mark.parametrize(("place", "own_dev", "terminal"), PLACES)
def test_links_in_the_image(bundle: Bundle, place: str, own_dev: bool, terminal: bool) -> None:
    config, process = bundle.config, bundle.process
    pts = place != "dev/pts/ptmx"
    config["mounts"] = [PROC, SYS, *([DEV] if own_dev else []), *([PTS] if own_dev or pts else []), SHM]
    config["mounts"].append({"destination": "/volume", "type": "bind", "source": "/etc/hosts", "options": ["bind"]})
    config["mounts"].append({"destination": "/volume2", "type": "tmpfs", "source": "tmpfs"})
    config["linux"]["maskedPaths"] = [*MASKED, "/masked"]
    config["linux"]["readonlyPaths"] = [*READONLY, "/masked"]
    config["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]
    process["terminal"] = terminal
    process["cwd"] = "/work"
    for kind in KINDS:
        path = bundle.rootfs / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif path.exists():
            shutil.rmtree(path)
        kind(bundle, path)
        done = bundle.run("/bin/sh", "-c", "echo x >/dev/null; ls / >/dev/null; pwd >/work/where", timeout=30)
        bundle.untouched()
        assert "Traceback" not in done.stderr
        if place in ("proc", "sys"):
            assert done.returncode, f"{place} was mounted through a {kind.__name__} link"


def test_volume_with_links_over_the_runtime_s_files(bundle: Bundle) -> None:
    """/dev is the attacker's, its null a way to a file of procfs (CVE-2025-31133)."""
    volume = bundle.folder / "volume"
    volume.mkdir()
    (volume / "null").symlink_to("/proc/sys/kernel/core_pattern")
    (volume / "console").symlink_to("/proc/sysrq-trigger")
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    bundle.config["mounts"] = [
        PROC,
        {"destination": "/dev", "type": "bind", "source": str(volume), "options": ["bind", "rw"]},
    ]
    bundle.config["linux"]["maskedPaths"] = ["/proc/uptime", "/proc/kcore"]
    bundle.config["linux"]["readonlyPaths"] = ["/proc/sys"]
    told = bundle.shell(
        "cat /proc/uptime; stat -c %F,%t,%T /proc/uptime; echo pwned 2>&1 >/proc/sys/kernel/core_pattern || true"
    )
    assert told.splitlines()[0] == "character special file,1,3"
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_device_that_is_something_else_is_refused(bundle: Bundle) -> None:
    bundle.config["mounts"] = [PROC]
    os.mknod(bundle.rootfs / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    done = bundle.run()
    assert done.returncode
    assert "device is there already" in done.stderr


@pytest.mark.parametrize("over", ["/proc", "/proc/sys", "/proc/self/attr"])
def test_sysctl_is_the_true_one(bundle: Bundle, over: str) -> None:
    """Whatever lies on /proc, the parameter is written, or the container does not start (CVE-2025-52881)."""
    fake = bundle.folder / "fake"
    (fake / "net" / "ipv4").mkdir(parents=True)
    (fake / "net" / "ipv4" / "ip_forward").write_text("fake")
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_default_ttl": "77"}
    bundle.config["linux"]["maskedPaths"] = bundle.config["linux"]["readonlyPaths"] = []
    second = {**PROC, "destination": "/true"}
    lying = {"destination": over, "type": "bind", "source": str(fake), "options": ["bind"]}
    bundle.config["mounts"] = [PROC, lying, second, DEV]
    done = bundle.run("/bin/cat", "/true/sys/net/ipv4/ip_default_ttl")
    assert done.returncode or done.stdout == "77\n"
    assert (fake / "net" / "ipv4" / "ip_forward").read_text() == "fake"


def test_the_corpus_starts_without_links(bundle: Bundle) -> None:
    """The control of all tests above: the same bundle, unspoilt, works."""
    assert bundle.shell("echo works; pwd") == "works\n/\n"
    bundle.process["terminal"] = True
    assert bundle.run("/bin/readlink", "/proc/self/fd/0").stdout.strip() == "/dev/pts/0"


# -- neighbours that race

RACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
one, other = (os.fsencode(path) for path in sys.argv[1:])
print("racing", flush=True)
while True:
    libc.syscall(316 if os.uname().machine == "x86_64" else 276, -100, one, -100, other, 2)
"""


class Racer:
    """Exchanges two names as fast as it can."""

    def __init__(self, one: Path, other: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", RACER, str(one), str(other)], stdout=subprocess.PIPE
        )

    def __enter__(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def __exit__(self, *unused: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize("place", ["volume", "proc", "masked"])
def test_mount_target_that_becomes_a_link(bundle: Bundle, place: str) -> None:
    """CVE-2021-30465, CVE-2024-45310, CVE-2019-19921: a name is looked up once."""
    (bundle.rootfs / place).mkdir(exist_ok=True)
    (bundle.rootfs / "link").symlink_to(bundle.canary / "directory")
    source = bundle.folder / "source"
    source.mkdir()
    (source / "mine").touch()
    bundle.config["mounts"].append(
        {"destination": "/volume/new/place", "type": "bind", "source": str(source), "options": ["bind"]}
    )
    bundle.config["linux"]["maskedPaths"] = [*MASKED, "/masked"]
    bundle.process["args"] = ["/bin/ls", "/volume", "/link/"]
    bundle.write()
    with Racer(bundle.rootfs / place, bundle.rootfs / "link"):
        for _ in range(30):
            done = bundle.call("run", bundle.name())
            assert "marker" not in done.stdout and "ptmx" not in done.stdout
    bundle.untouched()


def test_renames_elsewhere_stop_no_container(bundle: Bundle) -> None:
    """openat2 gives up (EAGAIN) at a ".." when anything on the machine is renamed meanwhile: anybody could do that."""
    (bundle.rootfs / "run").mkdir()
    (bundle.rootfs / "var" / "a" / "b").mkdir(parents=True)
    (bundle.rootfs / "var" / "run").symlink_to("a/../a/b/../../../var/../run")
    for number in range(20):
        bundle.config["mounts"].append({"destination": f"/var/run/{number}", "type": "tmpfs", "source": "tmpfs"})
    bundle.process["args"] = ["/bin/true"]
    bundle.write()
    for name in ("one", "other"):
        (bundle.folder / name).touch()
    with Racer(bundle.folder / "one", bundle.folder / "other"):
        for _ in range(30):
            done = bundle.call("run", bundle.name())
            assert (done.returncode, done.stderr) == (0, "")


SNOOPER = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static void look(const char *pid, const char *name, dev_t mine)
{
    char path[512], target[512] = "";
    struct stat info;
    snprintf(path, sizeof path, "/proc/%s/%s", pid, name);
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0)
        return;
    readlink(path, target, sizeof target - 1);
    if (!fstat(fd, &info) && (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)) && info.st_dev != mine)
        printf("reached %s of %s: %s\n", name, pid, target), fflush(stdout);
    close(fd);
}
int main(void)
{
    struct stat own;
    long seen = 0, last = 0;
    stat("/bin/busybox", &own);
    puts("ready"), fflush(stdout);
    while (access("/tmp/stop", F_OK)) {
        DIR *proc = opendir("/proc");
        struct dirent *entry;
        while ((entry = readdir(proc))) {
            long pid = atol(entry->d_name);
            if (pid <= 1 || pid == getpid())
                continue;
            if (pid != last)
                seen++, last = pid;
            look(entry->d_name, "exe", own.st_dev);
            look(entry->d_name, "root", own.st_dev);
            look(entry->d_name, "cwd", own.st_dev);
            char name[16], exe[600], target[512];
            for (int n = 3; n < 16; n++)
                snprintf(name, sizeof name, "fd/%d", n), look(entry->d_name, name, own.st_dev);
            if (!ptrace(PTRACE_SEIZE, pid, 0, 0)) {
                snprintf(exe, sizeof exe, "/proc/%ld/exe", pid);
                long got = readlink(exe, target, sizeof target - 1);
                target[got < 0 ? 0 : got] = 0;
                if (strstr(target, "memfd"))
                    printf("traced %ld: %s\n", pid, target), fflush(stdout);
                ptrace(PTRACE_INTERRUPT, pid, 0, 0), waitpid(pid, 0, 0), ptrace(PTRACE_DETACH, pid, 0, 0);
            }
        }
        closedir(proc);
    }
    printf("saw %ld\n", seen);
    return 0;
}
"""


@pytest.mark.parametrize("user", [0, 1000])
def test_snooper_reaches_nothing_of_exec(bundle: Bundle, user: int) -> None:
    """CVE-2016-9962, CVE-2019-5736: while execs come in, a process of the container goes for all that they hold."""
    compile_static(bundle, "snooper", SNOOPER)
    (bundle.rootfs / "tmp").chmod(0o777)
    bundle.process["user"] = {"uid": user, "gid": user}
    name = bundle.start("/bin/sh", "-c", "snooper >/tmp/found; sleep 100")
    found = bundle.rootfs / "tmp" / "found"
    until(lambda: found.exists() and "ready" in found.read_text())
    for number in range(50):
        done = bundle.call("exec", *(["--user", "1000"] if number % 2 else []), name, "/bin/true")
        assert (done.returncode, done.stderr) == (0, "")
    (bundle.rootfs / "tmp" / "stop").touch()
    until(lambda: "saw" in found.read_text())
    lines = found.read_text().splitlines()
    assert lines[0] == "ready" and lines[-1].startswith("saw") and lines[1:-1] == []


TRACER = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    unsigned long allowed = strtoul(argv[1], 0, 16);
    long took = 0, last = 0;
    puts("ready"), fflush(stdout);
    while (access("/tmp/stop", F_OK)) {
        DIR *proc = opendir("/proc");
        struct dirent *entry;
        while ((entry = readdir(proc))) {
            long pid = atol(entry->d_name);
            char path[64], text[4096], *line;
            if (pid <= 1 || pid == getpid() || pid == last || ptrace(PTRACE_SEIZE, pid, 0, 0))
                continue;
            last = pid;
            ptrace(PTRACE_INTERRUPT, pid, 0, 0);
            waitpid(pid, 0, __WALL);
            snprintf(path, sizeof path, "/proc/%ld/exe", pid);
            long got = readlink(path, text, sizeof text - 1);
            text[got < 0 ? 0 : got] = 0;
            if (strstr(text, "memfd:pyoci-init")) {
                snprintf(path, sizeof path, "/proc/%ld/status", pid);
                int fd = open(path, O_RDONLY);
                got = read(fd, text, sizeof text - 1);
                text[got < 0 ? 0 : got] = 0;
                close(fd);
                took++;
                for (line = strstr(text, "CapInh"); line && line < strstr(text, "NoNew"); line = strchr(line, '\n') + 1)
                    if (strtoul(line + 8, 0, 16) & ~allowed)
                        printf("gained %.24s\n", line), fflush(stdout);
                line = strstr(text, "Uid:");
                if (argc > 2 && atol(line + 5) != atol(argv[2]))
                    printf("gained %.20s\n", line), fflush(stdout);
            }
            ptrace(PTRACE_DETACH, pid, 0, 0);
        }
        closedir(proc);
        if (took > 2)
            break;
    }
    printf("took %ld\n", took);
    return 0;
}
"""


def saw_and_gained_nothing(bundle: Bundle, found: Path) -> None:
    """End the tracer whose findings are in `found`: it has traced somebody, and had nothing to tell of anybody."""
    (bundle.rootfs / "tmp" / "stop").touch()
    until(lambda: "took" in found.read_text())
    lines = found.read_text().splitlines()
    assert lines[-1] != "took 0", "none was seen"
    assert (lines[0], lines[1:-1]) == ("ready", [])


@pytest.mark.parametrize("filtered", ["", "Docker's", "no_new_privs"])
@pytest.mark.parametrize("terminal", [False, True], ids=["", "terminal"])
def test_tracer_gains_nothing_of_exec(bundle: Bundle, filtered: str, terminal: bool) -> None:
    """CAP_SYS_PTRACE without a user namespace: whoever enters can be traced, and must have no more than its tracer."""
    compile_static(bundle, "tracer", TRACER)
    (bundle.rootfs / "tmp").chmod(0o777)
    held = ["CAP_SYS_PTRACE", "CAP_KILL"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), held)
    bundle.process["noNewPrivileges"] = filtered == "no_new_privs"
    if filtered:
        # clone3 cannot be looked into, so Docker's has ENOSYS for it, and no new namespaces by clone
        bundle.config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ERRNO",
                    "args": [{"index": 0, "value": 0x10000000, "valueTwo": 0x10000000, "op": "SCMP_CMP_MASKED_EQ"}],
                },
            ],
        }
    name = bundle.start("/bin/sh", "-c", "tracer 80020 1000 >/tmp/found; sleep 100")
    found = bundle.rootfs / "tmp" / "found"
    until(lambda: found.exists() and "ready" in found.read_text())
    script = """
        test $(grep -c NoNewPrivs:.1 /proc/self/status) = $1 && id -u && grep -c Seccomp:.2 /proc/self/status
        test ! -t 0 || echo seen >/dev/tty
    """
    bundle.process["args"] = ["/bin/sh", "-c", script, "-", str(int(filtered == "no_new_privs"))]
    bundle.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [7]}
    bundle.process["terminal"] = terminal
    bundle.process["oomScoreAdj"] = 100
    bundle.process["cwd"] = "/tmp"
    asked = bundle.folder / "process.json"
    asked.write_text(json.dumps(bundle.process))
    for _ in range(200):
        done = bundle.call("exec", "--process", str(asked), name)
        assert done.stdout.split() == ["1000", str(int(bool(filtered))), *(["seen"] if terminal else [])], done
        if "took" in found.read_text():
            break
    saw_and_gained_nothing(bundle, found)


def test_tracer_of_another_container(bundle: Bundle) -> None:
    """Two containers with one pid namespace, as in a pod: exec is in the one, and the other may trace."""
    compile_static(bundle, "tracer", TRACER)
    (bundle.rootfs / "tmp").chmod(0o777)
    sets = ("bounding", "effective", "permitted")
    bundle.process["capabilities"] = {kind: ["CAP_SYS_PTRACE", "CAP_KILL"] for kind in sets}
    script = "while [ ! -e /tmp/go ]; do sleep 1; done; tracer 80020 >/tmp/found; sleep 100"
    first = bundle.start("/bin/sh", "-c", script)
    pid = json.loads(bundle.call("state", first).stdout)["pid"]
    bundle.process["capabilities"] = {kind: ["CAP_KILL"] for kind in sets}
    for entry in bundle.config["linux"]["namespaces"]:
        if entry["type"] == "pid":
            entry["path"] = f"/proc/{pid}/ns/pid"
    second = bundle.start()
    (bundle.rootfs / "tmp" / "go").touch()
    found = bundle.rootfs / "tmp" / "found"
    until(lambda: found.exists() and "ready" in found.read_text())
    for _ in range(200):
        done = bundle.call("exec", second, "/bin/grep", "CapPrm", "/proc/self/status")
        assert done.stdout.split() == ["CapPrm:", "0000000000000020"], done
        if "took" in found.read_text():
            break
    saw_and_gained_nothing(bundle, found)


@pytest.mark.parametrize("filtered", [True, False])
def test_tracer_as_hook(bundle: Bundle, filtered: bool) -> None:
    """A startContainer hook is the image's program, and runs beside the first process that still has CAP_SYS_ADMIN."""
    (bundle.rootfs / "tmp").chmod(0o777)
    bundle.process["noNewPrivileges"] = False
    held = ["CAP_KILL", "CAP_SYS_PTRACE"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), held)
    if filtered:
        bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    look = "grep -E 'CapPrm|CapBnd' /proc/1/status /proc/self/status >/tmp/found"
    bundle.config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", look], "env": ["PATH=/bin"]}]}
    assert bundle.run("/bin/true").returncode == 0
    found = [line.split()[1] for line in (bundle.rootfs / "tmp" / "found").read_text().splitlines()]
    assert found == (["0000000000280020", "0000000000080020"] if filtered else ["0000000000080020"] * 2) + (
        ["0000000000000020"] * 2 if filtered else ["0000000000080020"] * 2
    )


@pytest.mark.parametrize("change", ["", "noNewPrivileges", "capability", "filter"])
def test_tracer_before_start(bundle: Bundle, change: str) -> None:
    """The first process keeps CAP_SYS_ADMIN until it may load its filter: nobody who may trace it is let in before."""
    bundle.process["noNewPrivileges"] = change == "noNewPrivileges"
    held = ["CAP_KILL" if change == "capability" else "CAP_SYS_PTRACE"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), held)
    if change != "filter":
        bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    bundle.process["args"] = ["/bin/sleep", "100"]
    bundle.write()
    name = bundle.name()
    assert bundle.call("create", name).returncode == 0
    done = bundle.call("exec", name, "/bin/grep", "CapPrm", "/proc/1/status")
    if change:
        assert done.returncode == 0, done
    else:
        assert (done.returncode, done.stdout) == (255, "") and "cannot exec in a created container" in done.stderr, done
        assert bundle.call("start", name).returncode == 0
        done = bundle.call("exec", name, "/bin/grep", "CapPrm", "/proc/1/status")
        assert done.stdout.split() == ["CapPrm:", "0000000000080000"], done


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


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


# -- rights


RIGHTS = "cat /proc/self/status"
NONE = "0000000000000000"


def rights(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


@pytest.mark.parametrize("how", ["run", "exec", "exec-cap", "hook"])
def test_rights_are_those_of_the_configuration(bundle: Bundle, how: str) -> None:
    """CVE-2022-29162: nothing inheritable, nothing ambient; and a hook out of the image is no way to more."""
    kill = f"{1 << 5:016x}"
    if how == "hook":
        bundle.config["hooks"] = {
            "startContainer": [
                {"path": "/bin/sh", "args": ["sh", "-c", RIGHTS + " >/tmp/rights"], "env": ["PATH=/bin"]}
            ]
        }
        for command in ("run", "create"):
            bundle.process["args"] = ["/bin/cat", "/tmp/rights"]
            bundle.write()
            name = bundle.name()
            done = bundle.call(command, name)
            assert done.returncode == 0, done.stderr
            if command == "create":
                done = bundle.call("start", name)
                assert (done.returncode, done.stderr) == (0, "")
            seen = rights((bundle.rootfs / "tmp" / "rights").read_text())
            assert (seen["CapBnd"], seen["CapPrm"], seen["NoNewPrivs"]) == (kill, kill, "1")
        return
    if how == "run":
        seen = rights(bundle.run("/bin/cat", "/proc/self/status").stdout)
    else:
        extra = ["--cap", "CAP_SYS_ADMIN"] if how == "exec-cap" else []
        seen = rights(bundle.call("exec", *extra, bundle.start(), "/bin/cat", "/proc/self/status").stdout)
        kill = f"{1 << 5 | (1 << 21 if extra else 0):016x}"
    assert (seen["CapInh"], seen["CapAmb"], seen["CapBnd"], seen["CapPrm"]) == (NONE, NONE, kill, kill)
    assert (seen["NoNewPrivs"], seen["SigIgn"], seen["SigBlk"], seen["Groups"]) == ("1", NONE, NONE, "")


def test_numeric_users(bundle: Bundle) -> None:
    """CVE-2016-3697, CVE-2026-30892: a number is that number, whatever the image's passwd calls it."""
    (bundle.rootfs / "etc" / "passwd").write_text("1000:x:0:0::/:/bin/sh\n1:x:0:0::/:/bin/sh\n")
    name = bundle.start()
    for text, uid, gid in (("1000", "1000", "0"), ("1:2", "1", "2"), ("0", "0", "0")):
        done = bundle.call("exec", "--user", text, name, "/bin/sh", "-c", "id -u; id -g")
        assert done.stdout.split() == [uid, gid]
    for text in (
        "1:",
        ":2",
        "-1",
        "4294967295",
        "4294967296",
        "01",
        "1 ",
        " 1",
        "a",
        "1:a",
        "root",
        "0x0",
        "1:-1",
        "+0",
    ):
        assert bundle.call("exec", f"--user={text}", name, "/bin/true").returncode, text


KEYRING = r"""
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
    char text[200] = "none";
    syscall(SYS_keyctl, 6, -3, text, sizeof text); /* KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING */
    puts(text);
    return 0;
}
"""


def compile_static(bundle: Bundle, name: str, text: str) -> None:
    """A static program in the image's /bin."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed")
    source = bundle.folder / f"{name}.c"
    source.write_text(text)
    built = subprocess.run(
        ["cc", "-static", "-O1", "-w", "-o", str(bundle.rootfs / "bin" / name), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        pytest.skip(f"no static C library: {built.stderr[:100]}")


JOIN = (
    "import ctypes, os, sys; ctypes.CDLL(None).syscall(int(sys.argv[1]), 1, sys.argv[2].encode(), 0, 0, 0); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
# In a session keyring of this name, open to everybody, as nobody: says so, and waits for the end of its input.
SQUAT = (
    "import ctypes, os, sys; os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); "
    "call = ctypes.CDLL(None).syscall; "
    "ring = call(int(sys.argv[1]), 1, sys.argv[2].encode(), 0, 0, 0); "
    "bad = call(int(sys.argv[1]), 5, ring, 0x3f3f3f3f, 0, 0); "
    "os.write(1, b'%d %d\\n' % (ring > 0, bad)); os.read(0, 1)"
)


@pytest.fixture
def keyctl(bundle: Bundle) -> str:
    """The number of keyctl(2), and /bin/keyring in the image to describe the session keyring."""
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, -3, 0, 0, 0) < 0 and ctypes.get_errno() == errno.ENOSYS:
        pytest.skip("this kernel has no keyrings")
    compile_static(bundle, "keyring", KEYRING)
    return str(number)


def joined(bundle: Bundle, keyctl: str, *command: str) -> str:
    """What a command of pyoci prints, whose caller is in the session keyring "canary"."""
    words = [sys.executable, "-I", "-c", JOIN, keyctl, "canary", *COMMAND, "--root", str(bundle.states), *command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=bundle.folder, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_session_keyring_stays_outside(bundle: Bundle, keyctl: str) -> None:
    """What the caller keeps in its session keyring is not the container's, by create or by exec (keyrings(7))."""
    name = bundle.start()
    bundle.process["args"] = ["/bin/keyring"]
    bundle.write()
    for command in (["exec", name, "/bin/keyring"], ["run", bundle.name()]):
        text = joined(bundle, keyctl, *command)
        assert text.startswith("keyring;0;") and "canary" not in text
    assert joined(bundle, keyctl, "run", "--no-new-keyring", bundle.name()).strip().endswith(";canary")


def test_session_keyring_of_somebody_else(bundle: Bundle, keyctl: str) -> None:
    """A user who knows the container's id can make a keyring of any name first, and let everybody join it."""
    bundle.process["args"] = ["/bin/keyring"]
    bundle.write()
    name = bundle.name()
    words = [sys.executable, "-I", "-c", SQUAT, keyctl, f"_ses.{name}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "1 0\n"
        text = joined(bundle, keyctl, "run", name)
        squatter.communicate("")
    assert text.startswith("keyring;0;"), "of root, and not of nobody"


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


# -- the runtime is killed


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_runtime_that_is_killed(bundle: Bundle, kind: str) -> None:
    """kill -9 at any barrier: what was being built ends by itself, and delete leaves nothing."""
    marker = bundle.rootfs / "tmp" / "ran"
    waiting = {"path": "/bin/sleep", "args": ["sleep", "3"], "env": ["PATH=/bin"]}
    bundle.config["hooks"] = {kind: [waiting]}
    bundle.process["args"] = ["/bin/touch", "/tmp/ran"]
    bundle.write()
    name = bundle.name()
    runtime = subprocess.Popen(
        [*COMMAND, "--root", str(bundle.states), "run", name],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=bundle.folder,
    )  # fmt: skip

    def known() -> int:
        for file in (bundle.states / name / "state.json", bundle.states / name / "creating.json"):
            try:
                return int(json.loads(file.read_text())["pid"])
            except FileNotFoundError:
                pass
        return 0

    until(lambda: known() > 0)
    init = known()
    time.sleep(0.1)
    runtime.send_signal(signal.SIGKILL)
    runtime.wait()
    until(lambda: not Path(f"/proc/{init}").exists() or "\nState:\tZ" in Path(f"/proc/{init}/status").read_text())
    assert bundle.call("delete", "--force", name).returncode == 0
    assert not (bundle.states / name).exists()
    assert not marker.exists()


# -- who calls, and where states are


@pytest.mark.parametrize("name", ["..", ".", ".cache", "", "a/b", "/", "a\nb", "a b", "é", "a" * 300, "*", "../x"])
def test_id_that_is_no_name(bundle: Bundle, name: str) -> None:
    (bundle.states / ".cache").mkdir(parents=True)
    bundle.write()
    for command in (["run"], ["create"], ["delete", "--force"], ["state"], ["kill"], ["start"]):
        assert bundle.call(*command, "--", name).returncode, command
    assert [path.name for path in bundle.states.iterdir()] == [".cache"]
    assert bundle.folder.exists()


def test_state_that_somebody_else_made(bundle: Bundle) -> None:
    """A directory that others can write to, belongs to them, or is a link decides nothing."""
    victim = subprocess.Popen(["/bin/sleep", "50"])
    try:
        name = bundle.start()
        real = bundle.states / name
        state = json.loads((real / "state.json").read_text())
        state["pid"] = victim.pid
        forged = bundle.folder / "forged"
        shutil.copytree(real, forged, ignore=lambda *_: ["start.sock"])
        (forged / "state.json").write_text(json.dumps(state))
        (bundle.states / "linked").symlink_to(forged)
        assert bundle.call("kill", "linked", "KILL").returncode
        assert bundle.call("delete", "--force", "linked").returncode
        (bundle.states / "linked").unlink()
        for change in ("owner", "mode"):
            place = bundle.states / change
            shutil.copytree(forged, place)
            if change == "owner":
                os.chown(place, 1000, 1000)
            else:
                place.chmod(0o777)
            assert bundle.call("kill", change, "KILL").returncode
            assert bundle.call("delete", "--force", change).returncode
            shutil.rmtree(place)
        # the pid of another start time is not the container's
        (real / "state.json").rename(real / "kept")
        (real / "state.json").write_text(json.dumps(state))
        assert bundle.call("kill", name, "KILL").returncode
        assert victim.poll() is None
        (real / "kept").rename(real / "state.json")
    finally:
        victim.kill()
        victim.wait()


def test_large_configurations(bundle: Bundle) -> None:
    """CVE-2021-43784: no length is cut; what is too much is refused by a clear error."""
    bundle.process["env"] = ["PATH=/bin", *(f"V{number}={'x' * 100_000}" for number in range(10))]
    assert len(bundle.run("/bin/cat", "/proc/self/environ").stdout) == 10 + 10 * 100_004 + 7
    bundle.process["env"] = ["PATH=/bin"]
    bundle.config["annotations"] = {"long": "a" * 70_000}
    bundle.config["linux"]["maskedPaths"] = [f"/proc/none{number}" for number in range(3000)]
    assert bundle.shell("echo fine") == "fine\n"
    bundle.process["cwd"] = "/" + "x" * 70_000
    done = bundle.run("/bin/true")
    assert done.returncode and len(done.stderr) < 200_000 and "Traceback" not in done.stderr
    bundle.process["cwd"] = "/"
    bundle.config["mounts"] += [
        {"destination": f"/tmp/m{number}", "type": "tmpfs", "source": "tmpfs"} for number in range(1500)
    ]
    assert bundle.shell("ls /tmp | wc -l").strip() == "1500"


def test_read_only_cgroups(bundle: Bundle) -> None:
    bundle.config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec"]}
    )
    script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/evil 2>/dev/null && echo made $d; done; echo end"
    assert bundle.shell(script) == "end\n"


def test_terminal_needs_a_true_ptmx(bundle: Bundle) -> None:
    """What the image has in a devpts's place is not even opened: opening a device can do things."""
    bundle.config["mounts"] = [PROC]
    (bundle.rootfs / "dev" / "pts").mkdir()
    ptmx = bundle.rootfs / "dev" / "pts" / "ptmx"
    bundle.process["terminal"] = True
    for make in (fifo, device):
        make(bundle, ptmx)
        done = bundle.run("/bin/true")
        assert done.returncode and "expect" in done.stderr, done.stderr
        ptmx.unlink()


# -- files of the image that the runtime reads


def held(path: Path) -> int:
    """A file with a write lease, as a process of the container can have one: who opens it waits for its holder."""
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    fd = os.open(path, os.O_RDWR)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return fd


@pytest.mark.parametrize("what", ["kernel log", "lease", "fifo", "zero", "sparse"])
def test_no_file_of_the_image_holds_the_runtime(bundle: Bundle, what: str) -> None:
    """HOME comes from the image's /etc/passwd, and a program that cannot be executed is looked at: by the host's root.

    /proc/kmsg is a regular file for stat(2): reading it waits for the kernel's next message, and takes it away.
    """
    name = bundle.start()
    lease = -1
    for path in (bundle.rootfs / "etc/passwd", bundle.rootfs / "program"):
        if what == "kernel log":
            path.symlink_to("/proc/kmsg")
        elif what == "lease":
            lease = held(path)
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "zero":
            path.symlink_to("/dev/zero")
        else:
            path.touch()
            os.truncate(path, 1 << 40)
        begun = time.monotonic()
        if path.name == "passwd":
            done = bundle.call("exec", name, "/bin/sh", "-c", "echo $HOME", timeout=20)
            assert (done.returncode, done.stdout) == (0, "/\n")
        elif what != "lease":  # which the kernel's own execve(2) waits for
            done = bundle.call("exec", name, "/program", timeout=20)
            assert done.returncode == 255 and "exec" in done.stderr
        assert time.monotonic() - begun < 10
        if lease >= 0:
            os.close(lease)
            lease = -1


# -- limits of the caller's


@pytest.mark.parametrize("limit", [*(f"--nofile={number}" for number in range(8, 14)), "--fsize=5000", "--fsize=500"])
def test_limits_that_are_too_small_leave_nothing(bundle: Bundle, limit: str) -> None:
    """One line, and no half of a container, wherever it was that there was no descriptor or no room left."""
    bundle.write()
    name = bundle.name()
    words = ["prlimit", limit, *COMMAND, "--root", str(bundle.states), "run", name]
    done = subprocess.run(words, capture_output=True, text=True, cwd=bundle.folder, check=False, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert ("too many open files" if "nofile" in limit else "file too large") in done.stderr
    assert not (bundle.states / name).exists()


def test_a_cgroups_path_of_thousands_of_levels(bundle: Bundle) -> None:
    """It is longer than any that is used, and found to be so at once."""
    bundle.config["linux"]["cgroupsPath"] = "/hostile" + "/a" * 2100
    begun = time.monotonic()
    done = bundle.run("/bin/true", timeout=60)
    assert done.returncode == 1 and "/linux/cgroupsPath: must not have more than 100 components" in done.stderr
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("what", ["fifo", "link", "hard link", "dangling"])
def test_directory_of_images_that_somebody_has_prepared(tmp_path: Path, what: str) -> None:
    """What checkpoint writes there itself is a new file, whatever had its name."""
    from pyoci.container.checkpoint import DESCRIPTORS, _write

    canary, place = tmp_path / "canary", tmp_path / "images" / DESCRIPTORS
    place.parent.mkdir()
    canary.write_text("canary")
    if what == "fifo":
        os.mkfifo(place)
    elif what == "hard link":
        place.hardlink_to(canary)
    else:
        place.symlink_to(canary if what == "link" else tmp_path / "new")
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(10)
    try:
        _write(folder, DESCRIPTORS, ["a", "b", "c"])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.close(folder)
    assert json.loads(place.read_text()) == ["a", "b", "c"]
    assert canary.read_text() == "canary" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("launched", [True, False], ids=["launcher", "interpreter"])
@pytest.mark.parametrize("slash", ["", "/", "/."])
def test_link_that_somebody_left_in_tmp(bundle: Bundle, launched: bool, slash: str) -> None:
    """As with fs.protected_symlinks, which no kernel has on by itself: root's states and its log are not elsewhere."""
    command = [str(INSTALLED)] if launched else COMMAND
    if launched and not INSTALLED.exists():
        pytest.skip("the launcher is not installed")
    shared, theirs = bundle.folder / "shared", bundle.canary
    shared.mkdir()
    shared.chmod(0o1777)
    for name, target in (("states", theirs), ("log", theirs / "file"), ("new", theirs / "new")):
        (shared / name).symlink_to(target)
        os.lchown(shared / name, 1234, 1234)
    (shared / "own").symlink_to(bundle.folder / "own")
    (bundle.folder / "own").mkdir()

    def call(*words: str) -> tuple[int, str]:
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=30)
        return done.returncode, done.stderr

    why = "a link that user 1234 has left in a directory of everybody's is not followed"
    refused = (1, f"pyoci: {shared}/states: {why}\n")
    for words in (("delete", "--force", "directory"), ("start", "directory"), ("list",), ("delete", "--force", "none")):
        code, error = call("--root", f"{shared}/states{slash}", *words)
        assert (code, error) == refused or (code != 0 and "permission denied" in error), error
    # nor is a filter kept there, before that is found
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    bundle.write()
    code, error = call("--root", f"{shared}/states{slash}", "run", "--bundle", str(bundle.folder), bundle.name())
    assert code != 0 and ("is not followed" in error or "permission denied" in error), error
    for name in ("log", "new"):
        code, error = call("--log", f"{shared}/{name}", "--root", str(bundle.states), "delete", "--force", "none")
        assert code != 0 and ("is not followed" in error or "permission denied" in error), error
    bundle.untouched()
    assert call("--root", f"{shared}/own{slash}", "delete", "--force", "none") == (0, "")
    assert call("--root", f"{shared}/own{slash}", "list") == (0, "")


THREADS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
static const char *what;
static void *other(void *unused)
{
    if (!strcmp(what, "namespace"))
        if (unshare(CLONE_FS) || setns(open("/tmp/net", O_RDONLY), CLONE_NEWNET))
            perror("setns");
    close(open("/tmp/ready", O_CREAT | O_WRONLY, 0600));
    for (;;)
        pause();
}
int main(int argc, char **argv)
{
    unsigned int head[2] = {0x20080522, 0}, data[6] = {0x20, 0x20, 0, 0, 0, 0};
    pthread_t thread;
    what = argv[1];
    pthread_create(&thread, 0, other, 0);
    while (access("/tmp/ready", F_OK))
        usleep(1000);
    if (!strcmp(what, "no_new_privs"))
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!strcmp(what, "capabilities"))
        prctl(PR_CAPBSET_DROP, 21, 0, 0, 0), prctl(PR_CAPBSET_DROP, 8, 0, 0, 0), syscall(SYS_capset, head, data);
    close(open("/tmp/done", O_CREAT | O_WRONLY, 0600));
    for (;;)
        pause();
}
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("", ""),
        ("no_new_privs", "/process/noNewPrivileges: processes that may get new privileges"),
        ("capabilities", "/process/capabilities: CAP_SETPCAP, CAP_SYS_ADMIN"),
        ("namespace", "/linux/namespaces: the host's network namespace"),
    ],
)
@pytest.mark.parametrize("by_path", [False, True], ids=["", "by path"])
def test_restored_thread_with_more_than_its_process(bundle: Bundle, what: str, said: str, by_path: bool) -> None:
    """Images are a program's, thread by thread: each has its own rights, and /proc/PID is the first one's."""
    from pyoci.container.restored import check
    from pyoci.spec.load import load
    from pyoci.state import Store

    compile_static(bundle, "threads", THREADS)
    bundle.process["noNewPrivileges"] = what != "no_new_privs"
    more = ["CAP_SYS_ADMIN", "CAP_SETPCAP"] if what in ("capabilities", "namespace") else []
    sets = ("bounding", "permitted", "effective")
    bundle.process["capabilities"] = {kind: ["CAP_KILL", *more] for kind in sets}
    bundle.config["linux"].pop("maskedPaths")
    if what == "namespace":
        (bundle.rootfs / "tmp/net").touch()
        bind = {"destination": "/tmp/net", "source": "/proc/self/ns/net", "options": ["bind"]}
        bundle.config["mounts"].append(bind)
    name = bundle.start("threads", what)
    until((bundle.rootfs / "tmp/done").exists)
    with Store.open(str(bundle.states), name) as store:
        state = store.load()
    # as config.json of restore may have it
    allowed = ["CAP_KILL", *(more if what == "namespace" else [])]
    bundle.process["capabilities"] = dict.fromkeys(sets, allowed)
    bundle.process["noNewPrivileges"] = True
    if by_path:
        for entry in bundle.config["linux"]["namespaces"]:
            if entry["type"] == "network":
                entry["path"] = f"/proc/{state.pid}/ns/net"
    spec = load(json.dumps(bundle.config).encode())
    if said:
        with pytest.raises(PyociError, match=re.escape(said)):
            check(spec, state, os.getpid(), "")
    else:
        check(spec, state, os.getpid(), "")
