"""Namespaces, ids, time and names, as seen from inside the container and from /proc of the host."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from containers import Box, box, needed, processes_of  # noqa: F401 - box is a fixture

pytestmark = needed
FILES = {
    "pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts", "user": "user", "cgroup": "cgroup",
    "time": "time",
}  # fmt: skip


def maps(box: Box, first: int = 100000) -> None:
    """A user namespace with 65536 ids from `first`, and a root file system that is its own."""
    box.namespace("user")
    for kind in ("uid", "gid"):
        box.linux[f"{kind}Mappings"] = [{"containerID": 0, "hostID": first, "size": 65536}]
    for folder in (box.folder.parent.parent, box.folder.parent, box.folder, box.bundle):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o711)
    for where, names, files in os.walk(box.rootfs):
        for name in (".", *names, *files):
            os.chown(f"{where}/{name}", first, first, follow_symlinks=False)


def namespace_of(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{FILES[kind]}")


@pytest.mark.parametrize("users", [False, True])
def test_all_are_new(box: Box, users: bool) -> None:
    for kind in FILES:
        if kind != "user":
            box.namespace(kind)
    if users:
        maps(box)
    pid = box.start()
    for kind in FILES:
        assert (namespace_of(pid, kind) == namespace_of("self", kind)) == (kind == "user" and not users), kind


def test_a_fifo_is_no_namespace_and_nobody_waits_for_its_writer(box: Box) -> None:
    fifo = box.folder / "fifo"
    os.mkfifo(fifo)
    box.namespace("ipc", str(fifo))
    error = box.refused()
    assert f"/path: setns(@ns_ipc, CLONE_NEWIPC): invalid argument; {fifo} must be a namespace of type ipc" in error


def test_none_but_mount(box: Box) -> None:
    box.linux["namespaces"] = [{"type": "mount"}]
    box.config.pop("hostname")
    box.config["mounts"] = [mount for mount in box.config["mounts"] if mount["destination"] not in ("/dev/mqueue",)]
    pid = box.start()
    for kind in FILES:
        assert (namespace_of(pid, kind) == namespace_of("self", kind)) == (kind != "mount"), kind


def test_joined_by_path(box: Box) -> None:
    for kind in ("cgroup", "time"):
        box.namespace(kind)
    first = box.start("exec sleep 100")
    second, box.id = box.id, box.new_id()
    for kind in ("pid", "network", "ipc", "uts", "cgroup", "time"):
        box.namespace(kind, f"/proc/{first}/ns/{FILES[kind]}")
    box.config.pop("hostname")
    pid = box.start("hostname > /tmp/out; exec sleep 100")
    for kind in FILES:
        assert (namespace_of(pid, kind) == namespace_of(first, kind)) == (kind != "mount"), kind
    assert box.output() == "pyoci\n"
    assert box.exec("sh", "-c", "echo $$") != "1\n"
    box.ok("delete", "--force", box.id)
    box.gone()
    assert processes_of(second) == [first]


@pytest.mark.parametrize("said", [False, True])
def test_user_namespace_by_path(box: Box, said: bool) -> None:
    """A second container among the ids of the first, as in a pod; what belongs to its namespaces is joined with it."""
    maps(box)
    first = box.start("exec sleep 100")
    box.id = box.new_id()
    for kind in ("user", "network", "ipc", "uts"):
        box.namespace(kind, f"/proc/{first}/ns/{FILES[kind]}")
    box.config.pop("hostname")
    for kind in ("uid", "gid"):
        if said:
            # as containerd and CRI-O do
            box.linux[f"{kind}Mappings"] = [
                {"containerID": 0, "hostID": 100000, "size": 65536},
            ]
        else:
            box.linux.pop(f"{kind}Mappings")
    box.process["user"] = {"uid": 7, "gid": 8}
    (box.rootfs / "tmp").chmod(0o777)
    pid = box.start("id > /tmp/mine; cat /proc/self/uid_map > /tmp/out; exec sleep 100")
    assert box.output().split() == ["0", "100000", "65536"]
    for kind in FILES:
        same = kind in ("user", "network", "ipc", "uts", "cgroup", "time")
        assert (namespace_of(pid, kind) == namespace_of(first, kind)) == same, kind
    assert (box.rootfs / "tmp/mine").stat().st_uid == 100007
    assert box.exec("id", "-u") == "7\n"
    assert box.exec("id", "-u", options=["--user", "0"]) == "0\n"


def test_namespaces_of_others_beside_a_user_namespace_by_path(box: Box) -> None:
    """They are joined with root's rights, which are good for all of them, although its own root has none there."""
    maps(box)
    first = box.start("exec sleep 100")
    box.id = box.new_id()
    holder = subprocess.Popen(["unshare", "--net", "--ipc", "--uts", "sh", "-c", "echo; exec cat"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        box.namespace("user", f"/proc/{first}/ns/user")
        for kind in ("network", "ipc", "uts"):
            box.namespace(kind, f"/proc/{holder.pid}/ns/{FILES[kind]}")
        for name in ("hostname",):
            box.config.pop(name)
        for kind in ("uid", "gid"):
            box.linux.pop(f"{kind}Mappings")
        # nobody but the owners of these namespaces may mount what shows them
        box.config["mounts"] = [mount for mount in box.config["mounts"] if mount["type"] not in ("sysfs", "mqueue")]
        pid = box.start("exec sleep 100")
        assert namespace_of(pid, "user") == namespace_of(first, "user")
        for kind in ("network", "ipc", "uts"):
            assert namespace_of(pid, kind) == namespace_of(holder.pid, kind) != namespace_of("self", kind), kind
        assert f"{namespace_of(holder.pid, 'network')}\n" == box.exec("readlink", "/proc/self/ns/net")
        holder.stdin.close()  # type: ignore[union-attr]


def test_user_namespace_by_path_with_other_mappings(box: Box) -> None:
    maps(box)
    first = box.start("exec sleep 100")
    box.id = box.new_id()
    box.namespace("user", f"/proc/{first}/ns/user")
    box.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65535}]
    error = box.refused()
    assert "/linux/gidMappings" in error and "has other mappings" in error and "0 100000 65536" in error
    box.namespace("user", "/proc/self/ns/user")
    assert "/linux/" in box.refused()


def test_mount_namespace_by_path(box: Box) -> None:
    first = box.start("exec sleep 100")
    box.id = box.new_id()
    box.namespace("mount", f"/proc/{first}/ns/mnt")
    box.config["root"]["path"] = "/"
    box.config["mounts"] = []
    for name in ("maskedPaths", "readonlyPaths"):
        box.linux.pop(name)
    pid = box.start("exec sleep 100")
    assert namespace_of(pid, "mount") == namespace_of(first, "mount")


def test_path_of_another_kind_is_refused(box: Box) -> None:
    box.namespace("network", "/proc/self/ns/ipc")
    assert "/linux/namespaces/" in box.refused()
    box.namespace("network", str(box.rootfs))
    assert "/linux/namespaces/" in box.refused()
    box.namespace("network", "/no/such/namespace")
    assert "/linux/namespaces/" in box.refused()


def test_ids_are_mapped(box: Box) -> None:
    maps(box)
    box.process["user"] = {"uid": 5, "gid": 6}
    (box.rootfs / "tmp").chmod(0o777)
    shown = box.run("id -u; id -g; cat /proc/self/uid_map; touch /tmp/mine; stat -c '%u %g' /tmp/mine /bin/busybox")
    assert shown.split() == ["5", "6", "0", "100000", "65536", "5", "6", "0", "0"]
    status = (box.rootfs / "tmp/mine").stat()
    assert (status.st_uid, status.st_gid) == (100005, 100006)


def test_nobodys_files_change_hands_for_a_mapping(box: Box) -> None:
    """config-linux.md#user-namespace-mappings: the owners of the root's files, and of what is bound, stay."""
    data = box.folder / "data"
    data.mkdir()
    for path in (data / "a", box.rootfs / "b"):
        path.write_text("")
        os.chown(path, 4242, 4343)
    box.mount("/data", "bind", str(data), "bind")
    maps(box)
    os.chown(box.rootfs / "b", 4242, 4343)
    assert box.run("stat -c '%u %g' /data/a /b").split() == ["65534"] * 4
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (data / "a", box.rootfs / "b")} == {(4242, 4343)}


def test_devices_are_there_in_a_user_namespace(box: Box) -> None:
    maps(box)
    assert box.run("echo x > /dev/null; head -c 3 /dev/zero | wc -c; stat -c %t:%T /dev/full").split() == ["3", "1:7"]


def test_exec_in_a_user_namespace(box: Box) -> None:
    maps(box)
    pid = box.start("exec sleep 100")
    assert box.exec("id", options=["--user", "7:8"]).startswith("uid=7 gid=8")
    assert namespace_of(pid, "user") != namespace_of("self", "user")


def test_clocks(box: Box) -> None:
    box.namespace("time")
    box.linux["timeOffsets"] = {"boottime": {"secs": 1000000}, "monotonic": {"secs": 500, "nanosecs": 5}}
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    uptime = float(box.run("cat /proc/uptime; cat /proc/self/timens_offsets").split()[0])
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    # which shows hundredths
    assert 1000000 + before - 0.02 < uptime < 1000000 + after + 0.02


def test_names(box: Box) -> None:
    box.config["hostname"] = "inside.example"
    box.config["domainname"] = "domain.example"
    before = os.uname().nodename
    shown = box.run("hostname; cat /proc/sys/kernel/domainname")
    assert shown.split() == ["inside.example", "domain.example"]
    assert os.uname().nodename == before


def test_loopback_is_up(box: Box) -> None:
    assert "127.0.0.1" in box.run("ip addr show lo")
    assert [line for line in box.run("cat /proc/net/dev").splitlines() if ":" in line and "lo:" not in line] == []


def test_init_is_one(box: Box) -> None:
    assert box.run("echo $$; ls -d /proc/[0-9]* | wc -l").split()[0] == "1"


def test_sysctl(box: Box) -> None:
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4097", "net.ipv4.conf.lo.forwarding": "0"}
    shown = box.run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/net/ipv4/conf/lo/forwarding")
    assert shown.split() == ["1", "4097", "0"]
    assert Path("/proc/sys/kernel/msgmax").read_text() != "4097\n"
    box.linux["sysctl"] = {"vm.swappiness": "1"}
    assert "/linux/sysctl" in box.refused()


def test_mounts_without_a_mount_namespace_need_rights_over_the_hosts(box: Box) -> None:
    box.without("mount")
    box.namespace("user")
    ids = [{"containerID": 0, "hostID": 0, "size": 65536}]
    box.linux.update({"uidMappings": ids, "gidMappings": ids})
    assert "/linux/namespaces: mounting needs a mount namespace" in box.refused()


def test_the_runtimes_own_mount_namespace_is_no_containers(box: Box) -> None:
    """pivot_root in it would take the root from every process of the host."""
    box.without("mount")
    box.namespace("mount", "/proc/self/ns/mnt")
    box.write()
    assert "is the runtime's own mount namespace" in box.refused()


def test_a_root_that_shows_the_hosts_dev_leaves_its_ptmx(box: Box) -> None:
    before = os.lstat("/dev/ptmx")
    box.config["root"] = {"path": "/", "readonly": False}
    box.config["mounts"] = [mount for mount in box.config["mounts"] if not mount["destination"].startswith("/dev")]
    box.process["args"] = ["/bin/true"]
    box.write()
    box("run", "--bundle", str(box.bundle), box.id)
    after = os.lstat("/dev/ptmx")
    assert (before.st_mode, before.st_rdev, before.st_ino) == (after.st_mode, after.st_rdev, after.st_ino)
