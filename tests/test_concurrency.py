"""Many commands at once: nothing is lost, nothing is left, and who comes second hears why."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from containers import HERE, Box, cgroups_of, needed, processes_of, until

pytestmark = needed
MANY = 100  # containers
WORKERS = 50
ROUNDS = 8  # commands of each worker
LIMIT = 120  # seconds for a command among fifty others on a small machine


def mounts() -> Counter[str]:
    """What is mounted where in our mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return Counter(" ".join(line.split()[3:5]) for line in lines)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Crowd(Box):
    """A box whose containers have a bundle each, and share its root."""

    def new_id(self) -> str:
        """None is the beginning of another."""
        self.ids.append(f"{super().new_id()}-x")
        return self.ids[-1]

    def bundle_of(self, id: str) -> str:
        path = self.folder / "bundles" / id
        path.mkdir(parents=True, exist_ok=True)
        self.linux["cgroupsPath"] = f"/{id}"
        self.config["root"]["path"] = str(self.rootfs)
        (path / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        return str(path)

    def quiet(self, *args: str) -> tuple[int, str]:
        """Exit status and stderr of a command, whose container has /dev/null."""
        read, write = os.pipe()
        os.close(write)
        error = self.folder / f"error-{random.getrandbits(60):x}"
        with error.open("w") as file:
            done = subprocess.run(
                self.command(*args), stdin=read, stdout=subprocess.DEVNULL, stderr=file, timeout=LIMIT, check=False
            )
        os.close(read)
        text = error.read_text(encoding="utf-8")
        error.unlink()
        return done.returncode, text

    def nothing_left(self, ids: list[str]) -> None:
        """Of any of these containers."""
        for id in ids:
            until(lambda: not cgroups_of(id) and not processes_of(id), f"cgroups and processes of {id}")  # noqa: B023
        assert list(self.states.iterdir()) == []
        assert json.loads(self.ok("list", "--format", "json") or "null") in (None, [])


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    made = Crowd(tmp_path)
    made.process["args"] = ["sleep", "1000"]
    try:
        yield made
    finally:
        for id in made.ids:
            made("delete", "--force", id)
        made.close()


def test_a_hundred_containers_at_once(crowd: Crowd) -> None:
    """Each command of a life, a hundred times at once."""
    crowd.linux["resources"] = {"pids": {"limit": 7}}
    mounted, there = mounts(), files(crowd.rootfs)
    ids = [crowd.new_id() for _ in range(MANY)]
    bundles = {id: crowd.bundle_of(id) for id in ids}
    with ThreadPoolExecutor(MANY) as pool:
        made = list(pool.map(lambda id: crowd.quiet("create", "--bundle", bundles[id], id), ids))
        assert set(made) == {(0, "")}, Counter(made)
        found = {entry["id"]: entry for entry in json.loads(crowd.ok("list", "--format", "json"))}
        assert set(found) == set(ids) and {entry["status"] for entry in found.values()} == {"created"}
        assert len({entry["pid"] for entry in found.values()}) == MANY
        assert {tuple(processes_of(id)) for id in ids} == {(entry["pid"],) for entry in found.values()}
        assert set(pool.map(lambda id: crowd.quiet("start", id), ids)) == {(0, "")}
        assert set(pool.map(lambda id: crowd.quiet("exec", id, "true"), ids)) == {(0, "")}
        states = list(pool.map(lambda id: json.loads(crowd.ok("state", id))["status"], ids))
        assert set(states) == {"running"}
        assert set(pool.map(lambda id: crowd.quiet("kill", id, "KILL"), ids)) == {(0, "")}
        for id in ids:
            until(lambda: json.loads(crowd.ok("state", id))["status"] == "stopped")  # noqa: B023
        assert set(pool.map(lambda id: crowd.quiet("delete", id), ids)) == {(0, "")}
    crowd.nothing_left(ids)
    assert mounts() == mounted
    assert files(crowd.rootfs) == there


@pytest.mark.parametrize("seed", range(2))
def test_fifty_race_on_few_names(crowd: Crowd, seed: int) -> None:
    """Everybody does anything to five containers; each command works or says in one line why it did not."""
    mounted, there = mounts(), files(crowd.rootfs)
    ids = [crowd.new_id() for _ in range(5)]
    bundles = {id: crowd.bundle_of(id) for id in ids}
    heard: Counter[str] = Counter()

    def work(number: int) -> list[tuple[tuple[str, ...], int, str]]:
        chance = random.Random(1000 * seed + number)
        done = []
        for _ in range(ROUNDS):
            id = chance.choice(ids)
            words = chance.choice(
                [
                    ("create", "--bundle", bundles[id], id), ("create", "--bundle", bundles[id], id),
                    ("run", "--detach", "--bundle", bundles[id], id),
                    ("start", id), ("start", id), ("exec", id, "true"), ("exec", id, "true"), ("state", id),
                    ("kill", id, "KILL"), ("delete", id), ("delete", "--force", id), ("pause", id), ("resume", id),
                    ("ps", id),
                ]
            )  # fmt: skip
            done.append((words, *crowd.quiet(*words)))
        return done

    with ThreadPoolExecutor(WORKERS) as pool:
        for results in pool.map(work, range(WORKERS)):
            for words, status, error in results:
                heard[f"{words[0]} {status}"] += 1
                if status == 0:
                    assert error == "" or words[0] == "delete", (words, error)
                elif (words[0], status) != ("exec", 137):  # its program was killed with the container: passed through
                    assert error.count("\n") == 1 and re.match(r"pyoci( \w+ failed)?: ", error), (words, status, error)
                    assert "Traceback" not in error and "assert" not in error, (words, status, error)
    assert heard["create 0"] and heard["run 0"] + heard["start 0"], heard
    for id in ids:
        assert crowd.quiet("delete", "--force", id)[0] == 0
    crowd.nothing_left(ids)
    assert mounts() == mounted
    assert files(crowd.rootfs) == there


@pytest.mark.parametrize("command", ["create", "start", "delete"])
def test_one_of_fifty_wins(crowd: Crowd, command: str) -> None:
    """The same command fifty times at once on one name: one succeeds, the others hear that they came too late."""
    id = crowd.id
    create = ("create", "--bundle", crowd.bundle_of(id), id)
    if command != "create":
        assert crowd.quiet(*create) == (0, "")
    if command == "delete":
        assert crowd.quiet("kill", id, "KILL") == (0, "")
        until(lambda: json.loads(crowd.ok("state", id))["status"] == "stopped")
    words = {"create": create, "start": ("start", id), "delete": ("delete", id)}[command]
    with ThreadPoolExecutor(WORKERS) as pool:
        answers = list(pool.map(lambda _: crowd.quiet(*words), range(WORKERS)))
    assert [status for status, _ in answers].count(0) == 1, Counter(answers)
    late = {"create": "exists", "start": "cannot start", "delete": "does not exist"}[command]
    assert all(late in error and error.count("\n") == 1 for status, error in answers if status), Counter(answers)
    if command != "delete":
        state = json.loads(crowd.ok("state", id))
        assert state["status"] == {"create": "created", "start": "running"}[command]
        assert processes_of(id) == [state["pid"]]
        assert crowd.quiet("delete", "--force", id) == (0, "")
    crowd.nothing_left([id])


def test_a_crowd_after_an_installation_does_not_compile_in_a_crowd(tmp_path: Path, build: Callable[..., Path]) -> None:
    """Forty first commands: one of them compiles, the others do not wait for it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    package = tmp_path / "env" / "lib" / version / "site-packages" / "pyoci"
    shutil.copytree(HERE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "env" / "bin").mkdir()
    launcher = tmp_path / "env" / "bin" / "pyoci"
    shutil.copy(build(platform.machine()) / "pyoci", launcher)
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve().parent
    (tmp_path / "env" / "pyvenv.cfg").write_text(f"home = {base}\n")
    words = ["strace", "-f", "-qq", "-e", "trace=execve", "-o", str(tmp_path / "calls"), "-A"]
    words += [str(launcher), "--root", str(tmp_path / "states"), "state", "nobody"]
    old = os.umask(0o022)
    try:
        with ThreadPoolExecutor(40) as pool:
            answers = pool.map(lambda _: subprocess.run(words, capture_output=True, check=False).returncode, range(40))
            assert set(answers) == {1}
    finally:
        os.umask(old)
    calls = (tmp_path / "calls").read_text(encoding="utf-8", errors="replace")
    writers = calls.count("no_debug_ranges")
    # and perhaps a few who looked for them before the first had done, and were so slow to end that it has by then
    assert 1 <= writers <= 4, f"{writers} wrote archives"
    assert sorted(path.suffix for path in (package / "__pycache__").glob("*.lock")) == []
