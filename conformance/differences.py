"""What differs between runtimes or fails in a suite of somebody else's: the rows of a file with the reasons, and what a
run shows beyond them.

    file | test | who fails | reason

"Who" is "all", or the names of those that fail; "~" before it says that it may pass (a race in the test).  A test that
is skipped with one runtime and run with another differs too: its row has "skip" before the name, as in "skip:runc".
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple, Protocol

Results = dict[str, dict[str, dict[str, str]]]  # file -> runtime -> test -> "ok", "skip" or "fails"


class Row(NamedTuple):
    """`who` -> "fails" or "skip"; "all" is everybody."""

    who: dict[str, str]
    uncertain: bool
    reason: str

    def expected(self, runtime: str) -> str:
        return self.who.get(runtime) or self.who.get("all", "ok")


Explained = dict[tuple[str, str], Row]


def read(path: Path) -> Explained:
    """The rows of a file."""
    found: Explained = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        fields = [part.strip() for part in line.split(" | ")]
        if len(fields) != 4 or not all(fields):
            raise ValueError(f"{path}:{number}: file | test | who fails | reason")
        file, test, who, reason = fields
        names = {}
        for word in who.removeprefix("~").split():
            kind, _, name = word.rpartition(":")
            names[name] = kind or "fails"
        found[file, test] = Row(names, who.startswith("~"), reason)
    return found


def notable(results: Results) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Every test that fails with somebody, or is not the same with all: file, name, runtime -> outcome."""
    for file, by_runtime in results.items():
        tests = dict.fromkeys(test for found in by_runtime.values() for test in found)
        for test in tests:
            outcomes = {name: found.get(test, "missing") for name, found in by_runtime.items()}
            if len(set(outcomes.values())) > 1 or "fails" in outcomes.values():
                yield file, test, outcomes


def surprises(results: Results, explained: Explained, whole: bool = True) -> list[str]:
    """What is not as the rows say, passes too; where files ran `whole`, rows about tests that there are not."""
    found = []
    seen = {(file, test): outcomes for file, test, outcomes in notable(results)}
    for (file, test), outcomes in seen.items():
        row = explained.get((file, test))
        for name, outcome in outcomes.items():
            expected = row.expected(name) if row else "ok"
            if outcome != expected and not (row and row.uncertain):
                found.append(f"{file}: {test}: {outcome} with {name}" + (f" ({row.reason})" if row else ""))
    for (file, test), row in explained.items():
        if file in results and (file, test) not in seen and not row.uncertain:
            ran = any(test in by_test for by_test in results[file].values())
            expects = any(row.expected(name) == "fails" for name in results[file])
            if (expects and ran) or (whole and not ran):
                found.append(f"{file}: {test}: " + ("passes" if ran else "there is no such test") + f" ({row.reason})")
    return found


def counts(outcomes: Iterable[str]) -> str:
    """How many pass, + are skipped, and **fail**."""
    found = list(outcomes)
    skipped, failed = found.count("skip"), len(found) - found.count("ok") - found.count("skip")
    return f"{found.count('ok')}" + f" + {skipped}" * bool(skipped) + f", **{failed}**" * bool(failed)


def version(program: str) -> str:
    """Its first line about its version."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.partition("\n")[0]


def table(title: str, programs: Iterable[str], results: Results, explained: Explained) -> str:
    """Markdown: how many tests of each file pass with each runtime; every failure and difference, with its reason."""
    names = list(next(iter(results.values())))
    said = ", ".join(filter(None, map(version, programs)))
    lines = [f"# {title}", "", f"{said}. Tests that pass, + are skipped, and **fail**.", ""]
    lines += ["| file | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for file, by_runtime in results.items():
        lines.append(f"| {file} | " + " | ".join(counts(by_runtime[name].values()) for name in names) + " |")
    totals = [counts(outcome for by in results.values() for outcome in by[name].values()) for name in names]
    lines += ["| all | " + " | ".join(totals) + " |", "", "Failures and differences:", ""]
    lines += [f"| file | test | {' | '.join(names)} | why |", "|---" * (len(names) + 3) + "|"]
    for file, test, outcomes in notable(results):
        row = explained.get((file, test))
        cells = " | ".join(outcomes[name] for name in names)
        lines.append(f"| {file} | {test} | {cells} | {row.reason if row else '**unexplained**'} |")
    return "\n".join(lines) + "\n"


class Runner(Protocol):
    """Runs the tests of a file with one runtime."""

    def run(self, file: str, only: str | None, /) -> tuple[dict[str, str], str, float]:
        """Test -> outcome, all that was printed, and the seconds that it took."""


def run_file(
    pool: Executor, runners: Mapping[str, Runner], file: str, only: str | None, outputs: Path | None, results: Results
) -> None:
    """One file with every runtime, into `results`; what they print goes to files in `outputs`."""
    running = {name: pool.submit(runner.run, file, only) for name, runner in runners.items()}
    for name, future in running.items():
        found, said, seconds = future.result()
        results.setdefault(file, {})[name] = found
        print(f"{file:24}{name:8}{seconds:6.1f} s  {counts(found.values())}", flush=True)
        if "ok" not in found.values():
            # not tests that fail but a suite that did not run
            print(f"{file} with {name} said:\n{said[-2000:]}", flush=True)
        if outputs:
            outputs.mkdir(parents=True, exist_ok=True)
            (outputs / f"{file}-{name}").write_text(said, encoding="utf-8")


def status(results: Results, explained: Explained, whole: bool) -> int:
    """The exit status of a command: 1, and a line for each, when something is not as the rows say."""
    found = surprises(results, explained, whole)
    for line in found:
        print(f"not as expected: {line}")
    return 1 if found else 0
