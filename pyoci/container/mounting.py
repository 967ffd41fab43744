"""mounts add, mounts remove: mounts of a container that runs.

What was added is kept in the container's directory, in `mounts.json`: entries as in config.json, each with the number
of its mount.  It is written before a mount is put in its place.
"""

from __future__ import annotations

import posix

from pyoci.errors import ConfigError, Problem, PyociError, WrongState
from pyoci.host import probe, probe_sources
from pyoci.jsontext import dumps, loads
from pyoci.kernel.syscalls import numbers
from pyoci.launch import Died, Failure, Session, run_ops, template
from pyoci.mountinfo import mount_of, rows
from pyoci.plan import mounting
from pyoci.plan.paths import parts
from pyoci.program import assemble, leading
from pyoci.state import Store, open_init, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyoci.host import Host
    from pyoci.mountinfo import Row
    from pyoci.plan.ops import Op
    from pyoci.spec.types import Spec
    from pyoci.state import State

FILE = "mounts.json"
MOST = 200  # mounts at once: each is a descriptor of ours until all are there, and of init's to take them back
SYS_ADMIN = 1 << 21


class Container:
    """A container that runs, locked."""

    __slots__ = ("added", "host", "pidfd", "state", "store")

    def __init__(self, root: str, container_id: str) -> None:
        self.store = Store.open(root, container_id)
        try:
            self.store.lock()
            self.state: State = self.store.load()
            if status(self.store, self.state) not in ("created", "running", "paused"):
                raise WrongState(f"container {self.state.id!r}: container not running")
            if "mount" not in self.state.namespaces:
                raise PyociError("the container has no mount namespace: what is mounted in it is mounted on the host")
            self.added = remembered(self.store)
            self.host: Host = probe()
            pidfd = open_init(self.state)
        except BaseException:
            self.store.close()
            raise
        if pidfd is None:
            self.store.close()
            raise WrongState(f"container {self.state.id!r}: container not running")
        self.pidfd = pidfd

    def close(self) -> None:
        """Let others work on it."""
        posix.close(self.pidfd)
        self.store.close()

    def explained(self, error: BaseException) -> BaseException:
        """What is to be said of a session that has failed."""
        from pyoci.container.failure import container_ended, explained, unjoinable

        if container_ended(error, self.state):
            return unjoinable(self.state, f"container {self.state.id!r}: container not running")
        return explained(error, self.state.cgroup_paths)

    def mounted(self) -> dict[int, Row]:
        """The mounts that it has, by number."""
        try:
            return rows(self.state.pid)
        except OSError:
            raise WrongState(f"container {self.state.id!r}: container not running") from None

    def keep(self) -> None:
        """Write down what was added."""
        self.store.write(FILE, dumps(self.added).encode())


def remembered(store: Store) -> list[dict[str, Any]]:
    """The mounts that were added and not removed, each with its number as "id", in order."""
    try:
        found = loads(store.read(FILE))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise PyociError(f"{store.path}/{FILE} is damaged: {error}") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) and type(one.get("id")) is int for one in found):
        raise PyociError(f"{store.path}/{FILE} is damaged")
    return found


def entries(data: bytes, source: str) -> list[Any]:
    """The array of mounts: alone, or as the member "mounts" of an object, as config.json has it."""
    try:
        found = loads(data)
    except ValueError as error:
        raise PyociError(f"{source}: {error}") from None
    if isinstance(found, dict):
        found = found.get("mounts")
    if not isinstance(found, list):
        message = "must be an array of mounts, or an object with one"
        raise ConfigError([Problem("/mounts", message, "config.md#mounts")], source)
    if len(found) > MOST:
        raise ConfigError([Problem("/mounts", f"{MOST} at once are the most")], source)
    return found


def _spec(container: Container, mounts: list[Any], source: str) -> Spec:
    """The container's configuration with these mounts, checked by the rules of config.json."""
    from pyoci.spec.load import load

    kept = loads(container.store.read("config.json"))
    assert isinstance(kept, dict)
    document = {name: value for name, value in kept.items() if name.lower() != "mounts"}
    return load(dumps({**document, "mounts": mounts}).encode("utf-8", "surrogatepass"), source)


def add(root: str, container_id: str, data: bytes, source: str) -> None:
    """Mount all of them in the container, or none."""
    mounts = entries(data, source)
    container = Container(root, container_id)
    try:
        state, host = container.state, container.host
        spec = _spec(container, mounts, source)
        mounting.check(spec, state.namespaces, bool(host.capabilities & SYS_ADMIN))
        spec.process = None
        probe_sources(host, spec, state.bundle)
        if not mounts:
            return
        user = "user" in state.namespaces
        plan = mounting.plan_add(spec, host, state.bundle, state.cgroup_paths, state.namespaces, user)
        _Adding(container, mounts).run(plan, user)
    finally:
        container.close()


class _Adding:
    """One `mounts add` under way: `trees` are the descriptors that have come so far."""

    __slots__ = ("before", "container", "given", "mounts", "session", "trees")

    def __init__(self, container: Container, mounts: list[Any]) -> None:
        self.container = container
        self.mounts = mounts
        self.before = list(container.added)
        self.given: dict[str, int] = {}
        self.trees: list[int] = []
        self.session: Session | None = None

    def run(self, plan: mounting.Addition, user: bool) -> None:
        container = self.container
        first = leading(plan.ops)
        try:
            run_ops(plan.ops[:first], self._before)
            self.given["container"] = container.pidfd
            if user:
                self.given["ns_user"] = _user_namespace(container)
            _enter_bundle(container.state.bundle)
            self.session = _session(container.host, plan.ops[first:], plan.fds, self._perform)
            self._expect()
            self.session.spawn(container.host.kernel, plan.fds, self.given)
            self.session.play()
            self.session.abandon()
        except BaseException as error:
            self._undo()
            raise container.explained(error) from None
        finally:
            for name, fd in self.given.items():
                if name != "container":
                    posix.close(fd)
            for fd in self.trees:
                posix.close(fd)

    def _before(self, op: Op) -> None:
        from pyoci.container.idmap import user_namespace

        name, uids, gids = op.args
        assert isinstance(name, bytes) and isinstance(uids, bytes) and isinstance(gids, bytes)
        self.given[name.decode()] = user_namespace(self.container.host, uids, gids, op.origin)

    def _expect(self) -> None:
        assert self.session is not None
        self.session.expect_descriptor(self._arrived)

    def _arrived(self, fd: int) -> None:
        self.trees.append(fd)
        self._expect()

    def _perform(self, op: Op, session: Session) -> None:
        if op.call == "remember":
            index = op.args[0]
            assert isinstance(index, int)
            entry = self.mounts[index]
            self.container.added.append({**entry, "id": mount_of(self.trees[index])})
            self.container.keep()

    def _undo(self) -> None:
        """Unmount what was mounted before another one failed; what goes wrong here never replaces that error."""
        from pyoci import log

        container = self.container
        if self.session is not None:
            self.session.abandon()
        if not self.trees:
            return
        try:
            plan = mounting.plan_undo(len(self.trees), container.state.namespaces)
            given = {f"tree{number}": fd for number, fd in enumerate(self.trees)} | {"container": container.pidfd}
            session = _session(container.host, plan.ops, plan.fds, lambda op, session: None)
            try:
                session.spawn(container.host.kernel, plan.fds, given)
                session.play()
            finally:
                session.abandon()
            container.added[:] = self.before
            container.keep()
        except (OSError, PyociError) as second:
            log.warning(f"while taking mounts back after a failure: {second}")


def remove(root: str, container_id: str, data: bytes, source: str) -> None:
    """Unmount what `add` has mounted at these destinations; what was mounted there last is the first to go."""
    wanted = entries(data, source)
    container = Container(root, container_id)
    try:
        found = _chosen(container, wanted, source)
        mounted = container.mounted()
        gone = [number for _, _, number in found if number not in mounted]
        _forget(container, gone)
        there = [(index, mounted[number].place, number) for index, _, number in found if number in mounted]
        if not there:
            return
        plan = mounting.plan_remove(there, container.state.namespaces)
        ids = {index: number for index, _, number in there}

        def perform(op: Op, session: Session) -> None:
            if op.call == "forget":
                index = op.args[0]
                assert isinstance(index, int)
                _forget(container, [ids[index]])

        session = _session(container.host, plan.ops, plan.fds, perform)
        try:
            session.spawn(container.host.kernel, plan.fds, {"container": container.pidfd})
            session.play()
        except (Failure, Died) as error:
            raise container.explained(error) from None
        finally:
            session.abandon()
    finally:
        container.close()


def _chosen(container: Container, wanted: list[Any], source: str) -> list[tuple[int, str, int]]:
    """(index in the document, destination, number of the mount) of each entry; ConfigError for what was not added."""
    left = list(container.added)
    found: list[tuple[int, str, int]] = []
    problems: list[Problem] = []
    for index, entry in enumerate(wanted):
        destination = entry.get("destination") if isinstance(entry, dict) else None
        if not isinstance(destination, str):
            problems.append(Problem(f"/mounts/{index}/destination", "is required", "config.md#mounts"))
            continue
        place = parts(destination)
        match = next((one for one in reversed(left) if parts(one["destination"]) == place), None)
        if match is None:
            message = f"{destination[:300]}: nothing that `mounts add` has mounted is there"
            problems.append(Problem(f"/mounts/{index}/destination", message))
            continue
        left.remove(match)
        found.append((index, destination, match["id"]))
    if problems:
        raise ConfigError(problems, source)
    return found


def _forget(container: Container, ids: list[int]) -> None:
    if ids:
        container.added[:] = [entry for entry in container.added if entry["id"] not in ids]
        container.keep()


def _enter_bundle(bundle: str) -> None:
    """Relative names in mount data are relative to the bundle."""
    try:
        posix.chdir(bundle)
    except OSError as error:
        from pyoci.kernel.errnos import words

        why = words(error.errno or 0)
        raise PyociError(f'chdir("{bundle}"): {why}; the bundle of the container must be there') from None


def _user_namespace(container: Container) -> int:
    from pyoci.signals import send

    fd = posix.open(f"/proc/{container.state.pid}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        # that was the container's process then, and no later one with its number
        send(container.pidfd, 0)
    except ProcessLookupError:
        posix.close(fd)
        raise WrongState(f"container {container.state.id!r}: container not running") from None
    return fd


def _session(host: Host, ops: list[Op], fds: dict[str, int], perform: Any) -> Session:
    return Session(assemble(ops, template(), host.arch, numbers(host.arch), fds, {}), perform)
