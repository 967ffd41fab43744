"""What init says over its control socket: one message a report, `REPORT` and then `length` bytes of text.

Two more messages come that way which carry a descriptor and look like reports, so that one look tells what came.
"""

from __future__ import annotations

from _struct import Struct

REPORT = Struct("<IIiI")  # kind, op, value (errno or pid), length of the text that follows
FAILED, AT_BARRIER, FORKED = 1, 2, 3
TERMINAL, LISTENER = 4, 5  # with a terminal's master, with a seccomp filter's listener
TERMINAL_MESSAGE, LISTENER_MESSAGE = REPORT.pack(TERMINAL, 0, 0, 0), REPORT.pack(LISTENER, 0, 0, 0)
TEXT_MAX = 512
