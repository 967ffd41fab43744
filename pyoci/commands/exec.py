"""exec: run another process in a container."""

from __future__ import annotations

from pyoci.errors import PyociError
from pyoci.options import ExecOptions, parse_id, parse_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.cli import Globals, Parsed


def exec_options(settings: Globals, options: Parsed) -> ExecOptions:
    """The command line as values; PyociError for ids that are no numbers and when there is nothing to run."""
    id, *args = options.args
    if not args and not options.text("process"):
        raise PyociError("exec args cannot be empty")
    for entry in options.many("env"):
        if entry.partition("=")[1:2] != ("=",) or entry.startswith("="):
            raise PyociError(f"--env {entry[:300]!r}: must be NAME=VALUE")
    user = options.text("user")
    uid, gid = parse_user(user) if user else (None, None)

    return ExecOptions(
        settings.root,
        id,
        args,
        process_file=options.path("process"),
        tty=options.flag("tty"),
        env=options.many("env"),
        cwd=options.text("cwd"),
        uid=uid,
        gid=gid,
        additional_gids=[parse_id(one, "gid") for text in options.many("additional-gids") for one in text.split(",")],
        caps=options.many("cap"),
        no_new_privs=options.flag("no-new-privs"),
        detach=options.flag("detach"),
        pid_file=options.path("pid-file"),
        console_socket=options.path("console-socket"),
        pidfd_socket=options.path("pidfd-socket"),
        cgroups=options.many("cgroup"),
        preserve_fds=options.count("preserve-fds"),
        ignore_paused=options.flag("ignore-paused"),
        apparmor=options.text("apparmor"),
        process_label=options.text("process-label"),
    )


def run(settings: Globals, options: Parsed) -> int:
    """Exits like the process, or with 0 when detached."""
    from pyoci.container.execute import exec_

    return exec_(exec_options(settings, options))
