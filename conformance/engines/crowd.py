"""Many commands at once through an engine: nothing is lost, nothing is mixed up, nothing is left.

First as many containers as were asked for, each command of their lives for all of them at once; then a crowd that does
anything to a few names.  What is left afterwards is looked for in the kernel and on the disk, not asked of the engine.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from engine import Engine

NAMES = 4  # that everybody wants
ROUNDS = 4  # commands of each who races
LIMIT = 300  # seconds for a command in a crowd
PATIENCE = 30.0  # seconds until what ends has ended


class Words(NamedTuple):
    """One engine's commands for a container {name}; `state` is the runtime's directory, in {folder} or not."""

    run: str
    execute: str
    remove: str
    others: tuple[str, ...]
    state: str


# by its status, because ctr may lose the last output of a process, with any runtime
SAY = "sh -c 'test $NAME = {name}'"
ALIKE = Words(
    "{engine} run -d --name {name} {options} --cgroup-parent /{parent} -e NAME={name} {image} sleep {mark}",
    "{engine} exec {name} " + SAY,
    "{engine} rm -f {name}",
    ("start {name}", "kill {name}", "stop -t 0 {name}", "pause {name}", "unpause {name}", "restart -t 0 {name}"),
    "{folder}/exec/runtime-*/moby",
)
WORDS = {
    "podman": ALIKE._replace(remove="{engine} rm -f -t 0 {name}", state="/run/{runtime}"),
    "docker": ALIKE,
    "containerd": Words(
        "{engine} -n {parent} run -d {options} --env NAME={name} {image} {name} sleep {mark}",
        "{engine} -n {parent} task exec --exec-id e{random} {name} " + SAY,
        "{engine} -n {parent} task rm -f {name}; {engine} -n {parent} container rm {name}",
        tuple(
            f"-n {{parent}} {rest} {{name}}"
            for rest in ("task start -d", "task kill -s 9", "task pause", "task resume", "task rm -f", "container rm")
        ),
        "/run/containerd/runc/{parent}",
    ),
}


class Crowd:
    """`many` containers with an engine that has started; `check` gives what is wrong, by name."""

    def __init__(self, engine: Engine, many: int) -> None:
        self.engine, self.many = engine, many
        self.words = WORDS[engine.name]
        self.mark = f"{os.getpid()}{random.randrange(10**6, 10**7)}"
        self.parent = f"pyoci-crowd-{engine.name}-{self.mark}"
        runtime = Path(engine.runtime).name
        self.values = {**engine.words, "folder": str(engine.folder), "mark": self.mark, "parent": self.parent}
        self.values["runtime"] = runtime
        self.failed: dict[str, str] = {}
        if engine.name == "podman":
            # its runtimes' states are where everybody's are
            Path("/run", runtime).mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", f"/run/{runtime}"], check=True)
        if engine.name == "containerd":
            engine.ask(f"{engine.words['engine']} -n {self.parent} images import {engine.folder}/image.tar")

    def do(self, template: str, name: str) -> tuple[int, str]:
        """Exit status and output of a command about a container."""
        command = template.format(**self.values, name=name, random=random.getrandbits(60))
        try:
            done = subprocess.run(
                ["sh", "-c", command], stdin=self.engine.silence[0], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=LIMIT, env=self.engine.environment, check=False, text=True, errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 999, f"{command}: takes more than {LIMIT} s"
        return done.returncode, done.stdout

    def all(self, what: str, template: str, names: list[str]) -> None:
        """A command for all at once, which succeeds with all."""
        with ThreadPoolExecutor(len(names)) as pool:
            answers = list(pool.map(lambda name: self.do(template, name), names))
        bad = [f"{name}: {status} {said}" for name, (status, said) in zip(names, answers, strict=True) if status]
        if bad:
            self.failed[what] = f"{len(bad)} of {len(names)}: {bad[0][:500]}"

    def check(self) -> dict[str, str]:
        folder = self.engine.folder
        template = self.words.run.replace("sleep {mark}", "find / -xdev").replace("run -d", "run --rm")
        files = sorted(self.do(template, "lister")[1].split())
        before = mounts()
        daemons = self.processes(str(folder))
        names = [f"c{number}-x" for number in range(self.many)]
        self.all("run", self.words.run, names)
        if (count := len(self.processes(f"sleep {self.mark}", exact=True))) != self.many:
            self.failed["running"] = f"{count} processes of {self.many} containers"
        self.all("exec", self.words.execute, names)
        self.all("remove", self.words.remove, names)
        self.nothing_left("after all", before, daemons)
        self.race()
        self.nothing_left("after the race", before, daemons)
        if (now := sorted(self.do(template, "lister")[1].split())) != files:
            self.failed["files in the image"] = f"{sorted(set(now) ^ set(files))[:5]}"
        self.tidy()
        return self.failed

    def race(self) -> None:
        """Every command works or says why not; then every name can be removed, and made again."""
        names = [f"few{number}-x" for number in range(NAMES)]
        own = [f"{{engine}} {rest}" for rest in self.words.others]
        choices = [self.words.run] * 4 + [self.words.execute] * 4 + [self.words.remove] * 2 + own
        heard: Counter[str] = Counter()

        def work(seed: int) -> list[tuple[str, int, str]]:
            chance = random.Random(seed)
            done = []
            for _ in range(ROUNDS):
                template = chance.choice(choices)
                done.append((template, *self.do(template, chance.choice(names))))
            return done

        with ThreadPoolExecutor(max(4, self.many // 2)) as pool:
            for results in pool.map(work, range(max(4, self.many // 2))):
                for template, status, said in results:
                    heard[f"{template} {status == 0}"] += 1
                    if status == 999 or (status and not said.strip()):  # noqa: PLR2004 - ours: too slow
                        self.failed["race"] = f"{template}: {status} {said}"
                    if "Traceback" in said or "panic:" in said or "AssertionError" in said:
                        self.failed["race"] = said[-600:]
        if not heard[f"{self.words.run} True"]:
            self.failed["race"] = f"nothing ran: {heard}"
        for name in names:
            self.do("{engine} unpause {name}", name) if self.engine.name != "containerd" else None
            self.do(self.words.remove, name)
            if self.engine.name == "containerd":
                # a task may have outlived its container there, with any runtime, and is found by a new one of that name
                self.do(self.words.run, name)
                self.do(self.words.remove, name)
        self.all("run again", self.words.run, names)
        self.all("remove again", self.words.remove, names)

    def nothing_left(self, when: str, before: Counter[str], daemons: set[int]) -> None:
        end = time.monotonic() + PATIENCE
        while left := self.left(before, daemons):
            if time.monotonic() > end:
                self.failed[when] = left
                return
            time.sleep(0.2)

    def left(self, before: Counter[str], daemons: set[int]) -> str:
        """What there is of containers although there are none, or ""."""
        if found := self.processes(self.mark):
            return f"processes {sorted(found)}"
        if found := self.processes(str(self.engine.folder)) - daemons:
            return f"processes of the engine or the runtime {sorted(found)}"
        if groups := [str(group) for group in self.groups() if group.name != "conmon"]:
            return f"cgroups {groups[:5]}"
        if more := mounts() - before:
            return f"mounts {sorted(more)[:5]}"
        state = self.words.state.format(**self.values)
        top = Path("/")
        if entries := [entry for place in top.glob(state[1:]) for entry in place.iterdir() if entry.name[0] != "."]:
            return f"states {[str(entry) for entry in entries[:5]]}"
        return ""

    def groups(self) -> list[Path]:
        """Below those that containers of this crowd are in."""
        return [path for path in Path("/sys/fs/cgroup").glob(f"*/{self.parent}/*") if path.is_dir()]

    def processes(self, text: str, exact: bool = False) -> set[int]:
        """With this in their command lines, or exactly this; without the shells of ours."""
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if (line == text if exact else text in line) and entry.name.isdigit() and int(entry.name) != os.getpid():
                found.add(int(entry.name))
        return found

    def tidy(self) -> None:
        """The groups that the engine keeps for later containers, and what it takes for groups without a hierarchy; the
        directory of states, where it was this crowd's own."""
        if self.parent in self.words.state.format(**self.values):
            shutil.rmtree(self.words.state.format(**self.values), ignore_errors=True)
        top = Path("/sys/fs/cgroup")
        for parent in top.glob(f"*/{self.parent}"):
            if parent.stat().st_dev == top.stat().st_dev:
                shutil.rmtree(parent)
                continue
            end = time.monotonic() + PATIENCE
            for where, _, _ in os.walk(parent, topdown=False):
                while True:
                    try:
                        os.rmdir(where)
                        break
                    except OSError as error:
                        # the last conmon is still ending
                        if time.monotonic() > end:
                            self.failed["tidy"] = str(error)
                            break
                        time.sleep(0.1)


def mounts() -> Counter[str]:
    """What is mounted where in our mount namespace; podman makes a mount of its storage when it likes."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    return Counter(" ".join(fields[3:5]) for fields in lines if not fields[4].endswith("/root/overlay"))
