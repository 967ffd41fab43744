"""Reports of failed ops and dead processes, as the errors that users and engines read.  Loaded only when something
failed."""

from __future__ import annotations

from errno import ENOENT, EPERM

from pyoci.errors import CallError, PyociError, WrongState
from pyoci.kernel.errnos import words
from pyoci.plan.render import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyoci.launch import Failure
    from pyoci.state import State

ARGS = "/process/args"
LEVELS = ("e ", "w ", "i ")  # what the kernel puts before each message of a file system context


def explained(
    error: BaseException, cgroup_paths: Mapping[str, str] | None = None, cgroup: str = "", root: str = ""
) -> BaseException:
    """What is to be said for an exception of a session: what `explain` or `died` makes of it, or itself."""
    from pyoci.launch import Died, Failure

    if isinstance(error, Failure):
        return explain(error, cgroup, root)
    if isinstance(error, Died) and cgroup_paths is not None:
        return died(str(error), cgroup_paths)
    return error


def container_ended(error: BaseException, state: State) -> bool:
    """Whether a session in the container of `state` failed because that has ended, and for no reason of its own.

    A process that has begun to end has no namespaces any more that could be joined, and takes all of its pid namespace
    along; for the others' end it may have to wait.
    """
    from pyoci.launch import Died, Failure
    from pyoci.state import alive, ends

    if not isinstance(error, (Failure, Died)) or (alive(state) and not ends(state.pid)):
        return False
    if isinstance(error, Failure):
        return True
    from pyoci.cgroup.live import oom_kills

    try:
        return not oom_kills(state.cgroup_paths)
    except OSError:
        return True


def unjoinable(state: State, stopped: str) -> WrongState:
    """What is to be said of a container that has ended, `stopped`, or whose first process has nothing to be joined."""
    from pyoci.state import headless

    if headless(state.pid):
        stopped = f"container {state.id!r}: the first thread of its process has ended, and with it what could be joined"
    return WrongState(stopped)


def explain(failure: Failure, cgroup: str = "", root: str = "") -> PyociError:
    """The failure with its call spelled out and what to do about it; `cgroup` is the v2 directory that was entered,
    `root` the container's root, to be looked into when its program cannot be executed."""
    op = failure.op
    said = words(failure.errno)
    if op.origin == ARGS:
        found = ""
        if root:
            from pyoci.container.unrunnable import why as unrunnable

            found = unrunnable(failure, root)
            said = f"{said}: {found}" if found else said
        # what engines look for comes first: exec: "name": executable file not found in $PATH
        nothing = op.hint.startswith('exec: "":')
        if op.hint.endswith("$PATH") and ((failure.errno == ENOENT and not found) or nothing):
            return PyociError(f"{op.hint} ({ARGS}: {call(op, False)}: {said})")
        name = op.hint.partition(": executable")[0]
        if op.call == "expect":
            return PyociError(f"{name}: {said}: it is a directory ({ARGS})")
        return PyociError(f"{name}: {said} ({ARGS}: {call(op, False)})")
    from pyoci.container.advice import advise

    hint = advise(op, failure.errno, root, failure.detail) or op.hint
    # EPERM is about the namespaces
    if op.call == "clone3" and cgroup and failure.errno != EPERM:
        from pyoci.cgroup.perform import why

        hint = why("clone3", cgroup.encode(), failure.errno) or hint
    detail = failure.detail[2:] if failure.detail.startswith(LEVELS) else failure.detail
    return CallError(op.origin, call(op, False), failure.errno, said, detail, hint)


def died(message: str, cgroup_paths: Mapping[str, str]) -> PyociError:
    """Why init is gone without a word: the memory limit, if its cgroup counts a kill, or somebody's signal."""
    from pyoci.cgroup.live import oom_kills

    try:
        kills = oom_kills(cgroup_paths)
    except OSError:
        kills = 0
    if kills:
        return PyociError(
            f"/linux/resources/memory/limit: {message}: the kernel killed it because the container's memory limit is"
            " too low to start in; raise the limit"
        )
    return PyociError(f"{message}: it was killed from outside")
