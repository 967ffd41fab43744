"""SELinux labels that confine real containers: where the kernel has it (see tests/test_vm.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import COUNTER, Images, count, works
from containers import Box, box, needed, until  # noqa: F401 - a fixture

MOUNTED = Path("/sys/fs/selinux")
COMPILER = shutil.which("secilc", path="/usr/bin")
POLICY = Path(__file__).parent / "selinux.cil"
OURS = "system_u:system_r:kernel_t:s0"
pytestmark = [
    *needed,
    pytest.mark.skipif(
        not ((MOUNTED / "load").exists() and COMPILER),
        reason="no SELinux here: these run in the virtual machine (tests/test_vm.py)",
    ),
]
LABEL = "system_u:system_r:container_t:s0:c1,c2"
OTHER = "system_u:system_r:other_t:s0"
FILES = "system_u:object_r:container_file_t:s0:c1"
SECRET = "system_u:object_r:secret_t:s0"  # noqa: S105 - a label
CURRENT = "cat /proc/self/attr/current"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The policy of the test, enforced: only on a machine that has none yet, as a throw-away one."""
    current = Path("/proc/self/attr/current").read_text().rstrip("\0\n")
    if current != "kernel" and not current.startswith(OURS):
        pytest.skip(f"this machine has a policy of its own: we are {current}")
    binary = tmp_path_factory.mktemp("policy") / "policy"
    assert COMPILER is not None
    subprocess.run([COMPILER, "-c", "31", "-o", str(binary), "-f", "/dev/null", str(POLICY)], check=True)
    (MOUNTED / "load").write_bytes(binary.read_bytes())
    (MOUNTED / "enforce").write_text("1")
    yield
    (MOUNTED / "enforce").write_text("0")


@pytest.fixture
def labelled(box: Box, policy: None) -> Box:  # noqa: F811
    """A container with a label, and in its image a file that it may not read."""
    file = box.rootfs / "secret"
    file.write_text("secret\n")
    os.setxattr(file, "security.selinux", SECRET.encode())
    box.process["selinuxLabel"] = LABEL
    return box


def test_the_container_is_confined(labelled: Box) -> None:
    assert labelled.run(CURRENT).rstrip("\0\n") == LABEL
    assert "Permission denied" in labelled.run("cat /secret 2>&1; true")
    del labelled.process["selinuxLabel"]
    labelled.id = labelled.new_id()
    assert labelled.run("cat /secret") == "secret\n"


@pytest.mark.parametrize("wanted", [False, True])
def test_with_no_new_privileges(labelled: Box, wanted: bool) -> None:
    labelled.process["noNewPrivileges"] = wanted
    assert labelled.run(CURRENT).rstrip("\0\n") == LABEL


def test_exec(labelled: Box) -> None:
    labelled.start()
    assert labelled.exec("cat", "/proc/self/attr/current").rstrip("\0\n") == LABEL
    options = ["--process-label", OTHER]
    assert labelled.exec("cat", "/proc/self/attr/current", "/secret", options=options).split("\0")[0] == OTHER
    error = labelled.fails("exec", "--process-label", "system_u:system_r:no_such_t:s0", labelled.id, "true")
    assert "/process/selinuxLabel" in error and "no_such_t" in error and "invalid argument" in error


@works
def test_a_restored_container(labelled: Box) -> None:
    """It has its label again, or is not restored at all: Debian's CRIU is built without SELinux."""
    labelled.process["noNewPrivileges"] = True
    labelled.start(COUNTER)
    until(lambda: count(labelled) > 2)
    images = Images(labelled)
    images.checkpoint()
    before = count(labelled)
    status, said = images.attempt(*images.words())
    if status:
        assert f"/process/selinuxLabel: {OURS}" in said and "which is CRIU's own" in said
        labelled.gone()
        assert count(labelled) == before
        return
    assert said == ""
    assert labelled.exec("cat", "/proc/1/attr/current").rstrip("\0\n") == LABEL
    assert "Permission denied" in labelled("exec", labelled.id, "cat", "/secret").stderr


def test_a_label_that_the_policy_does_not_know(labelled: Box) -> None:
    labelled.process["selinuxLabel"] = "nonsense"
    error = labelled.refused()
    assert "/process/selinuxLabel" in error and "nonsense" in error and "invalid argument" in error


def test_new_file_systems_have_the_mount_label(labelled: Box) -> None:
    labelled.linux["mountLabel"] = FILES
    labelled.mount("/t", "tmpfs", "tmpfs")
    pid = labelled.start("echo x > /t/file; echo $? > /tmp/out; sleep 100")
    assert labelled.output() == "0\n"
    for place in ("t", "t/file", "dev", "dev/shm", "dev/null", "dev/pts", "dev/mqueue"):
        assert os.getxattr(f"/proc/{pid}/root/{place}", "security.selinux").rstrip(b"\0").decode() == FILES, place
    assert os.getxattr(f"/proc/{pid}/root/proc/version", "security.selinux").rstrip(b"\0").decode() != FILES


def test_a_mount_label_that_the_policy_does_not_know(labelled: Box) -> None:
    labelled.linux["mountLabel"] = "nonsense"
    error = labelled.refused()
    assert "/linux/mountLabel" in error or "/mounts/" in error
    assert "invalid argument" in error


def test_a_volume_over_proc(labelled: Box) -> None:
    """A file in the place of the attribute gets nothing (CVE-2019-16884)."""
    fake = labelled.folder / "fake"
    (fake / "self" / "attr").mkdir(parents=True)
    (fake / "self" / "attr" / "exec").touch()
    labelled.config["mounts"] = [entry for entry in labelled.config["mounts"] if entry["destination"] != "/proc"]
    labelled.mount("/proc", "bind", str(fake), "bind")
    labelled.linux["maskedPaths"] = labelled.linux["readonlyPaths"] = []
    assert "Permission denied" in labelled.run("cat /secret 2>&1; true")
    assert (fake / "self/attr/exec").read_text() == ""
