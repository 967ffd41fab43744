"""Real, unmodified engines with a runtime of one's choice, in private namespaces.

    conformance/engines/run                       all engines with pyoci
    conformance/engines/run podman docker         these
    conformance/engines/run --peers               the same beside runc and crun
    conformance/engines/run --crowd 100 podman    instead of single checks, that many containers at once (crowd.py)
    conformance/engines/run --json FILE           the results as data

Everything is made here: an image of a static busybox, the engines' directories below a temporary one, daemons that end
with the run.  It needs root, the engines' packages (`./check` installs them) and nothing of the network; each engine
sees cgroup v1 alone, which is what all of these versions know.  Where systemd is process 1 and gives out v2, as in the
virtual machine of conformance/vm, docker, containerd and cri are checked with systemd making the cgroups.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cri import Cri, tools
from criu_checks import ContainerdCheckpoint, DockerCheckpoint, PodmanCheckpoint
from crowd import WORDS, Crowd
from daemons import Containerd, Docker
from engine import UNITS, Engine
from podman import Buildah, Podman, Rootless

INSIDE = "PYOCI_ENGINES_INSIDE"
CGROUPS = Path("/sys/fs/cgroup")

WITH_CRIU: tuple[type[Engine], ...] = (PodmanCheckpoint, ContainerdCheckpoint, DockerCheckpoint)
KINDS: tuple[type[Engine], ...] = (Podman, Rootless, Buildah, Docker, Containerd, Cri, *WITH_CRIU)
WITH_UNITS: tuple[type[Engine], ...] = (Docker, Containerd, Cri)
ENGINES = {engine.name: engine for engine in (WITH_UNITS if UNITS else KINDS)}


def make_image(folder: Path) -> Path:
    """A tar archive of a root with a static busybox."""
    root = folder / "image"
    for name in ("bin", "dev", "etc", "mnt", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    names = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in names:
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler:
        source = str(Path(__file__).with_name("notify.c"))
        subprocess.run([compiler, "-static", "-O", "-o", str(root / "bin" / "notify"), source], check=True)
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    archive = folder / "image.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    return archive


def isolate() -> None:
    """Become a process of private mount and network namespaces that sees cgroup v1 alone."""
    if os.environ.get(INSIDE) is None:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-m", "-n", "--propagation", "private", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    if UNITS:
        return
    # all that are alive, and no other: engines make directories for those that are not there, in a file system that is
    # everybody's, and one that is mounted nowhere makes containerd give up on all statistics
    alive = {line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()} - {""}
    subprocess.run(["umount", "-R", str(CGROUPS)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(CGROUPS)], check=True)
    for controllers in alive:
        place = CGROUPS / controllers.removeprefix("name=")
        place.mkdir()
        subprocess.run(["mount", "-t", "cgroup", "-o", controllers, "cgroup", str(place)], check=True)
        for name in controllers.split(",") if "," in controllers else ():
            (CGROUPS / name).symlink_to(place.name)


def run(names: list[str], runtimes: dict[str, str], folder: Path, crowd: int = 0) -> dict[str, Any]:
    """engine -> runtime -> {"checks": how many, "failed": {name: what came}} or {"skipped": why}; with a `crowd` its
    containers are what is counted."""
    image = make_image(folder)
    results: dict[str, Any] = {}
    for name in names:
        kind = ENGINES[name]
        missing = [program for program in kind.needs if shutil.which(program) is None]
        if kind is Cri and not missing and tools() is None:
            missing = ["crictl, and Go to build it with"]
        for label, path in runtimes.items():
            result: dict[str, Any] = {}
            if missing:
                result = {"skipped": f"not installed: {', '.join(missing)}"}
            elif why := kind.unfit():
                result = {"skipped": why}
            else:
                engine = kind(folder / f"{name[0]}{name[-1]}{label}", path, image)
                try:
                    engine.start()
                    if crowd:
                        result = {"checks": crowd, "failed": Crowd(engine, crowd).check()}
                    else:
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
    parser.add_argument("--crowd", type=int, default=0, metavar="MANY", help="containers at once")
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
        names = options.engines or (list(WORDS) if options.crowd else list(ENGINES))
        if options.crowd and (unknown := set(names) - set(WORDS)):
            sys.exit(f"conformance/engines/run: no crowd in {', '.join(sorted(unknown))}, only in {', '.join(WORDS)}")
        results = run(names, runtimes, Path(folder), options.crowd)
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
