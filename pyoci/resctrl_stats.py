"""What resctrl shows of a container's groups, in the names that readers of `events` decode.

Documentation/filesystems/resctrl.rst: info/ has what the processor can do, schemata what a group may use, mon_data what
it has used, one directory for each domain of the cache.
"""

from __future__ import annotations

import posix

from pyoci.directory import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any


def stats(groups: Mapping[str, str]) -> dict[str, Any]:
    """Of the container in `groups`, the state's map, outer first; nothing of what the processor or kernel has not."""
    paths = list(groups)
    if not paths:
        return {}
    top = paths[0]
    while top and not posix.access(top + "/info", posix.F_OK):
        top = top.rpartition("/")[0]
    found: dict[str, Any] = {}
    for resource, key, text, numbers in (
        ("L3", "l3_cache", ("cbm_mask",), ("min_cbm_bits", "num_closids")),
        ("MB", "mem_bw", (), ("bandwidth_gran", "delay_linear", "min_bandwidth", "num_closids")),
    ):
        info = f"{top}/info/{resource}/"
        about: dict[str, Any] = {name: _text(info + name) for name in text}
        about |= {name: _number(info + name) for name in numbers}
        about = {name: value for name, value in about.items() if value}
        shown = {
            f"{key}_info": about,
            f"{key}_schema_root": _line(f"{top}/schemata", resource),
            f"{key}_schema": _line(f"{paths[0]}/schemata", resource),
        }
        found |= {name: value for name, value in shown.items() if value}
    domains = _domains(f"{paths[-1]}/mon_data")
    bandwidth = [
        {name: _number(f"{domain}/{name}") for name in ("mbm_total_bytes", "mbm_local_bytes")}
        for domain in domains
        if posix.access(domain + "/mbm_total_bytes", posix.F_OK)
    ]
    used = [
        {"llc_occupancy": _number(f"{domain}/llc_occupancy")}
        for domain in domains
        if posix.access(domain + "/llc_occupancy", posix.F_OK)
    ]
    return found | ({"mbm_stats": bandwidth} if bandwidth else {}) | ({"cmt_stats": used} if used else {})


def _domains(path: str) -> Iterable[str]:
    try:
        return [f"{path}/{name}" for name in sorted(posix.listdir(path)) if name.startswith("mon_L3_")]
    except OSError:
        return []


def _line(path: str, resource: str) -> str:
    """The resource's line of a schemata file, without blanks around it."""
    for line in _text(path).splitlines():
        if line.strip().startswith(resource + ":"):
            return line.strip()
    return ""


def _number(path: str) -> int:
    """0 where there is none: a counter may be "Unavailable" for a while."""
    text = _text(path)
    return int(text) if text.isdigit() else 0


def _text(path: str) -> str:
    try:
        return read_file(path).decode("utf-8", "replace").strip()
    except OSError:
        return ""
