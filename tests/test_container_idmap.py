"""Id-mapped mounts: owners as the container sees them and as they are on the disk, and what cannot be mapped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from containers import Box, box, needed, until  # noqa: F401 - box is a fixture

pytestmark = needed

Maps = list[dict[str, int]]


def maps(container: int, host: int, size: int) -> Maps:
    return [{"containerID": container, "hostID": host, "size": size}]


def mapped(box: Box, destination: str, source: str, *options: str, uids: Maps, gids: Maps) -> None:
    """A bind mount with maps of its own."""
    box.mount(destination, "bind", source, *options)
    box.config["mounts"][-1] |= {"uidMappings": uids, "gidMappings": gids}


def owners(*paths: str) -> str:
    return f"stat -c '%u %g' {' '.join(paths)}"


@pytest.fixture
def tree(box: Box) -> Path:
    """A directory with files of several owners, which everybody may write to."""
    path = box.folder / "tree"
    (path / "inner").mkdir(parents=True)
    for name, uid, gid in (("root", 0, 0), ("three", 3, 4), ("foreign", 5000, 5000), ("inner/five", 5, 5)):
        (path / name).write_text(name)
        os.chown(path / name, uid, gid)
    path.chmod(0o777)
    return path


@pytest.fixture
def user(box: Box) -> Box:
    """A container in a user namespace, whose root is 100000 outside; its root file system is that one's."""
    box.namespace("user")
    box.linux.update({"uidMappings": maps(0, 100000, 100), "gidMappings": maps(0, 200000, 100)})
    for folder, names, files in os.walk(box.rootfs):
        for name in (".", *names, *files):
            os.chown(f"{folder}/{name}", 100000, 200000, follow_symlinks=False)
    return box


def test_owners_by_the_mounts_own_maps(box: Box, tree: Path) -> None:
    mapped(box, "/b", str(tree), "bind", "idmap", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    shown = box.run(owners("/b", "/b/root", "/b/three", "/b/foreign", "/b/inner/five"))
    assert shown.splitlines() == ["1000 2000", "1000 2000", "1003 2004", "65534 65534", "1005 2005"]


def test_what_is_written_has_the_other_ids_on_the_disk(box: Box, tree: Path) -> None:
    mapped(box, "/b", str(tree), "bind", "idmap", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    box.process["user"] = {"uid": 1003, "gid": 2004}
    assert box.run(f"touch /b/new; {owners('/b/new')}; cat /b/three") == "1003 2004\nthree"
    made = (tree / "new").stat()
    assert (made.st_uid, made.st_gid) == (3, 4)


def test_rights_are_those_of_the_mapped_owner(box: Box, tree: Path) -> None:
    (tree / "three").chmod(0o600)
    mapped(box, "/b", str(tree), "bind", "idmap", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    box.process["user"] = {"uid": 3, "gid": 4}
    assert "denied" in box.run("cat /b/three 2>&1 || exit 0")
    box.process["user"] = {"uid": 1003, "gid": 2004}
    assert box.run("cat /b/three") == "three"


def test_an_owner_without_a_map_cannot_make_files(box: Box, tree: Path) -> None:
    mapped(box, "/b", str(tree), "bind", "idmap", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    assert "too large" in box.run("touch /b/new 2>&1 || exit 0")  # EOVERFLOW
    assert not (tree / "new").exists()


def test_several_ranges(box: Box, tree: Path) -> None:
    several = maps(3, 30000, 1) + maps(0, 1000, 2)
    mapped(box, "/b", str(tree), "bind", "idmap", uids=several, gids=maps(0, 0, 65536))
    shown = box.run(owners("/b/root", "/b/three", "/b/inner/five"))
    assert shown.splitlines() == ["1000 0", "30000 4", "65534 5"]


def test_a_file(box: Box, tree: Path) -> None:
    mapped(box, "/file", str(tree / "three"), "bind", "idmap", "ro", uids=maps(0, 7000, 9), gids=maps(0, 8000, 9))
    assert box.run(owners("/file")) == "7003 8004\n"


def test_mappings_without_the_option(box: Box, tree: Path) -> None:
    """The option SHOULD be there, the mappings are what counts."""
    mapped(box, "/b", str(tree), "bind", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    assert box.run(owners("/b/three")) == "1003 2004\n"


@pytest.mark.parametrize(("option", "expected"), [("idmap", "1000 0"), ("ridmap", "1000 1000")])
def test_of_the_whole_tree_or_not(box: Box, tree: Path, option: str, expected: str) -> None:
    mapped(box, "/b", str(tree), "rbind", option, uids=maps(0, 1000, 10), gids=maps(0, 1000, 10))
    before = f"mount -t tmpfs tmpfs {tree}/inner; touch {tree}/inner/mark"
    found = box.unshared(before, "stat -c %u /b/root /b/inner/mark")
    assert " ".join(found.split()) == expected


def test_by_the_map_of_the_user_namespace(user: Box, tree: Path) -> None:
    user.mount("/mapped", "bind", str(tree), "bind", "idmap")
    user.mount("/plain", "bind", str(tree), "bind")
    shown = user.run(f"{owners('/mapped/root', '/mapped/three', '/plain/three')}; touch /mapped/new")
    assert shown.splitlines() == ["0 0", "3 4", "65534 65534"]
    made = (tree / "new").stat()
    assert (made.st_uid, made.st_gid) == (0, 0)


def test_own_maps_in_a_user_namespace(user: Box, tree: Path) -> None:
    """Their host ids are those of the host: the container sees them by its own map."""
    mapped(user, "/b", str(tree), "bind", "idmap", uids=maps(3, 100042, 1), gids=maps(4, 200043, 1))
    assert user.run(owners("/b/three", "/b/root")).splitlines() == ["42 43", "65534 65534"]


def test_by_the_map_of_a_joined_user_namespace(user: Box, tree: Path) -> None:
    pid = user.start("exec sleep 100")
    user.namespace("user", f"/proc/{pid}/ns/user")
    for name in ("uidMappings", "gidMappings"):
        del user.linux[name]
    user.mount("/mapped", "bind", str(tree), "bind", "idmap")
    id = user.new_id()
    user.process["args"] = ["sh", "-c", owners("/mapped/root", "/mapped/three")]
    user.write(id)
    shown = user.ok("run", "--bundle", str(user.bundle), id)
    assert shown.splitlines() == ["0 0", "3 4"]


def test_a_new_file_system(box: Box) -> None:
    box.mount("/t", "tmpfs", "tmpfs", "idmap", "uid=3", "gid=4")
    box.config["mounts"][-1] |= {"uidMappings": maps(0, 1000, 10), "gidMappings": maps(0, 2000, 10)}
    assert box.run(owners("/t")) == "1003 2004\n"


def test_a_new_file_system_with_a_copy(box: Box) -> None:
    (box.rootfs / "data").mkdir()
    (box.rootfs / "data/file").write_text("content")
    os.chown(box.rootfs / "data/file", 3, 4)
    box.mount("/data", "tmpfs", "tmpfs", "tmpcopyup", "idmap")
    box.config["mounts"][-1] |= {"uidMappings": maps(0, 1000, 10), "gidMappings": maps(0, 2000, 10)}
    assert box.run(f"{owners('/data', '/data/file')}; cat /data/file") == "1000 2000\n1003 2004\ncontent"


def test_a_file_system_that_cannot(box: Box) -> None:
    mapped(box, "/b", "/proc", "bind", "idmap", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    error = box.refused()
    assert f"/mounts/{len(box.config['mounts']) - 1}/uidMappings" in error
    assert "mount_setattr" in error and "must know id-mapped mounts" in error


def test_the_last_id_of_all(box: Box, tree: Path) -> None:
    mapped(box, "/b", str(tree), "bind", "idmap", uids=maps(0, 2**32 - 2, 1), gids=maps(0, 2**32 - 2, 1))
    assert box.run(owners("/b/root")) == "4294967294 4294967294\n"


def test_no_descriptor_and_no_process_stays(box: Box, tree: Path) -> None:
    """Of a namespace whose root somebody in the container might become."""
    box.capabilities("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
    for number in range(3):
        own = maps(0, 1000 * (number + 1), 10)
        mapped(box, f"/b{number}", str(tree), "bind", "idmap", uids=own, gids=own)
    before = namespaces_with_processes()
    shown = box.run("ls /proc/self/fd; ls -l /proc/1/fd | grep -c user: || exit 0")
    assert shown.split() == ["0", "1", "2", "3", "0"]
    until(lambda: namespaces_with_processes() <= before)


def test_the_image_has_no_say(box: Box, tree: Path) -> None:
    """Links in the image lead the mount to somewhere else in it, with the same owners; the source is the host's."""
    (box.rootfs / "b").symlink_to("../../../../../../etc/there")
    (box.rootfs / "etc/there").mkdir()
    mapped(box, "/b", str(tree), "bind", "idmap", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    assert box.run(owners("/etc/there/three")) == "1003 2004\n"
    assert not Path("/etc/there").exists()


def test_created_and_started(box: Box, tree: Path) -> None:
    mapped(box, "/b", str(tree), "bind", "idmap", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    box.start(f"{owners('/b/three')} > /tmp/out; exec sleep 100")
    assert box.output() == "1003 2004\n"
    assert box.exec("stat", "-c", "%u", "/b/root") == "1000\n"


def namespaces_with_processes() -> set[str]:
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found.add(os.readlink(f"/proc/{entry}/ns/user"))
            except OSError:
                pass
    return found


def test_plan_says_it(box: Box, tree: Path) -> None:
    mapped(box, "/b", str(tree), "bind", "idmap", uids=maps(0, 1000, 10), gids=maps(0, 2000, 10))
    box.write()
    shown = json.loads(box.ok("plan", "--format", "json", "--bundle", str(box.bundle)))
    (made,) = [op for op in shown if op["call"] == "user_namespace"]
    assert made["args"] == ['"idmap0"', r'"0 1000 10\n"', r'"0 2000 10\n"']
    (set_,) = [op for op in shown if "MOUNT_ATTR_IDMAP" in str(op["args"])]
    assert "userns_fd=@idmap0" in str(set_["args"])
