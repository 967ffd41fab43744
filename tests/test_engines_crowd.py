"""Many containers at once through unmodified engines (conformance/engines/crowd.py).

PYOCI_CROWD says how many: 100 takes some minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.root]
PYOCI = Path(sys.executable).parent / "pyoci"
MANY = os.environ.get("PYOCI_CROWD", "8")


@pytest.mark.parametrize("engine", ["podman", "docker", "containerd"])
def test_a_crowd(engine: str, root: Path, tmp_path: Path) -> None:
    if not PYOCI.exists():
        pytest.skip("pyoci is not installed beside this interpreter: run ./check")
    if not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").parent.is_dir():
        pytest.skip("these engines are given cgroup v1, and this machine has v2 alone")
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    results = tmp_path / "results.json"
    words = [str(root / "conformance/engines/run"), "--pyoci", str(PYOCI), "--json", str(results)]
    environment = {**os.environ, "PYTHON": sys.executable}
    words += ["--crowd", MANY, engine]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=1800)
    assert results.exists(), done.stdout + done.stderr
    result = json.loads(results.read_text())[engine]["pyoci"]
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert result == {"checks": int(MANY), "failed": {}}
    assert done.returncode == 0
