"""runc's own integration suite with pyoci and, side by side, with crun and with runc of the suite's version.

    conformance/runc-integration/run                  every file with pyoci; exits with 1 unless all is as expected
    conformance/runc-integration/run --peers          the same beside runc and crun
    conformance/runc-integration/run exec state       these files
    conformance/runc-integration/run --quick          a part of it that takes a minute
    conformance/runc-integration/run --suite 1.1.5    that of Debian 12's runc (1.4.4)
    conformance/runc-integration/run --layout v2      with cgroup v2 alone (v1); "machine": as the machine has them
    conformance/runc-integration/run --systemd        with --systemd-cgroup, on a machine that may be used for that
    conformance/runc-integration/run --report FILE    a table of all of it

The suite comes as a Go module (built.py); every file is run with all runtimes at once, each in namespaces and cgroups
of its own (../inside.sh).  What fails with pyoci is in differences-VERSION.txt (and -LAYOUT), with its reason; what
fails with others is in the table.  Checkpoints are left out: CRIU's abilities are the machine's.  Needs root, Go, bats,
jq and gawk.
"""

from __future__ import annotations

import argparse
import os
import platform
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import built
import differences
import groups
import tap

HERE = Path(__file__).resolve().parent
TIMEOUT = 900
LINGER = 20  # seconds: what a failed test has left keeps bats from ending
NEEDS = ("bats", "jq", "gawk", "gcc", "unshare", "busybox", "ip")
LEFT_OUT = ("checkpoint", "mounts_sshfs")
WAITS = re.compile(r"^\s*wait( #|$)", re.MULTILINE)  # for bats' own clock as well
# recvtty is started in the background, and its socket not waited for: a runtime or a machine may be faster
EARLY = re.compile(r"connect .*/tty/sock: no such file or directory")
ENDING = re.compile(r" # (skip|timeout)\b.*")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# a part of it that is done in a minute
QUICK = ("hooks", "kill", "list", "ps", "start", "start_detached", "start_hello", "state", "umask")


class Runner:
    """The suite with one runtime; `folder` is for everything that it keeps."""

    def __init__(self, suite: built.Suite, folder: Path, name: str, runtime: str, options: argparse.Namespace) -> None:
        self.folder, self.name, self.runtime, self.options = folder, name, runtime, options
        source = built.sources(suite)
        self.tests = folder / "tests" / "integration"
        shutil.copytree(source / "tests" / "integration", self.tests)
        (folder / "tests" / "cmd").symlink_to(source / "tests" / "cmd")
        (folder / "contrib").symlink_to(source / "contrib")
        (folder / "go.mod").symlink_to(source / "go.mod")
        (folder / "tmp").mkdir(mode=0o755)
        images = {"busybox": built.busybox()}
        if any("setup_debian" in (self.tests / f"{file}.bats").read_text() for file in options.files):
            images["debian"] = built.debian()
        for image in ("busybox", "debian"):
            # all are looked for by all
            name = f"{image}-{ARCHITECTURES[platform.machine()]}.tar.xz"
            (self.tests / "testdata" / name).symlink_to(images.get(image, images["busybox"]))

    def run(self, file: str, names: str | None) -> tuple[dict[str, str], str, float]:
        """test -> "ok", "skip" or "fails"; what was said; seconds.  A file that was too early has two more attempts."""
        for _ in range(2):
            done = self.once(file, names)
            if not EARLY.search(done[1]):
                return done
        return self.once(file, names)

    def once(self, file: str, names: str | None) -> tuple[dict[str, str], str, float]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XDG_"))}
        environment |= {"RUNC": self.runtime, "TMPDIR": str(self.folder / "tmp"), "LC_ALL": "C.UTF-8"}
        if not WAITS.search((self.tests / f"{file}.bats").read_text(encoding="utf-8")):
            environment["BATS_TEST_TIMEOUT"] = "120"
        environment["PATH"] = f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{Path(built.go()).parent}"
        if self.options.systemd:
            environment["RUNC_USE_SYSTEMD"] = "yes"
        group = f"pyoci-runc-integration-{os.getpid()}-{self.name}"
        words = [str(HERE.parent / "inside.sh"), self.options.layout, group]
        # runc opens /dev/tty
        words += ["setsid", "--ctty", "--wait", "bats", "--tap", f"{file}.bats"]
        if names:
            words += ["--filter", names]
        begun = time.monotonic()
        output = self.folder / "output"
        master, slave = pty.openpty()
        with output.open("wb") as out:
            running = subprocess.Popen(
                words, stdin=slave, stdout=out, stderr=out, env=environment, cwd=self.tests, start_new_session=True
            )
            os.close(slave)
            complete = 0.0
            while running.poll() is None:
                time.sleep(0.1)
                now = time.monotonic()
                if not complete and finished(output.read_text(encoding="utf-8", errors="replace")):
                    complete = now
                if now - begun > TIMEOUT or (complete and now - complete > LINGER):
                    os.killpg(running.pid, signal.SIGKILL)
                    groups.thaw(group)
                    running.wait()
        os.close(master)
        groups.tidy(group)
        said = output.read_text(encoding="utf-8", errors="replace")
        return outcomes(said), said, time.monotonic() - begun


def finished(said: str) -> bool:
    """Whether there are as many points as were announced."""
    plan = next((line for line in said.splitlines() if line.startswith("1..")), None)
    return plan is not None and len(tap.read(said)) >= int(plan[3:])


def outcomes(said: str) -> dict[str, str]:
    """Of each test by name; of several with one name, the worst.  One that was announced and did not come fails."""
    found: dict[str, str] = {}
    order = ("ok", "skip", "fails")
    for point in tap.read(said):
        name = ENDING.sub("", point.text).strip().replace("|", "/")
        outcome = "skip" if point.skipped else "ok" if point.good else "fails"
        found[name] = max(outcome, found.get(name, "ok"), key=order.index)
    if not finished(said):
        found["all of them"] = "fails"
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="of the suite, without .bats (all)")
    beside = Path(sys.executable).parent / "pyoci"
    parser.add_argument("--pyoci", default=str(beside) if beside.exists() else shutil.which("pyoci"))
    parser.add_argument("--suite", choices=tuple(built.SUITES), default="1.4.4")
    parser.add_argument("--layout", choices=("v1", "v2", "machine"), default="v1")
    parser.add_argument("--systemd", action="store_true", help="with --systemd-cgroup (implies --layout machine)")
    parser.add_argument("--peers", nargs="?", const="runc,crun", default="", help="beside these (runc,crun)")
    parser.add_argument("--quick", action="store_true", help="a part that takes a minute")
    parser.add_argument("--filter", default="", help="only tests whose names match this regular expression")
    parser.add_argument("--until", type=int, default=0, help="begin no file after so many minutes")
    parser.add_argument("--report", type=Path, help="where a table of the results goes")
    parser.add_argument("--outputs", type=Path, help="a folder for what the tests say")
    options = parser.parse_args()
    if options.systemd:
        options.layout = "machine"
    return options


def main() -> int:
    options = arguments()
    me = "conformance/runc-integration/run"
    if os.geteuid() != 0:
        sys.exit(f"{me}: needs root")
    if options.pyoci is None:
        sys.exit(f"{me}: no installed pyoci: pip install . and give --pyoci VENV/bin/pyoci")
    if missing := [name for name in NEEDS if shutil.which(name) is None]:
        sys.exit(f"{me}: not installed: {', '.join(missing)}")
    suite = built.SUITES[options.suite]
    tests = built.sources(suite) / "tests" / "integration"
    there = sorted(path.stem for path in tests.glob("*.bats"))
    if unknown := set(options.files) - set(there):
        sys.exit(f"{me}: the suite has no {', '.join(sorted(unknown))}")
    options.files = options.files or (list(QUICK) if options.quick else sorted({*there} - {*LEFT_OUT}))
    runtimes = {"pyoci": os.path.abspath(options.pyoci)}
    if options.peers:
        runtimes |= {name: path for name in options.peers.split(",") if (path := shutil.which(name))}
        if "runc" in runtimes and options.suite != "1.1.5":
            runtimes["runc"] = str(built.runc(suite))
    explained = differences.read(HERE / f"differences-{options.suite}.txt")
    other = HERE / f"differences-{options.suite}-{options.layout}.txt"
    if other.exists():
        explained |= differences.read(other)
    results: differences.Results = {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyoci-ri-", dir="/var/tmp") as work:
        folder = Path(work)
        folder.chmod(0o755)
        runners = {name: Runner(suite, folder / name, name, path, options) for name, path in runtimes.items()}
        with ThreadPoolExecutor(1 if options.layout == "machine" else len(runners)) as pool:
            for file in options.files:
                if options.until and time.monotonic() - begun > 60 * options.until:
                    print(f"not run: {', '.join(name for name in options.files if name not in results)}")
                    break
                differences.run_file(pool, runners, file, options.filter, options.outputs, results)
    if options.report:
        way = options.layout + ", systemd" * options.systemd
        title = f"runc's integration suite {suite.version}, cgroup {way}"
        title += f", Linux {platform.release()}"
        text = differences.table(title, runtimes.values(), results, explained)
        options.report.write_text(text, encoding="utf-8")
    ours = {file: {"pyoci": by_runtime["pyoci"]} for file, by_runtime in results.items()}
    return differences.status(ours, explained, whole=not options.filter)


if __name__ == "__main__":
    sys.exit(main())
