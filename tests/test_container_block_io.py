"""Limits of block I/O that bite: what a container reads and writes past the page cache takes as long as they say."""

from __future__ import annotations

import json

import pytest
from containers import CGROUPS, Box, box, disk_of, needed  # noqa: F401 - box is a fixture

pytestmark = needed
AMOUNT = ("bs=64k", "count=32")  # 2 MiB
WRITE = ("dd", "if=/dev/zero", "of=/tmp/file", "oflag=direct", *AMOUNT)
READ = ("dd", "if=/tmp/file", "of=/dev/null", "iflag=direct", *AMOUNT)


def seconds(box: Box, *words: str) -> float:  # noqa: F811
    """How long a command takes in the container."""
    script = "cat /proc/uptime; \"$@\" 2>/dev/null && cat /proc/uptime"
    before, _, after, _ = box.exec("sh", "-c", script, "sh", *words).split()
    return float(after) - float(before)


@pytest.mark.parametrize(
    ("name", "rate", "words"),
    [
        ("throttleReadBpsDevice", 1 << 20, READ),
        ("throttleReadIOPSDevice", 16, READ),
        ("throttleWriteBpsDevice", 1 << 20, WRITE),
        ("throttleWriteIOPSDevice", 16, WRITE),
    ],
)
def test_it_takes_its_time(box: Box, name: str, rate: int, words: tuple[str, ...]) -> None:  # noqa: F811
    """Two seconds, and next to nothing without a limit."""
    if not ((CGROUPS / "blkio").is_dir() or "io" in (CGROUPS / "cgroup.controllers").read_text().split()):
        pytest.skip("no controller of block I/O here")
    major, minor = disk_of(box.rootfs)

    def limit(rate: int) -> dict[str, object]:
        return {"blockIO": {name: [{"major": major, "minor": minor, "rate": rate}]}}

    box.linux["resources"].update(limit(rate))
    box.start()
    if words == READ:
        (box.rootfs / "tmp/file").write_bytes(bytes(2 << 20))
    # the first slice of time that the kernel counts in may be free
    assert seconds(box, *words) > 1.5
    box.ok("update", "--resources", "-", box.id, input=json.dumps(limit(0)))
    assert seconds(box, *words) < 1.5
