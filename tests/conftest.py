"""What every test shares: who may run which test, and where the things outside the package are.

Tests import the `pyoci` that the interpreter finds: under ./check the one installed into its environment, by hand the
checkout's.  Either way the native part must be there: ./check installs it, `./check native` builds it in place.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Run by hand in a checkout (no installed pyoci), the checkout's package is the one under test."""
    try:
        import pyoci  # noqa: F401
    except ImportError:
        sys.path.insert(0, str(ROOT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root, saying so, when there is none."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: run as root (or with sudo) for this test")
    for item in items:
        if item.get_closest_marker("root") is not None or item.get_closest_marker("vm") is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """The first command after an installation writes byte code and a snapshot: on a busy machine that takes longer than
    any test lets a command take."""
    installed = Path(sys.executable).with_name("pyoci")
    if installed.exists():
        words = [str(installed), "--root", "/proc/nonexistent", "state", "none"]
        subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: pyproject.toml, bundles/, schemas/ and conformance/ are in it."""
    return ROOT


@pytest.fixture(scope="session")
def cache() -> Path:
    """A directory for what is expensive to make and safe to keep between runs (chroots, VM images)."""
    path = Path(os.environ.get("PYOCI_TEST_CACHE") or Path.home() / ".cache" / "pyoci-tests")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def criu_works(root: Path, cache: Path) -> Iterator[None]:
    """The first CRIU in $PATH works with this kernel: this machine's or, where that is too old, a later Debian's."""
    from checkpoints import criu, newer, unfit

    with pytest.MonkeyPatch.context() as patch:
        if why := unfit(criu()):
            program = newer(root, cache)
            patch.setenv("PATH", f"{Path(program).parent}:{os.environ.get('PATH', os.defpath)}")
            if unfit(program):
                pytest.skip(f"{why}; nor does a later Debian's: {unfit(program)}")
        yield


@pytest.fixture(scope="session")
def build(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`build("aarch64")`: the directory where meson has built init.elf and the launcher for that architecture.

    Built once a session; `build(arch, again=True)` builds a second time in another place.
    """
    built: dict[tuple[str, bool], Path] = {}

    def build_for(arch: str, again: bool = False) -> Path:
        if (arch, again) not in built:
            cross = []
            if arch != platform.machine():
                cross = ["--cross-file", str(root / "cross" / f"{arch}.ini")]
                for tool in (f"{arch}-linux-gnu-gcc", f"qemu-{arch}-static"):
                    if shutil.which(tool) is None:
                        pytest.skip(f"{tool} is not installed")
            elif shutil.which("cc") is None:
                pytest.skip("no C compiler is installed")
            meson = [sys.executable, "-m", "mesonbuild.mesonmain"]
            if subprocess.run([*meson, "--version"], capture_output=True, check=False).returncode:
                pytest.skip("meson is not installed for this interpreter")
            folder = tmp_path_factory.mktemp(f"build-{arch}")
            environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}
            setup = ["setup", "-Dbuildtype=plain", *cross, str(folder), str(root)]
            for command in (setup, ["compile", "-C", str(folder)]):
                subprocess.run([*meson, *command], check=True, capture_output=True, env=environment)
            built[arch, again] = folder
        return built[arch, again]

    return build_for
