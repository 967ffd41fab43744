"""Every mount option of the specification's table, and the root's propagation: what the container's kernel says of them
(config.md#linux-mount-options, config-linux.md#rootfs-mount-propagation)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from containers import COMMAND, LIMIT, Box, box, needed  # noqa: F401 - a fixture

from pyoci.plan.options import ATTRIBUTES, KNOWN, NOTHING, OF_FSTAB, SUPERBLOCK, MountOptions

pytestmark = needed
ALL = "ro,nosuid,nodev,noexec,nosymfollow,noatime,nodiratime"
# option -> (options of the source, words that mountinfo must have, words that it must not have)
EXPECTED: dict[str, tuple[str, set[str], set[str]]] = {
    "ro": ("rw", {"ro"}, {"rw"}),
    "rw": (ALL, {"rw", "nosuid", "noexec"}, {"ro"}),
    "nosuid": ("suid", {"nosuid"}, set()),
    "suid": (ALL, {"ro", "nodev"}, {"nosuid"}),
    "nodev": ("dev", {"nodev"}, set()),
    "dev": (ALL, {"ro", "nosuid"}, {"nodev"}),
    "noexec": ("exec", {"noexec"}, set()),
    "exec": (ALL, {"ro", "nosuid"}, {"noexec"}),
    "nosymfollow": ("relatime", {"nosymfollow"}, set()),
    "symfollow": (ALL, {"ro", "nosuid"}, {"nosymfollow"}),
    "nodiratime": ("relatime", {"nodiratime", "relatime"}, set()),
    "diratime": (ALL, {"noatime"}, {"nodiratime"}),
    "noatime": ("relatime", {"noatime"}, {"relatime"}),
    "atime": (ALL, {"relatime"}, {"noatime"}),
    "relatime": ("strictatime", {"relatime"}, set()),
    "norelatime": ("relatime", set(), {"relatime", "noatime"}),
    "strictatime": ("noatime", set(), {"relatime", "noatime"}),
    "nostrictatime": ("strictatime", {"relatime"}, {"noatime"}),
}


class Line:
    """Options of a mount and of its file system, from a line of mountinfo (proc_pid_mountinfo(5))."""

    def __init__(self, line: str) -> None:
        words = line.split()
        self.point, self.options = words[4], set(words[5].split(","))
        self.superblock = set(words[words.index("-") + 3].split(","))


def lines(text: str) -> dict[str, Line]:
    """By mount point, the last one there."""
    return {(line := Line(text)).point: line for text in text.splitlines()}


def test_the_table_is_whole() -> None:
    assert set(EXPECTED) == set(ATTRIBUTES)
    rest = set(KNOWN) - set(ATTRIBUTES) - {f"r{name}" for name in ATTRIBUTES}
    propagation = {f"{r}{name}" for r in ("", "r") for name in ("shared", "slave", "private", "unbindable")}
    others = {"bind", "rbind", "tmpcopyup", "idmap", "ridmap", "remount"}
    assert rest == {*SUPERBLOCK, *NOTHING, *OF_FSTAB, *propagation, *others}


def test_options_that_only_mount_8_knows(box: Box) -> None:  # noqa: F811
    """They are taken as mount(8) takes them, from whoever has /etc/fstab's line; the kernel never hears of them."""
    implied = {"user": "nosuid,nodev,noexec", "owner": "nosuid,nodev", "auto": "", "x-gvfs-show": "", "comment=a": ""}
    for number, name in enumerate([*OF_FSTAB, "x-systemd.automount", "X-mount.idmap=b", "comment=any thing"]):
        box.mount(f"/{number}", "tmpfs", "tmpfs", name)
    for name in implied:
        box.mount(f"/of-{name}", "tmpfs", "tmpfs", name)
    box.mount("/overridden", "tmpfs", "tmpfs", "user", "exec", "dev")
    found = lines(box.run("cat /proc/self/mountinfo"))
    for name, words in implied.items():
        assert found[f"/of-{name}"].options == {"rw", "relatime", *words.split(",")} - {""}, name
    assert found["/overridden"].options == {"rw", "relatime", "nosuid"}
    box.id = box.new_id()
    box.mount("/unknown", "tmpfs", "tmpfs", "nobody-knows-this")
    assert "nobody-knows-this" in box.refused()


def test_several_options_in_one(box: Box) -> None:  # noqa: F811
    """They go into one list for mount(2) (config.md#linux-mount-options), which takes commas for what they are."""
    box.mount("/a", "tmpfs", "tmpfs", "size=64k,mode=701", "nr_inodes=50,ro,", "")
    found = lines(box.run("cat /proc/self/mountinfo"))["/a"]
    assert {"size=64k", "mode=701", "nr_inodes=50", "ro"} <= found.superblock
    box.id = box.new_id()
    box.mount("/b", "tmpfs", "tmpfs", "size=64k,nobody-knows-this")
    assert "nobody-knows-this" in box.refused()


def test_commas_that_are_no_ends() -> None:
    label = 'context="system_u:object_r:tmp_t:s0:c1,c2"'
    assert MountOptions([f"size=1,{label},mode=700"]).data == [
        ("size", "1"), ("context", '"system_u:object_r:tmp_t:s0:c1,c2"'), ("mode", "700"),
    ]  # fmt: skip
    for layers in ("lowerdir=/a,b:/c", "upperdir=/a,b", "workdir=/a,b", "lowerdir+=/a,b", "datadir+=/a,b"):
        name, _, value = layers.partition("=")
        assert MountOptions([layers]).data == [(name, value)]


@pytest.mark.parametrize("recursive", ["", "r"])
def test_attributes(box: Box, recursive: str) -> None:  # noqa: F811
    """Each alone, on a bind mount of a tree that says otherwise; with the "r" in front it reaches what is below."""
    before = [":"]
    for name, (given, _, _) in EXPECTED.items():
        place = box.folder / "tree" / name
        place.mkdir(parents=True)
        before += [f"mount -t tmpfs tmpfs {place}", f"mkdir {place}/inner", f"mount -t tmpfs tmpfs {place}/inner"]
        before += [f"mount -o remount,bind,{given} {path}" for path in (f"{place}/inner", place)]
        box.mount(f"/b/{name}", "bind", str(place), "rbind", recursive + name)
    script = "; ".join(before)
    found = lines(box.unshared(f"{script}; cat /proc/self/mountinfo > {box.folder}/before", "cat /proc/self/mountinfo"))
    outside = lines((box.folder / "before").read_text())
    for name, (_, present, absent) in EXPECTED.items():
        options = found[f"/b/{name}"].options
        assert present <= options and not absent & options, (name, options)
        below = found[f"/b/{name}/inner"].options
        if recursive:
            assert present <= below and not absent & below, (name, below)
        else:
            assert below == outside[str(box.folder / "tree" / name / "inner")].options, name


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_attributes_of_a_new_file_system(box: Box, name: str) -> None:  # noqa: F811
    """The opposite is said before: the last one counts."""
    opposite = {"atime": "noatime", "relatime": "noatime", "norelatime": "relatime", "nostrictatime": "strictatime"}
    other = opposite.get(name) or (name[2:] if name.startswith("no") else f"no{name}")
    other = {"ro": "rw", "rw": "ro", "strictatime": "noatime"}.get(name, other)
    box.mount("/t", "tmpfs", "tmpfs", other, name)
    options = lines(box.run("cat /proc/self/mountinfo"))["/t"].options
    _, present, absent = EXPECTED[name]
    assert not absent & options and present & {name, "relatime", "rw"} <= options, options


def test_what_attributes_do(box: Box) -> None:  # noqa: F811
    """Not only what mountinfo shows: programs, links, devices and times of access."""
    box.capabilities("CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_FOWNER")
    for option in ("exec", "noexec", "symfollow", "nosymfollow", "dev", "nodev", "strictatime", "noatime"):
        box.mount(f"/t/{option}", "tmpfs", "tmpfs", option)
    script = """
        cd /t
        for d in exec noexec; do cp /bin/busybox $d/true; ./$d/true 2>/dev/null && echo $d; done
        for d in symfollow nosymfollow; do
            echo > $d/file; ln -s file $d/link; cat $d/link >/dev/null 2>&1 && echo $d
        done
        for d in dev nodev; do mknod $d/null c 1 3; (echo > $d/null) 2>/dev/null && echo $d; done
        for d in strictatime noatime; do
            echo > $d/file; touch -d @1000 $d/file; cat $d/file > /dev/null
            [ $(stat -c %X $d/file) != 1000 ] && echo $d
        done; true
    """
    for name in ("cp", "ln", "["):
        (box.rootfs / "bin" / name).symlink_to("busybox")
    assert box.run(script).split() == ["exec", "symfollow", "dev", "strictatime"]


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        (("sync",), {"sync"}, set()), (("dirsync",), {"dirsync"}, {"sync"}), (("lazytime",), {"lazytime"}, set()),
        (("mand",), {"mand"}, set()), (("sync", "async"), set(), {"sync"}), (("async",), {"rw"}, {"sync"}),
        (("lazytime", "nolazytime"), set(), {"lazytime"}), (("mand", "nomand"), set(), {"mand"}),
        (("defaults",), {"rw"}, {"sync", "dirsync", "lazytime", "mand"}),
    ],
)  # fmt: skip
def test_flags_of_a_file_system(box: Box, options: tuple[str, ...], present: set[str], absent: set[str]) -> None:  # noqa: F811
    box.mount("/t", "tmpfs", "tmpfs", *options)
    found = lines(box.run("cat /proc/self/mountinfo"))["/t"]
    assert present <= found.superblock and not absent & found.superblock, found.superblock
    assert found.options == {"rw", "relatime"}


def test_what_the_kernel_has_no_flag_for_changes_nothing(box: Box) -> None:  # noqa: F811
    for name in NOTHING:
        box.mount(f"/{name}", "tmpfs", "tmpfs", name)
    found = lines(box.run("cat /proc/self/mountinfo"))
    for name in NOTHING:
        assert (found[f"/{name}"].options, "rw" in found[f"/{name}"].superblock) == ({"rw", "relatime"}, True), name


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("shared", "host-hidden nested-seen inside-only"),
        ("slave", "host-seen nested-hidden inside-only"),
        ("private", "host-hidden nested-hidden inside-only"),
        ("unbindable", "host-hidden unbindable inside-only"),
        ("", "host-seen nested-hidden inside-only"),
    ],
)
def test_propagation_of_the_root_from_both_sides(box: Box, value: str, expected: str) -> None:  # noqa: F811
    """The root is a mount that the host shares.  What the host mounts in it later is seen in a slave only; what the
    container mounts in a copy of its root is seen in a shared one only; the host sees none of it."""
    if value:
        box.linux["rootfsPropagation"] = value
    box.capabilities("CAP_SYS_ADMIN")
    root: Path = box.rootfs
    for name in ("later", "copy", "own"):
        (root / name).mkdir()
    box.process["args"] = ["sh", "-c", "exec sleep 100"]
    box.write()
    inside = (
        "test -e /later/mark && echo host-seen || echo host-hidden; "
        "if mount --bind / /copy 2>/dev/null; then mount -t tmpfs nested /copy/own; "
        "grep -q ' /own .* nested ' /proc/self/mountinfo && echo nested-seen || echo nested-hidden; "
        "else echo unbindable; mount -t tmpfs nested /own; fi; grep -q nested /proc/self/mountinfo || echo nothing"
    )
    script = (
        f"mount --bind {root} {root}; mount --make-shared {root}; "
        '"$@" create --bundle "$B" "$I" >/dev/null </dev/null; "$@" start "$I"; '
        f"mount -t tmpfs tmpfs {root}/later; touch {root}/later/mark; "
        f'"$@" exec "$I" sh -c "{inside}"; '
        'grep -q " nested " /proc/self/mountinfo && echo leaked || echo inside-only; "$@" delete --force "$I"'
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *COMMAND, "--root", str(box.states)],
        env={**os.environ, "B": str(box.bundle), "I": box.id}, capture_output=True, text=True, timeout=LIMIT,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (expected.split(), "")
