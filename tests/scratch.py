"""A container's cgroups without a container: made by a plan's ops, removed as `delete` does.  Shared by tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pyoci.cgroup import live
from pyoci.cgroup.files import read, write
from pyoci.cgroup.perform import perform
from pyoci.host import Host
from pyoci.plan.cgroups import CgroupPlan, plan_cgroups
from pyoci.plan.ops import RUNTIME, Op, Ref
from pyoci.spec.types import Linux, Resources, Spec

SLEEP = "import time; time.sleep(60)"


class Group:
    """Cgroups for `host` below a name that nobody else uses, and processes in them; `close` leaves nothing."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.name = f"pyoci-test-{os.getpid()}-{time.monotonic_ns()}"
        self.plan = CgroupPlan()
        self.created: list[str] = []
        self.children: list[subprocess.Popen[str]] = []

    def create(self, resources: Resources | None = None) -> dict[str, str]:
        """Plan and perform; the paths."""
        spec = Spec(oci_version="1.3.0", linux=Linux(cgroups_path=f"/{self.name}/c", resources=resources))
        self.plan = plan_cgroups(spec, self.host, "id")
        self.run_ops(self.plan.create)
        return self.plan.paths

    def run_ops(self, ops: list[Op] | tuple[Op, ...], pid: int = 0) -> None:
        """What the launcher does with the runtime's ops."""
        for op in ops:
            assert op.performer == RUNTIME
            try:
                if op.call == "write":
                    path, data = op.args
                    assert isinstance(path, bytes)
                    if isinstance(data, Ref):
                        data = b"%d" % pid
                    assert isinstance(data, bytes)
                    write(path, data)
                else:
                    self.created += perform(op)
            except OSError as error:
                if error.errno not in op.tolerate:
                    raise AssertionError(f"{op!r}: {error}") from error
                self.run_ops(tuple(op.otherwise), pid)
            else:
                self.run_ops(tuple(op.then), pid)

    def start(self, code: str = SLEEP, *words: str) -> subprocess.Popen[str]:
        """A python that waits for a line, is put into the cgroups, and then runs `code`."""
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", f"import sys; sys.stdin.readline()\n{code}", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.children.append(child)
        live.add(self.plan.paths, child.pid)
        self.run_ops([op for op in self.plan.enter if op.performer == RUNTIME], child.pid)
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        return child

    def run(self, code: str, *words: str) -> str:
        """What `code` prints when it runs in the cgroups."""
        out, error = self.start(code, *words).communicate(timeout=60)
        return out + error

    def line(self, child: subprocess.Popen[str]) -> str:
        """The next line that `child` prints."""
        assert child.stdout is not None
        return child.stdout.readline().strip()

    def read(self, controller: str, name: str) -> str:
        """The file `name` of the cgroup of `controller` ("" for v2)."""
        return read(f"{self.plan.paths[controller]}/{name}").decode().strip()

    def close(self) -> None:
        """Everything is gone, and it is an error if it is not."""
        for child in self.children:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        live.kill_all(self.plan.paths)
        live.remove(self.plan.paths, self.created)
        for mount in self.host.cgroup_mounts.values():
            assert not Path(mount, self.name).exists()


def until(condition: Callable[[], bool]) -> None:
    """Wait, but not for ever."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
