"""Whatever a file holds that is given to us: one clear line or success, and nothing left behind.

`PYOCI_FUZZ=SECONDS` lets the fuzzers go on for that long.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import Box, box, needed, processes_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyoci.__main__ import OPTIONS, START
from pyoci.commands.plan import read_host
from pyoci.commands.spec import default
from pyoci.errors import PyociError
from pyoci.host import Host
from pyoci.spec.load import load_resources
from pyoci.state import State

__all__ = ["box"]  # a fixture


def in_a_container(test: Any) -> Any:
    """Marks a test that makes containers."""
    for mark in needed:
        test = mark(test)
    return test



BASE: dict[str, Any] = json.loads(json.dumps(default(False)))
BASE["process"]["terminal"] = False
SECONDS = int(os.environ.get("PYOCI_FUZZ", "0"))
PACKAGES = str(Path(str(sys.modules["pyoci"].__file__)).parent.parent)


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Hypothesis' settings: some examples, or as many as fit into the time that was asked for."""
    number = examples if not SECONDS else 50 * examples * SECONDS
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=number, deadline=None, suppress_health_check=checks)


DOCUMENTS: dict[str, bytes] = {
    "empty": b"",
    "space": b" \n",
    "nul": b"\0",
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": json.dumps(BASE).encode("utf-16"),
    "not utf-8": b'{"ociVersion": "\xff"}',
    "overlong": b'{"ociVersion": "\xc0\xaf"}',
    "duplicates": b'{"ociVersion": "1.0.0", "ociVersion": "1.0.0"}',
    "nan": b'{"ociVersion": NaN}',
    "infinity": b'{"ociVersion": -Infinity}',
    "1e400": b'{"ociVersion": 1e400}',
    "5000 digits": b'{"pids": {"limit": ' + b"9" * 5000 + b"}}",
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and right": b"[" * 100_000 + b"]" * 100_000,
    "array": b"[]",
    "string": b'"x"',
    "number": b"1",
    "null": b"null",
    "two": b"{} {}",
    "half": json.dumps(BASE).encode()[:-20],
    "surrogate": b'{"ociVersion": "\\ud800", "\\udfff": 1}',
    "escape": b'{"ociVersion": "\\u0000\\u001b[31m"}',
    "long": b'{"ociVersion": "' + b"x" * (1 << 20) + b'"}',
    "long name": b'{"annotations": {"' + b"x" * (1 << 20) + b'": 1}}',
}


def command(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *OPTIONS, "-c", START, PACKAGES, "", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, **more)


def one_clear_line(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    assert done.returncode == status, done
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in line and "internal error" not in line, line
    assert line.isprintable() and len(line) < 10_000, len(line)
    return line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_bad_configuration(tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_bytes(DOCUMENTS[name])
    line = one_clear_line(command("--root", str(tmp_path / "states"), "create", "--bundle", str(bundle), "a"))
    assert "config.json" in line
    assert not list((tmp_path / "states").glob("*"))
    assert command("validate", str(bundle)).returncode == 1


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_bad_host(tmp_path: Path, name: str) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "host").write_bytes(DOCUMENTS[name])
    line = one_clear_line(command("plan", "--bundle", str(tmp_path), "--host", str(tmp_path / "host")))
    assert "--host" in line


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("verb", ["state", "start", "kill", "list", "delete"])
def test_a_damaged_state(tmp_path: Path, name: str, verb: str) -> None:
    states = tmp_path / "states"
    (states / "a").mkdir(parents=True, mode=0o700)
    states.chmod(0o700)
    (states / "a/state.json").write_bytes(DOCUMENTS[name])
    done = command("--root", str(states), verb, *([] if verb == "list" else ["a"]))
    if verb == "list":
        assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done
    else:
        one_clear_line(done)


def kinds_of_files(folder: Path) -> Iterator[tuple[str, Path]]:
    (folder / "directory").mkdir()
    yield "directory", folder / "directory"
    os.mkfifo(folder / "fifo")
    yield "fifo", folder / "fifo"
    yield "device", Path("/dev/zero")
    (folder / "loop").symlink_to("loop")
    yield "loop", folder / "loop"
    with (folder / "huge").open("wb") as huge:
        huge.truncate(1 << 30)
    yield "huge", folder / "huge"


def test_a_configuration_that_is_no_file(tmp_path: Path) -> None:
    for name, path in kinds_of_files(tmp_path):
        bundle = tmp_path / f"bundle-{name}"
        bundle.mkdir()
        (bundle / "config.json").symlink_to(path)
        line = one_clear_line(command("--root", str(tmp_path / "states"), "create", "--bundle", str(bundle), "a"))
        assert "config.json" in line, line
        if name not in ("directory",):
            assert command("validate", str(bundle)).returncode == 1


def test_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    """Neither time nor memory for what cannot be a configuration."""
    with (tmp_path / "config.json").open("wb") as huge:
        huge.truncate(1 << 30)
    words = ["sh", "-c", 'ulimit -v 300000; exec "$@"', "sh", sys.executable, *OPTIONS, "-c", START, PACKAGES, ""]
    line = [*words, "create", "--bundle", str(tmp_path), "a"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert "more than 16 MiB" in one_clear_line(done)


@pytest.mark.parametrize("flag", ["--bundle", "--pid-file", "--console-socket"])
def test_a_path_that_no_kernel_takes(tmp_path: Path, flag: str) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    done = command("--root", str(tmp_path / "states"), "create", flag, "/x" * 3000, "a", cwd=tmp_path)
    assert len(one_clear_line(done)) < 400


# ---- in a container


@in_a_container
def test_bad_documents_for_a_container(box: Box) -> None:
    """exec --process and update --resources: the container goes on as if nothing had been."""
    box.start("sleep 1000")
    before = sorted(processes_of(box.id))
    bad = box.folder / "bad.json"
    for name, data in DOCUMENTS.items():
        bad.write_bytes(data)
        line = one_clear_line(box("exec", "--process", str(bad), box.id), 255)
        assert str(bad) in line, (name, line)
        if name not in ("surrogate", "escape", "long", "long name"):  # unknown in such a file, and so ignored
            line = one_clear_line(box("update", "--resources", str(bad), box.id))
            assert str(bad) in line, (name, line)
    for name, path in kinds_of_files(box.folder):
        if name != "fifo":  # which is a way to pass a document
            one_clear_line(box("exec", "--process", str(path), box.id), 255)
            one_clear_line(box("update", "--resources", str(path), box.id))
    assert sorted(processes_of(box.id)) == before
    assert json.loads(box("state", box.id).stdout)["status"] == "running"


@in_a_container
def test_damaged_inputs_of_the_plan(box: Box) -> None:
    """inputs.json is read when start fails: the failure is told even when it cannot be explained."""
    for data in (b"", b"[]", b'{"host": 1}', b'{"host": {}, "options": {"x": 1}}', DOCUMENTS["deep arrays"]):
        id = box.new_id()
        box.create(id=id)
        (box.rootfs / "bin/sh").rename(box.rootfs / "bin/gone")
        (box.states / id / "inputs.json").write_bytes(data)
        one_clear_line(box("start", id))
        (box.rootfs / "bin/gone").rename(box.rootfs / "bin/sh")
        assert box("delete", "--force", id).returncode == 0


@in_a_container
def test_the_plan_of_another_version(box: Box) -> None:
    """Its ops may have been others: better no op than a wrong one."""
    box.create()
    (box.rootfs / "bin/sh").unlink()
    file = box.states / box.id / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": "0.0.9"}))
    line = one_clear_line(box("start", box.id))
    assert "no such file or directory (its plan is lost: it was made by pyoci 0.0.9, and this is " in line


@in_a_container
def test_a_megabyte_in_every_string(box: Box) -> None:
    """A value that the kernel cannot take is an error with an end, one that it need not take is none."""
    long = "x" * (1 << 20)
    for place in ("hostname", "cwd", "env", "args", "mount", "source", "annotation", "root", "masked", "cgroupsPath"):
        id = box.new_id()
        box.write(id)
        config = json.loads((box.bundle / "config.json").read_text())
        match place:
            case "hostname":
                config["hostname"] = long
            case "cwd":
                config["process"]["cwd"] = "/" + long
            case "env":
                config["process"]["env"].append(f"A={long}")
            case "args":
                config["process"]["args"] = ["true", long]
            case "mount":
                config["mounts"].append({"destination": "/" + long, "type": "tmpfs", "source": "x"})
            case "source":
                config["mounts"].append({"destination": "/tmp", "source": "/" + long, "options": ["bind"]})
            case "annotation":
                config["annotations"] = {long: long}
            case "root":
                config["root"]["path"] = long
            case "masked":
                config["linux"]["maskedPaths"] = ["/" + long]
            case "cgroupsPath":
                config["linux"]["cgroupsPath"] = "/" + long
        (box.bundle / "config.json").write_text(json.dumps(config))
        done = box("run", "--bundle", str(box.bundle), id)
        if done.returncode:
            one_clear_line(done, done.returncode)
        assert not (box.states / id).exists(), place
        assert not processes_of(id)


@in_a_container
def test_ten_thousand_mounts(box: Box) -> None:
    """However many there are, few descriptors are open: every place is made, used and closed."""
    (box.rootfs / "m").mkdir()
    for index in range(10_000):
        box.config["mounts"].append({"destination": f"/m/{index}", "type": "tmpfs", "source": "x"})
    del box.process["rlimits"]
    box.process["args"] = ["sh", "-c", "grep -c ' /m/' /proc/mounts"]
    box.write()
    words = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *box.command("run", "--bundle", str(box.bundle), box.id)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "10000"), done.stderr[-1000:]


# ---- generated

TEXTS = st.text(max_size=4) | st.sampled_from(["", "/", "\0", "v1", "x86_64", "\ud800"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
STATE = State("a", "/bundle", "/bundle/rootfs").to_json()
HOST = Host().to_json()


@fuzz(150)
@given(st.dictionaries(st.sampled_from(sorted(STATE)), VALUES, max_size=3))
def test_states(changes: dict[str, Any]) -> None:
    try:
        State.from_json(STATE | changes)
    except ValueError as error:
        assert "\n" not in str(error)


@fuzz(150)
@given(st.dictionaries(st.sampled_from(sorted(HOST)), VALUES, max_size=3))
def test_hosts(changes: dict[str, Any]) -> None:
    """A host that can be read can be planned for, or is refused in words."""
    from pyoci.plan.container import PlanOptions, plan_container
    from pyoci.spec.load import load

    with tempfile.NamedTemporaryFile() as file:
        file.write(json.dumps(HOST | changes).encode())
        file.flush()
        try:
            host = read_host(file.name)
            plan_container(load(json.dumps(BASE).encode()), host, PlanOptions("a", "/bundle"))
        except PyociError as error:
            assert "\n" not in str(error)


@fuzz(150)
@given(st.dictionaries(st.sampled_from(["memory", "cpu", "pids", "devices", "unified", "rdma", "blockIO"]), VALUES))
def test_resources(document: dict[str, Any]) -> None:
    try:
        load_resources(json.dumps(document).encode(), "x")
    except PyociError as error:
        assert "\n" not in str(error)


@pytest.mark.skipif(not SECONDS, reason="PYOCI_FUZZ=SECONDS is not set")
def test_any_bytes_for_as_long_as_asked() -> None:
    """Bytes of a good document changed at random, through the whole of validate."""
    import random

    from pyoci.schema import examine

    good = (Path(__file__).parent / "data" / "config-everything.json").read_bytes()
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        data = bytearray(good)
        for _ in range(source.randint(1, 4)):
            place = source.randrange(len(data))
            data[place : place + source.randint(0, 3)] = source.randbytes(source.randint(0, 2))
        with contextlib.redirect_stderr(io.StringIO()):
            assert isinstance(examine(bytes(data)), list), seed
