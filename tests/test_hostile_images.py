"""Hostile images: links, devices and lies where the runtime mounts and reads, also while they are exchanged."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from canary import DEV, MASKED, PROC, PTS, READONLY, SHM, SYS, Bundle, bundle  # noqa: F401 - bundle is a fixture
from containers import needed

pytestmark = needed


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


def test_read_only_cgroups(bundle: Bundle) -> None:
    bundle.config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec"]}
    )
    script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/evil 2>/dev/null && echo made $d; done; echo end"
    assert bundle.shell(script) == "end\n"


# -- what is exchanged meanwhile

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


# -- files that the runtime reads


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
