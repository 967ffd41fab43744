"""An ordinary user for tests, with whatever /etc says of it: made of an id that nobody has, and of files that only its
commands see (bind mounts in a mount namespace of their own)."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from containers import COMMAND, Box

from pyoci.commands.spec import default, rootless

SUBIDS = 65536
_numbers = itertools.count()


class User(Box):
    """A bundle whose commands are a user's.

    before        what root does in the mount namespace of each command before the user has it (sh)
    environment   the user's
    rooted        whether commands get --root
    prefix        words before pyoci's
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        number = (os.getpid() * 7 + next(_numbers)) % 20000
        self.uid = 20000 + number
        self.first = 10_000_000 + number * SUBIDS  # of its subordinate ids
        self.name = f"pyoci{number}"
        self.etc = folder / "etc"
        self.etc.mkdir()
        self.say("passwd", Path("/etc/passwd").read_text() + f"{self.name}:x:{self.uid}:{self.uid}::/:/bin/sh\n")
        self.say("group", Path("/etc/group").read_text() + f"{self.name}:x:{self.uid}:\n")
        for name in ("subuid", "subgid"):
            self.say(name, f"{self.name}:{self.first}:{SUBIDS}\n")
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o700)
        for path in (folder, self.runtime, self.bundle):
            os.chown(path, self.uid, self.uid)
        folder.chmod(0o755)
        self.before = ""
        self.environment = {"PATH": os.defpath, "XDG_RUNTIME_DIR": str(self.runtime)}
        self.rooted = True
        self.prefix: tuple[str, ...] = ()
        self.config = rootless(default(False), self.uid, self.uid)
        self.process["terminal"] = False
        self.process["env"] = ["PATH=/bin", "HOME=/tmp"]
        self.config["root"]["readonly"] = False

    def say(self, name: str, text: str) -> None:
        """What the user's commands read in /etc/NAME."""
        (self.etc / name).write_text(text)

    def words(self, *words: str) -> list[str]:
        """The command `words` as this user's."""
        binds = [f"[ -e /etc/{path.name} ] || : >/etc/{path.name}; mount --bind {path} /etc/{path.name}"
                 for path in sorted(self.etc.iterdir())]  # fmt: skip
        script = "\n".join([*binds, self.before, 'exec "$@"'])
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", *self.prefix, "env", "-i"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *become, *variables, *words]

    def command(self, *args: str) -> list[str]:
        return self.words(*COMMAND, *(("--root", str(self.states)) if self.rooted else ()), *args)

    def other(self, runtime: str, *args: str) -> subprocess.CompletedProcess[str]:
        """The same user's command of another runtime."""
        words = self.words(runtime, "--root", str(self.folder / runtime), *args)
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    def write(self, id: str = "") -> None:
        # no path of its own where the configuration has none: the user has no cgroup to make others in
        (self.bundle / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        for path in self.bundle.rglob("*"):
            if path.lstat().st_uid == 0:
                os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def ranges(self) -> None:
        """Map the user's own id and all subordinate ones."""
        for kind in ("uid", "gid"):
            self.linux[f"{kind}Mappings"] = [
                {"containerID": 0, "hostID": self.uid, "size": 1},
                {"containerID": 1, "hostID": self.first, "size": SUBIDS},
            ]

    def processes(self) -> list[int]:
        """Those of this user and its subordinate ids, zombies left out."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                status = Path(f"/proc/{entry}/status").read_text()
            except OSError:
                continue
            uid = int(status.split("\nUid:\t")[1].split()[0])
            if (uid == self.uid or self.first <= uid < self.first + SUBIDS) and "\nState:\tZ" not in status:
                found.append(int(entry))
        return found


def made(kind: type[User] = User) -> User:
    """A user; the test skips where there can be none."""
    folder = Path(tempfile.mkdtemp(prefix="pyoci-test-"))
    user = kind(folder)
    for words, why in (
        (("unshare", "--user", "true"), "users may not make user namespaces here"),
        ((*COMMAND, "--version"), "the user may not execute what is under test here"),
    ):
        probe = subprocess.run(user.words(*words), capture_output=True, text=True, check=False)
        if probe.returncode:
            shutil.rmtree(folder)
            pytest.skip(f"{why}: {probe.stderr.strip()}")
    return user


def away(user: User) -> None:
    """Nothing of it is left."""
    user.before, user.prefix = "", ()
    try:
        user.close()
        assert user.processes() == []
    finally:
        shutil.rmtree(user.folder)


def mapping(container: int, host: int, size: int) -> dict[str, Any]:
    return {"containerID": container, "hostID": host, "size": size}
