"""Make spec-conformance.md: every rule of the specification, and the tests for it.

    python3 conformance/spec_conformance.py          writes it beside this file
    python3 conformance/spec_conformance.py --check  exits with 1 if it is not current

The rules are in spec-rules.txt, whose head says how.  tests/test_conformance.py sees that the tests exist, that every
property of the schema has a row, and that what is called refused still is.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RULES = HERE / "spec-rules.txt"
PAGE = HERE / "spec-conformance.md"
# The tag that the clauses are anchors of.
SPECIFICATION = "https://github.com/opencontainers/runtime-spec/blob/v1.3.0/"
REFUSED = "refused"
REFUSAL = "spec_rules::unsupported_is_refused"
# Modules, and single tests, that look at documents and plans only; all others look at the kernel, or a container.
ON_PAPER = (
    "features", "input", "jsontext", "labels", "plan_cgroups", "plan_systemd", "spec_load", "spec_rules", "state",
    "validate", "seccomp::every_architecture", "seccomp::listed_architectures_are_added_to_the_machines_own",
)  # fmt: skip
# Containers are asked, and what they are shown for the kernel's is ours: nobody here has the hardware.
STAND_IN = ("container_resctrl",)


class Rule:
    """One row: `tests` are (module, name) without "test_", `refused` whether this version refuses it."""

    def __init__(self, section: str, line: str) -> None:
        clause, subject, text, tests = (part.strip() for part in line.split("|"))
        self.section, self.clause, self.subject, self.text = section, clause, subject, text
        words = tests.split()
        self.refused = words == [REFUSED]
        self.tests = [tuple(word.split("::")) for word in ([REFUSAL] if self.refused else words)]

    @property
    def state(self) -> str:
        """ "refused", "no test yet", "on paper", "stand-in" or "tested"."""
        if self.refused:
            return "refused"
        if not self.tests:
            return "**no test yet**"
        if any(module in STAND_IN for module, _ in self.tests):
            return "stand-in"
        paper = all(module in ON_PAPER or f"{module}::{name}" in ON_PAPER for module, name in self.tests)
        return "on paper" if paper else "tested"


def rules() -> list[Rule]:
    """All rows of spec-rules.txt."""
    found: list[Rule] = []
    section = ""
    for line in RULES.read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            section = line[2:]
        elif line and not line.startswith("#"):
            found.append(Rule(section, line))
    return found


def page(listed: list[Rule]) -> str:
    """The Markdown text."""
    counts = {state: sum(rule.state == state for rule in listed) for state in dict.fromkeys(r.state for r in listed)}
    lines = [
        "# Conformance with the OCI runtime specification 1.3.0",
        "",
        "Made by `python3 conformance/spec_conformance.py` from spec-rules.txt. *Tested*: by a test that asks a",
        "container or the kernel. *On paper*: by tests of documents and plans. *Refused*: an error, never ignored.",
        "*Stand-in*: by a test that asks a container, where something of ours stands for hardware that no machine of",
        "the tests has: a file system with the rules that the kernel's documentation gives for resctrl. No kernel has",
        "proven that.",
        "",
        f"{len(listed)} rules: " + ", ".join(f"{number} {state}" for state, number in sorted(counts.items())) + ".",
    ]
    section = ""
    for rule in listed:
        if rule.section != section:
            section = rule.section
            lines += ["", f"## {section}", "", "| subject | rule | clause | state | tests |", "|---|---|---|---|---|"]
        tests = "<br>".join(f"`test_{module}.py::test_{name}`" for module, name in rule.tests)
        link = f"[{rule.clause}]({SPECIFICATION}{rule.clause})"
        lines.append(f"| {rule.subject} | {rule.text} | {link} | {rule.state} | {tests} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare."""
    text = page(rules())
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
