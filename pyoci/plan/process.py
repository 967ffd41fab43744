"""What a process is given before its program: identity, limits, privileges (config.md#process).

The order is the security design and is the same for `create` and `exec`:

    when preparing  rlimits, scheduler < bounding set < setgroups < setresgid < setresuid < capset < ambient set
                    < no_new_privs
    when starting   seccomp (< capset, where the filter needs CAP_SYS_ADMIN) < execve

A filter with a listener is loaded at the end of preparing: plan/listener.py.
"""

from __future__ import annotations

from errno import EACCES, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EROFS

from pyoci.kernel import flags as k
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.kernel.seccomp import SECCOMP_FILTER_FLAG_NEW_LISTENER
from pyoci.plan.entry import RAISING
from pyoci.plan.ops import Address, Asset, Blob, Buffer, Op, Ref, Struct, Vector
from pyoci.plan.paths import HANDLE, SCOPED, close, openat2, to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyoci.host import Host
    from pyoci.spec.types import Capabilities, Process

NNP = "/process/noNewPrivileges"
USER = "/process/user"
USER_CLAUSE = "config.md#posix-platform-user"
CAPS = "/process/capabilities"
CAPS_CLAUSE = "config.md#linux-process"
ARGS = "/process/args"
SECCOMP = "/linux/seccomp"
SYS_ADMIN = 1 << CAPABILITIES["CAP_SYS_ADMIN"]
# What PATH is when the process has none: execvp(3)'s own default, without the current directory.
DEFAULT_PATH = "/bin:/usr/bin"
MOST = 300  # directories of PATH that are looked at beforehand
# execvp(3) goes on to the next directory of PATH after these.
ELSEWHERE = (ENOENT, EACCES, ENOTDIR, ELOOP, ENAMETOOLONG)


def capability_mask(names: tuple[str, ...], host: Host) -> int:
    """The set as bits; names that the kernel does not know are left out (they earn a warning: `ungranted`)."""
    mask = 0
    for name in names:
        number = CAPABILITIES.get(name)
        if number is not None and number <= host.last_cap:
            mask |= 1 << number
    return mask


class CapabilitySets:
    """The five sets as bits, cut to what can be granted."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(self, capabilities: Capabilities | None, host: Host, granted: int) -> None:
        if capabilities is None:
            self.ambient = self.bounding = self.effective = self.inheritable = self.permitted = 0
            return
        self.bounding = capability_mask(capabilities.bounding, host) & granted
        self.permitted = capability_mask(capabilities.permitted, host) & granted
        self.effective = capability_mask(capabilities.effective, host) & self.permitted
        # capset(2) takes no inheritable one that is not bounding, prctl(2) no ambient one that is not in both others
        self.inheritable = capability_mask(capabilities.inheritable, host) & self.bounding
        self.ambient = capability_mask(capabilities.ambient, host) & self.permitted & self.inheritable


def ungranted(capabilities: Capabilities | None, host: Host, granted: int) -> list[str]:
    """Names asked for and not given: unknown to this kernel, or not ours to give (config.md: a warning, not an
    error)."""
    if capabilities is None:
        return []
    asked: dict[str, None] = {}
    for names in (
        capabilities.bounding,
        capabilities.permitted,
        capabilities.effective,
        capabilities.inheritable,
        capabilities.ambient,
    ):
        for name in names:
            if not capability_mask((name,), host) & granted and name not in asked:
                asked[name] = None
    return list(asked)


def unheld(capabilities: Capabilities) -> list[tuple[str, str, list[str]]]:
    """Those that the kernel lets nobody have, because another set has them not (capabilities(7)): the set, what they
    would have to be, and their names."""
    bounding, permitted = set(capabilities.bounding), set(capabilities.permitted)
    inheritable = set(capabilities.inheritable) & bounding
    found = [
        ("effective", "permitted", [name for name in capabilities.effective if name not in permitted]),
        ("inheritable", "bounding", [name for name in capabilities.inheritable if name not in bounding]),
        (
            "ambient",
            "both permitted and inheritable",
            [name for name in capabilities.ambient if name not in permitted & inheritable],
        ),
    ]
    return [each for each in found if each[2]]


def capset(effective: int, permitted: int, inheritable: int, origin: str) -> Op:
    """capset(2) with 64-bit masks."""
    low = 0xFFFFFFFF
    data = Struct(
        "cap_data",
        effective_low=effective & low,
        permitted_low=permitted & low,
        inheritable_low=inheritable & low,
        effective_high=effective >> 32,
        permitted_high=permitted >> 32,
        inheritable_high=inheritable >> 32,
    )
    return Op("capset", (Struct("cap_header", version=k.LINUX_CAPABILITY_VERSION_3, pid=0), data), origin)


class ProcessPlan:
    """`prepare` is everything that create does for the process; `begin` what start adds; the last op of `begin` is
    execve.  `listener`, mostly empty, comes between them, when nothing of the host's is open any more."""

    __slots__ = ("begin", "listener", "prepare")

    def __init__(self) -> None:
        self.listener: list[Op] = []
        self.prepare: list[Op] = []
        self.begin: list[Op] = []


def _drops(origin: str, last: int) -> list[Op]:
    """An op for each capability that drops it; the same in every plan, so made once."""
    found = _known_drops.get(origin, [])
    if len(found) <= last:
        found = [Op("prctl", (k.PR_CAPBSET_DROP, number, 0, 0, 0), origin) for number in range(last + 1)]
        _known_drops[origin] = found
    return found


_known_drops: dict[str, list[Op]] = {}


def plan_process(  # noqa: PLR0913 - the inputs of the order are these
    process: Process,
    host: Host,
    granted: int,
    seccomp_flags: int | None,
    chown_stdio: tuple[int, ...],
    drop_groups: bool,
    more_env: Sequence[bytes | Address] = (),
) -> ProcessPlan:
    """Ops for `process`.

    granted        capabilities that can be given at all (bits)
    seccomp_flags  flags for seccomp(2), or None without a filter
    chown_stdio    standard streams that become the user's, so that /dev/stdout can be opened
    drop_groups    False where setgroups(2) is denied (a user namespace without a privileged map), or the caller's stay
    more_env       variables that the process gets besides its own
    """
    plan = ProcessPlan()
    prepare = plan.prepare
    sets = CapabilitySets(process.capabilities, host, granted)
    user = process.user
    prepare += [
        Op(
            "prlimit64",
            (0, k.RLIMITS[limit.type], Struct("rlimit64", rlim_cur=limit.soft, rlim_max=limit.hard), 0),
            f"/process/rlimits/{index}",
            hint=RAISING,
        )
        for index, limit in enumerate(process.rlimits)
    ]
    if process.scheduler or process.io_priority:
        from pyoci.plan.tuning import of_process

        prepare += of_process(process)
    prepare += _cwd_before(process.cwd)
    dropped = granted & ~sets.bounding
    origin = f"{CAPS}/bounding" if process.capabilities and process.capabilities.bounding else CAPS_CLAUSE
    drops = _drops(origin, host.last_cap)
    prepare += [drops[number] for number in range(host.last_cap + 1) if dropped >> number & 1]
    if user.uid and chown_stdio:
        # a stream whose owner this user namespace does not map stays as it is, as does one on a read-only file system
        refused = (EPERM, EINVAL, EROFS)
        prepare += [
            Op("fchown", (number, user.uid, k.UINT_MAX), f"{USER}/uid", tolerate=refused) for number in chown_stdio
        ]
    prepare.append(Op("prctl", (k.PR_SET_KEEPCAPS, 1, 0, 0, 0), CAPS_CLAUSE))
    # what is denied to us is to all namespaces below ours, and nobody's to give up: only groups that are asked for fail
    if drop_groups and (user.additional_gids or not host.denies_setgroups):
        groups = b"".join(gid.to_bytes(4, "little") for gid in user.additional_gids)
        words = f"{list(user.additional_gids)}"
        origin = f"{USER}/additionalGids" if groups else USER_CLAUSE
        prepare.append(Op("setgroups", (len(user.additional_gids), Blob(groups, words)), origin))
    # an id of 0 may be there or not
    prepare.append(Op("setresgid", (user.gid, user.gid, user.gid), f"{USER}/gid" if user.gid else USER_CLAUSE))
    prepare.append(Op("setresuid", (user.uid, user.uid, user.uid), f"{USER}/uid" if user.uid else USER_CLAUSE))
    # setresuid made us dumpable as the new user's process; while we wait we are nobody's to trace (CVE-2016-9962)
    prepare.append(Op("prctl", (k.PR_SET_DUMPABLE, 0, 0, 0, 0), "runtime.md#lifecycle"))
    late_caps = _privileges(plan, process, sets, seccomp_flags)
    umask = 0o022 if user.umask is None else user.umask
    prepare.append(Op("umask", (umask,), USER_CLAUSE if user.umask is None else f"{USER}/umask"))
    prepare += _cwd_after(process.cwd)
    candidates = _candidates(process)
    prepare += _find(process, candidates)
    begin = plan.begin
    if seccomp_flags is not None:
        load = Op(
            "seccomp",
            (
                k.SECCOMP_SET_MODE_FILTER,
                seccomp_flags,
                Struct("sock_fprog", len=Asset("seccomp", count=True), filter=Asset("seccomp")),
            ),
            SECCOMP,
        )
        if seccomp_flags & SECCOMP_FILTER_FLAG_NEW_LISTENER:
            from pyoci.plan.listener import hand_over

            plan.listener = hand_over(load, late_caps, seccomp_flags)
            late_caps = []
        else:
            begin.append(load)
    begin += late_caps
    argv = Vector([to_bytes(arg) for arg in process.args])
    # of several the last, as in other runtimes, and as what exec adds is meant; getenv(3) would find the first
    env: tuple[str, ...] = tuple({entry.partition("=")[0]: entry for entry in process.env}.values())
    if host.home:
        env = (*[entry for entry in env if entry != "HOME="], f"HOME={host.home}")
    if more_env:
        from pyoci.plan.listening import NAMES

        env = tuple(entry for entry in env if not entry.startswith(NAMES))
    envp = Vector([*[to_bytes(entry) for entry in env], *more_env])
    for number, path in enumerate(candidates):
        last = number == len(candidates) - 1
        begin.append(
            Op(
                "execve",
                (path, argv, envp),
                ARGS,
                tolerate=() if last else ELSEWHERE,
                hint=_advice(process),
            )
        )
    return plan


def _privileges(plan: ProcessPlan, process: Process, sets: CapabilitySets, seccomp_flags: int | None) -> list[Op]:
    """Capability sets and no_new_privs; returns the ops that must wait until the filter is loaded."""
    prepare = plan.prepare
    late: list[Op] = []
    origin = CAPS_CLAUSE if process.capabilities is None else CAPS
    needs_admin = seccomp_flags is not None and not process.no_new_privileges
    if needs_admin and not sets.effective & SYS_ADMIN:
        # Without no_new_privs only CAP_SYS_ADMIN may load a filter: it is kept that long and dropped right after.
        prepare.append(capset(sets.effective | SYS_ADMIN, sets.permitted | SYS_ADMIN, sets.inheritable, SECCOMP))
        late.append(capset(sets.effective, sets.permitted, sets.inheritable, origin))
    else:
        prepare.append(capset(sets.effective, sets.permitted, sets.inheritable, origin))
    for number in range(sets.ambient.bit_length()):
        if sets.ambient >> number & 1:
            prepare.append(Op("prctl", (k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, number, 0, 0), f"{CAPS}/ambient"))
    if process.no_new_privileges:
        prepare.append(Op("prctl", (k.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), NNP))
    return late


def _cwd_before(cwd: str) -> list[Op]:
    """Enter the working directory with full privileges; a user who could not reach it still may be in it."""
    enter = [Op("fchdir", (Ref("cwd"),), "/process/cwd", tolerate=(EACCES,)), close("cwd", "/process/cwd")]
    path = to_bytes(cwd)
    handle = HANDLE | k.O_DIRECTORY
    root = Op("openat", (k.AT_FDCWD, b"/", handle), "/process/cwd", "root")
    find = openat2("root", path, handle, SCOPED, "/process/cwd", "cwd", tolerate=(EACCES,), then=enter)
    return [root, find]


def _cwd_after(cwd: str) -> list[Op]:
    """Enter it again as the user, where only the user may (a network file system), and see that it is inside the root.

    A working directory that is a magic link to a descriptor of ours is refused by openat2; getcwd answers
    "(unreachable)..." for a directory outside the root (CVE-2024-21626).
    """
    handle = HANDLE | k.O_DIRECTORY
    return [
        openat2(
            "root",
            to_bytes(cwd),
            handle,
            SCOPED,
            "/process/cwd",
            "cwd",
            tolerate=(EACCES,),
            then=[
                Op("fchdir", (Ref("cwd"),), "/process/cwd", tolerate=(EACCES,)),
                close("cwd", "/process/cwd"),
            ],
        ),
        close("root", "/process/cwd"),
        Op("getcwd", (Buffer("getcwd", 4096), 4096), "/process/cwd"),
        Op(
            "expect",
            (Address("getcwd"), 0xFF, ord("/"), ENOENT),
            "/process/cwd",
            hint="the working directory is outside the container's root",
        ),
    ]


def _candidates(process: Process) -> list[bytes]:
    """Where execvp(3) would look for args[0]."""
    name = process.args[0]
    if "/" in name:
        return [to_bytes(name)]
    path = DEFAULT_PATH
    for entry in process.env:
        if entry.startswith("PATH="):
            path = entry[5:]
    return [to_bytes(f"{directory or '.'}/{name}") for directory in dict.fromkeys(path.split(":"))]


def _advice(process: Process) -> str:
    name = process.args[0]
    if "/" in name:
        return f'exec: "{name}"'
    return f'exec: "{name}": executable file not found in $PATH'


def _find(process: Process, candidates: list[bytes]) -> list[Op]:
    """Fail at create, not at start, when there is nothing to execute: engines show that error to their users.

    Each look hangs on the one before; of a longer PATH than anybody's, start has to say it.
    """
    if len(candidates) > MOST:
        return []
    advice = _advice(process)
    ops: list[Op] = []
    for number, path in reversed(list(enumerate(candidates))):
        last = number == len(candidates) - 1
        ops = [
            Op(
                "faccessat2",
                (k.AT_FDCWD, path, k.X_OK, k.AT_EACCESS),
                ARGS,
                tolerate=() if last else ELSEWHERE,
                otherwise=ops,
                hint=advice,
            )
        ]
    if len(candidates) == 1:
        # a directory may be "executed" too, that is searched: its O_PATH handle tells it from a program
        never = Op("expect", (Address("getcwd"), 0, 1, EACCES), ARGS, hint=advice)
        handle = (k.AT_FDCWD, candidates[0], HANDLE | k.O_DIRECTORY)
        anything_else = (ENOTDIR, EACCES, ELOOP)
        ops.append(Op("openat", handle, ARGS, "directory", tolerate=anything_else, then=[never]))
    return ops
