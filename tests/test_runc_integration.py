"""runc's integration suite (conformance/runc-integration): what reads it, and the part of it that takes a minute."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from modules import load

CONFORMANCE = Path(__file__).resolve().parent.parent / "conformance"
FOLDER = CONFORMANCE / "runc-integration"
PYOCI = Path(sys.executable).parent / "pyoci"
NEEDS = ("bats", "gawk", "jq", "gcc", "busybox")


for name in ("tap", "differences", "groups"):
    load(CONFORMANCE / f"{name}.py")
load(FOLDER / "built.py")
INTEGRATION = load(FOLDER / "integration.py")
OUTPUT = """\
1..4
ok 1 one (with | a bar)
# what it says
ok 2 two # skip test requires cgroups_v2
not ok 3 three [and more] # timeout after 120s
# (in test file exec.bats, line 9)
"""


def test_outcomes() -> None:
    """By name; what was announced and did not come is a failure."""
    expected = {"one (with / a bar)": "ok", "two": "skip", "three [and more]": "fails"}
    assert not INTEGRATION.finished(OUTPUT)
    assert INTEGRATION.outcomes(OUTPUT) == {**expected, "all of them": "fails"}
    whole = OUTPUT + "ok 4 one (with | a bar)\n"
    assert INTEGRATION.finished(whole) and INTEGRATION.outcomes(whole) == expected
    assert INTEGRATION.outcomes("bats: no such file\n") == {"all of them": "fails"}


def test_the_clock_of_tests_is_not_waited_for() -> None:
    assert INTEGRATION.WAITS.search("\t) &\n\twait # for both\n")
    assert not INTEGRATION.WAITS.search("\twait_for_container 1 1 x\n\twait $pid\n")


@pytest.mark.parametrize("version", ["1.1.5", "1.4.4"])
def test_every_difference_has_a_reason(version: str) -> None:
    rows = sys.modules["differences"].read(FOLDER / f"differences-{version}.txt")
    assert rows and all(set(row.who) <= {"pyoci", "runc"} for row in rows.values())


@pytest.mark.slow
@pytest.mark.root
def test_the_quick_part(tmp_path: Path) -> None:
    """Nothing fails but what differences-1.4.4.txt explains."""
    if not PYOCI.exists():
        pytest.skip("pyoci is not installed beside this interpreter: run ./check")
    if shutil.which("go") is None and not Path("/usr/local/go/bin/go").exists():
        pytest.skip("Go is not installed, which downloads runc's tests and builds their helpers")
    if missing := [name for name in NEEDS if shutil.which(name) is None]:
        pytest.skip(f"runc's tests need {', '.join(missing)}")
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("the differences are those with cgroup v1, and this machine has v2 alone")
    words = [str(FOLDER / "run"), "--quick", "--pyoci", str(PYOCI), "--outputs", str(tmp_path / "said")]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(INTEGRATION.QUICK)
