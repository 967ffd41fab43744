"""runtime-tools' validation suite: built from its Go module, run with pyoci and, side by side, with installed peers.

    conformance/runtime-tools/run                         pyoci; exits with 1 unless everything is as expected
    conformance/runtime-tools/run --peers                 the same beside the runc and crun that are installed
    conformance/runtime-tools/run hostname linux_seccomp  only these programs
    conformance/runtime-tools/run --layout v2             with cgroup v2 alone (v1)
    conformance/runtime-tools/run --report FILE           a table of all of it

The version is that of go.mod, what is expected in expectations.txt.  It needs root and Go (once: what is built is
kept), and takes some minutes for each runtime.  Every program runs in a mount namespace of its own, and one at a time:
all use the same cgroups.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import expectations
import tap

HERE = Path(__file__).resolve().parent
MODULE = "github.com/opencontainers/runtime-tools"
LOCK = "/run/lock/pyoci-runtime-tools"
TIMEOUT = 150
# Statements of the suite that cannot be right, by file: what it says, and what it means.  Nothing else is changed.
REPAIRS = {
    # since runtime-spec 1.3.0 both are pointers, which are never equal
    "validation/util/linux_resources_pids.go": (
        "lpd.Limit == config.Linux.Resources.Pids.Limit",
        "lpd.Limit != nil && *lpd.Limit == *config.Linux.Resources.Pids.Limit",
    ),
}
# What a program sees of cgroups.  cgroup2 is mounted without options: they would be those of the whole machine.
LAYOUTS = {
    "v1": "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi",
    "v2": "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup",
}
MARKS = {"v1": "/sys/fs/cgroup/memory", "v2": "/sys/fs/cgroup"}
# Groups that the suite leaves behind.
GROUPS = ("cgrouptest", "testdir")


# For a runtime that knows only the version KNOWN: documents are said to be of it.
RENAMED = """\
for word; do
    test "$before" != --bundle || sed -i 's/"ociVersion": *"1.3.0"/"ociVersion": "KNOWN"/' "$word/config.json"
    before=$word
done
"""


def lacking() -> frozenset[str]:
    """What expectations.txt calls E:WHAT, of what this machine has not."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    bounding = int(status.partition("CapBnd:")[2].split()[0], 16)
    profiles = Path("/sys/kernel/security/apparmor/profiles")
    try:
        confined = "acme_secure_profile " in profiles.read_text(encoding="utf-8")
    except OSError:
        confined = False
    present = {
        "CAP_SYS_RESOURCE": bool(bounding >> 24 & 1),  # linux/capability.h
        "acme_secure_profile": confined,
        "hugetlb": os.path.ismount("/sys/fs/cgroup/hugetlb"),
        # one may be a link to both
        "net_cls": all(os.path.ismount(os.path.realpath(f"/sys/fs/cgroup/{name}")) for name in ("net_cls", "net_prio")),
    }
    return frozenset(name for name, there in present.items() if not there)


def version() -> str:
    """The suite's, from go.mod."""
    for line in (HERE / "go.mod").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"require {MODULE} "):
            return line.split()[2]
    raise ValueError(f"go.mod requires no {MODULE}")


def repair(source: Path) -> None:
    """Put right what REPAIRS has in a copy of the suite."""
    for name, (wrong, right) in REPAIRS.items():
        text = (source / name).read_text(encoding="utf-8")
        if text.count(wrong) != 1:
            raise ValueError(f"{name} of runtime-tools {version()} does not say {wrong!r} once: is its repair needed?")
        (source / name).write_text(text.replace(wrong, right), encoding="utf-8")


def build() -> Path:
    """The folder of the built suite: its programs, and runtimetest and the archive of a root that they want."""
    recipe = b"".join((HERE / name).read_bytes() for name in ("go.mod", "go.sum")) + repr(REPAIRS).encode()
    cache = Path("/var/cache/pyoci-check")
    folder = cache / f"runtime-tools-{version()}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if folder.exists():
        return folder
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not Path(go).exists():
        raise FileNotFoundError("Go is not installed, and the suite is not built yet")
    cache.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    with tempfile.TemporaryDirectory(dir=cache, prefix="runtime-tools-") as work:
        asked = [go, "mod", "download", "-json", f"{MODULE}@{version()}"]
        told = subprocess.run(asked, cwd=HERE, env=environment, check=True, stdout=subprocess.PIPE).stdout
        source, made = Path(work) / "source", Path(work) / "made"
        # without its mode: what is in Go's cache cannot be written
        shutil.copytree(json.loads(told)["Dir"], source, copy_function=shutil.copyfile)
        for path, _, _ in os.walk(source):
            os.chmod(path, 0o755)
        repair(source)
        made.mkdir()
        words = [go, "build", "-trimpath", "-o", f"{made}/", "./cmd/runtimetest", "./validation/..."]
        subprocess.run(words, cwd=source, env=environment, check=True, stdin=subprocess.DEVNULL)
        for archive in source.glob("rootfs-*.tar.gz"):
            shutil.copy(archive, made / archive.name)
        made.chmod(0o755)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else somebody was faster
                raise
    return folder


def older(runtime: str) -> str:
    """The version of the specification that a runtime of before 1.1 says it knows; "" for a newer one.

    Such a runtime may refuse any other (crun 1.8 does), and the suite's documents are of 1.3.0.
    """
    told = subprocess.run([runtime, "--version"], stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
    words = [line.removeprefix("spec:").strip() for line in told.splitlines() if line.startswith("spec:")]
    return words[0] if words and words[0].startswith("1.0.") else ""


def programs(suite: Path) -> list[str]:
    return sorted(path.name for path in suite.iterdir() if path.name != "runtimetest" and "." not in path.name)


class Runner:
    """Runs programs with one runtime; `folder` is for bundles, the runtime's state, and the suite's own files."""

    def __init__(self, suite: Path, folder: Path, runtime: str, layout: str) -> None:
        self.suite, self.folder, self.layout = suite, folder, layout
        self.root, self.bundles, self.cwd = folder / "state", folder / "tmp", folder / "cwd"
        for made in (folder, self.root, self.bundles, self.cwd):
            made.mkdir(mode=0o755)
        for path in suite.iterdir():
            if path.name == "runtimetest" or "." in path.name:
                # copies: a symbolic link would be copied into the bundle as such
                shutil.copy(path, self.cwd / path.name)
        # programs start one word
        self.runtime = folder / "runtime"
        known = older(runtime)
        change = RENAMED.replace("KNOWN", known) if known else ""
        self.runtime.write_text(f'#!/bin/sh\n{change}exec {runtime} --root {self.root} "$@"\n')
        self.runtime.chmod(0o755)

    def inside(self, *command: str) -> subprocess.Popen[str]:
        """A command in a mount namespace that sees one layout, and a session, of its own."""
        script = f'{LAYOUTS[self.layout]}; cd {self.cwd} && exec "$@"'
        words = ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *command]
        environment = {**os.environ, "RUNTIME": str(self.runtime), "TMPDIR": str(self.bundles)}
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        return subprocess.Popen(
            words, stdin=null, stdout=pipe, stderr=pipe, env=environment, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip

    def run(self, program: str) -> expectations.Result:
        """One program, and the end of whatever it left."""
        running = self.inside(str(self.suite / program))
        status: int | None
        try:
            said, complained = running.communicate(timeout=TIMEOUT)
            status = running.returncode
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            said, complained = running.communicate()
            status = None
        for id in os.listdir(self.root):
            self.inside(str(self.runtime), "delete", "--force", id).communicate(timeout=TIMEOUT)
        shutil.rmtree(self.bundles, ignore_errors=True)
        self.bundles.mkdir(mode=0o755, exist_ok=True)
        return expectations.Result(tap.read(said), status, f"{said}\n{complained}")


def groups() -> list[Path]:
    """The groups of the suite that exist, in all hierarchies."""
    mounts = [line.split()[4:] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    tops = [Path(fields[0]) for fields in mounts if fields[fields.index("-") + 1].startswith("cgroup")]
    return [top / name for top in tops for name in GROUPS if (top / name).exists()]


def tidy() -> None:
    """Remove the groups that the suite leaves; only what is empty can be."""
    for group in groups():
        for path, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(path)
            except OSError:
                pass


def table(layout: str, results: dict[str, dict[str, expectations.Result]], expected: expectations.Expectations) -> str:
    """Markdown: a row for each program, a column for each runtime, and the reasons of what pyoci does not pass."""
    names = list(results)
    lines = [
        f"# runtime-tools {version()}, cgroup {layout}",
        "",
        f"Linux {platform.release()}, {platform.machine()}. Numbers are points; **bold** is what failed.",
        "",
        "| program | " + " | ".join(names) + " | expected of pyoci, and why |",
        "|---" * (len(names) + 2) + "|",
    ]
    for program in next(iter(results.values())):
        cells = []
        for name in names:
            result = results[name][program]
            text = result.summary
            if result.faults:
                status = f", exit {result.status}" if result.status else ", too slow" if result.status is None else ""
                text = f"**{text}{status}**"
            cells.append(text)
        reasons = expected.failures.get(program, {})
        by_reason: dict[str, list[str]] = {}
        for point, reason in reasons.items():
            by_reason.setdefault(reason, []).append(point)
        cells.append("; ".join(f"{', '.join(points)} {reason}" for reason, points in by_reason.items()))
        lines.append(f"| {program} | " + " | ".join(cells) + " |")
    lines.append("| **programs that pass** | " + " | ".join(f"{passed(results[name])}" for name in names) + " | |")
    return "\n".join(lines) + "\n"


def passed(results: dict[str, expectations.Result]) -> int:
    """How many programs have points, and nothing wrong."""
    return sum(bool(result.points) and not result.faults for result in results.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", help="of the suite (all)")
    beside = Path(sys.executable).parent / "pyoci"
    parser.add_argument("--pyoci", default=str(beside) if beside.exists() else shutil.which("pyoci"))
    parser.add_argument("--peers", action="store_true", help="beside the runc and crun that are installed")
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="v1")
    parser.add_argument("--report", type=Path, help="where a table of the results goes")
    parser.add_argument("--outputs", type=Path, help="a folder for what each program says")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("conformance/runtime-tools/run: needs root")
    if options.pyoci is None:
        sys.exit("conformance/runtime-tools/run: no installed pyoci: pip install . and give --pyoci VENV/bin/pyoci")
    if not Path(MARKS[options.layout]).is_dir():
        sys.exit(f"conformance/runtime-tools/run: this machine has no cgroup {options.layout}")
    suite = build()
    chosen = options.programs or programs(suite)
    if unknown := set(chosen) - set(programs(suite)):
        sys.exit(f"conformance/runtime-tools/run: the suite has no {', '.join(sorted(unknown))}")
    runtimes = {"pyoci": os.path.abspath(options.pyoci)}
    if options.peers:
        runtimes |= {name: path for name in ("runc", "crun") if (path := shutil.which(name))}
    expected = expectations.read(HERE / "expectations.txt", options.layout, lacking())
    results: dict[str, dict[str, expectations.Result]] = {name: {} for name in runtimes}
    with open(LOCK, "w", encoding="utf-8") as lock, tempfile.TemporaryDirectory(prefix="rt-") as work:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if there := groups():
            sys.exit(f"conformance/runtime-tools/run: {there[0]} is in the suite's way: whose is it?")
        folder = Path(work)
        folder.chmod(0o755)
        runners = {name: Runner(suite, folder / name, path, options.layout) for name, path in runtimes.items()}
        try:
            for program in chosen:
                for name, runner in runners.items():
                    begun = time.monotonic()
                    result = results[name][program] = runner.run(program)
                    tidy()  # what one leaves would not be the next one's to remove
                    print(f"{program:32}{name:8}{time.monotonic() - begun:6.1f} s  {result.summary}", flush=True)
                    if options.outputs:
                        options.outputs.mkdir(parents=True, exist_ok=True)
                        (options.outputs / f"{name}-{program}").write_text(result.said, encoding="utf-8")
        finally:
            tidy()
    if options.report:
        options.report.write_text(table(options.layout, results, expected), encoding="utf-8")
    for name, by_program in results.items():
        print(f"{name}: {passed(by_program)} of {len(by_program)} programs pass")
    found = expectations.surprises(results["pyoci"], expected, whole=not options.programs)
    for line in found:
        print(f"not as expected: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
