"""What CRIU has made, before it goes on: whether it is as confined as config.json says.

CRIU makes processes as their images have them, whatever config.json says, so this looks at what the kernel says of them
while they still stand.  More confined than config.json is fine: programs give up what they do not need.
"""

from __future__ import annotations

import posix
from stat import S_ISCHR

from pyoci.cgroup.files import look
from pyoci.cgroup.live import procs
from pyoci.errors import PyociError
from pyoci.kernel import flags as k
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.mountinfo import mount_of, rows
from pyoci.plan.external import clean
from pyoci.plan.namespaces import map_text
from pyoci.plan.options import MountOptions
from pyoci.state import process
from pyoci.tree import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyoci.spec.types import Process, Spec
    from pyoci.state import State

    Tell = Callable[[str, str], None]

# attributes that confine, as mountinfo has them
CONFINING = {
    k.MOUNT_ATTR_RDONLY: "ro",
    k.MOUNT_ATTR_NOSUID: "nosuid",
    k.MOUNT_ATTR_NODEV: "nodev",
    k.MOUNT_ATTR_NOEXEC: "noexec",
    k.MOUNT_ATTR_NOSYMFOLLOW: "nosymfollow",
}
NAMES = {"mount": "mnt", "network": "net"}  # of namespaces in /proc, where they are not as in config.json
HARD = slice(47, 68)  # of /proc/PID/limits
FILTER = "2"  # SECCOMP_MODE_FILTER in /proc/PID/status (proc(5))


def check(spec: Spec, state: State, criu: int, profile: str) -> None:
    """PyociError with all that the restored processes have and config.json does not allow; `criu` is the process that
    made them, `profile` a security module's that was asked for instead of config.json's (TYPE:NAME)."""
    found: list[str] = []

    def tell(pointer: str, what: str) -> None:
        line = f"{pointer}: {what}"
        if line not in found:
            found.append(line)

    # Each thread has credentials, a filter, a label and namespaces of its own; of one that has ended, and that nobody
    # had waited for, nothing is left to look at.
    living = {pid: [thread for thread in threads(pid) if _lives(thread)] for pid in descendants(state.pid)}
    tree = [pid for pid in living if living[pid]]
    every = [thread for pid in tree for thread in living[pid]]
    _namespaces(spec, every, criu, tell)
    _cgroups(state, tree, tell)
    if spec.process is not None:
        user = _link(state.pid, "user")
        for thread in every:
            _labels(spec.process, thread, criu, profile, tell)
            _process(spec, spec.process, thread, _link(thread, "user") == user, tell)
    # who may mount has made of its mounts what it likes
    if "CAP_SYS_ADMIN" not in _allowed(spec):
        _mounts(spec, state.pid, tell)
    if found:
        raise PyociError(f"restore: the images ask for more than config.json allows: {'; '.join(found)}")


def descendants(pid: int) -> list[int]:
    """`pid` and all that come from it."""
    found, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for thread in threads(pid):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                waiting += [int(word) for word in file.read().split()]
    return found


def threads(pid: int) -> list[int]:
    """Those of a process, itself the first: /proc shows each by its number, too."""
    return sorted([int(name) for name in posix.listdir(f"/proc/{pid}/task")], key=lambda number: number != pid)


def _lives(thread: int) -> bool:
    seen = process(thread)
    return seen is not None and seen[0] not in "ZX"


def _link(pid: int | str, kind: str) -> str:
    return posix.readlink(f"/proc/{pid}/ns/{NAMES.get(kind, kind)}")


def _namespaces(spec: Spec, every: list[int], criu: int, tell: Tell) -> None:
    asked = {entry.type: entry.path or "" for entry in spec.linux.namespaces}
    for kind in ("mount", "pid", "network", "ipc", "uts", "user", "cgroup"):
        # CRIU's mount namespace has all that the host's has
        hosts = {_link("self", kind), _link(criu, kind)}
        theirs = {_link(pid, kind) for pid in every}
        if kind not in asked:
            if kind == "user" and _link(every[0], kind) not in hosts:
                tell("/linux/namespaces", "a user namespace that is not there")
        elif asked[kind]:
            found = posix.stat(asked[kind])
            there = posix.stat(f"/proc/{every[0]}/ns/{NAMES.get(kind, kind)}")
            if (found.st_dev, found.st_ino) != (there.st_dev, there.st_ino):
                tell("/linux/namespaces", f"another {kind} namespace than {asked[kind]}")
            if theirs & hosts - {f"{NAMES.get(kind, kind)}:[{found.st_ino}]"}:
                tell("/linux/namespaces", f"the host's {kind} namespace")
        elif theirs & hosts:
            tell("/linux/namespaces", f"the host's {kind} namespace")
    if "user" in asked and not asked["user"]:
        for name, wanted in (("uid", spec.linux.uid_mappings), ("gid", spec.linux.gid_mappings)):
            with open(f"/proc/{every[0]}/{name}_map", encoding="ascii") as file:
                there_is = [line.split() for line in file]
            if there_is != [line.split() for line in map_text(wanted).decode().splitlines()]:
                shown = ", ".join(" ".join(line) for line in there_is)
                tell(f"/linux/{name}Mappings", f"the map {shown or 'of nothing'}")


def _cgroups(state: State, tree: list[int], tell: Tell) -> None:
    for controller, path in state.cgroup_paths.items():
        outside = set(tree) - set(procs({controller: path}))
        if outside:
            tell("/linux/cgroupsPath", f"processes outside of {path}")
    for pid in tree:
        # v1 has one for each thread
        if len({look(f"/proc/{thread}/cgroup") for thread in threads(pid)}) > 1:
            tell("/linux/cgroupsPath", "threads of one process in different cgroups")


def _allowed(spec: Spec) -> set[str]:
    capabilities = spec.process.capabilities if spec.process is not None else None
    if capabilities is None:
        return set()
    kinds = (capabilities.bounding, capabilities.permitted, capabilities.effective)
    return {name for names in (*kinds, capabilities.inheritable, capabilities.ambient) for name in names}


def _process(spec: Spec, process: Process, pid: int, ours: bool, tell: Tell) -> None:
    """`ours`: it is in the container's user namespace, not in one that it made itself, where it may have everything."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    if process.no_new_privileges and status.get("NoNewPrivs") != "1":
        tell("/process/noNewPrivileges", "processes that may get new privileges")
    if spec.linux.seccomp is not None and status.get("Seccomp") != FILTER:
        tell("/linux/seccomp", "processes without a filter")
    if ours:
        allowed = _allowed(spec)
        mask = 0
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            mask |= int(status.get(name, "0"), 16)
        more = [name for name, number in CAPABILITIES.items() if mask >> number & 1 and name not in allowed]
        if more:
            tell("/process/capabilities", ", ".join(more))
    if "CAP_SYS_RESOURCE" in _allowed(spec):
        return
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        # a head, then one line each in the order of their numbers: name, soft, hard, unit, in columns
        hard = [line[HARD].strip() for line in file][1:]
    for limit in process.rlimits:
        there = hard[k.RLIMITS[limit.type]]
        if (k.RLIM_INFINITY if there == "unlimited" else int(there)) > limit.hard:
            tell("/process/rlimits", f"{limit.type} of {there}")
    if process.oom_score_adj is not None:
        with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
            score = int(file.read())
        if score < process.oom_score_adj:
            tell("/process/oomScoreAdj", f"{score}")


def _label(pid: int, file: str) -> str | None:
    """A thread's label; None where there is no such module."""
    try:
        with open(f"/proc/{pid}/attr/{file}", encoding="utf-8") as there:
            # AppArmor shows its mode behind the name
            return there.read().rstrip("\0\n").partition(" (")[0]
    except OSError:
        return None


def _labels(process: Process, pid: int, criu: int, profile: str, tell: Tell) -> None:
    module, _, name = profile.partition(":")
    for module_name, pointer, wanted, file in (
        ("AppArmor", "/process/apparmorProfile", process.apparmor_profile, "apparmor/current"),
        ("SELinux", "/process/selinuxLabel", process.selinux_label, "current"),
    ):
        expected = name if module == module_name.lower() else wanted
        found = _label(pid, file)
        # no such module here, and config.json's "unconfined" is fine without
        if not expected or found is None or expected in (found.partition("//")[0], found, "unconfined"):
            continue
        # Debian's CRIU is built without SELinux
        own = f", which is CRIU's own: built without {module_name} it sets none; use one that was built with it"
        tell(pointer, found + (own if found == _label(criu, file) else ""))


def _mounts(spec: Spec, pid: int, tell: Tell) -> None:
    """Attributes of what is seen at each place of config.json's."""
    there = rows(pid)
    root = f"/proc/{pid}/root"
    wanted: dict[str, tuple[str, int]] = {}
    if spec.root is not None and spec.root.readonly:
        wanted["/"] = "/root/readonly", k.MOUNT_ATTR_RDONLY
    for index, mount in enumerate(spec.mounts):
        options, place = MountOptions(mount.options), clean(mount.destination)
        _, before = wanted.get(place, ("", 0))
        if not options.remount:
            # what it covers is not seen any more
            before = 0
            wanted = {name: value for name, value in wanted.items() if not (name + "/").startswith(place + "/")}
        on, off = options.attr
        wanted[place] = f"/mounts/{index}", before & ~off | on | options.tree_attr[0]
    for index, path in enumerate(spec.linux.readonly_paths):
        wanted[clean(path)] = f"/linux/readonlyPaths/{index}", k.MOUNT_ATTR_RDONLY
    for place, (pointer, bits) in wanted.items():
        handle = find(root, place)
        if handle < 0:
            continue
        try:
            row = there.get(mount_of(handle))
        finally:
            posix.close(handle)
        names = [name for bit, name in CONFINING.items() if bits & bit]
        lost = [name for name in names if row is None or name not in row.options]
        if lost:
            tell(pointer, f"{place} without {', '.join(lost)}")
    for index, path in enumerate(spec.linux.masked_paths):
        handle = find(root, path)
        if handle < 0:
            continue
        try:
            status = posix.fstat(handle)
            row = there.get(mount_of(handle))
        finally:
            posix.close(handle)
        null = S_ISCHR(status.st_mode) and (posix.major(status.st_rdev), posix.minor(status.st_rdev)) == (1, 3)
        if not null and (row is None or row.kind != "tmpfs" or "ro" not in row.options):
            tell(f"/linux/maskedPaths/{index}", f"{path} in the open")
