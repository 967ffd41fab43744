"""Descriptors that a service manager opened for a container: $LISTEN_FDS, $LISTEN_PID, $LISTEN_FDNAMES."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from containers import LIMIT, Box, box, needed  # noqa: F401 - a fixture

from pyoci.activation import received
from pyoci.errors import PyociError
from pyoci.plan.container import PlanOptions, plan_container
from pyoci.plan.ops import Vector, walk

# The service manager: its arguments are the descriptors to give away from 3 on, variables, "--" and the command.
MANAGER = """
import os, sys
at = sys.argv.index("--")
given, variables = sys.argv[1].split(","), sys.argv[2:at]
moved = [os.dup(int(number)) for number in given if number]
for number, fd in enumerate(moved):
    os.dup2(fd, number + 100)
for number in range(len(moved)):
    os.dup2(number + 100, number + 3)
    os.close(number + 100)
os.closerange(3 + len(moved), 100)
for variable in variables:
    name, _, value = variable.partition("=")
    os.environ[name] = value.replace("OWN", str(os.getpid()))
os.execv(sys.argv[at + 1], sys.argv[at + 1:])
"""


def managed(box: Box, fds: list[int], *words: str, **variables: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    """Run a command of pyoci as a service manager does."""
    environment = {"LISTEN_FDS": str(len(fds)), "LISTEN_PID": "OWN"} | variables
    given = [",".join(map(str, fds)), *(f"{name}={value}" for name, value in environment.items())]
    return subprocess.run(
        [sys.executable, "-c", MANAGER, *given, "--", *box.command(*words)],
        capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, pass_fds=fds, check=False,
    )  # fmt: skip


def test_whose_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    monkeypatch.setattr("pyoci.activation.FIRST", fd)
    try:
        own = {b"LISTEN_FDS": b"1", b"LISTEN_PID": b"42", b"LISTEN_FDNAMES": b"web"}
        assert received(own, 42) == (1, "web")
        assert received(own, 43) == (0, "")
        assert received({b"LISTEN_FDS": b"1"}, 42) == (0, "")
        assert received(own | {b"LISTEN_FDS": b"0"}, 42) == (0, "")
        assert received(own | {b"LISTEN_FDNAMES": b"\xff"}, 42) == (1, "")
        for wrong in (b"", b"-1", b"1x", b"1 ", b"9" * 20, "²".encode()):
            with pytest.raises(PyociError, match=r"LISTEN_FDS=.*must be a number"):
                received(own | {b"LISTEN_FDS": wrong}, 42)
        with pytest.raises(PyociError, match=r"LISTEN_FDS=999999: descriptor [0-9]+ is not open"):
            received(own | {b"LISTEN_FDS": b"999999"}, 42)
    finally:
        os.close(fd)


class TestContainers:
    pytestmark = needed

    def test_a_socket_that_somebody_listens_on(self, box: Box) -> None:  # noqa: F811
        """The program reads from a connection to the manager's socket, in a network namespace of its own."""
        ours, theirs = socket.socketpair()
        ours.sendall(b"through the manager\n")
        script = "head -n 1 <&4; echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; ls /proc/self/fd"
        box.process["args"] = ["sh", "-c", script]
        box.process["env"] += ["LISTEN_PID=77", "LISTEN_FDS=9"]
        box.write()
        words = ("run", "--preserve-fds", "1", "--bundle", str(box.bundle), box.id)
        null = os.open("/dev/null", os.O_RDONLY)
        done = managed(box, [null, theirs.fileno(), null], *words, LISTEN_FDS="2", LISTEN_FDNAMES="a:b")
        os.close(null)
        ours.close()
        theirs.close()
        lines = done.stdout.splitlines()
        assert lines[:2] == ["through the manager", "2 1 a:b"], done
        assert lines[2:] == ["0", "1", "2", "3", "4", "5", "6"], "ls itself has the last one open"

    @pytest.mark.parametrize("kind", ["host", "joined"])
    def test_its_pid_in_any_pid_namespace(self, box: Box, kind: str) -> None:  # noqa: F811
        box.without("pid")
        if kind == "joined":
            other = subprocess.Popen(["unshare", "--pid", "--fork", "sleep", "100"])
            box.others.append(other)
            children = Path(f"/proc/{other.pid}/task/{other.pid}/children")
            while not (child := children.read_text().strip()):
                pass
            box.namespace("pid", f"/proc/{child}/ns/pid")
        box.process["args"] = ["sh", "-c", "echo $LISTEN_PID; echo $$; cat /proc/self/environ"]
        box.write()
        null = os.open("/dev/null", os.O_RDONLY)
        done = managed(box, [null], "run", "--bundle", str(box.bundle), box.id)
        os.close(null)
        if kind == "joined":
            os.kill(int(child), 9)
        said, really, environment = done.stdout.split("\n", 2)
        assert said == really and int(said) > 0, done
        if kind == "joined":
            assert int(said) < 100, "the pid that it has in there"
        assert f"LISTEN_PID={said}\0" in environment

    def test_create_start_and_exec(self, box: Box) -> None:  # noqa: F811
        """Only the container's first process gets them."""
        box.process["args"] = ["sh", "-c", "echo $LISTEN_FDS:$LISTEN_PID >/tmp/out; cat <&3 >>/tmp/out; sleep 100"]
        box.write()
        ours, theirs = os.pipe()
        os.write(theirs, b"through a pipe\n")
        os.close(theirs)
        words = ("create", "--bundle", str(box.bundle), box.id)
        manager = [sys.executable, "-c", MANAGER, str(ours), "LISTEN_FDS=1", "LISTEN_PID=OWN", "--"]
        done = subprocess.run(
            [*manager, *box.command(*words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=LIMIT, pass_fds=[ours], check=False,
        )  # fmt: skip
        assert done.returncode == 0
        box.ok("start", box.id)
        assert box.output().startswith("1:1\n")
        script = "echo x$LISTEN_FDS; ls /proc/self/fd"
        inside = managed(box, [ours], "exec", box.id, "sh", "-c", script)
        os.close(ours)
        assert inside.stdout.split() == ["x", "0", "1", "2", "3"], inside
        assert (box.rootfs / "tmp/out").read_text() == "1:1\nthrough a pipe\n"

    def test_what_is_meant_for_somebody_else(self, box: Box) -> None:  # noqa: F811
        box.process["args"] = ["sh", "-c", "echo x$LISTEN_FDS; ls /proc/self/fd"]
        box.write()
        null = os.open("/dev/null", os.O_RDONLY)
        done = managed(box, [null], "run", "--bundle", str(box.bundle), box.id, LISTEN_PID="1")
        assert done.stdout.split() == ["x", "0", "1", "2", "3"], done
        done = managed(box, [null], "run", "--bundle", str(box.bundle), box.id, LISTEN_FDS="2")
        os.close(null)
        assert done.returncode == 1 and "LISTEN_FDS=2: descriptor 4 is not open" in done.stderr
        box.gone()


def test_the_plan() -> None:
    from pyoci.host import Host
    from pyoci.spec.types import Linux, Namespace, Process, Root, Spec

    def plan(*spaces: Namespace) -> list[object]:
        spec = Spec("1.2.0", Root("r"), (), Process("/", ("/a",), ("LISTEN_FDS=7", "A=1")), linux=Linux(spaces))
        options = PlanOptions("c", "/b", preserve_fds=3, listen_fds=2, listen_names="x:y")
        ops = list(walk(plan_container(spec, Host(), options).ops))
        vector = ops[-1].args[2]
        assert isinstance(vector, Vector)
        reads = [op.args[:2] for op in ops if op.call == "readlinkat"]
        return [*map(str, reads), *(item for item in vector.items if isinstance(item, bytes))]

    known = [b"A=1", b"LISTEN_FDS=2", b"LISTEN_FDNAMES=x:y"]
    assert plan(Namespace("pid")) == [known[0], known[1], b"LISTEN_PID=1", known[2]]
    assert plan()[1:] == known and "/proc/self" in str(plan()[0])
    assert plan(Namespace("pid", "/p"))[1:] == known and "@proc" in str(plan(Namespace("pid", "/p"))[0])
