"""Hostile bundles: what a tenant can put into a root or a configuration, and a process into its cgroups, by the classes
of attack that tests of single features do not have.  The host's side is looked at: what it has is the same afterwards.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest
from checkpoints import Images, images, works  # noqa: F401 - a fixture
from containers import CGROUPS, LIMIT, Box, box, needed, processes_of, until  # noqa: F401 - a fixture

pytestmark = [*needed, pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")]
NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}


def nodes(folder: Path) -> Path:
    """A /dev of its own."""
    folder.mkdir()
    for name, (major, minor) in NODES.items():
        os.mknod(folder / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (folder / name).chmod(0o666)
    (folder / "pts").mkdir()
    (folder / "shm").mkdir()
    return folder


def told(box: Box, before: str, *words: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    """A command of pyoci's in a mount namespace where `before` was run."""
    unshared = ["unshare", "-m", "--propagation", "private", "sh", "-ec", f'{before}; exec "$@"', "sh"]
    return subprocess.run(
        [*unshared, *box.command(*words)], capture_output=True, text=True, timeout=LIMIT, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


# -- the host's devices

CHANGE = "for f in /proc/uptime /dev/zero /proc/self/fd/0; do chmod 600 $f; chown 7 $f; touch -c -d 1999-01-01 $f; done"


@pytest.mark.parametrize("kind", ["own", "bound", "mapped"])
def test_mode_and_owner_of_the_host_s_devices(box: Box, kind: str) -> None:  # noqa: F811
    """Root of the container is the owner of the host's /dev/null, by its number: neither what hides a file, nor a bound
    device, nor a standard stream is a way to change that one's mode, owner or times."""
    devices = nodes(box.folder / "devices")
    (box.rootfs / "bin/chown").symlink_to("busybox")
    box.capabilities("CAP_CHOWN", "CAP_FOWNER")
    box.linux["maskedPaths"] = ["/proc/uptime"]
    if kind == "bound":
        box.config["mounts"] = [mount for mount in box.config["mounts"] if not mount["destination"].startswith("/dev")]
        box.mount("/dev", "bind", str(nodes(box.folder / "theirs")), "bind")
    elif kind == "mapped":
        box.namespace("user")
        for ids in ("uid", "gid"):
            box.linux[f"{ids}Mappings"] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    # the streams are of this /dev, and not of the machine's
    before = f"mount --bind {devices} /dev; exec </dev/null"

    def seen() -> list[tuple[int, ...]]:
        found = [(devices / name).stat() for name in NODES]
        return [(each.st_mode, each.st_uid, each.st_gid, each.st_mtime_ns) for each in found]

    earlier = seen()
    use = "echo x >/proc/uptime; cat /proc/self/fd/0; stat -c %t:%T /proc/uptime"
    box.process["args"] = ["sh", "-c", f"{CHANGE} 2>/dev/null; {use}"]
    box.write()
    done = told(box, before, "run", "--bundle", str(box.bundle), box.id)
    assert (done.stdout, seen()) == ("1:3\n", earlier), done
    box.id = box.new_id()
    box.start("sleep 100")
    done = told(box, before, "exec", box.id, "sh", "-c", f"{CHANGE} 2>/dev/null; cat; echo end")
    assert (done.stdout, seen()) == ("end\n", earlier), done


@works
def test_mode_and_owner_of_the_host_s_devices_after_restore(box: Box, images: Images) -> None:  # noqa: F811
    devices = nodes(box.folder / "devices")
    box.linux["maskedPaths"] = ["/proc/uptime"]
    change = "chmod 600 /proc/self/fd/0 /proc/self/fd/1 /proc/uptime 2>/tmp/refused"
    box.start(f"while ! [ -e /tmp/go ]; do sleep 0.02; done; {change}; echo end >/tmp/out; sleep 100")
    images.checkpoint()
    before = f"mount --bind {devices} /dev; exec </dev/null >/dev/null 2>{box.folder}/said"
    done = told(box, before, *images.words())
    assert done.returncode == 0, (box.folder / "said").read_text()
    (box.rootfs / "tmp/go").touch()
    assert box.output() == "end\n"
    assert [stat.S_IMODE((devices / name).stat().st_mode) for name in NODES] == [0o666] * len(NODES)
    assert (box.rootfs / "tmp/refused").read_text().count("Read-only file system") >= 2


@pytest.mark.parametrize("kind", ["volume on a link", "/dev is a link", "below", "missing", "//dev", "/x/../dev"])
def test_volume_that_an_image_makes_its_dev(box: Box, kind: str) -> None:  # noqa: F811
    """Devices are made in no directory of the host's, nor is a file there in the way of a link (CVE-2026-47766)."""
    volume = box.folder / "volume"
    volume.mkdir()
    (volume / "ptmx").write_text("marker")
    (box.rootfs / "x").mkdir()
    destination = kind if kind[0] == "/" and kind[-1] == "v" else "/data"
    if destination == "/data":
        if kind.startswith("volume"):
            (box.rootfs / "data").symlink_to("dev")
        else:
            (box.rootfs / "dev").rmdir()
            (box.rootfs / "dev").symlink_to("/x/../data/new" if kind == "below" else "data")
            if kind != "missing":
                (box.rootfs / "data").mkdir()
    box.mount(destination, "bind", str(volume), "bind", "rw")
    box.process["args"] = ["true"]
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    if destination == "/data":
        said = f"links of the image lead /dev there, and devices would be made in the host's {volume}"
        assert f"/destination: {said}" in done.stderr
    assert [path.name for path in volume.iterdir()] == ["ptmx"]
    assert (volume / "ptmx").read_text() == "marker"
    box.gone()


@pytest.mark.parametrize("before", [True, False])
def test_links_of_an_image_that_do_no_harm(box: Box, before: bool) -> None:  # noqa: F811
    """/dev may be a link to where nothing of the host's is, and a volume be covered by what is mounted on /dev."""
    volume = box.folder / "volume"
    volume.mkdir()
    (box.rootfs / "dev").rmdir()
    (box.rootfs / "dev").symlink_to("data/dev" if before else "devices")
    (box.rootfs / "data/dev").mkdir(parents=True)
    (box.rootfs / "devices").mkdir()
    (volume / "dev").mkdir()
    entry = {"destination": "/data", "type": "bind", "source": str(volume), "options": ["bind"]}
    box.config["mounts"].insert(0 if before else len(box.config["mounts"]), entry)
    if before:
        # without links /dev is at /data/dev, in the tmpfs that the configuration mounts there
        assert box.run("echo x >/dev/null; stat -c %t:%T /dev/null") == "1:3\n"
    else:
        assert box.run("stat -c %t:%T /dev/null") == "1:3\n"
    assert [*(volume / "dev").iterdir()] == []


# -- what a configuration names on the host


@pytest.mark.parametrize(
    ("kind", "file", "flag", "setting", "show"),
    [
        ("uts", "uts", "-u", "/hostname", "hostname"),
        ("network", "net", "-n", "/linux/sysctl/net.ipv4.ip_default_ttl", "cat /proc/sys/net/ipv4/ip_default_ttl"),
        ("ipc", "ipc", "-i", "/linux/sysctl/kernel.shmmni", "cat /proc/sys/kernel/shmmni"),
    ],
)
def test_settings_in_a_namespace_of_the_host_s(  # noqa: PLR0913
    box: Box,  # noqa: F811
    kind: str,
    file: str,
    flag: str,
    setting: str,
    show: str,
) -> None:
    """A path to the runtime's own namespace is no namespace of the container's: what is set there is the host's."""
    box.config.pop("hostname", None)
    box.namespace(kind, f"/proc/self/ns/{file}")
    box.process["args"] = ["true"]
    if kind == "uts":
        box.config["hostname"] = "pwned"
    else:
        box.linux["sysctl"] = {setting.rpartition("/")[2]: "77"}
    box.write()
    # the host's are those of this test's own
    script = f'{show}; "$@"; {show}'
    words = ["unshare", "-m", flag, "sh", "-c", f"mount -t proc proc /proc; {script}", "sh"]
    done = subprocess.run(
        [*words, *box.command("run", "--bundle", str(box.bundle), box.id)],
        capture_output=True, text=True, timeout=LIMIT, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    before, after = done.stdout.splitlines()
    assert before == after
    assert f"{setting}: would change the host: /proc/self/ns/{file} (/linux/namespaces/" in done.stderr, done
    box.gone()


# -- a fifo where a log is to be


@pytest.mark.parametrize("reader", ["nobody", "who does not read"])
def test_log_that_is_a_fifo(box: Box, reader: str) -> None:  # noqa: F811
    """Where fs.protected_fifos is off, as it is by itself, anybody can leave one in /tmp: no command waits for that."""
    log = box.folder / "log"
    os.mkfifo(log)
    log.chmod(0o666)
    held = -1
    if reader != "nobody":
        held = os.open(log, os.O_RDWR | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(held, bytes(4096))
    box.write()
    begun = time.monotonic()
    for words in (["delete", "--force", box.id], ["state", box.id], ["start", box.id]):
        done = box("--log", str(log), *words)
        if reader == "nobody":
            said = f"pyoci: cannot open the log: open {log}: nobody reads this fifo\n"
            assert (done.returncode, done.stderr) == (1, said)
        else:
            assert (done.returncode == 0) == (words[0] == "delete") and "Traceback" not in done.stderr, done
    assert time.monotonic() - begun < 10
    if held >= 0:
        os.close(held)


# -- processes that will not end


@pytest.mark.skipif(not (CGROUPS / "freezer").is_dir(), reason="no cgroup v1 freezer here")
@pytest.mark.parametrize("verb", [["delete", "--force"], ["kill"]])
def test_container_that_has_frozen_itself(box: Box, verb: list[str]) -> None:  # noqa: F811
    """In a cgroup of its own making, below the one that the runtime knows: there not even SIGKILL has an effect."""
    box.namespace("cgroup")
    for mount in box.config["mounts"]:
        if mount["type"] == "cgroup":
            mount["options"] = ["rw"]
    enter = "cd /sys/fs/cgroup/freezer; mkdir -p a/b; echo 1 >a/b/cgroup.procs"
    box.start(f"{enter}; echo FROZEN >a/b/freezer.state; sleep 100")
    state = CGROUPS / "freezer" / box.id / "a/b/freezer.state"
    until(lambda: state.exists() and state.read_text() == "FROZEN\n")
    begun = time.monotonic()
    try:
        box.ok(*verb, box.id, *(["KILL"] if verb == ["kill"] else []))
        until(lambda: not processes_of(box.id))
        assert time.monotonic() - begun < 9
    finally:
        if state.exists():
            state.write_text("THAWED")
    if verb == ["kill"]:
        box.ok("delete", box.id)
    box.gone()


# -- more than anybody needs


def test_more_than_anybody_needs(box: Box) -> None:  # noqa: F811
    """Nothing takes the square of a list's length, a descriptor for each, or a level of recursion for each."""
    call = {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["ioctl"] * 50_000, "action": "SCMP_ACT_ERRNO", "args": [call]},
            *[{"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [call]}] * 20_000,
        ],
    }
    box.linux["maskedPaths"] = [f"/none{number}" for number in range(30_000)]
    box.linux["devices"] = [
        {"path": f"/dev/d{number}", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666} for number in range(2000)
    ]
    box.process["env"] = [f"PATH={':'.join(f'/none{number}' for number in range(2000))}:/bin"]
    box.process["args"] = ["true"]
    box.process["rlimits"] = []
    box.write()
    begun = time.monotonic()
    words = ["prlimit", "--nofile=200", *box.command("run", "--bundle", str(box.bundle), box.id)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LIMIT, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    box.process["capabilities"] = {kind: [f"CAP_{n}" for n in range(30_000)] for kind in ("bounding", "permitted")}
    box.write()
    done = box("run", "--bundle", str(box.bundle), box.id)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "left out" in done.stderr
    assert time.monotonic() - begun < LIMIT


def test_rules_of_which_no_filter_can_be_made(box: Box) -> None:  # noqa: F811
    """The library's time grows with their square; that there are too many is known before it is asked."""
    rules = [
        {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": number, "op": "SCMP_CMP_EQ"}]}
        for number in range(30_000)
    ]
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    begun = time.monotonic()
    assert "/linux/seccomp: has more rules than the kernel takes instructions: 4096" in box.refused()
    assert time.monotonic() - begun < 10


# -- what an image has in the place of /etc/passwd


@pytest.mark.parametrize("kind", ["sparse", "socket", "device", "long", "colons", "links", "kcore", "up"])
def test_passwd_that_is_something_else(box: Box, kind: str) -> None:  # noqa: F811
    """By run and by exec: HOME is "/", soon, and nothing of the host's."""
    box.process["env"] = ["PATH=/bin"]
    place = box.rootfs / "etc/passwd"
    if kind == "sparse":
        with place.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(place))
    elif kind == "device":
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    elif kind == "long":
        place.write_text(f"root:x:0:0::/{'a' * 900_000}:/bin/sh\n")
    elif kind == "colons":
        place.write_text(":" * (1 << 21))
    elif kind == "links":
        for number in range(60):
            (box.rootfs / f"etc/{number}").symlink_to(str(number + 1))
        place.symlink_to("0")
    elif kind == "kcore":
        place.symlink_to("/proc/kcore")
    else:
        place.symlink_to("../" * 30 + str(box.folder / "passwd").lstrip("/"))
        (box.folder / "passwd").write_text("root:x:0:0::/canary:/bin/sh\n")
    assert box.run("echo $HOME") == "/\n"
    box.start("sleep 100")
    assert box.exec("sh", "-c", "echo $HOME") == "/\n"


# -- the caller's terminal

TYPIST = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
int main(void)
{
    char key = 'X';
    int typed = ioctl(0, TIOCSTI, &key), opened = open("/dev/tty", O_RDWR), taken = ioctl(0, TIOCSCTTY, 1);
    open("/proc/self/fd/0", O_RDWR);
    printf("%d %d %d %d\n", typed, opened, taken, ioctl(0, TIOCSTI, &key));
    return 0;
}
"""


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_keys_that_nobody_has_typed(box: Box, verb: str) -> None:  # noqa: F811
    """Without a terminal of its own the program has the caller's streams, and still cannot type on that terminal."""
    box.compile("typist", TYPIST)
    box.capabilities("CAP_KILL")
    words = box.command("exec", box.id, "typist")
    if verb == "exec":
        box.start("sleep 100")
    else:
        box.process["args"] = ["typist"]
        box.write()
        words = box.command("run", "--bundle", str(box.bundle), box.id)
    pid, master = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    said = b""
    try:
        while piece := os.read(master, 4096):
            said += piece
    except OSError:
        pass  # the other end is closed
    os.close(master)
    assert os.waitpid(pid, 0)[1] == 0
    assert said == b"-1 -1 -1 -1\r\n"


# -- a directory of states that somebody has been at


@pytest.mark.parametrize("name", ["state.json", "config.json", "shortcut"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "sparse", "link"])
def test_file_of_a_state_that_is_something_else(box: Box, name: str, kind: str) -> None:  # noqa: F811
    """One line from whoever needs it; nobody waits, and `list` has the others."""
    box.create()
    other, box.id = box.id, box.new_id()
    box.start()
    first, box.id = box.id, other
    place, kept = box.states / other / name, box.folder / "kept"
    place.rename(kept)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    elif kind == "sparse":
        with place.open("wb") as file:
            file.truncate(1 << 40)
    else:
        place.symlink_to("/proc/kmsg")
    begun = time.monotonic()
    try:
        # start does what the file `shortcut` says, and else looks at the state
        for verb in ("start", "state", "exec", "kill"):
            done = box(verb, other, *(["true"] if verb == "exec" else []))
            if verb != "start" and (name == "state.json" or (name, verb) == ("config.json", "exec")):
                assert done.returncode and done.stderr.count("\n") == 1 and f"{other}/{name}" in done.stderr, done
            assert "internal error" not in done.stderr and "Traceback" not in done.stderr
        assert first in box("list").stdout
        assert time.monotonic() - begun < 10
    finally:
        if kind == "directory":
            place.rmdir()
        else:
            place.unlink()
        kept.rename(place)


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 10**30},
        {"pid": -1},
        {"pid_start": -(10**30)},
        {"cgroup_paths": {"": "/a\0b"}},
        {"hooks": {"poststop": [{"path": 5}, "x", None]}},
        {"hooks": {"poststop": {}}},
        {"criu_pid": 1 << 40},
    ],
    ids=str,
)
def test_state_that_no_command_has_written(box: Box, change: dict[str, object]) -> None:  # noqa: F811
    box.start()
    place = box.states / box.id / "state.json"
    kept = place.read_text()
    place.write_text(json.dumps(json.loads(kept) | change))
    for verb in ("state", "ps", "kill", "pause", "delete"):
        assert f"{box.id}/state.json is damaged: /{next(iter(change))}" in box.fails(verb, box.id)
    place.write_text(kept)
