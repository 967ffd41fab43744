"""What is wrong with a config.json that could be read: found before anything is touched.

Each check is one function, whose docstring begins with the clause of the specification that it enforces, and sees the
whole Spec; `CHECKS` and `PROCESS_CHECKS` are all of them.  Only what can be decided from the document alone is decided
here: what depends on the machine is the planner's, and what the kernel alone can tell is a failing op.
"""

from __future__ import annotations

from pyoci.kernel import flags
from pyoci.spec import linux_rules
from pyoci.spec.linux_rules import PROPAGATIONS, namespace, needs_namespace, new_user_namespace, owned_ids
from pyoci.spec.read import Report, one_of, shown
from pyoci.spec.types import KEEP_GROUPS
from pyoci.spec.unsupported import unsupported, unsupported_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyoci.spec.types import Process, Spec

    Check = Callable[[Spec, Report], None]
    ProcessCheck = Callable[[Process, str, Report], None]

MINOR = 3  # of the newest version of the specification that this runtime knows

MAX_GROUPS = 65536  # NGROUPS_MAX: setgroups(2)
MAX_ID = 2**32 - 2  # 2^32-1 is (uid_t)-1: "do not change" to the kernel

RLIMITS = tuple(sorted(flags.RLIMITS))
PROPAGATION_OPTIONS = frozenset(PROPAGATIONS)


def version(spec: Spec, report: Report) -> None:
    """config.md#specification-version: SemVer 2.0.0; every version of a major version up to ours is compatible."""
    numbers = parse_version(spec.oci_version)
    if numbers is None:
        report.add("/ociVersion", f"{shown(spec.oci_version)} is not a SemVer 2.0.0 version")
    elif numbers[0] != 1 or numbers[1] > MINOR:
        report.add("/ociVersion", f"version {shown(spec.oci_version)} is not supported: 1.0.0 to 1.{MINOR}.x are")


def parse_version(text: str) -> tuple[int, int, int] | None:
    """(major, minor, patch) of a SemVer 2.0.0 version, maybe with "-pre.release" and "+build"; None if it is none."""
    front, plus, build = text.partition("+")
    core, dash, pre = front.partition("-")
    for suffix, mark in ((build, plus), (pre, dash)):
        if mark and not all(_identifier(part) for part in suffix.split(".")):
            return None
    if any(len(part) > 1 and part.isdigit() and part[0] == "0" for part in pre.split(".")):
        return None
    numbers = core.split(".")
    if len(numbers) != 3 or not all(_decimal(part) for part in numbers):
        return None
    major, minor, patch = map(int, numbers)
    return major, minor, patch


def _identifier(text: str) -> bool:
    return text.isascii() and text.replace("-", "0").isalnum()


def _decimal(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 10


def root(spec: Spec, report: Report) -> None:
    """config.md#root: REQUIRED on Linux, and its path names something."""
    if spec.root is not None and not spec.root.path:
        report.add("/root/path", "must not be empty")


def mounts(spec: Spec, report: Report) -> None:
    """config.md#mounts: a destination, a type unless the options say what to do, a source for a bind."""
    for index, mount in enumerate(spec.mounts):
        if not mount.destination:
            report.add(f"/mounts/{index}/destination", "must not be empty")
        if "bind" in mount.options or "rbind" in mount.options:
            # a remount takes what is mounted there, whatever its source was
            if not mount.source and "remount" not in mount.options:
                report.add(f"/mounts/{index}/source", "is required for a bind mount")
        elif not mount.type and "remount" not in mount.options and PROPAGATION_OPTIONS.isdisjoint(mount.options):
            if report.unreliable(f"/mounts/{index}/options"):
                continue
            report.add(f"/mounts/{index}/type", "is required unless the options have bind or rbind")


def mount_mappings(spec: Spec, report: Report) -> None:
    """config.md#posix-platform-mounts: both mappings or none; idmap needs mappings or a user namespace."""
    for index, mount in enumerate(spec.mounts):
        where = f"/mounts/{index}"
        asked = "idmap" in mount.options or "ridmap" in mount.options
        if mount.uid_mappings or mount.gid_mappings:
            if not mount.uid_mappings or not mount.gid_mappings:
                report.add(where, "must have both uidMappings and gidMappings, or neither")
            linux_rules.check_mapping(mount.uid_mappings, f"{where}/uidMappings", report)
            linux_rules.check_mapping(mount.gid_mappings, f"{where}/gidMappings", report)
        elif not asked:
            continue
        elif namespace(spec, "user") is None and not report.unreliable("/linux/namespaces"):
            message = "idmap needs the mount's own uidMappings and gidMappings, or a user namespace"
            report.add(f"{where}/options", message)
            continue
        place = f"{where}/options" if asked else f"{where}/uidMappings"
        if "bind" in mount.options or "rbind" in mount.options:
            if "remount" in mount.options:
                report.add(place, "a mount that is there already cannot be given a map (mount_setattr(2))")
        elif "remount" in mount.options or not mount.type:
            report.add(place, "a mount that is there already cannot be given a map (mount_setattr(2))")
        elif mount.type in ("cgroup", "cgroup2"):
            report.add(place, "the kernel has no id-mapped cgroup mounts (mount_setattr(2))")
        elif namespace(spec, "user") is not None and not report.unreliable("/linux/namespaces"):
            message = "a new file system in a user namespace belongs to it, with its map: only bind mounts can have one"
            report.add(place, message)


def hooks(spec: Spec, report: Report) -> None:
    """config.md#posix-platform-hooks: path MUST be absolute, timeout MUST be greater than zero."""
    for kind, listed in (
        ("prestart", spec.hooks.prestart),
        ("createRuntime", spec.hooks.create_runtime),
        ("createContainer", spec.hooks.create_container),
        ("startContainer", spec.hooks.start_container),
        ("poststart", spec.hooks.poststart),
        ("poststop", spec.hooks.poststop),
    ):
        for index, hook in enumerate(listed):
            where = f"/hooks/{kind}/{index}"
            if hook.path[:1] != "/":
                report.add(where + "/path", f"must be an absolute path, not {shown(hook.path)}")
            if hook.timeout is not None and hook.timeout <= 0:
                report.add(where + "/timeout", f"must be greater than zero, not {hook.timeout}")
            if hook.args and not hook.args[0]:
                report.add(where + "/args/0", "must name the program, as execv(2)'s argv does")
            if hook.env:
                _environment(hook.env, where, report)


def annotation_names(spec: Spec, report: Report) -> None:
    """config.md#annotations: keys MUST NOT be an empty string; and the values of those that we know."""
    if "" in spec.annotations:
        report.add("/annotations/", "the name of an annotation must not be empty")
    if spec.annotations.get(KEEP_GROUPS, "") not in ("", "0", "1", "false", "true"):
        report.add(f"/annotations/{KEEP_GROUPS}", f"must be 0 or 1, not {shown(spec.annotations[KEEP_GROUPS])}")


def hostname(spec: Spec, report: Report) -> None:
    """config.md#hostname: changed in the container's UTS namespace, so there is one; 64 bytes (sethostname(2))."""
    for name, value in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if value is not None:
            needs_namespace(spec, "uts", f"/{name}", report)
            if len(value.encode(errors="replace")) > 64:
                report.add(f"/{name}", "must not be longer than 64 bytes")


def process(spec: Spec, report: Report) -> None:
    """config.md#process: absent at create is fine, what is present has to be right."""
    if spec.process is not None:
        _run_process_checks(spec.process, "/process", report)
        process_ids_mapped(spec.process, spec, "/process", report)


def process_ids_mapped(process: Process, spec: Spec, where: str, report: Report) -> None:
    """config-linux.md#user-namespace-mappings: the ids of a process have to exist in its new user namespace."""
    if not new_user_namespace(spec) or report.unreliable("/linux"):
        return
    user = process.user
    for name, ids, mappings in (
        ("uid", (user.uid,), spec.linux.uid_mappings),
        ("gid", (user.gid,), spec.linux.gid_mappings),
        ("additionalGids", user.additional_gids, spec.linux.gid_mappings),
    ):
        if not mappings:
            continue  # reported already
        for index, number in enumerate(ids):
            if number <= MAX_ID and not owned_ids(mappings, number):
                place = f"{where}/user/{name}" + (f"/{index}" if name == "additionalGids" else "")
                report.add(place, f"{number} is not mapped into the user namespace")


def args(process: Process, where: str, report: Report) -> None:
    """config.md#process: args has at least one entry, and the first names a program."""
    if not process.args:
        report.add(where + "/args", "args must not be empty")
    elif not process.args[0]:
        report.add(where + "/args/0", "must name a program")


def cwd(process: Process, where: str, report: Report) -> None:
    """config.md#process: cwd MUST be an absolute path."""
    if process.cwd[:1] != "/":
        report.add(where + "/cwd", f"cwd must be an absolute path, not {shown(process.cwd)}")


def env(process: Process, where: str, report: Report) -> None:
    """config.md#process: env has the semantics of POSIX environ: NAME=value."""
    _environment(process.env, where, report)


def _environment(entries: tuple[str, ...], where: str, report: Report) -> None:
    for index, entry in enumerate(entries):
        if entry.find("=") < 1:
            what = "has an empty name" if entry[:1] == "=" else "is not of the form NAME=value"
            report.add(f"{where}/env/{index}", f"{shown(entry)} {what}")


def user(process: Process, where: str, report: Report) -> None:
    """config.md#posix-platform-user: ids that the kernel can hold, a umask of permission bits."""
    for name, ids in (("uid", (process.user.uid,)), ("gid", (process.user.gid,))):
        if ids[0] > MAX_ID:
            report.add(f"{where}/user/{name}", f"must be an integer from 0 to {MAX_ID}, not {ids[0]}")
    for index, number in enumerate(process.user.additional_gids):
        if number > MAX_ID:
            report.add(f"{where}/user/additionalGids/{index}", f"must be an integer from 0 to {MAX_ID}, not {number}")
    if (count := len(process.user.additional_gids)) > MAX_GROUPS:
        report.add(f"{where}/user/additionalGids", f"must not have more than {MAX_GROUPS} items, but has {count}")
    if process.user.umask is not None and process.user.umask > 0o777:
        report.add(where + "/user/umask", f"must be an integer from 0 to 511 (0o777), not {process.user.umask}")


def console_size(process: Process, where: str, report: Report) -> None:
    """config.md#process: ignored without a terminal, else what struct winsize can hold (ioctl_tty(2))."""
    size = process.console_size
    if process.terminal and size is not None:
        for name, number in (("height", size.height), ("width", size.width)):
            if number > 0xFFFF:
                report.add(f"{where}/consoleSize/{name}", f"must be an integer from 0 to 65535, not {number}")


def rlimits(process: Process, where: str, report: Report) -> None:
    """config.md#posix-process: known types, each at most once; setrlimit(2) wants soft <= hard."""
    seen: set[str] = set()
    for index, rlimit in enumerate(process.rlimits):
        place = f"{where}/rlimits/{index}"
        if rlimit.type not in RLIMITS:
            report.add(place + "/type", one_of(rlimit.type, RLIMITS))
        elif rlimit.type in seen:
            report.add(place + "/type", f"{rlimit.type} is there twice")
        seen.add(rlimit.type)
        if rlimit.soft > rlimit.hard and not report.unreliable(place):
            report.add(place + "/soft", f"must not be greater than the hard limit {rlimit.hard}, but is {rlimit.soft}")


def oom_score_adj(process: Process, where: str, report: Report) -> None:
    """config.md#linux-process: oomScoreAdj is what proc_pid_oom_score_adj(5) takes."""
    value = process.oom_score_adj
    if value is not None and not -1000 <= value <= 1000:
        report.add(where + "/oomScoreAdj", f"must be an integer from -1000 to 1000, not {value}")


def tuning(process: Process, where: str, report: Report) -> None:
    """config.md#linux-process: see tuning_rules."""
    if process.scheduler or process.io_priority or process.exec_cpu_affinity:
        from pyoci.spec import tuning_rules

        tuning_rules.process(process, where, report)


PROCESS_CHECKS: tuple[ProcessCheck, ...] = (
    args, cwd, env, user, console_size, rlimits, oom_score_adj, tuning, unsupported_process,
)  # fmt: skip

CHECKS: tuple[Check, ...] = (
    version, root, process, mounts, mount_mappings, hostname, hooks, annotation_names, *linux_rules.CHECKS, unsupported,
)  # fmt: skip


def _run_process_checks(process: Process, where: str, report: Report) -> None:
    for check_one in PROCESS_CHECKS:
        report.apply(check_one, process, where)


def check(spec: Spec, report: Report) -> None:
    """Add to `report` what is wrong with `spec`, except what merely follows from the problems it has already."""
    found = Report(doubted=report.problems)
    for check_one in CHECKS:
        found.apply(check_one, spec)
    report.problems += [problem for problem in found.problems if not found.unreliable(problem.pointer)]


def check_process(process: Process, where: str, spec: Spec | None, report: Report) -> None:
    """`check` for a process alone, at pointer `where`, to run in the namespaces of `spec`."""
    found = Report(doubted=report.problems)
    _run_process_checks(process, where, found)
    if spec is not None:
        found.apply(process_ids_mapped, process, spec, where)
    report.problems += [problem for problem in found.problems if not found.unreliable(problem.pointer)]
