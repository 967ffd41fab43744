"""A plan as text or JSON, and one op as the words of an error: every number by the kernel's name for it.

Never loaded on the way to a started container.
"""

from __future__ import annotations

from pyoci.kernel import bpf, seccomp
from pyoci.kernel import flags as k
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.kernel.errnos import name as errno_name
from pyoci.plan.ops import Address, Asset, Blob, Buffer, Op, Ref, Struct, Vector

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def _names(*names: str) -> dict[str, int]:
    return {name: getattr(k, name) for name in names}


OPEN = _names(
    "O_WRONLY",
    "O_RDWR",
    "O_CREAT",
    "O_EXCL",
    "O_NOCTTY",
    "O_TRUNC",
    "O_NONBLOCK",
    "O_DIRECTORY",
    "O_NOFOLLOW",
    "O_CLOEXEC",
    "O_PATH",
)
RESOLVE = _names(
    "RESOLVE_NO_XDEV", "RESOLVE_NO_MAGICLINKS", "RESOLVE_NO_SYMLINKS", "RESOLVE_BENEATH", "RESOLVE_IN_ROOT"
)
AT = _names("AT_SYMLINK_NOFOLLOW", "AT_EACCESS", "AT_EMPTY_PATH", "AT_RECURSIVE")
TREE = _names("OPEN_TREE_CLONE", "O_CLOEXEC", "AT_EMPTY_PATH", "AT_RECURSIVE")
ATTR = _names(
    "MOUNT_ATTR_RDONLY", "MOUNT_ATTR_NOSUID", "MOUNT_ATTR_NODEV", "MOUNT_ATTR_NOEXEC", "MOUNT_ATTR_NOATIME",
    "MOUNT_ATTR_STRICTATIME", "MOUNT_ATTR_NODIRATIME", "MOUNT_ATTR_IDMAP", "MOUNT_ATTR_NOSYMFOLLOW",
)  # fmt: skip
MOVE = _names("MOVE_MOUNT_F_EMPTY_PATH", "MOVE_MOUNT_T_EMPTY_PATH")
PROPAGATION = _names("MS_UNBINDABLE", "MS_PRIVATE", "MS_SLAVE", "MS_SHARED")
CLONE = _names(
    "CLONE_FILES", "CLONE_PARENT", "CLONE_NEWTIME", "CLONE_NEWNS", "CLONE_NEWCGROUP", "CLONE_NEWUTS", "CLONE_NEWIPC",
    "CLONE_NEWUSER", "CLONE_NEWPID", "CLONE_NEWNET", "CLONE_INTO_CGROUP",
)  # fmt: skip
FSCONFIG = _names("FSCONFIG_SET_FLAG", "FSCONFIG_SET_STRING", "FSCONFIG_CMD_CREATE", "FSCONFIG_CMD_RECONFIGURE")
PRCTL = {
    **_names(
        "PR_SET_NAME", "PR_SET_PDEATHSIG", "PR_SET_DUMPABLE", "PR_SET_KEEPCAPS", "PR_CAPBSET_DROP",
        "PR_SET_NO_NEW_PRIVS", "PR_CAP_AMBIENT",
    ),
}
IOCTL = _names("TIOCSCTTY", "TIOCSWINSZ", "TIOCGPTPEER", "TIOCSPTLCK", "SIOCSIFFLAGS")
BY_NUMBER = {number: name for name, number in CAPABILITIES.items()}
MOUNT = _names(
    "MS_RDONLY", "MS_NOSUID", "MS_NODEV", "MS_NOEXEC", "MS_SYNCHRONOUS", "MS_MANDLOCK", "MS_DIRSYNC", "MS_NOSYMFOLLOW",
    "MS_NOATIME", "MS_NODIRATIME", "MS_STRICTATIME", "MS_LAZYTIME",
)  # fmt: skip
LIMITS = {number: name for name, number in k.RLIMITS.items()}

# how to show an argument: by position in a call, or by field of a structure
ARGUMENTS: dict[str, dict[int, dict[str, int]]] = {
    "openat": {2: OPEN},
    "open_tree": {2: TREE},
    "mount": {3: MOUNT},
    "mount_setattr": {2: AT},
    "move_mount": {4: MOVE},
    "fsopen": {1: _names("FSOPEN_CLOEXEC")},
    "fsmount": {1: _names("FSMOUNT_CLOEXEC"), 2: ATTR},
    "fspick": {2: _names("FSPICK_CLOEXEC", "FSPICK_EMPTY_PATH")},
    "socket": {1: _names("SOCK_DGRAM", "SOCK_CLOEXEC")},
    "statx": {2: AT},
    "fchownat": {4: AT},
    "faccessat2": {3: AT},
    "setns": {1: CLONE},
    "unshare": {0: CLONE},
    "clone": {0: CLONE},
    "umount2": {1: _names("MNT_DETACH")},
    "close_range": {2: _names("CLOSE_RANGE_CLOEXEC")},
    "dup3": {2: OPEN},
    "accept4": {3: _names("SOCK_CLOEXEC")},
    "sendmsg": {2: _names("MSG_NOSIGNAL")},
    "offer": {2: _names("MSG_NOSIGNAL")},
    "seccomp": {
        1: {name: value for name, value in vars(seccomp).items() if name.startswith("SECCOMP_FILTER_FLAG_")},
    },
}
CHOICES: dict[str, dict[int, dict[str, int]]] = {
    "fsconfig": {1: FSCONFIG},
    "prctl": {0: PRCTL},
    "ioctl": {1: IOCTL},
    "socket": {0: _names("AF_INET")},
    "bpf": {0: {"BPF_PROG_LOAD": bpf.BPF_PROG_LOAD, "BPF_PROG_ATTACH": bpf.BPF_PROG_ATTACH}},
    "seccomp": {0: _names("SECCOMP_SET_MODE_FILTER")},
    "keyctl": {0: _names("KEYCTL_JOIN_SESSION_KEYRING")},
}
FIELDS = {
    "open_how": {"flags": OPEN, "resolve": RESOLVE},
    "mount_attr": {"attr_set": ATTR, "attr_clr": {**_names("MOUNT_ATTR__ATIME"), **ATTR}, "propagation": PROPAGATION},
    "clone_args": {"flags": CLONE},
    "ifreq": {"ifr_flags": _names("IFF_UP")},
}
NAMES = (("ifreq", "ifr_name"),)  # fields whose bytes are text
OCTAL = {"mkdirat": (2,), "mknodat": (2,), "umask": (0,), "fchmodat": (2,)}
SPECIAL = {k.AT_FDCWD: "AT_FDCWD", k.UINT_MAX: "-1"}


def bits(value: int, names: dict[str, int]) -> str:
    """`value` as NAME|NAME, what has no name in hexadecimal."""
    found = []
    for name, bit in names.items():
        if bit and value & bit == bit:
            found.append(name)
            value &= ~bit
    if value:
        found.append(hex(value))
    return "|".join(found) or "0"


def quote(text: bytes, limit: int = 200) -> str:
    """A string argument, in double quotes, on one line, cut at `limit` bytes."""
    shown = text[:limit].decode("utf-8", "backslashreplace")
    out = "".join(
        c if c.isprintable() and c not in '"\\' else c.encode("unicode_escape").decode() if c != '"' else '\\"'
        for c in shown
    )
    return f'"{out}"' + ("..." if len(text) > limit else "")


def _value(value: object) -> str:  # noqa: PLR0911 - one answer a kind of argument
    if isinstance(value, bytes):
        return quote(value)
    if isinstance(value, Ref):
        return f"@{value.name}"
    if isinstance(value, Struct):
        shown = [name for name, field in value.fields.items() if field != 0]
        return "{" + ", ".join(f"{name}={_field(value, name)}" for name in shown) + "}"
    if isinstance(value, Vector):
        return "[" + ", ".join(_value(item) for item in value.items) + "]"
    if isinstance(value, Blob):
        return f"<{value.label or f'{len(value.data)} bytes'}>"
    if isinstance(value, Asset):
        return f"<{value.name}: instructions>" if value.count else f"<{value.name}>"
    if isinstance(value, Buffer):
        return f"<{value.size} bytes>"
    if isinstance(value, Address):
        return f"<{value.name}{value.offset:+d}>"
    if isinstance(value, int) and value in SPECIAL:
        return SPECIAL[value]
    return str(value)


def _field(struct: Struct, name: str) -> str:
    value = struct.fields[name]
    names = FIELDS.get(struct.layout, {}).get(name)
    if names is not None and isinstance(value, int):
        return bits(value, names)
    if (struct.layout, name) in NAMES and isinstance(value, int):
        return quote(value.to_bytes(8, "little").rstrip(b"\0"))
    return _value(value)


def argument(op: Op, position: int) -> str:
    """One argument of `op`."""
    value = op.args[position]
    if isinstance(value, int):
        flags = ARGUMENTS.get(op.call, {}).get(position)
        if flags is not None:
            return bits(value, flags)
        for name, number in CHOICES.get(op.call, {}).get(position, {}).items():
            if number == value:
                return name
        if position in OCTAL.get(op.call, ()):
            return f"0{value:o}" if value else "0"
        if op.call == "prctl" and position == 1:
            if op.args[0] == k.PR_CAPBSET_DROP:
                return BY_NUMBER.get(value, str(value))
            if op.args[0] == k.PR_CAP_AMBIENT:
                return "PR_CAP_AMBIENT_RAISE"
        if op.call == "prctl" and position == 2 and op.args[0] == k.PR_CAP_AMBIENT:  # noqa: PLR2004
            return BY_NUMBER.get(value, str(value))
        if op.call == "prlimit64" and position == 1:
            return LIMITS[value]
    return _value(value)


def call(op: Op, environment: bool = True) -> str:
    """`call(arguments)`, with `= @name` where its result is kept; without `environment`, only how large execve's is.

    An error message must not show it: environments hold passwords, and logs have more readers than config.json.
    """
    count = len(op.args)
    if op.call == "prctl":
        while count > 2 and op.args[count - 1] == 0:  # noqa: PLR2004 - prctl's unused arguments say nothing
            count -= 1
    words = [argument(op, position) for position in range(count)]
    if op.call == "execve" and not environment:
        vector = op.args[2]
        assert isinstance(vector, Vector)
        words[2] = f"<{len(vector.items)} variables>"
    shown = ", ".join(words)
    return f"{op.call}({shown})" + (f" = @{op.result}" if op.result else "")


def rows(ops: Sequence[Op], depth: int = 0) -> Iterator[tuple[Op, int, str]]:
    """(op, depth, mark): mark says when a nested op is performed ("else" after a tolerated failure, "then" after
    success), or by whom (the "child" of a spawn)."""
    for op in ops:
        yield op, depth, ""
        for mark, block in (("child" if op.call == "spawn" else "else", op.otherwise), ("then", op.then)):
            for inner, deeper, _ in rows(block, depth + 1):
                yield inner, deeper, mark


def text(ops: Sequence[Op], widths: tuple[int, int] = (44, 100)) -> str:
    """Two columns, the runtime's and init's, and the origin; guards are indented under the call that they hang on."""
    left, right = widths
    lines = [f"{'runtime':<{left}} {'init':<{right}} origin"]
    for op, depth, mark in rows(ops):
        shown = "  " * depth + (f"{mark}: " if mark else "") + call(op)
        if op.tolerate:
            shown += " or " + "|".join(errno_name(number) for number in op.tolerate)
        if op.performer == "runtime":
            lines.append(f"{shown:<{left + right + 1}} {op.origin}")
        else:
            lines.append(f"{'':<{left}} {shown:<{right}} {op.origin}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def to_json(ops: Sequence[Op]) -> list[dict[str, object]]:
    """A list of objects: performer, call, args (as shown in the text), result, tolerate, origin, otherwise, then."""
    return [
        {
            "performer": op.performer,
            "call": op.call,
            "args": [argument(op, position) for position in range(len(op.args))],
            "result": op.result,
            "tolerate": [errno_name(number) for number in op.tolerate],
            "origin": op.origin,
            "otherwise": to_json(op.otherwise),
            "then": to_json(op.then),
        }
        for op in ops
    ]
