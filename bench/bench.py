"""What containers cost: pyoci beside the runc and crun that are installed.

Every measure is taken alternately: one of each runtime, then again in another order, so that whatever else the machine
does meets all of them.  A ratio is the median of the ratios within the rounds.  Needs root and a C compiler.

With --systemd-cgroup systemd makes the cgroups: the one that is process 1 here, or else that of the virtual machine of
conformance/vm, where everything takes longer and only ratios mean anything.

crun refuses hybrid cgroups, so on such a machine everything runs in a mount namespace where /sys/fs/cgroup/unified is
covered by an empty tmpfs: the hierarchies of v1 are what all of them use.  The machine itself is left as it is.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtimes import Bundle, Failed, Runtime, children, reap

HERE = Path(__file__).resolve().parent
UNIFIED = Path("/sys/fs/cgroup/unified")
INSIDE = "PYOCI_BENCH_INSIDE"
PR_SET_CHILD_SUBREAPER = 36
WARM = 3  # rounds that are not counted
STEP = 16 << 10  # bytes: how finely the smallest memory limit is looked for
HIGHEST = 64 << 20
TRIES = 5  # runs under a limit, most of which must succeed

MEASURES = {
    "run": "run of a static true",
    "create": "create",
    "life": "create + start + delete",
    "exec": "exec of a static true",
}
# measure, beside whom, at most
RATIOS = (("run", "runc", 0.55), ("run", "crun", 1.40), ("life", "runc", 0.80), ("exec", "runc", 0.60))
# with --systemd-cgroup
SYSTEMD = (("create", "runc", 1.30), ("life", "runc", 1.30))
WAITING_RSS = 100  # kB

Samples = dict[str, list[float]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    beside = Path(sys.executable).parent / "pyoci"
    found = str(beside) if beside.exists() else shutil.which("pyoci")
    parser.add_argument("--pyoci", default=found, help="the installed pyoci (default: this interpreter's, or PATH's)")
    parser.add_argument("--runc", default=shutil.which("runc"), help="default: PATH's")
    parser.add_argument("--crun", default=shutil.which("crun"), help="default: PATH's")
    parser.add_argument("--rounds", type=int, default=60, help="how often each is measured (60)")
    parser.add_argument("--no-memory", action="store_true", help="do not look for the smallest memory limit")
    parser.add_argument("--systemd-cgroup", action="store_true", help="have systemd make the cgroups")
    parser.add_argument("--programs", type=Path, help="where true and wait are (default: they are compiled)")
    parser.add_argument("--json", type=Path, help="where the numbers go (bench/results/TIME.json)")
    return parser.parse_args()


def isolate() -> None:
    """Become a process of a private mount namespace in which no runtime sees hybrid cgroups."""
    if os.environ.get(INSIDE) is None:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-m", "--propagation", "private", sys.executable, *sys.argv])
    if "cgroup2" in subprocess.run(["stat", "-fc%T", str(UNIFIED)], capture_output=True, text=True, check=False).stdout:
        subprocess.run(["umount", str(UNIFIED)], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", str(UNIFIED)], check=True)


def in_machine(options: argparse.Namespace) -> int:
    """The same in a virtual machine with systemd and v2, with pyoci on its own disk, where snapshots are kept."""
    prefix = Path(options.pyoci).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="pyoci-bench-") as name:
        folder = Path(name)
        build(folder)
        words = ["--systemd-cgroup", "--programs", name, "--rounds", str(options.rounds), "--json", f"{name}/result"]
        inside = shlex.join(["python3", str(HERE / "bench.py"), "--pyoci", str(options.pyoci), *words])
        (packages,) = prefix.glob("lib/python3*/site-packages/pyoci")
        place = packages.parent.relative_to(prefix)
        script = f"""set -e; mkdir -p /var/tmp/own/{place}; cd {shlex.quote(str(prefix))}
            cp -a bin pyvenv.cfg /var/tmp/own; cp -a {place}/pyoci /var/tmp/own/{place}
            mount --bind /var/tmp/own . ; cd {shlex.quote(str(HERE.parent))}; {inside}"""
        machine = [str(HERE.parent / "conformance/vm/run"), "--timeout", "3600", "--share", f"{prefix}:ro"]
        status = subprocess.run([*machine, "--share", name, "--", "sh", "-c", script], cwd=HERE.parent, check=False)
        if status.returncode == 0 and options.json:
            shutil.copy(folder / "result", options.json)
        return status.returncode


def build(folder: Path) -> None:
    """Compile /true and /wait."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("bench/run: no C compiler: install gcc")
    common = [compiler, "-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-s"]
    for name, define in (("true", []), ("wait", ["-DWAIT"])):
        subprocess.run([*common, *define, "-o", str(folder / name), str(HERE / "programs.c")], check=True)


def turns(names: Sequence[str], rounds: int, measure: Callable[[str], float], warm: int) -> Samples:
    """Seconds of `measure(name)` for each name, in turns, each round in another order; the `warm` first rounds are not
    counted.  One that fails has none, and its words are shown."""
    samples: Samples = {name: [] for name in names}
    able = list(names)
    for number in range(-warm, rounds):
        first = number % len(able) if able else 0
        for name in able[first:] + able[:first]:
            try:
                elapsed = measure(name)
            except Failed as error:
                print(f"{name}: {error}", file=sys.stderr)
                samples[name] = []
                able.remove(name)
                continue
            if number >= 0:
                samples[name].append(elapsed)
    return samples


def alternate(runtimes: list[Runtime], rounds: int, measure: Callable[[Runtime], float]) -> Samples:
    """`turns` of runtimes by hand; what they leave to us is reaped between them."""
    by_name = {runtime.name: runtime for runtime in runtimes}

    def one(name: str) -> float:
        try:
            return measure(by_name[name])
        finally:
            reap()

    return turns(list(by_name), rounds, one, WARM)


def measure_exec(runtimes: list[Runtime], bundle: Bundle, rounds: int) -> Samples:
    """exec of /true in a container of each runtime that does nothing."""
    bundle.write("/wait")
    containers: dict[str, str] = {}
    for runtime in runtimes:
        container = containers[runtime.name] = runtime.container()
        try:
            runtime.create(bundle, container)
            runtime.timed("start", container)
        except Failed:
            pass  # told by the first exec
    try:
        return alternate(runtimes, rounds, lambda runtime: runtime.timed("exec", containers[runtime.name], "/true"))
    finally:
        for runtime in runtimes:
            runtime.remove(containers[runtime.name])


def smallest_limit(runtime: Runtime, bundle: Bundle) -> int | None:
    """The smallest memory limit, in bytes, under which `run` of /true succeeds more often than not.

    Just above it a run may fail by chance: processors keep pages of a cgroup for later, which count as used.
    """

    def enough(limit: int) -> bool:
        bundle.write("/true", limit)
        failed = 0
        for _ in range(TRIES):
            try:
                runtime.run(bundle)
            except Failed:
                failed += 1
        return failed <= TRIES // 2

    low, high = 0, HIGHEST
    if not enough(high):
        return None
    while high - low > STEP:
        middle = (low + high) // 2 // STEP * STEP
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def waiting(runtime: Runtime, bundle: Bundle) -> dict[str, int] | None:
    """A container between create and start: its resident memory in kB, and the processes left beside it."""
    bundle.write("/true")
    container = runtime.container()
    before = children()
    try:
        _, pid = runtime.create(bundle, container)
        time.sleep(0.2)
        reap()
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        (resident,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        return {"rss_kb": resident, "others": len(children() - before - {pid})}
    except Failed as error:
        print(f"{runtime.name}: {error}", file=sys.stderr)
        return None
    finally:
        runtime.remove(container)


def ratio(samples: Samples, one: str, other: str) -> float | None:
    """The median, over the rounds, of `one`'s time as a multiple of `other`'s."""
    pairs = list(zip(samples.get(one, []), samples.get(other, []), strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def machine() -> dict[str, str]:
    models = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": models[0].partition(": ")[2] if models else "",
        "processors": str(os.cpu_count()),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What pyoci is to reach, and whether it does; only where there is something to compare with."""
    rows: list[dict[str, Any]] = []

    def row(what: str, value: float | None, limit: float, unit: str = "") -> None:
        if value is not None:
            rows.append({"what": what, "value": value, "limit": limit, "unit": unit, "met": value <= limit})

    for measure, other, limit in SYSTEMD if result["options"] else RATIOS:
        row(f"{MEASURES[measure]} / {other}", result["ratios"][measure].get(other), limit)
    limits = result["smallest_limit"]
    if limits.get("pyoci") and limits.get("crun"):
        row("smallest memory limit / crun", limits["pyoci"] / limits["crun"], 1.0)
    held = result["waiting"].get("pyoci")
    if held:
        row("waiting container: resident", held["rss_kb"], WAITING_RSS, " kB")
        row("waiting container: other processes", held["others"], 0)
    return rows


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    names = list(result["runtimes"])
    width = 36
    lines = [f"{name}: {about['version']}" for name, about in result["runtimes"].items()]
    lines += ["", f"{'':{width}}" + "".join(f"{name:>12}" for name in names)]

    def add(title: str, values: list[str]) -> None:
        lines.append(f"{title:{width}}" + "".join(f"{value:>12}" for value in values))

    for measure, title in MEASURES.items():
        for kind, function in (("median", statistics.median), ("least", min)):
            samples = result["seconds"][measure]
            add(f"{title}, {kind} ms", [f"{function(samples[n]) * 1e3:.2f}" if samples[n] else "-" for n in names])
    limits, held = result["smallest_limit"], result["waiting"]
    add("smallest memory limit, kB", [str(limits[n] // 1024) if limits.get(n) else "-" for n in names])
    add("waiting for start: resident, kB", [str(held[n]["rss_kb"]) if held.get(n) else "-" for n in names])
    add("waiting for start: other processes", [str(held[n]["others"]) if held.get(n) else "-" for n in names])
    lines += ["", f"{'pyoci, median of ratios':{width}}{'is':>12}{'at most':>12}"]
    for row in result["targets"]:
        value = f"{row['value']:.2f}" if isinstance(row["value"], float) else f"{row['value']}{row['unit']}"
        limit = f"{row['limit']:.2f}" if isinstance(row["limit"], float) else f"{row['limit']}{row['unit']}"
        lines.append(f"{row['what']:{width}}{value:>12}{limit:>12}   {'pass' if row['met'] else 'FAIL'}")
    return "\n".join(lines) + "\n"


def measure_all(
    runtimes: list[Runtime], folder: Path, programs: Path, options: argparse.Namespace
) -> dict[str, Any]:
    maker, rounds = runtimes[0], options.rounds
    memory = not options.no_memory and not options.systemd_cgroup
    specification = folder / "spec"
    specification.mkdir()
    subprocess.run([maker.path, "spec"], cwd=specification, check=True)
    bundle = Bundle(folder / "bundle", json.loads((specification / "config.json").read_bytes()), programs)
    seconds: dict[str, Samples] = {}
    bundle.write("/true")
    seconds["run"] = alternate(runtimes, rounds, lambda runtime: runtime.run(bundle))
    seconds["create"] = alternate(runtimes, rounds, lambda runtime: runtime.create_only(bundle))
    seconds["life"] = alternate(runtimes, rounds, lambda runtime: runtime.life(bundle))
    seconds["exec"] = measure_exec(runtimes, bundle, rounds)
    return {
        "machine": machine(),
        "runtimes": {runtime.name: {"path": runtime.path, "version": runtime.version()} for runtime in runtimes},
        "rounds": rounds,
        "options": runtimes[0].options,
        "seconds": seconds,
        "ratios": {
            measure: {r.name: ratio(samples, "pyoci", r.name) for r in runtimes if r.name != "pyoci"}
            for measure, samples in seconds.items()
        },
        "waiting": {runtime.name: waiting(runtime, bundle) for runtime in runtimes},
        "smallest_limit": {runtime.name: smallest_limit(runtime, bundle) for runtime in runtimes} if memory else {},
    }


def main() -> int:
    options = parse()
    if os.geteuid() != 0:
        sys.exit("bench/run: needs root")
    if options.pyoci is None:
        sys.exit("bench/run: no installed pyoci: pip install . and give --pyoci VENV/bin/pyoci")
    if options.systemd_cgroup and not Path("/run/systemd/private").exists():
        return in_machine(options)
    isolate()
    # what a runtime leaves behind becomes a child of ours
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="pyoci-bench-") as name:
        folder = Path(name)
        if options.programs is None:
            build(folder)
        given = ["--systemd-cgroup"] if options.systemd_cgroup else []
        chosen = [("pyoci", options.pyoci), ("runc", options.runc), ("crun", options.crun)]
        runtimes = [Runtime(name, os.path.abspath(path), folder / name, given) for name, path in chosen if path]
        result = measure_all(runtimes, folder, options.programs or folder, options)
    result["targets"] = targets(result)
    output = options.json or HERE / "results" / f"{result['machine']['date'].replace(':', '')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result) + f"\nAll numbers: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
