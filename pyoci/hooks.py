"""Running hooks: programs that get the container's state on stdin (config.md#posix-platform-hooks).

How a hook is started differs, in the runtime's namespaces or in the container's; waiting for it, its time limit and
what is said about its failure do not.  So `run_hooks` takes the starting as an argument, and `spawn` is the plain one.
"""

from __future__ import annotations

import posix
import select
import time

from pyoci import log, signals
from pyoci.errors import HookError, PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Protocol

    class AnyHook(Protocol):
        """spec.types.Hook, or the `Hook` below."""

        @property
        def path(self) -> str: ...
        @property
        def args(self) -> Sequence[str]: ...
        @property
        def env(self) -> Sequence[str] | None: ...
        @property
        def timeout(self) -> int | None: ...

    # (hook, descriptor for stdin, descriptor for stdout and stderr) -> pid of a child of this process
    Spawn = Callable[[AnyHook, int, int], int]

OUTPUT_MAX = 4096  # bytes of a failing hook's output that its error shows: the last ones
# Not SIGKILL and SIGSTOP, which have no disposition, nor 32 and 33, which are the C library's.
RESET = tuple(n for n in range(1, 65) if n not in (9, 19, 32, 33))


class Hook:
    """A hook as the state remembers it."""

    __slots__ = ("args", "env", "path", "timeout")

    def __init__(self, raw: dict[str, Any]) -> None:
        self.path: str = raw["path"]
        self.args: Sequence[str] = raw.get("args") or ()
        self.env: Sequence[str] | None = raw.get("env")
        self.timeout: int | None = raw.get("timeout")


def remembered(hooks: dict[str, Any], kind: str) -> list[Hook]:
    """The hooks of one kind (`poststop`) out of `State.hooks`."""
    return [Hook(raw) for raw in hooks.get(kind) or ()]


def spawn(hook: AnyHook, stdin: int, output: int) -> int:
    """Start `hook` in our namespaces, in a process group of its own, with nothing of ours but these descriptors."""
    actions: list[tuple[int, ...]] = [
        (posix.POSIX_SPAWN_DUP2, stdin, 0),
        (posix.POSIX_SPAWN_DUP2, output, 1),
        (posix.POSIX_SPAWN_DUP2, output, 2),
    ]
    # What an engine left open in us must not stay open in a hook's daemon: somebody waits for its end.
    for name in posix.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            if descriptor > 2 and posix.get_inheritable(descriptor):
                actions.append((posix.POSIX_SPAWN_CLOSE, descriptor))
        except OSError:
            pass  # the descriptor that listed the directory
    environment = dict([_bytes(entry).partition(b"=")[::2] for entry in hook.env or ()])
    return posix.posix_spawn(
        _bytes(hook.path),
        [_bytes(arg) for arg in hook.args or (hook.path,)],
        environment,
        file_actions=actions,
        setpgroup=0,
        setsigmask=(),
        setsigdef=RESET,
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def run_hooks(
    kind: str,
    hooks: Iterable[AnyHook],
    state: bytes,
    start: Spawn = spawn,
    tolerate: bool = False,
) -> None:
    """Run `hooks` one after the other, each with the JSON text `state` on stdin.

    The first that cannot be started, does not exit with 0 or runs longer than its timeout raises HookError and ends
    it; with `tolerate` (poststop) that is a warning, and the rest still run.
    """
    for index, hook in enumerate(hooks):
        try:
            _run(kind, index, hook, state, start)
        except HookError as error:
            if not tolerate:
                raise
            log.warning(str(error))


def _run(kind: str, index: int, hook: AnyHook, state: bytes, start: Spawn) -> None:
    began = time.monotonic()
    # A file and not a pipe: however long the state is, and whether the hook reads it or not, nobody waits and nobody
    # gets SIGPIPE.  Opened anew, so that the hook can neither write it nor move our position.
    document = posix.memfd_create("state", posix.MFD_CLOEXEC)
    try:
        log.write_all(document, state)
        stdin = posix.open(f"/proc/self/fd/{document}", posix.O_RDONLY | posix.O_CLOEXEC)
    finally:
        posix.close(document)
    output, output_end = posix.pipe2(posix.O_CLOEXEC)
    try:
        pid = start(hook, stdin, output_end)
    except OSError as error:
        from pyoci.kernel.errnos import words

        posix.close(output)
        raise HookError(f"{_name(kind, index, hook)}: {words(error.errno or 0)}") from None
    except PyociError as error:
        posix.close(output)
        raise HookError(f"{_name(kind, index, hook)}: {error}") from None
    finally:
        posix.close(stdin)
        posix.close(output_end)
    try:
        ended, tail = _wait(pid, output, began + hook.timeout if hook.timeout else None)
    finally:
        posix.close(output)
    seconds = time.monotonic() - began
    if log.debugging:
        log.debug("hook", kind=kind, index=index, path=hook.path, seconds=round(seconds, 6), result=ended or "success")
    if ended:
        text = tail.decode("utf-8", "replace").strip()
        said = f": {text}" if text else ""
        raise HookError(f"{_name(kind, index, hook)}: {ended} after {seconds:.3f} s{said}")


def _name(kind: str, index: int, hook: AnyHook) -> str:
    return f"error running {kind} hook #{index}: /hooks/{kind}/{index}: {hook.path}"


def _wait(pid: int, output: int, until: float | None) -> tuple[str, bytes]:
    """How the child `pid` ended ("" is well) and the tail of what it wrote, reading on while it runs."""
    posix.set_blocking(output, False)
    tail = b""
    late = False
    pidfd = posix.pidfd_open(pid)
    status: int | None = None
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(output, select.POLLIN)
        while True:
            # poll(2) takes milliseconds up to 2^31; it is asked again for the rest of what a hook may take
            left = None if until is None or late else min(max(0.0, until - time.monotonic()), 3600.0) * 1000
            ready = poll.poll(left)
            for descriptor, _ in ready:
                if descriptor == output:
                    piece = _read(output)
                    tail = (tail + piece)[-OUTPUT_MAX:]
                    if not piece:
                        poll.unregister(output)
            if any(descriptor == pidfd for descriptor, _ in ready):
                break
            if not late and until is not None and time.monotonic() >= until:
                late = True
                _kill(pid, pidfd)
        # Not until the end of the file: a daemon that the hook left behind may keep that open for ever.
        while piece := _read(output):
            tail = (tail + piece)[-OUTPUT_MAX:]
        status = posix.waitpid(pid, 0)[1]
    finally:
        if status is None:  # interrupted: no hook outlives the command that waits for it
            _kill(pid, pidfd)
            posix.waitpid(pid, 0)
        posix.close(pidfd)
    if late:
        return "ran out of time (/timeout) and was killed", tail
    if posix.WIFSIGNALED(status):
        return f"killed by {signals.name(posix.WTERMSIG(status))}", tail
    code = posix.WEXITSTATUS(status)
    return f"exit status {code}" if code else "", tail


def _read(descriptor: int) -> bytes:
    try:
        return posix.read(descriptor, 65536)
    except BlockingIOError:
        return b""


def _kill(pid: int, pidfd: int) -> None:
    """SIGKILL for the hook, and for what it started if it leads its own process group."""
    try:
        if posix.getpgid(pid) == pid:
            posix.killpg(pid, signals.SIGKILL)
        signals.send(pidfd, signals.SIGKILL)
    except ProcessLookupError:
        pass
