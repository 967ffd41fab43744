"""Engines' own test suites (conformance/podman-system, conformance/critest), as much of them as there is time for, and
what is shared by them."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from modules import load

FOLDER = Path(__file__).resolve().parent.parent / "conformance"
PYOCI = Path(sys.executable).parent / "pyoci"
CRITEST = Path("/var/cache/pyoci-check/cri-tools-v1.34.0/critest")
SKIPPED = 77


DIFFERENCES = load(FOLDER / "differences.py")
REGISTRY = load(FOLDER / "registry.py")


def run(suite: str, *words: str) -> None:
    if not PYOCI.exists():
        pytest.skip("pyoci is not installed beside this interpreter: run ./check")
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("the suite is given cgroup v1, and this machine has v2 alone")
    command = [str(FOLDER / suite / "run"), "--pyoci", str(PYOCI), "--alone", *words]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1500)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.root
def test_podman(tmp_path: Path) -> None:
    """One of its files; conformance/podman-system/run runs thirty with all runtimes."""
    report = tmp_path / "report.md"
    run("podman-system", "--report", str(report), "080-pause")
    assert "| 080-pause | 2 |" in report.read_text()


@pytest.mark.slow
@pytest.mark.root
def test_critest(tmp_path: Path) -> None:
    """Some of it; conformance/critest/run has all of it, with all runtimes."""
    if not CRITEST.exists() and shutil.which("go") is None and not Path("/usr/local/go/bin/go").exists():
        pytest.skip("Go is not installed, which builds critest")
    report = tmp_path / "report.md"
    run("critest", "--report", str(report), "--focus", "NoNewPrivs")
    assert "| critest | 2 |" in report.read_text()


ROWS = """\
# not this

f | both | all | E: why
f | one | runc | R: why
f | may | ~pyoci | a race
f | s | skip:pyoci | S: why
"""


def test_differences(tmp_path: Path) -> None:
    """What is as the rows say, and what is not: failures, passes, skips, and tests that there are not."""
    path = tmp_path / "rows"
    path.write_text(ROWS)
    rows = DIFFERENCES.read(path)
    good = {
        "pyoci": {"both": "fails", "one": "ok", "may": "fails", "s": "skip", "x": "ok"},
        "runc": {"both": "fails", "one": "fails", "may": "ok", "s": "ok", "x": "ok"},
    }
    assert DIFFERENCES.surprises({"f": good}, rows) == []
    assert "| f | 2 + 1, **2** | 3, **2** |" in DIFFERENCES.table("t", ("true",), {"f": good}, rows)
    bad = {
        "pyoci": {"both": "ok", "one": "fails", "may": "ok", "s": "ok", "y": "ok"},
        "runc": {**good["runc"], "y": "fails"},
    }
    assert DIFFERENCES.surprises({"f": bad}, rows) == [
        "f: both: ok with pyoci (E: why)", "f: one: fails with pyoci (R: why)", "f: y: fails with runc",
        "f: x: missing with pyoci",
    ]  # fmt: skip
    alone = {"pyoci": {"one": "ok", "s": "skip"}}
    assert DIFFERENCES.surprises({"f": alone}, rows) == ["f: both: there is no such test (E: why)"]
    assert DIFFERENCES.surprises({"f": alone}, rows, whole=False) == []
    for row in ("f | t | all", "f | t | all |", "f | t |  | why"):
        path.write_text(row + "\n")
        with pytest.raises(ValueError, match="rows:1"):
            DIFFERENCES.read(path)


def test_every_row_has_a_reason() -> None:
    for suite in ("podman-system", "critest"):
        rows = DIFFERENCES.read(FOLDER / suite / "differences.txt")
        assert rows
        report = (FOLDER / suite / "report.md").read_text()
        assert "unexplained" not in report
        assert all(row.reason in report for row in rows.values())


def test_the_registry(tmp_path: Path) -> None:
    """An image is found by its tag and by its digest, with what it consists of; nothing else is."""
    images = REGISTRY.Images(tmp_path)
    images.add(("a/b:1", "a/b:2"), [b"layer"], platform.machine(), Cmd=["sh"])
    server = REGISTRY.serve(tmp_path, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    top = f"http://127.0.0.1:{server.server_address[1]}/v2/"
    try:
        with urllib.request.urlopen(top + "a/b/manifests/2?ns=somebody", timeout=10) as answer:
            data, digest = answer.read(), answer.headers["Docker-Content-Digest"]
        with urllib.request.urlopen(top + f"a/b/manifests/{digest}", timeout=10) as answer:
            assert answer.read() == data
        manifest = json.loads(data)
        with urllib.request.urlopen(top + f"a/b/blobs/{manifest['layers'][0]['digest']}", timeout=10) as answer:
            assert answer.read() == b"layer"
        with urllib.request.urlopen(top + f"a/b/blobs/{manifest['config']['digest']}", timeout=10) as answer:
            assert json.load(answer)["config"] == {"Cmd": ["sh"]}
        outside = "a/b/blobs/sha256:..%2fnames.json"
        for wrong in ("a/b/manifests/3", "a/c/manifests/1", outside, f"a/b/blobs/{'0' * 64}"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(top + wrong, timeout=10)
    finally:
        server.shutdown()
        server.server_close()


def test_what_a_cluster_is_asked() -> None:
    """conformance/kubelet reads the page's own objects, and each of its commands has all that it is formatted with.

    It is not run here: it builds Kubernetes."""
    for path in ("engines/checks", "kubelet/objects", "kubelet/cluster_checks"):
        load(FOLDER / f"{path}.py")
    made = sys.modules["objects"]
    page = made.documented("pyoci")
    assert set(page) == {"RuntimeClass", "Pod"}
    assert "handler: pyoci " in page["RuntimeClass"]
    assert "runtimeClassName: pyoci\n" in page["Pod"]
    assert "pyoci" not in "".join(made.documented("runc").values())
    offered = ("kubectl", "handler", "runtime", "root", "list", "label", "objects", "folder", "address")
    words = dict.fromkeys(offered, "X")
    names = []
    files = set(made.objects("pyoci", Path("/host")))
    for table in sys.modules["cluster_checks"].ALL:
        for name, command, expected in table:
            names.append(name)
            assert set(re.findall(r"\{objects\}/([a-z]+)\.json", command)) <= files
            assert "{kubectl}" not in command.format(**words)
            re.compile(expected)
    assert len(set(names)) == len(names)
