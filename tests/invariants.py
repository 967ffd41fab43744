"""What must hold for every plan.  Each function under `@invariant` is one property; its name is what ARCHITECTURE.md
refers to.  tests/test_invariants.py holds plans to them, tests/test_mistakes.py shows that they have teeth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cases import SYS_ADMIN, Case
from decode import Check

from pyoci.kernel import flags as k
from pyoci.kernel.syscalls import ARCHITECTURES, numbers
from pyoci.plan import join, mounting
from pyoci.plan.ops import INIT, RUNTIME, Op, Ref, Struct, walk
from pyoci.program import assemble, leading

CREATE_HOOKS = ("/hooks/prestart", "/hooks/createRuntime", "/hooks/createContainer")
# What the runtime can be asked for (container/perform.py, container/mounting.py, cgroup/perform.py).
RUNTIME_CALLS = frozenset(
    (
        "adopt_cgroup", "adopt_cpuset", "check_map", "check_usage", "chown_cgroup", "created", "done",
        "enable_controllers", "enter_resctrl", "expect_listener", "find_net_device", "forget", "hooks", "listener",
        "match_resctrl", "mkdir_cgroup", "mkdir_cpuset", "mkdir_resctrl", "mount_root", "move_net_device", "newgidmap",
        "newuidmap", "remember", "set_unit", "start_unit", "unit_property", "user_namespace", "write", "write_lines",
        "write_resctrl",
    )
)  # fmt: skip
ASSETS = {"seccomp": bytes(range(64))}
FILTERED = ("/linux/seccomp", "/process/capabilities", "config.md#linux-process")
TEMPLATE = bytes(32) + (64).to_bytes(8, "little") + bytes(136)  # as much of an ELF header as the assembler looks at

Invariant = Callable[[Case], None]
INVARIANTS: list[Invariant] = []


def invariant(check: Invariant) -> Invariant:
    INVARIANTS.append(check)
    return check


# -- what a plan is made of ------------------------------------------------------------------------------------------


@invariant
def performers_know_their_calls(case: Case) -> None:
    """Every op is by init or the runtime, and is a call that its performer knows; a block is by its op's performer."""
    for op in case.all:
        if op.performer == INIT:
            for arch in ARCHITECTURES:
                assert op.call in ("expect", "spawn", "offer") or op.call in numbers(arch), op
        else:
            assert op.performer == RUNTIME
            assert op.call in RUNTIME_CALLS, op
            assert op.result is None, op
            assert all(inner.performer == RUNTIME for inner in walk((*op.otherwise, *op.then))), op


@invariant
def origins_can_be_looked_up(case: Case) -> None:
    """Every op says why: a JSON pointer to something that is in the document, or a clause of the specification."""
    for op in case.all:
        if op.origin.startswith("/"):
            value: Any = case.document
            for part in op.origin[1:].split("/"):
                key = part.replace("~1", "/").replace("~0", "~")
                try:
                    value = value[int(key)] if isinstance(value, list) else value[key]
                except (KeyError, IndexError, TypeError):
                    raise AssertionError(f"{op!r}: nothing is at {op.origin}") from None
        else:
            own = (join.EXEC, mounting.ORIGIN)
            assert op.origin in own or re.fullmatch(r"[a-z-]+\.md(#[a-z0-9-]+)?", op.origin), op


@invariant
def guards_lead_forward_one_way(case: Case) -> None:
    """At most six tolerated errnos; a block only where something is tolerated or awaited, and never two.

    The block of a spawn is the other process's, which ends there.
    """
    for op in case.all:
        assert len(op.tolerate) <= 6
        assert len(set(op.tolerate)) == len(op.tolerate)
        assert not (op.then and op.otherwise), op
        assert op.tolerate or not op.otherwise or op.call == "spawn", op


def used(value: object) -> Iterator[str]:
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, Struct):
        for field in value.fields.values():
            yield from used(field)


@invariant
def names_are_given_before_they_are_used(case: Case) -> None:
    """On every path through the guards a descriptor was opened before it is used, and not closed yet."""

    def follow(ops: Sequence[Op], open_: frozenset[str]) -> frozenset[str]:
        for op in ops:
            names = [name for value in op.args for name in used(value)]
            if op.call == "spawn":
                # a table of two processes: what the other one closes is what seccomp(2) has put there
                prctl, offer, closing, leave = op.otherwise
                assert (prctl.call, offer.call, leave.call) == ("prctl", "offer", "exit_group")
                assert closing.call == "close" and set(used(closing.args[0])) == {"listener"}
                continue
            if op.performer == RUNTIME:
                assert set(names) <= ({"stage"} if op.call == "start_unit" else {"pid"}), op
                continue
            for name in names:
                assert name in open_, f"{op!r} uses @{name}, which is not there on every path"
            before = open_
            if op.call == "close":
                open_ = open_ - set(names)
            after = open_ | {op.result} if op.result is not None else open_
            ends = [follow(op.then, after)]
            if op.tolerate:
                ends.append(follow(op.otherwise, before))
            open_ = frozenset.intersection(*ends)
        return open_

    follow(case.ops, frozenset(case.fds))


@invariant
def descriptors_are_close_on_exec(case: Case) -> None:
    """Whatever opens a descriptor asks for CLOEXEC; the standard streams are the exception."""
    wanted = {
        "openat": (2, k.O_CLOEXEC),
        "open_tree": (2, k.OPEN_TREE_CLOEXEC),
        "fsopen": (1, k.FSOPEN_CLOEXEC),
        "fsmount": (1, k.FSMOUNT_CLOEXEC),
        "fspick": (2, k.FSPICK_CLOEXEC),
        "socket": (1, k.SOCK_CLOEXEC),
        "accept4": (3, k.SOCK_CLOEXEC),
    }
    for op in case.all:
        if op.performer == RUNTIME:
            continue
        if op.call in wanted:
            position, flag = wanted[op.call]
            assert op.args[position] & flag, op  # type: ignore[operator]
        elif op.call == "openat2":
            how = op.args[2]
            assert isinstance(how, Struct)
            assert how.fields["flags"] & k.O_CLOEXEC, op  # type: ignore[operator]
        elif op.call == "ioctl" and op.args[1] == k.TIOCGPTPEER:
            assert op.args[2] & k.O_CLOEXEC, op  # type: ignore[operator]
        elif op.call == "dup3":
            assert op.args[1] in (0, 1, 2) or op.args[2] == k.O_CLOEXEC, op
        elif op.result is not None:
            assert op.call == "bpf", f"{op!r} opens a descriptor that this test does not know"


# -- the order of privileges -----------------------------------------------------------------------------------------


@invariant
def identity_before_capabilities(case: Case) -> None:
    """setgroups < setresgid < setresuid < capset, each for good; and the bounding set before all of them."""
    if case.kind == "hook" or case.process is None:
        return
    groups, gid, uid, caps = (case.calls(name) for name in ("setgroups", "setresgid", "setresuid", "capset"))
    assert gid[-1] < uid[-1] < caps[0]
    assert len(groups) <= 1
    assert all(place < gid[-1] for place in groups)
    # a user namespace's root is taken first, and only then given up
    assert len(gid) <= 2 and len(uid) <= 2
    dropped = case.where(lambda op: op.call == "prctl" and op.args[0] == k.PR_CAPBSET_DROP)
    assert all(place < gid[-1] for place in dropped)


@invariant
def limits_while_they_can_be_raised(case: Case) -> None:
    limits = case.calls("prlimit64")
    assert all(place < case.calls("setresuid")[-1] for place in limits)


def capabilities_of(op: Op) -> int:
    data = op.args[1]
    assert isinstance(data, Struct)
    low, high = data.fields["effective_low"], data.fields["effective_high"]
    assert isinstance(low, int) and isinstance(high, int)
    return low | high << 32


@invariant
def seccomp_comes_as_late_as_it_may(case: Case) -> None:
    """With no_new_privs: after it.  Without: CAP_SYS_ADMIN is kept for it, and given up right after if not asked for.

    Either way nothing but capset and execve is left for the filter to forbid.  With a listener it is the last thing
    before the container is created, or a hook is executed.
    """
    (place, *more) = case.calls("seccomp") or (None,)
    assert not more
    if place is None:
        assert case.kind == "hook" or "seccomp" not in case.document["linux"] or case.process is None
        return
    no_new_privileges = case.where(lambda op: op.call == "prctl" and op.args[0] == k.PR_SET_NO_NEW_PRIVS)
    before = [capabilities_of(case.all[capset]) for capset in case.calls("capset") if capset < place]
    after = [capabilities_of(case.all[capset]) for capset in case.calls("capset") if capset > place]
    if no_new_privileges:
        assert no_new_privileges[0] < place
        assert not after
    else:
        assert before[-1] & SYS_ADMIN
    assert case.process is not None
    asked = case.process.get("capabilities", {}).get("effective", ())
    if "CAP_SYS_ADMIN" not in asked:
        assert not (after or before)[-1] & SYS_ADMIN
    rest = [op.call for op in case.all[place + 1 :]]
    if case.unseen and after:
        # loaded by who still may; what it may forbid was looked up
        appears = rest.index("clone")
        assert rest[:appears] == ["capset"] and rest[rest.index("created") + 1 :] == ["execve"] * rest.count("execve")
        return
    if "spawn" in [op.call for op in case.all]:
        end = rest.index("listener")
        assert rest[end + 1] == ("execve" if case.kind == "hook" else "created")
        rest = rest[:end]
    assert rest == ["capset"] * len(after) + ["execve"] * (len(rest) - len(after))


@invariant
def ambient_within_reach(case: Case) -> None:
    """The ambient set after capset, which would empty it; no_new_privs at the very last of them."""
    ambient = case.where(lambda op: op.call == "prctl" and op.args[0] == k.PR_CAP_AMBIENT)
    last = case.where(lambda op: op.call == "prctl" and op.args[0] == k.PR_SET_NO_NEW_PRIVS)
    assert all(place > case.calls("capset")[0] for place in ambient)
    assert all(place < end for place in ambient for end in last)


@invariant
def nobody_can_trace_us(case: Case) -> None:
    """Not dumpable before the first setns, before anything is built in the container, and again after setresuid."""
    hidden = case.where(lambda op: op.call == "prctl" and op.args[:2] == (k.PR_SET_DUMPABLE, 0))
    entered = case.calls("move_mount", "mount_setattr", "fsmount", "pivot_root", "chroot", "execve")
    new = [entry["type"] for entry in case.document["linux"]["namespaces"] if not entry.get("path")]
    if case.privileged or "user" not in new:
        # without privileges nobody can join another's namespaces before making a user namespace
        entered += case.calls("setns", "clone3")
    assert hidden[0] < min(entered)
    changed = case.calls("setresuid")
    if changed and case.process is not None and case.kind != "hook":
        assert hidden[-1] > changed[-1]


@invariant
def one_program_and_it_is_the_users(case: Case) -> None:
    """execve is the end: further directories of PATH, and nothing else, come after one; only the last must succeed."""
    places = case.calls("execve", "execveat")
    if case.process is None and case.kind == "container":
        assert not places
        assert case.all[-1].call == "expect"
        return
    assert places == list(range(len(case.all) - len(places), len(case.all)))
    programs = [case.all[place] for place in places]
    assert programs == list(case.ops[-len(programs) :]), "never under a guard"
    assert [bool(op.tolerate) for op in programs] == [True] * (len(programs) - 1) + [False]
    assert all(op.args[1:] == programs[0].args[1:] for op in programs)
    if case.kind != "hook":
        assert case.process is not None
        name = case.process["args"][0].encode()
        for op in programs:
            path = op.args[0]
            assert isinstance(path, bytes)
            assert path == name if b"/" in name else path.endswith(b"/" + name)


# -- namespaces, cgroups, the root -----------------------------------------------------------------------------------


@invariant
def in_its_cgroup_before_it_sees_cgroups(case: Case) -> None:
    """A cgroup namespace is rooted where its maker is, so the container is in its own cgroups first."""
    clone = case.calls("clone3")
    assert len(clone) == 1
    arguments = case.all[clone[0]].args[0]
    assert isinstance(arguments, Struct)
    flags = arguments.fields["flags"]
    assert isinstance(flags, int)
    assert flags & k.CLONE_PARENT
    assert bool(flags & k.CLONE_INTO_CGROUP) == ("cgroup" in arguments.fields) == case.by_clone
    assert not flags & (k.CLONE_NEWCGROUP | k.CLONE_NEWTIME)
    entered = case.where(lambda op: op.call == "write" and str(op.args[0]).startswith("@tasks"))
    assert len(entered) == case.hierarchies
    assert all(clone[0] < place for place in entered)
    for place in case.where(lambda op: op.call == "unshare" and op.args == (k.CLONE_NEWCGROUP,)):
        assert all(entry < place for entry in (*entered, *clone))


@invariant
def ids_before_anything_is_owned(case: Case) -> None:
    """The maps of a new user namespace are written before any call of the process in it but clone3."""
    clone = case.calls("clone3")[0]
    for place in case.where(lambda op: op.origin in ("/linux/uidMappings", "/linux/gidMappings")):
        assert case.all[place].performer == RUNTIME
        assert all(op.performer == RUNTIME for op in case.all[clone + 1 : place])


# Calls that take a path: (position of the directory's descriptor, position of the path, whether only a name is allowed)
PATHS = {
    "chdir": (None, 0, False),
    "chroot": (None, 0, False),
    "faccessat2": (0, 1, False),
    "fchmodat": (0, 1, True),
    "fchownat": (0, 1, True),
    "fspick": (0, 1, False),
    "mkdirat": (0, 1, True),
    "mknodat": (0, 1, True),
    "mount": (None, 1, False),
    "mount_setattr": (0, 1, False),
    "move_mount": (2, 3, False),
    "open_tree": (0, 1, False),
    "openat": (0, 1, False),
    "pivot_root": (None, 0, False),
    "statx": (0, 1, False),
    "symlinkat": (1, 2, True),
    "umount2": (None, 0, False),
    "unlinkat": (0, 1, True),
}
FOLLOWING = ("fchmodat",)  # of those that take a name: a symbolic link under it would be followed


@invariant
def the_root_is_reached_by_handles(case: Case) -> None:
    """From the moment the root is there until it is "/", nothing in it is named by a path that the kernel resolves,
    unless openat2 keeps the resolution inside it.

    What takes a directory and a name takes one component and does not follow it.  The rest works on the descriptor
    itself (an empty path).  Named from outside are "/" as the place of the new root, sources of bind mounts (a root
    over "/" cannot be in their way, while our own is the one below), the host's /dev/null (checked to be that device),
    what is taken away of a root that stays (plan/old_root.py), and "." once it is the root.
    """
    if case.kind != "container":
        return
    placed = case.where(
        lambda op: op.call == "move_mount" and op.args[2] == k.AT_FDCWD and op.args[3] not in case.views
    )
    opened = case.where(lambda op: op.result == "rootfs")
    changed = case.calls("pivot_root", "chroot")
    assert len(changed) == 1 and len(placed) <= 2
    begin = placed[-1] if placed else opened[0]
    for place in range(begin + 1, changed[0]):
        op = case.all[place]
        if op.performer == RUNTIME:
            continue
        if op.call == "openat2":
            how = op.args[2]
            assert isinstance(op.args[0], Ref) and isinstance(how, Struct)
            resolve = how.fields["resolve"]
            assert isinstance(resolve, int)
            assert resolve & (k.RESOLVE_IN_ROOT | k.RESOLVE_BENEATH), op
            assert resolve & (k.RESOLVE_NO_MAGICLINKS | k.RESOLVE_NO_SYMLINKS), op
        elif op.call == "readlinkat":
            # its own pid, from where nothing of an image is
            assert op.args[:2] in ((k.AT_FDCWD, b"/proc/self"), (Ref("proc"), b"self")), op
        elif op.call in ("umount2", "move_mount") and any(value in case.views for value in op.args):
            pass
        elif op.call in PATHS:
            if op.call == "mount":
                # on the directory of a handle, which has just been entered; what else it names is the host's
                assert op.args[1] == b"." and case.all[place - 1].call == "fchdir", op
                continue
            if op.call == "openat" and op.args[1] == b"/dev/null":
                assert op.args[2] & k.O_NOFOLLOW, op  # type: ignore[operator]
                continue
            if op.call == "open_tree" and op.args[0] == k.AT_FDCWD and not placed:
                continue  # without a mount namespace of its own, sources are opened before the root's mounts are made
            if op.call == "open_tree" and op.args[0] == k.AT_FDCWD and op.origin.startswith("/mounts/"):
                assert [case.all[number].args[3] for number in placed] == [b"/"], op
                source, flags = op.args[1:]
                assert isinstance(source, bytes) and source.startswith(b"/") and source != b"/", op
                assert isinstance(flags, int) and flags & k.OPEN_TREE_CLONE, op
                continue
            if op.args[0] == Ref("proc"):
                continue  # a procfs that nobody else can reach
            directory, path, name_only = PATHS[op.call]
            assert directory is not None and isinstance(op.args[directory], Ref), op
            named = op.args[path]
            assert isinstance(named, bytes)
            if name_only:
                assert named and b"/" not in named and named not in (b".", b".."), op
                assert op.call not in FOLLOWING, op
                if op.call == "fchownat":
                    assert op.args[4] == k.AT_SYMLINK_NOFOLLOW
            else:
                assert named == b"", op
        else:
            assert not any(isinstance(value, bytes) and b"/" in value for value in op.args if op.call != "fsconfig"), op
    after = case.all[changed[0] :]
    assert [op.call for op in after if op.call == "chdir"] == ["chdir"]


@invariant
def hooks_see_the_container_before_it_is_closed(case: Case) -> None:
    """create's hooks before pivot_root and before anything is masked; startContainer after all of it."""
    if case.kind != "container":
        return
    hooks = case.where(lambda op: op.call == "hooks" and op.origin in CREATE_HOOKS)
    assert [case.all[place].origin for place in hooks] == [
        origin for origin in CREATE_HOOKS if case.document.get("hooks", {}).get(origin[7:])
    ]
    sealed = case.where(
        lambda op: op.origin.startswith(("/linux/maskedPaths", "/linux/readonlyPaths", "/root/readonly"))
    )
    sealed += case.calls("pivot_root", "chroot")
    mounts = case.where(lambda op: op.origin.startswith("/mounts/") and op.call == "move_mount")
    assert all(hook < place for hook in hooks for place in sealed)
    assert all(mount < hook for hook in hooks for mount in mounts)
    start = case.where(lambda op: op.call == "hooks" and op.origin == "/hooks/startContainer")
    assert all(place > case.created for place in start)


@invariant
def nothing_of_the_hosts_stays_open(case: Case) -> None:
    """close_range is the last call before the container is recorded, and names used after it are the launcher's."""
    if case.kind == "hook":
        return
    place = case.created
    if case.unseen:
        # in between nothing is opened: it appears, is given a score, and has its filter from who closed all else
        (place,) = case.calls("clone")
        while case.all[place - 1].call in ("seccomp", "capset") and case.all[place - 1].origin in FILTERED:
            place -= 1
    elif case.all[place - 1].call == "listener":
        # which comes with the filter, and is closed before
        (spawn,) = case.calls("spawn")
        place = spawn - 4
        assert [op.call for op in case.all[place:spawn]] == ["expect_listener", "openat", "close", "rt_sigaction"]
    assert case.all[place - 1].call == "close_range"
    assert case.all[place - 1].args == (case.fds["console"], k.UINT_MAX, 0)
    names = {name for op in case.all[case.created :] for value in op.args for name in used(value)}
    assert names <= {"control", "listen", "started"}
    first = case.ops[leading(case.ops)]
    assert (first.call, *first.args[1:]) == ("close_range", k.UINT_MAX, 0), "the first thing that init does"


@invariant
def nothing_of_the_images_is_opened(case: Case) -> None:
    """A name in the root may be a device's or a fifo's, and opening one does something: only what is new is opened,
    what was looked at just before (ptmx), or what is copied, from where opening does not wait."""
    for op in case.all:
        if op.call != "openat2":
            continue
        how = op.args[2]
        assert isinstance(how, Struct)
        flags = how.fields["flags"]
        assert isinstance(flags, int)
        if not flags & (k.O_PATH | k.O_DIRECTORY) and op.args[0] != Ref("proc") and op.result not in ("ptmx", "old"):
            assert flags & (k.O_CREAT | k.O_EXCL) == k.O_CREAT | k.O_EXCL, op


@invariant
def what_can_be_traced_has_nothing_to_lose(case: Case) -> None:
    """Who comes into a pid namespace whose processes may trace it has its program's ids and rights by then."""
    if not case.unseen:
        assert not case.calls("clone")
        return
    (appears,) = case.calls("clone")
    joined = case.where(lambda op: op.call == "setns" and isinstance(op.args[1], int) and op.args[1] & k.CLONE_NEWPID)
    assert joined and max(joined) > case.calls("clone3")[0]
    before = {"setgroups", "setresgid", "setresuid", "capset", "keyctl", "prlimit64", "fchown", "openat", "openat2"}
    late = set(case.calls("openat")) if case.calls("spawn") else set()
    assert all(place < appears for place in case.calls(*before) if place not in late)
    after = [op.call for op in case.all[appears + 1 :] if op.performer == INIT]
    listening = {"openat", "close", "rt_sigaction", "spawn", "prctl", "offer", "exit_group"}
    assert set(after) <= {"setsid", "ioctl", "seccomp", "execve"} | (listening if "spawn" in after else set())
    assert after[0] == "setsid"


@invariant
def start_has_little_left_to_do(case: Case) -> None:
    """Whatever can fail has failed at create: after it only the signal, the hooks, the filter and the program."""
    if case.kind == "hook":
        return
    allowed = {"accept4", "dup3", "close", "hooks", "seccomp", "capset", "execve", "expect"}
    assert {op.call for op in case.all[case.created + 1 :]} <= allowed


# -- bytes -----------------------------------------------------------------------------------------------------------


@invariant
def equal_inputs_are_equal_bytes_that_read_back(case: Case) -> None:
    """For both architectures: the same image every time, and in it what the plan says, argument by argument."""
    for arch in ARCHITECTURES:
        programs = []
        for ops in (case.ops, case.make()):
            rest = ops[leading(ops) :]
            programs.append((rest, assemble(rest, TEMPLATE, arch, numbers(arch), case.fds, ASSETS)))
        assert programs[0][1].image == programs[1][1].image
        for rest, program in programs[:1]:
            Check(program, arch, case.fds, ASSETS).all(rest)
