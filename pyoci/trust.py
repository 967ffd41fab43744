"""Whether root may import a package that is not ours: nobody else may be able to write to any file of it.

The launcher has judged our own package, and the directories that the others lie in (launcher/trust.c); what is in those
is looked at here, by the same rules, when somebody imports it: structlog for the first line of a log, jsonschema,
pyroute2, and whatever they need.  Only then, because most commands import none of them.  For the same reason the byte
code of our own modules that a snapshot does not hold is judged when it is read.
"""

from __future__ import annotations

import posix
from stat import S_ISDIR, S_ISLNK

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _frozen_importlib import ModuleSpec
    from os import stat_result

INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO in linux/proc_ns.h
NOBODY = 65534  # the owner that is shown for an id without a mapping
STICKY = 0o1000
LINKS = 40  # that may be followed on the way, as the kernel has it (path_resolution(7))


class Untrusted(PyociError, ImportError):
    """Somebody else can write what root was about to import.  An ImportError too: who can do without it may."""


def judge(spec: ModuleSpec) -> None:
    """Untrusted if somebody else than root can write to a file of the module or package that `spec` found."""
    judged: set[str] = set()
    places = spec.submodule_search_locations
    for path in list(places) if places is not None else (spec.origin, spec.cached):
        if path:
            _judge_path(path, judged)


def judge_file(path: str, status: stat_result) -> None:
    """Untrusted if somebody else than root can write to this file, in a directory that has been judged."""
    if posix.geteuid() == 0:
        _judge(path, status, False)


def _judge_path(path: str, judged: set[str]) -> None:
    """What `path` leads to, the directories and links on the way, and everything below it."""
    parts = [part for part in path.split("/") if part]
    here = ""
    links = 0
    while parts:
        part = parts.pop(0)
        if part == ".":
            continue
        if part == "..":
            here = here.rpartition("/")[0]
            continue
        here += "/" + part
        try:
            status = posix.lstat(here)
        except FileNotFoundError:
            return
        if S_ISLNK(status.st_mode):
            links += 1
            if links > LINKS:
                return
            _owned(here, status)
            target = posix.readlink(here)
            here = "" if target.startswith("/") else here.rpartition("/")[0]
            parts[:0] = [name for name in target.split("/") if name]
        elif here not in judged:
            # nobody can rename root's entries in a sticky directory
            _judge(here, status, bool(parts))
            if parts:
                judged.add(here)
    if here not in judged:
        judged.add(here)
        if S_ISDIR(posix.lstat(here).st_mode):
            _judge_below(here, judged)


def _judge_below(directory: str, judged: set[str]) -> None:
    with posix.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_symlink():
            _judge_path(entry.path, judged)
            continue
        _judge(entry.path, entry.stat(follow_symlinks=False), False)
        if entry.is_dir(follow_symlinks=False) and entry.path not in judged:
            judged.add(entry.path)
            _judge_below(entry.path, judged)


def _owned(path: str, status: stat_result) -> None:
    if status.st_uid != 0 and not (status.st_uid == NOBODY and _mapped()):
        raise Untrusted(
            f"{path}: belongs to another user than root, so root will not import it; install it as root, or chown it"
        )


def _judge(path: str, status: stat_result, above: bool) -> None:
    _owned(path, status)
    if above and status.st_mode & STICKY:
        return
    group = status.st_mode & 0o020
    # what the group may do is also the most that an access control list gives to anybody (acl(5))
    if status.st_mode & 0o002 or (group and (status.st_gid != 0 or _has_list(path))):
        raise Untrusted(f"{path}: can be written by others than root, so root will not import it; chmod go-w it")


def _has_list(path: str) -> bool:
    try:
        return bool(posix.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def _mapped() -> bool:
    """Whether we are root of another user namespace, where the true root's files belong to nobody."""
    try:
        return posix.stat("/proc/self/ns/user").st_ino != INITIAL_USER_NAMESPACE
    except OSError:
        return False
