"""spec.load: every property arrives where it belongs, and nothing but a ConfigError comes out of a bad document."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pyoci
from pyoci.errors import ConfigError
from pyoci.spec import linux, types
from pyoci.spec import load as loading
from pyoci.spec.load import load, load_process
from pyoci.spec.read import Shape

EVERYTHING = (Path(__file__).parent / "data" / "config-everything.json").read_bytes()
MINIMAL: dict[str, Any] = {"ociVersion": "1.0.0", "root": {"path": "rootfs"}}


def text(document: object) -> bytes:
    return json.dumps(document).encode()


def problems(data: bytes) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(data)
    return {problem.pointer: problem.message for problem in caught.value.problems}


def test_everything_but_the_unsupported() -> None:
    document = json.loads(EVERYTHING)
    del document["linux"]["seccomp"]["listenerPath"], document["linux"]["seccomp"]["listenerMetadata"]
    spec = load(text(document))
    assert spec.oci_version == "1.3.0"
    assert spec.root == types.Root("rootfs", True)
    assert (spec.hostname, spec.domainname) == ("ring", "example.org")
    assert spec.mounts == (
        types.Mount("/proc", "proc", "proc"),
        types.Mount("/data", "none", "/srv", ("rbind", "ro", "rprivate")),
    )
    assert spec.annotations == {"com.example/key~1": "", "org.example.a": "value"}
    hook = types.Hook("/usr/bin/hook", ("hook", "one"), ("A=b",), 5)
    assert spec.hooks == types.Hooks((hook,), (hook,), (hook,), (hook,), (hook,), (hook,), document["hooks"])
    names = ("CAP_CHOWN", "CAP_NOT_YET_KNOWN")
    assert spec.process == types.Process(
        cwd="/",
        args=("/bin/sh", "-c", "true"),
        env=("PATH=/bin", "EMPTY=", "A=b=c"),
        user=types.User(1, 2, 0o77, (5, 6)),
        terminal=True,
        console_size=types.ConsoleSize(24, 80),
        capabilities=types.Capabilities(names, names, names, names, names),
        rlimits=(types.Rlimit("RLIMIT_NOFILE", 1024, 2**64 - 1),),
        no_new_privileges=True,
        oom_score_adj=-5,
    )
    assert spec.linux.namespaces[:3] == (
        types.Namespace("pid"),
        types.Namespace("network", "/run/netns/blue"),
        types.Namespace("mount"),
    )
    assert spec.linux.uid_mappings == (types.IdMapping(0, 100000, 1000), types.IdMapping(1000, 200000, 1))
    assert spec.linux.time_offsets == {"monotonic": (-10, 5), "boottime": (172800, 0)}
    # 8630 is 0o20666: engines write st_mode
    assert spec.linux.devices == (
        types.Device("/dev/fuse", "c", 10, 229, 0o666, 0, 7),
        types.Device("/run/pipe", "p"),
    )
    assert spec.linux.cgroups_path == "/pyoci/one"
    assert spec.linux.sysctl["kernel/shmmax"] == "1000"
    assert spec.linux.rootfs_propagation == "rslave"
    assert (spec.linux.masked_paths, spec.linux.readonly_paths) == (("/proc/kcore",), ("/proc/sys",))
    throttle = (types.ThrottleDevice(8, 0, 600),)
    assert spec.linux.resources == types.Resources(
        devices=(types.DeviceRule(False), types.DeviceRule(True, "c", 10, None, "rw")),
        memory=types.Memory(1000000, 500000, 2000000, -1, -1, 60, False, True, True),
        cpu=types.Cpu(1024, 50000, 1000, 100000, 1000, 100000, "0-1,3", "0", 0),
        pids=types.Pids(0),
        block_io=types.BlockIO(10, 1000, (types.WeightDevice(8, 0, 500, 300),), *[throttle] * 4),
        hugepage_limits=(types.HugepageLimit("2MB", 2**63), types.HugepageLimit("64KB", 0)),
        unified={"memory.high": "1000000", "cgroup.max.depth": "3"},
    )
    assert spec.linux.seccomp == types.Seccomp(
        default_action="SCMP_ACT_ERRNO",
        default_errno_ret=38,
        architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X32"),
        flags=("SECCOMP_FILTER_FLAG_LOG",),
        syscalls=(
            types.SyscallRule(("read", "write"), "SCMP_ACT_ALLOW"),
            types.SyscallRule(
                ("personality",), "SCMP_ACT_TRACE", 7, (types.SyscallArg(0, 2**64 - 1, 1, "SCMP_CMP_MASKED_EQ"),)
            ),
        ),
        raw=document["linux"]["seccomp"],
    )


def test_a_listener_nobody_asks_for_is_ignored() -> None:
    seccomp = load(EVERYTHING).linux.seccomp
    assert seccomp is not None
    assert (seccomp.listener_path, seccomp.listener_metadata) == ("/run/listener.sock", "none of our business")


def test_the_least() -> None:
    assert load(text(MINIMAL)) == types.Spec("1.0.0", types.Root("rootfs"))


def test_null_is_absent() -> None:
    everything_null = {name: None for name in loading.SPEC.fields if name not in MINIMAL}
    assert load(text(MINIMAL | everything_null)) == load(text(MINIMAL))
    document = MINIMAL | {"linux": dict.fromkeys(linux.LINUX.fields)}
    document["process"] = dict.fromkeys(loading.PROCESS.fields) | {"cwd": "/", "args": ["true"]}
    document["annotations"] = {"a": None}
    spec = load(text(document))
    assert spec.linux == types.Linux()
    assert spec.process == types.Process("/", ("true",))
    assert spec.annotations == {}
    assert problems(text(MINIMAL | {"root": None})) == {"/root": "is required, and missing"}


def test_empty_texts_that_mean_absent() -> None:
    document = MINIMAL | {
        "hostname": "",
        "domainname": "",
        "linux": {"cgroupsPath": "", "namespaces": [{"type": "uts"}]},
    }
    document["linux"]["namespaces"][0]["path"] = ""
    spec = load(text(document))
    assert (spec.hostname, spec.domainname, spec.linux.cgroups_path) == (None, None, None)
    assert spec.linux.namespaces == (types.Namespace("uts"),)


def shapes(shape: Shape, seen: set[int]) -> list[Shape]:
    """Every shape that can be reached from one, through the readers' closures too."""
    found = [shape]
    for _, reader in shape.fields.values():
        inner = [reader, *(cell.cell_contents for cell in getattr(reader, "__closure__", None) or ())]
        for each in inner:
            if isinstance(each, Shape) and id(each) not in seen:
                seen.add(id(each))
                found += shapes(each, seen)
    return found


def test_tables_name_attributes_that_exist_and_all_of_them() -> None:
    filled_by_finish = {"raw"}
    checked = 0
    for shape in shapes(loading.SPEC, set()):
        if isinstance(shape.make, type) and issubclass(shape.make, types.Value):
            attributes = {attribute for attribute, _ in shape.fields.values()}
            assert attributes == set(shape.make.__slots__) - filled_by_finish, shape.make
            assert set(shape.required) <= set(shape.fields)
            checked += 1
        assert shape.clause.partition("#")[0] in ("config.md", "config-linux.md")
    assert checked > 20


def test_other_platforms_and_the_future_are_ignored() -> None:
    document = MINIMAL | {"windows": {"x": "\x00"}, "vm": 5, "future": [{"a": 1.5}], "": {"~/": None}}
    assert load(text(document)) == load(text(MINIMAL))


def test_names_in_another_case_are_taken_where_the_exact_one_is_absent() -> None:
    document: dict[str, Any] = MINIMAL | {"HOSTNAME": "one", "Linux": {"Namespaces": [{"Type": "uts"}]}}
    assert load(text(document)).hostname == "one"
    document["hostname"] = "two"
    assert load(text(document)).hostname == "two"
    assert load(text({"OCIVersion": "1.0.0", "Root": {"Path": "x"}})).root == types.Root("x")
    document = MINIMAL | {"linux": {"resources": {"CPU": {"SHARES": 5}}}}
    resources = load(text(document)).linux.resources
    assert resources is not None
    assert resources.cpu == types.Cpu(5)
    devices = MINIMAL | {"linux": {"devices": [{"path": "/dev/x", "type": "c", "Major": 1, "Minor": 2}]}}
    assert load(text(devices)).linux.devices == (types.Device("/dev/x", "c", 1, 2),)


@pytest.mark.parametrize("data", [b"[]", b"1", b'"x"', b"null", b"true", b"1.5"])
def test_a_document_that_is_no_object(data: bytes) -> None:
    assert list(problems(data)) == [""]
    with pytest.raises(ConfigError):
        load_process(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1, column 1: the document is empty"),
        (b'{"ociVersion": "1.0.0",\n}', "line 2, column 1"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": "\xff"}', "line 1, column 8: byte 0xff is not UTF-8"),
        (b'{"linux": NaN}', "line 1, column 11: NaN is not a JSON value"),
        (b'{"linux": {"sysctl": {}, "sysctl": {}}}', '/linux: not JSON: name "sysctl" occurs twice'),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(data)
    assert message in str(caught.value)
    assert str(caught.value).startswith("config.json: ")


WRONG_TYPES: tuple[object, ...] = (True, 1, -1, 1.5, 2**70, "text", "\0", [], {}, [None], [[]], {"a": None}, {"a": {}})


def places(value: object, pointer: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [pointer]
    if isinstance(value, dict):
        for name, item in value.items():
            found += places(item, (*pointer, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += places(item, (*pointer, index))
    return found


def test_wrong_types_everywhere() -> None:
    """At every place every type: load returns a Spec or raises ConfigError with pointers to what is, or misses."""
    document = json.loads(EVERYTHING)
    for place in places(document)[1:]:
        for wrong in (*WRONG_TYPES, None):
            broken = copy.deepcopy(document)
            parent: Any = broken
            for step in place[:-1]:
                parent = parent[step]
            parent[place[-1]] = wrong
            try:
                assert isinstance(load(text(broken)), types.Spec)
            except ConfigError as error:
                for problem in error.problems:
                    assert problem.clause, str(problem)
                    missing = problem.pointer.rpartition("/")[0]
                    assert exists(broken, problem.pointer) or exists(broken, missing), str(problem)


def exists(document: Any, pointer: str) -> bool:
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        try:
            document = document[int(name)] if isinstance(document, list) else document[name]
        except (LookupError, TypeError, ValueError):
            return False
    return True


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "must be an integer, not a boolean"),
        ("5", "must be an integer, not a string"),
        (5.0, "must be an integer without fraction or exponent, not 5.0"),
        (-1, "must be an integer from 0 to 4294967295, not -1"),
        (2**32, "must be an integer from 0 to 4294967295, not 4294967296"),
        (10**4000, "must be an integer from 0 to 4294967295, not a number of more than 30 digits"),
        ([], "must be an integer, not an array"),
        ({}, "must be an integer, not an object"),
    ],
)
def test_integers_are_integers_in_range(value: object, message: str) -> None:
    document = MINIMAL | {"process": {"cwd": "/", "args": ["x"], "user": {"uid": value, "gid": 0}}}
    assert problems(text(document)) == {"/process/user/uid": message}


def test_integer_of_any_length() -> None:
    data = b'{"ociVersion": "1.0.0", "root": {"path": "x"}, "linux": {"resources": {"pids": {"limit": 1%s}}}}'
    assert problems(data % (b"0" * 5000)) == {
        "/linux/resources/pids/limit": "must be an integer from -9223372036854775808 to 9223372036854775807, "
        "not a number of more than 30 digits"
    }


@pytest.mark.parametrize("limit", [-(2**63), 2**63 - 1])
def test_the_ends_of_int64(limit: int) -> None:
    document = MINIMAL | {"linux": {"timeOffsets": {"monotonic": {"secs": limit}}, "namespaces": [{"type": "time"}]}}
    assert load(text(document)).linux.time_offsets == {"monotonic": (limit, 0)}
    document["linux"]["timeOffsets"]["monotonic"]["secs"] += 1 if limit > 0 else -1
    assert list(problems(text(document))) == ["/linux/timeOffsets/monotonic/secs"]


@pytest.mark.parametrize(
    ("escaped", "message"),
    [(b"\\u0000", "must not contain NUL"), (b"\\ud800", "surrogate"), (b"\\udfff x", "surrogate")],
)
def test_strings_the_kernel_cannot_take(escaped: bytes, message: str) -> None:
    data = b"""{"ociVersion": "1.0.0", "root": {"path": "a%(x)s"}, "annotations": {"k%(x)s": "v", "l": "%(x)s"},
        "mounts": [{"destination": "/a", "type": "b", "options": ["ro", "%(x)s"]}], "unknown": "%(x)s",
        "linux": {"sysctl": {"%(x)s": "1"}, "namespaces": [{"type": "pid", "path": "/%(x)s"}]}}"""
    found = problems(data % {b"x": escaped})
    assert set(found) == {
        "/root/path", "/annotations", "/annotations/l", "/mounts/0/options/1", "/linux/sysctl",
        "/linux/namespaces/0/path",
    }  # fmt: skip
    assert all(message in each for each in found.values())


def test_escapes_of_good_characters() -> None:
    data = b'{"ociVersion": "1.0.0", "root": {"path": "\\u00e9\\ud83d\\ude00"}}'
    assert load(data).root == types.Root("\u00e9\U0001f600")


def test_long_strings() -> None:
    long = "x" * 1_000_000
    assert load(text(MINIMAL | {"annotations": {"a": long}})).annotations["a"] == long
    assert len(problems(text(MINIMAL | {"ociVersion": long}))["/ociVersion"]) < 300


def test_a_misspelling_is_named_where_something_is_missing() -> None:
    found = problems(text({"ociversoin": "1.0.0", "root": {"pth": "x", "readonly": True}}))
    assert found == {
        "/ociVersion": 'is required, and missing; is "ociversoin" a misspelling of it?',
        "/root/path": 'is required, and missing; is "pth" a misspelling of it?',
    }


def test_pointers_are_escaped() -> None:
    document = MINIMAL | {"annotations": {"a/b~c": 1, "a\nb\ud800": 2}}
    assert list(problems(text(document))) == ["/annotations/a~1b~0c", "/annotations"]
    document = MINIMAL | {"annotations": {"a\nb": 2}}
    assert list(problems(text(document))) == ["/annotations/a\\nb"]
    assert "\n" not in next(iter(problems(b'{"a": {"b\\n": {"c": 1, "c": 2}}}')))


def test_every_problem_at_once() -> None:
    document: dict[str, Any] = {
        "ociVersion": "2.0.0",
        "root": {"path": 5},
        "process": {"cwd": "relative", "args": [], "env": ["A=b", 7, "novalue"]},
        "mounts": [{"type": "tmpfs"}, "mount", {"destination": "/x", "options": ["bind"]}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}], "resources": {"pids": {"limit": -2}}},
    }
    found = problems(text(document))
    assert set(found) == {
        "/ociVersion", "/root/path", "/process/cwd", "/process/args", "/process/env/1", "/process/env/2",
        "/mounts/0/destination", "/mounts/1", "/mounts/2/source", "/linux/namespaces/1/type",
        "/linux/resources/pids/limit",
    }  # fmt: skip


def test_nothing_is_said_of_what_could_not_be_read() -> None:
    document = MINIMAL | {"hostname": "x", "linux": {"namespaces": "uts", "sysctl": {"net.x": "1"}}}
    assert list(problems(text(document))) == ["/linux/namespaces"]
    for pointer, part in (
        ("/process", []),
        ("/process/rlimits/0/hard", {"cwd": "/", "args": ["x"], "rlimits": [{"type": "RLIMIT_AS", "soft": 5}]}),
    ):
        assert list(problems(text(MINIMAL | {"process": part}))) == [pointer]
    memory = {"limit": "1", "swap": 5}
    document = MINIMAL | {"linux": {"resources": {"memory": memory}}, "mounts": [{"destination": "/", "options": 1}]}
    assert set(problems(text(document))) == {"/mounts/0/options", "/linux/resources/memory/limit"}


def test_a_million_mistakes_take_no_time() -> None:
    document = MINIMAL | {"process": {"cwd": "/", "args": ["x"], "env": ["x", 5] * 100_000}}
    data = text(document)
    before = time.process_time()
    assert 1000 <= len(problems(data)) <= 2000
    assert time.process_time() - before < 5


def test_process_json() -> None:
    process = load_process(b'{"cwd": "/", "args": ["true"], "user": {"uid": 1, "gid": 2}}')
    assert process == types.Process("/", ("true",), user=types.User(1, 2))


def test_process_json_has_pointers_of_its_own() -> None:
    with pytest.raises(ConfigError) as caught:
        load_process(b'{"args": [], "env": [0], "rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}')
    assert [each.pointer for each in caught.value.problems] == ["/env/0", "/cwd", "/args", "/rlimits/0/type"]
    assert str(caught.value).startswith("process.json: ")


def test_process_json_is_for_a_container() -> None:
    spec = load(EVERYTHING)
    assert load_process(b'{"cwd": "/", "args": ["x"], "user": {"uid": 1000, "gid": 999}}', spec).user.uid == 1000
    with pytest.raises(ConfigError) as caught:
        load_process(b'{"cwd": "/", "args": ["x"], "user": {"uid": 1001, "gid": 0, "additionalGids": [0, 1000]}}', spec)
    assert [each.pointer for each in caught.value.problems] == ["/user/uid", "/user/additionalGids/1"]


def test_loading_imports_little() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "from pyoci.spec.load import load\n"
        "load(open(sys.argv[2], 'rb').read())\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('pyoci')))\n"
    )
    data = Path(__file__).parent / "data" / "config-everything.json"
    top = Path(pyoci.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(top), str(data)], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {"__future__", "_json"}


def test_names_that_differ_in_case_are_the_same_to_later_commands() -> None:
    """What is kept as JSON has exact names: rules, the planner and hooks look for nothing else."""
    hook = {"PATH": "/bin/true", "Timeout": 3}
    linux_part = {"memoryPolicy": {"MODE": "MPOL_BIND", "nodes": "0"}, "resources": {"rdma": {"x": {"hcahandles": 1}}}}
    spec = load(text(MINIMAL | {"hooks": {"PostStop": [hook]}, "linux": linux_part}))
    assert spec.hooks.raw == {"poststop": [{"path": "/bin/true", "timeout": 3}]}
    assert spec.linux.memory_policy == {"mode": "MPOL_BIND", "nodes": "0"}
    assert spec.linux.resources is not None and spec.linux.resources.rdma == {"x": {"hcaHandles": 1}}
    document = MINIMAL | {"linux": {"personality": {"Domain": "NOTHING"}}}
    assert list(problems(text(document))) == ["/linux/personality/domain"]
