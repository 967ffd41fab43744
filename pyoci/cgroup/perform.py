"""The runtime's ops on cgroups, performed.  Plain writes are the launcher's; these need to look before they act.

    mkdir_cgroup(path, filters?)                  a directory and its missing parents; `filters`: one that was there
                                                  loses v2's device filters, for it gets one of its own
    mkdir_cpuset(path)                            the same in v1's cpuset, where a new one has no CPU until given some
    enable_controllers(path, required, wanted)    controllers for the children of a v2 cgroup
    write_lines(path, lines)                      a write(2) a line: files that take one rule at a time
    check_usage(path, limit)                      fail if the usage that `path` shows is above `limit` bytes
    chown_cgroup(path, uid)                       what is delegated of a v2 cgroup to the container's user
"""

from __future__ import annotations

import posix
from errno import EACCES, EAGAIN, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, EROFS

from pyoci.cgroup.files import look, read, write, write_lines
from pyoci.errors import CallError, PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.plan.ops import Op

CLAUSE = "config-linux.md#cgroups-path"
DELEGATE = "/sys/kernel/cgroup/delegate"
# config-linux.md#cgroup-ownership: where the kernel has no such list
DELEGATED = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
# how often a parent may vanish under us, because another container's end took it away
RETRIES = 10


def perform(op: Op) -> list[str]:
    """Perform `op`; the directories that it made, parents first.

    Raises OSError with an errno that `op` may tolerate, or PyociError where there is more to say.  What it made before
    it failed is gone again.
    """
    call, args = op.call, op.args
    path = args[0]
    assert isinstance(path, bytes)
    if call in ("mkdir_cgroup", "mkdir_cpuset"):
        return make(path, call == "mkdir_cpuset", op.origin, len(args) > 1)
    if call == "enable_controllers":
        _, required, wanted = args
        assert isinstance(required, bytes)
        assert isinstance(wanted, bytes)
        enable(path, required.split(), wanted.split(), op.origin)
    elif call == "write_lines":
        assert isinstance(args[1], bytes)
        write_lines(path, args[1].strip(b"\n").split(b"\n"))
    elif call == "check_usage":
        limit = args[1]
        assert isinstance(limit, bytes)
        usage = int(read(path))
        if usage > int(limit):
            raise PyociError(f"{op.origin}: the limit {int(limit)} is below the {usage} bytes that are in use")
    elif call == "chown_cgroup":
        assert isinstance(args[1], int)
        give(path, args[1])
    else:
        raise ValueError(f"{call} is not a call on cgroups")
    return []


def make(path: bytes, cpuset: bool = False, origin: str = "", filters: bool = False) -> list[str]:
    """Make the cgroup `path` and its missing parents.  One that exists must be fit: empty and not frozen.

    `filters`: it has no device filter then.
    """
    for _ in range(RETRIES):
        made: list[bytes] = []
        try:
            if not _make(path, made):
                _check_fitness(path, origin)
                if filters:
                    from pyoci.cgroup.device_filter import remove

                    remove(path, origin)
            if cpuset:
                give_cpus(path)
            return [directory.decode("utf-8", "surrogateescape") for directory in made]
        except BaseException as error:
            for directory in reversed(made):
                try:
                    posix.rmdir(directory)
                except OSError:
                    pass  # another container's by now: who leaves it last removes it
            if not isinstance(error, OSError):
                raise
            if error.errno != ENOENT:
                detail = why("mkdir", path, error.errno or 0)
                if not detail:
                    raise
                raise PyociError(f"{origin}: {detail}") from error
    raise OSError(ENOENT, "no such file or directory", path)


def _make(path: bytes, made: list[bytes]) -> bool:
    try:
        posix.mkdir(path, 0o755)
    except OSError as error:
        if error.errno == EEXIST:
            return False
        parent = path.rpartition(b"/")[0]
        if error.errno != ENOENT or not parent:
            raise
        _make(parent, made)
        try:
            posix.mkdir(path, 0o755)
        except FileExistsError:
            return False
    made.append(path)
    return True


def make_missing(path: bytes, origin: str) -> list[str]:
    """Make the cgroup `path` and its missing parents, or take the one that is there; the directories that it made."""
    made: list[bytes] = []
    try:
        _make(path, made)
    except OSError as error:
        raise PyociError(f"{origin}: {why('mkdir', path, error.errno or 0) or error}") from error
    return [directory.decode("utf-8", "surrogateescape") for directory in made]


def give_cpus(path: bytes) -> None:
    """A cgroup of v1's cpuset takes no process before it has CPUs and memory nodes."""
    for name in (b"/cpuset.cpus", b"/cpuset.mems"):
        _inherit(path, name)


def _inherit(path: bytes, name: bytes) -> bytes:
    """Give `path` what its parent has where it has none, and return that; the top always has some (cpuset(7))."""
    found = read(path + name).strip()
    if not found:
        found = _inherit(path.rpartition(b"/")[0], name)
        write(path + name, found)
    return found


def _check_fitness(path: bytes, origin: str) -> None:
    """config-linux.md#cgroups-path: a container shares its cgroup with nobody, and could not start in a frozen one."""
    shown = path.decode("utf-8", "replace")
    found = [pid for pid in look(path + b"/cgroup.procs").split() if pid != b"0"]
    if found or b"populated 1" in look(path + b"/cgroup.events"):
        raise PyociError(
            f"{origin}: the container's cgroup {shown} is not empty: {_processes(found)}; end them, or give"
            " another linux.cgroupsPath"
        )
    stopped = look(path + b"/freezer.state").strip() not in (b"", b"THAWED")
    if stopped or look(path + b"/cgroup.freeze").strip() == b"1":
        raise PyociError(
            f"{origin}: the container's cgroup {shown} is frozen; thaw it, or give another linux.cgroupsPath"
        )


def enable(path: bytes, required: list[bytes], wanted: list[bytes], origin: str) -> None:
    """Give the children of the v2 cgroup `path` the controllers; those only `wanted` where that can be done."""
    file = path + b"/cgroup.subtree_control"
    enabled = read(file).split()
    missing = [name for name in (*required, *wanted) if name not in enabled]
    if not missing:
        return
    if _is_in_the_way(path):
        # of the controllers that threads can have (cpu, pids) the kernel would take some, and make the cgroup the top
        # of a threaded subtree, whose children may have no process
        offered = read(path + b"/cgroup.controllers").split()
        for name in required:
            if name not in enabled:
                number = EBUSY if name in offered else ENOENT
                raise PyociError(f"{origin}: {why('enable', path, number, name.decode())}")
        return
    try:
        write(file, b" ".join(b"+" + name for name in missing))
        return
    except OSError:
        # one of them cannot be, and then none was
        pass
    for name in missing:
        try:
            write(file, b"+" + name)
        except OSError as error:
            if name in required:
                detail = why("enable", path, error.errno or 0, name.decode())
                if not detail:
                    raise
                raise PyociError(f"{origin}: {detail}") from error


def _is_in_the_way(path: bytes) -> bool:
    """Whether a v2 cgroup of ours, other than the top, has processes of its own, beside which its children get no
    controllers (cgroups(7), "no internal processes")."""
    if not posix.access(path + b"/cgroup.subtree_control", posix.W_OK):
        return False
    try:
        return bool(read(path + b"/cgroup.procs")) and read(path + b"/cgroup.type").strip() == b"domain"
    except OSError:
        return False  # the top has no type; a threaded one shows no processes: the kernel says what is wrong


def give(path: bytes, uid: int) -> None:
    """chown the cgroup and those of its files that the kernel says are delegated (cgroups(7))."""
    try:
        names = [name.decode() for name in read(DELEGATE.encode()).split()]
    except OSError:
        names = list(DELEGATED)
    posix.chown(path, uid, -1)
    for name in names:
        try:
            posix.chown(path + b"/" + name.encode(), uid, -1)
        except FileNotFoundError:
            pass


def why(call: str, path: bytes, number: int, controller: str = "") -> str:
    """What the errno `number` means of the cgroup `path`, and what helps; "" where there is nothing to add.

    `call` is "mkdir" (of `path`), "enable" (`controller` for the children of `path`), "clone3" (into `path`) or "write"
    (a pid to its cgroup.procs).
    """
    shown = path.decode("utf-8", "replace")
    what = {
        "mkdir": f"the cgroup {shown} cannot be made",
        "enable": f"the controller {controller} cannot be enabled in {shown}",
    }.get(call, f"no process can be put into the cgroup {shown}")
    if number == EROFS:
        return f"{what}: it is mounted read-only; mount it read-write for pyoci, or use --cgroup-manager disabled"
    if number in (EACCES, EPERM):
        return (
            f"{what}: it is not writable for uid {posix.geteuid()}; limits need a cgroup that is delegated to you (with"
            " systemd: systemd-run --user --scope -p Delegate=yes ...), or none in the configuration"
        )
    kind = look(path + b"/cgroup.type").decode().strip()
    if number in (EOPNOTSUPP, EINVAL) and kind not in ("", "domain"):
        return (
            f"{what}: its type is {kind!r}, because a parent, a child or itself is threaded; give a linux.cgroupsPath"
            " outside of the threaded subtree"
        )
    if call == "enable" and number == ENOENT:
        offered = look(path + b"/cgroup.controllers").decode().split()
        return (
            f"{what}: it has only {', '.join(offered) or 'none'}; enable it in the parents, or with systemd add it to"
            " Delegate= of the unit above"
        )
    if call == "enable" and number == EBUSY:
        pids = look(path + b"/cgroup.procs").split()
        return (
            f"{what}, because it has processes of its own ({_processes(pids)}), and a v2 cgroup has processes or"
            " controllers for its children, not both: move them into a child of it, give a linux.cgroupsPath elsewhere,"
            " or start pyoci from another cgroup"
        )
    if call in ("clone3", "write"):
        enabled = look(path + b"/cgroup.subtree_control").decode().split()
        if number == EBUSY and enabled:
            return f"{what}: it gives its children controllers ({', '.join(enabled)}), so it can have none itself"
        if number == EAGAIN:
            return f"{what}: its pids.max, that of a parent, or the caller's own limit is reached"
    return ""


def refused(call: str, error: OSError) -> CallError:
    """The error of `call`, in its printed form, on the cgroup of a container that exists."""
    from pyoci.kernel.errnos import words

    number = error.errno or 0
    hint = ""
    if number == EROFS:
        hint = "it is mounted read-only; mount it read-write for pyoci"
    elif number in (EACCES, EPERM):
        hint = f"it is not writable for uid {posix.geteuid()}; who created the container can do this"
    elif number in (ENOENT, ENODEV):
        hint = "the cgroup is gone: somebody else has removed it"
    return CallError(CLAUSE, call, number, words(number), "", hint)


def _processes(pids: list[bytes]) -> str:
    """The first few by pid and name."""
    shown: list[str] = []
    for pid in pids[:3]:
        name = look(b"/proc/" + pid + b"/comm").decode("utf-8", "replace").strip()
        shown.append(f"{int(pid)} {name}".rstrip())
    more = [f"{len(pids) - 3} more"] if len(pids) > 3 else []
    return ", ".join([*shown, *more]) or "its children have processes"
