"""What tests of checkpoint and restore share: a CRIU that works here, and a container's images."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import Box, box
from modules import load

SUITE = "trixie"  # Debian's release whose CRIU is taken where this machine's does not work
works = pytest.mark.usefixtures("criu_works")  # of conftest.py


def criu() -> str:
    """The CRIU that pyoci finds, "" for none."""
    return shutil.which("criu") or ""


def unfit(program: str) -> str:
    """Why a CRIU cannot work here, "" if it can."""
    if not program:
        return "no criu here: install criu"
    done = subprocess.run([program, "check"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"criu does not work with this kernel: {done.stderr.partition(chr(10))[0]}"


def newer(root: Path, cache: Path) -> str:
    """A later Debian's CRIU, made of its packages in the cache; skips where that cannot be.

    Debian 12's is too old for kernels since 6.11 or so, whose vDSO has grown.  It has no newer one among its backports,
    and a later one's package needs that release's C library: so it is given one, by that one's own loader.
    """
    top = cache / f"criu-{SUITE}"
    program = top / "bin" / "criu"
    if str(top).startswith("/tmp/"):
        pytest.skip("a CRIU below /tmp cannot be used for restore, which gives it another one: set PYOCI_TEST_CACHE")
    if program.exists():
        return str(program)
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap, which would unpack a newer criu, is not installed")
    image = load(root / "conformance/vm/image.py")
    shutil.rmtree(top, ignore_errors=True)
    program.parent.mkdir(parents=True)
    words = ["--quiet", "--mode=root", "--variant=extract", "--include=criu"]
    words += ['--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=APT::Install-Recommends "false"']
    try:
        image.run("mmdebstrap", *words, SUITE, top / "root", f"deb {image.mirror()} {SUITE} main")
    except image.Unavailable as error:
        pytest.skip(f"Debian's criu of {SUITE} cannot be had: {error}")
    (loader,) = (top / "root/usr/lib").glob("*/ld-linux-*.so.?")
    text = f'#!/bin/sh\nexec {loader} --library-path {loader.parent} --argv0 criu {top}/root/usr/sbin/criu "$@"\n'
    made = program.with_name("new")
    made.write_text(text)
    made.chmod(0o755)
    made.rename(program)
    return str(program)


COUNTER = "i=0; while true; do i=$((i+1)); echo $i > /tmp/new; busybox mv /tmp/new /tmp/count; sleep 0.02; done"
__all__ = ("COUNTER", "Images", "box", "count", "criu", "images", "newer", "unfit", "works")


def count(box: Box) -> int:
    """What the counter has come to."""
    return int(box.output("count"))


class Images:
    """Where a container's images are, and the flags that say so."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.images = box.folder / "images"
        self.work = box.folder / "work"

    def flags(self, name: str = "") -> list[str]:
        """--image-path and --work-path; nothing of them is there at first."""
        return ["--image-path", str(self.images / name if name else self.images), "--work-path", str(self.work)]

    def checkpoint(self, *more: str, name: str = "") -> None:
        """It must succeed without a word."""
        self.box.ok("checkpoint", *self.flags(name), *more, self.box.id)

    def words(self, *more: str, name: str = "", id: str = "") -> list[str]:
        """What restore is called with, detached."""
        return ["restore", "--detach", "--bundle", str(self.box.bundle), *self.flags(name), *more, id or self.box.id]

    def restore(self, *more: str, name: str = "", id: str = "", stderr: str = "", **streams: Any) -> None:
        """It must succeed, saying nothing but `stderr`; its streams are /dev/null unless given."""
        status, text = self.attempt(*self.words(*more, name=name, id=id), **streams)
        assert status == 0, text
        assert text == "" if not stderr else stderr in text, text

    def attempt(self, *words: str, **streams: Any) -> tuple[int, str]:
        """The status of a command whose stderr the container gets too, and what is said there."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | streams
        with (self.box.folder / "restore.err").open("w+", encoding="utf-8") as error:
            done = subprocess.run(self.box.command(*words), stderr=error, timeout=60, check=False, **streams)
            error.seek(0)
            return done.returncode, error.read()

    def refused(self, *more: str, stdout: int = subprocess.DEVNULL) -> str:
        """The one line that a restore says that must fail; nothing is left of the container."""
        self.box.write()
        status, text = self.attempt(*self.words(*more), stdout=stdout)
        assert status != 0
        assert text.count("\n") == 1 and "Traceback" not in text, text
        self.box.gone()
        return text


@pytest.fixture
def images(box: Box) -> Iterator[Images]:  # noqa: F811 - box is a fixture
    """Images of the box's container."""
    yield Images(box)
