"""tmpcopyup: a tmpfs that begins with a copy of what the image has in its place, whatever the image tries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from containers import Box, box, needed  # noqa: F401 - a fixture

from pyoci.errors import PyociError
from pyoci.tree import MOST, listing

LOOK = "busybox find /data | busybox sort | while read f; do stat -c '%n %f %u %g %s' \"$f\"; done"


def paths(root: Path, destination: str) -> list[object]:
    return [entry[0] for entry in listing(str(root), destination, "/mounts/0/options")]


@pytest.fixture
def filled(box: Box) -> Box:  # noqa: F811
    data = box.rootfs / "data"
    (data / "deep" / "er").mkdir(parents=True)
    (data / "deep" / "er" / "file").write_text("content\n")
    (data / "empty").touch()
    (data / "big").write_bytes(os.urandom(300_000))
    (data / "two words").write_text("x")
    (data / "link").symlink_to("deep/er/file")
    (data / "out").symlink_to("/etc/passwd")
    os.mkfifo(data / "fifo", 0o640)
    (data / "empty").chmod(0o4755)
    (data / "deep").chmod(0o2775)
    os.chown(data / "deep", 5, 6)
    os.chown(data / "two words", 7, 8)
    os.chown(data / "link", 9, 9, follow_symlinks=False)
    data.chmod(0o1755)  # not for others to write to: sysctl fs.protected_symlinks is about links in such directories
    return box


class TestContainers:
    pytestmark = needed

    def test_everything_is_copied(self, filled: Box) -> None:
        before = filled.run(LOOK)
        sum_before = filled.run("busybox md5sum /data/big")
        filled.mount("/data", "tmpfs", "tmpfs", "tmpcopyup", "nodev")
        after = filled.run(LOOK)

        def all_but_sizes_of_directories(text: str) -> list[str]:
            lines = [line.rpartition(" ") for line in text.splitlines()]
            return [first + size * (" 4" not in first) for first, _, size in lines]

        assert all_but_sizes_of_directories(after) == all_but_sizes_of_directories(before)
        assert after.count("\n") == 10
        assert filled.run("busybox md5sum /data/big") == sum_before
        assert filled.run("cat /data/link") == "content\n"

    def test_what_is_written_does_not_reach_the_image(self, filled: Box) -> None:
        filled.mount("/data", "tmpfs", "tmpfs", "tmpcopyup")
        filled.run("echo new >/data/deep/er/file; touch /data/more")
        assert (filled.rootfs / "data/deep/er/file").read_text() == "content\n"
        assert not (filled.rootfs / "data/more").exists()
        assert filled.run("busybox stat -f -c %T /data").strip() == "tmpfs"

    def test_a_directory_that_is_not_there(self, box: Box) -> None:  # noqa: F811
        box.mount("/nothing", "tmpfs", "tmpfs", "tmpcopyup", "mode=750")
        assert box.run("stat -c %a /nothing; ls -a /nothing | wc -l") == "750\n2\n"

    def test_a_mode_that_was_asked_for(self, filled: Box) -> None:
        filled.mount("/data", "tmpfs", "tmpfs", "tmpcopyup", "mode=700")
        assert filled.run("stat -c %a /data") == "700\n"

    def test_read_only(self, filled: Box) -> None:
        filled.mount("/data", "tmpfs", "tmpfs", "tmpcopyup", "ro")
        filled.process["args"] = ["sh", "-c", "cat /data/link; touch /data/x"]
        filled.write()
        done = filled("run", "--bundle", str(filled.bundle), filled.id)
        assert done.stdout == "content\n" and "Read-only file system" in done.stderr

    def test_a_tmpfs_that_is_too_small(self, filled: Box) -> None:
        filled.mount("/data", "tmpfs", "tmpfs", "tmpcopyup", "size=64k")
        error = filled.refused()
        assert "/mounts/" in error and "sendfile" in error and "no space left on device" in error

    def test_an_earlier_mount_is_not_the_image(self, filled: Box) -> None:
        other = filled.folder / "other"
        other.mkdir()
        (other / "theirs").touch()
        filled.mount("/data", "bind", str(other), "bind")
        filled.mount("/data", "tmpfs", "tmpfs", "tmpcopyup")
        assert filled.run("ls -a /data | wc -l") == "2\n"

    def test_owners_in_a_user_namespace(self, filled: Box) -> None:
        filled.namespace("user")
        ids = [{"containerID": 0, "hostID": 100000, "size": 100}]
        filled.linux.update({"uidMappings": ids, "gidMappings": ids})
        for directory, names, files in os.walk(filled.rootfs):
            for name in (".", *names, *files):
                os.chown(f"{directory}/{name}", 100000, 100000, follow_symlinks=False)
        os.chown(filled.rootfs / "data/two words", 100007, 100008)
        os.chown(filled.rootfs / "data/big", 3, 3)  # not mapped: it becomes the container's root's
        filled.mount("/data", "tmpfs", "tmpfs", "tmpcopyup")
        assert filled.run("stat -c '%u %g' '/data/two words' /data/big") == "7 8\n0 0\n"

    def test_a_link_in_the_place_of_a_directory_leads_into_the_image(self, box: Box) -> None:  # noqa: F811
        (box.rootfs / "real").mkdir()
        (box.rootfs / "real" / "mine").touch()
        (box.rootfs / "data").symlink_to("/real")
        box.mount("/data", "tmpfs", "tmpfs", "tmpcopyup")
        assert box.run("ls /real") == "mine\n"
        (box.rootfs / "data").unlink()
        (box.rootfs / "data").symlink_to("../../../../../../etc")
        assert "passwd" not in box.run("ls -a /etc").split()


def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").touch()
    (root / "up").symlink_to("../outside")
    (root / "absolute").symlink_to(str(outside))
    (root / "loop").symlink_to("loop")
    (root / "file").touch()
    (root / "dir").mkdir()
    (root / "dir" / "out").symlink_to(str(outside))
    for name in ("up", "absolute", "loop", "file", "file/x", "nothing", "../outside", "dir/../../outside"):
        assert paths(root, f"/{name}") == [], name
    # a link in the directory is copied as a link
    assert paths(root, "/dir") == ["", "out"]
    assert paths(root, "/") == ["", "absolute", "dir", "dir/out", "file", "loop", "up"]


def test_devices_and_sockets_are_left_out(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    if os.geteuid() == 0:
        os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    (tmp_path / "file").touch()
    assert paths(tmp_path, "/") == ["", "file"]


def test_more_than_init_should_copy(tmp_path: Path) -> None:
    for number in range(MOST + 1):
        (tmp_path / str(number)).touch()
    with pytest.raises(PyociError, match=rf"/mounts/0/options.*{MOST} files at most"):
        paths(tmp_path, "/")
