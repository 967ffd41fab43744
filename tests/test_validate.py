"""`validate`: the schemas, the loader and the rules say the same; findings have their places."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from inspect import getclosurevars
from pathlib import Path
from typing import Any

import pytest
from generate import documents
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pyoci.__main__ import OPTIONS, START
from pyoci.commands.features import document as features
from pyoci.commands.spec import default
from pyoci.errors import ConfigError
from pyoci.jsonplaces import Places
from pyoci.jsontext import loads
from pyoci.schema import KINDS, Walk, examine, schema, validator, violations
from pyoci.spec import linux
from pyoci.spec.load import SPEC, load
from pyoci.spec.read import Report, Shape
from pyoci.state import State
from pyoci.state import document as state_document

CONFIG = schema("config")
GOOD: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "config-everything.json").read_bytes())
BASE: dict[str, Any] = json.loads(json.dumps(default(False)))


# ---- schemas


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_schemas(kind: str) -> None:
    Draft202012Validator.check_schema(schema(kind))


def described(node: Any, where: str, clause: str = "") -> Iterator[str]:
    """Properties without description, or without a clause around them."""
    clause = node.get("x-clause", clause)
    for name, inner in node.get("properties", {}).items():
        if "$ref" not in inner and ("description" not in inner or not (inner.get("x-clause") or clause)):
            yield f"{where}/{name}"
        yield from described(inner, f"{where}/{name}", clause)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from described(node[key], where, clause)


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_is_described(kind: str) -> None:
    root = schema(kind)
    assert not list(described(root, ""))
    for name, node in root.get("$defs", {}).items():
        assert not list(described(node, name, root["x-clause"]))


def schema_properties(walk: Walk, node: dict[str, Any], where: str = "") -> set[str]:
    node = walk.resolve(node)
    found: set[str] = set()
    for name, inner in node.get("properties", {}).items():
        found |= {f"{where}/{name}"} | schema_properties(walk, inner, f"{where}/{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            found |= schema_properties(walk, node[key], f"{where}/*")
    return found


def loader_properties(reader: Any, where: str = "") -> set[str]:
    if isinstance(reader, Shape):
        found: set[str] = set()
        for name, (_, inner) in reader.fields.items():
            found |= {f"{where}/{name}"} | loader_properties(inner, f"{where}/{name}")
        return found
    if reader is linux._offsets:
        return loader_properties(linux._OFFSET, f"{where}/*")
    shape = getclosurevars(reader).nonlocals.get("shape")
    return loader_properties(shape, f"{where}/*") if isinstance(shape, Shape) else set()


def test_the_schema_has_the_loaders_properties() -> None:
    assert schema_properties(Walk(CONFIG), CONFIG) == loader_properties(SPEC)


def test_required_is_required_by_both() -> None:
    def required(reader: Any, node: dict[str, Any], walk: Walk, where: str) -> None:
        node = walk.resolve(node)
        if isinstance(reader, Shape):
            more = {"args"} if where == "/process" else set()  # by a rule, and so with a message of its own
            assert set(node.get("required", ())) == set(reader.required) | more, where
            for name, (_, inner) in reader.fields.items():
                required(inner, node["properties"][name], walk, f"{where}/{name}")
            return
        shape = getclosurevars(reader).nonlocals.get("shape") if hasattr(reader, "__closure__") else None
        if isinstance(shape, Shape):
            required(shape, node.get("items") or node["additionalProperties"], walk, f"{where}/*")

    required(SPEC, CONFIG, Walk(CONFIG), "")


def keys(value: object, where: str = "") -> set[str]:
    if not isinstance(value, dict):
        return set()
    return {f"{where}/{name}" for name in value}.union(*(keys(item, f"{where}/{name}") for name, item in value.items()))


def test_the_features_are_the_schemas() -> None:
    shown = features()
    validator(schema("features")).validate(shown)
    shown["annotations"] = {}
    root = schema("features")
    known = schema_properties(Walk(root), root)
    assert keys(shown) <= known
    assert known == keys(shown)


@pytest.mark.parametrize("status", ["creating", "created", "running", "paused", "stopped"])
def test_the_state_is_the_schemas(status: str) -> None:
    root = schema("state")
    state = State("a", "/bundle", "/bundle/rootfs", pid=7, oci_version="1.3.0", annotations={"a": "b"})
    shown = state_document(state, status)
    validator(root).validate(shown)
    assert set(shown) == set(root["properties"])
    if status in ("created", "running"):
        del shown["pid"]
        assert list(validator(root).iter_errors(shown))


# ---- the schema and create


def accepts(data: bytes) -> bool:
    try:
        load(data)
    except ConfigError:
        return False
    return True


def judge(value: object) -> None:
    """What the loader's tables refuse the schema refuses; what the schema refuses create refuses; and so validate."""
    data = json.dumps(value).encode()
    accepted = accepts(data)
    document = loads(data)
    report = Report()
    SPEC(document, "", report)
    broken = violations(CONFIG, Walk(CONFIG).canonical(document, CONFIG))
    if any("NUL" not in each.message and "surrogate" not in each.message for each in report.problems):
        assert broken, [str(each) for each in report.problems]
    if broken:
        assert not accepted, broken
    findings = examine(data)
    assert accepted == (not any(each.level == "error" for each in findings)), [str(each) for each in findings]
    for each in findings:
        assert each.line >= 1 and each.column >= 1
        assert "\n" not in str(each)


@settings(max_examples=150, deadline=None)
@given(documents())
def test_what_create_accepts_validate_accepts(document: dict[str, Any]) -> None:
    judge(document)


STRINGS = st.text(max_size=4) | st.sampled_from(["", "/", "\0", "bind", "pid", "a=b", "rwm", "2MB", "0-3", "\ud800"])
NUMBERS = st.sampled_from([0, -1, 1, 7, 511, 4096, 2**32 - 1, 2**32, 2**63, 2**64, 10**100, 0.5, 1.0])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | STRINGS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(STRINGS, inner, max_size=2),
    max_leaves=4,
)


def places_in(value: object) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = [value] if isinstance(value, (dict, list)) and value else []
    return here + [place for item in inner for place in places_in(item)]


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(draw(st.sampled_from([GOOD, BASE]) | documents()))  # parts of drawn values are shared
    for _ in range(draw(st.integers(1, 3))):
        places = places_in(document)
        place = places[draw(st.integers(0, len(places) - 1))]
        if isinstance(place, dict):
            name = draw(st.sampled_from(sorted(place)))
            what = draw(st.integers(0, 2))
            if what == 0:
                del place[name]
            elif what == 1:
                place[name] = draw(VALUES)
            else:
                place[name.swapcase()] = place.pop(name)
        else:
            place[draw(st.integers(0, len(place) - 1))] = draw(VALUES)
    return document


@settings(max_examples=250, deadline=None)
@given(damaged())
def test_what_create_refuses_validate_refuses(document: Any) -> None:
    judge(document)


# ---- places


def test_positions() -> None:
    text = '{\n  "a": [1, {"b/c": "x\\"}y"},\n   []],\n "d\\u0065": {}\n}'
    places = Places(text)
    assert places.find("/a") == (2, 3)
    assert places.find("/a/0") == (2, 9)
    assert places.find("/a/1/b~1c") == (2, 13)
    assert places.find("/a/1/b~1c/missing") == (2, 13)
    assert places.find("/a/2") == (3, 4)
    assert places.find("/de") == (4, 2)
    assert places.find("") == (1, 1)
    assert not places.duplicates


@settings(max_examples=100, deadline=None)
@given(VALUES, st.sampled_from([None, 1]))
def test_every_value_has_a_position(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    places = Places(text)

    def look(item: object, pointer: str, named: bool) -> None:
        line, column = places.find(pointer)
        rest = text.splitlines()[line - 1][column - 1 :]
        assert rest.startswith('"' if named else json.dumps(item)[:1])
        if isinstance(item, list):
            for index, inner in enumerate(item):
                look(inner, f"{pointer}/{index}", False)
        elif isinstance(item, dict):
            for name, inner in item.items():
                look(inner, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", True)

    look(value, "", False)


# ---- the command


def ask(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    package = Path(str(sys.modules["pyoci"].__file__)).parent.parent
    command = [sys.executable, *OPTIONS, "-c", START, str(package), "", "validate", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **more)


def test_all_at_once_with_places(tmp_path: Path) -> None:
    document = copy.deepcopy(BASE)
    document["process"]["rlimits"][0]["type"] = "RLIMIT_NOFILES"
    document["process"]["oomScoreAdj"] = 5000
    document["linux"]["maskedPaht"] = []
    del document["mounts"][0]["destination"]
    (tmp_path / "config.json").write_text(json.dumps(document, indent=1))
    done = ask(str(tmp_path), "--format", "json")
    assert done.returncode == 1
    shown = json.loads(done.stdout)
    assert not shown["valid"]
    by_pointer = {each["pointer"]: each for each in shown["findings"]}
    limit = by_pointer["/process/rlimits/0/type"]
    assert limit["hint"] == "RLIMIT_NOFILE"
    assert limit["clause"] == "config.md#posix-process"
    line = (tmp_path / "config.json").read_text().splitlines()[limit["line"] - 1]
    assert line[limit["column"] - 1 :].startswith('"type": "RLIMIT_NOFILES"')
    assert by_pointer["/process/oomScoreAdj"]["allowed"] == "an integer from -1000 to 1000"
    assert by_pointer["/process/oomScoreAdj"]["found"] == "5000"
    assert by_pointer["/mounts/0/destination"]["found"] == "nothing"
    unknown = by_pointer["/linux/maskedPaht"]
    assert (unknown["level"], unknown["hint"]) == ("warning", "maskedPaths")
    text = ask(str(tmp_path / "config.json"))
    assert text.returncode == 1
    assert len(text.stdout.splitlines()) == len(shown["findings"])
    assert len(text.stderr.splitlines()) == 1


def test_lines_say_nothing_twice(tmp_path: Path) -> None:
    document = copy.deepcopy(BASE)
    document["ociVersion"] = "1.0"
    document["process"]["oomScoreAdj"] = 5000
    document["process"]["args"] = "sh"
    document["process"]["capabilities"]["bounding"] = ["CAP_NET_RAWW"]
    document["linux"]["namespaces"][0]["type"] = "net"
    (tmp_path / "config.json").write_text(json.dumps(document))
    lines = {line.split(": ")[2]: line.split(": ", 3)[3] for line in ask(str(tmp_path)).stdout.splitlines()}
    assert lines["/ociVersion"].startswith('"1.0" is not a SemVer 2.0.0 version (config.md')
    assert lines["/process/oomScoreAdj"].startswith("must be an integer from -1000 to 1000, not 5000 (config.md")
    found = '[found: "sh"] [allowed: an array of strings, at least 1]'
    assert lines["/process/args"].startswith(f"must be an array of strings, not a string {found} (config.md")
    assert '"CAP_NET_RAWW" is no capability' in lines["/process/capabilities/bounding/0"]
    assert 'time; did you mean "network"? (config-linux.md' in lines["/linux/namespaces/0/type"]


def test_unknown_names_are_errors_to_the_strict(tmp_path: Path) -> None:
    document = BASE | {"linus": {}, "windows": {}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    lax, strict = ask(cwd=tmp_path), ask("--strict", cwd=tmp_path)
    assert (lax.returncode, strict.returncode) == (0, 1)
    assert 'did you mean "linux"?' in lax.stdout
    assert "/linus" in strict.stdout and "error: /linus" in strict.stdout
    assert "warning: /windows: is of another platform" in strict.stdout


@pytest.mark.parametrize("text", ["[]", "5", "null", '""'])
def test_a_document_that_is_none_is_named_as_a_whole(tmp_path: Path, text: str) -> None:
    """RFC 6901: the pointer of a document is the empty string, and "/" is that of its member ""."""
    (tmp_path / "config.json").write_text(text)
    shown = json.loads(ask("--format", "json", cwd=tmp_path).stdout)["findings"]
    assert [(each["pointer"], each["line"], each["column"]) for each in shown] == [("", 1, 1)]
    assert "config.json:1:1: error: (whole document): must be an object" in ask(cwd=tmp_path).stdout
    with pytest.raises(ConfigError, match=r"config.json: \(whole document\): must be an object"):
        load(text.encode())


def test_every_duplicate_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1,\n"a": {"b": 1, "b": 2},\n"c": 1}')
    done = ask(str(tmp_path))
    assert done.returncode == 1
    assert [line.split(": ")[0].rpartition("config.json:")[2] for line in done.stdout.splitlines()] == ["2:1", "2:15"]


def test_what_this_host_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    document = copy.deepcopy(BASE)
    document["mounts"].append({"destination": "/a", "source": "/no/such/source", "options": ["bind"]})
    document["mounts"].append({"destination": "/b", "type": "nosuchfs", "source": "x"})
    document["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts"}, {"type": "ipc", "path": "/no/such/ns"}]
    document["hooks"] = {"poststop": [{"path": "/no/such/hook"}]}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert ask(str(tmp_path)).returncode == 0
    done = ask(str(tmp_path), "--host")
    assert done.returncode == 1, done
    for words in ("/source: /no/such/source does not", "nosuchfs", "/no/such/ns does not", "/no/such/hook cannot"):
        assert words in done.stdout, words
    # create and delete succeed without it (runtime.md#lifecycle)
    assert "warning: /hooks/poststop/0/path: /no/such/hook cannot be executed" in done.stdout


# (what this host cannot do, where it is said, what is said)
TOO_MUCH: list[tuple[str, str, object]] = [
    ("/process/rlimits/0/hard", "is more than /proc/sys/fs/nr_open", {
        "type": "RLIMIT_NOFILE", "soft": 0, "hard": 2**63}),
    ("/linux/resources/cpu/cpus", "processors that are not there", {"cpu": {"cpus": "0,1000"}}),
    ("/linux/resources/cpu/mems", "memory nodes that are not there", {"cpu": {"mems": "1000"}}),
    ("/linux/resources/blockIO/throttleReadBpsDevice/0", "no block device 4000:1", {
        "blockIO": {"throttleReadBpsDevice": [{"major": 4000, "minor": 1, "rate": 1}]}}),
    ("/linux/timeOffsets/monotonic/secs", "before the start", {"monotonic": {"secs": -(10**9)}}),
    ("/linux/timeOffsets/boottime/secs", "146 years after", {"boottime": {"secs": 2**62}}),
    ("/linux/memoryPolicy/nodes", "no memory node that is there", {"mode": "MPOL_BIND", "nodes": "1000"}),
]  # fmt: skip


@pytest.mark.parametrize(("pointer", "words", "value"), TOO_MUCH, ids=[row[0] for row in TOO_MUCH])
def test_numbers_that_this_host_has_not(tmp_path: Path, pointer: str, words: str, value: Any) -> None:
    """They are right in themselves; create fails with them (tests/test_error_rules.py), and --host says so before."""
    (tmp_path / "rootfs").mkdir()
    document = copy.deepcopy(BASE)
    if "rlimits" in pointer:
        document["process"]["rlimits"] = [value]
    elif "resources" in pointer:
        document["linux"]["resources"] |= value
    else:
        document["linux"]["namespaces"].append({"type": "time"})
        document["linux"][pointer.split("/")[2]] = value
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert ask(str(tmp_path)).returncode == 0
    done = ask(str(tmp_path), "--host")
    (said,) = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert done.returncode == 1 and f"error: {pointer}: " in said and words in said, said


def test_a_filter_that_libseccomp_does_not_compile(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    document = copy.deepcopy(BASE)
    document["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert ask(str(tmp_path)).returncode == 0
    said = ask(str(tmp_path), "--host").stdout
    assert "/linux/seccomp/architectures/0: SCMP_ARCH_S390X has another byte order" in said


def test_a_source_is_that_of_bind_mounts(tmp_path: Path) -> None:
    """Not of a file system whose dummy is the relative source of a bind mount, nor of a remount."""
    (tmp_path / "rootfs").mkdir()
    document = copy.deepcopy(BASE)
    document["mounts"].append({"destination": "/proc", "source": "proc", "options": ["remount", "bind", "ro"]})
    document["mounts"].append({"destination": "/x", "source": "tmpfs", "options": ["bind"]})
    (tmp_path / "config.json").write_text(json.dumps(document))
    said = [line for line in ask(str(tmp_path), "--host").stdout.splitlines() if "does not exist" in line]
    assert len(said) == 1 and f"/mounts/{len(document['mounts']) - 1}/source: " in said[0]


def test_a_capability_that_nobody_knows_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    document = copy.deepcopy(BASE)
    document["process"]["capabilities"] = {"bounding": ["CAP_NO_SUCH"]}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert ask(str(tmp_path), "--host").stdout.count("warning") == 2  # the finding, and "1 warning"


def test_security_modules_of_this_host_are_judged_as_create_judges_them(tmp_path: Path) -> None:
    """Each problem once, in the order of the lines; and none where create has none."""
    config = default(False)
    (tmp_path / "rootfs").mkdir()
    config["process"]["apparmorProfile"] = "unconfined"
    config["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0"
    (tmp_path / "config.json").write_text(json.dumps(config, indent=1))
    modules = Path("/sys/module/apparmor/parameters/enabled"), Path("/sys/fs/selinux/enforce")
    if modules[1].exists() or (modules[0].exists() and modules[0].read_text().startswith("Y")):
        pytest.skip("this host has a security module: tests/test_apparmor.py and test_selinux.py ask it")
    done = ask(str(tmp_path), "--host")
    assert (done.returncode, done.stderr) == (0, "")
    assert "/linux/mountLabel: is ignored" in done.stdout and "apparmorProfile" not in done.stdout

    config["process"] |= {"apparmorProfile": "some", "selinuxLabel": "some"}
    config["linux"]["intelRdt"] = {"closID": "some"}
    (tmp_path / "config.json").write_text(json.dumps(config, indent=1))
    done = ask(str(tmp_path), "--host")
    assert done.returncode == 1
    lines = [int(line.split(":")[1]) for line in done.stdout.splitlines()]
    assert lines == sorted(lines)
    for pointer in ("/process/apparmorProfile", "/process/selinuxLabel"):
        assert done.stdout.count(f": error: {pointer}: ") == 1, done.stdout
    if not any(" - resctrl " in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
        assert done.stdout.count(": error: /linux/intelRdt: ") == 1, done.stdout
