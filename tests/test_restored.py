"""A restored container is confined as before: as CRIU makes it again, and by config.json where images say otherwise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import COUNTER, Images, count, images, works
from containers import Box, box, needed, processes_of, until

pytestmark = [*needed, works]
__all__ = ("box", "images")


def picture(box: Box) -> dict[str, object]:
    """What the kernel says of the container's first process, apart from numbers that must differ."""
    pid = box.pid()
    lines = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").splitlines()
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    same = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "Umask", "SigIgn", "SigCgt")
    # CRIU makes a time namespace, in which the clocks that only go forward go on from where they were
    ours = {
        name
        for name in os.listdir("/proc/self/ns")
        if not name.startswith("time") and os.readlink(f"/proc/self/ns/{name}") == os.readlink(f"/proc/{pid}/ns/{name}")
    }
    return {
        # without the source's name: a bind has that of the mount that it is of
        "mounts": sorted(" ".join([*line.split()[3:-2], line.split()[-1]]) for line in lines),
        "status": [line for line in status if line.startswith(same)],
        "limits": Path(f"/proc/{pid}/limits").read_text(encoding="utf-8"),
        "ours": ours,
        "cgroup": Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"),
        "inside": box.exec("cat", "/proc/1/cgroup"),
        "name": box.exec("hostname"),
        # the machine's, whoever mounts cgroup2 (nsdelegate and others)
        "host": [line.split()[3] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line],
        "masked": box.exec("sh", "-c", "wc -c < /proc/timer_list"),
    }


def test_all_about_it_is_the_same(box: Box, images: Images) -> None:
    box.namespace("cgroup")
    box.config["hostname"] = "still-me"
    box.process["noNewPrivileges"] = True
    box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW",
                            "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]}  # fmt: skip
    (box.folder / "shared").mkdir()
    (box.folder / "shared/word").write_text("from the host\n")
    (box.folder / "file").write_text("one file\n")
    (box.rootfs / "var").mkdir()
    (box.rootfs / "var/link").symlink_to("/elsewhere")
    (box.rootfs / "elsewhere").mkdir()
    box.mount("/shared", "bind", str(box.folder / "shared"), "rbind", "ro")
    # through a link of the image's
    box.mount("/var/link/deep", "bind", str(box.folder / "shared"), "bind")
    box.mount("/etc/file", "bind", str(box.folder / "file"), "bind", "ro")
    box.start("echo in memory > /dev/shm/kept; " + COUNTER)
    until(lambda: count(box) > 2)
    before = picture(box)
    images.checkpoint()
    box.gone()
    images.restore()
    after = picture(box)
    for name, value in before.items():
        # file systems of the container's own are new ones, with numbers of their own
        if name == "mounts":
            assert [entry.split()[1] for entry in value] == [entry.split()[1] for entry in after[name]]  # type: ignore[attr-defined]
        assert after[name] == value, name
    assert box.exec("cat", "/dev/shm/kept", "/shared/word", "/elsewhere/deep/word", "/etc/file").split("\n") == [
        "in memory", "from the host", "from the host", "one file", ""
    ]  # fmt: skip
    assert "Read-only" in box("exec", box.id, "touch", "/shared/word").stderr


def test_mounts_of_one_file_system(box: Box, images: Images) -> None:
    """CRIU leaves the flags of the second mount of a directory as they are on the host: both are read-only again."""
    (box.folder / "shared/deep").mkdir(parents=True)
    shared = str(box.folder / "shared")
    box.mount("/one", "bind", shared, "bind", "ro")
    box.mount("/two", "bind", shared, "bind", "ro")
    box.mount("/deep", "bind", f"{shared}/deep", "bind", "ro", "nosuid", "nodev", "noexec")
    box.mount("/open", "bind", shared, "bind")
    box.mount("/again", "cgroup", "cgroup", "ro", "nosuid", "noexec", "nodev")
    box.config["root"]["readonly"] = True
    box.mount("/tmp", "bind", str(box.rootfs / "tmp"), "bind")
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    before = picture(box)
    images.checkpoint()
    images.restore()
    assert picture(box)["mounts"] == before["mounts"]
    for place in ("/one", "/two", "/deep", "/etc", "/again", "/sys/fs/cgroup"):
        error = box("exec", box.id, "touch", f"{place}/x").stderr
        assert "Read-only file system" in error, place
    box.exec("touch", "/open/x")


def test_where_mounts_are_shared(box: Box, images: Images) -> None:
    """As systemd has them: several directories and files of one mount of the host's, each a slave of it."""
    (box.folder / "shared").mkdir()
    (box.folder / "file").write_text("one file\n")
    box.mount("/shared", "bind", str(box.folder / "shared"), "bind", "ro")
    box.mount("/etc/file", "bind", str(box.folder / "file"), "bind", "ro")
    box.process["args"] = ["sh", "-c", COUNTER]
    box.write()
    before = ["unshare", "-m", "--propagation", "private", "sh", "-ec", 'mount --make-rshared /; exec "$@"', "sh", "sh"]
    script = '"$@" run --detach --bundle "$0" "$ID" && "$@" checkpoint $FLAGS "$ID" && "$@" $RESTORE'
    variables = {"ID": box.id, "FLAGS": " ".join(images.flags()), "RESTORE": " ".join(images.words())}
    with (box.folder / "there.err").open("w+", encoding="utf-8") as error:
        done = subprocess.run(
            [*before, "-c", script, str(box.bundle), *box.command()], env={**os.environ, **variables}, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=error, timeout=60,
        )  # fmt: skip
        error.seek(0)
        assert (done.returncode, error.read()) == (0, "")
    last = count(box)
    until(lambda: count(box) > last)
    assert "Read-only" in box("exec", box.id, "touch", "/shared/x").stderr


def test_mounts_below_a_mount(box: Box, images: Images) -> None:
    """A recursive bind, read-only as a whole, has file systems of the host's below it; its source may be a link."""
    (box.folder / "shared/below").mkdir(parents=True)
    (box.folder / "link").symlink_to("shared")
    box.mount("/shared", "bind", str(box.folder / "link"), "rbind", "rro")
    box.process["args"] = ["sh", "-c", COUNTER]
    box.write()
    holder = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c",
         f"mount -t tmpfs -o size=1m tmpfs {box.folder}/shared/below && echo kept > {box.folder}/shared/below/word"
         " && echo && exec sleep 600"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    box.others.append(holder)
    assert holder.stdout is not None
    with holder.stdout as lines:
        assert lines.readline() == b"\n"

    def there(*words: str) -> None:
        with (box.folder / "there.err").open("w+", encoding="utf-8") as error:
            done = subprocess.run(
                ["nsenter", "-m", "-t", str(holder.pid), *box.command(*words)], check=False, timeout=60,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=error,
            )  # fmt: skip
            error.seek(0)
            assert (done.returncode, error.read()) == (0, "")

    there("run", "--detach", "--bundle", str(box.bundle), box.id)
    until(lambda: count(box) > 2)
    there("checkpoint", *images.flags(), box.id)
    there(*images.words())
    assert box.exec("cat", "/shared/below/word") == "kept\n"
    assert "Read-only" in box("exec", box.id, "touch", "/shared/below/x").stderr


def test_devices(box: Box, images: Images) -> None:
    """The rules are config.json's, for the program that goes on and for one that comes later."""
    box.capabilities("CAP_MKNOD")
    fuse = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}
    tun = fuse | {"access": "m", "minor": 200}
    box.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}, fuse, tun]}
    if not (Path("/dev/fuse").exists() and Path("/dev/net/tun").exists()):
        pytest.skip("the devices that are tried, /dev/fuse and /dev/net/tun, are not there")
    look = "mknod /tmp/{0} c 10 {1} && true > /tmp/{0} && echo {0} good; rm -f /tmp/{0}; "
    script = "while :; do if [ -e /tmp/go ]; then rm /tmp/go; (" + look.format("fuse", 229) + look.format("tun", 200)
    script += ") > /tmp/out 2>&1; echo >> /tmp/out; fi; sleep 0.02; done"

    def outcome() -> str:
        (box.rootfs / "tmp/out").unlink(missing_ok=True)
        (box.rootfs / "tmp/go").touch()
        path = box.rootfs / "tmp/out"
        return str(until(lambda: path.exists() and (text := path.read_text()).endswith("\n\n") and text))

    (box.rootfs / "bin/rm").symlink_to("busybox")
    box.start(script)
    before = outcome()
    assert "fuse good" in before and "tun good" not in before and "not permitted" in before
    images.checkpoint()
    images.restore()
    assert outcome() == before
    done = box("exec", box.id, "sh", "-c", look.format("fuse", 229) + look.format("tun", 200))
    assert "fuse good" in done.stdout and "tun good" not in done.stdout and "not permitted" in done.stderr


def test_a_user_namespace(box: Box, images: Images) -> None:
    if any(" shared:" in line for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()):
        pytest.skip("CRIU cannot restore several files of a shared /dev that are mounted in a user namespace")
    box.namespace("user")
    box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    for path in [box.rootfs, *box.rootfs.iterdir()]:
        os.chown(path, 100000, 100000)
    for path in (box.folder, box.folder.parent, box.folder.parent.parent):
        path.chmod(path.stat().st_mode | 0o055)
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    before = picture(box) | {"map": box.exec("cat", "/proc/1/uid_map")}
    images.checkpoint()
    images.restore()
    assert picture(box) | {"map": box.exec("cat", "/proc/1/uid_map")} == before
    box.exec("sh", "-c", "echo x > /dev/null && head -c 5 /dev/zero")


def test_a_process_that_nobody_has_waited_for(box: Box, images: Images) -> None:
    """It is there again, and nothing of it can be looked at."""
    box.start("(sleep 0.05; echo > /tmp/ended) & exec sleep 1000")
    box.output("ended")
    until(lambda: " Z " in box.exec("cat", "/proc/2/stat"))
    images.checkpoint()
    images.restore()
    assert " Z " in box.exec("cat", "/proc/2/stat")


def loose(box: Box) -> None:
    """Everything that config.json can leave out."""
    for kind in ("ipc", "uts", "network", "cgroup"):
        box.without(kind)
    box.config.pop("hostname", None)
    box.process["noNewPrivileges"] = False
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 900, "hard": 900}]
    box.process["oomScoreAdj"] = 0
    box.capabilities("CAP_CHOWN", "CAP_NET_RAW")
    box.linux.pop("maskedPaths", None)
    box.linux.pop("readonlyPaths", None)



STRICTER: dict[str, tuple[Callable[[Box], Any], str]] = {
    "capabilities": (lambda box: box.capabilities("CAP_CHOWN"), "/process/capabilities: CAP_NET_RAW"),
    "no capabilities": (lambda box: box.process.pop("capabilities"), "/process/capabilities: CAP_CHOWN, CAP_NET_RAW"),
    "limits": (lambda box: box.process.update(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}]),
               "/process/rlimits: RLIMIT_NOFILE of 900"),
    "memory": (lambda box: box.process.update(oomScoreAdj=100), "/process/oomScoreAdj: 0"),
    "seccomp": (lambda box: box.linux.update(seccomp={"defaultAction": "SCMP_ACT_ALLOW"}), "/linux/seccomp: "),
    "a namespace": (lambda box: box.namespace("ipc"), "/linux/namespaces: the host's ipc namespace"),
    "masked": (lambda box: box.linux.update(maskedPaths=["/proc/timer_list"]),
               "/linux/maskedPaths/0: /proc/timer_list in the open"),
    "a masked directory": (lambda box: box.linux.update(maskedPaths=["/proc/irq"]),
                           "/linux/maskedPaths/0: /proc/irq in the open"),
    "read-only": (lambda box: box.linux.update(readonlyPaths=["/proc/sys"]),
                  "/linux/readonlyPaths/0: /proc/sys without ro"),
    "a mount": (lambda box: box.config["mounts"][-1]["options"].append("ro"), " without ro"),
    "a mount's execution": (lambda box: box.config["mounts"][-1]["options"].append("noexec"), " without noexec"),
}  # fmt: skip


def test_images_with_more_than_is_allowed(box: Box, images: Images) -> None:
    """What the images have and config.json does not give ends the restore before anything of it runs."""
    loose(box)
    box.mount("/own", "tmpfs", "tmpfs", "size=64k")
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    images.checkpoint()
    before, config = count(box), json.dumps(box.config)
    for what, (change, said) in STRICTER.items():
        box.config = json.loads(config)
        change(box)
        error = images.refused()
        assert "restore: the images ask for more than config.json allows: " in error and said in error, (what, error)
        assert count(box) == before, what
    box.config = json.loads(config)
    box.write()
    images.restore()
    until(lambda: count(box) > before)


def test_a_root_that_shall_be_read_only_now(box: Box, images: Images) -> None:
    """CRIU since 4.2 makes it writable again, as the images have it; an earlier one leaves it as it finds it."""
    # what it counts is in a file system of its own
    box.start(COUNTER.replace("/tmp/", "/dev/shm/"))
    images.checkpoint()
    box.config["root"]["readonly"] = True
    box.write()
    status, said = images.attempt(*images.words())
    if status:
        assert "/root/readonly: / without ro" in said
        box.gone()
    else:
        assert said == ""
        assert "Read-only file system" in box("exec", box.id, "touch", "/x").stderr


def test_images_of_another_user_namespace(box: Box, images: Images) -> None:
    """Root of the host is not what a container with id maps may become."""
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    images.checkpoint()
    box.namespace("user")
    box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    before = count(box)
    error = images.refused()
    assert "the host's user namespace" in error, error
    assert count(box) == before


def no_new_privileges(pid: int) -> str:
    """0 or 1, "" of a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return ""
    return status.partition("NoNewPrivs:\t")[2][:1]


def test_no_new_privileges_whatever_the_images_have(box: Box, images: Images) -> None:
    """config.json's, for all processes: only CRIU since 3.19 writes it into images, and sets it again."""
    box.process["noNewPrivileges"] = False
    box.start("sleep 1000 & " + COUNTER)
    until(lambda: count(box) > 2)

    def found() -> set[str]:
        values = [value for pid in processes_of(box.id) if (value := no_new_privileges(pid))]
        assert len(values) > 1
        return set(values)

    assert found() == {"0"}
    images.checkpoint()
    box.process["noNewPrivileges"] = True
    box.write()
    before = count(box)
    images.restore()
    assert found() == {"1"}
    # and for those that come later
    until(lambda: count(box) > before + 3)
    assert found() == {"1"}


def test_more_confined_than_asked(box: Box, images: Images) -> None:
    """A program may have given up what config.json gave it."""
    box.process["noNewPrivileges"] = False
    box.start(f"ulimit -n 77; exec busybox setpriv --nnp sh -c '{COUNTER}'")
    until(lambda: count(box) > 2)
    before = picture(box)
    assert "NoNewPrivs:\t1" in before["status"]  # type: ignore[operator]
    images.checkpoint()
    images.restore()
    assert picture(box) == before


def test_streams_of_another_kind(box: Box, images: Images) -> None:
    """Where what we have cannot take the place of what the container had, it is said."""
    box.start(COUNTER)
    images.checkpoint()
    reading, writing = os.pipe()
    try:
        images.restore(
            stdout=writing, stderr="what the container writes to descriptor 1 goes to /dev/null, as it did before"
        )
    finally:
        os.close(writing)
        os.close(reading)
    box.ok("delete", "--force", box.id)
    with (box.folder / "out").open("w") as file:
        box.start(COUNTER, stdout=file)
    shutil.rmtree(images.images)
    images.checkpoint()
    error = images.refused(stdout=subprocess.PIPE)
    assert "needs one of the same kind and permissions" in error and "1 is a pipe" in error, error
    with (box.folder / "more").open("w") as file:
        images.restore(stdout=file)
    assert os.readlink(f"/proc/{box.pid()}/fd/1") == str(box.folder / "more")


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "deep", "words", "others", "long"])
def test_descriptors_that_somebody_wrote(box: Box, images: Images, kind: str) -> None:
    """What is beside CRIU's images is as little to be trusted: no wait, no traceback, no descriptor of ours."""
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    images.checkpoint()
    path = images.images / "descriptors.json"
    assert json.loads(path.read_text())
    path.unlink()
    if kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_text({
            "deep": "[" * 100000,
            "words": '{"0": [1, null]}',
            "others": '["/proc/1/root", "tty[8800:1]", "pipe:[1]", "socket:[2]", "file[1:2]", 7]',
            "long": "[" + '"pipe:[1]",' * 300000 + '""]',
        }[kind])  # fmt: skip
    done = box(*images.words())
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
    if done.returncode:
        assert "criu restore failed: " in done.stderr or "descriptors.json" in done.stderr
        box.gone()
    else:
        assert box.exec("sh", "-c", "ls -l /proc/1/fd | grep -c -v /dev/null") in ("1\n", "2\n")


def test_links_in_the_directory_of_images(box: Box, images: Images) -> None:
    """Our files in it are files, not somebody's links to elsewhere."""
    images.images.mkdir()
    images.work.mkdir()
    victim = box.folder / "victim"
    victim.write_text("precious")
    (images.images / "descriptors.json").symlink_to(victim)
    (images.work / "dump.log").symlink_to(victim)
    box.start(COUNTER)
    images.checkpoint()
    assert victim.read_text() == "precious"
    assert not (images.images / "descriptors.json").is_symlink()
    assert not (images.work / "dump.log").is_symlink()


def test_images_cannot_name_places_on_the_host(box: Box, images: Images) -> None:
    """Only config.json says what a mount from the host is: without it there, the images alone give nothing."""
    (box.folder / "secret").mkdir()
    box.mount("/shared", "bind", str(box.folder / "secret"), "rbind")
    box.start(COUNTER)
    images.checkpoint()
    box.config["mounts"].pop()
    box.write()
    error = box.fails("restore", "--detach", "--bundle", str(box.bundle), *images.flags(), box.id)
    assert "No mapping for" in error, error
    box.gone()


RING = r"""
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
    for (;;) {
        char text[200] = "none";
        syscall(SYS_keyctl, 6, -3, text, sizeof text); /* KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING */
        FILE *file = fopen("/tmp/new", "w");
        fputs(text, file);
        fclose(file);
        rename("/tmp/new", "/tmp/ring");
        usleep(20000);
    }
}
"""
# In a session keyring "canary", on one processor: what of its caller's a container must not have.
CALLER = (
    "import ctypes, os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    "ctypes.CDLL(None).syscall({'x86_64': 250, 'aarch64': 219}[os.uname().machine], 1, b'canary', 0, 0, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_nothing_of_its_callers(box: Box, images: Images) -> None:
    """What CRIU makes has from it what is in no image: the caller's session keyring (keyrings(7)), its processor."""
    box.compile("ring", RING)
    pid = box.start("exec /bin/ring")
    ring = box.rootfs / "tmp/ring"
    until(ring.exists)
    assert ring.read_text().startswith("keyring;0;") and "canary" not in ring.read_text()
    processors = os.sched_getaffinity(pid)
    images.checkpoint()
    plain = box.command
    box.command = lambda *args: [sys.executable, "-I", "-c", CALLER, *plain(*args)]  # type: ignore[method-assign]
    ring.unlink()
    images.restore()
    box.command = plain  # type: ignore[method-assign]
    until(ring.exists)
    assert ring.read_text().startswith("keyring;0;") and "canary" not in ring.read_text()
    assert os.sched_getaffinity(box.pid()) == processors


def test_what_is_in_no_image(box: Box, images: Images) -> None:
    """CRIU writes neither down, and a container has what config.json says."""
    box.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 7}
    box.linux["personality"] = {"domain": "LINUX32"}
    if Path("/proc/self/numa_maps").exists():
        box.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
    box.start(COUNTER)

    def tuned() -> list[str]:
        pid = box.pid()
        priority = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
        maps = Path(f"/proc/{pid}/numa_maps")
        policies = {line.split()[1] for line in maps.read_text().splitlines()} if maps.exists() else set()
        return [priority.strip(), Path(f"/proc/{pid}/personality").read_text().strip(), *sorted(policies)]

    before = tuned()
    assert before[:2] == ["best-effort: prio 7", "00000008"] and before[2:] in ([], ["bind:0"])
    images.checkpoint()
    images.restore()
    assert tuned() == before
