"""The allowed device list (config-linux.md#allowed-device-list) as one ordered list, and as cgroup v1 takes it.

The meaning, on v1 and v2 alike: nothing is allowed at first; for each bit of access the last rule that matches the
device decides; the devices that every container has (config-linux.md#default-devices) stay usable unless the
configuration denies them by number.  Without any rule nothing is restricted.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.spec.types import DeviceRule

    # allow, "a" "b" or "c", major or None for any, minor or None for any, access in the order "rwm"
    Rule = tuple[bool, str, int | None, int | None, str]

DEFAULTS: tuple[Rule, ...] = (
    # any node may be made; using it is another matter
    (True, "c", None, None, "m"),
    (True, "b", None, None, "m"),
    (True, "c", 1, 3, "rwm"),  # null
    (True, "c", 1, 5, "rwm"),  # zero
    (True, "c", 1, 7, "rwm"),  # full
    (True, "c", 1, 8, "rwm"),  # random
    (True, "c", 1, 9, "rwm"),  # urandom
    (True, "c", 5, 0, "rwm"),  # tty
    (True, "c", 5, 2, "rwm"),  # ptmx
    (True, "c", 136, None, "rwm"),  # pts/*
)
ALL = "rwm"


def normalise(rule: DeviceRule) -> Rule:
    """`rule` in one form: -1 is any number, as engines write it; access is ordered and has no letter twice."""
    major = None if rule.major is None or rule.major < 0 else rule.major
    minor = None if rule.minor is None or rule.minor < 0 else rule.minor
    return rule.allow, rule.type or "a", major, minor, "".join(bit for bit in ALL if bit in rule.access)


def everything(rule: Rule) -> bool:
    """Whether `rule` is about every access to every device."""
    return rule[1:] == ("a", None, None, ALL)


class Policy:
    """What is left to decide.

    base, base_index  whether what no rule is about is allowed, and the index of the rule that says so, or -1
    rules             (index in the configuration or -1 for a default device, rule) after that one, in order
    """

    __slots__ = ("base", "base_index", "rules")

    def __init__(self, rules: Sequence[DeviceRule]) -> None:
        self.base = False
        self.base_index = -1
        self.rules: list[tuple[int, Rule]] = []
        for index, written in enumerate(rules):
            rule = normalise(written)
            if everything(rule):
                self.base, self.base_index = rule[0], index
                self.rules.clear()
            else:
                self.rules.append((index, rule))
        if not self.base:
            last = {rule[1:4]: rule[0] for _, rule in self.rules}
            self.rules += [(-1, rule) for rule in DEFAULTS if last.get(rule[1:4], True)]


class Hole(Exception):
    """v1 cannot say the rule `index`: it would take a part out of the wider rule `of`."""

    def __init__(self, index: int, of: int) -> None:
        super().__init__(index, of)
        self.index = index
        self.of = of


def v1_lines(policy: Policy) -> list[tuple[bool, int, bytes]]:
    """(allow?, index, line) to write to devices.allow and devices.deny, in order.

    A v1 list has one default and exceptions to it; taking back an exception works for exactly the device that was
    named.  So a rule that takes back is spelled out for each exception inside it, and one that would punch a hole into
    a wider exception raises `Hole`: the kernel would accept the line and go on allowing.
    """
    lines: list[tuple[bool, int, bytes]] = [(policy.base, policy.base_index, b"a")]
    # (type, major, minor) -> access, index
    exceptions: dict[tuple[str, int | None, int | None], tuple[str, int]] = {}
    for index, (allow, kind, major, minor, access) in policy.rules:
        # "a" makes the kernel ignore all that follows it in the line
        for letter in "cb" if kind == "a" else kind:
            key = (letter, major, minor)
            if allow is not policy.base:
                before = exceptions.get(key, ("", index))[0]
                exceptions[key] = ("".join(bit for bit in ALL if bit in access or bit in before), index)
                lines.append((allow, index, _line(key, access)))
                continue
            for other, (granted, of) in list(exceptions.items()):
                common = "".join(bit for bit in access if bit in granted)
                if not common or not _overlap(key, other):
                    continue
                if not _contains(key, other):
                    raise Hole(index, of)
                lines.append((allow, index, _line(other, common)))
                rest = "".join(bit for bit in granted if bit not in common)
                if rest:
                    exceptions[other] = (rest, of)
                else:
                    del exceptions[other]
    return lines


def _overlap(one: tuple[str, int | None, int | None], other: tuple[str, int | None, int | None]) -> bool:
    return one[0] == other[0] and all(
        a is None or b is None or a == b for a, b in zip(one[1:], other[1:], strict=True)
    )


def _contains(wide: tuple[str, int | None, int | None], narrow: tuple[str, int | None, int | None]) -> bool:
    return all(a is None or a == b for a, b in zip(wide[1:], narrow[1:], strict=True))


def _line(key: tuple[str, int | None, int | None], access: str) -> bytes:
    kind, major, minor = key
    return f"{kind} {'*' if major is None else major}:{'*' if minor is None else minor} {access}".encode()
