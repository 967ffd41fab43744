"""Which hierarchies there are: from what the kernel writes on several machines, and on this one."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from pyoci.cgroup.detect import assign, detect

HEAD = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
TOP = "30 22 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n"


def mount(point: str, options: str, number: str, root: str = "/", kind: str = "cgroup") -> str:
    return f"40 30 {number} {root} {point} rw,relatime shared:10 master:3 - {kind} {kind} rw,{options}\n"


def found(mountinfo: str, memberships: str, **hidden: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """What is decided if at each mount point is what is mounted there last, but for `hidden` (path with _ for /)."""
    there = {line.split()[4]: line.split()[2] for line in mountinfo.splitlines()}
    there.update({name.replace("_", "/"): number for name, number in hidden.items()})
    return assign(mountinfo.encode(), memberships.encode(), lambda path: there.get(path, ""))


def test_v2() -> None:
    info = HEAD + mount("/sys/fs/cgroup", "nsdelegate", "0:26", kind="cgroup2")
    assert found(info, "0::/user.slice/a b\n") == ("v2", {"": "/sys/fs/cgroup"}, {"": "/user.slice/a b"})


V1 = (
    mount("/sys/fs/cgroup/systemd", "xattr,release_agent=/lib/systemd/agent,name=systemd", "0:27")
    + mount("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct", "0:28")
    + mount("/sys/fs/cgroup/memory", "memory", "0:29")
)
V1_SELF = "4:memory:/x\n3:cpu,cpuacct:/y\n1:name=systemd:/z (deleted)\n"


def test_v1_with_controllers_that_share_a_mount() -> None:
    mode, mounts, own = found(HEAD + TOP + V1, V1_SELF)
    assert mode == "v1"
    assert mounts == {
        "name=systemd": "/sys/fs/cgroup/systemd",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
    }
    assert own == {"name=systemd": "/z", "cpu": "/y", "cpuacct": "/y", "memory": "/x"}


def test_hybrid() -> None:
    info = HEAD + TOP + V1 + mount("/sys/fs/cgroup/unified", "nsdelegate", "0:30", kind="cgroup2")
    mode, mounts, own = found(info, V1_SELF + "0::/u\n")
    assert (mode, mounts[""], own[""]) == ("hybrid", "/sys/fs/cgroup/unified", "/u")


def test_a_directory_called_unified_is_not_v2() -> None:
    """Nothing is mounted there: that processes have a v2 membership does not mean that there is a v2 to write to."""
    mode, mounts, _ = found(HEAD + TOP + V1, V1_SELF + "0::/u\n")
    assert mode == "v1"
    assert "" not in mounts


def test_none() -> None:
    assert found(HEAD + TOP, "0::/\n") == ("none", {}, {})
    assert found("", "") == ("none", {}, {})


def test_a_hidden_mount_does_not_count() -> None:
    info = HEAD + mount("/sys/fs/cgroup", "rw", "0:26", kind="cgroup2")
    assert found(info, "0::/\n", _sys_fs_cgroup="0:99")[0] == "none"


def test_a_controller_that_is_mounted_elsewhere() -> None:
    """It counts where it is not below /sys/fs/cgroup; a part of it is somebody's container."""
    other = mount("/cgroup/pids", "pids", "0:31") + mount("/again", "memory", "0:29")
    part = mount("/srv/root/blkio", "blkio", "0:32", root="/docker/x")
    mode, mounts, own = found(HEAD + TOP + V1 + other + part, V1_SELF + "6:blkio:/\n5:pids:/p\n")
    assert mode == "v1"
    assert (mounts["pids"], own["pids"]) == ("/cgroup/pids", "/p")
    assert mounts["memory"] == "/sys/fs/cgroup/memory"
    assert "blkio" not in mounts


def test_mounts_elsewhere_count_only_without_the_usual_ones() -> None:
    other = mount("/srv/root/sys/fs/cgroup", "rw", "0:26", kind="cgroup2")
    assert found(HEAD + TOP + V1 + other, V1_SELF + "0::/\n")[0] == "v1"
    assert found(HEAD + mount(r"/mnt/a\040b", "rw", "0:26", kind="cgroup2"), "0::/\n", **{"_mnt_a b": "0:26"}) == (
        "v2",
        {"": "/mnt/a b"},
        {"": "/"},
    )


def test_a_mount_that_shows_only_a_part() -> None:
    """In a container without a cgroup namespace the mount's root is the container's cgroup."""
    part = HEAD + mount("/sys/fs/cgroup", "rw", "0:26", "/docker/abc", kind="cgroup2")
    assert found(part, "0::/docker/abc/x\n")[2] == {"": "/x"}
    assert found(part, "0::/docker/abc\n")[2] == {"": "/"}
    assert found(part, "0::/docker/abcd\n")[2] == {"": "/"}
    # in a cgroup namespace with the mount of the outer one
    outer = HEAD + mount("/sys/fs/cgroup", "rw", "0:26", "/../..", kind="cgroup2")
    assert found(outer, "0::/\n")[2] == {"": "/"}


def test_this_machine() -> None:
    mode, mounts, own, controllers = detect()
    assert set(mounts) == set(own)
    for controller, point in mounts.items():
        assert Path(point, "cgroup.procs").exists(), controller
        listed = Path(point + own[controller], "cgroup.procs")
        assert str(os.getpid()) in listed.read_text().split(), controller
    if "" in mounts:
        assert mode in ("v2", "hybrid")
        assert tuple(Path(mounts[""], "cgroup.controllers").read_text().split()) == controllers


def test_it_is_fast() -> None:
    """Once for each command that plans: microseconds."""
    best = 1.0
    for _ in range(20):
        begin = time.perf_counter()
        detect()
        best = min(best, time.perf_counter() - begin)
    assert best < 0.002


DETECT = "import sys; sys.path[:0] = sys.argv[1:]; from pyoci.cgroup.detect import detect; print(detect())"


@pytest.mark.root
@pytest.mark.parametrize(
    ("prepare", "mode"),
    [
        ("umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup", "'v2'"),
        ("umount -R /sys/fs/cgroup", "'none'"),
        ("mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/unified", "'none'"),
    ],
)
def test_other_layouts_in_a_private_mount_namespace(prepare: str, mode: str, root: Path) -> None:
    import shlex
    import sys

    command = f"{prepare} && {shlex.quote(sys.executable)} -c {shlex.quote(DETECT)} {shlex.quote(str(root))}"
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", command],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(" + mode)
