"""Id-mapped mounts in plans: who sets them, when, and by which user namespace."""

from __future__ import annotations

from typing import Any

from cases import host

from pyoci.kernel import flags as k
from pyoci.plan.container import PlanOptions, plan_container
from pyoci.plan.ops import RUNTIME, Op, Ref, Struct, walk
from pyoci.spec.types import IdMapping, Linux, Mount, Namespace, Root, Spec


def plan(spec: Spec) -> list[Op]:
    return list(walk(plan_container(spec, host("v2"), PlanOptions("id", "/bundle")).ops))


def spec(*mounts: Mount, **linux: Any) -> Spec:
    spaces = (Namespace("mount"), *linux.pop("namespaces", ()))
    return Spec("1.3.0", Root("rootfs"), mounts, linux=Linux(namespaces=spaces, **linux))


def bind(own: tuple[IdMapping, ...] = (), *options: str) -> Mount:
    return Mount("/b", "", "/src", ("bind", *options), own, own)


def idmapping(ops: list[Op]) -> list[tuple[int, Op]]:
    found = []
    for place, op in enumerate(ops):
        if op.call == "mount_setattr":
            attr = op.args[3]
            assert isinstance(attr, Struct)
            if attr.fields.get("attr_set") == k.MOUNT_ATTR_IDMAP:
                found.append((place, op))
    return found


OWN = (IdMapping(0, 1000, 10),)


def test_equal_maps_are_one_namespace() -> None:
    ops = plan(spec(bind(OWN, "idmap"), bind(OWN), bind((IdMapping(0, 5, 1),), "ridmap")))
    made = [op for op in ops if op.call == "user_namespace"]
    assert [(op.args, op.performer) for op in made] == [
        ((b"idmap0", b"0 1000 10\n", b"0 1000 10\n"), RUNTIME),
        ((b"idmap1", b"0 5 1\n", b"0 5 1\n"), RUNTIME),
    ]
    used = [(op.args[2], op.args[3].fields["userns_fd"]) for _, op in idmapping(ops)]  # type: ignore[attr-defined]
    assert used == [
        (k.AT_EMPTY_PATH, Ref("idmap0")),
        (k.AT_EMPTY_PATH, Ref("idmap0")),
        (k.AT_EMPTY_PATH | k.AT_RECURSIVE, Ref("idmap1")),
    ]


def test_a_bind_is_mapped_where_the_rights_are() -> None:
    """By the stage in the runtime's own namespaces, before it joins or makes any."""
    ops = plan(spec(bind((), "idmap"), namespaces=(Namespace("user"),), uid_mappings=OWN, gid_mappings=OWN))
    ((place, op),) = idmapping(ops)
    assert op.origin == "/mounts/0/options"
    assert place < next(number for number, each in enumerate(ops) if each.call == "clone3")
    opened = next(number for number, each in enumerate(ops) if each.call == "open_tree" and b"/src" in each.args)
    assert opened < place


def test_a_joined_user_namespace_is_the_map() -> None:
    ops = plan(spec(bind((), "idmap"), namespaces=(Namespace("user", "/run/user_ns"),)))
    ((place, op),) = idmapping(ops)
    assert op.args[3].fields["userns_fd"] == Ref("ns_user")  # type: ignore[attr-defined]
    assert not [each for each in ops if each.call == "user_namespace"]
    assert place < next(number for number, each in enumerate(ops) if each.call == "setns")


def test_the_last_option_holds() -> None:
    for words, recursive in ((("idmap", "ridmap"), True), (("ridmap", "idmap"), False)):
        ((_, op),) = idmapping(plan(spec(bind(OWN, *words))))
        assert bool(op.args[2] & k.AT_RECURSIVE) is recursive  # type: ignore[operator]


def test_descriptors_are_behind_the_launchers_own() -> None:
    for preserved in (0, 4):
        made = plan_container(
            spec(bind(OWN, "idmap"), bind((IdMapping(0, 5, 1),))),
            host("v2"),
            PlanOptions("id", "/bundle", preserve_fds=preserved),
        )
        first = 3 + preserved
        assert made.fds == {
            "control": first, "listen": first + 1, "console": first + 2, "idmap0": first + 3, "idmap1": first + 4,
        }  # fmt: skip
        closing = [op.args for op in made.ops if op.call == "close_range"]
        assert closing[0] == (first + 5, k.UINT_MAX, 0)
        assert closing[-1] == (first + 2, k.UINT_MAX, 0)
