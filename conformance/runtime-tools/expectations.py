"""What a program of runtime-tools' suite came to, and what was expected of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import tap

# What can be wrong with a program besides its points.
EXIT, TIMEOUT, COMPLAINT = "exit", "timeout", "complaint"
RACE = "R"
CODES = {
    "S": "the suite is wrong, or of an older specification",
    "K": "the kernel has it no more",
    "E": "the environment lacks it",  # "E:WHAT": see lacking() in suite.py
    "P": "we differ on purpose",
    "X": "not done yet",
    RACE: "a race in the suite: it may pass",
}


class Result(NamedTuple):
    """One program's run.  `status` is its exit status, None when it was ended because it took too long."""

    points: tuple[tap.Point, ...]
    status: int | None
    said: str

    @property
    def faults(self) -> dict[str, str]:
        """What is wrong -> in which words.  Points are called by their place in the output, from "1" on.

        The numbers that are printed begin anew in every document.  A program without points is judged by its
        complaints: a diagnostic with an "error" in it.
        """
        found = {
            str(number): point.text for number, point in enumerate(self.points, 1) if not (point.good or point.skipped)
        }
        if self.status is None:
            found[TIMEOUT] = "did not end"
        elif self.status:
            found[EXIT] = f"status {self.status}"
        if not self.points and '"error"' in self.said:
            found[COMPLAINT] = " ".join(line.strip() for line in self.said.splitlines() if '"error"' in line)
        return found

    @property
    def summary(self) -> str:
        """For a table: how many points held, were skipped, did not hold."""
        if not self.points:
            return "complains" if COMPLAINT in self.faults else "asserts nothing" if not self.faults else "no points"
        good = sum(point.good and not point.skipped for point in self.points)
        bad = sum(not (point.good or point.skipped) for point in self.points)
        skipped = sum(point.skipped for point in self.points)
        return f"{good}" + f" + {skipped} skipped" * bool(skipped) + f", {bad} not" * bool(bad)


Expected = dict[str, dict[str, str]]  # program -> what is wrong with it -> "CODE: reason"


class Expectations(NamedTuple):
    """`failures` as in Expected; `silent` are the programs that assert nothing."""

    failures: Expected
    silent: frozenset[str]


def read(path: Path, layout: str, lacking: frozenset[str]) -> Expectations:
    """The rows of a file for one layout of cgroups, on a machine that lacks these; its head says how it is written."""
    failures: Expected = {}
    silent = set()
    applies = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("= "):
            applies = layout in line[2:].split()
        elif line and not line.startswith("#"):
            fields = [part.strip() for part in line.split("|")]
            if len(fields) != 4 or not all(fields):
                raise ValueError(f"{path}:{number}: program | points | code | reason")
            program, points, code, reason = fields
            if points == "nothing":
                silent |= {program} if applies else set()
                continue
            kind, _, what = code.partition(":")
            if kind not in CODES or (kind == "E") != bool(what):
                raise ValueError(f"{path}:{number}: the code is one of {', '.join(CODES)}, with what is lacking if E")
            if applies and (not what or what in lacking):
                failures.setdefault(program, {}).update(dict.fromkeys(numbers(points), f"{kind}: {reason}"))
    return Expectations(failures, frozenset(silent))


def numbers(text: str) -> list[str]:
    """ "2 4-6 exit" -> ["2", "4", "5", "6", "exit"]."""
    found = []
    for word in text.split():
        first, dash, last = word.partition("-")
        found += [str(number) for number in range(int(first), int(last) + 1)] if dash else [word]
    return found


def surprises(results: dict[str, Result], expected: Expectations, whole: bool = True) -> list[str]:
    """Everything that is not as expected, passes too; `whole` when all programs have run."""
    found = []
    for program, result in results.items():
        known = expected.failures.get(program, {})
        found += [f"{program}: {what}: {text}" for what, text in result.faults.items() if what not in known]
        found += [
            f"{program}: {what} passes, but was expected to fail ({reason})"
            for what, reason in known.items() if what not in result.faults and not reason.startswith(RACE)
        ]  # fmt: skip
        silent = not result.points and result.status == 0
        if silent and program not in expected.silent:
            found.append(f"{program}: asserts nothing")
        elif program in expected.silent and not silent:
            found.append(f"{program}: was expected to assert nothing")
    if whole:
        gone = (expected.failures.keys() | expected.silent) - results.keys()
        found += [f"{program}: expected, but the suite has no such program" for program in sorted(gone)]
    return found
