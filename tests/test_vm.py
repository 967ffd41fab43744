"""What this machine cannot show, in a virtual one (conformance/vm): cgroup v2 with all controllers, under systemd."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.slow]
BROKEN = 125  # the status of conformance/vm/run when there is no machine
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def vm(root: Path, cache: Path) -> Run:
    """`vm("command", ..., layout="v2")` runs a command in a machine; the checkout and our modules are there too."""
    harness = [str(root / "conformance/vm/run"), "--cache", str(cache / "vm"), "--share", f"{sys.prefix}:ro"]

    def run(*command: str, layout: str = "v2", timeout: int = 600) -> subprocess.CompletedProcess[str]:
        variables = {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"}
        words = [*harness, "--cgroup", layout, "--timeout", str(timeout)]
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


def test_apparmor(vm: Run) -> None:
    """Confined by a profile, in containers; these tests skip themselves on a machine without AppArmor."""
    done = vm("python3", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_apparmor.py", timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_selinux(vm: Run) -> None:
    """Confined by labels, with a policy that the tests load; they skip themselves on a machine without SELinux."""
    words = ("python3", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_selinux.py")
    done = vm(*words, layout="selinux", timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_limits_of_v2(vm: Run) -> None:
    """The tests of v2's limits, which skip themselves on a machine whose controllers v1 has."""
    pytest_there = ["python3", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = vm(*pytest_there, "tests/test_cgroup_v2.py", "tests/test_container_limits.py", timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_events_of_v2(vm: Run) -> None:
    """What `events` shows and tells; on this machine the same tests see v1."""
    words = ("python3", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_events.py")
    done = vm(*words, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


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
    pytest_there = ["python3", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_systemd.py"]
    chosen = [] if layout == "v2" else ["-k", "limits or pids or devices or killed or restore"]
    done = vm(*pytest_there, *chosen, layout=layout, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


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
    pytest_there = ["python3", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = vm(*pytest_there, "tests/test_podman_systemd.py", layout=layout, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and (layout != "v2" or "skipped" not in done.stdout)
