"""What must hold for every plan (tests/invariants.py) holds for the bundles that are kept as examples, and for
documents, hosts and options that hypothesis makes up.  No root, no kernel: a plan is a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate
import pytest
from cases import container, host, joining
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from invariants import INVARIANTS, Invariant

from pyoci.commands.spec import default, rootless
from pyoci.errors import ConfigError
from pyoci.host import Host
from pyoci.plan.container import PlanOptions

BUNDLES = sorted((Path(__file__).resolve().parent.parent / "bundles").glob("*/config.json"))


def golden() -> Iterator[Any]:
    """(name, document, host): the documents of `pyoci spec`, and every bundle with the host that is kept beside it."""
    for mode in ("v1", "v2"):
        yield pytest.param(default(mode == "v2"), host(mode), id=f"default-{mode}")
    yield pytest.param(rootless(default(True), 1000, 1000), host("v2", 1000), id="rootless")
    for path in BUNDLES:
        beside = path.parent / "host.json"
        machine = Host.from_json(json.loads(beside.read_text())) if beside.exists() else host("v2")
        yield pytest.param(json.loads(path.read_text()), machine, id=path.parent.name)


@pytest.mark.parametrize(("document", "machine"), list(golden()))
@pytest.mark.parametrize("check", INVARIANTS, ids=lambda check: check.__name__)
def test_golden(check: Invariant, document: dict[str, Any], machine: Host) -> None:
    terminal = document.get("process", {}).get("terminal")
    for listen in (True, False):
        options = PlanOptions("id", "/bundle", listen=listen, console="console" if terminal else None)
        check(container(document, machine, options))
        for case in joining(document, machine, options):
            check(case)


@pytest.mark.parametrize(("document", "machine"), list(golden()))
@pytest.mark.parametrize("check", INVARIANTS, ids=lambda check: check.__name__)
def test_golden_by_systemd(check: Invariant, document: dict[str, Any], machine: Host) -> None:
    """The same containers in units of systemd's, which are started while init's first stage waits."""
    document = json.loads(json.dumps(document))
    if document["linux"].get("cgroupsPath"):
        document["linux"]["cgroupsPath"] = "machine.slice:libpod:abc"
    machine = Host.from_json(machine.to_json())
    machine.systemd = "user" if machine.euid else "system"
    options = PlanOptions("id", "/bundle", console="console", cgroup_manager="systemd")
    case = container(document, machine, options)
    started = case.where(lambda op: op.call == "start_unit")
    assert len(started) == 1
    assert started[0] < case.calls("clone3")[0]
    check(case)
    for case in joining(document, machine, options):
        check(case)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(document=generate.documents(), machine=generate.hosts(), options=generate.plan_options, data=st.data())
def test_generated(document: dict[str, Any], machine: Host, options: PlanOptions, data: st.DataObject) -> None:
    try:
        case = container(document, machine, options)
    except ConfigError:  # a limit that this host cannot set
        reject()
    for check in INVARIANTS:
        check(case)
    for each in joining(document, machine, options):
        for check in INVARIANTS:
            check(each)


def test_every_invariant_is_written_down(root: Path) -> None:
    text = (root / "ARCHITECTURE.md").read_text()
    missing = [check.__name__ for check in INVARIANTS if f"`{check.__name__}`" not in text]
    assert not missing
