"""Mounts, devices and paths: options and propagation from the container's own mountinfo, effects by trying."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from containers import CGROUPS, COMMAND, LIMIT, Box, box, needed, until  # noqa: F401 - box is a fixture

pytestmark = needed


class Line:
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    def __init__(self, line: str) -> None:
        words = line.split()
        self.point, self.options = words[4], set(words[5].split(","))
        dash = words.index("-")
        self.propagation = [word.partition(":")[0] for word in words[6:dash]]
        self.type, self.source = words[dash + 1], words[dash + 2]
        self.superblock = set(words[dash + 3].split(","))


def mountinfo(box: Box) -> dict[str, Line]:
    """The last mount at each place in the container."""
    return {(entry := Line(line)).point: entry for line in box.run("cat /proc/self/mountinfo").splitlines()}


def test_tmpfs(box: Box) -> None:
    box.mount("/t", "tmpfs", "mine", "nosuid", "noexec", "size=64k", "mode=1777", "uid=3", "gid=4", "nodev", "noatime")
    found = mountinfo(box)["/t"]
    assert (found.type, found.source) == ("tmpfs", "mine")
    assert {"rw", "nosuid", "noexec", "nodev", "noatime"} <= found.options
    assert {"size=64k", "uid=3", "gid=4"} <= found.superblock
    assert box.run("stat -c '%a %u %g' /t").split() == ["1777", "3", "4"]
    assert box.run("head -c 100000 /dev/zero > /t/x 2>/dev/null; wc -c < /t/x").strip() == "65536"


def test_read_only_tmpfs_can_hold_later_mounts(box: Box) -> None:
    box.mount("/t", "tmpfs", "tmpfs", "ro")
    box.mount("/t/inner", "tmpfs", "tmpfs")
    assert box.run("touch /t/x 2>/dev/null || echo refused; touch /t/inner/x && echo done").split() == [
        "refused", "done",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("ro",), {"ro"}), (("nosuid",), {"nosuid"}), (("nodev",), {"nodev"}), (("noexec",), {"noexec"}),
        (("noatime",), {"noatime"}), (("nodiratime",), {"nodiratime"}), (("nosymfollow",), {"nosymfollow"}),
        (("relatime",), {"relatime"}), (("ro", "nosuid", "noexec"), {"ro", "nosuid", "noexec"}),
        (("ro", "rw"), {"rw"}), (("noexec", "exec"), {"rw"}),
    ],
)  # fmt: skip
def test_bind_options(box: Box, options: tuple[str, ...], expected: set[str]) -> None:
    (box.folder / "source").mkdir()
    box.mount("/b", "bind", str(box.folder / "source"), "bind", *options)
    found = mountinfo(box)["/b"]
    assert expected <= found.options
    for word in ("noexec", "nosuid", "ro", "nodev"):
        if word not in expected:
            assert word not in found.options


@pytest.fixture
def tree(box: Box) -> Path:  # noqa: F811
    """A directory on which, in the mount namespace of `box.unshared`, a tmpfs is mounted at `inner`."""
    path = box.folder / "tree"
    (path / "inner").mkdir(parents=True)
    (path / "file").write_text("outer")
    return path


TRY = "for p in /b/x /b/inner/x; do touch $p 2>/dev/null && echo rw || echo ro; done; ls /b/inner"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("bind",), "rw rw x"), (("rbind",), "rw rw mark x"), (("rbind", "ro"), "ro rw mark x"),
        (("rbind", "rro"), "ro ro mark"), (("bind", "rro"), "ro ro"), (("rbind", "rro", "rrw"), "rw rw mark x"),
    ],
)  # fmt: skip
def test_recursive_options(box: Box, tree: Path, options: tuple[str, ...], expected: str) -> None:
    box.mount("/b", "bind", str(tree), *options)
    before = f"mount -t tmpfs tmpfs {tree}/inner; touch {tree}/inner/mark"
    assert " ".join(box.unshared(before, TRY).split()) == expected


@pytest.mark.parametrize(
    ("option", "expected"),
    [("private", []), ("slave", ["master"]), ("shared", ["shared"]), ("unbindable", ["unbindable"])],
)
@pytest.mark.parametrize("recursive", [False, True])
def test_propagation(box: Box, tree: Path, option: str, expected: list[str], recursive: bool) -> None:
    box.mount("/b", "bind", str(tree), "rbind", ("r" if recursive else "") + option)
    before = f"mount --bind {tree} {tree}; mount --make-shared {tree}; mount -t tmpfs tmpfs {tree}/inner"
    text = box.unshared(before, "cat /proc/self/mountinfo")
    found = {(entry := Line(line)).point: entry for line in text.splitlines()}
    assert [word for word in found["/b"].propagation if word in ("unbindable", *expected)] == expected
    if recursive:
        assert [word for word in found["/b/inner"].propagation if word in ("unbindable", *expected)] == expected
    if option == "private":
        assert found["/b"].propagation == []


@pytest.mark.parametrize(
    ("value", "expected"), [("", []), ("private", []), ("shared", ["shared"]), ("unbindable", ["unbindable"])]
)
def test_propagation_of_the_root(box: Box, value: str, expected: list[str]) -> None:
    if value:
        box.linux["rootfsPropagation"] = value
    assert mountinfo(box)["/"].propagation == expected


@pytest.mark.parametrize(("value", "seen"), [("slave", "yes"), ("rslave", "yes"), ("private", "no")])
def test_host_mounts_reach_a_slave_root(box: Box, value: str, seen: str) -> None:
    """What is mounted in a shared root of the host later appears in the container, or does not."""
    box.linux["rootfsPropagation"] = value
    root = box.rootfs
    (root / "later").mkdir()
    box.process["args"] = ["sh", "-c", "exec sleep 100"]
    box.write()
    script = (
        f"mount --bind {root} {root}; mount --make-shared {root}; "
        '"$@" create --bundle "$B" "$I" >/dev/null </dev/null; "$@" start "$I"; '
        f"mount -t tmpfs tmpfs {root}/later; touch {root}/later/mark; "
        '"$@" exec "$I" sh -c "test -e /later/mark && echo yes || echo no"; "$@" delete --force "$I"'
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *COMMAND, "--root", str(box.states)],
        env={**os.environ, "B": str(box.bundle), "I": box.id}, capture_output=True, text=True, timeout=LIMIT,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{seen}\n", "")


def test_container_mounts_do_not_reach_the_host(box: Box, tree: Path) -> None:
    box.capabilities("CAP_SYS_ADMIN")
    box.mount("/b", "bind", str(tree), "rbind")
    watch = f"while ! test -e {tree}/done; do sleep 0.01; done; cat /proc/self/mountinfo > {tree}/seen"
    before = f"mount --bind {tree} {tree}; mount --make-shared {tree}; {{ ({watch}) > /dev/null 2>&1 & }}"
    script = "mount -t tmpfs mine /b/inner; grep -c mine /proc/self/mountinfo; touch /b/done; sleep 0.1"
    assert box.unshared(before, script) == "1\n"
    until(lambda: (tree / "seen").exists() and (tree / "seen").stat().st_size)
    assert " mine " not in (tree / "seen").read_text()


def test_missing_targets_are_made(box: Box, tree: Path) -> None:
    box.mount("/made/deep/dir", "bind", str(tree), "bind")
    box.mount("/made/deep/file", "bind", str(tree / "file"), "bind", "ro")
    assert box.run("cat /made/deep/dir/file /made/deep/file") == "outerouter"
    assert (box.rootfs / "made/deep/dir").is_dir()
    assert (box.rootfs / "made/deep/file").is_file()


def test_relative_source_is_the_bundles(box: Box) -> None:
    (box.bundle / "data").write_text("of the bundle\n")
    box.mount("/data", "bind", "data", "bind")
    assert box.run("cat /data") == "of the bundle\n"


def test_target_behind_a_link_stays_inside(box: Box, tree: Path) -> None:
    outside = box.folder / "outside"
    outside.mkdir()
    (box.rootfs / "absolute").symlink_to("/etc")
    (box.rootfs / "upwards").symlink_to("../../../../../../etc")
    box.mount("/absolute/pyoci-a", "tmpfs", "tmpfs")
    box.mount("/upwards/pyoci-b", "tmpfs", "tmpfs")
    assert {"/etc/pyoci-a", "/etc/pyoci-b"} <= set(mountinfo(box))
    assert not [name for name in os.listdir("/etc") if name.startswith("pyoci-")]
    (box.rootfs / "nowhere").symlink_to(outside)
    box.mount("/nowhere/a", "tmpfs", "tmpfs")
    assert f"{outside}/a" in mountinfo(box)
    assert os.listdir(outside) == []


def test_proc_on_a_link_is_refused(box: Box) -> None:
    (box.rootfs / "proc").rmdir()
    (box.rootfs / "elsewhere").mkdir()
    (box.rootfs / "proc").symlink_to("elsewhere")
    assert "/mounts/0" in box.refused()


def test_default_file_systems(box: Box) -> None:
    """config-linux.md#default-filesystems: what `pyoci spec` writes has them, and they work."""
    found = mountinfo(box)
    assert [found[point].type for point in ("/proc", "/sys", "/dev/pts", "/dev/shm")] == [
        "proc", "sysfs", "devpts", "tmpfs",
    ]  # fmt: skip
    seen = box.run("cat /proc/1/comm; ls -d /sys/class/net/lo; stat -c %a /dev/pts/ptmx; touch /dev/shm/x && echo made")
    assert seen.split()[1:] == ["/sys/class/net/lo", "666", "made"]


def test_mountinfo_has_the_order_of_the_list(box: Box, tree: Path) -> None:
    """config.md#mounts: in the listed order.  Since Linux 6.8 a process is shown the order in which they were made."""
    (box.folder / "file").touch()
    box.mount("/1", "tmpfs", "tmpfs")
    box.mount("/2", "bind", str(tree), "rbind", "rprivate")
    box.mount("/3", "mqueue", "mqueue")
    box.mount("/4", "bind", str(box.folder / "file"), "bind", "ro")
    box.mount("/5", "tmpfs", "tmpfs", "ro")
    box.mount("/6", "bind", str(tree), "bind", "unbindable")
    text = box.unshared(f"mount -t tmpfs tmpfs {tree}/inner", "cat /proc/self/mountinfo")
    points = [Line(line).point for line in text.splitlines()]
    listed = [entry["destination"] for entry in box.config["mounts"] if entry["destination"] != "/sys/fs/cgroup"]
    assert [point for point in points if point in listed] == listed
    assert points.index("/3") > points.index("/2/inner") > points.index("/2")


@pytest.mark.parametrize("way", ["root", "link", "magic", "relative", "hooks", "shared"])
def test_sources_are_the_hosts_however_they_are_named(box: Box, tree: Path, way: str) -> None:
    """With the root of the container over "/", or at /root/path, and what leads out of a mount namespace's mounts."""
    (box.folder / "link").symlink_to("/")
    folder, marked = str(tree), "/b"
    if way in ("root", "link"):
        folder, marked = ("/", f"/b{tree}") if way == "root" else (str(box.folder / "link"), f"/b{tree}")
    elif way == "magic":
        folder, marked = f"/proc/{os.getpid()}/root{tree}", "/b"
    elif way == "relative":
        folder = os.path.relpath(tree, box.bundle)
    elif way == "hooks":
        box.config["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}
    else:
        box.linux["rootfsPropagation"] = "rshared"
    box.mount("/t", "tmpfs", "tmpfs")
    box.mount("/b", "bind", folder, "rbind")
    # nothing of the container's own is in it
    assert box.run(f"cat {marked}/file; grep -c ' /b[^ ]*/t ' /proc/self/mountinfo || true") == "outer0\n"


def test_remount(box: Box, tree: Path) -> None:
    box.mount("/b", "bind", str(tree), "bind")
    box.mount("/b", "", "", "remount", "bind", "ro")
    box.mount("/t", "tmpfs", "tmpfs", "size=64k")
    box.mount("/t", "tmpfs", "tmpfs", "remount", "size=128k")
    found = mountinfo(box)
    assert "ro" in found["/b"].options
    assert "size=128k" in found["/t"].superblock


def test_overlay(box: Box) -> None:
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="utf-8"):
        pytest.skip("this kernel has no overlay file system (modprobe overlay)")
    lower, upper, work = (box.folder / name for name in ("lower", "upper", "work"))
    for path in (lower, upper, work):
        path.mkdir()
    (lower / "old").write_text("old\n")
    box.mount("/o", "overlay", "overlay", f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
    assert box.run("cat /o/old; echo new > /o/new") == "old\n"
    assert (upper / "new").read_text() == "new\n"


def test_overlay_of_long_names(box: Box) -> None:
    """More than the 256 bytes of a value that fsconfig(2) takes, with every kind of flag; what is covered stays."""
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="utf-8"):
        pytest.skip("this kernel has no overlay file system (modprobe overlay)")
    lowers = [box.folder / f"{name * 120}" for name in "ab"]
    upper, work = box.folder / ("u" * 200), box.folder / "work"
    for path in (*lowers, upper, work):
        path.mkdir()
        (path / path.name[0]).write_text(f"{path.name[0]}\n")
    (work / "w").unlink()
    lower = ":".join(map(str, lowers))
    writable = ("lowerdir=" + lower, f"upperdir={upper}", f"workdir={work}", "nosuid", "noatime", "rslave", "dirsync")
    box.mount("/made/o", "overlay", "overlay", *writable)
    box.mount("/r", "overlay", "named", f"lowerdir={lower}:{upper}", "ro", "nodev", "noexec", "nosymfollow")
    box.process["cwd"] = "/made/o"
    assert box.run("cat a b u; echo new > new; pwd; ls /r; cat /r/new") == (
        "a\nb\nu\n/made/o\na\nb\nnew\nu\nnew\n"
    )
    assert (upper / "new").read_text() == "new\n"
    found = mountinfo(box)
    assert {"nosuid", "noatime"} <= set(found["/made/o"].options) and "ro" not in found["/made/o"].options
    assert {"ro", "nodev", "noexec", "nosymfollow"} <= set(found["/r"].options)
    assert "nosuid" not in found["/r"].options
    assert list((box.rootfs / "made/o").iterdir()) == []
    # a place that leads out of the root stays in it
    (box.rootfs / "link").symlink_to("/etc")
    box.mount("/link/o", "overlay", "overlay", f"lowerdir={lower}")
    assert box.run("cat /etc/o/b") == "b\n"
    assert not Path("/etc/o").exists()
    box.mount("/wrong", "overlay", "overlay", f"lowerdir={lower}:/no/such")
    box.write()
    error = box.fails("run", "--bundle", str(box.bundle), box.id)
    pointer = f"/mounts/{len(box.config['mounts']) - 1}/options"
    assert f"{pointer}: mount(" in error and "no such file or directory" in error
    box.gone()


def test_cgroup_mount(box: Box) -> None:
    if not (CGROUPS / "pids/cgroup.procs").exists():
        pytest.skip("no v1 controller 'pids'")
    shown = box.run("ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/cgroup.procs")
    assert {"pids", "memory", "1"} <= set(shown.split())
    for place in ("", "pids/"):
        assert "Read-only file system" in box.run(f"mkdir /sys/fs/cgroup/{place}x 2>&1 || exit 0")


@pytest.mark.parametrize(("source", "place"), [("file", "/tmp"), ("directory", "/bin/busybox")])
def test_a_file_and_a_directory_do_not_go_onto_each_other(box: Box, source: str, place: str) -> None:
    """The kernel says "invalid argument"; engines tell their users more if they find "not a directory"."""
    (box.folder / "file").write_text("x")
    (box.folder / "directory").mkdir()
    box.mount(place, "bind", str(box.folder / source), "bind")
    error = box.refused()
    assert f"/mounts/{len(box.config['mounts']) - 1}: move_mount(" in error and "not a directory" in error, error


def test_writable_cgroup_mount_in_a_cgroup_namespace(box: Box) -> None:
    if not (CGROUPS / "pids/cgroup.procs").exists():
        pytest.skip("no v1 controller 'pids'")
    box.namespace("cgroup")
    box.config["mounts"][-1]["options"] = ["nosuid", "noexec", "nodev"]
    box.mount("/seen", "bind", str(CGROUPS / "pids"), "bind")
    new = "/sys/fs/cgroup/pids/sub"
    shown = box.run(f"cat /proc/self/cgroup; mkdir {new} && ls -d /seen/*/sub; rmdir {new}")
    assert {line.rpartition(":")[2] for line in shown.splitlines() if ":" in line} == {"/"}
    assert f"/seen/{box.id}/sub" in shown


def test_default_devices(box: Box) -> None:
    box.linux.pop("resources")
    shown = box.run("stat -c '%n %F %t:%T %a %u:%g' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty")
    expected = {"null": "1:3", "zero": "1:5", "full": "1:7", "random": "1:8", "urandom": "1:9", "tty": "5:0"}
    lines = [f"/dev/{name} character special file {number} 666 0:0" for name, number in expected.items()]
    assert shown.splitlines() == lines
    links = box.run("for name in fd stdin stdout stderr ptmx; do readlink /dev/$name; done")
    assert links.split() == ["/proc/self/fd", *(f"/proc/self/fd/{n}" for n in range(3)), "pts/ptmx"]


def test_devices(box: Box) -> None:
    box.linux["devices"] = [
        {"path": "/dev/mychar", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/dev/sub/block", "type": "b", "major": 7, "minor": 99, "fileMode": 0o600},
        {"path": "/pipe", "type": "p", "fileMode": 0o622, "uid": 5, "gid": 6},
        {"path": "/dev/fuse", "type": "u", "major": 10, "minor": 229},
    ]
    shown = box.run("stat -c '%F|%t:%T|%a|%u:%g' /dev/mychar /dev/sub/block /pipe /dev/fuse; stat -c %a /dev/sub")
    assert shown.splitlines() == [
        "character special file|1:5|640|3:4", "block special file|7:63|600|0:0", "fifo|0:0|622|5:6",
        "character special file|a:e5|666|0:0", "755",
    ]  # fmt: skip
    assert stat.S_ISFIFO((box.rootfs / "pipe").stat().st_mode)


def test_another_file_where_a_device_should_be(box: Box) -> None:
    (box.rootfs / "dev2").mkdir()
    (box.rootfs / "dev2/x").write_text("")
    box.linux["devices"] = [{"path": "/dev2/x", "type": "c", "major": 1, "minor": 3}]
    assert "/linux/devices/0" in box.refused()


def test_masked_and_read_only_paths(box: Box, tree: Path) -> None:
    (box.rootfs / "etc/secret").write_text("secret")
    (box.rootfs / "etc/folder").mkdir()
    (box.rootfs / "etc/folder/secret").write_text("secret")
    (box.rootfs / "etc/fixed").mkdir()
    box.linux["maskedPaths"] = ["/etc/secret", "/etc/folder", "/no/such/path", "/proc/version"]
    box.linux["readonlyPaths"] = ["/etc/fixed", "/proc/sys", "/no/such/path"]
    shown = box.run(
        "wc -c < /etc/secret; ls -a /etc/folder | wc -l; touch /etc/folder/x 2>&1; touch /etc/fixed/x 2>&1; "
        "(echo x > /proc/sys/kernel/hostname) 2>&1; wc -c < /proc/version; touch /etc/x && echo fine"
    )
    assert shown.splitlines()[:2] == ["0", "2"]
    assert shown.count("Read-only file system") == 3
    assert shown.splitlines()[-2:] == ["0", "fine"]


def test_read_only_root(box: Box) -> None:
    box.config["root"]["readonly"] = True
    shown = box.run("touch /x 2>&1; touch /dev/shm/x && echo fine")
    assert "Read-only file system" in shown and "fine" in shown
    assert not (box.rootfs / "x").exists()


def test_root_that_is_not_there(box: Box) -> None:
    box.config["root"]["path"] = "nothing"
    assert "/root/path" in box.refused()


def test_no_pivot(box: Box) -> None:
    box.process["args"] = ["ls", "/"]
    box.write()
    assert "busybox" not in box.ok("run", "--no-pivot", "--bundle", str(box.bundle), box.id)


@pytest.mark.parametrize("way", [[], ["--no-pivot"]])
@pytest.mark.parametrize("kind", ["proc", "sysfs"])
def test_no_other_view_of_the_kernel(box: Box, kind: str, way: list[str]) -> None:
    """Who may make a user namespace still mounts no procfs or sysfs that is not masked."""
    box.mount("/sys", "sysfs", "sysfs", "ro")
    box.capabilities("CAP_SETFCAP")
    script = f"unshare -Urmpfn sh -c 'mount -t tmpfs none /mnt && echo tried && mount -t {kind} none /mnt'"
    (box.rootfs / "mnt").mkdir(exist_ok=True)
    box.process["args"] = ["sh", "-c", script]
    box.write()
    done = box("run", *way, "--bundle", str(box.bundle), box.id)
    assert (done.returncode, done.stdout) == (1, "tried\n") and "mount: permission denied" in done.stderr, done


def test_a_tmpfs_has_the_mode_of_what_it_covers(box: Box) -> None:
    """Without a mode of its own; where the image has nothing there, the kernel's."""
    (box.rootfs / "opt/closed").mkdir(parents=True)
    (box.rootfs / "opt/closed").chmod(0o710)
    for place in ("/opt/closed", "/opt/new", "/opt/closed/in"):
        box.mount(place, "tmpfs", "tmpfs", "nosuid")
    box.mount("/opt/own", "tmpfs", "tmpfs", "mode=700")
    places = "/opt/closed /opt/new /opt/closed/in /opt/own"
    assert box.run(f"stat -c %a {places}").split() == ["710", "1777", "1777", "700"]


@pytest.mark.parametrize(
    ("link", "target", "destination", "found"),
    [
        ("etc/hosts", "/run/some/where/hosts", "/etc/hosts", "/run/some/where/hosts"),
        ("etc/hosts", "../gone/hosts", "/etc/hosts", "/gone/hosts"),
        ("gone", "/not/there", "/gone/deep/hosts", "/not/there/deep/hosts"),
        ("gone", "../../../not/../there", "/gone/hosts", "/there/hosts"),
        ("etc/first", "second", "/etc/first", "/etc/third"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "dir", "tmpfs"])
def test_links_to_what_is_not_there(
    box: Box, link: str, target: str, destination: str, found: str, kind: str
) -> None:
    """An image's links mean the same before their targets are made, as for /etc/resolv.conf of one with systemd."""
    (box.rootfs / link).symlink_to(target)
    if target == "second":
        (box.rootfs / "etc/second").symlink_to("third")
    source = box.folder / "source"
    if kind == "file":
        source.write_text("x")
    elif kind == "dir":
        source.mkdir()
    if kind == "tmpfs":
        box.mount(destination, "tmpfs", "tmpfs")
    else:
        box.mount(destination, "bind", str(source), "bind")
    assert box.run(f"cut -d' ' -f5 /proc/self/mountinfo | grep -x {found}") == f"{found}\n"
    assert not os.path.lexists(found)


def test_masks_once(box: Box) -> None:
    box.linux["maskedPaths"] = ["/opt", "/opt", "/etc/passwd", "/opt"]
    (box.rootfs / "opt").mkdir(exist_ok=True)
    assert box.run("cut -d' ' -f5 /proc/self/mountinfo | grep -c /opt") == "1\n"


def test_deep_names(box: Box) -> None:
    deep = "/".join(["d" * 60] * 20)
    box.mount(f"/{deep}", "tmpfs", "tmpfs")
    assert box.run(f"stat -f -c %T /{deep}") == "tmpfs\n"


def test_nothing_of_the_host_is_left_in_the_mounts(box: Box) -> None:
    expected = {"/", *(mount["destination"] for mount in box.config["mounts"])}
    points = {point for point in mountinfo(box) if not point.startswith(("/sys/fs/cgroup/", "/proc/", "/sys/"))}
    assert points <= expected
