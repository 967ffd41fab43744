"""The bundles in bundles/ are examples and golden plans at once.

`plan.txt` is the plan of `config.json` on the machine that `host.json` describes, the bundle being at /bundles/NAME.
When a plan is meant to change, write them anew and read the difference:

    python3 tests/test_bundles.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
NAMES = sorted(path.parent.name for path in BUNDLES.glob("*/config.json"))


def golden(name: str) -> str:
    """The printed plan of the bundle `name` on the host that it describes."""
    from pyoci.host import Host
    from pyoci.jsontext import loads
    from pyoci.plan.container import PlanOptions, plan_container
    from pyoci.plan.render import text
    from pyoci.spec.load import load

    spec = load((BUNDLES / name / "config.json").read_bytes())
    described = loads((BUNDLES / name / "host.json").read_bytes())
    assert isinstance(described, dict)
    plan = plan_container(spec, Host.from_json(described), PlanOptions("container", f"/bundles/{name}"))
    return text(plan.ops)


def test_there_are_bundles() -> None:
    assert {"busybox", "host-shell", "overlay"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_plan_is_the_golden_one(name: str) -> None:
    written = (BUNDLES / name / "plan.txt").read_text(encoding="utf-8")
    assert golden(name).splitlines() == written.splitlines(), "meant? then: python3 tests/test_bundles.py"


@pytest.mark.parametrize("name", NAMES)
def test_bundle_is_explained(name: str) -> None:
    assert f"pyoci run --bundle bundles/{name}" in (BUNDLES / name / "README.md").read_text(encoding="utf-8")


def static(path: Path) -> bool:
    """An ELF file that names no interpreter."""
    content = path.read_bytes() if path.exists() else b""
    return content[:4] == b"\x7fELF" and b"/ld-" not in content[:4096]


def show(name: str, tmp_path: Path) -> str:
    """What `pyoci run` of the bundle prints; it must succeed, and say nothing on stderr."""
    import pyoci

    package = Path(pyoci.__file__).parent
    if not (package / "init" / "init.elf").exists():
        pytest.skip("init is not built: ./check native")
    if not Path("/bin").is_symlink():
        pytest.skip("this host keeps /bin beside /usr")
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [
        sys.executable,
        "-P",  # not the checkout that we stand in
        "-m",
        "pyoci",
        "--root",
        str(tmp_path / "states"),
        "run",
        "--bundle",
        str(BUNDLES / name),
    ]
    container = f"test-bundle-{name}-{os.getpid()}"
    done = subprocess.run(
        [*command, container], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not [entry for entry in (tmp_path / "states").iterdir() if not entry.name.startswith(".")]
    return done.stdout


@pytest.mark.root
def test_host_shell(tmp_path: Path) -> None:
    shown = show("host-shell", tmp_path)
    assert 'I am process 1 on "host-shell"' in shown
    assert "sh /show" in shown
    assert "Seccomp 2" in shown and "NoNewPrivs 1" in shown and "CapEff 0000000000000420" in shown
    interfaces = shown.partition("Network interfaces:\n")[2].partition("Privileges")[0]
    assert interfaces.split() == ["lo"]
    assert "WORKED" not in shown
    assert shown.count("Read-only file system") == 4
    hidden = [line.split() for line in shown.partition("hidden from me:\n")[2].splitlines()]
    assert hidden and all(amount == "0" for _, amount, _ in hidden)


@pytest.mark.root
def test_overlay(tmp_path: Path) -> None:
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="utf-8"):
        pytest.skip("this kernel has no overlay file system (modprobe overlay)")
    before = sorted(path.name for path in (BUNDLES / "overlay/layer/bin").iterdir())
    shown = show("overlay", tmp_path)
    assert "Hello from /usr/bin/hello, which the host does not have." in shown
    assert "A system of two layers" in shown
    assert "Read-only file system" in shown
    assert sorted(path.name for path in (BUNDLES / "overlay/layer/bin").iterdir()) == before


@pytest.mark.root
def test_busybox(tmp_path: Path) -> None:
    if not static(Path("/usr/bin/busybox")):
        pytest.skip("no static /usr/bin/busybox: install busybox-static")
    shown = show("busybox", tmp_path)
    if "no such controller" in shown:
        pytest.skip("this host lacks a controller")
    assert 'I am process 1 on "busybox"' in shown
    assert "33554432" in shown and " 16  (" in shown and "50000" in shown
    assert "of 40 processes 14 could be started" in shown
    assert "a program that wants 64 MiB" in shown


if __name__ == "__main__":
    sys.path.insert(0, str(BUNDLES.parent))
    for each in NAMES:
        (BUNDLES / each / "plan.txt").write_text(golden(each), encoding="utf-8")
