"""conformance/vm/run: run one command in a throw-away virtual machine with Debian, systemd and a chosen cgroup layout.

    conformance/vm/run [OPTION...] -- COMMAND [ARGUMENT...]

The machine is emulated (no /dev/kvm needed).  The first run makes it from Debian packages and saves it at the moment
when it waits for a command (about two minutes); every later run resumes it (about two seconds).  The working directory
and the directories that --share names are there at the same paths; what is written elsewhere is lost.

Status: the command's; 124 when the time is up; 125 when the machine could not be made or did not come to an end.
Standard output and error are the command's; its standard input is /dev/null.  Needs root.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import image

SHARES = 4  # the saved machine has this many places for shared directories
LAYOUTS = {
    "v2": "",
    "hybrid": "systemd.unified_cgroup_hierarchy=0",
    "v1": "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
    # v2, and SELinux in AppArmor's place; without a policy until somebody loads one
    "selinux": "security=selinux enforcing=0",
}
TIMED_OUT, BROKEN = 124, 125
# What a share must not hide in the machine.
OWN = ("/", "/proc", "/sys", "/dev", "/usr", "/etc", "/run", "/var", "/root", "/tmp")
# Another word when `Machine.words` gives a machine other parts: a saved one has those that it had.
HARDWARE = "nic"


class Machine:
    """One virtual machine: its parts in the cache, its files of one run in `folder`."""

    def __init__(self, options: argparse.Namespace, cache: Path, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.made = 0.0  # when the machine that we resume was
        self.disk = image.make_root(cache)
        self.kernel = image.make_kernel(cache, options.kernel)
        version = image.run("qemu-system-x86_64", "--version").split("version ")[1].split()[0]
        parts = (options.kernel, options.cgroup, options.memory, options.cpus, version, HARDWARE, self.disk.stem[5:])
        self.saved = cache / ("saved-" + "-".join(str(part) for part in parts))
        self.shares: list[tuple[str, str]] = options.share
        (folder / "control").mkdir()
        (folder / "empty").mkdir()
        for name in ("out", "err", "status"):
            (folder / name).touch()
        for name in ("go.in", "go.out"):
            os.mkfifo(folder / name)

    def words(self, *more: str, snapshot: bool = True) -> list[str]:
        """QEMU's command line; everything but what the files are must be as it was when the machine was saved."""
        options = self.options
        words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=256", "-M", "q35", "-cpu", "EPYC"]
        words += ["-smp", str(options.cpus), "-m", str(options.memory), "-display", "none", "-vga", "none"]
        words += ["-no-reboot", "-nodefaults", "-serial", f"file:{self.folder}/console"]

        def device(kind: str, backend: str, *description: str) -> None:
            words.extend([backend, ",".join(part.replace(",", ",,") for part in description), "-device", kind])

        keep = ("format=raw", "if=none")
        disk = (f"file={self.saved}/disk", "cache=unsafe", f"snapshot={'on' if snapshot else 'off'}")
        device("virtio-blk-pci,drive=d0", "-drive", "id=d0", *disk, *keep)
        device("virtio-blk-pci,drive=d1", "-drive", "id=d1", f"file={self.kernel}/modules.img", "readonly=on", *keep)
        # to give away: nothing is at its other end, and nothing sees it before virtio_net is loaded
        device("virtio-net-pci,netdev=n,romfile=", "-netdev", "hubport", "id=n", "hubid=0")
        words += ["-device", "virtio-serial-pci"]
        for number, name in enumerate(("out", "err", "status"), 1):
            device(f"virtserialport,chardev=c{number},nr={number}", "-chardev", "file", f"id=c{number}",
                   f"path={self.folder}/{name}")  # fmt: skip
        device("virtserialport,chardev=c4,nr=4", "-chardev", "pipe", "id=c4", f"path={self.folder}/go")
        local = ("local", "security_model=none", "multidevs=remap")
        device("virtio-9p-pci,fsdev=f,mount_tag=control", "-fsdev", *local, "id=f", f"path={self.folder}/control")
        for n in range(SHARES):
            path, mode = self.shares[n] if n < len(self.shares) else (f"{self.folder}/empty", "rw")
            readonly = f"readonly={'on' if mode == 'ro' else 'off'}"
            device(f"virtio-9p-pci,fsdev=f{n},mount_tag=share{n}", "-fsdev", *local, f"id=f{n}", readonly,
                   f"path={path}")  # fmt: skip
        words += ["-kernel", f"{self.kernel}/vmlinux", "-initrd", f"{self.kernel}/initrd"]
        # a kernel that has gone wrong ends the machine, where it would stand there until somebody's patience ends
        kernel = f"console=ttyS0 quiet panic=-1 oops=panic mitigations=off {LAYOUTS[options.cgroup]}"
        return [*words, "-append", kernel, *more]

    def start(self, words: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "qemu").open("wb") as said:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def save(self) -> None:
        """Boot once and keep the machine as it is when it waits for its command."""
        if (self.saved / "ok").exists():
            return
        shutil.rmtree(self.saved, ignore_errors=True)
        self.saved.mkdir()
        image.run("cp", "--sparse=always", self.disk, self.saved / "disk")
        monitor = self.folder / "monitor"
        words = self.words("-monitor", f"unix:{monitor},server=on,wait=off", snapshot=False)
        with self.start(words) as process:
            try:
                deadline = time.monotonic() + 300
                while b"ready" not in (self.folder / "status").read_bytes():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise image.Unavailable(f"the machine did not start\n{self.words_of_failure()}")
                    time.sleep(0.1)
                time.sleep(0.3)  # until it reads
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(monitor))
                    save_state(connection, self.saved / "state")
                process.wait(30)
            finally:
                process.kill()
        (self.folder / "status").write_bytes(b"")
        (self.saved / "ok").touch()

    def forget(self) -> None:
        """Let `save` make another one, unless somebody has done so since we resumed it."""
        mark = self.saved / "ok"
        if mark.exists() and mark.stat().st_mtime == self.made:
            mark.unlink()
        for name in ("out", "err", "status"):
            (self.folder / name).write_bytes(b"")

    def run(self, command: list[str]) -> int | None:
        """Resume the machine, give it the command, pass on what it says; its status, or None where it has none."""
        self.made = (self.saved / "ok").stat().st_mtime
        control = self.folder / "control"
        shares = [f"share share{n} {shlex.quote(path)} {mode}" for n, (path, mode) in enumerate(self.shares)]
        clock = f"date -s @{time.time():.0f} >/dev/null"
        (control / "setup").write_text("\n".join([*shares, clock, ""]))
        exports = [f"export {shlex.quote(setting)}" for setting in self.options.env]
        there = f"cd {shlex.quote(os.getcwd())}"
        (control / "command").write_text("\n".join([*exports, there, shlex.join(command), ""]))
        # both ends, so that opening and writing wait for nobody
        go = os.open(self.folder / "go.in", os.O_RDWR)
        os.write(go, b"go\n")
        state = shlex.quote(str(self.saved / "state"))
        with self.start(self.words("-incoming", f"exec:cat {state}")) as process:
            streams = [((self.folder / name).open("rb"), to) for name, to in (("out", sys.stdout), ("err", sys.stderr))]
            deadline = time.monotonic() + self.options.timeout
            try:
                ended = False
                while not ended:
                    ended = process.poll() is not None
                    for source, to in streams:
                        if data := source.read():
                            to.buffer.write(data)
                            to.flush()
                    if time.monotonic() > deadline:
                        print("vm: the time is up", file=sys.stderr)
                        return TIMED_OUT
                    time.sleep(0 if ended else 0.05)
            finally:
                process.kill()
                os.close(go)
                for source, _ in streams:
                    source.close()
        status = (self.folder / "status").read_text().split()
        if "status" in status:
            return int(status[status.index("status") + 1])
        print(f"vm: the machine ended without a status\n{self.words_of_failure()}", file=sys.stderr)
        return None

    def words_of_failure(self) -> str:
        """The end of what QEMU and the kernel said."""
        texts = [(self.folder / name).read_text(errors="replace")[-2000:] for name in ("qemu", "console")]
        return "\n".join(texts)


def save_state(connection: socket.socket, target: Path) -> None:
    """Talk to QEMU's monitor: write the machine's memory to a file, then end it."""

    def say(command: str) -> str:
        connection.sendall(command.encode() + b"\n")
        time.sleep(0.1)
        return connection.recv(65536).decode(errors="replace")

    say("migrate_set_parameter max-bandwidth 100G")
    say(f'migrate "exec:cat > {target}"')
    for _ in range(600):
        told = say("info migrate")
        if "status: completed" in told:
            say("quit")
            return
        if "status: failed" in told:
            break
    raise image.Unavailable("the machine could not be saved")


def arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="conformance/vm/run", usage="%(prog)s [OPTION...] -- COMMAND [ARGUMENT...]")
    parser.add_argument("--kernel", choices=image.KERNELS, default="6.1")
    parser.add_argument("--cgroup", choices=LAYOUTS, default="v2")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=1024, help="in MiB")
    parser.add_argument("--share", action="append", default=[], metavar="DIR[:ro]", help="besides the working one")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--timeout", type=float, default=600, help="in seconds, for the command")
    parser.add_argument("--cache", type=Path, help="~/.cache/pyoci-vm")
    parser.add_argument("--make", action="store_true", help="make and save the machine, run nothing")
    options = parser.parse_args(words[:at])
    command = words[at + 1 :]
    if not command and not options.make:
        parser.error("no command")
    options.share = [shared(path) for path in (os.getcwd(), *options.share)]
    if len(options.share) > SHARES or any(path in OWN for path, _ in options.share):
        parser.error(f"at most {SHARES - 1} --share, and none of {' '.join(OWN)} (the working directory counts)")
    return options, command


def shared(text: str) -> tuple[str, str]:
    """DIR or DIR:ro as (absolute path, "rw" or "ro")."""
    path = text.removesuffix(":ro")
    return str(Path(path).resolve()), "ro" if path != text else "rw"


def main() -> int:
    options, command = arguments(sys.argv[1:])
    cache = (options.cache or Path.home() / ".cache" / "pyoci-vm").absolute()
    try:
        image.require_tools()
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="pyoci-vm-") as folder, (cache / "lock").open("w") as lock:
            # one of several runs makes what is missing, the others wait for it
            fcntl.flock(lock, fcntl.LOCK_EX)
            machine = Machine(options, cache, Path(folder))
            machine.save()
            fcntl.flock(lock, fcntl.LOCK_UN)
            status = 0 if options.make else machine.run(command)
            if status is None:
                # a machine can be saved at a moment that it does not survive: another one, once
                fcntl.flock(lock, fcntl.LOCK_EX)
                machine.forget()
                machine.save()
                fcntl.flock(lock, fcntl.LOCK_UN)
                status = machine.run(command)
            return BROKEN if status is None else status
    except image.Unavailable as error:
        print(f"vm: {error}", file=sys.stderr)
        return BROKEN


if __name__ == "__main__":
    sys.exit(main())
