"""validate: everything that is wrong with a config.json at once, each thing with its line, and nothing done."""

from __future__ import annotations

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def run(settings: Globals, options: Parsed) -> int:
    """Findings go to stdout, one a line or as JSON; the status is 1 if one of them is an error."""
    from pyoci.container.create import CONFIG
    from pyoci.jsontext import dumps
    from pyoci.log import error, output
    from pyoci.options import absolute, read_document
    from pyoci.schema import examine

    form = options.text("format") or "text"
    if form not in ("text", "json"):
        raise PyociError(f'--format must be text or json, not "{form}"')
    path = absolute(options.args[0] if options.args else ".")
    if _directory(path):
        path = f"{path.rstrip('/')}/{CONFIG}"
    data = read_document(path, path, regular=True)
    findings = examine(data)
    if options.flag("host") and not any(finding.level == "error" for finding in findings):
        from pyoci.hostcheck import examine_host

        findings += examine_host(data, path[: path.rindex("/")] or "/", settings.cgroup_manager, settings.rootless)
        findings.sort(key=lambda finding: (finding.line, finding.column))
    if options.flag("strict"):
        for finding in findings:
            if finding.strict:
                finding.level = "error"
    errors = sum(finding.level == "error" for finding in findings)
    warnings = len(findings) - errors
    if form == "json":
        listed = [finding.to_json() for finding in findings]
        output(dumps({"source": path, "valid": not errors, "findings": listed}, indent=True) + "\n")
    else:
        output("".join(f"{path}:{finding}\n" for finding in findings))
    if errors:
        error(f"{path}: {_count(errors, 'error')}, {_count(warnings, 'warning')}")
        return 1
    if form == "text":
        output(f"{path}: valid" + (f", {_count(warnings, 'warning')}" if warnings else "") + "\n")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _directory(path: str) -> bool:
    from pyoci.host import source_type

    return source_type(path) == "dir"
