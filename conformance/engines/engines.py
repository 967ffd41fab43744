"""Real, unmodified engines with a runtime of one's choice: podman, containerd (ctr), Docker, in private namespaces.

    conformance/engines/run                       all engines with pyoci
    conformance/engines/run podman docker         these
    conformance/engines/run --peers               the same beside runc and crun
    conformance/engines/run --json FILE           the results as data

Everything is made here: an image of a static busybox, the engines' directories below a temporary one, daemons that end
with the run.  It needs root, the engines' packages (`./check` installs them) and nothing of the network; each engine
sees cgroup v1 alone, which is what all of these versions know.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import checks

INSIDE = "PYOCI_ENGINES_INSIDE"
UNIFIED = Path("/sys/fs/cgroup/unified")
TIMEOUT = 60
LIMITS = "nofile=20000:20000"


class Engine:
    """`folder` is its own; `runtime` the path of the runtime's program, `words` what checks are formatted with."""

    name = ""
    needs: tuple[str, ...] = ()
    table: tuple[checks.Check, ...] = ()

    def __init__(self, folder: Path, runtime: str, image: Path) -> None:
        self.folder = folder
        self.runtime = runtime
        self.image = image
        self.words: dict[str, str] = {}
        self.daemon: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
        folder.mkdir(parents=True)

    def start(self) -> None:
        """Everything up to the first check."""

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGTERM)
            self.daemon.wait(30)

    def spawn(self, *command: str) -> None:
        with (self.folder / "daemon.log").open("wb") as log:
            self.daemon = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder)

    def ask(self, command: str) -> str:
        """ "rc=STATUS OUTPUT" of a shell command, on one line."""
        try:
            done = subprocess.run(
                ["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=TIMEOUT, env=self.environment, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return f"rc=timeout {(error.output or b'').decode(errors='replace')}"
        return f"rc={done.returncode} " + " ".join(done.stdout.decode(errors="replace").split())

    def until(self, command: str, seconds: float = 30) -> None:
        """Wait until a command succeeds."""
        end = time.monotonic() + seconds
        while not (said := self.ask(command)).startswith("rc=0"):
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} does not start: {said}; see {self.folder}/daemon.log")
            time.sleep(0.2)

    def check(self) -> dict[str, str]:
        """What each check that fails came to."""
        failed: dict[str, str] = {}
        for name, command, pattern in self.table:
            said = self.ask(command.format(**self.words))
            if not re.search(pattern, said):
                failed[name] = said[:600]
        return failed


class Podman(Engine):
    name = "podman"
    needs = ("podman", "conmon", "script")
    table = checks.PODMAN

    def start(self) -> None:
        (self.folder / "build").mkdir()
        (self.folder / "build" / "Containerfile").write_text("FROM localhost/bb\nRUN echo made >/made\n")
        # what is shipped for users, and the limits of a machine whose root may not raise them
        configuration = self.folder / "containers.conf"
        shipped = (Path(__file__).parents[2] / "contrib" / "containers.conf.d" / "pyoci.conf").read_text()
        name = Path(self.runtime).name
        configuration.write_text(
            f'[containers]\ndefault_ulimits = ["{LIMITS}", "nproc=20000:20000"]\n\n'
            + shipped.replace("[engine]", '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"')
            + f'\n{name} = ["{self.runtime}"]\n' * (name not in ("pyoci", "runc", "crun"))
        )
        self.environment["CONTAINERS_CONF"] = str(configuration)
        where = " ".join(f"--{what} {self.folder}/{what}" for what in ("root", "runroot", "tmpdir"))
        engine = f"podman {where} --runtime {self.runtime}"
        options = "--network none"
        self.words = {
            "engine": engine,
            "options": options,
            "run": f"{engine} run --rm {options}",
            "image": "localhost/bb",
            "folder": str(self.folder / "build"),
            "ulimits": f"--ulimit {LIMITS} --ulimit nproc=20000:20000",
        }
        self.until(f"{engine} import --change 'CMD [\"/bin/sh\"]' {self.image} localhost/bb:latest")

    def stop(self) -> None:
        self.ask(f"{self.words['engine']} rm -af; {self.words['engine']} rmi -af")


class Docker(Engine):
    name = "docker"
    needs = ("dockerd", "docker", "containerd", "script")
    table = checks.DOCKER

    def start(self) -> None:
        own = Path(self.runtime).name
        runtimes = {} if own == "runc" else {"runtimes": {own: {"path": self.runtime}}}
        settings = {
            **runtimes,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "storage-driver": "overlay2",
            "data-root": str(self.folder / "data"),
            "exec-root": str(self.folder / "exec"),
            "pidfile": str(self.folder / "pid"),
            "hosts": [f"unix://{self.folder}/s.sock"],
            "iptables": False,
            "ip6tables": False,
            "bridge": "none",
        }
        (self.folder / "daemon.json").write_text(json.dumps(settings))
        self.spawn("dockerd", "--config-file", str(self.folder / "daemon.json"))
        engine = f"docker -H unix://{self.folder}/s.sock"
        self.until(f"{engine} version")
        options = f"--runtime {own} --network none"
        self.words = {
            "engine": engine,
            "options": options,
            "run": f"{engine} run --rm {options}",
            "image": "bb",
            "folder": str(self.folder),
        }
        self.until(f"{engine} import {self.image} bb:latest")


class Containerd(Engine):
    name = "containerd"
    needs = ("containerd", "ctr", "podman")
    table = checks.CONTAINERD

    def start(self) -> None:
        (self.folder / "config.toml").write_text(
            f'version = 2\nroot = "{self.folder}/root"\nstate = "{self.folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{self.folder}/c.sock"\n[ttrpc]\n  address = "{self.folder}/t.sock"\n'
        )
        self.spawn("containerd", "--config", str(self.folder / "config.toml"))
        engine = f"ctr -a {self.folder}/c.sock"
        self.until(f"{engine} version")
        options = f"--runtime io.containerd.runc.v2 --runc-binary {self.runtime}"
        image = "localhost/bb:latest"
        self.words = {"engine": engine, "options": options, "run": f"{engine} run --rm {options}", "image": image}
        # ctr takes archives of images, not of files
        where = " ".join(f"--{what} {self.folder}/{what[:2]}" for what in ("root", "runroot", "tmpdir"))
        archive = self.folder / "image.tar"
        self.until(
            f"podman {where} import {self.image} {image} && "
            f"podman {where} save --format oci-archive -o {archive} {image} && {engine} images import {archive}"
        )


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Podman, Docker, Containerd)}


def make_image(folder: Path) -> Path:
    """A tar archive of a root with a static busybox."""
    root = folder / "image"
    for name in ("bin", "etc", "tmp", "proc", "dev", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    names = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in names:
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    archive = folder / "image.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    return archive


def isolate() -> None:
    """Become a process of private mount and network namespaces that sees cgroup v1 alone."""
    if os.environ.get(INSIDE) is None:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-m", "-n", "--propagation", "private", sys.executable, *sys.argv])
    if UNIFIED.is_mount():
        subprocess.run(["umount", str(UNIFIED)], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)


def run(names: list[str], runtimes: dict[str, str], folder: Path) -> dict[str, Any]:
    """engine -> runtime -> {"checks": how many, "failed": {name: what came}} or {"skipped": why}."""
    image = make_image(folder)
    results: dict[str, Any] = {}
    for name in names:
        kind = ENGINES[name]
        missing = [program for program in kind.needs if shutil.which(program) is None]
        for label, path in runtimes.items():
            result: dict[str, Any] = {}
            if missing:
                result = {"skipped": f"not installed: {', '.join(missing)}"}
            else:
                engine = kind(folder / f"{name[0]}{label}", path, image)
                try:
                    engine.start()
                    result = {"checks": len(kind.table), "failed": engine.check()}
                finally:
                    engine.stop()
            results.setdefault(name, {})[label] = result
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", help=f"of {', '.join(ENGINES)} (all)")
    beside = Path(sys.executable).parent / "pyoci"
    parser.add_argument("--pyoci", default=str(beside) if beside.exists() else shutil.which("pyoci"))
    parser.add_argument("--peers", action="store_true", help="beside the runc and crun that are installed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("conformance/engines/run: needs root")
    if options.pyoci is None:
        sys.exit("conformance/engines/run: no installed pyoci: pip install . and give --pyoci VENV/bin/pyoci")
    isolate()
    runtimes = {"pyoci": os.path.abspath(options.pyoci)}
    if options.peers:
        runtimes |= {name: path for name in ("runc", "crun") if (path := shutil.which(name))}
    with tempfile.TemporaryDirectory(prefix="pe-", ignore_cleanup_errors=True) as folder:
        results = run(options.engines or list(ENGINES), runtimes, Path(folder))
    bad = 0
    for engine, by_runtime in results.items():
        for runtime, result in by_runtime.items():
            if "skipped" in result:
                print(f"{engine:12}{runtime:8}skipped: {result['skipped']}")
                continue
            failed = result["failed"]
            bad += len(failed) if runtime == "pyoci" else 0
            print(f"{engine:12}{runtime:8}{result['checks'] - len(failed)} of {result['checks']}")
            for name, said in failed.items():
                print(f"    {name}: {said}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
