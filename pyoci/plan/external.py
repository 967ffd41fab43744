"""Mounts from the host that `restore` gives to CRIU: each made beforehand with all that config.json asks of it.

CRIU binds what it is shown and then sets the flags that the images have; the second of two mounts of one file system it
leaves as it found it.  So it finds them finished: read-only is what config.json calls read-only.  They are in a file
system of their own, which is /tmp in the mount namespace that ends with CRIU: root of a user namespace, who does
most of the work there, would not get through the directories above a state or a source.
"""

from __future__ import annotations

from stat import S_IFREG

from pyoci.kernel import flags as k
from pyoci.plan.mounts import move_op, setattr_op, source_path
from pyoci.plan.ops import Op, Ref
from pyoci.plan.options import MountOptions
from pyoci.plan.paths import EXACT, HANDLE, close, openat2, parts, to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.host import Host
    from pyoci.spec.types import Spec

NULL = "/dev/null"
RESTORE = "restore"
# where CRIU finds everything, and the container's root below it
SHOWN, ROOT = "/tmp", "root"
# and a directory where it finds cgroup2 (pyoci.criu.yard)
YARD = "cgroups"
CLONE = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC
# of the host's devices: nobody in the container may give them another mode or owner
DEVICE = (k.MOUNT_ATTR_RDONLY, 0, k.MS_SLAVE)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class External:
    """One mount: `name` in the images, `source` on the host, `label` below the directory that CRIU is shown; `kind` is
    dir or file.  `attributes` are what is set, cleared, and the propagation (MS_*); None leaves it as it is.

    What is mounted for CRIU is `top`, and it is shown `below` that: CRIU takes the propagation of all mounts of one
    peer group from one of them, for which the kernel wants the root of a mount that has all of them in it.
    """

    __slots__ = ("attributes", "below", "kind", "label", "name", "origin", "recursive", "source", "top")

    def __init__(
        self, name: str, source: str, label: str, kind: str, origin: str, attributes: tuple[int, int, int] | None
    ) -> None:
        self.name = name
        self.source = self.top = source
        self.label = label
        self.kind = kind
        self.origin = origin
        self.attributes = attributes
        self.below = ""
        self.recursive: tuple[int, int, int] | None = None


def attributes_of(options: MountOptions) -> tuple[int, int, int]:
    """Those of the mount itself."""
    on, off = options.attr
    tree_on, tree_off = options.tree_attr
    return tree_on & ~off | on, tree_off | off, options.propagation or options.tree_propagation or k.MS_SLAVE


def clean(path: str) -> str:
    """A destination of config.json, as one name for one place."""
    return "/" + "/".join(parts(path))


def device_paths(spec: Spec) -> list[str]:
    """Where devices are: bind mounts in a user namespace."""
    return [*(f"/dev/{name}" for name in DEVICES), *(device.path for device in spec.linux.devices)]


def external(spec: Spec, host: Host, bundle: str, cgroup_paths: dict[str, str]) -> list[External]:
    """All that config.json takes from the host, by what it is called in the images; of two at one place the later one,
    which is the one that is seen."""
    found: dict[str, External] = {}

    def add(name: str, source: str, label: str, kind: str, origin: str, options: MountOptions | None = None) -> None:
        # last, as it is mounted
        found.pop(name, None)
        found[name] = External(name, source, label, kind, origin, attributes_of(options) if options else None)
        if options is not None and options.recursive:
            found[name].recursive = (*options.tree_attr, options.tree_propagation or k.MS_SLAVE)

    for path in spec.linux.masked_paths:
        add(clean(path), NULL, "null", "file", "/linux/maskedPaths")
        found[clean(path)].attributes = DEVICE
    if any(entry.type == "user" for entry in spec.linux.namespaces):
        for number, path in enumerate(device_paths(spec)):
            add(clean(path), clean(path), f"device{number}", "file", "/linux/devices")
            found[clean(path)].attributes = DEVICE
    directories: dict[str, list[str]] = {}
    for controller, path in cgroup_paths.items():
        directories.setdefault(path, []).append(controller.removeprefix("name=") or "unified")
    for index, mount in enumerate(spec.mounts):
        origin, options = f"/mounts/{index}", MountOptions(mount.options)
        if options.remount:
            continue
        if options.bind or mount.type == "bind":
            source = source_path(mount, bundle)
            kind = "dir" if host.source_types.get(source, "dir") == "dir" else "file"
            add(clean(mount.destination), source, f"mount{index}", kind, origin, options)
        elif mount.type == "cgroup" and host.cgroup_mode != "v2":
            for number, (path, names) in enumerate(directories.items()):
                place = clean(f"{mount.destination}/{','.join(names)}")
                add(place, path, f"cgroup{index}_{number}", "dir", origin, options)
        elif mount.type in ("cgroup", "cgroup2"):
            path = cgroup_paths.get("", "/sys/fs/cgroup")
            add(clean(mount.destination), path, f"cgroup{index}", "dir", origin, options)
    return list(found.values())


def begin(folder: str) -> list[Op]:
    """`@outside`, a file system mounted at `folder`, for the container's root and all that is `external`."""
    return [
        Op("fsopen", (b"tmpfs", k.FSOPEN_CLOEXEC), RESTORE, "fs"),
        Op("fsconfig", (Ref("fs"), k.FSCONFIG_CMD_CREATE, 0, 0, 0), RESTORE),
        Op("fsmount", (Ref("fs"), k.FSMOUNT_CLOEXEC, 0), RESTORE, "outside"),
        close("fs", RESTORE),
        Op("move_mount", (Ref("outside"), b"", k.AT_FDCWD, to_bytes(folder), k.MOVE_MOUNT_F_EMPTY_PATH), RESTORE),
        Op("mkdirat", (Ref("outside"), ROOT.encode(), 0o755), RESTORE),
    ]


def yard(mount: str) -> list[Op]:
    """cgroup2, mounted at `mount`, in CRIU's directory of hierarchies.  Not a link: there are other roots to come."""
    unified = External("", mount, f"{YARD}/unified", "dir", RESTORE, None)
    return [Op("mkdirat", (Ref("outside"), YARD.encode(), 0o700), RESTORE), *external_ops([unified])]


def finish() -> list[Op]:
    """It becomes /tmp once nothing of what was there is needed."""
    flags = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_SYMLINKS
    return [
        Op("move_mount", (Ref("outside"), b"", k.AT_FDCWD, SHOWN.encode(), flags), RESTORE),
        close("outside", RESTORE),
    ]


def external_ops(mounts: list[External]) -> list[Op]:
    """Ops that leave each mount at its label in `@outside`."""
    ops: list[Op] = []
    made: set[str] = set()
    for mount in mounts:
        if mount.label in made:
            continue
        made.add(mount.label)
        label, origin = mount.label.encode(), mount.origin
        if mount.kind == "dir":
            ops.append(Op("mkdirat", (Ref("outside"), label, 0o700), origin))
        else:
            ops.append(Op("mknodat", (Ref("outside"), label, S_IFREG | 0o600, 0), origin))
        hint = f"the source {mount.source} must be there on the host"
        ops.append(Op("open_tree", (k.AT_FDCWD, to_bytes(mount.top), CLONE), origin, "tree", hint=hint))
        if mount.attributes is not None:
            # how changes of the host's reach it is config.json's as well
            ops.append(setattr_op("tree", k.AT_EMPTY_PATH, origin, *mount.attributes))
        ops.append(openat2("outside", label, HANDLE, EXACT, origin, "target"))
        ops += [move_op("tree", "target", origin), close("target", origin), close("tree", origin)]
    return ops
