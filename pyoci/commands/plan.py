"""plan: show what create or run would do, call by call, without doing any of it and without privileges."""

from __future__ import annotations

from pyoci.errors import PyociError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed
    from pyoci.host import Host
    from pyoci.plan.container import ContainerPlan

ID = "container"  # stands for the container's id in the paths of its cgroups


def make(
    bundle: str, host: Host | None, manager: str = "cgroupfs", rootless: bool | None = None
) -> tuple[ContainerPlan, Host]:
    """The plan of create for `bundle`, on `host` or on this machine."""
    from pyoci.container.create import read_config
    from pyoci.host import probe, probe_sources
    from pyoci.plan.container import PlanOptions, plan_container
    from pyoci.spec.load import load

    spec = load(read_config(bundle))
    if host is None:
        host = probe()
        if manager == "systemd":
            from pyoci.host import probe_systemd

            probe_systemd(host, rootless)
        probe_sources(host, spec, bundle)
    elif manager == "systemd" and not host.systemd:
        raise PyociError('--host: it says nothing of systemd; write it by --systemd-cgroup plan --show-host')
    process = spec.process
    console = "console" if process is not None and process.terminal else None
    options = PlanOptions(ID, bundle, console=console, cgroup_manager=manager, rootless=rootless)
    return plan_container(spec, host, options), host


def read_host(path: str) -> Host:
    """A host description, as `--show-host` writes it."""
    from pyoci.host import Host
    from pyoci.jsontext import loads
    from pyoci.options import read_document

    data = read_document(path, f"--host {path[:300]}")
    try:
        value = loads(data)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return Host.from_json(value)
    except ValueError as error:
        raise PyociError(f"--host {path[:300]}: {error}") from None


def run(settings: Globals, options: Parsed) -> int:
    """Text in two columns, or JSON."""
    from pyoci.log import output
    from pyoci.options import absolute

    form = options.text("format") or "text"
    if form not in ("text", "json"):
        raise PyociError(f'--format must be text or json, not "{form}"')
    given = options.text("host")
    bundle = absolute(options.text("bundle") or ".")
    described = read_host(given) if given else None
    plan, host = make(bundle, described, settings.cgroup_manager, settings.rootless)
    from pyoci.jsontext import dumps

    if options.flag("show-host"):
        shown = dumps(host.to_json(), indent=True) + "\n"
    else:
        from pyoci.plan.render import text, to_json

        shown = text(plan.ops) if form == "text" else dumps(to_json(plan.ops), indent=True) + "\n"
    output(shown)
    return 0
