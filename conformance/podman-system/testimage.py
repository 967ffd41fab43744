"""The images that podman's system tests want, as stand-ins: a static busybox where they have Alpine Linux.

What they use of them is known from their calls: /home/podman with a file of a certain age and a program that waits, a
busybox-extras, an /etc/mtab, the usual directories and files of a small distribution.
"""

from __future__ import annotations

import platform
from pathlib import Path

import busybox_root
from registry import Images

PATH = "libpod/testimage"
NAME = f"quay.io/{PATH}"
TAG = "20220615"
OTHER = "00000004"  # which the tests pull when they pull
DATE = 1600000000  # of the file whose date the tests print
FILES = {"home/podman/testimage-id": f"{TAG}\n", "etc/mtab": "-> /proc/mounts"}
PROGRAMS = {
    "home/podman/pause": '#!/bin/sh\necho "Confirmed: testimage pause invoked as $0"\nwhile :; do sleep 0.1; done\n',
    "bin/busybox-extras": "-> /bin/busybox",
}


def make(folder: Path) -> None:
    """Fill the folder of a registry with them."""
    images = Images(folder)
    variables = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    images.add(
        (f"{PATH}:{TAG}",),
        [busybox_root.archive(date=DATE), busybox_root.archive(FILES, PROGRAMS, DATE, whole=False)],
        platform.machine(),
        Env=variables,
        Cmd=["/bin/echo", "This container is intended for podman CI testing"],
        WorkingDir="/home/podman",
        Labels={"created_by": "conformance/podman-system", "created_at": "2022-06-15T00:00:00Z"},
    )
    others = (f"{PATH}:{OTHER}", "libpod/alpine:latest", "pause:3.5")
    images.add(others, [busybox_root.archive(date=DATE)], platform.machine(), Env=variables, Cmd=["sh"])
