"""Reports over the control socket that no plan makes: whoever may trace a process may speak for it."""

from __future__ import annotations

import _socket
import os
import subprocess
from collections.abc import Iterator

import pytest

from pyoci.launch import Died, Failure, Session
from pyoci.plan.ops import RUNTIME, Op
from pyoci.program import Program
from pyoci.reports import AT_BARRIER, FAILED, FORKED, REPORT


class Spoken(Session):
    """A session without an init: the test speaks for it.  `done_ops` are the runtime's ops that were performed."""

    __slots__ = ("done_ops", "theirs")

    def __init__(self) -> None:
        first, second = (Op(name, (), "t", performer=RUNTIME) for name in ("first", "second"))
        plan = [Op("getpid", (), "t"), first, Op("getpid", (), "t"), second]
        program = Program(b"", plan, {1: [first], 3: [second]})
        super().__init__(program, lambda op, session: self.done_ops.append(op.call))
        self.done_ops: list[str] = []
        self.control, self.theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)

    def say(self, *reports: tuple[int, int, int]) -> None:
        for report in reports:
            self.theirs.send(REPORT.pack(*report, 0))


@pytest.fixture
def spoken() -> Iterator[Spoken]:
    session = Spoken()
    yield session
    session.abandon()
    session.theirs.close()


def test_barriers_are_played_once_and_in_order(spoken: Spoken) -> None:
    spoken.say((AT_BARRIER, 1, 0), (AT_BARRIER, 3, 0))
    spoken.theirs.shutdown(_socket.SHUT_WR)
    spoken.play()
    assert spoken.done_ops == ["first", "second"]


@pytest.mark.parametrize("said", [(3, 1), (1, 1), (0,), (2,), (1, 4000000000)])
def test_a_barrier_that_is_not_due_is_not_played(spoken: Spoken, said: tuple[int, ...]) -> None:
    spoken.say(*((AT_BARRIER, index, 0) for index in said))
    with pytest.raises(Died, match="no barrier that is still to come"):
        spoken.play()
    assert len(spoken.done_ops) == len(said) - 1


@pytest.mark.parametrize("terminal", [False, True])
def test_an_init_that_dies_before_it_reads(spoken: Spoken, terminal: bool) -> None:
    """Killed for want of memory while the runtime was at work for it: its socket ends with what we have sent unread."""
    if terminal:
        spoken.expect_descriptor()
    spoken.say((AT_BARRIER, 1, 0))
    assert spoken.control is not None
    spoken.control.send(b"\0")
    spoken.say((AT_BARRIER, 3, 0))
    spoken.theirs.close()
    with pytest.raises(Died, match="init died"):
        spoken.play()


@pytest.mark.parametrize("pid", [1, 0, -1, 4194304])
def test_a_process_that_is_not_ours_is_not_taken_for_the_containers(spoken: Spoken, pid: int) -> None:
    """It would be put into cgroups, written to, and killed when something fails."""
    spoken.stage = os.posix_spawnp("sleep", ["sleep", "60"], os.environ)
    spoken.say((FORKED, 0, pid))
    with pytest.raises(Died, match="is not its child"):
        spoken.play()
    assert spoken.pid == 0


def test_there_is_one_process(spoken: Spoken) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        spoken.say((FORKED, 0, other.pid))
        with pytest.raises(Died, match="is not its child"):
            spoken.play()
        other.kill()


def test_failures_of_ops_that_there_are(spoken: Spoken) -> None:
    spoken.say((FAILED, 2, 13))
    with pytest.raises(Failure, match="getpid: permission denied"):
        spoken.play()
    spoken.say((FAILED, 99, 13))
    with pytest.raises(Died, match="which its plan has not"):
        spoken.play()
    spoken.theirs.send(b"short")
    with pytest.raises(Died, match="cut off"):
        spoken.play()
