"""What security modules are told of a process: AppArmor's profile, SELinux's label (config.md#linux-process).

Both are asked for "at the next execve", and both survive fork until then.  So they are written before anything of the
container is entered, to the runtime's own /proc: nothing of an image can be in the place of that file
(CVE-2019-16884, CVE-2025-52881).
"""

from __future__ import annotations

from errno import EOPNOTSUPP

from pyoci.errors import ConfigError, Problem
from pyoci.kernel import flags as k
from pyoci.plan.ops import Op, Ref
from pyoci.plan.paths import EXACT, close, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.host import Host
    from pyoci.spec.types import Process

CLAUSE = "config.md#linux-process"
UNCONFINED = "unconfined"


def labels(process: Process, host: Host) -> list[Op]:
    """Ops of stage A; ConfigError for what this machine has no security module for."""
    ops: list[Op] = []
    problems: list[Problem] = []
    profile, label = process.apparmor_profile, process.selinux_label
    if profile:
        pointer = "/process/apparmorProfile"
        if "apparmor" in host.security_modules:
            hint = f"is the profile {profile!r} loaded? aa-status shows which are"
            ops += _write(b"/proc/self/attr/apparmor/exec", f"exec {profile}", pointer, hint)
        elif profile != UNCONFINED:
            problems.append(Problem(pointer, f"{profile!r}: AppArmor is not enabled on this host", CLAUSE))
    if label:
        pointer = "/process/selinuxLabel"
        if "selinux" in host.security_modules:
            hint = "the policy must know the label, and allow us to use it"
            ops += _write(b"/proc/self/attr/exec", label, pointer, hint)
        else:
            problems.append(Problem(pointer, f"{label!r}: SELinux is not enabled on this host", CLAUSE))
    if problems:
        raise ConfigError(problems)
    return ops


def label_of_mqueue(tree: str, label: str) -> list[Op]:
    """The label of a POSIX message queue file system, `@tree`.

    There is one for each IPC namespace and it is older than any mount of it, so it takes no `context`: its directory is
    labelled instead, and new queues inherit that.
    """
    pointer = "/linux/mountLabel"
    data = label.encode()
    return [
        openat2(tree, b".", k.O_RDONLY | k.O_DIRECTORY | k.O_CLOEXEC, EXACT, pointer, "directory"),
        Op(
            "fsetxattr",
            (Ref("directory"), b"security.selinux", data, len(data), 0),
            pointer,
            tolerate=(EOPNOTSUPP,),  # the policy labels no such file system
        ),
        close("directory", pointer),
    ]


def _write(path: bytes, text: str, pointer: str, hint: str) -> list[Op]:
    data = text.encode()
    return [
        Op("openat", (k.AT_FDCWD, path, k.O_WRONLY | k.O_CLOEXEC), pointer, "attribute"),
        Op("write", (Ref("attribute"), data, len(data)), pointer, hint=hint),
        close("attribute", pointer),
    ]
