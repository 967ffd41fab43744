"""What the suite needs: its files, its helper programs, images, and runc of the same version as a peer.

Everything is made once and kept, in a folder for root.  Tests find images in files that only their names call xz.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

MODULE = "github.com/opencontainers/runc"
CACHE = Path("/var/cache/pyoci-check")
TAGS = "seccomp urfave_cli_no_docs"
# What an image that people call busybox has besides its programs.
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nmail:x:8:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n"
# Of Debian's smallest system; the tests look for none of it, and every one of them unpacks what is there.
NOT_NEEDED = ("var/cache", "var/lib/apt", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/zoneinfo")


class Suite(NamedTuple):
    """A version; `sum` is the module's, as in go.sum; `helpers` are packages, `bin` where each is then, below."""

    version: str
    sum: str
    helpers: str
    bin: str


SUITES = {
    "1.1.5": Suite("v1.1.5", "h1:L44KXEpKmfWDcS02aeGm8QNTFXTo2D+8MYGDIJ/GDEs=", "contrib/cmd", "{name}/{name}"),
    "1.4.4": Suite("v1.4.4", "h1:mvhKTP28W0+S2JQ6RCZXRJzwvaipR4pQl81n5xBnGbA=", "tests/cmd", "_bin/{name}"),
}


def go() -> str:
    """FileNotFoundError without it."""
    found = shutil.which("go") or "/usr/local/go/bin/go"
    if not Path(found).exists():
        raise FileNotFoundError("Go is not installed, which downloads runc's tests and builds their helpers")
    return found


def _environment() -> dict[str, str]:
    return {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "1"}


def _build(folder: Path, package: str, output: Path) -> None:
    words = [go(), "build", "-trimpath", "-tags", TAGS, "-o", str(output), f"./{package}"]
    subprocess.run(words, cwd=folder, env=_environment(), check=True, stdin=subprocess.DEVNULL)


def sources(suite: Suite) -> Path:
    """A copy of the module, with its helpers built; contents other than those known are an error."""
    folder = CACHE / f"runc-{suite.version}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    asked = [go(), "mod", "download", "-json", f"{MODULE}@{suite.version}"]
    told = subprocess.run(asked, cwd="/", env=_environment(), check=False, stdout=subprocess.PIPE)
    answer = json.loads(told.stdout)
    if "Error" in answer:
        raise FileNotFoundError(f"go mod download: {answer['Error']}")
    if answer["Sum"] != suite.sum:
        raise ValueError(f"{MODULE} {suite.version} has the sum {answer['Sum']}, not {suite.sum}")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="runc-") as work:
        made = Path(work) / "made"
        shutil.copytree(answer["Dir"], made, symlinks=True)
        for path in [made, *made.rglob("*")]:
            # modules are read-only, and have lost who may be executed
            path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)
        shutil.rmtree(made / "vendor", ignore_errors=True)  # only its list is in a module
        for package in sorted(path for path in (made / suite.helpers).iterdir() if path.is_dir()):
            if any(package.glob("*.go")) and package.name != "memfd-bind":
                output = made / suite.helpers / suite.bin.format(name=package.name)
                _build(made, f"{suite.helpers}/{package.name}", output)
        Path(work).chmod(0o755)
        made.rename(folder)
    return folder


def runc(suite: Suite) -> Path:
    """runc itself, of the suite's version: what the suite was written with."""
    folder = sources(suite)
    program = folder / f"runc-{suite.version}"
    if not program.exists():
        _build(folder, ".", folder / "runc.new")
        (folder / "runc.new").rename(program)
    return program


def busybox() -> Path:
    """A root with the host's static busybox."""
    image = CACHE / "runc-busybox.tar"
    program = shutil.which("busybox")
    if program is None:
        raise FileNotFoundError("busybox is not installed (busybox-static)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="busybox-") as work:
        root = Path(work) / "root"
        for name in ("bin", "dev", "etc", "home", "lib", "root", "tmp", "usr/bin", "usr/sbin", "var/spool", "var/www"):
            (root / name).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        (root / "root").chmod(0o700)
        (root / "etc/passwd").write_text(PASSWD)
        (root / "etc/group").write_text(GROUP)
        shutil.copy(program, root / "bin/busybox")
        applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for name in applets:
            if name != "busybox":
                (root / "bin" / name).symlink_to("busybox")
        (root / "usr/bin/env").symlink_to("../../bin/env")
        _pack(root, image)
    return image


def debian() -> Path:
    """Debian's smallest system, by debootstrap; the one that the tests of installing have made, if they have."""
    image = CACHE / "runc-debian.tar"
    if image.exists():
        return image
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = Path(os.environ.get("PYOCI_TEST_CACHE") or Path.home() / ".cache/pyoci-tests") / "debootstrap/bookworm"
    if (kept / "complete").exists():
        _pack(kept / "root", image)
        return image
    if shutil.which("debootstrap") is None:
        raise FileNotFoundError("debootstrap is not installed, which makes the image debian")
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    mirror = next(address for address in listed if "security" not in address)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="debian-") as work:
        words = ["debootstrap", "--variant=minbase", "bookworm", f"{work}/root", mirror]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _pack(Path(work) / "root", image)
    return image


def _pack(root: Path, image: Path) -> None:
    new = image.with_suffix(f".{os.getpid()}")
    leave_out = [f"--exclude=./{name}/*" for name in NOT_NEEDED]
    subprocess.run(["tar", "-C", root, *leave_out, "--exclude=./dev/*", "-cf", new, "."], check=True)
    new.rename(image)
