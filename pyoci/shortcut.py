"""What create leaves for the launcher, so that the usual `start` and `delete` need no interpreter.

The launcher (launcher/shortcut.c, which describes the file) acts on it only when all is as usual; everything else comes
here as if there were no such file.  Without one, nothing is lost but time.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.state import State, Store

FILE = "shortcut"
# What a state may say without giving start or delete anything more to do than the launcher does.  What is not here must
# be empty: a new thing to take down is left to Python until somebody decides otherwise.
NOTHING_TO_DO = frozenset(
    (
        "annotations", "bundle", "cgroup_created", "cgroup_paths", "created", "id", "listen", "namespaces",
        "oci_version", "owner", "phase", "pid", "pid_start", "rootfs", "terminal", "unit", "user_namespace", "version",
    )
)  # fmt: skip


def content(state: State) -> bytes:
    """The file for a created container, b"" when start or delete will have more to do."""
    if not state.listen or state.pid <= 0:
        return b""
    for name in state.__slots__:
        if name not in NOTHING_TO_DO and getattr(state, name):
            return b""
    paths = state.cgroup_paths
    # a unit goes by itself, with its cgroup; one that does not is Python's to stop
    systemds = []
    if state.unit:
        from pyoci.cgroup.systemd import goes_by_itself

        if not goes_by_itself(state):
            return b""
        systemds = [paths[name] for name in ("", "name=systemd") if name in paths]
    frozen = ""
    if "freezer" in paths:
        frozen = paths["freezer"] + "/freezer.state"
    elif "" in paths:
        frozen = paths[""] + "/cgroup.freeze"
    own = set(paths.values())
    created = sorted(state.cgroup_created, key=len, reverse=True)
    fields = ["pyoci shortcut 1", str(state.pid), str(state.pid_start), frozen]
    fields += ["-" + path for path in systemds]
    fields += [("=" if path in own else "+") + path for path in created]
    return b"".join([field.encode("utf-8", "surrogateescape") + b"\0" for field in (*fields, "\nend")])


def leave(store: Store, state: State) -> None:
    """Write the file, if there is one to write.  It is not replaced but made: one that is not whole is not used."""
    data = content(state)
    if not data:
        return
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC
    try:
        fd = posix.open(FILE, flags, 0o600, dir_fd=store.fd)
    except OSError:
        return
    try:
        posix.write(fd, data)
    except OSError:
        pass  # the disk is full: the long way will do
    finally:
        posix.close(fd)
