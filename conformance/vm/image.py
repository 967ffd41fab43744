"""The parts of the virtual machine: a Debian root with systemd, a Debian kernel with just the drivers that the machine
has, an initial RAM disk.  All made from packages of the mirror that this machine's apt uses, all kept in a cache."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = {"6.1": "bookworm", "6.12": "trixie", "sid": "sid"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TOOLS = ("qemu-system-x86_64", "mmdebstrap", "mke2fs", "depmod", "apt-get", "dpkg", "xz", "zstd")
ROOT_PACKAGES = (HERE / "packages.txt").read_text().split()
# A machine that runs one command has no use for these units; without them it is there in 5 s instead of 15.
MASKED = (HERE / "masked-units.txt").read_text().split()
# Loaded by the initial RAM disk, in an order that modules.dep gives.
BOOT_MODULES = ("crc32c_generic", "virtio_pci", "virtio_blk", "virtio_console", "ext4", "9pnet_virtio", "9p")
INIT = """#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for m in /modules/*; do $b insmod $m || echo "insmod $m failed"; done
$b mount -t ext4 /dev/vda /new && $b mount -t ext4 -o ro /dev/vdb /new/lib/modules || exec $b sh
$b umount /proc; $b umount /sys; $b mount --move /dev /new/dev
exec $b switch_root /new /lib/systemd/systemd
"""


class Unavailable(Exception):
    """The machine cannot be made here; says what is missing."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a command; Unavailable, with the end of what it said, when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise Unavailable(f"{' '.join(map(str, command[:3]))} ...: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


def mirror() -> str:
    """The Debian mirror that this machine uses."""
    for address in run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split():
        if "security" not in address:
            return address
    raise Unavailable("apt knows no Debian mirror: apt-get update")


def require_tools() -> None:
    """Unavailable unless this machine can make and run the other one."""
    if os.geteuid() != 0:
        raise Unavailable("making a Debian root needs root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = "qemu-system-x86, mmdebstrap, e2fsprogs, kmod, zstd, xz-utils"
        raise Unavailable(f"{', '.join(missing)}: not installed (Debian's packages: {packages})")


class Packages:
    """Packages of one suite, fetched with package lists of our own: this machine's apt is not touched."""

    def __init__(self, cache: Path, suite: str) -> None:
        folder = cache / "apt" / suite
        self.options = [
            *("-o", f"Dir::State={folder}/state", "-o", f"Dir::State::status={folder}/status"),
            *("-o", f"Dir::Cache={folder}/cache", "-o", f"Dir::Etc::sourcelist={folder}/list"),
            *("-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"),
            *("-o", "Acquire::Check-Valid-Until=false", "-q=2"),
        ]
        if not (folder / "ok").exists():
            (folder / "state/lists/partial").mkdir(parents=True, exist_ok=True)
            (folder / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
            (folder / "status").touch()
            (folder / "list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
            run("apt-get", *self.options, "update")
            (folder / "ok").touch()

    def depends(self, package: str, pattern: str) -> list[str]:
        """The dependencies of a package whose names match."""
        shown = run("apt-cache", *self.options, "depends", package)
        return re.findall(rf"Depends: ({pattern})$", shown, re.MULTILINE)

    def unpack(self, names: list[str], target: Path) -> None:
        fetched = target.with_suffix(".packages")
        fetched.mkdir()
        run("apt-get", *self.options, "download", *names, cwd=fetched)
        for package in fetched.glob("*.deb"):
            run("dpkg", "-x", package, target)
        shutil.rmtree(fetched)


def make_root(cache: Path) -> Path:
    """The disk image of a Debian with systemd that runs `guest` and powers off."""
    guest = (HERE / "guest").read_text()
    key = hashlib.sha256(repr((ROOT_PACKAGES, MASKED, guest, Path(__file__).read_text())).encode()).hexdigest()[:16]
    image = cache / f"root-{key}.img"
    if image.exists():
        return image
    for old in (*cache.glob("root-*"), *cache.glob("saved-*")):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    root = cache / "root-new"
    lean = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    include = f"--include={','.join(ROOT_PACKAGES)}"
    words = ["--quiet", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io", *lean, include]
    words += ["--aptopt=Acquire::Check-Valid-Until \"false\"", "--aptopt=APT::Install-Recommends \"false\""]
    run("mmdebstrap", *words, "bookworm", root, f"deb {mirror()} bookworm main")
    configure(root, guest)
    make_disk(root, image.with_suffix(".new"), "3G")
    image.with_suffix(".new").rename(image)
    (cache / "busybox").write_bytes((root / "bin/busybox").read_bytes())
    shutil.rmtree(root)
    return image


def make_disk(root: Path, image: Path, size: str) -> None:
    """An ext4 image, mostly a hole, with a directory's content."""
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, image, size)


def configure(root: Path, guest: str) -> None:
    """Turn a Debian root into a machine that starts one unit, ours."""
    units = root / "etc/systemd/system"
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    generators = root / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for path in (root / "usr/lib/systemd/system-generators").iterdir():
        (generators / path.name).symlink_to("/dev/null")
    for wants in units.glob("*.wants"):
        shutil.rmtree(wants)
    # a shared directory may lie below /tmp, and systemd-tmpfiles empties /tmp at boot
    (root / "etc/tmpfiles.d/tmp.conf").symlink_to("/dev/null")
    # an empty machine-id makes systemd set up every unit anew
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/fstab").write_text("")
    (root / "etc/hostname").write_text("vm\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost vm\n")
    (root / "lib/modules").mkdir(exist_ok=True)
    (units / "vm.service").write_text(
        "[Unit]\nAfter=basic.target dbus.socket\n[Service]\nType=oneshot\nExecStart=/usr/lib/vm-guest\n"
        "ExecStopPost=/bin/systemctl poweroff --force --force\nTimeoutStartSec=infinity\nDelegate=yes\n"
    )
    (units / "vm.target").write_text(
        "[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=vm.service dbus.socket systemd-logind.service\n"
    )
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("vm.target")
    script = root / "usr/lib/vm-guest"
    script.write_text(guest)
    script.chmod(0o755)


def make_kernel(cache: Path, kernel: str) -> Path:
    """A directory with vmlinux, initrd and modules.img."""
    target = cache / f"kernel-{kernel}"
    if (target / "ok").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    packages = Packages(cache, KERNELS[kernel])
    # the -cloud- kernels have no 9p; newer ones are split in -binary- and -modules-
    (name, *_) = packages.depends("linux-image-amd64", r"linux-image-[0-9]\S*")
    parts = packages.depends(name, r"linux-(?:binary|modules)-[0-9]\S*")
    unpacked = target / "unpacked"
    packages.unpack([name, *parts], unpacked)
    (modules,) = [path for lib in ("usr/lib", "lib") for path in (unpacked / lib / "modules").glob("*")][:1]
    version = modules.name
    image = unpacked / "boot" / f"vmlinuz-{version}"
    (target / "vmlinux").write_bytes(uncompressed(image if image.exists() else modules / "vmlinuz"))
    tree = target / "tree" / "lib" / "modules" / version
    tree.parent.mkdir(parents=True)
    modules.rename(tree)
    for name in ("sound", "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/scsi", "drivers/iio"):
        shutil.rmtree(tree / "kernel" / name, ignore_errors=True)
    run("depmod", "-b", target / "tree", version)
    make_disk(tree.parent, target / "modules.img", "512M")
    (target / "initrd").write_bytes(initrd(tree, (cache / "busybox").read_bytes()))
    for folder in (unpacked, target / "tree"):
        shutil.rmtree(folder)
    (target / "ok").touch()
    return target


def uncompressed(image: Path) -> bytes:
    """The ELF kernel inside a vmlinuz: the emulated processor takes 2 s longer to unpack it than this one."""
    data = image.read_bytes()
    formats = {b"\xfd7zXZ\0": ("xz", "-dc"), b"\x28\xb5\x2f\xfd": ("zstd", "-dc"), b"\x1f\x8b\x08": ("gzip", "-dc")}
    for magic, command in formats.items():
        at = data.find(magic)
        while at >= 0:
            found = subprocess.run(command, input=data[at:], capture_output=True, check=False).stdout
            if found.startswith(b"\x7fELF"):
                return found
            at = data.find(magic, at + 1)
    raise Unavailable(f"{image.name}: no kernel that we can unpack")


def initrd(modules: Path, busybox: bytes) -> bytes:
    """A cpio archive (newc) that loads what the disk needs, mounts it, and starts systemd."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, dependencies = line.partition(":")
        needs[name] = dependencies.split()
    paths = {Path(name).name.split(".ko")[0].replace("-", "_"): name for name in needs}
    order: list[str] = []

    def add(name: str) -> None:
        for dependency in reversed(needs[name]):
            add(dependency)
        if name not in order:
            order.append(name)

    for name in BOOT_MODULES:
        if name in paths:  # some are built in
            add(paths[name])
    archive = Archive()
    for name in ("bin", "dev", "modules", "new", "proc", "sys"):
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox)
    archive.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    archive.add("init", stat.S_IFREG | 0o755, INIT.encode())
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for number, name in enumerate(order):
        data = (modules / name).read_bytes()
        if name.endswith(".xz"):
            data = lzma.decompress(data)
        elif name.endswith(".zst"):
            data = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
        archive.add(f"modules/{number:02}-{Path(name).name.split('.ko')[0]}", stat.S_IFREG | 0o644, data)
    archive.add("TRAILER!!!", 0)
    return bytes(archive.data)


class Archive:
    """A cpio archive as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.entries = 0

    def add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self.entries += 1
        encoded = name.encode() + b"\0"
        fields = (self.entries, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        self.data += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self.data += bytes(-len(self.data) % 4) + content
        self.data += bytes(-len(self.data) % 4)
