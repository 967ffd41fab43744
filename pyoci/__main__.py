"""Where every command starts: the launcher runs `python -I -S -X utf8 -c START PACKAGES OTHERS ARGUMENT...`.

PACKAGES is the directory that holds pyoci; OTHERS the further directories of third-party modules, joined by ":" (may be
empty).  `python3 -m pyoci` is for checkouts and for people without the launcher: it executes itself again in that way,
because no environment variable, .pth file or user directory may decide what a container runtime imports.

A command lives for some milliseconds, so this file buys what can be bought cheaply: no garbage collection, no site, no
import of `__future__`, no directory listings on import (`CompiledFinder`), no interpreter shutdown.  It has no `from
__future__` line itself: the stand-in is made here.
"""

import _frozen_importlib_external as external
import gc
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, PathFinder, SourceFileLoader
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

# What the launcher passes to `-c`; launcher/launcher.c holds the same words, and a test compares them.
START = """\
import sys
if 'pyoci' in sys._xoptions:
    import posix, marshal
    from _frozen_importlib_external import MAGIC_NUMBER
    try:
        f = posix.open('%s/pyoci/__pycache__/pyoci.%s.%s.archive' % (
            sys.argv[1], sys.implementation.cache_tag, sys._xoptions['pyoci']), 524288)
        a = posix.read(f, 1048576)
        posix.close(f)
        if a[:12] == MAGIC_NUMBER + len(a).to_bytes(8, 'little'):
            a = marshal.loads(memoryview(a)[20:])
            g = {}
            exec(a[1][2], g)
            g['adopt'](a)
    except OSError:
        pass
w = sys.dont_write_bytecode
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from pyoci.__main__ import start
sys.dont_write_bytecode = w
start()
"""
OPTIONS = ("-I", "-S", "-X", "utf8")
# PACKAGES and OTHERS of this process.
PLACES: "list[str]" = []


class Compiled(SourceFileLoader):
    """The loader of a module whose byte code has been read already."""

    def __init__(self, name: str, path: str, code: "CodeType") -> None:
        super().__init__(name, path)
        self.code = code

    def get_code(self, fullname: str) -> "CodeType":
        return self.code


class CompiledFinder:
    """Finds pyoci's own modules by opening the .pyc that should be there; if it is not, the usual machinery goes on.

    The checks are importlib's: magic number, flags, the source's time and size.  What is saved is its generality: about
    50 us a module, a tenth of a command's life.
    """

    # The environment, if the C library has not been told yet (see `pyoci.waiting`).
    environment: "dict[bytes, bytes]" = {}  # noqa: RUF012 - replaced, never changed
    # Of an interpreter that was resumed: the launcher has not looked at byte code (launcher/trust.c)
    unjudged = False

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        if path is None or not name.startswith("pyoci."):
            if name == "os" and CompiledFinder.environment:
                posix.unsetenv("LC_CTYPE")  # which the interpreter set for itself when it started
                for variable, value in CompiledFinder.environment.items():
                    posix.putenv(variable, value)
            return None
        package = path[0]
        leaf = name.rpartition(".")[2]
        for stem, is_package in ((f"{package}/", False), (f"{package}/{leaf}/", True)):
            module = "__init__" if is_package else leaf
            cached = f"{stem}__pycache__/{module}.{sys.implementation.cache_tag}.pyc"
            try:
                fd = posix.open(cached, posix.O_RDONLY | posix.O_CLOEXEC)
            except OSError:
                continue
            try:
                if CompiledFinder.unjudged:
                    from pyoci.trust import judge_file

                    judge_file(cached, posix.fstat(fd))
                data = posix.read(fd, 0x10000)
                if len(data) == 0x10000:
                    return None  # more than one read: not worth a loop here
            finally:
                posix.close(fd)
            source = f"{stem}{module}.py"
            try:
                status = posix.stat(source)
            except OSError:
                return None
            expected = b"%b\0\0\0\0%b%b" % (
                MAGIC_NUMBER,
                (int(status.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little"),
                (status.st_size & 0xFFFFFFFF).to_bytes(4, "little"),
            )
            if data[:16] != expected:
                return None
            try:
                code = loads(memoryview(data)[16:])
            except (EOFError, ValueError, TypeError):
                # half of one, written on a full disk: importlib would not get over it
                usual = SourceFileLoader(name, source)
                code = usual.source_to_code(usual.get_data(source), source)
            loader = Compiled(name, source, code)
            spec = ModuleSpec(name, loader, origin=source, is_package=is_package)
            spec.has_location = True
            spec.cached = cached
            if is_package:
                spec.submodule_search_locations = [stem[:-1]]
            return spec
        return None


class JudgedFinder:
    """Finds what is nobody's of the above as usual; root imports no package that somebody else can write to."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        if path is not None:
            return None  # the package has been judged, with all that is in it
        spec = PathFinder.find_spec(name, None, target)
        if spec is not None and posix.geteuid() == 0:
            found = spec.origin or "".join(list(spec.submodule_search_locations or ())[:1])
            if any(found.startswith(place + "/") for place in ":".join(PLACES).split(":") if place):
                from pyoci.trust import judge

                judge(spec)
        return spec


def prepare() -> None:
    """Make this a process that can run a command: no garbage collection, the places that modules come from."""
    gc.disable()
    external._write_atomic = _write_atomic  # type: ignore[attr-defined]
    future = type(sys)("__future__")
    future.__getattr__ = _future  # type: ignore[method-assign]
    future.annotations = None  # type: ignore[attr-defined]
    sys.modules["__future__"] = future
    packages, others = PLACES[:] = sys.argv[1:3]
    # pyoci has been found: from here on nothing in a directory of packages hides a module of the standard library
    sys.path[:1] = []
    sys.path.append(packages)
    if others:
        sys.path.extend(others.split(":"))
    sys.meta_path.insert(0, CompiledFinder)
    sys.meta_path.insert(sys.meta_path.index(PathFinder), JudgedFinder)


def _write_atomic(path: str, data: bytes, mode: int = 0o666) -> None:
    """A whole file or none: importlib's own, of older releases, does not look whether all was written."""
    temporary = f"{path}.{posix.urandom(8).hex()}"
    fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, mode & 0o666)
    try:
        try:
            if posix.write(fd, data) != len(data):
                raise OSError("the disk is full")
        finally:
            posix.close(fd)
        posix.rename(temporary, path)
    except OSError:
        posix.unlink(temporary)
        raise


def start() -> None:
    """Run the command of this process, `sys.argv` being as in the module's docstring, and end the process."""
    prepare()
    _forget_coercion()
    sys.argv[:3] = ["pyoci"]
    command()


def command(resumed: bool = False) -> None:
    """Run the command `sys.argv`, and end the process; `resumed` from a snapshot, it has all that it needs."""
    launched = "pyoci" in sys._xoptions and not resumed
    if launched:
        from pyoci import archive

        archive.expect(archive.__spec__.loader is None)
    from pyoci.cli import main

    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            status = status or 1
    if launched and not sys.dont_write_bytecode and archive.wanting():
        from pyoci.archive_write import keep

        keep()
    # the kernel takes everything back faster than the interpreter does (1 ms)
    posix._exit(status)


def _future(name: str) -> object:
    """An attribute of the true `__future__`, for the rare module that looks at more than `annotations`."""
    if name == "__path__":  # which every `from __future__ import` asks for first: is it a package?
        raise AttributeError(name)
    stand_in = sys.modules.pop("__future__")
    import __future__

    vars(stand_in).update(vars(__future__))
    return getattr(__future__, name)


def _forget_coercion() -> None:
    """Take back the LC_CTYPE that CPython puts into the environment of a process started in the C locale (PEP 538).

    What is started with the caller's environment (ps(1)) must not get it.
    """
    if posix.environ.get(b"LC_CTYPE") == b"C.UTF-8":
        try:
            fd = posix.open("/proc/self/environ", posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError:
            return
        original = posix.read(fd, 0x20000)
        posix.close(fd)
        if not original.startswith(b"LC_CTYPE=") and b"\0LC_CTYPE=" not in original:
            del posix.environ[b"LC_CTYPE"]
            posix.unsetenv(b"LC_CTYPE")


def _again() -> None:
    """Execute this command again as the launcher would: isolated, with the module directories of this interpreter."""
    packages = __file__.rpartition("/")[0].rpartition("/")[0] or "/"
    if not packages.startswith("/"):
        packages = posix.getcwd() + "/" + packages
    others = [path for path in sys.path if path.endswith(("/site-packages", "/dist-packages")) and path != packages]
    python = getattr(sys, "_base_executable", "") or sys.executable
    posix.execv(python, [python, *OPTIONS, "-c", START, packages, ":".join(others), *sys.argv[1:]])


if __name__ == "__main__":
    _again()
