"""Numbers of the calls that say when and where a process runs, under the names that config.json uses."""

from __future__ import annotations

# sched.h, sched_setattr(2)
POLICIES: dict[str, int] = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,  # reserved by the kernel, which refuses it
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHED_FLAGS: dict[str, int] = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
UTIL_CLAMP = 0x60
SCHED_ATTR_SIZE = 56

# ioprio.h, ioprio_set(2)
IOPRIO_CLASSES: dict[str, int] = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
IOPRIO_CLASS_SHIFT = 13
IOPRIO_WHO_PROCESS = 1

# personality.h, personality(2)
PERSONALITIES: dict[str, int] = {"LINUX": 0, "LINUX32": 8}

# mempolicy.h, set_mempolicy(2)
MEMORY_MODES: dict[str, int] = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS: dict[str, int] = {
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
}
MOST = 1024  # processors or nodes that a list can name: as many as fit into the masks of glibc's cpu_set_t


def mask(text: str, most: int = MOST) -> int:
    """A list such as "0-3,7" (cpuset(7), "List format") of numbers below `most` as bits; ValueError says what is wrong
    with it."""
    bits = 0
    for piece in (part.strip(" ") for part in text.split(",")):
        if not piece:
            continue
        first, dash, last = (part.strip(" ") for part in piece.partition("-"))
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise ValueError(f"{piece!r} is neither a number nor a range of numbers")
        low, high = int(first[:6]), int((last or first)[:6])
        if high < low:
            raise ValueError(f"{piece!r} ends before it begins")
        if high >= most:
            raise ValueError(f"{high} is more than {most - 1}")
        bits |= (1 << high + 1) - (1 << low)
    return bits
