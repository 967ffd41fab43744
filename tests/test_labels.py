"""AppArmor and SELinux: the order of calls here, the effect in a virtual machine whose kernel has them."""

from __future__ import annotations

import pytest
from containers import Box, box, needed  # noqa: F401 - a fixture

from pyoci.errors import ConfigError
from pyoci.host import Host
from pyoci.plan.container import PlanOptions, plan_container
from pyoci.plan.ops import walk
from pyoci.spec.types import Linux, Mount, Namespace, Process, Root, Spec

LABEL, FILES = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"


def spec(**more: str) -> Spec:
    process = Process(cwd="/", args=("/bin/true",), **more)  # type: ignore[arg-type]
    mounts = (Mount("/proc", "proc", "proc"), Mount("/dev", "tmpfs", "tmpfs"), Mount("/sys", "sysfs", "sysfs"))
    linux = Linux(namespaces=(Namespace("mount"),), mount_label=FILES)
    return Spec("1.2.0", Root("rootfs"), mounts, process, linux=linux)


def calls(of: Spec, *modules: str) -> list[tuple[str, tuple[object, ...]]]:
    host = Host()
    host.capabilities = host.bounding = (1 << 41) - 1
    host.security_modules = modules
    return [(op.call, op.args) for op in walk(plan_container(of, host, PlanOptions("c", "/b")).ops)]


@pytest.mark.parametrize(
    ("property", "value", "module", "path", "text"),
    [
        ("apparmor_profile", "docker-default", "apparmor", b"/proc/self/attr/apparmor/exec", b"exec docker-default"),
        ("selinux_label", LABEL, "selinux", b"/proc/self/attr/exec", LABEL.encode()),
    ],
)
def test_written_in_the_runtimes_own_proc(property: str, value: str, module: str, path: bytes, text: bytes) -> None:
    """Before the first namespace is made, where nothing of an image can be in the file's place; once."""
    found = calls(spec(**{property: value}), module)
    opens = [number for number, (call, args) in enumerate(found) if call == "openat" and path in args]
    writes = [number for number, (call, args) in enumerate(found) if call == "write" and text in args]
    (clone,) = (number for number, (call, _) in enumerate(found) if call == "clone3")
    assert len(opens) == len(writes) == 1
    assert opens[0] < writes[0] < clone


def test_new_file_systems_are_labelled_where_selinux_is() -> None:
    contexts = [args for call, args in calls(spec(), "selinux") if call == "fsconfig" and b"context" in args]
    assert [args[3] for args in contexts] == [FILES.encode()]  # /dev; proc and sysfs have the kernel's labels
    assert not [args for call, args in calls(spec(), "apparmor") if b"context" in args]


def test_message_queues_are_labelled_by_their_directory() -> None:
    """Their file system is the kernel's, one for each IPC namespace: mounting it with a context is an error."""
    document = spec()
    document.mounts = (*document.mounts, Mount("/dev/mqueue", "mqueue", "mqueue"))
    found = calls(document, "selinux")
    assert [args[3] for call, args in found if call == "fsconfig" and b"context" in args] == [FILES.encode()]
    assert [args[1:3] for call, args in found if call == "fsetxattr"] == [(b"security.selinux", FILES.encode())]
    assert not [call for call, _ in calls(document, "apparmor") if call == "fsetxattr"]


@pytest.mark.parametrize(("property", "value"), [("apparmor_profile", "p"), ("selinux_label", LABEL)])
def test_without_the_module_it_is_refused(property: str, value: str) -> None:
    with pytest.raises(ConfigError, match="is not enabled on this host"):
        calls(spec(**{property: value}))


def test_unconfined_is_what_everybody_is_without_apparmor() -> None:
    assert not [args for call, args in calls(spec(apparmor_profile="unconfined")) if b"attr" in str(args).encode()]


class TestContainers:
    pytestmark = needed

    def test_here(self, box: Box) -> None:  # noqa: F811
        """Whatever this machine has: a profile that is not loaded is an error that names it."""
        box.process["apparmorProfile"] = "pyoci-no-such-profile"
        error = box.refused()
        assert "/process/apparmorProfile" in error and "pyoci-no-such-profile" in error
        del box.process["apparmorProfile"]
        box.linux["mountLabel"] = FILES
        box.start()
        done = box("exec", "--apparmor", "pyoci-no-such-profile", box.id, "true")
        assert done.returncode == 255 and "pyoci-no-such-profile" in done.stderr
