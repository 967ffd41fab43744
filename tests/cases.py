"""Plans with what they were made of: of containers, of processes that join one, and of hooks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import generate

from pyoci.host import Host
from pyoci.kernel.capabilities import CAPABILITIES
from pyoci.kernel.seccomp import filter_flags, notifies
from pyoci.plan import join
from pyoci.plan.cgroup_entry import join_ops
from pyoci.plan.container import PlanOptions, plan_container
from pyoci.plan.ops import INIT, Op, walk
from pyoci.spec.load import load

SYS_ADMIN = 1 << CAPABILITIES["CAP_SYS_ADMIN"]


class Case:
    """A plan and what it was made from.  `kind` is "container", "exec", "hook" or "mounts"; an exec may be `unseen`."""

    def __init__(
        self,
        kind: str,
        document: dict[str, Any],
        make: Callable[[], list[Op]],
        fds: dict[str, int],
        privileged: bool,
        cgroups: Mapping[str, str],
        views: Sequence[str] = (),
        unseen: bool = False,
    ) -> None:
        self.kind = kind
        self.unseen = unseen
        self.document = document
        self.make = make
        self.ops = make()
        self.fds = fds
        self.privileged = privileged
        self.by_clone = "" in cgroups  # into the v2 cgroup
        self.hierarchies = len({path for controller, path in cgroups.items() if controller})  # of v1
        self.all = list(walk(self.ops))
        self.process = document.get("process")
        self.views = [place.encode() for place in views]  # of the kernel, in a root that stays

    def where(self, condition: Callable[[Op], object]) -> list[int]:
        """Places in printed order of the ops that `condition` holds for."""
        return [place for place, op in enumerate(self.all) if condition(op)]

    def calls(self, *names: str) -> list[int]:
        return self.where(lambda op: op.performer == INIT and op.call in names)

    @property
    def created(self) -> int:
        return self.where(lambda op: op.call == "created")[0] if self.kind != "hook" else len(self.all)


def container(document: dict[str, Any], host: Host, options: PlanOptions) -> Case:
    data = json.dumps(document).encode()
    plan = plan_container(load(data), host, options)
    return Case(
        "container",
        document,
        lambda: plan_container(load(data), host, options).ops,
        plan.fds,
        bool(host.capabilities & SYS_ADMIN),
        plan.cgroups.paths,
        host.kernel_views if options.no_pivot else (),
    )


def joining(document: dict[str, Any], host: Host, options: PlanOptions) -> Iterator[Case]:
    """exec and a hook in a container made from the same document."""
    data = json.dumps(document).encode()
    spec = load(data)
    paths = plan_container(spec, host, options).cgroups.paths

    def target() -> join.Target:
        spaces = [entry.type for entry in spec.linux.namespaces]
        return join.Target(4242, spaces, *join_ops(paths), keeps_groups=host.euid != 0)

    fds = join.descriptors(options.preserve_fds)
    flags = None if spec.linux.seccomp is None else filter_flags((), notifies(spec.linux.seccomp))
    if spec.process is not None:
        process = spec.process
        given = (flags, options.console, options.preserve_fds, spec.linux)
        kinds = [False]
        # as `pyoci.container.execute` has it, whether or not such a container's processes may trace
        listens = spec.linux.seccomp is not None and notifies(spec.linux.seccomp) and not process.no_new_privileges
        if {"pid", "user"} & {entry.type for entry in spec.linux.namespaces} == {"pid"} and not listens:
            kinds += [True]
        for unseen in kinds:
            make = partial(lambda unseen: join.plan_exec(process, host, target(), *given, unseen), unseen)
            yield Case("exec", document, make, fds, True, paths, unseen=unseen)
    for kind, hooks in (
        ("createContainer", spec.hooks.create_container),
        ("startContainer", spec.hooks.start_container),
    ):
        for hook in hooks:
            image = (spec.process, host, flags) if kind == "startContainer" else (None, None, None, "/the/root")
            make = partial(
                lambda *given: join.plan_hook(given[0], target(), given[1], *given[2]), hook, f"/hooks/{kind}", image
            )
            yield Case("hook", document, make, fds, True, paths)


def host(mode: str, euid: int = 0) -> Host:
    made = Host()
    made.kernel = (6, 1)
    made.uid = made.gid = made.euid = euid
    made.bounding = generate.EVERYTHING
    made.capabilities = 0 if euid else generate.EVERYTHING
    made.cgroup_mode = mode
    if mode == "v1":
        made.cgroup_mounts = {name: f"/sys/fs/cgroup/{name}" for name in generate.V1}
        made.cgroup_self = dict.fromkeys(generate.V1, "/")
    elif mode == "v2":
        made.cgroup_mounts, made.cgroup_self = {"": "/sys/fs/cgroup"}, {"": "/user.slice/session"}
        made.cgroup_controllers = ("cpu", "io", "memory", "pids")
    return made
