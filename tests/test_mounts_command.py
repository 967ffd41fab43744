"""mounts add, remove and list: read back from inside a running container, and from a container that fights back."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from containers import LIMIT, Box, box, needed, processes_of, until  # noqa: F401 - box is a fixture

from pyoci.container import mounting as doing
from pyoci.plan import mounting
from pyoci.state import ends

pytestmark = needed


def entry(destination: str, type: str = "", source: str = "", *options: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"destination": destination, **more}
    made |= {name: value for name, value in (("type", type), ("source", source)) if value}
    return made | ({"options": list(options)} if options else {})


def add(box: Box, *entries: dict[str, Any]) -> None:  # noqa: F811
    assert box.ok("mounts", "add", box.id, "-", input=json.dumps(entries)) == ""


def refuse(box: Box, *entries: dict[str, Any], command: str = "add") -> str:  # noqa: F811
    return box.fails("mounts", command, box.id, "-", input=json.dumps(entries))


def remove(box: Box, *destinations: str) -> None:  # noqa: F811
    assert box.ok("mounts", "remove", box.id, "-", input=json.dumps([entry(one) for one in destinations])) == ""


def mountinfo(box: Box) -> list[str]:  # noqa: F811
    return Path(f"/proc/{box.pid()}/mountinfo").read_text(errors="surrogateescape").splitlines()


def listed(box: Box) -> list[str]:  # noqa: F811
    return [one["destination"] for one in json.loads(box.ok("mounts", "list", box.id))]


@pytest.fixture
def running(box: Box) -> Box:  # noqa: F811
    box.start("exec sleep 100")
    return box


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    (path / "inner").mkdir(parents=True)
    (path / "file").write_text("from the host\n")
    return path


def test_a_directory_and_away_again(running: Box, data: Path) -> None:
    before = mountinfo(running)
    file = running.folder / "mounts.json"
    file.write_text(json.dumps({"mounts": [entry("/new/place", "bind", str(data), "bind", "ro", "nosuid")]}))
    running.ok("mounts", "add", running.id, str(file))
    assert running.exec("cat", "/new/place/file") == "from the host\n"
    assert "Read-only" in running("exec", running.id, "touch", "/new/place/x").stderr
    (line,) = [one for one in mountinfo(running) if " /new/place " in one]
    assert " ro,nosuid" in line
    assert listed(running) == ["/new/place"]
    # nothing of it on the host
    assert str(running.folder) not in Path("/proc/self/mountinfo").read_text()
    running.ok("mounts", "remove", running.id, str(file))
    assert mountinfo(running) == before
    assert running.exec("ls", "/new/place") == ""
    assert listed(running) == []
    assert processes_of(running.id) == [running.pid()]


def test_a_file_many_and_in_order(running: Box, data: Path) -> None:
    before = mountinfo(running)
    add(
        running,
        entry("/etc/one", "", str(data / "file"), "bind"),
        entry("/tmp/t", "tmpfs", "tmpfs", "size=64k", "mode=700", "ro"),
        entry("/tmp/t/deep", "bind", str(data), "rbind", "rw"),
        entry("/run/p", "proc", "proc", "nosuid"),
        entry("/dev/q", "mqueue", "mqueue"),
    )
    assert running.exec("cat", "/etc/one", "/tmp/t/deep/file") == "from the host\n" * 2
    # of the container's namespaces, not of ours
    assert running.exec("cat", "/run/p/1/comm") == "sleep\n"
    assert running.exec("stat", "-c", "%a", "/tmp/t") == "700\n"
    assert "Read-only" in running("exec", running.id, "touch", "/tmp/t/x").stderr
    running.exec("touch", "/tmp/t/deep/written")
    assert (data / "written").exists()
    remove(running, "/dev/q", "/run/p", "/tmp/t/deep", "/tmp/t", "/etc/one")
    assert mountinfo(running) == before


def test_a_limit_of_a_file_system_that_was_added_bites(running: Box) -> None:
    add(running, entry("/small", "tmpfs", "tmpfs", "size=16k"))
    done = running("exec", running.id, "dd", "if=/dev/zero", "of=/small/x", "bs=1k", "count=64")
    assert "No space left" in done.stderr


def test_the_same_place_twice(running: Box, data: Path) -> None:
    (data / "inner/other").write_text("")
    add(running, entry("/p", "", str(data), "bind"))
    add(running, entry("p/", "", str(data / "inner"), "bind"))
    assert running.exec("ls", "/p") == "other\n"
    remove(running, "/p")
    assert running.exec("ls", "/p").split() == ["file", "inner"]
    remove(running, "//p/.")
    assert listed(running) == []
    error = refuse(running, entry("/p"), command="remove")
    assert "/mounts/0/destination: /p: nothing that `mounts add` has mounted is there" in error


def test_an_overlay_is_of_the_hosts_directories(running: Box, data: Path, tmp_path: Path) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    # in the container, the same paths lead elsewhere
    (running.rootfs / str(data).lstrip("/")).mkdir(parents=True)
    options = [f"lowerdir={data}", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work"]
    probe = subprocess.run(["grep", "-q", "overlay", "/proc/filesystems"], check=False)
    if probe.returncode:
        pytest.skip("the kernel has no overlay")
    add(running, entry("/a", "overlay", "overlay", *options), entry("/b", "tmpfs", "tmpfs"))
    running.exec("sh", "-c", "cat /a/file; echo changed > /a/file")
    assert (tmp_path / "upper/file").read_text() == "changed\n"
    assert (data / "file").read_text() == "from the host\n"
    remove(running, "/a", "/b")


def test_owners_by_a_map(running: Box, data: Path) -> None:
    os.chown(data / "file", 3, 4)
    maps = {
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
        "gidMappings": [{"containerID": 0, "hostID": 2000, "size": 10}],
    }
    probe = running("mounts", "add", running.id, "-", input=json.dumps([entry("/m", "", str(data), "bind", **maps)]))
    if "id-mapped" in probe.stderr and "invalid argument" in probe.stderr:
        pytest.skip(f"the file system of {data} has no id-mapped mounts")
    assert probe.returncode == 0, probe.stderr
    assert running.exec("stat", "-c", "%u %g", "/m/file") == "1003 2004\n"
    remove(running, "/m")


def test_in_a_user_namespace(box: Box, data: Path) -> None:  # noqa: F811
    box.namespace("user")
    one = [{"containerID": 0, "hostID": 100000, "size": 100}]
    box.linux.update({"uidMappings": one, "gidMappings": one})
    for folder, names, files in os.walk(box.rootfs):
        for name in (".", *names, *files):
            os.chown(f"{folder}/{name}", 100000, 100000, follow_symlinks=False)
    box.folder.chmod(0o755)
    box.start("exec sleep 100")
    before = mountinfo(box)
    os.chown(data / "file", 7, 7)
    add(box, entry("/t", "tmpfs", "tmpfs"), entry("/made/b", "", str(data), "bind"), entry("/p", "proc", "proc"))
    assert box.exec("stat", "-c", "%u", "/t", "/made") == "0\n0\n"
    add(box, entry("/i", "", str(data), "bind", "idmap"))
    assert box.exec("stat", "-c", "%u", "/i/file") == "7\n"
    assert box.exec("stat", "-c", "%u", "/made/b/file") == "65534\n"
    error = refuse(box, entry("/o", "overlay", "overlay", "lowerdir=/a:/b"))
    assert "/mounts/0/type: overlay cannot be added to a container with a user namespace" in error
    remove(box, "/i", "/p", "/made/b", "/t")
    assert mountinfo(box) == before


def test_created_and_paused_containers(box: Box, data: Path) -> None:  # noqa: F811
    box.create("cat /d/file > /tmp/out; exec sleep 100")
    add(box, entry("/d", "", str(data), "bind"))
    box.ok("start", box.id)
    assert box.output() == "from the host\n"
    box.ok("pause", box.id)
    add(box, entry("/e", "", str(data), "bind"))
    remove(box, "/d")
    box.ok("resume", box.id)
    assert box.exec("ls", "/d", "/e").split() == ["/d:", "/e:", "file", "inner"]
    box.ok("kill", box.id, "KILL")
    until(lambda: box.status() == "stopped")
    assert "container not running" in refuse(box, entry("/f", "tmpfs"))
    # delete, in whichever of its ways, knows the file
    box.ok("delete", box.id)
    box.gone()


# -- what is refused, and that nothing is left of it


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ("{", "line 1"),
        ("7", "/mounts: must be an array"),
        ("{}", "/mounts: must be an array"),
        ('[{"type": "tmpfs"}]', "/mounts/0/destination"),
        ('["x"]', "/mounts/0"),
        ('[{"destination": 1}]', "/mounts/0/destination"),
        ('[{"destination": "/a"}]', "/mounts/0"),
        ('[{"destination": "/", "type": "tmpfs"}]', "/mounts/0/destination: the container's root is in use"),
        ('[{"destination": "/a", "options": ["bind"]}]', "/mounts/0/source"),
        ('[{"destination": "/tmp", "options": ["remount", "ro"]}]', "/mounts/0/options: it changes a mount"),
        ('[{"destination": "/tmp", "type": "tmpfs", "options": ["tmpcopyup"]}]', "/mounts/0/options: tmpcopyup"),
        ('[{"destination": "/a", "source": "/nowhere/at/all", "options": ["bind"]}]', "/mounts/0: open_tree"),
        ('[{"destination": "/a", "type": "no-such-fs"}]', "/mounts/0/type: fsopen"),
        ('[{"destination": "/a\\u0000b", "type": "tmpfs"}]', "/mounts/0/destination"),
        ('[{"destination": "/a", "type": "tmpfs", "options": ["size=-"]}]', "/mounts/0"),
        ('[{"destination": "/bin/busybox/x", "type": "tmpfs"}]', "/mounts/0"),
        ("[" * 100000, ""),
    ],
)
def test_what_cannot_be_added(running: Box, content: str, phrase: str) -> None:
    before = mountinfo(running)
    assert phrase in running.fails("mounts", "add", running.id, "-", input=content)
    assert mountinfo(running) == before
    assert listed(running) == []


def test_all_or_none(running: Box, data: Path) -> None:
    """The third fails: the first two are taken back, also when the container keeps them busy."""
    running.exec("mkdir", "/kept")
    before = mountinfo(running)
    add(running, entry("/earlier", "tmpfs", "tmpfs"))
    with_earlier = mountinfo(running)
    error = refuse(
        running,
        entry("/one", "", str(data), "bind"),
        entry("/one/inner", "tmpfs", "tmpfs"),
        entry("/bin/busybox/x", "tmpfs", "tmpfs"),
    )
    assert "/mounts/2: " in error and "not a directory" in error
    assert mountinfo(running) == with_earlier
    assert listed(running) == ["/earlier"]
    remove(running, "/earlier")
    assert mountinfo(running) == before


def test_a_bundle_that_is_gone(running: Box) -> None:
    running.bundle.rename(running.folder / "elsewhere")
    assert f'chdir("{running.bundle}"): no such file or directory; ' in refuse(running, entry("/tmp/x", "tmpfs"))
    assert listed(running) == []


def test_usage(running: Box) -> None:
    assert "requires a minimum" in running.fails("mounts", "add")
    assert "exactly 2" in running.fails("mounts", "add", running.id)
    assert '"add", "remove"' in running.fails("mounts", "frob", running.id, "-")
    assert "container does not exist" in running.fails("mounts", "add", "nothing", "-", input="[]")
    assert "no such file" in running.fails("mounts", "add", running.id, "/nowhere")


def test_without_a_mount_namespace(box: Box) -> None:  # noqa: F811
    box.without("mount")
    box.config["mounts"] = []
    box.linux.update({"maskedPaths": [], "readonlyPaths": []})
    box.start("exec sleep 100")
    assert "mounted on the host" in refuse(box, entry("/tmp", "tmpfs"))


# -- hostile containers


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    path.mkdir()
    return path


def test_links_lead_nowhere_but_into_the_root(running: Box, canary: Path, data: Path) -> None:
    outside = Path("/proc/self/mountinfo").read_text()
    for number, target in enumerate((str(canary), "../../../../../.." + str(canary), "/proc/1/root", "/proc/self/cwd")):
        link = running.rootfs / f"link{number}"
        link.symlink_to(target)
        done = running(
            "mounts", "add", running.id, "-", input=json.dumps([entry(f"/link{number}/x", "", str(data), "bind")])
        )
        assert done.returncode == 0 or "/mounts/0" in done.stderr
    assert list(canary.iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text() == outside
    # procfs only on real directories (CVE-2019-19921)
    (running.rootfs / "proclink").symlink_to("/tmp")
    assert "/mounts/0" in refuse(running, entry("/proclink", "proc", "proc"))


def test_a_place_that_is_no_text(running: Box, data: Path) -> None:
    """The image's link leads to a name that is no UTF-8, which mountinfo gives back."""
    before = mountinfo(running)
    odd = os.fsencode(running.rootfs) + b"/odd\xff"
    os.mkdir(odd)
    os.symlink(b"odd\xff", os.fsencode(running.rootfs) + b"/link")
    add(running, entry("/link", "", str(data), "bind"))
    assert os.listdir(f"/proc/{running.pid()}/root/link".encode()) != []
    assert listed(running) == ["/link"]
    remove(running, "/link")
    assert mountinfo(running) == before


def test_a_mask_is_not_removed_in_its_place(running: Box, data: Path) -> None:
    """The container moves the place, and puts a link to a masked file where it was: that mask stays."""
    before = running.exec("cat", "/proc/self/mountinfo").count("/proc/keys ")
    assert before == 1
    add(running, entry("/mnt/data", "", str(data / "file"), "bind"))
    running.exec("sh", "-c", "busybox mv /mnt /elsewhere && mkdir /mnt && busybox ln -s /proc/keys /mnt/data")
    remove(running, "/mnt/data")
    assert running.exec("cat", "/proc/self/mountinfo").count("/proc/keys ") == 1
    # the one that was meant, where it was moved to
    assert not [line for line in mountinfo(running) if "/elsewhere" in line]
    assert (running.rootfs / "elsewhere/data").read_text() == ""


def test_what_the_container_mounted_on_it_stays(box: Box, data: Path) -> None:  # noqa: F811
    box.capabilities("CAP_SYS_ADMIN")
    box.start("exec sleep 100")
    add(box, entry("/d", "", str(data), "bind"))
    box.exec("mount", "-t", "tmpfs", "tmpfs", "/d")
    error = refuse(box, entry("/d"), command="remove")
    assert "/mounts/0/destination: expect" in error and "covered or moved" in error
    assert listed(box) == ["/d"]
    box.exec("umount", "/d")
    remove(box, "/d")
    # and what the container has unmounted itself is forgotten
    add(box, entry("/d", "", str(data), "bind"))
    box.exec("umount", "/d")
    remove(box, "/d")
    assert listed(box) == []


def test_a_neighbour_that_exchanges_the_place(running: Box, canary: Path, data: Path) -> None:
    """A racer swaps a directory and a link to the host's canary while mounts come and go."""
    script = (
        "while :; do busybox mv -T /swap /a 2>/dev/null; busybox ln -sfn " + str(canary) + " /swap;"
        " busybox rm -f /swap; busybox mv -T /a /swap; done"
    )
    running.exec("mkdir", "/swap")
    racer = subprocess.Popen(
        running.command("exec", running.id, "sh", "-c", script),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    running.others.append(racer)
    outside = Path("/proc/self/mountinfo").read_text()
    for _ in range(25):
        one = json.dumps([entry("/swap/x", "", str(data), "bind")])
        done = running("mounts", "add", running.id, "-", input=one)
        assert done.returncode == 0 or "/mounts/0" in done.stderr, done
        done = running("mounts", "remove", running.id, "-", input=one)
        assert done.returncode == 0 or "/mounts/0" in done.stderr, done
    assert list(canary.iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text() == outside


def test_two_at_once(running: Box, data: Path) -> None:
    """Everyone's mounts are there and are remembered."""
    threads = [
        threading.Thread(target=add, args=(running, entry(f"/p{n}", "", str(data), "bind"))) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(listed(running)) == [f"/p{n}" for n in range(6)]
    remove(running, *[f"/p{n}" for n in range(6)])
    assert listed(running) == []


def test_fewest_namespaces_are_entered() -> None:
    from pyoci.spec.types import Mount

    every = ["mount", "pid", "network", "ipc", "uts", "user", "cgroup"]
    bind, proc = Mount("/a", source="/b", options=("bind",)), Mount("/p", type="proc")
    assert mounting.joined([bind], every) == ["mount", "user"]
    assert mounting.joined([bind, proc], every) == ["mount", "pid", "user"]


def test_a_damaged_memory_is_said(running: Box) -> None:
    (running.states / running.id / doing.FILE).write_text("[1]")
    assert "mounts.json is damaged" in running.fails("mounts", "list", running.id)


def test_more_than_a_page_of_them(running: Box, data: Path) -> None:
    before = mountinfo(running)
    names = [f"/many/m{n}" for n in range(100)]
    add(running, *[entry(name, "", str(data), "bind") for name in names])
    assert listed(running) == names
    assert running.exec("cat", "/many/m99/file") == "from the host\n"
    remove(running, *names)
    assert mountinfo(running) == before
    most = [entry(f"/many/{n}", "tmpfs") for n in range(doing.MOST - 1)]
    assert f"/mounts/{doing.MOST - 1}" in refuse(running, *most, entry("/bin/busybox/x", "tmpfs"))
    assert mountinfo(running) == before and listed(running) == []
    too_many = [entry(f"/many/{n}", "tmpfs") for n in range(doing.MOST + 1)]
    assert f"{doing.MOST} at once" in refuse(running, *too_many)


def test_killed_at_any_moment(running: Box, data: Path) -> None:
    """Whatever is mounted is remembered, and can be removed."""
    before = mountinfo(running)
    several = json.dumps([entry(f"/k{n}", "", str(data), "bind") for n in range(20)])
    file = running.folder / "several.json"
    file.write_text(several)
    for delay in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06):
        child = subprocess.Popen(running.command("mounts", "add", running.id, str(file)), stderr=subprocess.PIPE)
        try:
            child.wait(delay)
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate(timeout=LIMIT)
        # init ends at its next barrier
        known = listed(running)
        assert len(mountinfo(running)) - len(before) <= len(known)
        if known:
            remove(running, *reversed(known))
        assert mountinfo(running) == before


def test_a_container_that_is_ending(running: Box) -> None:
    """Its first process has begun to end, and waits for the others' end, as those do for who traces them: it still is
    there, and has no namespaces any more.  What exec and mounts say is what they say a moment later."""
    add(running, entry("/tmp/x", "tmpfs"))
    pid = running.pid()
    words = running.command("exec", "--detach", "--pid-file", str(running.folder / "pid"), running.id, "sleep", "100")
    null = subprocess.DEVNULL
    subprocess.run(words, check=True, timeout=LIMIT, stdin=null, stdout=null, stderr=null)
    traced = int((running.folder / "pid").read_text())
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(ctypes.c_long(0x4206), ctypes.c_long(traced), None, None) == 0  # PTRACE_SEIZE
    try:
        os.kill(pid, signal.SIGKILL)
        until(lambda: ends(pid), "the first process begins to end")
        assert running.status() == "running"
        assert running.fails("exec", running.id, "true") == "pyoci: exec failed: cannot exec in a stopped container\n"
        stopped = f"pyoci: container '{running.id}': container not running\n"
        assert refuse(running, entry("/tmp/y", "tmpfs")) == stopped
        assert refuse(running, entry("/tmp/x"), command="remove") == stopped
    finally:
        os.waitpid(traced, 0x40000000)  # __WALL
    until(lambda: running.status() == "stopped")
