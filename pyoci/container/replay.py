"""What create's plan was made from, kept so that a later command can say which op failed.

A plan is a function of its inputs: they are kept, not the plan, and it is only made again when there is an error to
explain.
"""

from __future__ import annotations

from pyoci.jsontext import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.container.create import Blueprint
    from pyoci.program import Program
    from pyoci.state import Store

INPUTS = "inputs.json"


def remember(store: Store, blueprint: Blueprint) -> None:
    """Keep the host and the options; config.json is kept as it is."""
    options = blueprint.plan_options
    values = {name: getattr(options, name) for name in options.__slots__}
    store.write(INPUTS, dumps({"host": blueprint.host.to_json(), "options": values}).encode())


def program_of(store: Store) -> Program:
    """The program that the container's init is running."""
    from pyoci.errors import PyociError
    from pyoci.host import Host
    from pyoci.jsontext import loads
    from pyoci.kernel.syscalls import numbers
    from pyoci.plan.container import PlanOptions, plan_container
    from pyoci.program import assemble, leading
    from pyoci.spec.load import load

    spec = load(store.read("config.json"))
    try:
        inputs = loads(store.read(INPUTS))
        if not isinstance(inputs, dict):
            raise ValueError("not an object")
        host = Host.from_json(inputs["host"])
        options = PlanOptions(**inputs["options"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PyociError(f"{store.path}/{INPUTS} is damaged: {str(error)[:300]}") from None
    plan = plan_container(spec, host, options)
    ops = plan.ops[leading(plan.ops) :]
    # the index of an op does not depend on the filter's bytes
    return assemble(ops, b"", host.arch, numbers(host.arch), plan.fds, {"seccomp": bytes(8)})
