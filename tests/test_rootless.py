"""Rootless by hand: a user with and without subordinate ids, with and without a cgroup, and what it is told."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from containers import CGROUPS, Box, box, needed, until  # noqa: F401 - a fixture
from users import SUBIDS, User, away, made, mapping

ABSENT = [name for name in ("newuidmap", "newgidmap", "unshare", "setpriv") if shutil.which(name) is None]
pytestmark = [*needed, pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")]
RUNC = pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed")
HELPER = "/usr/bin/newuidmap"


@pytest.fixture
def user() -> Iterator[User]:
    one = made()
    yield one
    away(one)


def map_of(user: User) -> list[list[str]]:
    """The container's map of user ids, as the kernel has it."""
    lines = Path(f"/proc/{user.pid()}/uid_map").read_text().splitlines()
    return [line.split() for line in lines]


# -- ids


def test_ranges(user: User) -> None:
    user.ranges()
    user.process["user"] = {"uid": 7, "gid": 8, "additionalGids": [9]}
    (user.rootfs / "tmp").chmod(0o777)
    user.start("echo $(id -u) $(id -g) $(id -G) >/tmp/out; exec sleep 100")
    assert user.output() == "7 8 8 9\n"
    assert map_of(user) == [["0", str(user.uid), "1"], ["1", str(user.first), str(SUBIDS)]]
    assert (user.rootfs / "tmp/out").stat().st_uid == user.first + 6
    assert Path(f"/proc/{user.pid()}/setgroups").read_text() == "allow\n"


def test_a_single_map_needs_no_helper(user: User) -> None:
    user.before = f"mount --bind /dev/null {HELPER}; : >/etc/subuid; : >/etc/subgid"
    user.start()
    assert map_of(user) == [["0", str(user.uid), "1"]]
    assert Path(f"/proc/{user.pid()}/setgroups").read_text() == "deny\n"


def test_another_id_alone(user: User) -> None:
    """One id, but not the user's own: the kernel would not take it from the user."""
    user.linux["uidMappings"] = [mapping(0, user.first, 1)]
    (user.rootfs / "tmp").chmod(0o777)
    user.start("echo >/tmp/out; exec sleep 100")
    user.output()
    assert map_of(user) == [["0", str(user.first), "1"]]
    assert (user.rootfs / "tmp/out").stat().st_uid == user.first


def refused_map(user: User) -> str:
    user.ranges()
    return user.refused()


def test_no_helper(user: User) -> None:
    user.before = "mount -t tmpfs t /mnt; mkdir /mnt/u /mnt/w; mount -t overlay -o"
    user.before += " lowerdir=/usr/bin,upperdir=/mnt/u,workdir=/mnt/w o /usr/bin; rm /usr/bin/newuidmap"
    error = refused_map(user)
    assert "/linux/uidMappings" in error and "newuidmap" in error and "package uidmap" in error


@pytest.mark.parametrize("how", ["no set-user-ID bit", "nosuid", "no_new_privs"])
def test_a_helper_without_rights(user: User, how: str) -> None:
    if how == "no_new_privs":
        user.prefix = ("--no-new-privs",)
    elif how == "nosuid":
        user.before = f"mount --bind {HELPER} {HELPER}; mount -o remount,bind,nosuid {HELPER}"
    else:
        shutil.copy(HELPER, user.folder / "helper")
        (user.folder / "helper").chmod(0o755)
        user.before = f"mount --bind {user.folder}/helper {HELPER}"
    error = refused_map(user)
    assert "/linux/uidMappings: newuidmap:" in error
    assert "set-user-ID" in error and "nosuid" in error and "no_new_privs" in error


@pytest.mark.parametrize("kind", ["uid", "gid"])
def test_ids_that_are_not_given(user: User, kind: str) -> None:
    user.say(f"sub{kind}", "")
    error = refused_map(user)
    assert f"/linux/{kind}Mappings: new{kind}map:" in error and f"/etc/sub{kind}" in error
    assert f"usermod --add-sub{kind}s {user.first}-{user.first + SUBIDS - 1}" in error


def test_a_user_without_a_name(user: User) -> None:
    user.say("passwd", "root:x:0:0::/:/bin/sh\n")
    assert f"uid {user.uid} needs an entry in /etc/passwd" in refused_map(user)


# -- where states are


def test_without_a_user_namespace(user: User) -> None:
    user.without("user")
    del user.process["capabilities"]
    for kind in ("uid", "gid"):
        del user.linux[f"{kind}Mappings"]
    assert "operation not permitted; without root's rights it takes a user namespace, too" in user.refused()


def test_what_only_root_may(user: User) -> None:
    """The kernel's refusal, and what it means here: not that pyoci lacks a capability."""
    user.process["oomScoreAdj"] = -999
    assert "/process/oomScoreAdj: " in (error := user.refused()) and "needs CAP_SYS_RESOURCE on the host" in error
    del user.process["oomScoreAdj"]
    user.mount("/sys", "sysfs", "sysfs")
    assert "operation not permitted; a new sysfs needs a network namespace" in user.refused()
    user.config["mounts"][-1] = {"destination": "/mnt", "type": "ext4", "source": "/dev/null"}
    assert "; the kernel lets only root mount it" in user.refused()
    user.config["mounts"].pop()
    user.before = "mount --bind /dev/null /proc/meminfo"
    assert "/mounts/0: fsmount(" in (error := user.refused()) and "mounts cover parts of this host's own" in error


def test_states_are_below_the_runtime_directory(user: User) -> None:
    user.rooted = False
    user.start()
    place = user.runtime / "pyoci" / user.id
    assert place.stat().st_mode & 0o777 == 0o700
    assert place.stat().st_uid == user.uid
    user.ok("delete", "--force", user.id)
    assert not place.exists()


RUN_USER = "mkdir -p /run/user; mount -t tmpfs t /run/user; mkdir -m 700 /run/user/{0}; chown {0}:{0} /run/user/{0}"


@pytest.mark.parametrize("value", [None, "", "relative/path"])
def test_without_a_runtime_directory(user: User, value: str | None) -> None:
    """Unset, empty or not absolute: /run/user/UID, if that is there."""
    user.rooted = False
    del user.environment["XDG_RUNTIME_DIR"]
    if value is not None:
        user.environment["XDG_RUNTIME_DIR"] = value
    error = user.refused()
    assert f"mkdir /run/user/{user.uid}" in error or "mkdir /run/user:" in error
    assert "permission denied; set XDG_RUNTIME_DIR to a directory of yours or use --root" in error
    user.before = RUN_USER.format(user.uid)
    user.before += f'\ntrap "ls /run/user/{user.uid}" EXIT\n"$@"\nexit'
    assert user.run("echo inside").split() == ["inside", "pyoci"]


@pytest.mark.parametrize("place", ["/etc", "/nonexistent/place"])
def test_a_runtime_directory_of_others(user: User, place: str) -> None:
    user.rooted = False
    user.environment["XDG_RUNTIME_DIR"] = place
    assert "permission denied; set XDG_RUNTIME_DIR" in user.refused()


def test_devices_are_the_hosts(user: User) -> None:
    """Nobody may make a node in a user namespace that works: each is a bind mount of the host's."""
    text = user.run("stat -c %t:%T /dev/null /dev/zero /dev/tty; cat /proc/self/mountinfo; head -c 3 /dev/zero | wc -c")
    assert text.split()[:3] == ["1:3", "1:5", "5:0"]
    assert text.split()[-1] == "3"
    bound = {line.split()[4]: line.split()[3] for line in text.splitlines()[3:-1]}
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        assert bound[f"/dev/{name}"] == f"/{name}"


# -- cgroups

LAYOUTS = {
    "as it is": "",
    "v1": "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified",
    "v2": "[ -e /sys/fs/cgroup/cgroup.controllers ] ||"
    " { umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; }",
}
V1 = pytest.mark.skipif(not (CGROUPS / "pids").is_dir(), reason="no cgroup v1 here")
GIVE = """
give() {
    mkdir -p "$1"
    [ ! -e "$1/tasks" ] || [ ! -e "$1/cpuset.cpus" ] ||
        for f in cpus mems; do cat "$1/../cpuset.$f" >"$1/cpuset.$f"; done
    for f in "$1" "$1/cgroup.procs" "$1/tasks" "$1/cgroup.subtree_control" "$1/cgroup.threads"; do
        [ ! -e "$f" ] || chown %d "$f"
    done
}
"""


class Delegated(User):
    """A user with a cgroup: in v2 beside the one that it is in itself, in v1 in the `controllers`, or all."""

    def give(self, layout: str, controllers: Sequence[str] = (), inside: bool = True) -> None:
        """Make it; without `inside`, in v2 the user is in the very cgroup that it has been given."""
        self.layout = layout
        lines = [LAYOUTS[layout], GIVE % self.uid]
        if layout == "v2":
            places = [f"/sys/fs/cgroup/{self.name}"]
            own = f"{places[0]}/own" if inside else places[0]
            lines += [f"give {places[0]}", f"give {own}"]
            if inside:
                lines += [
                    f"for d in /sys/fs/cgroup {places[0]}; do for c in $(cat $d/cgroup.controllers); do",
                    "    echo +$c >$d/cgroup.subtree_control || :",
                    "done; done 2>/dev/null",
                ]
            lines.append(f"echo $$ >{own}/cgroup.procs")
        else:
            every = [path.parent.name for path in CGROUPS.glob("*/tasks") if not path.parent.is_symlink()]
            for controller in controllers or every:
                place = f"/sys/fs/cgroup/{controller}/{self.name}"
                lines += [f"give {place}", f"echo $$ >{place}/cgroup.procs"]
        self.before = "\n".join(lines)

    def place(self, controller: str) -> Path:
        """The user's cgroup as this machine shows it."""
        if self.layout != "v2":
            return CGROUPS / controller / self.name
        unified = CGROUPS / "unified"
        return (unified if unified.is_dir() else CGROUPS) / self.name


@pytest.fixture
def owner() -> Iterator[Delegated]:
    one = made(Delegated)
    assert isinstance(one, Delegated)
    yield one
    try:
        away(one)
    finally:
        for top, _, _ in list(os.walk(CGROUPS, topdown=False)):
            if f"/{one.name}" in top:
                os.rmdir(top)


# tries to write in every cgroup that is to be seen, says where it could
PROBE = """
for d in $(busybox find /sys/fs/cgroup -type d 2>/dev/null); do
    mkdir $d/pyoci-probe 2>/dev/null && case $(stat -f -c %T $d) in *cgroup*) echo $d;; esac
    { echo 0 >$d/cgroup.procs; } 2>/dev/null && echo $d/cgroup.procs
done
echo done
"""


def probes() -> list[str]:
    return [top for top, _, _ in os.walk(CGROUPS) if top.endswith("/pyoci-probe")]


@pytest.mark.parametrize("layout", ["as it is", pytest.param("v1", marks=V1), "v2"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("kind", "namespace"),
    [
        ("cgroup", False), ("cgroup", True), ("cgroup2", False), ("cgroup2", True), ("/sys", False),
        ("/sys/fs/cgroup", True),
    ],
)  # fmt: skip
def test_cgroups_are_not_written_to(owner: Delegated, layout: str, given: bool, kind: str, namespace: bool) -> None:
    """Mounted read-only by type or by a bind of what they are below, whatever of them is the user's."""
    if given:
        owner.give(layout)
    else:
        owner.before = LAYOUTS[layout]
    kept = [entry for entry in owner.config["mounts"] if not entry["destination"].startswith("/sys")]
    owner.config["mounts"] = kept
    if kind.startswith("/"):
        owner.mount(kind, "none", kind, "rbind", "ro")
    else:
        owner.mount("/sys", "none", "/sys", "rbind", "ro")
        owner.mount("/sys/fs/cgroup", kind, kind, "ro")
    if namespace:
        owner.namespace("cgroup")
    owner.process["args"] = ["sh", "-c", PROBE]
    owner.write()
    done = owner("run", "--bundle", str(owner.bundle), owner.id)
    if done.returncode and kind == "cgroup2" and not namespace and layout == "v1":
        assert "operation not permitted" in done.stderr
        return
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert probes() == []


@pytest.mark.parametrize("layout", ["as it is", pytest.param("v1", marks=V1), "v2"])
@pytest.mark.parametrize("namespace", [False, True])
def test_what_is_written_to_is_the_containers(owner: Delegated, layout: str, namespace: bool) -> None:
    """Mounted read-write it is the container's own cgroup, and nothing beside it."""
    owner.give(layout)
    owner.config["mounts"] = [one for one in owner.config["mounts"] if one["destination"] != "/sys/fs/cgroup"]
    owner.mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid")
    if namespace:
        owner.namespace("cgroup")
    owner.start(f"{PROBE.strip().removesuffix('echo done')} echo done >/tmp/out; exec sleep 100")
    owner.output()
    found = probes()
    assert all(f"/{owner.name}/{owner.id}/" in path for path in found)
    assert found or layout == "as it is"


@V1
@pytest.mark.parametrize("path", ["", "one", "/{}/one"])
def test_a_delegated_cgroup_of_v1(owner: Delegated, path: str) -> None:
    """Limits bite: the kernel counts the forks that it refused."""
    owner.give("v1")
    if path:
        owner.linux["cgroupsPath"] = path.format(owner.name)
    owner.linux["resources"] = {"pids": {"limit": 5}, "memory": {"limit": 16 << 20}}
    owner.start("for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo all >/tmp/out; wait")
    name = "one" if path else owner.id
    events = owner.place("pids") / name / "pids.events"
    until(lambda: events.read_text().strip() != "max 0", "a refused fork")
    assert (owner.place("memory") / name / "memory.limit_in_bytes").read_text() == f"{16 << 20}\n"
    assert not (owner.rootfs / "tmp/out").exists()
    owner.ok("delete", "--force", owner.id)
    assert not (owner.place("pids") / name).exists()


@V1
def test_a_part_of_v1(owner: Delegated) -> None:
    """Two controllers are delegated, and that is what there is."""
    owner.give("v1", ("pids", "freezer"))
    owner.linux["resources"] = {"pids": {"limit": 5}}
    owner.start()
    assert (owner.place("pids") / owner.id / "pids.max").read_text() == "5\n"
    owner.ok("pause", owner.id)
    assert owner.status() == "paused"
    owner.ok("resume", owner.id)
    owner.ok("delete", "--force", owner.id)
    owner.id = owner.new_id()
    owner.linux["resources"] = {"memory": {"limit": 16 << 20}}
    assert "needs the cgroup controller 'memory', and this container has only freezer, pids" in owner.refused()


@pytest.mark.parametrize("inside", [True, False])
def test_a_delegated_cgroup_of_v2(owner: Delegated, inside: bool) -> None:
    owner.give("v2", inside=inside)
    owner.start()
    assert (owner.place("") / owner.id / "cgroup.procs").read_text() == f"{owner.pid()}\n"
    owner.ok("pause", owner.id)
    assert owner.status() == "paused"
    owner.ok("resume", owner.id)
    assert owner.exec("cat", "/proc/self/cgroup").splitlines()[-1] == f"0::/{owner.name}/{owner.id}"
    owner.ok("delete", "--force", owner.id)
    assert not (owner.place("") / owner.id).exists()


@pytest.mark.parametrize("path", ["", "one", "/{}/one"])
def test_limits_in_a_delegated_cgroup_of_v2(owner: Delegated, path: str) -> None:
    owner.give("v2")
    if path:
        owner.linux["cgroupsPath"] = path.format(owner.name)
    name = "one" if path else owner.id
    subprocess.run(owner.words("true"), check=True)
    offered = (owner.place("") / "cgroup.controllers").read_text().split()
    if "pids" in offered:
        owner.linux["resources"] = {"pids": {"limit": 5}}
        owner.start("for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo all >/tmp/out; wait")
        events = owner.place("") / name / "pids.events"
        until(lambda: events.read_text().strip() != "max 0", "a refused fork")
        assert not (owner.rootfs / "tmp/out").exists()
    elif "hugetlb" in offered:
        owner.linux["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
        owner.start()
        assert (owner.place("") / name / "hugetlb.2MB.rsvd.max").read_text() == f"{4 << 20}\n"
    else:
        pytest.skip("no controller here can be delegated")


def test_processes_in_the_way_of_limits(owner: Delegated) -> None:
    """A v2 cgroup with processes of its own cannot give its children controllers."""
    owner.give("v2", inside=False)
    subprocess.run(owner.words("true"), check=True)
    offered = (owner.place("") / "cgroup.controllers").read_text().split()
    if "hugetlb" not in offered:
        pytest.skip("no controller here can be delegated")
    owner.linux["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
    error = owner.refused()
    assert "hugetlb cannot be enabled" in error and "move them into a child of it" in error


MEMORY = {"memory": {"limit": 32 << 20}}


@RUNC
@pytest.mark.parametrize("layout", ["as it is", pytest.param("v1", marks=V1)])
def test_limits_that_cannot_be_applied(user: User, layout: str) -> None:
    """Who asks for a limit, or for a place, does not get a container without it; runc's answers are the same."""
    user.before = LAYOUTS[layout]
    user.process["args"] = ["true"]
    for resources, path, fails in (
        (MEMORY, "", True),
        (MEMORY, "/pyoci-test-place", True),
        (None, "/pyoci-test-place", True),
        ({"devices": [{"allow": False, "access": "rwm"}]}, "", False),
        ({}, "", False),
    ):
        for name, value in (("resources", resources), ("cgroupsPath", path)):
            self_ = user.linux
            self_.pop(name, None)
            if value:
                self_[name] = value
        user.write()
        user.id = user.new_id()
        done = user("run", "--bundle", str(user.bundle), user.id)
        assert (done.returncode != 0) == fails, done
        if fails:
            assert done.stderr.count("\n") == 1 and "delegated to you" in done.stderr, done.stderr
            assert f"not writable for uid {user.uid}" in done.stderr
        peer = user.other("runc", "run", "--bundle", str(user.bundle), user.id)
        assert (peer.returncode != 0) == fails, peer


# -- its life


def test_without_a_cgroup(user: User) -> None:
    script = 'trap "echo told >>/tmp/out" USR1; while :; do sleep 0.05; done'
    user.start(f"sh -c '{script.replace(chr(39), '')}' & {script}")
    until(lambda: len(user.processes()) >= 3, "its processes")
    listed = user.ok("ps", "--format", "json", user.id)
    assert user.pid() in [int(word) for word in listed.strip("[]\n").split(",")]
    assert len(listed.split(",")) >= 2, listed  # a shell may be between two sleeps
    assert "while :; do sleep" in user.ok("ps", user.id)
    user.ok("kill", "--all", user.id, "USR1")
    until(lambda: (path := user.rootfs / "tmp/out").exists() and path.read_text() == "told\n" * 2, "both are told")
    for words in (("pause", user.id), ("update", "--pids-limit", "5", user.id)):
        assert "delegated to" in user.fails(*words)
    assert user.exec("id", "-u") == "0\n"
    assert "not stopped: running" in user.fails("delete", user.id)
    user.ok("kill", "--all", user.id, "KILL")
    until(lambda: user.status() == "stopped", "its end")
    assert user.ok("ps", "--format", "json", user.id) == "[]\n"
    user.ok("delete", user.id)
    assert "does not exist" in user.fails("state", user.id)


def executes_pyoci(pid: int) -> bool:
    """And no longer what leads to it, or a copy of this process."""
    names = [Path(f"/proc/{which}/comm").read_text().strip() for which in (pid, "self")]
    return names[0] not in ("unshare", "sh", "setpriv", "env", names[1])


@pytest.mark.parametrize("given", [False, True])
def test_killed_at_any_moment(owner: Delegated, given: bool) -> None:
    if given:
        owner.give("v2")
    owner.ranges()
    owner.process["args"] = ["sleep", "100"]
    owner.write()
    chance = random.Random(given)
    null = subprocess.DEVNULL
    for number in range(15):
        words = owner.command("create" if number % 2 else "run", "--bundle", str(owner.bundle), owner.id)
        child = subprocess.Popen(words, stdin=null, stdout=null, stderr=null)
        until(partial(executes_pyoci, child.pid), "pyoci")
        time.sleep(chance.random() * 0.1)
        child.send_signal(signal.SIGKILL)
        child.wait()
        owner.ok("delete", "--force", owner.id)
        until(lambda: owner.processes() == [], "the end of its processes")
        assert not owner.states.exists() or not (owner.states / owner.id).exists()
        if given:
            assert sorted(path.name for path in owner.place("").iterdir() if path.is_dir()) == ["own"]


def test_one_id_of_two_users_and_root(user: User, box: Box) -> None:  # noqa: F811
    other = made()
    try:
        other.ids, other.id = [user.id], user.id
        box.ids.append(user.id)
        for one in (user, other):
            one.rooted = False
            one.start("echo $(cat /proc/self/uid_map) >/tmp/out; exec sleep 100")
            assert one.output() == f"0 {one.uid} 1\n"
        box.create(id=user.id)
        pids = {user.pid(), other.pid(), box.state(user.id)["pid"]}
        assert len(pids) == 3
        user.ok("delete", "--force", user.id)
        assert "does not exist" in user.fails("state", user.id)
        assert other.status() == "running"
        assert box.state(user.id)["status"] == "created"
    finally:
        other.ok("delete", "--force", other.id)
        other.ids = []
        away(other)


def test_root_trusts_no_users_states(user: User, box: Box) -> None:  # noqa: F811
    """Root does not: what is in a user's state would decide what root kills and removes."""
    user.start()
    error = box.fails("--root", str(user.states), "delete", "--force", user.id)
    assert f"belongs to user {user.uid}: refusing to trust" in error
    assert user.status() == "running"
