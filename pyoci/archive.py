"""Byte code of all the modules that a command needs, in one file and ready to run.

Importing fifty modules one by one costs as much as starting the interpreter: for each one a search, a lock, a
specification, three files looked at.  So what a command loads is kept together, in the order in which the modules'
bodies run: `__pycache__/COMMAND.TAG.FINGERPRINT.archive` of the package, written like .pyc files are, after the first
use by somebody who may write there (`archive_write`).  Without one, or without the launcher, modules are found as
usual.

TAG is the interpreter's (`cpython-311`).  FINGERPRINT is the launcher's, of the name, size, times and inode of every
file of the package: it looks at all of them anyway before root may run them.  An archive of other files has another
name.

Layout: the interpreter's magic number, the file's size (8 bytes), 4 zero bytes, then chunks, each its length (4 bytes,
little-endian) and a marshalled tuple of (module, is it a package, code).  A chunk is small enough for memory that was
used before: what is read in one piece is new pages, and each one is a page fault.

The archive of what every command needs, `pyoci`, begins with the package and this module: `pyoci.__main__.START` reads
it before anything of pyoci is there.  No `from __future__` here, for the reason given in `pyoci.__main__`.
"""

import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType, ModuleType

    Entry = tuple[str, bool, CodeType]

# What had no archive: written when the command is done.
missing: "list[str]" = []
# Whose archives have been adopted.
loaded: "set[str]" = set()
# Commands that engines call, often.
HOT = ("create", "start", "run", "exec", "state", "kill", "delete")
# The name of the archive of what every command needs.
ALL = "pyoci"
HEAD = 16
ROOM = 16 << 20  # bytes that the disk must have left: twice what archives and a snapshot take
CHUNK = 0xC000  # bytes, more or less


def path(command: str) -> str:
    """Where the archive of a command is; "" when there is no launcher that could tell if it is current."""
    fingerprint = sys._xoptions.get("pyoci")
    if not fingerprint:
        return ""
    directory = __file__.rpartition("/")[0]
    return f"{directory}/__pycache__/{command}.{sys.implementation.cache_tag}.{fingerprint}.archive"


def read(file: str) -> "Iterator[tuple[Entry, ...]]":
    """The chunks of an archive; none if there is no whole one, or it is another interpreter's."""
    try:
        fd = posix.open(file, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return
    try:
        head = posix.read(fd, HEAD + 4)
        # a machine that loses power can leave the name of a file without its content
        if head[:4] != MAGIC_NUMBER or int.from_bytes(head[4:12], "little") != posix.fstat(fd).st_size:
            return
        while len(head) >= 4:
            size = int.from_bytes(head[-4:], "little")
            data = posix.read(fd, size + 4)
            entries: tuple[Entry, ...] = loads(data)
            yield entries
            head = data[size:]
    finally:
        posix.close(fd)


def adopt(entries: "Iterable[Entry]") -> None:
    """Import modules in the order given, as `import` would; those that are there already are left alone."""
    modules = sys.modules
    kind: type[ModuleType] = type(sys)
    for name, package, code in entries:
        if name in modules:
            continue
        module = modules[name] = kind(name)
        parent, _, leaf = name.rpartition(".")
        names = module.__dict__
        file = code.co_filename
        # a true specification, because every later `import` of the module asks it whether the body has run
        spec = names["__spec__"] = ModuleSpec(name, None, origin=file, is_package=package)
        spec.has_location = True
        names["__file__"] = file
        if package:
            names["__path__"] = spec.submodule_search_locations = [file[: -len("/__init__.py")]]
            names["__package__"] = name
        else:
            names["__package__"] = parent
        exec(code, names)
        if parent:
            setattr(modules[parent], leaf, module)


def load(command: str) -> None:
    """Import what `command` needs, if there is an archive of it."""
    if command in loaded or command not in (ALL, *HOT):
        return
    file = path(command)
    if file:
        for entries in read(file):
            loaded.add(command)
            adopt(entries)
        if command not in loaded:
            missing.append(command)


def wanting() -> bool:
    """Whether an archive was missing, or a snapshot for a command that is worth one (`pyoci.snapshot`)."""
    if missing or (loaded and "pyoci-snapshot" in sys._xoptions):
        package = __file__.rpartition("/")[0]
        disk = posix.statvfs(package)
        # a second interpreter could not write them either, but would spend a second on finding that out
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < ROOM:
            return False
        if not posix.access(package + "/__pycache__", posix.W_OK):
            missing.clear()
    return bool(missing or (loaded and "pyoci-snapshot" in sys._xoptions))


def expect(found: bool) -> None:
    """Note whether the archive of what every command needs was there."""
    if not found and path(ALL):
        missing.append(ALL)
