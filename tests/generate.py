"""Hypothesis strategies for what a plan is made from: config.json documents, hosts, options.

Documents are what spec.load accepts, so a test loads them as the runtime does and can look pointers up in them.
Small worlds of names make the interesting things collide: a mount below another, a device that is a default one.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pyoci.host import Host
from pyoci.kernel import scheduling
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.kernel.flags import NAMESPACES, RLIMITS
from pyoci.plan.container import PlanOptions
from pyoci.spec.tuning_rules import RELATIVE, STATIC, WITH_PRIORITY, WITHOUT_NODES

Json = dict[str, Any]

BUNDLE = "/bundle"
EVERYTHING = (1 << 41) - 1
SYS_ADMIN = 1 << CAPABILITIES["CAP_SYS_ADMIN"]
V1 = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "pids", "blkio", "name=systemd")

places = st.sampled_from(
    ("/", "/a", "/a/b", "/a/b/c", "/etc/hosts", "/proc", "/sys", "/dev", "/dev/shm", "/a/../b", "//a")
)
sources = st.sampled_from(("/src", "/src/file", "relative", "/dev/null", "/a b/ü"))
ids = st.sampled_from((0, 1, 1000, 65534, 2**32 - 2))


def optional(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """Objects that have any of `members`."""
    return st.fixed_dictionaries({}, optional=members)


names = st.lists(st.sampled_from((*sorted(CAPABILITIES), "CAP_FROM_THE_FUTURE")), unique=True, max_size=6)
capabilities = optional(bounding=names, effective=names, permitted=names, inheritable=names, ambient=names)

users = st.fixed_dictionaries(
    {"uid": ids, "gid": ids},
    optional={"umask": st.integers(0, 0o777), "additionalGids": st.lists(ids, max_size=4)},
)


@st.composite
def rlimits(draw: st.DrawFn) -> list[Json]:
    kinds = draw(st.lists(st.sampled_from(sorted(RLIMITS)), unique=True, max_size=3))
    limits = [sorted(draw(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))) for _ in kinds]
    return [{"type": kind, "soft": soft, "hard": hard} for kind, (soft, hard) in zip(kinds, limits, strict=True)]


lists = st.sampled_from(("0", "0-3", "1,3-4", "7"))


@st.composite
def schedulers(draw: st.DrawFn) -> Json:
    policy = draw(st.sampled_from(sorted(scheduling.POLICIES)))
    asked: Json = {"policy": policy}
    if policy in WITH_PRIORITY:
        asked["priority"] = draw(st.integers(1, 99))
    elif policy == "SCHED_DEADLINE":
        runtime, deadline, period = sorted(draw(st.tuples(*[st.integers(1024, 2**63 - 1)] * 3)))
        asked |= {"runtime": runtime, "deadline": deadline, "period": draw(st.sampled_from((0, period)))}
    else:
        asked["nice"] = draw(st.integers(-20, 19))
    if draw(st.booleans()):
        asked["flags"] = draw(st.lists(st.sampled_from(sorted(scheduling.SCHED_FLAGS)), unique=True))
    return asked


processes = st.fixed_dictionaries(
    {
        "cwd": st.sampled_from(("/", "/home/user", "/a/../b", "//")),
        "args": st.sampled_from((["sh"], ["/bin/sh", "-c", "true"], ["./x", ""], ["ü", "\n"])),
    },
    optional={
        "user": users,
        "env": st.lists(st.sampled_from(("PATH=/a:/b::/c", "PATH=", "HOME=/", "A=\n", "X=ü")), max_size=3),
        "terminal": st.booleans(),
        "consoleSize": st.fixed_dictionaries({"height": st.integers(0, 99), "width": st.integers(0, 99)}),
        "capabilities": capabilities,
        "rlimits": rlimits(),
        "noNewPrivileges": st.booleans(),
        "oomScoreAdj": st.integers(-1000, 1000),
        "scheduler": schedulers(),
        "ioPriority": st.fixed_dictionaries(
            {"class": st.sampled_from(sorted(scheduling.IOPRIO_CLASSES)), "priority": st.integers(0, 7)}
        ),
        "execCPUAffinity": optional(initial=lists, final=lists),
        "apparmorProfile": st.sampled_from(("", "unconfined", "a profile")),
        "selinuxLabel": st.sampled_from(("", "system_u:system_r:container_t:s0:c1,c2")),
    },
)



@st.composite
def memory_policies(draw: st.DrawFn) -> Json:
    mode = draw(st.sampled_from(sorted(scheduling.MEMORY_MODES)))
    asked: Json = {"mode": mode}
    if mode not in WITHOUT_NODES and (mode != "MPOL_PREFERRED" or draw(st.booleans())):
        asked["nodes"] = draw(lists)
    flags = draw(st.lists(st.sampled_from(sorted(scheduling.MEMORY_FLAGS)), unique=True, max_size=2))
    if "nodes" not in asked:
        flags = []
    elif {STATIC, RELATIVE} <= set(flags):
        flags.remove(STATIC)
    return asked | ({"flags": flags} if draw(st.booleans()) else {})


ATTRIBUTES = (
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "noexec",
    "relatime",
    "noatime",
    "strictatime",
    "nodiratime",
    "rro",
)
PROPAGATIONS = ("rprivate", "private", "rslave", "slave", "shared", "rshared", "unbindable", "runbindable")


def options(*extra: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from((*ATTRIBUTES, *PROPAGATIONS[:4], *extra)), max_size=4)


def mapping(size: int) -> list[Json]:
    return [{"containerID": 0, "hostID": 1000, "size": size}]


@st.composite
def mounts(draw: st.DrawFn, user: bool = False) -> Json:
    """`user` where the container has a user namespace, whose maps a bind mount may have."""
    types = ("proc", "tmpfs", "devpts", "sysfs", "mqueue", "cgroup", "overlay")
    kind = draw(st.sampled_from((*types, "bind", "remount", "change")))
    mount: Json = {"destination": draw(places)}
    if kind == "bind":
        mount["source"] = draw(sources)
        mount["options"] = [draw(st.sampled_from(("bind", "rbind"))), *draw(options())]
        if draw(st.booleans()):
            mount["type"] = draw(st.sampled_from(("bind", "none")))
        own = draw(st.booleans())
        if own:
            mount |= {"uidMappings": mapping(draw(st.integers(1, 2))), "gidMappings": mapping(1)}
        if own or user:
            mount["options"] += draw(st.lists(st.sampled_from(("idmap", "ridmap")), max_size=1))
    elif kind == "remount":
        mount["options"] = ["remount", *draw(options("bind", "sync"))]
        mount["source"] = "none"
    elif kind == "change":
        mount["options"] = [draw(st.sampled_from(PROPAGATIONS)), *draw(options())]
    else:
        mount["type"] = kind
        if draw(st.booleans()):
            mount["source"] = draw(st.sampled_from((kind, "shm")))
        if draw(st.booleans()):
            extra = {"tmpfs": ("size=1k", "mode=755", "sync"), "devpts": ("newinstance", "ptmxmode=0666")}
            # more than fsconfig(2) takes
            extra["overlay"] = ("lowerdir=/l:/m", f"lowerdir=/l:/{'m' * 255}", "lazytime")
            mount["options"] = draw(options(*extra.get(kind, ())))
    return mount


hook = st.fixed_dictionaries(
    {"path": st.sampled_from(("/bin/true", "/a b"))},
    optional={
        "args": st.lists(st.sampled_from(("a", "")), max_size=2),
        "env": st.just(["A=b"]),
        "timeout": st.just(1),
    },
)
some_hooks = st.lists(hook, max_size=2)
hooks = optional(
    prestart=some_hooks,
    createRuntime=some_hooks,
    createContainer=some_hooks,
    startContainer=some_hooks,
    poststart=some_hooks,
    poststop=some_hooks,
)

devices = st.fixed_dictionaries(
    {"type": st.sampled_from("cbup"), "major": st.integers(0, 4095), "minor": st.integers(0, 2**20 - 1)},
    optional={"fileMode": st.integers(0, 0o7777), "uid": ids, "gid": ids},
)


@st.composite
def device_lists(draw: st.DrawFn) -> list[Json]:
    paths = draw(st.lists(st.sampled_from(("/dev/null", "/dev/fuse", "/x", "/a/b/dev")), unique=True, max_size=2))
    return [{"path": path, **draw(devices)} for path in paths]


rules = st.fixed_dictionaries(
    {"allow": st.booleans()},
    optional={
        "type": st.sampled_from("bc"),
        "major": st.integers(0, 300),
        "minor": st.integers(0, 300),
        "access": st.sampled_from(("r", "rw", "rwm", "m")),
    },
)
resources = optional(
    devices=st.lists(rules, max_size=3),
    pids=optional(limit=st.integers(-1, 1000)),
    memory=optional(limit=st.integers(1 << 20, 1 << 30)),
    cpu=optional(shares=st.integers(2, 1024)),
)
seccomp = st.fixed_dictionaries(
    {"defaultAction": st.sampled_from(("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"))},
    optional={
        "flags": st.lists(
            st.sampled_from(("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")), unique=True
        ),
        "syscalls": st.sampled_from(("SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY")).map(
            lambda action: [{"names": ["getcwd"], "action": action}]
        ),
    },
).map(lambda filter_: filter_ | ({"listenerPath": "/run/agent"} if "NOTIFY" in repr(filter_) else {}))


def _within(process: Json, size: int) -> None:
    """Cut the process's ids to those that are mapped."""
    user = process.get("user", {})
    user.update({key: min(user[key], size - 1) for key in ("uid", "gid") if key in user})
    if "additionalGids" in user:
        user["additionalGids"] = [min(gid, size - 1) for gid in user["additionalGids"]]


@st.composite
def documents(draw: st.DrawFn) -> Json:
    """A config.json that loads."""
    document: Json = {"ociVersion": "1.2.0", "root": {"path": draw(st.sampled_from(("rootfs", "/abs/root")))}}
    if draw(st.booleans()):
        document["root"]["readonly"] = draw(st.booleans())
    linux: Json = {}
    spaces = draw(st.one_of(st.just(sorted(NAMESPACES)), st.lists(st.sampled_from(sorted(NAMESPACES)), unique=True)))
    joined = draw(st.lists(st.sampled_from(sorted(NAMESPACES)), unique=True, max_size=2))
    linux["namespaces"] = [
        {"type": kind, "path": f"/run/ns/{kind}"} if kind in joined else {"type": kind} for kind in spaces
    ]
    new = [kind for kind in spaces if kind not in joined]
    if "user" in new:
        size = draw(st.sampled_from((1, 65536)))
        mapping = {"containerID": 0, "hostID": draw(st.sampled_from((0, 100000))), "size": size}
        linux["uidMappings"] = linux["gidMappings"] = [mapping]
    elif "user" in spaces and draw(st.booleans()):
        linux["gidMappings"] = [{"containerID": 0, "hostID": 5, "size": 2**32 - 6}]
    if draw(st.booleans()):
        document["process"] = process = draw(processes)
        if "user" in new:
            _within(process, size)
    document["mounts"] = draw(st.lists(mounts("user" in spaces), max_size=5))
    if "uts" in spaces and draw(st.booleans()):
        document["hostname"] = draw(st.sampled_from(("", "name")))
        document["domainname"] = "domain"
    if draw(st.booleans()):
        document["hooks"] = draw(hooks)
    sysctl = {"network": "net.ipv4.ip_forward", "ipc": "kernel.shmmax"}
    linux["sysctl"] = {key: "1" for kind, key in sysctl.items() if kind in spaces and draw(st.booleans())}
    if "time" in new and draw(st.booleans()):
        linux["timeOffsets"] = {"monotonic": {"secs": 5, "nanosecs": 6}}
    if draw(st.booleans()):
        linux["intelRdt"] = draw(
            st.sampled_from(
                ({}, {"closID": "shared"}, {"closID": "/", "enableMonitoring": True}, {"schemata": ["L3:0=f"]},
                 {"closID": "shared", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20", "enableMonitoring": True})
            )
        )  # fmt: skip
    if "network" in spaces and draw(st.booleans()):
        linux["netDevices"] = draw(st.sampled_from(({"eth0": {}}, {"eth0": {"name": "net%d"}, "eth1": {"name": "a"}})))
    linux |= draw(
        optional(
            devices=device_lists(),
            resources=resources,
            seccomp=seccomp,
            rootfsPropagation=st.sampled_from(PROPAGATIONS),
            maskedPaths=st.lists(places.filter(lambda place: place != "/"), max_size=2),
            readonlyPaths=st.lists(places.filter(lambda place: place != "/"), max_size=2),
            cgroupsPath=st.sampled_from(("/group", "relative/group")),
            mountLabel=st.just("system_u:object_r:container_file_t:s0"),
            personality=st.fixed_dictionaries({"domain": st.sampled_from(sorted(scheduling.PERSONALITIES))}),
            memoryPolicy=memory_policies(),
        )
    )
    document["linux"] = linux
    return document


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    """A machine, and somebody on it: mostly root, with everything or with less."""
    host = Host()
    host.kernel = draw(st.sampled_from(((5, 14), (6, 1), (6, 12))))
    host.arch = draw(st.sampled_from(("x86_64", "aarch64")))
    if draw(st.integers(0, 3)) == 0:
        host.uid = host.gid = host.euid = 1000
    host.last_cap = draw(st.sampled_from((39, 40)))
    everything = (2 << host.last_cap) - 1
    host.bounding = draw(st.sampled_from((everything, everything & ~1)))
    less = host.bounding & draw(st.sampled_from((everything, SYS_ADMIN, everything & ~SYS_ADMIN)))
    host.capabilities = 0 if host.euid else less
    host.initial_user_namespace = draw(st.booleans())
    host.denies_setgroups = not host.initial_user_namespace and draw(st.booleans())
    host.cgroup_mode = draw(st.sampled_from(("v1", "v2", "hybrid", "none")))
    if host.cgroup_mode in ("v1", "hybrid"):
        host.cgroup_mounts = {name: f"/sys/fs/cgroup/{name.removeprefix('name=')}" for name in V1}
        host.cgroup_self = dict.fromkeys(V1, "/own")
    if host.cgroup_mode in ("v2", "hybrid"):
        host.cgroup_mounts[""] = "/sys/fs/cgroup" + ("/unified" if host.cgroup_mode == "hybrid" else "")
        host.cgroup_self[""] = draw(st.sampled_from(("/", "/own/process")))
    if host.cgroup_mode == "v2":
        host.cgroup_controllers = ("cpuset", "cpu", "io", "memory", "pids")
    # what is refused without them is refused by any plan
    host.security_modules = ("apparmor", "selinux")
    host.resctrl = "/sys/fs/resctrl"
    host.kernel_views = draw(st.sampled_from(((), ("/sys", "/proc", "/srv/system/proc"))))
    host.made_at = draw(st.sampled_from(({}, {"/a": "/made/here"})))
    host.tmpfs_modes = draw(st.sampled_from(({}, {"/a": "710"})))
    host.home = draw(st.sampled_from(("", "/", "/home/me")))
    host.stdio_nulls = draw(st.sampled_from(((), (0,), (1, 2))))
    host.stdio_pipes = draw(st.sampled_from(((), (1,), (0, 1, 2))))
    kinds = st.sampled_from(("dir", "file", "none"))
    host.source_types = {path: draw(kinds) for path in ("/src", "/src/file", f"{BUNDLE}/relative", "/dev/null")}
    host.direct_sources = tuple(path for path in host.source_types if draw(st.booleans()))
    return host


plan_options = st.builds(
    PlanOptions,
    st.just("id"),
    st.just(BUNDLE),
    listen=st.booleans(),
    console=st.sampled_from((None, "console")),
    preserve_fds=st.sampled_from((1, 3)),
    listen_fds=st.sampled_from((0, 1)),
    listen_names=st.sampled_from(("", "a:b")),
    notify=st.sampled_from(("", "/states/id/notify")),
    no_pivot=st.booleans(),
    no_new_keyring=st.booleans(),
)
