"""AppArmor profiles that confine real containers: where the kernel has it (see tests/test_vm.py)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import COUNTER, Images, works
from containers import Box, box, needed  # noqa: F401 - a fixture

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
PARSER = shutil.which("apparmor_parser", path="/usr/sbin:/sbin:/usr/bin")
pytestmark = [
    *needed,
    pytest.mark.skipif(
        not (ENABLED.exists() and ENABLED.read_text().startswith("Y") and PARSER),
        reason="no AppArmor here: these run in the virtual machine (tests/test_vm.py)",
    ),
]
NAME, OTHER = "pyoci-test-profile", "pyoci-test-other"
PROFILE = f"""
profile {NAME} flags=(attach_disconnected,mediate_deleted) {{
  file,
  capability,
  signal,
  deny /secret r,
  deny /tmp/** w,
}}
"""


@pytest.fixture
def confined(box: Box) -> Iterator[Box]:  # noqa: F811
    assert PARSER is not None
    subprocess.run([PARSER, "--replace"], input=PROFILE, text=True, check=True)
    (box.rootfs / "secret").write_text("secret\n")
    (box.rootfs / "open").write_text("open\n")
    box.process["apparmorProfile"] = NAME
    try:
        yield box
    finally:
        box.close()
        box.ids.clear()
        subprocess.run([PARSER, "--remove"], input=PROFILE, text=True, check=True)


def test_the_container_is_confined(confined: Box) -> None:
    assert confined.run("cat /proc/self/attr/current").strip() == f"{NAME} (enforce)"
    assert confined.run("cat /open; cat /secret 2>&1; true") == "open\ncat: can't open '/secret': Permission denied\n"
    assert "Permission denied" in confined.run("touch /tmp/x 2>&1; true")


def test_with_no_new_privileges(confined: Box) -> None:
    confined.process["noNewPrivileges"] = True
    assert confined.run("cat /proc/self/attr/current").strip() == f"{NAME} (enforce)"


def test_exec(confined: Box) -> None:
    """A further process has the container's profile, or the one that it is given."""
    confined.start()
    assert confined.exec("cat", "/proc/self/attr/current").strip() == f"{NAME} (enforce)"
    other = confined.exec("cat", "/proc/self/attr/current", options=["--apparmor", "unconfined"])
    assert other.strip() == "unconfined"
    error = confined.fails("exec", "--apparmor", "no-such-profile", confined.id, "true")
    assert "/process/apparmorProfile" in error and "no-such-profile" in error


@works
def test_a_restored_container(confined: Box) -> None:
    """It has its profile again; another one only if --lsm-profile says so, which does not come from the images."""
    # what CRIU lets the processes themselves say of what only they can see
    profile = PROFILE.replace("  signal,\n", "  signal,\n  network,\n  unix,\n")
    assert PARSER is not None
    subprocess.run([PARSER, "--replace"], input=profile, text=True, check=True)
    confined.process["noNewPrivileges"] = True
    confined.start(COUNTER.replace("/tmp/", "/dev/shm/"))
    images = Images(confined)
    images.checkpoint()
    images.restore()
    current = ("cat", "/proc/1/attr/current")
    assert confined.exec(*current).strip() == f"{NAME} (enforce)"
    assert "Permission denied" in confined("exec", confined.id, "cat", "/secret").stderr
    confined.ok("delete", "--force", confined.id)
    other = profile.replace(NAME, OTHER)
    subprocess.run([PARSER, "--replace"], input=other, text=True, check=True)
    try:
        confined.process["apparmorProfile"] = OTHER
        assert f"/process/apparmorProfile: {NAME}" in images.refused()
        images.restore("--lsm-profile", f"apparmor:{OTHER}")
        assert confined.exec(*current).strip() == f"{OTHER} (enforce)"
        confined.ok("delete", "--force", confined.id)
    finally:
        subprocess.run([PARSER, "--remove"], input=other, text=True, check=True)


def test_a_profile_that_is_not_loaded(box: Box) -> None:  # noqa: F811
    box.process["apparmorProfile"] = "no-such-profile"
    error = box.refused()
    assert "/process/apparmorProfile" in error and "no such file or directory" in error and "aa-status" in error


def test_startcontainer_hooks_and_a_volume_over_proc(confined: Box) -> None:
    """A file in the place of the attribute gets nothing (CVE-2019-16884)."""
    fake = confined.folder / "fake"
    (fake / "self" / "attr" / "apparmor").mkdir(parents=True)
    (fake / "self" / "attr" / "apparmor" / "exec").touch()
    confined.config["mounts"] = [entry for entry in confined.config["mounts"] if entry["destination"] != "/proc"]
    confined.mount("/proc", "bind", str(fake), "bind")
    confined.linux["maskedPaths"] = confined.linux["readonlyPaths"] = []
    assert "Permission denied" in confined.run("cat /secret 2>&1; true")
    assert (fake / "self/attr/apparmor/exec").read_text() == ""
