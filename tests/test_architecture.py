"""The shape of the source: who may import what, who may know what.  Everything here reads the code, nothing runs it.

ARCHITECTURE.md says why each of these lines is drawn.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pyoci"

# What a module pays for at start-up whether it needs it or not (milliseconds each); `posix`, `errno`, `fcntl`,
# `_socket`, `_struct`, `select`, `time` and `_json` cost nothing.
EXPENSIVE = frozenset(
    (
        "argparse", "collections", "contextlib", "ctypes", "dataclasses", "enum", "functools", "json", "jsonschema",
        "logging", "os", "pathlib", "pyroute2", "re", "shutil", "socket", "structlog", "subprocess", "tempfile",
        "threading", "traceback", "typing", "warnings",
    )
)  # fmt: skip
# Never loaded on the way to a started container: a filter that is not in the cache, and programs for people.
COLD = frozenset(
    (
        "pyoci.archive_write", "pyoci.cgroup.device_filter", "pyoci.cgroup.sdbus", "pyoci.libseccomp", "pyoci.snapshot",
        "pyoci.snapshot_write",
    )
)  # fmt: skip
# What makes a module able to look at, or touch, the machine.
IMPURE = frozenset(
    (
        "_posixsubprocess", "_signal", "_socket", "ctypes", "fcntl", "grp", "io", "mmap", "os", "pathlib", "posix",
        "pwd", "resource", "select", "shutil", "signal", "socket", "subprocess", "tempfile", "termios", "time",
    )
)  # fmt: skip
# A name of the kernel's user interface.
KERNEL_NAME = re.compile(
    r"(AF|AT|BPF|CAP|CLONE|CLOSE_RANGE|F|FSCONFIG|FSMOUNT|FSOPEN|FSPICK|GRND|IFF|KEYCTL|MFD|MNT|MOUNT_ATTR|MOVE_MOUNT|"
    r"MS|MSG|O|OPEN_TREE|P|POLL|PR|RESOLVE|RLIMIT|S|SCM|SECCOMP|SO|SOCK|SOL|STATX|X)_[A-Z0-9_]+|(TIO|SIO)C[A-Z]+"
)
# Names that only look like the kernel's.
OWN_NAMES = frozenset(("AT_BARRIER", "STATX_MODE", "STATX_RDEV", "STATX_SIZE"))


class Import:
    """One import statement: the module, the names taken from it, and the function that it stands in ("" for none)."""

    def __init__(self, module: str, names: tuple[str, ...], function: str, line: int) -> None:
        self.module = module
        self.names = names
        self.function = function
        self.line = line


def for_the_checker(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(body: list[ast.stmt], function: str = "") -> Iterator[tuple[ast.stmt, str]]:
    """Every statement that may run, with the outermost function that it is in."""
    for node in body:
        if for_the_checker(node):
            continue
        yield node, function
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not function else function
        for field in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, field, []), inner)
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body, inner)


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(), str(modules()[module]))


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What `module` imports at run time, now or when one of its functions is called."""
    found: list[Import] = []
    for node, function in statements(tree(module).body):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, (), function, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}:{node.lineno}: imports are absolute"
            names = tuple(alias.name for alias in node.names)
            if node.module != "__future__":
                found.append(Import(node.module, names, function, node.lineno))
    return tuple(found)


def targets(each: Import) -> set[str]:
    """The package's modules that an import statement loads, and what else it names."""
    found = {each.module}
    parts = each.module.split(".")
    if parts[0] == "pyoci":
        found |= {".".join(parts[:count]) for count in range(1, len(parts))}
        found |= {f"{each.module}.{name}" for name in each.names if f"{each.module}.{name}" in modules()}
    return found


@cache
def reach(module: str, lazily: bool = True) -> frozenset[str]:
    """Everything that `module` can load; `lazily` includes what its functions import.

    A package's functions count only for those that import them by name: that is what the lazy `pyoci.container` is for.
    """
    nothing = frozenset[str]()
    visited: set[tuple[str, frozenset[str] | None]] = set()
    pending: list[tuple[str, frozenset[str] | None]] = [(module, None)]
    while pending:
        visit = pending.pop()
        name, functions = visit
        if visit in visited:
            continue
        visited.add(visit)
        for each in imports(name) if name in modules() else ():
            if each.function and not (lazily and (functions is None or each.function in functions)):
                continue
            for target in targets(each):
                package = target in modules() and modules()[target].name == "__init__.py"
                named = frozenset(each.names) if target == each.module else nothing
                pending.append((target, named if package else None))
    return frozenset(name for name, _ in visited)


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def functions_and_calls(module: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield node


def test_deciding_is_pure() -> None:
    """spec/ and plan/ are functions of their arguments: no system, no clock, no host, however far imports lead."""
    for module in modules():
        if within(module, "pyoci.spec", "pyoci.plan"):
            impure = {
                name
                for name in reach(module)
                if name.split(".")[0] in IMPURE or within(name, "pyoci.host", "pyoci.launch", "pyoci.program")
            }
            assert not impure, f"{module} can load {sorted(impure)}"


def test_the_spec_knows_no_plan() -> None:
    """config.json is read and judged without a thought of how it will be carried out."""
    for module in modules():
        if within(module, "pyoci.spec"):
            assert not [name for name in reach(module) if within(name, "pyoci.plan", "pyoci.cgroup")], module


def test_only_host_reads_the_machine_for_planning() -> None:
    """A `Host` is made by host.py alone; with `test_deciding_is_pure` nothing else can reach a plan."""
    for module in modules():
        if module == "pyoci.host":
            continue
        made = [call.lineno for call in functions_and_calls(module) if ast.unparse(call.func).split(".")[-1] == "Host"]
        assert not made, f"{module}:{made} makes a Host"
    # what host.py has others read for it
    own = [name for name in reach("pyoci.host") if name not in ("pyoci", "pyoci.cgroup", "pyoci.host", "pyoci.errors")]
    for name in own:
        cgroups = ("pyoci.cgroup.bus", "pyoci.cgroup.sdbus", "pyoci.cgroup.detect", "pyoci.cgroup.files")
        reading = within(name, *cgroups, "pyoci.gvariant", "pyoci.kernel", "pyoci.passwd", "pyoci.tree")
        assert reading or not within(name, "pyoci"), f"pyoci.host can load {name}"


def literal(node: ast.expr | None) -> bool:
    """A number written down, not one taken from elsewhere."""
    if isinstance(node, ast.UnaryOp):
        return literal(node.operand)
    if isinstance(node, ast.BinOp):
        return literal(node.left) and literal(node.right)
    return isinstance(node, ast.Constant) and type(node.value) is int


def numbers_under_kernel_names(module: str) -> list[str]:
    found: list[str] = []

    def look(name: str, value: ast.expr | None, line: int) -> None:
        if KERNEL_NAME.fullmatch(name) and name not in OWN_NAMES and literal(value):
            found.append(f"{module}:{line} {name}")

    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    look(target.id, node.value, node.lineno)
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    for name, value in zip(target.elts, node.value.elts, strict=True):
                        look(ast.unparse(name), value, node.lineno)
        elif isinstance(node, ast.AnnAssign):
            look(ast.unparse(node.target), node.value, node.lineno)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    look(key.value, value, node.lineno)
    return found


def test_only_kernel_knows_a_number() -> None:
    """tests/test_uapi.py compares kernel/ with the kernel's headers; a number elsewhere would go unchecked."""
    elsewhere = [module for module in modules() if not within(module, "pyoci.kernel")]
    found = [each for module in elsewhere for each in numbers_under_kernel_names(module)]
    assert not found, "\n".join(found)


def test_only_container_joins_deciding_and_doing() -> None:
    for module in modules():
        direct = {target for each in imports(module) for target in targets(each)}
        deciding = [name for name in direct if within(name, "pyoci.spec")]
        doing = [name for name in direct if within(name, "pyoci.program", "pyoci.launch")]
        if deciding and doing:
            assert within(module, "pyoci.container"), f"{module} imports {deciding} and {doing}"


@pytest.mark.parametrize("command", ["state", "kill", "delete", "list"])
def test_commands_that_only_look_and_end_plan_nothing(command: str) -> None:
    """A container must be seen, killed and deleted even when its config.json is gone or means something else now."""
    module = f"pyoci.commands.{command}"
    if module not in modules():
        pytest.skip(f"{module} does not exist")
    found = [name for name in reach(module) if within(name, "pyoci.spec", "pyoci.plan", "pyoci.program")]
    assert not found, f"{module} can load {sorted(found)}"


def test_the_start_of_a_container_needs_no_planner() -> None:
    """`start` is on the way of every container: what it may load when nothing goes wrong is small."""
    loaded = reach("pyoci.container.start", lazily=False)
    assert not [name for name in loaded if within(name, "pyoci.spec", "pyoci.plan.container", "pyoci.container.create")]


# Functions that take a path and do something with it.
PATH_TAKERS = frozenset(
    (
        "access", "chdir", "chmod", "chown", "chroot", "link", "listdir", "lstat", "mkdir", "mkfifo", "mknod", "open",
        "open_fd", "read_file", "readlink", "remove", "rename", "replace", "rmdir", "scandir", "stat", "statvfs",
        "symlink", "truncate", "unlink", "utime",
    )
)  # fmt: skip


def leads_into_the_root(node: ast.AST, tainted: set[str]) -> bool:
    """Whether an expression is made from the path of a container's root."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in tainted:
            return True
        if isinstance(part, ast.Attribute) and part.attr == "rootfs":
            return True
        if isinstance(part, ast.Attribute) and ast.unparse(part).endswith(".root.path"):
            return True
        if isinstance(part, ast.Call) and ast.unparse(part.func).split(".")[-1] == "root_path":
            return True
        # /proc/PID/root and /proc/PID/cwd are the container's as well
        if isinstance(part, ast.JoinedStr):
            text = "".join(value.value if isinstance(value, ast.Constant) else "%" for value in part.values)  # type: ignore[misc]
            if re.search(r"/proc/%/(root|cwd)\b", text):
                return True
    return False


def test_no_path_leads_into_a_root() -> None:
    """The runtime itself never opens, makes or looks at anything in a container's root: only init does, by handle.

    Anything made from `.rootfs`, `/root/path` or `/proc/PID/root` is followed through the assignments of its function,
    and must not reach a call that takes a path.  Telling a directory from none (`source_type`) is what planning needs.
    """
    for module in modules():
        if within(module, "pyoci.plan"):
            continue
        for function in ast.walk(tree(module)):
            if module == "pyoci.container.restore" and getattr(function, "name", "") == "_talk":
                continue  # /proc/PID/cwd of CRIU, where we have put it
            if not isinstance(function, ast.FunctionDef):
                continue
            tainted: set[str] = set()
            for _ in range(3):
                for node in ast.walk(function):
                    if isinstance(node, ast.Assign) and leads_into_the_root(node.value, tainted):
                        names = [name for target in node.targets for name in ast.walk(target)]
                        tainted |= {name.id for name in names if isinstance(name, ast.Name)}
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in PATH_TAKERS:
                    bad = [argument for argument in node.args if leads_into_the_root(argument, tainted)]
                    assert not bad, f"{module}:{node.lineno}: {ast.unparse(node)}"


def test_only_init_enters() -> None:
    """No code of ours but init.c runs in a container: Python does not fork, setns, chroot or execute by itself."""
    entering = {"chroot", "execv", "execve", "fork", "forkpty", "pivot_root", "setns", "unshare", "vfork"}
    allowed = {
        ("pyoci.__main__", "execv"),  # the interpreter, again, before there is any container
        ("pyoci.container.rehearsal", "fork"),  # of what a snapshot is taken of: it has no container
        ("pyoci.netdevice", "setns"),  # a network namespace and back, to make a socket: no files, no code
    }
    for module in modules():
        for call in functions_and_calls(module):
            name = ast.unparse(call.func).split(".")[-1]
            if name in entering and isinstance(call.func, ast.Attribute):
                assert (module, name) in allowed, f"{module}:{call.lineno}: {ast.unparse(call)}"


def test_modules_are_named_after_things() -> None:
    for module in modules():
        for part in module.split("."):
            assert not re.search(r"util|helper|manager|misc|common", part), module


def test_files_can_be_read_in_one_sitting() -> None:
    for path in (*modules().values(), *PACKAGE.rglob("*.c")):
        lines = path.read_text().count("\n")
        assert lines <= 450, f"{path.relative_to(ROOT)} has {lines} lines"


def test_start_up_is_cheap() -> None:
    """No module that a command may need on its way to a container imports at its top what costs milliseconds."""
    for module in modules():
        if module not in COLD:
            at_top = {each.module.split(".")[0]: each.line for each in imports(module) if not each.function}
            expensive = EXPENSIVE & at_top.keys()
            assert not expensive, f"{module} imports {sorted(expensive)}"


def test_annotations_cost_nothing() -> None:
    """Types are for the checker: annotations are never evaluated."""
    for module, path in modules().items():
        body = tree(module).body
        functions = [node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef)]
        if module in ("pyoci.__main__", "pyoci.archive") or not functions:
            continue
        first = next(node for node in body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)))
        assert isinstance(first, ast.ImportFrom) and first.module == "__future__", path


def test_every_module_says_what_it_is() -> None:
    for module, path in modules().items():
        if path.stat().st_size:
            assert ast.get_docstring(tree(module)), f"{module} has no docstring"


def test_the_map_is_complete() -> None:
    """ARCHITECTURE.md has a line for every module, and names no file and no test that is not there."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"^ {4}((?:pyoci|tests|launcher)/\S+)", text, re.MULTILINE)
    for pattern in named:
        assert list(ROOT.glob(pattern)), f"{pattern} is no file"
    on_the_map = {path for pattern in named for path in ROOT.glob(pattern)}
    packages = {path for path in modules().values() if path.name == "__init__.py"}
    missing = {*modules().values(), *PACKAGE.rglob("*.c")} - on_the_map - packages
    assert not missing, sorted(str(path.relative_to(ROOT)) for path in missing)
    written = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for test in re.findall(r"\btest_\w+", text):
        assert f"def {test}(" in written or (ROOT / "tests" / f"{test}.py").exists(), f"there is no {test}"
