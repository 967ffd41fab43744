"""The table of conformance: current, complete, and about tests that exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from modules import load

from pyoci.schema import Walk, schema
from pyoci.spec import unsupported

ROOT = Path(__file__).resolve().parent.parent
TABLE = load(ROOT / "conformance" / "spec_conformance.py")
RULES = TABLE.rules()


def test_the_page_is_current() -> None:
    """After a change of spec-rules.txt: python3 conformance/spec_conformance.py"""
    assert TABLE.PAGE.read_text() == TABLE.page(RULES)


def test_the_tests_exist() -> None:
    """Collected, not searched for: what pytest does not find proves nothing."""
    wanted = {(module, name) for rule in RULES for module, name in rule.tests}
    files = sorted({f"tests/test_{module}.py" for module, _ in wanted})
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    collected = {
        tuple(line.partition("[")[0].removeprefix("tests/test_").split(".py::test_"))
        for line in done.stdout.splitlines()
        if "::" in line
    }
    assert not wanted - collected


def test_every_property_has_a_row() -> None:
    """A property is named by a row, or what holds it is."""
    subjects = [rule.subject for rule in RULES]
    root = schema("config")
    walk = Walk(root)

    def covered(node: dict[str, Any], path: str) -> None:
        node = walk.resolve(node)
        for name, given in node.get("properties", {}).items():
            here = f"{path}.{name}" if path else name
            inner = walk.resolve(given)
            plain = here.replace("[]", "")
            named = any(
                subject.replace("[]", "").split()[0] == plain
                or (subject.startswith(f"{path} ") and name in subject.split()[1:])
                or (name.startswith("throttle") and subject == f"{path}.throttle…Device")
                for subject in subjects
            )
            if not named:
                assert inner.get("type") == "object" and "properties" in inner, f"no row for {here}"
                covered(inner, here)

    covered(root, "")


def test_what_only_a_stand_in_has_seen_is_called_so() -> None:
    states = {rule.state for rule in RULES if "intelRdt" in rule.subject}
    assert states == {"stand-in"}
    assert not [rule.subject for rule in RULES if rule.state == "on paper"]


def test_what_is_called_refused_is_refused_and_nothing_else_is() -> None:
    refused = {f"linux.{name}" for name, _ in unsupported.LINUX}
    refused |= {f"process.{name}" for name, _ in unsupported.PROCESS}
    refused |= {f"linux.resources.{name}" for name, _ in unsupported.RESOURCES}
    refused |= {f"mounts[].{name}" for name, _ in unsupported.MOUNT}
    refused |= set(unsupported.MOUNT_OPTIONS)
    called = {word for rule in RULES if rule.refused for word in rule.subject.split()}
    assert called == refused
