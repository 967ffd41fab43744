"""What this machine cannot show, in a virtual one (conformance/vm): cgroup v2 with all controllers, under systemd."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.slow]
BROKEN = 125  # the status of conformance/vm/run when there is no machine
Run = Callable[..., "subprocess.CompletedProcess[str]"]
# Where tests/machine.py puts the installed program, which takes a tenth of the time that an interpreter takes there.
PROGRAM = "/opt/pyoci-test/bin/pyoci"


@pytest.fixture(scope="module")
def vm(root: Path, cache: Path) -> Run:
    """`vm("command", ..., layout="v2")` runs a command in a machine; the checkout and our modules are there too."""
    harness = [str(root / "conformance/vm/run"), "--cache", str(cache / "vm"), "--share", f"{sys.prefix}:ro"]

    def run(
        *command: str, layout: str = "v2", timeout: int = 600, tools: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        variables = {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"}
        words = [*harness, "--cgroup", layout, "--timeout", str(timeout)]
        if tools is not None:
            words += ["--share", f"{tools}:ro", "--env", f"TOOLS={tools}"]
        words += [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
        environment = {**os.environ, "PYTHON": sys.executable}
        return subprocess.run(
            [*words, "--", *command], cwd=root, env=environment, capture_output=True, text=True, check=False
        )

    probe = run("true")
    if probe.returncode == BROKEN:
        pytest.skip(f"no virtual machine here: {probe.stderr.strip().splitlines()[:1]}")
    return run


def test_the_harness_passes_status_and_streams(vm: Run) -> None:
    done = vm("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_the_harness_ends_what_takes_too_long(vm: Run) -> None:
    assert vm("sleep", "60", timeout=2).returncode == 124


def test_v2_has_its_controllers(vm: Run) -> None:
    controllers = vm("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()
    assert {"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} <= set(controllers)


@pytest.mark.parametrize(("layout", "unified"), [("hybrid", "/sys/fs/cgroup/unified"), ("v1", "")])
def test_other_layouts(vm: Run, layout: str, unified: str) -> None:
    mounts = [line.split() for line in vm("cat", "/proc/mounts", layout=layout).stdout.splitlines()]
    assert "/sys/fs/cgroup/memory" in [where for _, where, kind, *_ in mounts if kind == "cgroup"]
    assert [where for _, where, kind, *_ in mounts if kind == "cgroup2"] == ([unified] if unified else [])


def passes(vm: Run, *chosen: str, skips: bool = False, installed: bool = False, **more: Any) -> None:
    """These tests pass in a machine; none is skipped, unless some may be.  They are of the program that is `installed`
    there, or of the modules as they are shared."""
    script = shlex.join(["python3", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen])
    if installed:
        script = f"python3 tests/machine.py && exec env PYOCI_TEST_PROGRAM={PROGRAM} {script}"
    done = vm("sh", "-c", script, timeout=900, **more)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and (skips or "skipped" not in done.stdout)


def test_apparmor(vm: Run) -> None:
    """Confined by a profile, in containers; these tests skip themselves on a machine without AppArmor."""
    passes(vm, "tests/test_apparmor.py")


def test_selinux(vm: Run) -> None:
    """Confined by labels, with a policy that the tests load; they skip themselves on a machine without SELinux."""
    passes(vm, "tests/test_selinux.py", layout="selinux")


def test_limits_of_v2(vm: Run) -> None:
    """The tests of v2's limits, which skip themselves on a machine whose controllers v1 has."""
    files = ("tests/test_cgroup_v2.py", "tests/test_container_limits.py", "tests/test_container_block_io.py")
    passes(vm, *files, skips=True)


def test_events_of_v2(vm: Run) -> None:
    """What `events` shows and tells; on this machine the same tests see v1."""
    passes(vm, "tests/test_events.py", skips=True)


def test_what_other_machines_may_not_have(vm: Run) -> None:
    """A network card that is given to a container, and comes back; a limit that only CAP_SYS_RESOURCE raises."""
    find = "modprobe virtio_net; name=$(cd /sys/class/net; ls -d */device | cut -d/ -f1)"
    files = "tests/test_container_netdevices.py tests/test_container_tuning.py"
    run = f"python3 -P -m pytest -q -p no:cacheprovider {files}"
    chosen = "-k 'physical or nice_value_in_a_user'"
    done = vm("sh", "-ec", f"{find}; PYOCI_SPARE_DEVICE=$name exec {run} {chosen}", timeout=600)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("layout", ["v2", "hybrid", "v1"])
def test_units_of_systemd(vm: Run, layout: str) -> None:
    """The tests of --systemd-cgroup, skipped without systemd as process 1; v1 shows the few that differ."""
    few = [] if layout == "v2" else ["-k", "limits or pids or devices or killed or restore"]
    passes(vm, "tests/test_systemd.py", *few, layout=layout, installed=layout == "v2")


def test_checkpoints_of_debian_12(vm: Run) -> None:
    """Its CRIU, which has no no_new_privs in its images, with cgroup2 as systemd mounts it, and with a kernel that has
    what its chains of memory and its page server want.  All of these tests are run where a later CRIU is."""
    words = ["python3", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["tests/test_container_checkpoint.py", "tests/test_restored.py", "tests/test_criu_flags.py"]
    chosen = ("goes_on_counting", "all_about_it", "another_user", "a_chain", "when_it_is_wanted")
    done = vm(*words, "-k", " or ".join(chosen), timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert f"{len(chosen)} passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("layout", ["v2", "hybrid"])
def test_podman(vm: Run, layout: str) -> None:
    """podman as it is, root's and (on v2) a user's."""
    passes(vm, "tests/test_podman_systemd.py", layout=layout, skips=layout != "v2")


def test_engines(vm: Run) -> None:
    """Docker and containerd, and its CRI plugin where crictl has been built (conformance/engines)."""
    found = sorted(Path("/var/cache/pyoci-check").glob("cri-tools-*/crictl"))
    passes(vm, "tests/test_engines_systemd.py", skips=not found, tools=found[-1].parent if found else None)


def test_rootless(vm: Run) -> None:
    """A user by hand with a cgroup of its own, all of whose controllers are there."""
    passes(vm, "tests/test_rootless.py", "-k", "delegated_cgroup_of_v2 or limits_in_a", installed=True)
