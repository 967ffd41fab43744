"""What the specification has and this version does not do: refused, never ignored (config.md#valid-values).

A later version deletes rows.
"""

from __future__ import annotations

from pyoci.spec.read import Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.spec.types import Process, Spec

# (property below /process, attribute of Process)
PROCESS: tuple[tuple[str, str], ...] = ()

# (property below /linux, attribute of Linux)
LINUX: tuple[tuple[str, str], ...] = ()

# (property below /linux/resources, attribute of Resources)
RESOURCES: tuple[tuple[str, str], ...] = ()

# (property below /mounts/N, attribute of Mount)
MOUNT: tuple[tuple[str, str], ...] = ()

MOUNT_OPTIONS: tuple[str, ...] = ()

MESSAGE = "is not supported by this version of pyoci"


def _rows(value: object, where: str, rows: tuple[tuple[str, str], ...], report: Report) -> None:
    for name, attribute in rows:
        held = getattr(value, attribute)
        # An empty text, list or map asks for nothing.
        if held:
            report.add(f"{where}/{name}", f"{name} {MESSAGE}")


def unsupported_process(process: Process, where: str, report: Report) -> None:
    """config.md#valid-values: an unsupported value MUST be an error."""
    _rows(process, where, PROCESS, report)


def unsupported(spec: Spec, report: Report) -> None:
    """config.md#valid-values: an unsupported value MUST be an error."""
    _rows(spec.linux, "/linux", LINUX, report)
    if spec.linux.resources is not None:
        _rows(spec.linux.resources, "/linux/resources", RESOURCES, report)
    for index, mount in enumerate(spec.mounts):
        _rows(mount, f"/mounts/{index}", MOUNT, report)
        for number, option in enumerate(mount.options):
            if option in MOUNT_OPTIONS:
                report.add(f"/mounts/{index}/options/{number}", f"{option} {MESSAGE}")
