"""Entering namespaces: joined ones by path, new ones by clone3 or unshare (config-linux.md#namespaces)."""

from __future__ import annotations

from errno import EAFNOSUPPORT, EINVAL, EPERM

from pyoci.kernel import flags as k
from pyoci.plan.ops import INIT, RUNTIME, Op, Ref, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.host import Host
    from pyoci.spec.types import IdMapping, Linux, Spec

CLAUSE = "config-linux.md#namespaces"
# Made by the container's first process once it is where it belongs: a cgroup namespace is rooted in the cgroup that its
# maker is in, and a time namespace wants its offsets before anybody enters it.
LATER = ("cgroup", "time")
# of what is joined beside a user namespace by path; `container.advice` knows by it that no capability is lacking
OWNED = "and without root's rights one that belongs to the user namespace"


class Namespaces:
    """Which namespaces are new and which are joined; `flags` are clone3's."""

    __slots__ = ("flags", "joined", "new")

    def __init__(self, linux: Linux) -> None:
        self.new = {entry.type: index for index, entry in enumerate(linux.namespaces) if not entry.path}
        self.joined = {entry.type: (index, entry.path) for index, entry in enumerate(linux.namespaces) if entry.path}
        self.flags = 0
        for type_ in self.new:
            if type_ not in LATER:
                self.flags |= k.NAMESPACES[type_]

    def has(self, type_: str) -> bool:
        """The container is not in the runtime's namespace of this type."""
        return type_ in self.new or type_ in self.joined

    def pointer(self, type_: str) -> str:
        """JSON pointer of the entry."""
        index = self.new[type_] if type_ in self.new else self.joined[type_][0]
        return f"/linux/namespaces/{index}"


def open_joined(namespaces: Namespaces) -> list[Op]:
    """`@ns_TYPE` for every namespace given by path, while paths still mean the runtime's.

    O_NONBLOCK, because a path by mistake may be that of a FIFO, and nobody waits for its writer."""
    return [
        Op(
            "openat",
            (k.AT_FDCWD, path.encode(), k.O_RDONLY | k.O_NONBLOCK | k.O_CLOEXEC),
            f"/linux/namespaces/{index}/path",
            f"ns_{type_}",
        )
        for type_, (index, path) in namespaces.joined.items()
        if path
    ]


def join(namespaces: Namespaces, any_owner: bool) -> list[Op]:
    """setns into each, naming its type so that a wrong one is refused by the kernel; the mount namespace last.

    any_owner  our rights are those of the initial user namespace, and so for every namespace, whoever owns it
    """
    order = [type_ for type_ in namespaces.joined if type_ not in ("user", "mount")]
    ops: list[Op] = []
    user = "user" in namespaces.joined
    for type_ in order:
        # With the runtime's privileges first: a namespace may belong to it and not to the user namespace.
        ops.append(_setns(namespaces, type_, (EPERM,) if user and not any_owner else ()))
    if user:
        ops.append(_setns(namespaces, "user"))
        if not any_owner:
            ops += [_setns(namespaces, type_) for type_ in order]
    if "mount" in namespaces.joined:
        ops.append(_setns(namespaces, "mount"))
    return ops


def _setns(namespaces: Namespaces, type_: str, tolerate: tuple[int, ...] = ()) -> Op:
    index, path = namespaces.joined[type_]
    hint = f"{path} must be a namespace of type {type_}"
    if "user" in namespaces.joined and type_ != "user":
        user, owner = namespaces.joined["user"]
        hint += f", {OWNED} {owner} (/linux/namespaces/{user})"
    return Op(
        "setns",
        (Ref(f"ns_{type_}"), k.NAMESPACES[type_]),
        f"/linux/namespaces/{index}/path",
        tolerate=tolerate,
        hint=hint,
    )


def clone(namespaces: Namespaces, into_cgroup: bool) -> Op:
    """The container's first process, a child of the runtime itself (CLONE_PARENT), in its v2 cgroup from its first
    instruction."""
    arguments = Struct("clone_args", flags=namespaces.flags | k.CLONE_PARENT)
    if into_cgroup:
        arguments.fields["flags"] = namespaces.flags | k.CLONE_PARENT | k.CLONE_INTO_CGROUP
        arguments.fields["cgroup"] = Ref("cgroup")
    return Op(
        "clone3",
        (arguments, 88),
        CLAUSE,
        hint="new namespaces need CAP_SYS_ADMIN, or a user namespace that this host lets us make",
    )


def id_maps(linux: Linux, host: Host, namespaces: Namespaces) -> list[Op]:
    """The runtime writes the new user namespace's maps (user_namespaces(7)), or looks at those of one by path."""
    if "user" in namespaces.joined:
        said = (("uid", linux.uid_mappings), ("gid", linux.gid_mappings))
        return [
            Op(
                "check_map",
                (f"/proc/@pid/{kind}_map".encode(), map_text(maps)),
                f"/linux/{kind}Mappings",
                performer=RUNTIME,
            )
            for kind, maps in said
            if maps
        ]
    if "user" not in namespaces.new:
        return []
    ops: list[Op] = []
    if denies_setgroups(linux, host):
        # an unprivileged gid map is only taken once setgroups(2) is given up
        ops.append(Op("write", (b"/proc/@pid/setgroups", b"deny"), "/linux/gidMappings", performer=RUNTIME))
    for kind, mappings, own in (("uid", linux.uid_mappings, host.euid), ("gid", linux.gid_mappings, host.gid)):
        origin = f"/linux/{kind}Mappings"
        if host.euid != 0 and needs_helper(mappings, own):
            words: list[bytes] = []
            for entry in mappings:
                words += [str(entry.container_id).encode(), str(entry.host_id).encode(), str(entry.size).encode()]
            ops.append(Op(f"new{kind}map", (Ref("pid"), *words), origin, performer=RUNTIME))
        else:
            ops.append(Op("write", (f"/proc/@pid/{kind}_map".encode(), map_text(mappings)), origin, performer=RUNTIME))
    return ops


def map_text(mappings: tuple[IdMapping, ...]) -> bytes:
    """A map as /proc/PID/uid_map takes it: all lines in one write."""
    return "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in mappings).encode()


def needs_helper(mappings: tuple[IdMapping, ...], own: int) -> bool:
    """More or others than our own id are mapped: newuidmap(1) and newgidmap(1) may, by /etc/subuid and /etc/subgid."""
    return len(mappings) > 1 or any(entry.size != 1 or entry.host_id != own for entry in mappings)


def denies_setgroups(linux: Linux, host: Host) -> bool:
    """Our own group alone is mapped, without privileges: no supplementary groups can be set in the container."""
    return host.euid != 0 and not needs_helper(linux.gid_mappings, host.gid)


def become_root(namespaces: Namespaces) -> list[Op]:
    """In a user namespace, take its root's ids; where it maps no root, the capabilities are there all the same."""
    if not namespaces.has("user"):
        return []
    origin = namespaces.pointer("user")
    return [
        Op("setresgid", (0, 0, 0), origin, performer=INIT, tolerate=(EINVAL,)),
        Op("setresuid", (0, 0, 0), origin, performer=INIT, tolerate=(EINVAL,)),
    ]


def new_time(spec: Spec, namespaces: Namespaces) -> list[Op]:
    """Make the time namespace, with its offsets; whoever makes it is not in it (time_namespaces(7)).

    The runtime writes them, and without privileges only while init is dumpable: after that its files are root's.
    """
    if "time" not in namespaces.new:
        return []
    ops = [Op("unshare", (k.CLONE_NEWTIME,), namespaces.pointer("time"))]
    offsets = spec.linux.time_offsets
    if offsets:
        text = "".join(f"{clock} {secs} {nanosecs}\n" for clock, (secs, nanosecs) in offsets.items())
        ops.append(Op("write", (b"/proc/@pid/timens_offsets", text.encode()), "/linux/timeOffsets", performer=RUNTIME))
    return ops


def later(namespaces: Namespaces) -> list[Op]:
    """The cgroup namespace, made from inside, and the time namespace that has been made, entered."""
    ops: list[Op] = []
    if "cgroup" in namespaces.new:
        ops.append(Op("unshare", (k.CLONE_NEWCGROUP,), namespaces.pointer("cgroup")))
    if "time" in namespaces.new:
        origin = namespaces.pointer("time")
        flags = k.O_RDONLY | k.O_CLOEXEC
        ops.append(Op("openat", (Ref("proc"), b"self/ns/time_for_children", flags), origin, "ns_time"))
        ops.append(Op("setns", (Ref("ns_time"), k.CLONE_NEWTIME), origin))
        ops.append(Op("close", (Ref("ns_time"),), origin))
    return ops


def loopback() -> list[Op]:
    """Bring `lo` up in a new network namespace, as every peer does."""
    name = int.from_bytes(b"lo", "little")
    up = [
        Op(
            "ioctl",
            (Ref("inet"), k.SIOCSIFFLAGS, Struct("ifreq", ifr_name=name, ifr_flags=k.IFF_UP)),
            "config-linux.md#network",
        ),
        Op("close", (Ref("inet"),), "config-linux.md#network"),
    ]
    return [
        Op(
            "socket",
            (k.AF_INET, k.SOCK_DGRAM | k.SOCK_CLOEXEC, 0),
            "config-linux.md#network",
            "inet",
            tolerate=(EAFNOSUPPORT,),
            then=up,
        )
    ]
