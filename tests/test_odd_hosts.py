"""Hosts that are not as they should be: a container comes to be all the same, or one line says why not, and what to do.

Each test is given its host by what root does in a mount namespace of its own (`before`).  Nothing of the machine itself
is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from containers import CGROUPS, COMMAND, LIMIT, Box, box, needed, until  # noqa: F401 - a fixture
from odd import refused, works

pytestmark = [*needed, pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")]
V1 = pytest.mark.skipif(not (CGROUPS / "pids").is_dir(), reason="no cgroup v1 here")
V1_ALONE = "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified"
NOTHING = "umount -R /sys/fs/cgroup"
V2_ALONE = f"[ -e /sys/fs/cgroup/cgroup.controllers ] || {{ {NOTHING}; mount -t cgroup2 cgroup2 /sys/fs/cgroup; }}"


# -- cgroups


@pytest.mark.parametrize("before", ["", V1_ALONE, V2_ALONE])
def test_layouts(box: Box, before: str) -> None:  # noqa: F811
    assert f"/{box.id}\n" in works(box, before, "cat /proc/self/cgroup")


@V1
def test_v2_almost_without_controllers(box: Box) -> None:  # noqa: F811
    box.linux["resources"]["memory"] = {"limit": 32 << 20}
    error = refused(box, V2_ALONE)
    assert "/linux/resources/memory/limit: needs the cgroup controller 'memory', and this container has only" in error


def test_no_cgroup_at_all(box: Box) -> None:  # noqa: F811
    assert "/linux/resources/devices: needs cgroup v2 or the v1 controller 'devices'" in refused(box, NOTHING)
    del box.linux["resources"]["devices"]
    assert works(box, NOTHING, "ls /sys/fs/cgroup; echo inside") == "inside\n"
    box.linux["resources"] = {"pids": {"limit": 5}}
    assert "no hierarchy is mounted" in refused(box, NOTHING)


READ_ONLY = (
    "for m in $(awk '$5 ~ \"^/sys/fs/cgroup\" {print $5}' /proc/self/mountinfo); do mount -o remount,bind,ro $m; done"
)


def test_read_only_cgroups(box: Box) -> None:  # noqa: F811
    assert "it is mounted read-only; mount it read-write for pyoci" in refused(box, READ_ONLY)
    words = (*COMMAND, "--root", str(box.states), "--cgroup-manager", "disabled")
    box.process["args"] = ["echo", "inside"]
    box.write()
    run = ["unshare", "-m", "--propagation", "private", "sh", "-ec", f'{READ_ONLY}\nexec "$@"', "sh", *words]
    done = subprocess.run(
        [*run, "run", "--bundle", str(box.bundle), box.id], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "inside\n", "")


def test_cgroups_that_have_become_read_only(box: Box) -> None:  # noqa: F811
    """What cannot be written is said to be that; processes are signalled all the same."""

    def command(*words: str) -> tuple[int, str]:
        run = ["unshare", "-m", "--propagation", "private", "sh", "-ec", f'{READ_ONLY}\nexec "$@"', "sh"]
        done = subprocess.run(
            [*run, *box.command(*words)], capture_output=True, text=True, check=False, timeout=LIMIT
        )
        assert done.stderr.count("\n") == (done.returncode != 0), done.stderr
        return done.returncode, done.stderr

    pid = box.start()
    code, error = command("pause", box.id)
    assert code == 1 and 'config-linux.md#cgroups-path: write("/sys/fs/cgroup' in error
    assert "read-only file system; it is mounted read-only; mount it read-write for pyoci" in error
    assert box.status() == "running"
    assert command("kill", "--all", box.id, "KILL") == (0, "")
    until(lambda: box.status() == "stopped", f"process {pid} has ended")
    code, error = command("delete", box.id)
    assert code == 1 and 'rmdir("/sys/fs/cgroup' in error and "mount it read-write for pyoci" in error
    box.ok("delete", box.id)
    box.gone()


@V1
def test_some_controllers(box: Box) -> None:  # noqa: F811
    few = f"{V1_ALONE}; for c in memory pids blkio hugetlb cpuset; do ! mountpoint -q $0/$c || umount $0/$c; done"
    few = few.replace("$0", str(CGROUPS))
    box.linux["resources"]["cpu"] = {"shares": 512}
    shown = works(box, few, "cat /proc/self/cgroup; cat /sys/fs/cgroup/cpu/cpu.shares; ls /sys/fs/cgroup").split()
    assert f"cpu:/{box.id}" in " ".join(shown)
    assert "512" in shown and "memory" not in shown
    box.linux["resources"]["memory"] = {"limit": 32 << 20}
    assert "this container has only" in refused(box, few)


@V1
def test_named_hierarchies_alone(box: Box) -> None:  # noqa: F811
    named = f"{NOTHING}; mount -t tmpfs tmpfs {CGROUPS}; mkdir {CGROUPS}/odd"
    named += f"; mount -t cgroup -o none,name=pyocitest cgroup {CGROUPS}/odd"
    assert "'devices'" in refused(box, named)
    del box.linux["resources"]["devices"]
    assert works(box, named) == "inside\n"


ELSEWHERE = "mount -t tmpfs tmpfs /mnt; mkdir /mnt/cpu; mount -t cgroup -o cpu cgroup /mnt/cpu"


@V1
@pytest.mark.parametrize("again", ["", f"umount {CGROUPS}/cpu"])
def test_a_controller_mounted_elsewhere(box: Box, again: str) -> None:  # noqa: F811
    """As well, or instead: /cgroup/cpu is where it was before there was /sys/fs/cgroup."""
    box.linux["resources"]["cpu"] = {"shares": 512}
    text = works(
        box, f"{V1_ALONE}; {ELSEWHERE}; {again or ':'}", "cat /sys/fs/cgroup/cpu/cpu.shares; cat /proc/self/cgroup"
    )
    assert text.startswith("512\n")
    assert f":cpu:/{box.id}\n" in text or f"cpu,cpuacct:/{box.id}\n" in text


TRAPS = {
    "unified is a directory": f"{V1_ALONE}; cd {CGROUPS}; mkdir -p unified; mount -t tmpfs tmpfs unified;"
    " mkdir unified/{id}; touch unified/cgroup.procs unified/{id}/cgroup.procs; cd /",
    "all are directories": f"{NOTHING}; mount -t tmpfs tmpfs {CGROUPS}; for c in unified memory pids; do"
    f" mkdir -p {CGROUPS}/$c/{{id}}; touch {CGROUPS}/$c/cgroup.procs {CGROUPS}/$c/{{id}}/cgroup.procs; done",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_directories_that_look_like_cgroups(box: Box, trap: str) -> None:  # noqa: F811
    """Runtimes have left plain directories and files with cgroups' names: the file system's type decides."""
    if trap.startswith("all"):
        del box.linux["resources"]["devices"]
    elif not (CGROUPS / "pids").is_dir():
        pytest.skip("no cgroup v1 here")
    shown = works(box, TRAPS[trap].replace("{id}", box.id), "cat /proc/self/cgroup")
    assert f"0::/{box.id}" not in shown


# -- procfs, /run, the root, the bundle's file system


@pytest.mark.parametrize("option", ["hidepid=2", "subset=pid"])
def test_procfs_that_shows_less(box: Box, option: str) -> None:  # noqa: F811
    box.process["capabilities"] = {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}
    text = works(box, f"mount -t proc -o {option} proc /proc", "grep -E 'Cap(Bnd|Eff)' /proc/self/status")
    assert [line.split()[1] for line in text.splitlines()] == ["0000000000000020"] * 2


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("mount -t tmpfs tmpfs /run; mount -o remount,ro /run", "mkdir /run/pyoci: read-only file system; use --root"),
        ("mount -t tmpfs -o nr_inodes=1 tmpfs /run", "mkdir /run/pyoci: no space left on device; use --root"),
        ("mount -t tmpfs -o size=4k tmpfs /run; head -c 4096 /dev/zero >/run/full", "no space left on device"),
    ],
)
def test_a_state_directory_that_cannot_be(box: Box, how: str, words: str) -> None:  # noqa: F811
    assert words in refused(box, how, root=False)


def test_delete_where_states_are_read_only(box: Box) -> None:  # noqa: F811
    box.start("exit 0")
    until(lambda: box.status() == "stopped")
    how = 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$@"'
    unshare = ["unshare", "-m", "--propagation", "private", "sh", "-ec", how, str(box.states)]
    for words in (("delete", box.id), ("delete", "--force", box.id)):
        command = [*unshare, *box.command(*words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
        said = f"pyoci: container '{box.id}': remove {box.states}/{box.id}: read-only file system\n"
        assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    "how",
    [
        "mount -t tmpfs -o noexec,nosuid,nodev tmpfs /run",
        "mount -t tmpfs tmpfs /mnt; mkdir /mnt/r; mount -t tmpfs tmpfs /run; ln -s /mnt/r /run/pyoci",
    ],
)
def test_state_directories_that_serve(box: Box, how: str) -> None:  # noqa: F811
    assert works(box, how, root=False) == "inside\n"


CHROOT = """
mount -t tmpfs tmpfs /mnt; mkdir /mnt/root; {bind}
for d in /*; do
    if [ -L $d ]; then cp -d $d /mnt/root$d
    elif [ -d $d ] && [ $d != /mnt ]; then mkdir /mnt/root$d; mount --rbind $d /mnt/root$d; fi
done
"""


@pytest.mark.parametrize("options", [(), ("--no-pivot",)])
def test_in_a_chroot(box: Box, options: tuple[str, ...]) -> None:  # noqa: F811
    """Where "/" is no mount, what is mounted could not be kept from the host, and nothing is."""
    error = refused(box, CHROOT.format(bind=""), prefix=("chroot", "/mnt/root"), options=options)
    assert "no mount point, as in a chroot: bind it on itself before" in error
    bind = CHROOT.format(bind="mount --bind /mnt/root /mnt/root")
    assert works(box, bind, prefix=("chroot", "/mnt/root"), options=options) == "inside\n"


@pytest.mark.parametrize("option", ["nodev", "nosuid", "noexec"])
def test_options_of_the_bundles_file_system(box: Box, option: str) -> None:  # noqa: F811
    before = f"mount --bind {box.bundle} {box.bundle}; mount -o remount,bind,{option} {box.bundle}"
    if option == "noexec":
        assert 'exec: "sh": permission denied' in refused(box, before)
    else:
        assert works(box, before, "head -c 3 /dev/zero | wc -c") == "3\n"


ON = {
    "overlay": "mount -t tmpfs t /mnt; mkdir /mnt/u /mnt/w;"
    " mount -t overlay -o lowerdir={root},upperdir=/mnt/u,workdir=/mnt/w o {root}",
    "tmpfs": "mount -t tmpfs t /mnt; cp -a {root}/. /mnt; mount --move /mnt {root}",
    "ramfs": "mount -t ramfs t /mnt; cp -a {root}/. /mnt; mount --move /mnt {root}",
    "ext4": "truncate -s 30M {folder}/image; mke2fs -q -t ext4 -d {root} {folder}/image;"
    " mount -o loop {folder}/image {root}",
    "fuse": "fuse-overlayfs -o lowerdir={root},upperdir={folder}/u,workdir={folder}/w {root}",
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ON)
def test_file_systems_of_the_root(box: Box, kind: str, mapped: bool) -> None:  # noqa: F811
    if kind == "fuse" and (shutil.which("fuse-overlayfs") is None or not Path("/dev/fuse").exists()):
        pytest.skip("no fuse-overlayfs, or no /dev/fuse")
    if kind == "ext4" and not Path("/dev/loop-control").exists():
        pytest.skip("no loop devices")
    for name in "uw":
        (box.folder / name).mkdir()
    owner = 0
    if mapped:
        owner = 100000
        box.namespace("user")
        for ids in ("uid", "gid"):
            box.linux[f"{ids}Mappings"] = [{"containerID": 0, "hostID": owner, "size": 65536}]
        for path in (box.rootfs, *box.rootfs.rglob("*")):
            os.chown(path, owner, owner, follow_symlinks=False)
        box.folder.chmod(0o755)
    text = works(box, ON[kind].format(root=box.rootfs, folder=box.folder), "echo x >/tmp/new; stat -c '%u %s' /tmp/new")
    assert text == "0 2\n"


def test_a_root_that_its_user_may_not_enter(box: Box) -> None:  # noqa: F811
    box.namespace("user")
    for ids in ("uid", "gid"):
        box.linux[f"{ids}Mappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert box.run("echo inside") == "inside\n"
    box.id = box.new_id()
    # closed directories above do not matter: the root is reached before, by a handle
    box.bundle.chmod(0o700)
    assert box.run("echo inside") == "inside\n"
    box.id = box.new_id()
    box.rootfs.chmod(0o700)
    error = box.refused()
    assert "permission denied" in error
    assert f"may not enter {box.rootfs}, which belongs to uid 0 of the host and has mode 0700" in error


@pytest.mark.skipif(not Path("/proc/sys/vm/memfd_noexec").exists(), reason="Linux before 6.3 has no such setting")
def test_no_programs_in_memory(box: Box) -> None:  # noqa: F811
    """vm.memfd_noexec is a setting of a pid namespace: the machine keeps its own."""
    box.write()
    words = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-ec", 'sysctl -qw vm.memfd_noexec=2; exec "$@"', "sh"]
    run = box.command("run", "--bundle", str(box.bundle), box.id)
    done = subprocess.run([*words, *run], capture_output=True, text=True, check=False, timeout=LIMIT)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "memfd_create(MFD_EXEC): permission denied; the sysctl vm.memfd_noexec is 2" in done.stderr
    box.gone()


def test_no_null_device(box: Box) -> None:  # noqa: F811
    """It hides masked files where /dev is the caller's, so it must be that device: a file in its place would be the
    container's to write to.  Elsewhere the container has its own."""
    before = "exec 3</dev/null; mount -t tmpfs -o mode=755 tmpfs /dev; exec 0<&3 3<&-"
    own = box.config["mounts"]
    assert works(box, f"{before}; echo secret >/dev/null", "stat -c %t:%T /proc/timer_list") == "1:3\n"
    devices = box.folder / "devices"
    devices.mkdir()
    box.config["mounts"] = [mount for mount in own if not mount["destination"].startswith("/dev")]
    box.mount("/dev", "bind", str(devices), "bind")
    assert "/linux/maskedPaths" in (error := refused(box, before)) and "mknod -m 666 /dev/null c 1 3" in error
    assert "/linux/maskedPaths" in refused(box, f"{before}; echo secret >/dev/null")
    del box.linux["maskedPaths"]
    box.config["mounts"] = own
    assert works(box, before, "echo x >/dev/null; stat -c %t:%T /dev/null") == "1:3\n"


# -- a container

NEEDED = [
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_ADMIN", "SYS_ADMIN", "MKNOD",
        "AUDIT_WRITE", "NET_BIND_SERVICE",
    )
]  # fmt: skip


@pytest.mark.parametrize("before", ["", pytest.param(V1_ALONE, marks=V1), V2_ALONE])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("namespace", [False, True])
def test_in_a_container(box: Box, before: str, mapped: bool, namespace: bool) -> None:  # noqa: F811
    """pyoci in pyoci, with the host's programs: with cgroups of its own to make others in, and as root of a user
    namespace."""
    if not COMMAND[0].endswith("/pyoci"):
        pytest.skip("the inner one has to be installed: run ./check")
    outer = Box(box.folder / "outer")
    outer.id = box.id
    outer.capabilities(*NEEDED)
    for source in ("/usr", "/etc", "/opt", "/root", "/home", str(Path(sys.prefix).resolve())):
        if Path(source).is_dir():
            outer.mount(source, "none", source, "rbind", "ro")
    for name in ("bin", "lib", "lib64", "sbin"):
        shutil.rmtree(outer.rootfs / name, ignore_errors=True)
        (outer.rootfs / name).symlink_to(f"usr/{name}")
    outer.mount("/run", "tmpfs", "tmpfs", "mode=755")
    outer.mount("/bundle", "none", str(box.bundle), "bind")
    for mount in outer.config["mounts"]:
        if mount["destination"] == "/sys/fs/cgroup":
            mount["options"].remove("ro")
    outer.process["env"] = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    for key in ("maskedPaths", "readonlyPaths"):
        outer.linux[key] = []
    if namespace:
        outer.namespace("cgroup")
    if mapped:
        outer.namespace("user")
        for ids in ("uid", "gid"):
            outer.linux[f"{ids}Mappings"] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    box.process["args"] = ["sh", "-c", "echo inner; cat /proc/self/cgroup; stat -c %t:%T /dev/null"]
    box.write()
    text = works(outer, before, f"exec {COMMAND[0]} run --bundle /bundle {box.id}")
    assert text.startswith("inner\n") and text.endswith("1:3\n")
    seen = [line.rpartition(":")[2] for line in text.splitlines()[1:-1]]
    assert (f"/{box.id}" in seen) or (f"/{box.id}/{box.id}" in seen) or mapped


