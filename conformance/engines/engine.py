"""What all engines have in common: a directory, a runtime, perhaps a daemon, and commands whose outcome is compared."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import checks

TIMEOUT = 60
# Where systemd is process 1 and gives out v2, it makes the cgroups; elsewhere they are v1's, made in the file system.
UNITS = Path("/run/systemd/private").exists() and Path("/sys/fs/cgroup/cgroup.controllers").exists()
LIMITS = "nofile=20000:20000"


class Engine:
    """`folder` is its own; `runtime` the path of the runtime's program, `words` what checks are formatted with."""

    name = ""
    needs: tuple[str, ...] = ()
    table: tuple[checks.Check, ...] = ()

    @staticmethod
    def unfit() -> str:
        """Why nothing of it can be checked on this machine, or ""."""
        return ""

    def __init__(self, folder: Path, runtime: str, image: Path) -> None:
        self.folder = folder
        self.runtime = runtime
        self.image = image
        self.words: dict[str, str] = {}
        self.daemon: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
        # a standard input that nobody writes to, and that has no end: programs on terminals stop at one
        self.silence = os.pipe()
        folder.mkdir(parents=True)

    def start(self) -> None:
        """Everything up to the first check."""

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGTERM)
            self.daemon.wait(30)

    def spawn(self, *command: str) -> None:
        """Start the daemon; what it leaves among temporary files, such as images of checkpoints, goes with the rest."""
        (self.folder / "temporary").mkdir()
        environment = {**os.environ, "TMPDIR": str(self.folder / "temporary")}
        with (self.folder / "daemon.log").open("wb") as log:
            self.daemon = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, env=environment
            )

    def ask(self, command: str) -> str:
        """ "rc=STATUS OUTPUT" of a shell command, on one line."""
        try:
            done = subprocess.run(
                ["sh", "-c", command], stdin=self.silence[0], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=TIMEOUT, env=self.environment, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return f"rc=timeout {(error.output or b'').decode(errors='replace')}"
        return f"rc={done.returncode} " + " ".join(done.stdout.decode(errors="replace").split())

    def until(self, command: str, seconds: float = 30) -> None:
        """Wait until a command succeeds."""
        end = time.monotonic() + seconds
        while not (said := self.ask(command)).startswith("rc=0"):
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} does not start: {said}; see {self.folder}/daemon.log")
            time.sleep(0.2)

    def check(self) -> dict[str, str]:
        """What each check that fails came to."""
        failed: dict[str, str] = {}
        for name, written, expected in self.table:
            command = written
            for v1, v2 in checks.V2_FILES.items() if UNITS else ():
                command = command.replace(f"/sys/fs/cgroup/{v1}", f"/sys/fs/cgroup/{v2}")
            said = self.ask(command.format(**self.words))
            pattern = expected
            for word in ("handler", "runtime"):
                pattern = pattern.replace(f"{{{word}}}", re.escape(self.words.get(word, "")))
            if not re.search(pattern, said):
                failed[name] = said[:600]
        return failed
