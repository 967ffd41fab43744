"""How a command starts and ends inside the interpreter: `pyoci.__main__`, with a command line of our own in place of
`pyoci.cli`."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyoci.__main__ as entry

PYTHON = getattr(sys, "_base_executable", sys.executable)


class Tree:
    """A directory of packages with a pyoci that has our `__main__` and a `cli` of one test."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.package = top / "pyoci"
        (self.package / "deep").mkdir(parents=True)
        shutil.copy(str(entry.__file__), self.package / "__main__.py")
        for name in ("__init__", "deep/__init__"):
            self.write(name, "")

    def write(self, name: str, text: str) -> Path:
        """A module, and its byte code as pip compiles it."""
        path = self.package / f"{name}.py"
        path.write_text(text)
        py_compile.compile(str(path), doraise=True)
        return path

    def run(self, *arguments: str, others: str = "", env: dict[str, str] | None = None) -> tuple[str, str, int]:
        command = [PYTHON, *entry.OPTIONS, "-c", entry.START, str(self.top), others, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env or {})
        return done.stdout, done.stderr, done.returncode

    def ask(self, expression: str, setup: str = "", env: dict[str, str] | None = None, others: str = "") -> object:
        """What an expression is inside `main(argv)`."""
        body = "".join(f"    {line}\n" for line in setup.splitlines())
        self.write("cli", f"import sys\ndef main(argv):\n{body}    value = {expression}\n    import json\n"
                          "    print(json.dumps(value))\n    return 0\n")  # fmt: skip
        output, error, status = self.run("one", "", "two words", env=env, others=others)
        assert (error, status) == ("", 0)
        return json.loads(output)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "packages")


def test_arguments_and_status(tree: Tree) -> None:
    tree.write("cli", "def main(argv):\n    print(argv)\n    return 42\n")
    assert tree.run("run", "", "two words", "-c") == ("['run', '', 'two words', '-c']\n", "", 42)


def test_isolated(tree: Tree) -> None:
    environment = {"PYTHONPATH": "/evil", "PYTHONSTARTUP": "/evil", "PYTHONHOME": "/evil", "HOME": "/evil"}
    flags = "[sys.flags.isolated, sys.flags.no_site, sys.flags.utf8_mode, 'site' in sys.modules, '/evil' in sys.path]"
    assert tree.ask(flags, env=environment) == [1, 1, 1, False, False]


def test_no_package_hides_a_module_of_the_standard_library(tree: Tree) -> None:
    (tree.top / "textwrap.py").write_text("raise SystemExit('the wrong textwrap')")
    expression = "[textwrap.__name__, sys.path[-3:]]"
    found = tree.ask(expression, setup="import textwrap", others="/others/one:/others/two")
    assert found == ["textwrap", [str(tree.top), "/others/one", "/others/two"]]


def test_collection_is_off_and_future_costs_nothing(tree: Tree) -> None:
    setup = "import gc, pyoci.m\nstand_in = '__file__' not in vars(sys.modules['__future__'])"
    tree.write("m", "from __future__ import annotations\n")
    assert tree.ask("[gc.isenabled(), stand_in]", setup=setup) == [False, True]


def test_the_true_future_is_there_for_who_looks_closer(tree: Tree) -> None:
    setup = "import __future__ as f\na = f.annotations is None\nb = f.all_feature_names[0]\nc = f.division.optional[0]"
    assert tree.ask("[a, b, c, f.annotations.compiler_flag > 0]", setup=setup) == [True, "nested_scopes", 2, True]


def test_the_environment_is_the_callers(tree: Tree) -> None:
    """CPython sets LC_CTYPE for itself in the C locale (PEP 538); nobody who inherits from us sees that."""
    expression = "sorted(k.decode() for k in posix.environ) + posix_env()"
    setup = (
        "import posix, os, subprocess\n"
        "def posix_env(): return subprocess.check_output(['/usr/bin/env']).decode().split()"
    )
    assert tree.ask(expression, setup=setup, env={"A": "1"}) == ["A", "A=1"]
    kept = tree.ask(expression, setup=setup, env={"LC_CTYPE": "C.UTF-8"})
    assert kept == ["LC_CTYPE", "LC_CTYPE=C.UTF-8"]


# ---- imports without directory listings


def loader_of(tree: Tree, module: str) -> object:
    return tree.ask(f"type(sys.modules[{module!r}].__loader__).__name__", setup=f"import {module}")


def test_byte_code_is_used_directly(tree: Tree) -> None:
    tree.write("deep/m", "here = __file__, __name__, __package__, __spec__.cached\n")
    assert loader_of(tree, "pyoci.deep.m") == "Compiled"
    assert loader_of(tree, "pyoci.deep") == "Compiled"
    path = tree.package / "deep" / "m.py"
    here = tree.ask("pyoci.deep.m.here", setup="import pyoci.deep.m")
    tag = sys.implementation.cache_tag
    cached = path.parent / "__pycache__" / f"m.{tag}.pyc"
    assert here == [str(path), "pyoci.deep.m", "pyoci.deep", str(cached)]


@pytest.mark.parametrize("change", ["newer", "longer", "magic", "hash", "none", "short"])
def test_byte_code_that_does_not_fit_its_source_is_not_used(tree: Tree, change: str) -> None:
    source = tree.write("m", "value = 1\n")
    compiled = source.parent / "__pycache__" / f"m.{sys.implementation.cache_tag}.pyc"
    data = compiled.read_bytes()
    status = source.stat()
    if change == "newer":
        source.write_text("value = 2\n")
        os.utime(source, (status.st_atime, status.st_mtime + 5))
    elif change == "longer":
        source.write_text("value = 22\n")
        os.utime(source, (status.st_atime, status.st_mtime))
    elif change == "magic":
        compiled.write_bytes(b"\0\0\r\n" + data[4:])
    elif change == "hash":
        compiled.unlink()
        py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    elif change == "short":
        compiled.write_bytes(data[:10])
    else:
        compiled.unlink()
    expected = {"newer": 2, "longer": 22}.get(change, 1)
    found = tree.ask("[pyoci.m.value, type(pyoci.m.__loader__).__name__]", setup="import pyoci.m")
    assert found == [expected, "SourceFileLoader"]


def test_half_of_a_file_of_byte_code_is_not_in_the_way(tree: Tree) -> None:
    source = tree.write("m", "value = 1\ntext = 'x'\n")
    compiled = source.parent / "__pycache__" / f"m.{sys.implementation.cache_tag}.pyc"
    whole = compiled.read_bytes()
    for length in (17, 40, len(whole) - 1):
        compiled.write_bytes(whole[:length])
        assert tree.ask("pyoci.m.value", setup="import pyoci.m") == 1


def test_a_full_disk_leaves_no_half_of_a_file(tree: Tree) -> None:
    """write(2) writes what there is room for; a limit of a file's size does the same."""
    source = tree.write("m", "value = 1\n" + "".join(f"name{number} = {number}\n" for number in range(2000)))
    compiled = source.parent / "__pycache__" / f"m.{sys.implementation.cache_tag}.pyc"
    size = compiled.stat().st_size
    compiled.unlink()
    tree.write("cli", "def main(argv):\n    import pyoci.m\n    return pyoci.m.value\n")
    command = [PYTHON, *entry.OPTIONS, "-c", entry.START, str(tree.top), ""]
    assert subprocess.run(["prlimit", "--fsize=4096", *command], check=False).returncode == 1
    assert size > 4096 and [path.name for path in compiled.parent.glob("m.*")] == []
    assert subprocess.run(command, check=False).returncode == 1
    assert compiled.stat().st_size == size


def test_a_large_module_is_left_to_the_usual_machinery(tree: Tree) -> None:
    tree.write("m", f"value = {'x' * 100_000!r}\n")
    found = tree.ask("[len(pyoci.m.value), type(pyoci.m.__loader__).__name__]", setup="import pyoci.m")
    assert found == [100_000, "SourceFileLoader"]


def test_a_module_that_does_not_exist(tree: Tree) -> None:
    setup = "try:\n    import pyoci.deep.nothing\nexcept ModuleNotFoundError as e:\n    name = e.name"
    assert tree.ask("name", setup=setup) == "pyoci.deep.nothing"


# ---- packages that are not ours

IMPORT = "try:\n    import {name}\n    found = {name}.value\nexcept ImportError as e:\n    found = str(e)"


def others(tree: Tree) -> Path:
    """A directory with a package, a package without `__init__`, and a module that is a file; all of them are 1."""
    (tree.package / "trust.py").write_bytes((Path(str(entry.__file__)).parent / "trust.py").read_bytes())
    (tree.package / "errors.py").write_bytes((Path(str(entry.__file__)).parent / "errors.py").read_bytes())
    place = tree.top.parent / "others"
    (place / "theirs" / "deep").mkdir(parents=True)
    (place / "loose").mkdir()
    for name in ("theirs/__init__", "theirs/deep/__init__", "theirs/deep/leaf", "loose/part", "single"):
        (place / f"{name}.py").write_text("value = 1\n")
        py_compile.compile(str(place / f"{name}.py"), doraise=True)
    return place


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("theirs", "theirs"),
        ("theirs", "theirs/__init__.py"),
        ("theirs", "theirs/__pycache__"),
        ("theirs", "theirs/deep/leaf.py"),
        ("theirs", f"theirs/deep/__pycache__/leaf.{sys.implementation.cache_tag}.pyc"),
        ("loose.part", "loose/part.py"),
        ("single", "single.py"),
        ("single", f"__pycache__/single.{sys.implementation.cache_tag}.pyc"),
    ],
)
def test_root_imports_no_package_that_others_can_write(tree: Tree, name: str, file: str) -> None:
    place = others(tree)
    setup = IMPORT.format(name=name)
    assert tree.ask("found", setup=setup, others=str(place)) == 1
    path = place / file
    mode = path.stat().st_mode & 0o777
    for uid, gid, bits, refused in ((1000, 0, 0, 1), (0, 1000, 0o020, 1), (0, 0, 0o002, 1), (0, 1000, 0, 0)):
        os.chown(path, uid, gid)
        path.chmod(mode | bits)
        found = tree.ask("found", setup=setup, others=str(place))
        if refused:
            assert isinstance(found, str) and found.startswith(f"{path}: ") and "root will not import it" in found
        else:
            assert found == 1


@pytest.mark.root
def test_links_in_packages_are_followed_before_root_judges(tree: Tree) -> None:
    place = others(tree)
    elsewhere = tree.top.parent / "elsewhere"
    (place / "theirs" / "deep").rename(elsewhere)
    (place / "theirs" / "deep").symlink_to("../../elsewhere")
    (place / "theirs" / "loop").symlink_to("loop")
    (place / "theirs" / "nothing").symlink_to("/nonexistent")
    (place / "theirs" / "self").symlink_to(".")
    setup = IMPORT.format(name="theirs.deep.leaf").replace("found = theirs.deep.leaf.value", "found = 1")
    assert tree.ask("found", setup=setup, others=str(place)) == 1
    elsewhere.chmod(0o777)
    assert str(elsewhere) in str(tree.ask("found", setup=setup, others=str(place)))


def test_others_than_root_import_what_they_like(tree: Tree) -> None:
    place = others(tree)
    (place / "theirs").chmod(0o777)
    setup = "import posix\nposix.geteuid = lambda: 1000\n" + IMPORT.format(name="theirs")
    assert tree.ask("found", setup=setup, others=str(place)) == 1


# ---- ends


def test_output_is_flushed_and_a_full_disk_is_an_error(tree: Tree) -> None:
    tree.write("cli", "import sys\ndef main(argv):\n    sys.stdout.write('no newline')\n    return 0\n")
    assert tree.run() == ("no newline", "", 0)
    command = [PYTHON, *entry.OPTIONS, "-c", entry.START, str(tree.top), ""]
    with open("/dev/full", "w", encoding="ascii") as full:
        assert subprocess.run(command, stdout=full, check=False).returncode == 1


def test_an_exception_that_nobody_expected_is_shown(tree: Tree) -> None:
    tree.write("cli", "def main(argv):\n    raise ValueError('unexpected')\n")
    output, error, status = tree.run()
    assert (output, status, "ValueError: unexpected" in error) == ("", 1, True)


def test_an_interrupt_is_a_status(tree: Tree) -> None:
    tree.write("cli", "def main(argv):\n    raise KeyboardInterrupt\n")
    assert tree.run() == ("", "", 130)


def test_dash_m_starts_again_isolated(tree: Tree) -> None:
    body = "    print(sys.flags.isolated, sys.flags.no_site, argv)\n    return 3\n"
    tree.write("cli", "import sys\ndef main(argv):\n" + body)
    command = [sys.executable, "-m", "pyoci", "list", "-q"]
    for cwd, environment in ((tree.top.parent, {"PYTHONPATH": str(tree.top)}), (tree.top, {"PYTHONWARNINGS": "error"})):
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("1 1 ['list', '-q']\n", "", 3)
