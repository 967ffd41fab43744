"""runtime-tools' validation suite (conformance/runtime-tools), and what reads it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from modules import load

FOLDER = Path(__file__).resolve().parent.parent / "conformance" / "runtime-tools"
PYOCI = Path(sys.executable).parent / "pyoci"


TAP = load(FOLDER.parent / "tap.py")
EXPECTATIONS = load(FOLDER / "expectations.py")
OUTPUT = """\
TAP version 13
ok 1 - first
  ---
  {
    "error": "not ok 7 - is no point",
    "level": "MUST"
  }  ...
not ok 2 - second
  ---
  {
    "error": "100%!"
  }
  ...
1..2
TAP version 13
ok 1 # SKIP not here
not ok 2 # skip nor this
not ok
1..0
okay, this is no point
"""


def result(text: str, status: int | None = 0) -> object:
    return EXPECTATIONS.Result(TAP.read(text), status, text)


def test_reads_what_the_suite_writes() -> None:
    """Several documents, blocks that end anywhere, numbers that begin anew or are not there, plans that are wrong."""
    points = TAP.read(OUTPUT)
    assert [(point.good, point.skipped, point.text) for point in points] == [
        (True, False, "first"), (False, False, "second"), (True, True, "# SKIP not here"),
        (False, True, "# skip nor this"), (False, False, ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "status", "faults", "summary"),
    [
        (OUTPUT, 0, {"2": "second", "5": ""}, "1 + 2 skipped, 2 not"),
        ("ok 1 - a\n", 0, {}, "1"),
        ("ok 1 - a\n", 3, {"exit": "status 3"}, "1"),
        ("ok 1 - a\n", None, {"timeout": "did not end"}, "1"),
        ("1..0\n", 0, {}, "asserts nothing"),
        ('  ---\n  {\n    "error": "x"\n  }\n  ...\n1..0\n', 0, {"complaint": '"error": "x"'}, "complains"),
        ("", 1, {"exit": "status 1"}, "no points"),
    ],
)
def test_what_is_wrong(text: str, status: int | None, faults: dict[str, str], summary: str) -> None:
    found = result(text, status)
    assert found.faults == faults and found.summary == summary  # type: ignore[attr-defined]


def expected(tmp_path: Path, text: str, layout: str = "v1", lacking: tuple[str, ...] = ()) -> object:
    path = tmp_path / "expectations.txt"
    path.write_text(text)
    return EXPECTATIONS.read(path, layout, frozenset(lacking))


def test_expectations(tmp_path: Path) -> None:
    text = "# no row\n= v1 v2\na | 1 3-4 exit | S | so\na | 7 | E:thing | lacks\n\n= v2\nb | nothing | S | silent\n"
    points = dict.fromkeys(("1", "3", "4", "exit"), "S: so")
    assert expected(tmp_path, text) == ({"a": points}, frozenset())
    both = expected(tmp_path, text, "v2", ("thing",))
    assert both == ({"a": {**points, "7": "E: lacks"}}, frozenset({"b"}))


BAD_ROWS = ["a | 1 | Z | why", "a | 1 | S |", "a | 1 | S", "a | 1 | E | what?", "a | 1 | S:x | y"]


@pytest.mark.parametrize("row", BAD_ROWS)
def test_expectations_need_a_reason(tmp_path: Path, row: str) -> None:
    with pytest.raises(ValueError, match=r"expectations\.txt:2"):
        expected(tmp_path, f"= v1\n{row}\n")


def test_surprises(tmp_path: Path) -> None:
    known = expected(tmp_path, "= v1\na | 1 | S | why\nb | nothing | S | why\nr | 1 | R | races\ngone | 1 | K | why\n")
    good, bad = result("ok 1 - a\n"), result("not ok 1 - a\n")
    assert EXPECTATIONS.surprises({"a": bad, "b": result("1..0\n"), "r": good, "c": good}, known, whole=False) == []
    assert EXPECTATIONS.surprises({"r": bad}, known, whole=False) == []
    assert EXPECTATIONS.surprises({"a": good}, known, whole=False) == ["a: 1 passes, but was expected to fail (S: why)"]
    assert EXPECTATIONS.surprises({"c": bad}, known, whole=False) == ["c: 1: a"]
    assert EXPECTATIONS.surprises({"c": result("1..0\n")}, known, whole=False) == ["c: asserts nothing"]
    assert EXPECTATIONS.surprises({"b": good}, known, whole=False) == ["b: was expected to assert nothing"]
    surprises = EXPECTATIONS.surprises({"a": bad, "b": result("1..0\n"), "r": bad}, known)
    assert [line.partition(":")[0] for line in surprises] == ["gone"]


@pytest.mark.slow
@pytest.mark.root
def test_the_suite(tmp_path: Path) -> None:
    """Every program does what expectations.txt says, with cgroup v1."""
    if not PYOCI.exists():
        pytest.skip("pyoci is not installed beside this interpreter: run ./check")
    if shutil.which("go") is None and not Path("/usr/local/go/bin/go").exists():
        pytest.skip("Go is not installed, which builds runtime-tools' suite")
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("the suite reads cgroup v1's files, and this machine has v2 alone")
    report = tmp_path / "report.md"
    words = [str(FOLDER / "run"), "--pyoci", str(PYOCI), "--report", str(report), "--outputs", str(tmp_path / "said")]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert report.read_text().count("\n| ") > 58
