"""HOME of a process whose environment has none: by /etc/passwd, whatever the image has in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import Box, box, needed  # noqa: F401 - a fixture
from hypothesis import given
from hypothesis import strategies as st

from pyoci.host import Host, lacks_home
from pyoci.passwd import home, place
from pyoci.plan.container import PlanOptions, plan_container
from pyoci.plan.ops import Vector
from pyoci.spec.types import Linux, Mount, Namespace, Process, Root, Spec

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
1000:x:0:0:a name that is a number:/wrong:/bin/sh
me:x:1000:1000:Me,,,:/home/me:/bin/sh
me:x:1000:1000:again:/later:/bin/sh
relative:x:1001:1001::home:/bin/sh
empty:x:1002:1002:::/bin/sh
short:x:1003:1003
zeros:x:01004:1004::/zeros:/bin/sh
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    return tmp_path


@pytest.mark.parametrize(
    ("uid", "expected"),
    [(0, "/root"), (1000, "/home/me"), (1001, "/"), (1002, "/"), (1003, "/"), (1004, "/"), (7, "/"), (10, "/")],
)
def test_the_first_line_with_the_number(image: Path, uid: int, expected: str) -> None:
    assert home(str(image), uid) == expected


def outside(image: Path) -> Path:
    """A file on the host that would say something else."""
    other = image.parent / f"{image.name}-outside"
    other.write_text("root:x:0:0:root:/outside:/bin/sh\n")
    return other


def link_to_the_host(image: Path) -> None:
    (image / "etc/passwd").unlink()
    (image / "etc/passwd").symlink_to(outside(image))


def climbing_link(image: Path) -> None:
    (image / "etc/passwd").unlink()
    (image / "etc/passwd").symlink_to("../" * 20 + str(outside(image))[1:])


def loop(image: Path) -> None:
    (image / "etc/passwd").unlink()
    (image / "etc/passwd").symlink_to("passwd")


def fifo(image: Path) -> None:
    (image / "etc/passwd").unlink()
    os.mkfifo(image / "etc/passwd")


def directory(image: Path) -> None:
    (image / "etc/passwd").unlink()
    (image / "etc/passwd").mkdir()


def below_a_file(image: Path) -> None:
    (image / "etc/passwd").unlink()
    (image / "etc").rmdir()
    (image / "etc").write_text("x")


def nothing(image: Path) -> None:
    (image / "etc/passwd").unlink()


def large(image: Path) -> None:
    with (image / "etc/passwd").open("wb") as file:
        file.truncate(1 << 33)


def binary(image: Path) -> None:
    (image / "etc/passwd").write_bytes(b"root:x:0:0::/\xff\xfe:/bin/sh\n")


def nul(image: Path) -> None:
    (image / "etc/passwd").write_bytes(b"root:x:0:0::/a\0b:/bin/sh\n")


@pytest.mark.parametrize(
    "hostile",
    [link_to_the_host, climbing_link, loop, fifo, directory, below_a_file, nothing, large, binary, nul],
)
def test_a_hostile_image(image: Path, hostile: Callable[[Path], None]) -> None:
    hostile(image)
    assert home(str(image), 0) == "/"


def test_a_device_is_not_opened(image: Path) -> None:
    nothing(image)
    try:
        os.mknod(image / "etc/passwd", 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making devices needs root")
    assert home(str(image), 0) == "/"


def test_links_within_the_image(image: Path) -> None:
    (image / "etc/passwd").rename(image / "etc/real")
    (image / "store").symlink_to("/etc")
    (image / "etc/passwd").symlink_to("/../store/../etc/./real")
    assert home(str(image), 0) == "/root"


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    from pyoci.passwd import search

    fd = os.memfd_create("passwd")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        found = search(fd, 0)
    finally:
        os.close(fd)
    assert found.startswith("/") and "\0" not in found and "\n" not in found


@pytest.mark.parametrize(
    ("env", "lacks"),
    [((), True), (("HOME=",), True), (("HOME=/",), False), (("HOMEX=1",), True), (("HOME=", "HOME=x"), False),
     (("HOME=x", "HOME="), True)],
)
def test_what_counts_as_none(env: tuple[str, ...], lacks: bool) -> None:
    assert lacks_home(env) is lacks


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ((), ("/root", "/etc/passwd")),
        ((Mount("/etc/passwd", "bind", "/host/file", ("bind", "ro")),), ("/host/file", "")),
        ((Mount("/etc//./passwd", "", "file", ("rbind",)),), ("/bundle/file", "")),
        ((Mount("/etc", "bind", "/host/etc", ("bind",)),), ("/host/etc", "/passwd")),
        ((Mount("/", "bind", "/other", ("bind",)),), ("/other", "/etc/passwd")),
        ((Mount("/etc", "tmpfs", "tmpfs"),), ("", "/etc/passwd")),
        ((Mount("/etc", "tmpfs", "tmpfs", ("tmpcopyup",)),), ("/root", "/etc/passwd")),
        ((Mount("/etc", "tmpfs"), Mount("/etc/passwd", "", "/file", ("bind",))), ("/file", "")),
        ((Mount("/etc/passwd", "", "/file", ("bind",)), Mount("/etc", "tmpfs")), ("", "/etc/passwd")),
        ((Mount("/etc/passwd", "", "", ("remount", "bind", "ro")),), ("/root", "/etc/passwd")),
        ((Mount("/etc", "", "", ("rslave",)), Mount("/etcetera", "tmpfs")), ("/root", "/etc/passwd")),
    ],
)
def test_what_mounts_cover(mounts: tuple[Mount, ...], expected: tuple[str, str]) -> None:
    assert place(mounts, "/root", "/bundle") == expected


def test_the_plan_has_it() -> None:
    def env(given: tuple[str, ...], found: str) -> list[object]:
        spec = Spec("1.2.0", Root("r"), (), Process("/", ("a",), given), linux=Linux(namespaces=(Namespace("mount"),)))
        host = Host()
        host.home = found
        (execve,) = [op for op in plan_container(spec, host, PlanOptions("c", "/b")).ops if op.call == "execve"][:1]
        vector = execve.args[2]
        assert isinstance(vector, Vector)
        return list(vector.items)

    assert env(("A=1", "HOME="), "/home/me") == [b"A=1", b"HOME=/home/me"]
    assert env(("HOME=/x",), "") == [b"HOME=/x"]


class TestContainers:
    pytestmark = needed

    @pytest.fixture
    def house(self, box: Box) -> Box:  # noqa: F811
        (box.rootfs / "etc/passwd").write_text(PASSWD)
        box.process["env"] = ["PATH=/bin"]
        return box

    def test_of_the_containers_process(self, house: Box) -> None:
        assert house.run("echo $HOME") == "/root\n"
        house.process["user"] = {"uid": 1000, "gid": 1000}
        house.process["env"] = ["PATH=/bin", "HOME="]
        house.process["args"] = ["cat", "/proc/self/environ"]
        assert house.run().split("\0")[:2] == ["PATH=/bin", "HOME=/home/me"]
        house.process["user"] = {"uid": 4242, "gid": 0}
        assert "HOME=/\0" in house.run()

    def test_what_the_configuration_says_stays(self, house: Box) -> None:
        house.process["env"] = ["PATH=/bin", "HOME=relative"]
        assert house.run("echo $HOME") == "relative\n"

    def test_a_file_over_the_images(self, house: Box) -> None:
        (house.folder / "passwd").write_text("root:x:0:0::/elsewhere:/bin/sh\n")
        house.mount("/etc/passwd", "bind", str(house.folder / "passwd"), "bind", "ro")
        assert house.run("echo $HOME") == "/elsewhere\n"

    def test_of_exec(self, house: Box) -> None:
        """Read in the container as it is now: with what it has mounted, and what has been written to it."""
        (house.folder / "passwd").write_text("root:x:0:0::/elsewhere:/bin/sh\n")
        house.mount("/etc/passwd", "bind", str(house.folder / "passwd"), "bind")
        house.start()
        assert house.exec("sh", "-c", "echo $HOME") == "/elsewhere\n"
        assert house.exec("sh", "-c", "echo $HOME", options=["--env", "HOME=/given"]) == "/given\n"
        assert house.exec("sh", "-c", "echo $HOME", options=["--user", "1000"]) == "/\n"
        house.exec("sh", "-c", "echo 'me:x:1000:1000::/new:' >> /etc/passwd")
        assert house.exec("sh", "-c", "echo $HOME", options=["--user", "1000"]) == "/new\n"

    def test_of_exec_by_a_process_json(self, house: Box) -> None:
        house.start()
        file = house.folder / "process.json"
        document = {"cwd": "/", "args": ["/bin/sh", "-c", "echo $HOME"], "user": {"uid": 1000, "gid": 0}}
        file.write_text(json.dumps(document))
        assert house.ok("exec", "--process", str(file), house.id) == "/home/me\n"

    def test_a_running_container_cannot_point_out_of_its_root(self, house: Box) -> None:
        other = outside(house.folder)
        house.start()
        house.exec("sh", "-c", f"rm /etc/passwd; busybox ln -s {other} /etc/passwd")
        assert house.exec("sh", "-c", "echo $HOME") == "/\n"
        house.exec("sh", "-c", "rm /etc/passwd; busybox mkfifo /etc/passwd", options=["--env", "HOME=/"])
        assert house.exec("sh", "-c", "echo $HOME") == "/\n"

    def test_in_a_user_namespace(self, house: Box) -> None:
        house.namespace("user")
        house.linux["uidMappings"] = house.linux["gidMappings"] = [
            {"containerID": 0, "hostID": 100000, "size": 65536}
        ]
        house.start()
        assert house.exec("sh", "-c", "echo $HOME") == "/root\n"
