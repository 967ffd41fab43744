"""The checks of /linux/intelRdt: loaded only for configurations that have it."""

from __future__ import annotations

from pyoci.spec.read import Report, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Spec

# what the root of every resctrl file system has besides groups
NO_GROUPS = ("info", "mon_data", "mon_groups")
LONGEST = 255  # NAME_MAX


def check(spec: Spec, report: Report) -> None:
    """config-linux.md#intelrdt: a class of service is one directory, and a schema one line."""
    asked = spec.linux.intel_rdt or {}
    where = "/linux/intelRdt"
    name = asked.get("closID")
    if isinstance(name, str) and name not in ("", "/"):
        if "/" in name or "\n" in name or name in (".", "..") or name in NO_GROUPS:
            report.add(f"{where}/closID", f"{shown(name)} is neither the name of a class of service nor /")
        elif len(name.encode("utf-8", "surrogateescape")) > LONGEST:
            report.add(f"{where}/closID", f"must not be longer than {LONGEST} bytes: it names a directory")
    bandwidth = asked.get("memBwSchema")
    if isinstance(bandwidth, str) and bandwidth:
        if not bandwidth.startswith("MB:"):
            report.add(f"{where}/memBwSchema", f"must start with MB:, not be {shown(bandwidth)}")
        if "\n" in bandwidth:
            report.add(f"{where}/memBwSchema", "must not have a line break")
    lines = asked.get("schemata")
    for index, line in enumerate(lines if isinstance(lines, list | tuple) else ()):
        if isinstance(line, str) and "\n" in line:
            report.add(f"{where}/schemata/{index}", "must not have a line break: each item is one line")
