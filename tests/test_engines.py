"""Unmodified engines with pyoci in them (conformance/engines)."""

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


WITH_CRIU = ["podman-checkpoint", "containerd-checkpoint", "docker-checkpoint"]


@pytest.mark.parametrize("engine", ["podman", "rootless", "buildah", "docker", "containerd", "cri", *WITH_CRIU])
def test_engine(engine: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not PYOCI.exists():
        pytest.skip("pyoci is not installed beside this interpreter: run ./check")
    if not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").parent.is_dir():
        pytest.skip("the checks read cgroup v1's files, and this machine has v2 alone")
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    if engine in WITH_CRIU:
        request.getfixturevalue("criu_works")
    results = tmp_path / "results.json"
    words = [str(root / "conformance/engines/run"), "--pyoci", str(PYOCI), "--json", str(results), engine]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert results.exists(), done.stdout + done.stderr
    result = json.loads(results.read_text())[engine]["pyoci"]
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert result["failed"] == {}
    assert result["checks"] > (10 if engine not in WITH_CRIU else 5)
    assert done.returncode == 0
