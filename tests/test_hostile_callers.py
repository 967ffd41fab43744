"""Hostile callers and neighbours: names, states, limits, links in shared directories; and a runtime that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from canary import COMMAND, Bundle, bundle  # noqa: F401 - bundle is a fixture
from containers import INSTALLED, needed, until

from pyoci.container.checkpoint import DESCRIPTORS, _write

pytestmark = needed


# -- the runtime is killed


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_runtime_that_is_killed(bundle: Bundle, kind: str) -> None:
    """kill -9 at any barrier: what was being built ends by itself, and delete leaves nothing."""
    marker = bundle.rootfs / "tmp" / "ran"
    waiting = {"path": "/bin/sleep", "args": ["sleep", "3"], "env": ["PATH=/bin"]}
    bundle.config["hooks"] = {kind: [waiting]}
    bundle.process["args"] = ["/bin/touch", "/tmp/ran"]
    bundle.write()
    name = bundle.name()
    runtime = subprocess.Popen(
        [*COMMAND, "--root", str(bundle.states), "run", name],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=bundle.folder,
    )  # fmt: skip

    def known() -> int:
        for file in (bundle.states / name / "state.json", bundle.states / name / "creating.json"):
            try:
                return int(json.loads(file.read_text())["pid"])
            except FileNotFoundError:
                pass
        return 0

    until(lambda: known() > 0)
    init = known()
    time.sleep(0.1)
    runtime.send_signal(signal.SIGKILL)
    runtime.wait()
    until(lambda: not Path(f"/proc/{init}").exists() or "\nState:\tZ" in Path(f"/proc/{init}/status").read_text())
    assert bundle.call("delete", "--force", name).returncode == 0
    assert not (bundle.states / name).exists()
    assert not marker.exists()


# -- who calls, and where states are


@pytest.mark.parametrize("name", ["..", ".", ".cache", "", "a/b", "/", "a\nb", "a b", "é", "a" * 300, "*", "../x"])
def test_id_that_is_no_name(bundle: Bundle, name: str) -> None:
    (bundle.states / ".cache").mkdir(parents=True)
    bundle.write()
    for command in (["run"], ["create"], ["delete", "--force"], ["state"], ["kill"], ["start"]):
        assert bundle.call(*command, "--", name).returncode, command
    assert [path.name for path in bundle.states.iterdir()] == [".cache"]
    assert bundle.folder.exists()


def test_state_that_somebody_else_made(bundle: Bundle) -> None:
    """A directory that others can write to, belongs to them, or is a link decides nothing."""
    victim = subprocess.Popen(["/bin/sleep", "50"])
    try:
        name = bundle.start()
        real = bundle.states / name
        state = json.loads((real / "state.json").read_text())
        state["pid"] = victim.pid
        forged = bundle.folder / "forged"
        shutil.copytree(real, forged, ignore=lambda *_: ["start.sock"])
        (forged / "state.json").write_text(json.dumps(state))
        (bundle.states / "linked").symlink_to(forged)
        assert bundle.call("kill", "linked", "KILL").returncode
        assert bundle.call("delete", "--force", "linked").returncode
        (bundle.states / "linked").unlink()
        for change in ("owner", "mode"):
            place = bundle.states / change
            shutil.copytree(forged, place)
            if change == "owner":
                os.chown(place, 1000, 1000)
            else:
                place.chmod(0o777)
            assert bundle.call("kill", change, "KILL").returncode
            assert bundle.call("delete", "--force", change).returncode
            shutil.rmtree(place)
        # the pid of another start time is not the container's
        (real / "state.json").rename(real / "kept")
        (real / "state.json").write_text(json.dumps(state))
        assert bundle.call("kill", name, "KILL").returncode
        assert victim.poll() is None
        (real / "kept").rename(real / "state.json")
    finally:
        victim.kill()
        victim.wait()


def test_large_configurations(bundle: Bundle) -> None:
    """CVE-2021-43784: no length is cut; what is too much is refused by a clear error."""
    bundle.process["env"] = ["PATH=/bin", *(f"V{number}={'x' * 100_000}" for number in range(10))]
    assert len(bundle.run("/bin/cat", "/proc/self/environ").stdout) == 10 + 10 * 100_004 + 7
    bundle.process["env"] = ["PATH=/bin"]
    bundle.config["annotations"] = {"long": "a" * 70_000}
    bundle.config["linux"]["maskedPaths"] = [f"/proc/none{number}" for number in range(3000)]
    assert bundle.shell("echo fine") == "fine\n"
    bundle.process["cwd"] = "/" + "x" * 70_000
    done = bundle.run("/bin/true")
    assert done.returncode and len(done.stderr) < 200_000 and "Traceback" not in done.stderr
    bundle.process["cwd"] = "/"
    bundle.config["mounts"] += [
        {"destination": f"/tmp/m{number}", "type": "tmpfs", "source": "tmpfs"} for number in range(1500)
    ]
    assert bundle.shell("ls /tmp | wc -l").strip() == "1500"


# -- limits of the caller's


@pytest.mark.parametrize("limit", [*(f"--nofile={number}" for number in range(8, 14)), "--fsize=5000", "--fsize=500"])
def test_limits_that_are_too_small_leave_nothing(bundle: Bundle, limit: str) -> None:
    """One line, and no half of a container, wherever it was that there was no descriptor or no room left."""
    bundle.write()
    name = bundle.name()
    words = ["prlimit", limit, *COMMAND, "--root", str(bundle.states), "run", name]
    done = subprocess.run(words, capture_output=True, text=True, cwd=bundle.folder, check=False, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert ("too many open files" if "nofile" in limit else "file too large") in done.stderr
    assert not (bundle.states / name).exists()


def test_a_cgroups_path_of_thousands_of_levels(bundle: Bundle) -> None:
    """It is longer than any that is used, and found to be so at once."""
    bundle.config["linux"]["cgroupsPath"] = "/hostile" + "/a" * 2100
    begun = time.monotonic()
    done = bundle.run("/bin/true", timeout=60)
    assert done.returncode == 1 and "/linux/cgroupsPath: must not have more than 100 components" in done.stderr
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("what", ["fifo", "link", "hard link", "dangling"])
def test_directory_of_images_that_somebody_has_prepared(tmp_path: Path, what: str) -> None:
    """What checkpoint writes there itself is a new file, whatever had its name."""
    canary, place = tmp_path / "canary", tmp_path / "images" / DESCRIPTORS
    place.parent.mkdir()
    canary.write_text("canary")
    if what == "fifo":
        os.mkfifo(place)
    elif what == "hard link":
        place.hardlink_to(canary)
    else:
        place.symlink_to(canary if what == "link" else tmp_path / "new")
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(10)
    try:
        _write(folder, DESCRIPTORS, ["a", "b", "c"])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.close(folder)
    assert json.loads(place.read_text()) == ["a", "b", "c"]
    assert canary.read_text() == "canary" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("launched", [True, False], ids=["launcher", "interpreter"])
@pytest.mark.parametrize("slash", ["", "/", "/."])
def test_link_that_somebody_left_in_tmp(bundle: Bundle, launched: bool, slash: str) -> None:
    """As with fs.protected_symlinks, which no kernel has on by itself: root's states and its log are not elsewhere."""
    command = [str(INSTALLED)] if launched else COMMAND
    if launched and not INSTALLED.exists():
        pytest.skip("the launcher is not installed")
    shared, theirs = bundle.folder / "shared", bundle.canary
    shared.mkdir()
    shared.chmod(0o1777)
    for name, target in (("states", theirs), ("log", theirs / "file"), ("new", theirs / "new")):
        (shared / name).symlink_to(target)
        os.lchown(shared / name, 1234, 1234)
    (shared / "own").symlink_to(bundle.folder / "own")
    (bundle.folder / "own").mkdir()

    def call(*words: str) -> tuple[int, str]:
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=30)
        return done.returncode, done.stderr

    why = "a link that user 1234 has left in a directory of everybody's is not followed"
    refused = (1, f"pyoci: {shared}/states: {why}\n")
    for words in (("delete", "--force", "directory"), ("start", "directory"), ("list",), ("delete", "--force", "none")):
        code, error = call("--root", f"{shared}/states{slash}", *words)
        assert (code, error) == refused or (code != 0 and "permission denied" in error), error
    # nor is a filter kept there, before that is found
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    bundle.write()
    code, error = call("--root", f"{shared}/states{slash}", "run", "--bundle", str(bundle.folder), bundle.name())
    assert code != 0 and ("is not followed" in error or "permission denied" in error), error
    for name in ("log", "new"):
        code, error = call("--log", f"{shared}/{name}", "--root", str(bundle.states), "delete", "--force", "none")
        assert code != 0 and ("is not followed" in error or "permission denied" in error), error
    bundle.untouched()
    assert call("--root", f"{shared}/own{slash}", "delete", "--force", "none") == (0, "")
    assert call("--root", f"{shared}/own{slash}", "list") == (0, "")
