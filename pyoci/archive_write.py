"""Make the archives that `pyoci.archive` reads, after a command that had none.

What belongs to a command follows from its module's imports outside functions, and theirs; `LATER` names what nearly
every run of it imports inside functions.  Code is compiled as usual but for what only takes memory: documentation that
nobody reads at run time, and the columns of instructions (tracebacks keep their lines).
"""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import marshal
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from pyoci import archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = Path(__file__).parent
SYSCALLS = f"pyoci.kernel.syscalls_{os.uname().machine}"
# The modules to begin with; what ALL holds is in no other.
ALL = ("pyoci.archive", "pyoci.__main__", "pyoci.cli", "pyoci.options", "pyoci.directory", "pyoci.signals")
LIVE = ("pyoci.cgroup.live", "pyoci.jsontext")
CREATE = (
    "pyoci.container.create",
    "pyoci.cgroup.perform",
    "pyoci.spec.validate",
    "pyoci.spec.resource_rules",
    "pyoci.passwd",
    SYSCALLS,
)
LATER: dict[str, tuple[str, ...]] = {
    "create": (*CREATE, "pyoci.container.replay", "pyoci.shortcut"),
    "run": (*CREATE, "pyoci.container.run", "pyoci.console", "pyoci.container.teardown", *LIVE),
    "start": ("pyoci.container.start", *LIVE),
    "exec": ("pyoci.container.execute", "pyoci.console", "pyoci.spec.validate", "pyoci.passwd", SYSCALLS, *LIVE),
    "state": LIVE,
    "kill": LIVE,
    "delete": ("pyoci.container.teardown", *LIVE),
}


def source(module: str) -> Path | None:
    """The file of a module of ours."""
    path = PACKAGE.parent / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules that are imported when the body runs."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def order(roots: Iterable[str], known: Iterable[str] = ()) -> dict[str, Path]:
    """`roots` and all of ours that they need and `known` does not hold, each after what it needs."""
    found: dict[str, Path] = {}
    seen = set(known)

    def visit(module: str) -> None:
        path = source(module) if module.partition(".")[0] == "pyoci" else None
        if path is None or module in seen:
            return
        seen.add(module)
        if "." in module:
            visit(module.rpartition(".")[0])
        for name in imports(ast.parse(path.read_bytes())):
            visit(name)
        found[module] = path

    for root in roots:
        visit(root)
    return found


def modules(command: str) -> dict[str, Path]:
    """What the archive of `command` holds."""
    everywhere = order(("pyoci", *ALL))
    if command == archive.ALL:
        return everywhere
    return order((f"pyoci.commands.{command}", *LATER[command]), everywhere)


class _Undocumented(ast.NodeTransformer):
    """Takes docstrings away."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node, clean=False)
            # a check is quoted with the clause that its documentation begins with, by who calls it
            if not text or ".md#" in text.partition(":")[0]:
                return node
            node.body[:1] = [] if len(node.body) > 1 else [ast.copy_location(ast.Pass(), node.body[0])]
        return node


def entry(module: str, path: Path) -> archive.Entry:
    """An entry of an archive."""
    text = path.read_bytes()
    tree = ast.parse(text)
    if b"__doc__" not in text:
        _Undocumented().visit(tree)
    return module, path.name == "__init__.py", compile(tree, str(path), "exec", dont_inherit=True)


def content(command: str) -> bytes:
    """The bytes of an archive."""
    chunks: list[list[archive.Entry]] = [[]]
    for module, path in modules(command).items():
        chunks[-1].append(entry(module, path))
        if command != archive.ALL and len(marshal.dumps(tuple(chunks[-1]))) > archive.CHUNK:
            chunks.append([])
    dumped = [marshal.dumps(tuple(chunk)) for chunk in chunks if chunk]
    body = b"".join(len(data).to_bytes(4, "little") + data for data in dumped)
    size = archive.HEAD + len(body)
    return importlib.util.MAGIC_NUMBER + size.to_bytes(8, "little") + bytes(4) + body


def save(command: str) -> None:
    """Write an archive; OSError if that is not possible."""
    path = Path(archive.path(command))
    path.parent.mkdir(exist_ok=True)
    # no pid: in two containers that share the directory it can be the same
    temporary = path.with_suffix(f".{os.urandom(8).hex()}")
    try:
        with temporary.open("xb") as file:
            file.write(content(command))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    # those of other versions, and what a writer left that was killed
    for other in path.parent.glob(f"*.{sys.implementation.cache_tag}.*.*"):
        if other.stem != path.stem and not other.match(f"*.{sys._xoptions['pyoci']}.archive"):
            other.unlink(missing_ok=True)


def write(commands: Iterable[str]) -> None:
    """Write archives with an interpreter that leaves columns out; where that is not possible there are none."""
    from pyoci.__main__ import OPTIONS

    body = "import sys; sys.path.insert(0, sys.argv[1]); from pyoci.archive_write import main; main(sys.argv[2:])"
    options = (*OPTIONS, "-X", "no_debug_ranges", "-X", f"pyoci={sys._xoptions['pyoci']}", "-B", "-c", body)
    # outlives an engine that ends us once we have said all
    subprocess.run(
        [sys.executable, *options, str(PACKAGE.parent), *commands],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Whether nobody else holds `lock`, which is there as long as somebody does; where it cannot be made nobody may."""
    try:
        lock.parent.mkdir(exist_ok=True)
        fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # its last holder may have removed it before we had it, and somebody else may have made another one since
            ours = os.path.samestat(os.fstat(fd), lock.lstat())
        except OSError:
            ours = False
        try:
            yield ours
        finally:
            if ours:
                lock.unlink(missing_ok=True)
    finally:
        os.close(fd)


def keep() -> None:
    """Write what this command would have liked to find: archives, and the snapshot that is made of all of them.

    Of a hundred first commands at once, each would take a second for it: one does.
    """
    with alone(PACKAGE / "__pycache__" / "writing.lock") as ours:
        if ours:
            _keep()


def _keep() -> None:
    path = sys._xoptions.get("pyoci-snapshot")
    if not isinstance(path, str) or not {*archive.missing, *archive.loaded} & {*archive.HOT}:
        write(archive.missing)
        return
    everything = (archive.ALL, *archive.HOT)
    write(name for name in everything if name in archive.missing or not Path(archive.path(name)).exists())
    from pyoci.snapshot_write import make

    make(Path(path))


def main(commands: Iterable[str]) -> None:
    """What the other interpreter does."""
    for command in commands:
        try:
            save(command)
        except OSError:
            return
