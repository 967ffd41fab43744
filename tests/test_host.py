"""What is known of a machine, written to JSON and read back."""

from __future__ import annotations

import json

import pytest

from pyoci.host import Host, probe


def test_every_attribute_comes_back() -> None:
    """`start` makes the plan of `create` again from it, when it has a failure to explain."""
    machine = probe()
    assert Host.from_json(json.loads(json.dumps(machine.to_json()))).to_json() == machine.to_json()
    machine.security_modules, machine.direct_sources = ("apparmor",), ("/a",)
    machine.cgroup_controllers, machine.stdio_nulls, machine.stdio_pipes = ("cpu",), (0,), (1, 2)
    machine.copied = {"/etc": [["x", 0o644]]}
    assert Host.from_json(json.loads(json.dumps(machine.to_json()))).to_json() == machine.to_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [("kernel", ["6", "8"]), ("kernel", [6]), ("security_modules", [1]), ("copied", {"/a": "b"}), ("home", 1),
     ("source_types", {"/a": 1}), ("uid", -1), ("nothing", 1)],
)  # fmt: skip
def test_values_of_another_kind_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Host.from_json({name: value})
