"""What every test shares: who may run which test, and where the things outside the package are.

Tests import the `pyoci` that the interpreter finds: under ./check the one installed into its environment, by hand the
checkout's.  Either way the native part must be there: ./check installs it, `./check native` builds it in place.
"""

from __future__ import annotations

import os
import sys
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
