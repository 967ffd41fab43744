"""config.json (or process.json) bytes to a `Spec` (or `Process`) that nothing is known to be wrong with.

The tables below are the specification's properties.  Those of other platforms (`windows`, `process.commandLine`, ...)
are unknown here, and ignored as such.
"""

from __future__ import annotations

from pyoci import jsontext
from pyoci.errors import ConfigError, Problem
from pyoci.spec import types as t
from pyoci.spec.linux import ID_MAPPINGS, LINUX
from pyoci.spec.read import (
    INT32,
    INT64,
    UINT32,
    UINT64,
    Report,
    Shape,
    flag,
    integer,
    integers,
    objects,
    printable,
    text,
    text_map,
    text_or_none,
    texts,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _mounted_at_root(made: object, value: dict[str, object], where: str, report: Report) -> None:
    """config.md#mounts: a relative destination is relative to "/"."""
    if isinstance(made, t.Mount) and made.destination and made.destination[0] != "/":
        made.destination = "/" + made.destination


def _keep_hooks(made: object, value: dict[str, object], where: str, report: Report) -> None:
    if isinstance(made, t.Hooks):
        made.raw = _respelled(value, HOOKS.folded)


def _respelled(value: dict[str, object], hook_kinds: dict[str, str]) -> dict[str, object]:
    """The hooks as later commands want them: under their exact names."""
    if not hook_kinds and all(
        isinstance(hook, dict) and _HOOK.fields.keys() >= hook.keys()
        for listed in value.values()
        if isinstance(listed, list)
        for hook in listed
    ):
        return value
    kinds = {name.lower(): name for name in HOOKS.fields}
    parts = {name.lower(): name for name in _HOOK.fields}
    made: dict[str, object] = {}
    for kind, listed in value.items():
        exact = kinds.get(kind.lower(), kind)
        if isinstance(listed, list) and (kind == exact or value.get(exact) is None):
            made[exact] = [
                {
                    right: item
                    for name, item in hook.items()
                    if (right := parts.get(name.lower(), name)) == name or hook.get(right) is None
                }
                for hook in listed
                if isinstance(hook, dict)
            ]
    return made


_uint32 = integer(UINT32)
_uint64 = integer(UINT64)

ROOT = Shape(t.Root, "config.md#root", {"path": ("path", text), "readonly": ("readonly", flag)}, ("path",))

MOUNTS = objects(
    Shape(
        t.Mount,
        "config.md#mounts",
        {
            "destination": ("destination", text),
            "type": ("type", text),
            "source": ("source", text),
            "options": ("options", texts),
            "uidMappings": ("uid_mappings", ID_MAPPINGS),
            "gidMappings": ("gid_mappings", ID_MAPPINGS),
        },
        ("destination",),
        _mounted_at_root,
    )
)

_HOOK = Shape(
    t.Hook,
    "config.md#posix-platform-hooks",
    {
        "path": ("path", text),
        "args": ("args", texts),
        "env": ("env", texts),
        "timeout": ("timeout", integer(INT64)),
    },
    ("path",),
)
_HOOK_LIST = objects(_HOOK)

HOOKS = Shape(
    t.Hooks,
    "config.md#posix-platform-hooks",
    {
        "prestart": ("prestart", _HOOK_LIST),
        "createRuntime": ("create_runtime", _HOOK_LIST),
        "createContainer": ("create_container", _HOOK_LIST),
        "startContainer": ("start_container", _HOOK_LIST),
        "poststart": ("poststart", _HOOK_LIST),
        "poststop": ("poststop", _HOOK_LIST),
    },
    finish=_keep_hooks,
)

PROCESS = Shape(
    t.Process,
    "config.md#process",
    {
        "terminal": ("terminal", flag),
        "consoleSize": (
            "console_size",
            Shape(
                t.ConsoleSize,
                "config.md#process",
                {"height": ("height", _uint64), "width": ("width", _uint64)},
                ("height", "width"),
            ),
        ),
        "cwd": ("cwd", text),
        "env": ("env", texts),
        "args": ("args", texts),
        "user": (
            "user",
            Shape(
                t.User,
                "config.md#posix-platform-user",
                {
                    "uid": ("uid", _uint32),
                    "gid": ("gid", _uint32),
                    "umask": ("umask", _uint32),
                    "additionalGids": ("additional_gids", integers(UINT32)),
                },
            ),
        ),
        "rlimits": (
            "rlimits",
            objects(
                Shape(
                    t.Rlimit,
                    "config.md#posix-process",
                    {"type": ("type", text), "soft": ("soft", _uint64), "hard": ("hard", _uint64)},
                    ("type", "soft", "hard"),
                )
            ),
        ),
        "capabilities": (
            "capabilities",
            Shape(
                t.Capabilities,
                "config.md#linux-process",
                {
                    "bounding": ("bounding", texts),
                    "effective": ("effective", texts),
                    "inheritable": ("inheritable", texts),
                    "permitted": ("permitted", texts),
                    "ambient": ("ambient", texts),
                },
            ),
        ),
        "noNewPrivileges": ("no_new_privileges", flag),
        "oomScoreAdj": ("oom_score_adj", integer(INT64)),
        "apparmorProfile": ("apparmor_profile", text),
        "selinuxLabel": ("selinux_label", text),
        "scheduler": (
            "scheduler",
            Shape(
                None,
                "config.md#linux-process",
                {
                    "policy": ("policy", text),
                    "nice": ("nice", integer(INT32)),
                    "priority": ("priority", integer(INT32)),
                    "flags": ("flags", texts),
                    "runtime": ("runtime", _uint64),
                    "deadline": ("deadline", _uint64),
                    "period": ("period", _uint64),
                },
                ("policy",),
            ),
        ),
        "ioPriority": (
            "io_priority",
            Shape(
                None,
                "config.md#linux-process",
                {"class": ("class", text), "priority": ("priority", integer((0, 7)))},
                ("class",),
            ),
        ),
        "execCPUAffinity": (
            "exec_cpu_affinity",
            Shape(None, "config.md#linux-process", {"initial": ("initial", text), "final": ("final", text)}),
        ),
    },
    ("cwd",),
)

SPEC = Shape(
    t.Spec,
    "config.md",
    {
        "ociVersion": ("oci_version", text),
        "root": ("root", ROOT),
        "mounts": ("mounts", MOUNTS),
        "process": ("process", PROCESS),
        "hostname": ("hostname", text_or_none),
        "domainname": ("domainname", text_or_none),
        "hooks": ("hooks", HOOKS),
        "annotations": ("annotations", text_map),
        "linux": ("linux", LINUX),
    },
    ("ociVersion", "root"),
)


def _read(data: bytes, shape: Shape, source: str) -> tuple[object, Report]:
    try:
        document = jsontext.loads(data)
    except jsontext.JSONError as error:
        raise ConfigError((Problem(printable(error.pointer), f"not JSON: {error}"),), source) from None
    # JSON spells NUL and lone surrogates by escapes only, so a text without them needs no look at each string.
    report = Report(careful=b"\\u" in data)
    return shape(document, "", report), report


def load(data: bytes, source: str = "config.json", checked: bool = False) -> t.Spec:
    """The checked content of a config.json; its rules are not applied again to what create has `checked` and kept.

    Raises ConfigError with every problem, each with its JSON pointer (of the missing member, where one is missing) and
    clause; `source` is what its message calls the document.
    """
    spec, report = _read(data, SPEC, source)
    assert isinstance(spec, t.Spec)
    if not checked:
        from pyoci.spec import validate

        validate.check(spec, report)
    if report.problems:
        raise ConfigError(report.problems, source)
    return spec


def load_resources(data: bytes, source: str, complete: Callable[[t.Resources], None] | None = None) -> t.Resources:
    """The checked content of what `update` is given: the object /linux/resources of a config.json, or a part of it.

    complete  fills in what is not given and rules ask for, from what the container has

    Raises ConfigError as `load` does; pointers are those that they would have there.
    """
    from pyoci.spec.linux import RESOURCES
    from pyoci.spec.resource_rules import CHECKS

    try:
        document = jsontext.loads(data)
    except jsontext.JSONError as error:
        raise ConfigError((Problem(printable(error.pointer), f"not JSON: {error}"),), source) from None
    where = "/linux/resources"
    report = Report(careful=b"\\u" in data)
    resources = RESOURCES(document, where, report)
    assert isinstance(resources, t.Resources)
    if not report.problems:
        if complete is not None:
            complete(resources)
        for check in CHECKS:
            report.apply(check, resources, where)
    if report.problems:
        raise ConfigError(report.problems, source)
    return resources


def load_process(data: bytes, spec: t.Spec | None = None, source: str = "process.json") -> t.Process:
    """The checked content of a process.json: the `process` object of a config.json as the whole document.

    `spec` is the container's, whose user namespace the process is to run in; pointers start at the process ("/cwd").
    Raises ConfigError as `load` does.
    """
    process, report = _read(data, PROCESS, source)
    assert isinstance(process, t.Process)
    from pyoci.spec import validate

    validate.check_process(process, "", spec, report)
    if report.problems:
        raise ConfigError(report.problems, source)
    return process
