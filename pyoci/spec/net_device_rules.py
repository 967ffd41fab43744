"""The checks of /linux/netDevices: loaded only for configurations that have some."""

from __future__ import annotations

from pyoci.jsontext import escape
from pyoci.spec.linux_rules import namespace
from pyoci.spec.read import Report, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Spec

LONGEST = 15  # bytes: IFNAMSIZ without its NUL, netdevice(7)
TEMPLATE = "%d"
SPACES = " \t\n\v\f\r"


def wrong_name(name: str, template: bool) -> str:
    """What keeps `name` from being a network device's, "" when nothing does; with `template` it may end in "%d"."""
    stem = name.removesuffix(TEMPLATE) if template else name
    if not name or name in (".", ".."):
        return f"{shown(name)} is not a name that a network device can have"
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST:
        return f"{shown(name)} has more than {LONGEST} bytes, the longest name of a network device"
    if any(character in "/:" or character in SPACES for character in name):
        return f"{shown(name)} must not have a slash, a colon or white space in it: it names a network device"
    if "%" in stem:
        allowed = 'except for a final "%d"' if template else "which is for templates of names"
        return f"{shown(name)} must not have a percent sign, {allowed}"
    return ""


def check(spec: Spec, report: Report) -> None:
    """config-linux.md#network-devices: names that the kernel takes, each once, and a namespace to move them into."""
    devices = spec.linux.net_devices or {}
    if namespace(spec, "network") is None and not report.unreliable("/linux/namespaces"):
        message = "needs a network namespace in /linux/namespaces: the devices are in the runtime's already"
        report.add("/linux/netDevices", message)
    taken: dict[str, str] = {}
    for name, device in devices.items():
        where = f"/linux/netDevices/{escape(name)}"
        problem = wrong_name(name, False)
        if name == "lo":
            problem = "lo cannot be moved: every network namespace has its own"
        if problem:
            report.add(where, problem)
        new = device.get("name") if isinstance(device, dict) else ""
        if isinstance(new, str) and new:
            where += "/name"
            problem = wrong_name(new, True)
            if new == "lo":
                problem = "lo is taken: every network namespace has its own"
            if problem:
                report.add(where, problem)
        else:
            new = name
        if not new.endswith(TEMPLATE) and taken.setdefault(new, name) != name:
            report.add(where, f"{shown(new)} is the name of {shown(taken[new])} in the container already")
