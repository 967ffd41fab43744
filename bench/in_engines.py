"""What `podman run`, `ctr run` and `docker run` cost with pyoci in them, beside the same with runc and crun.

    bench/run --engines [--pyoci PATH] [--rounds N] [--json FILE]

The engines are those of conformance/engines, unmodified and in private namespaces with cgroup v1.  Runs alternate, and
a ratio is the median of the ratios within the rounds, as in bench.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "conformance" / "engines"))

import engines  # noqa: E402
from engine import Engine  # noqa: E402

from bench import ratio, turns  # noqa: E402

MEASURED = ("podman", "docker", "containerd")
MOST = 1.0  # times runc


def command(engine: Engine, number: int) -> str:
    """A container that ends at once."""
    name = f" b{number}" if engine.name == "containerd" else ""
    return f"{engine.words['run']} {engine.words['image']}{name} true"


def measure(kind: type[Engine], runtimes: dict[str, str], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, by runtime."""
    image = folder / "image.tar"
    started = {label: kind(folder / f"{kind.name[0]}{label}", path, image) for label, path in runtimes.items()}
    numbers = itertools.count()
    try:
        for engine in started.values():
            engine.start()
        return turns(list(started), rounds, lambda label: run(started[label], next(numbers)), 1)
    finally:
        for engine in started.values():
            engine.stop()


def run(engine: Engine, number: int) -> float:
    """Seconds of one run."""
    words = ["sh", "-c", command(engine, number)]
    begin = time.perf_counter()
    done = subprocess.run(
        words, env=engine.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    spent = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"bench: {engine.name} with {engine.runtime}: {done.stderr}")
    return spent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", action="store_true", help=argparse.SUPPRESS)
    beside = Path(sys.executable).parent / "pyoci"
    parser.add_argument("--pyoci", default=str(beside) if beside.exists() else shutil.which("pyoci"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0 or options.pyoci is None:
        sys.exit("bench/run --engines: needs root, and an installed pyoci (--pyoci VENV/bin/pyoci)")
    engines.isolate()
    runtimes = {"pyoci": os.path.abspath(options.pyoci)}
    runtimes |= {name: path for name in ("runc", "crun") if (path := shutil.which(name))}
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="pb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        engines.make_image(folder)
        for kind in (engines.ENGINES[engine] for engine in MEASURED):
            missing = [program for program in kind.needs if shutil.which(program) is None]
            if missing:
                print(f"{kind.name}: not installed: {', '.join(missing)}")
                continue
            results[kind.name] = measure(kind, runtimes, folder, options.rounds)
    bad = False
    print(f"{'run of true, median ms':24}" + "".join(f"{label:>9}" for label in runtimes) + "   pyoci / the others")
    for name, seconds in results.items():
        ratios = {
            label: value
            for label in runtimes
            if label != "pyoci" and (value := ratio(seconds, "pyoci", label)) is not None
        }
        bad = bad or ratios.get("runc", 0) > MOST
        medians = "".join(f"{1000 * statistics.median(seconds[label]):9.1f}" for label in runtimes)
        print(f"{name:24}{medians}   " + ", ".join(f"{label} {value:.2f}" for label, value in ratios.items()))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
