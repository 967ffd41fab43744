"""What init says over its control socket: one message a report, `REPORT` and then `length` bytes of text."""

from __future__ import annotations

from _struct import Struct

REPORT = Struct("<IIiI")  # kind, op, value (errno or pid), length of the text that follows
FAILED, AT_BARRIER, FORKED = 1, 2, 3
TEXT_MAX = 512
