"""podman's own system tests, of the podman that Debian 12 has, with pyoci and, side by side, with installed peers.

    conformance/podman-system/run                    the files of FILES with pyoci, runc and crun
    conformance/podman-system/run 030-run 075-exec   these
    conformance/podman-system/run --all              every file of the suite
    conformance/podman-system/run --alone            pyoci without peers
    conformance/podman-system/run --report FILE      a table of all of it

The tests come as a Go module, by version; podman, conmon and bats are the distribution's.  Each file is run with all
runtimes at once, each in namespaces of its own with cgroup v1 alone (../inside.sh).  Exits with 1 unless every failure
and every difference is in differences.txt, with its reason; with 77 where what it needs is not there.  Needs root, and
Go for the download.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import differences
import groups
import tap
import testimage

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parents[1] / "contrib" / "containers.conf.d" / "pyoci.conf"
MODULE = "github.com/containers/podman/v4"
VERSION = "v4.3.1"
TIMEOUT = 1800  # seconds for a file
SKIPPED = 77  # exit status where it cannot be run
NEEDS = ("podman", "conmon", "bats", "jq", "unshare", "socat", "busybox")
# Those that reach the runtime; the others are about images, registries, systemd's units and podman's own words.
FILES = (
    "030-run", "032-sig-proxy", "035-logs", "040-ps", "045-start", "050-stop", "055-rm", "060-mount",
    "065-cp", "070-build", "075-exec", "080-pause", "090-events", "130-kill", "140-diff", "160-volumes",
    "170-run-userns", "180-blkio", "190-run-ipcns", "200-pod", "220-healthcheck", "260-sdnotify", "280-update",
    "400-unprivileged-access", "410-selinux", "420-cgroups", "450-interactive", "500-networking", "700-play",
)  # fmt: skip
CONFIGURATION = """\
[containers]
# more than root may have where it lacks CAP_SYS_RESOURCE is podman's default
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{name}"
[network]
network_backend = "netavark"
"""
OWN = ("bin", "home", "tmp")
# what tests leave outside of their directories
LEFT = "myruntime*"
# variables that podman or pyoci's tests would see
OTHERS = ("CONTAINER", "XDG_", "PYTHON")
STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{graph}"\nrunroot = "/run/containers/storage"\n'
PORT = 4999
REGISTRIES = "".join(
    f'[[registry]]\nprefix = "{theirs}"\nlocation = "127.0.0.1:{PORT}{ours}"\ninsecure = true\n'
    for theirs, ours in (("quay.io/libpod", "/libpod"), ("k8s.gcr.io", ""))
)
READY = """\
{python} -I {registry} {images} {port} &
for _ in $(seq 100); do (: </dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.1; done
podman image exists {name} || podman pull -q {name} >/dev/null || exit 99
cd {tests} && exec bats --tap {file}
"""


def download() -> Path:
    """The folder of the tests in Go's cache of modules."""
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not Path(go).exists():
        raise FileNotFoundError("Go is not installed, which downloads podman's tests")
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
    words = [go, "mod", "download", "-json", f"{MODULE}@{VERSION}"]
    told = subprocess.run(
        words, env=environment, check=False, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd="/", timeout=600
    )
    answer = json.loads(told.stdout)
    if "Error" in answer:
        raise FileNotFoundError(f"go mod download: {answer['Error']}")
    return Path(answer["Dir"]) / "test" / "system"


class Runner:
    """podman with one runtime as its default; `folder` is for everything that it keeps."""

    def __init__(self, tests: Path, folder: Path, name: str, runtime: str, images: Path) -> None:
        self.tests, self.folder, self.name, self.images = tests, folder, name, images
        etc = folder / "etc"
        for made in (folder, etc, etc / "containers.conf.d", folder / "storage", *(folder / x for x in OWN)):
            made.mkdir(mode=0o755)
        (folder / "bin" / name).symlink_to(runtime)
        (folder / "bin" / "nc").symlink_to("/bin/busybox")
        (etc / "containers.conf").write_text(CONFIGURATION.format(name=name))
        # as it is shipped, but for the path
        text = SHIPPED.read_text(encoding="utf-8").replace("/usr/local/bin/pyoci", str(folder / "bin" / "pyoci"))
        (etc / "containers.conf.d" / "pyoci.conf").write_text(text)
        (etc / "storage.conf").write_text(STORAGE.format(graph=folder / "storage"))
        (etc / "registries.conf").write_text(REGISTRIES)
        (etc / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        for file in ("subuid", "subgid"):
            (folder / file).write_text("containers:2147483647:2147483648\n")

    def run(self, file: str, names: str | None) -> tuple[dict[str, str], str, float]:
        """test -> "ok", "skip" or "fails"; what was said; seconds."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(OTHERS)},
            "PATH": f"{self.folder}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder / "home"), "LC_ALL": "C.UTF-8", "TMPDIR": str(self.folder / "tmp"),
            "PODMAN_TIMEOUT": "240",
            "PODMAN": f"podman --runtime {self.folder}/bin/{self.name}", "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }  # fmt: skip
        script = READY.format(
            name=f"{testimage.NAME}:{testimage.TAG}", images=self.images, port=PORT, tests=self.tests,
            python=sys.executable, registry=HERE.parent / "registry.py",
            file=f"{file}.bats" + (f" --filter '{names}'" if names else ""),
        )  # fmt: skip
        group = f"pyoci-podman-system-{os.getpid()}-{self.name}"
        words = [str(HERE.parent / "inside.sh"), "v1", group, str(HERE / "inside.sh"), str(self.folder)]
        words += ["bash", "-c", script]
        begun = time.monotonic()
        output = self.folder / "output"
        with output.open("wb") as out:
            running = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
            )
            try:
                running.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
        groups.tidy(group)
        said = output.read_text(encoding="utf-8", errors="replace")
        return outcomes(said), said, time.monotonic() - begun


def outcomes(said: str) -> dict[str, str]:
    """Of each test by name; of several with one name, the worst."""
    found: dict[str, str] = {}
    order = ("ok", "skip", "fails")
    for point in tap.read(said):
        name = point.text.partition(" # skip")[0].strip()
        outcome = "skip" if point.skipped else "ok" if point.good else "fails"
        found[name] = max(outcome, found.get(name, "ok"), key=order.index)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="of the suite, without .bats")
    beside = Path(sys.executable).parent / "pyoci"
    parser.add_argument("--pyoci", default=str(beside) if beside.exists() else shutil.which("pyoci"))
    parser.add_argument("--alone", action="store_true", help="without peers")
    parser.add_argument("--all", action="store_true", help="every file")
    parser.add_argument("--filter", help="only tests whose names match this regular expression")
    parser.add_argument("--report", type=Path, help="where a table of the results goes")
    parser.add_argument("--outputs", type=Path, help="a folder for what the tests say")
    options = parser.parse_args()
    me = "conformance/podman-system/run"
    if os.geteuid() != 0:
        sys.exit(f"{me}: needs root")
    if options.pyoci is None:
        sys.exit(f"{me}: no installed pyoci: pip install . and give --pyoci VENV/bin/pyoci")
    if missing := [name for name in NEEDS if shutil.which(name) is None]:
        print(f"{me}: not installed: {', '.join(missing)}")
        return SKIPPED
    try:
        tests = download()
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        print(f"{me}: {error}")
        return SKIPPED
    there = sorted(path.stem for path in tests.glob("*.bats"))
    chosen = options.files or (there if options.all else FILES)
    if unknown := set(chosen) - set(there):
        sys.exit(f"{me}: the suite has no {', '.join(sorted(unknown))}")
    runtimes = {"pyoci": os.path.abspath(options.pyoci)}
    if not options.alone:
        runtimes |= {name: path for name in ("runc", "crun") if (path := shutil.which(name))}
    explained = differences.read(HERE / "differences.txt")
    results: differences.Results = {}
    others = set(Path("/var/tmp").glob(LEFT))
    with tempfile.TemporaryDirectory(prefix="pyoci-ps-", dir="/var/tmp") as work:
        folder = Path(work)
        folder.chmod(0o755)
        testimage.make(folder / "images")
        runners = {name: Runner(tests, folder / name, name, path, folder / "images") for name, path in runtimes.items()}
        with ThreadPoolExecutor(len(runners)) as pool:
            for file in chosen:
                differences.run_file(pool, runners, file, options.filter, options.outputs, results)
    for left in set(Path("/var/tmp").glob(LEFT)) - others:
        left.unlink(missing_ok=True)
    if options.report:
        title = f"podman's system tests {VERSION}, cgroup v1"
        programs = ("podman", "conmon", "bats", *runtimes.values())
        options.report.write_text(differences.table(title, programs, results, explained), encoding="utf-8")
    return differences.status(results, explained, whole=not options.filter)


if __name__ == "__main__":
    sys.exit(main())
