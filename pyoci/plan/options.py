"""Mount options: what each name of the specification's table means to the kernel (config.md#linux-mount-options)."""

from __future__ import annotations

from pyoci.kernel import flags as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# name -> (attributes to set, attributes to clear) of mount_setattr(2); with a leading "r" the whole tree gets them
ATTRIBUTES = {
    "ro": (k.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, k.MOUNT_ATTR_RDONLY),
    "nosuid": (k.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, k.MOUNT_ATTR_NOSUID),
    "nodev": (k.MOUNT_ATTR_NODEV, 0),
    "dev": (0, k.MOUNT_ATTR_NODEV),
    "noexec": (k.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, k.MOUNT_ATTR_NOEXEC),
    "nosymfollow": (k.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, k.MOUNT_ATTR_NOSYMFOLLOW),
    "nodiratime": (k.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, k.MOUNT_ATTR_NODIRATIME),
    "noatime": (k.MOUNT_ATTR_NOATIME, k.MOUNT_ATTR__ATIME),
    "atime": (k.MOUNT_ATTR_RELATIME, k.MOUNT_ATTR__ATIME),
    "relatime": (k.MOUNT_ATTR_RELATIME, k.MOUNT_ATTR__ATIME),
    "norelatime": (k.MOUNT_ATTR_STRICTATIME, k.MOUNT_ATTR__ATIME),
    "strictatime": (k.MOUNT_ATTR_STRICTATIME, k.MOUNT_ATTR__ATIME),
    "nostrictatime": (k.MOUNT_ATTR_RELATIME, k.MOUNT_ATTR__ATIME),
}
PROPAGATION = {
    "shared": k.MS_SHARED,
    "slave": k.MS_SLAVE,
    "private": k.MS_PRIVATE,
    "unbindable": k.MS_UNBINDABLE,
}
# Superblock flags: parameters that fsconfig(2) takes for every file system.
SUPERBLOCK = ("sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand")
# Nothing to tell the kernel: the default, or a matter of mount(2)'s own logging; i_version is kept by the file
# systems themselves since it stopped being a choice (Linux 5.17).
NOTHING = ("defaults", "silent", "loud", "iversion", "noiversion")
# What mount(8) knows and the kernel does not: who may mount, and when.  It is taken as by mount(8) from root; that
# a source is not there is an error nevertheless.
OF_FSTAB: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("auto", "noauto", "nofail", "_netdev", "nouser"), ()),
    **dict.fromkeys(("owner", "group"), ("nosuid", "nodev")),
    **dict.fromkeys(("user", "users"), ("nosuid", "nodev", "noexec")),
}
COMMENTS = ("x-", "X-", "comment=")  # so begins what is for other readers of fstab(5)
BIND = ("bind", "rbind")
LAYERS = ("lowerdir", "upperdir=", "workdir=", "datadir")
COPY_UP = "tmpcopyup"
IDMAP = ("idmap", "ridmap")
KNOWN = (
    *ATTRIBUTES,
    *("r" + name for name in ATTRIBUTES),
    *PROPAGATION,
    *("r" + name for name in PROPAGATION),
    *SUPERBLOCK,
    *NOTHING,
    *OF_FSTAB,
    *BIND,
    COPY_UP,
    *IDMAP,
    "remount",
)


def _pieces(option: str) -> list[str]:
    """What mount(2) makes of an option with commas in its list of them (config.md#linux-mount-options): several, unless
    they are in quotes, as those of SELinux's labels are, or in the paths of overlay's layers."""
    if option.startswith(LAYERS):
        return [option]
    found, quoted = [""], False
    for character in option:
        quoted ^= character == '"'
        if character == "," and not quoted:
            found.append("")
        else:
            found[-1] += character
    return found


class MountOptions:
    """A mount's option list, sorted out.

    bind, recursive   a bind mount; of the whole tree (`rbind`)
    remount           change the mount that is there
    copy_up           begin with a copy of what is there
    idmap             "idmap", "ridmap" (of the whole tree) or ""
    attr, tree_attr   (set, clear) for the mount, for the whole tree
    propagation, tree_propagation   MS_* or 0, in the order of the last one named
    flags, data       superblock flags and file system parameters: names, and (name, value or None)
    """

    __slots__ = (
        "attr",
        "bind",
        "copy_up",
        "data",
        "flags",
        "idmap",
        "propagation",
        "recursive",
        "remount",
        "tree_attr",
        "tree_propagation",
    )

    def __init__(self, options: Sequence[str]) -> None:
        self.bind = self.recursive = self.remount = self.copy_up = False
        attr_set = attr_clear = tree_set = tree_clear = 0
        self.propagation = self.tree_propagation = 0
        self.idmap = ""
        self.flags: list[str] = []
        self.data: list[tuple[str, str | None]] = []
        for option in options:
            if option in ATTRIBUTES or option in OF_FSTAB:
                for name in OF_FSTAB.get(option, (option,)):
                    on, off = ATTRIBUTES[name]
                    attr_set, attr_clear = (attr_set & ~off) | on, (attr_clear & ~on) | off
            elif option in BIND:
                self.bind = True
                self.recursive = self.recursive or option == "rbind"
            elif option in PROPAGATION:
                self.propagation = PROPAGATION[option]
            elif option[:1] == "r" and option[1:] in PROPAGATION:
                self.tree_propagation = PROPAGATION[option[1:]]
            elif option[:1] == "r" and option[1:] in ATTRIBUTES:
                on, off = ATTRIBUTES[option[1:]]
                tree_set, tree_clear = (tree_set & ~off) | on, (tree_clear & ~on) | off
            elif option in SUPERBLOCK:
                self.flags.append(option)
            elif option == "remount":
                self.remount = True
            elif option in IDMAP:
                self.idmap = option
            elif option == COPY_UP:
                self.copy_up = True
            elif option not in NOTHING and not option.startswith(COMMENTS):
                for piece in _pieces(option) if "," in option else (option,):
                    name, equals, value = piece.partition("=")
                    if piece:
                        self.data.append((name, value if equals else None))
        # atime's "clear" must stay even when a mode is set: the kernel wants the old mode cleared to set another
        self.attr = (attr_set, attr_clear)
        self.tree_attr = (tree_set, tree_clear)
