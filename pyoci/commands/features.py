"""features: what this runtime can do, as JSON for engines (features.md, features-linux.md).

Everything is read from the tables of the code that does it: what a table does not have, is not there, and what is
refused (`spec.unsupported`) is not claimed.  It says what pyoci can do, not what this host allows: nothing is probed.
"""

from __future__ import annotations

from pyoci.spec.types import KEEP_GROUPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
OCI_VERSION_MIN = "1.0.0"
# Annotations that change what is done, for engines that take annotations from others (features.md).
UNSAFE = ("org.systemd.property.", "org.criu.config", KEEP_GROUPS, "org.opencontainers.image.stopSignal")


def document() -> dict[str, object]:
    """The answer, as features.md lays it out."""
    from pyoci import SPEC_VERSION, VERSION
    from pyoci.commands.version import libseccomp
    from pyoci.kernel import scheduling, seccomp
    from pyoci.kernel.capabilities import CAPABILITIES
    from pyoci.kernel.flags import NAMESPACES
    from pyoci.plan.options import KNOWN
    from pyoci.spec import seccomp_rules, unsupported

    linux = {name for name, _ in unsupported.LINUX}
    process = {name for name, _ in unsupported.PROCESS}
    resources = {name for name, _ in unsupported.RESOURCES}
    idmap = "idmap" not in unsupported.MOUNT_OPTIONS
    options = [*KNOWN, *(name for name in ("idmap", "ridmap") if name not in unsupported.MOUNT_OPTIONS)]
    annotations = {"org.pyoci.version": VERSION, "org.opencontainers.runc.checkpoint.enabled": "true"}
    version = libseccomp()
    if version:
        annotations["io.github.seccomp.libseccomp.version"] = version
    return {
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": SPEC_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": sorted(set(options)),
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": sorted(CAPABILITIES, key=CAPABILITIES.__getitem__),
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": True,
                "rdma": "rdma" not in resources,
            },
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": sorted(seccomp.OPERATORS),
                "archs": sorted(seccomp_rules.ARCHITECTURES),
                "knownFlags": sorted(seccomp.FLAGS),
                "supportedFlags": sorted(seccomp.FLAGS),
            },
            "apparmor": {"enabled": "apparmorProfile" not in process},
            "selinux": {"enabled": "selinuxLabel" not in process and "mountLabel" not in linux},
            "intelRdt": {"enabled": "intelRdt" not in linux, "schemata": True, "monitoring": True},
            "memoryPolicy": {"modes": list(scheduling.MEMORY_MODES), "flags": list(scheduling.MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": idmap}},
            "netDevices": {"enabled": "netDevices" not in linux},
        },
        "annotations": annotations,
        "potentiallyUnsafeConfigAnnotations": list(UNSAFE),
    }


def run(settings: Globals, options: Parsed) -> int:
    """Print the document; nothing ever goes to stderr, because engines read both together."""
    from pyoci.jsontext import dumps
    from pyoci.log import output

    output(dumps(document(), indent=True) + "\n")
    return 0
