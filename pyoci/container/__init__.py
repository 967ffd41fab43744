"""The lifecycle: the one place that joins deciding (spec, plan) and doing (program, launch).

Each operation is in a module of its own, loaded when it is called: a `start` needs no planner.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.options import CreateOptions, ExecOptions


def create(options: CreateOptions) -> None:
    """runtime.md#create: everything but the user's program."""
    from pyoci.container.create import create

    create(options)


def start(root: str, container_id: str) -> None:
    """runtime.md#start: let the created container execute its program."""
    from pyoci.container.start import start

    start(root, container_id)


def run(options: CreateOptions) -> int:
    """create and start at once; unless detached, stay until the end and delete.  Returns the program's exit status."""
    from pyoci.container.run import run

    return run(options)


def exec_(options: ExecOptions) -> int:
    """Another process in a running container.  Returns its exit status, 0 when detached."""
    from pyoci.container.execute import exec_

    return exec_(options)
