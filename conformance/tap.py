"""Test points as TAP has them: one reader for all suites that are run here.

What suites write is not what TAP consumers take: several documents in one output, plans that are missing or "1..0",
JSON in YAML blocks, and blocks that end on the last line of the JSON.  All points begin in the first column, everything
else of a block is indented or a comment, and so nothing has to be known about blocks.
"""

from __future__ import annotations

import re
from typing import NamedTuple

POINT = re.compile(r"(not )?ok\b[ \t]*\d*[ \t]*-?[ \t]*(.*)")
SKIP = re.compile(r"#\s*skip\b", re.IGNORECASE)


class Point(NamedTuple):
    """One assertion; `text` is its description."""

    good: bool
    skipped: bool
    text: str


def read(text: str) -> tuple[Point, ...]:
    """The points of a program's standard output, in its order."""
    found = []
    for line in text.splitlines():
        if match := POINT.fullmatch(line):
            description = match[2]
            skipped = SKIP.search(description)
            found.append(Point(match[1] is None, skipped is not None, description.strip()))
    return tuple(found)
