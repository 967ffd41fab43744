"""The command line: a table of commands and flags, a parser for it, and what a failure looks like.

The grammar is that of Go's `flag`, because engines are written for runtimes that use it: `-flag` and `--flag` are the
same, a value is joined with `=` or is the next argument, the last of two wins.  Flags may follow arguments, except for
commands whose arguments are another command line.

Everything that help shows is in these tables, so that help imports no command and a command imports no other.
"""

from __future__ import annotations

import sys
from errno import EMFILE, ENFILE

from pyoci import log
from pyoci.errors import OPEN_FILES, PyociError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    # (name, one-letter name or "", kind, what the value is, help); kind: "bool", "text", "count" (>= 0) or "list"
    Flag: TypeAlias = tuple[str, str, str, str, str]
    # (arguments, least, most (-1: no limit), flags end at the first argument, summary, flags)
    Command: TypeAlias = tuple[str, int, int, bool, str, tuple[Flag, ...]]

GLOBAL: tuple[Flag, ...] = (
    ("root", "", "text", "DIR",
     "where containers' states are kept (/run/pyoci, or $XDG_RUNTIME_DIR/pyoci unless root)"),
    ("log", "", "text", "FILE", "append messages to this file as well; syslog:NAME, journald:NAME: send them there"),
    ("log-format", "", "text", "text|json", "format of the log (text)"),
    ("log-level", "", "text", "LEVEL", "debug, info, warning or error (warning)"),
    ("debug", "", "bool", "", "the same as --log-level debug, and a traceback for internal errors"),
    ("systemd-cgroup", "", "bool", "", "the same as --cgroup-manager systemd"),
    ("cgroup-manager", "", "text", "cgroupfs|systemd|disabled", "who makes cgroups (cgroupfs)"),
    ("rootless", "", "text", "true|false|auto", "whether to do without root's rights (auto)"),
    ("criu", "", "text", "PATH", "accepted for compatibility: criu is found by $PATH"),
    ("version", "v", "bool", "", "show the versions of pyoci and of what it uses"),
    ("help", "h", "bool", "", "show this help"),
)
_BUNDLE: Flag = ("bundle", "b", "text", "DIR", "the bundle's directory (the working directory)")
_REGEX: Flag = ("regex", "r", "bool", "", "ID is a regular expression: every container with a match in its ID")
_SUBREAPER: Flag = ("no-subreaper", "", "bool", "", "accepted for compatibility: pyoci never is one")
_PID_FILE: Flag = ("pid-file", "", "text", "FILE", "write the process's pid to this file")
_CONSOLE: Flag = ("console-socket", "", "text", "PATH", "AF_UNIX socket that gets the terminal's master end")
_PIDFD: Flag = ("pidfd-socket", "", "text", "PATH", "AF_UNIX socket that gets a pidfd of the process")
_PRESERVE: Flag = ("preserve-fds", "", "count", "N", "pass N descriptors beyond stdio and $LISTEN_FDS (0)")
_DETACH: Flag = ("detach", "d", "bool", "", "do not wait for the process")
_CREATE: tuple[Flag, ...] = (
    _BUNDLE,
    ("config", "f", "text", "FILE", "instead of config.json; relative to the bundle"),
    _CONSOLE,
    _PIDFD,
    _PID_FILE,
    ("no-pivot", "", "bool", "", "move the root mount instead of pivot_root (for an initramfs)"),
    ("no-new-keyring", "", "bool", "", "keep the caller's session keyring"),
    _PRESERVE,
    _SUBREAPER,
)
_IMAGES: tuple[Flag, ...] = (
    ("image-path", "", "text", "DIR", "where CRIU's images are (./checkpoint)"),
    ("work-path", "", "text", "DIR", "where CRIU works and writes its log (the images' directory)"),
    ("tcp-established", "", "bool", "", "with open TCP connections"),
    ("tcp-close", "", "bool", "", "with open TCP connections, closed by restore"),
    ("ext-unix-sk", "", "bool", "", "with UNIX sockets whose other end is outside"),
    ("shell-job", "", "bool", "", "with a session or a terminal of a shell outside"),
    ("file-locks", "", "bool", "", "with file locks"),
    ("manage-cgroups-mode", "", "text", "MODE", "soft (which is the default), full, strict, props, none or ignore"),
    ("empty-ns", "", "list", "network", "leave a namespace's content out, for hooks to make"),
    ("auto-dedup", "", "bool", "", "free memory images as they are used or replaced"),
    ("lazy-pages", "", "bool", "", "leave memory where it is until somebody needs it (userfaultfd)"),
    ("link-remap", "", "bool", "", "give unlinked files that are open a name meanwhile"),
    ("network-lock", "", "text", "HOW", "iptables, nftables or skip: how packets are held back meanwhile"),
    ("status-fd", "", "text", "FD", "CRIU writes a zero byte there once lazy pages can be asked for"),
)
# fmt: off
COMMANDS: dict[str, Command] = {
    "create": ("ID", 1, 1, False, "make a container from a bundle, ready to start", _CREATE),
    "start": ("ID", 1, 1, False, "run the program of a created container", ()),
    "run": (
        "ID", 1, 1, False, "create and start a container, wait for its end and delete it",
        (
            *_CREATE,
            _DETACH,
            ("keep", "", "bool", "", "do not delete the container when it ends"),
        ),
    ),
    "exec": (
        "ID [COMMAND [ARG...]]", 1, -1, True, "run another process in a container",
        (
            ("process", "p", "text", "FILE", "process.json: all about the process, instead of COMMAND"),
            ("tty", "t", "bool", "", "give it a terminal"),
            ("env", "e", "list", "NAME=VALUE", "add to its environment"),
            ("cwd", "", "text", "DIR", "its working directory"),
            ("user", "u", "text", "UID[:GID]", "its user and group, by number"),
            ("additional-gids", "g", "list", "GID", "add a group, by number"),
            ("cap", "c", "list", "CAP", "add a capability (bounding, effective and permitted sets)"),
            ("no-new-privs", "", "bool", "", "it cannot gain privileges"),
            ("apparmor", "", "text", "PROFILE", "its AppArmor profile"),
            ("process-label", "", "text", "LABEL", "its SELinux label"),
            _DETACH,
            _PID_FILE,
            _CONSOLE,
            _PIDFD,
            _PRESERVE,
            ("cgroup", "", "list", "[CONTROLLER,...:]PATH",
             "run it in this cgroup below the container's; controllers are v1's"),
            ("ignore-paused", "", "bool", "", "go on if the container is paused"),
        ),
    ),
    "state": ("ID", 1, 1, False, "show a container's state as JSON", ()),
    "kill": (
        "ID [SIGNAL]", 1, 2, False, "send a signal (TERM) to a container's first process",
        (("all", "a", "bool", "", "to all of its processes; no error if it has stopped"), _REGEX),
    ),
    "delete": (
        "ID", 1, 1, False, "remove a stopped container and all that create made for it",
        (("force", "f", "bool", "", "kill it first if it runs; no error if there is none"), _REGEX),
    ),
    "list": (
        "", 0, 0, False, "show all containers",
        (
            ("format", "f", "text", "table|json", "how (table)"),
            ("quiet", "q", "bool", "", "only the IDs"),
        ),
    ),
    "ps": (
        "ID [PS OPTION...]", 1, -1, True, "show a container's processes",
        (("format", "f", "text", "table|json", "output of ps(1), or the pids (table)"),),
    ),
    "update": (
        "ID", 1, 1, False, "change the limits of a container",
        (
            ("resources", "r", "text", "FILE|-", "JSON of /linux/resources, or a part; other flags have no say"),
            ("memory", "", "text", "BYTES", "memory limit; units as in 512M, -1 for none"),
            ("memory-reservation", "", "text", "BYTES", "memory that is kept for it"),
            ("memory-swap", "", "text", "BYTES", "limit of memory and swap together"),
            ("cpu-period", "", "text", "US", "period of the CPU quota"),
            ("cpu-quota", "", "text", "US", "CPU time in a period"),
            ("cpu-burst", "", "text", "US", "unused CPU time that may be saved up"),
            ("cpu-share", "", "text", "N", "share of the CPU beside others"),
            ("cpu-rt-period", "", "text", "US", "period of real-time processes"),
            ("cpu-rt-runtime", "", "text", "US", "real-time CPU time in a period"),
            ("cpu-idle", "", "text", "0|1", "run only when nobody else wants to"),
            ("cpuset-cpus", "", "text", "LIST", "processors"),
            ("cpuset-mems", "", "text", "LIST", "memory nodes"),
            ("pids-limit", "", "text", "N", "most processes, -1 for no limit"),
            ("blkio-weight", "", "text", "N", "weight of its block I/O, 10 to 1000"),
            ("kernel-memory", "", "text", "BYTES", "accepted for compatibility: the kernel has no such limit any more"),
            ("kernel-memory-tcp", "", "text", "BYTES", "accepted for compatibility"),
            ("l3-cache-schema", "", "text", "SCHEMA", "Intel RDT: schema of the L3 cache"),
            ("mem-bw-schema", "", "text", "SCHEMA", "Intel RDT: schema of memory bandwidth"),
        ),
    ),
    "events": (
        "ID", 1, 1, False, "show what a container uses, and when it runs out of memory, as lines of JSON",
        (
            ("interval", "", "text", "DURATION", "time between two statistics (5s)"),
            ("stats", "", "bool", "", "show them once, now"),
        ),
    ),
    "mounts": (
        "add|remove|list ID [FILE|-]",
        2,
        3,
        False,
        "add mounts (JSON as /mounts of config.json) to a running container, remove or show them",
        (),
    ),
    "checkpoint": (
        "ID", 1, 1, False, "write a running container to files, and delete it (CRIU)",
        (
            *_IMAGES,
            ("parent-path", "", "text", "DIR", "images of an earlier --pre-dump, relative to --image-path"),
            ("leave-running", "", "bool", "", "do not end it"),
            ("pre-dump", "", "bool", "", "write its memory only, and let it run on"),
            ("page-server", "", "text", "ADDRESS:PORT", "send memory to this page server"),
            ("tcp-skip-in-flight", "", "bool", "", "without TCP connections that are not established yet"),
        ),
    ),
    "restore": (
        "ID", 1, 1, False, "make a container of the files that checkpoint wrote (CRIU)",
        (
            *_IMAGES,
            _BUNDLE,
            _CONSOLE,
            _DETACH,
            _PID_FILE,
            ("keep", "", "bool", "", "do not delete the container when it ends"),
            ("no-pivot", "", "bool", "", "accepted for compatibility: CRIU makes the root"),
            _SUBREAPER,
            ("lsm-profile", "", "text", "TYPE:NAME", "another AppArmor profile or SELinux label than in the images"),
            ("lsm-mount-context", "", "text", "CONTEXT", "another SELinux context of mounts than in the images"),
        ),
    ),
    "pause": ("ID", 1, 1, False, "freeze a container's processes", ()),
    "resume": ("ID", 1, 1, False, "let a paused container go on", ()),
    "spec": (
        "", 0, 0, False, "write a config.json to start from",
        (
            ("bundle", "b", "text", "DIR", "where (the working directory)"),
            ("file", "f", "text", "FILE", "its name (config.json); relative to the bundle"),
            ("rootless", "", "bool", "", "for the user that calls, without root's rights"),
        ),
    ),
    "validate": (
        "[BUNDLE|FILE]", 0, 1, False, "show everything that is wrong with a config.json, and where",
        (
            ("strict", "", "bool", "", "unknown names are errors, too"),
            ("host", "", "bool", "", "also show what this host cannot do"),
            ("format", "f", "text", "text|json", "how (text)"),
        ),
    ),
    "features": ("", 0, 0, False, "show what this runtime can do, as JSON for engines", ()),
    "plan": (
        "", 0, 0, False, "show the kernel calls that would make a container, and make none",
        (
            _BUNDLE,
            ("host", "", "text", "FILE", "plan for the host described there instead of this one"),
            ("show-host", "", "bool", "", "show what the bundle's plan needs to know of this host, for --host"),
            ("format", "f", "text", "text|json", "how (text)"),
        ),
    ),
}
# fmt: on
TRUE = ("1", "t", "T", "true", "TRUE", "True")
FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Parsed:
    """One command line, or the global part of one: flags by name, and the arguments that are none."""

    __slots__ = ("args", "values")

    def __init__(self) -> None:
        self.args: list[str] = []
        self.values: dict[str, str | bool | int | list[str]] = {}

    def flag(self, name: str) -> bool:
        """A "bool" flag."""
        return self.values.get(name) is True

    def text(self, name: str, default: str = "") -> str:
        """A "text" flag."""
        value = self.values.get(name)
        return value if isinstance(value, str) else default

    def path(self, name: str) -> str:
        """A "text" flag that names a file or a directory, from the root; "" when not given."""
        from pyoci.options import absolute

        value = self.text(name)
        return absolute(value) if value else ""

    def count(self, name: str) -> int:
        """A "count" flag, 0 when not given."""
        value = self.values.get(name)
        return value if isinstance(value, int) else 0

    def many(self, name: str) -> list[str]:
        """A "list" flag: every value given, in order."""
        value = self.values.get(name)
        return value if isinstance(value, list) else []


class Globals:
    """What the flags before the command say; `root_given` tells --root from the default, `rootless` None is auto."""

    __slots__ = ("cgroup_manager", "debug", "root", "root_given", "rootless")

    def __init__(
        self, root: str, root_given: bool, debug: bool, cgroup_manager: str = "cgroupfs", rootless: bool | None = None
    ) -> None:
        self.root = root
        self.root_given = root_given
        self.debug = debug
        self.cgroup_manager = cgroup_manager
        self.rootless = rootless


def parse(flags: Sequence[Flag], argv: Sequence[str], stop: bool, parsed: Parsed | None = None) -> Parsed:
    """Read `argv` into `parsed`; with `stop`, all from the first argument on is arguments.  UsageError says what is
    wrong."""
    known: dict[str, Flag] = {}
    for flag in flags:
        known[flag[0]] = flag
        if flag[1]:
            known[flag[1]] = flag
    parsed = parsed or Parsed()
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        # "-" and numbers are arguments: `kill ID -1` shall complain about the signal
        if word == "-" or not word.startswith("-") or word[1].isdigit():
            parsed.args.append(word)
            if stop:
                break
            continue
        if word == "--":
            break
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        found = known.get(name)
        if found is None:
            if name in ("h", "help"):
                parsed.values["help"] = True
                return parsed
            # -it for -i -t
            if not equals and not word.startswith("--") and all(known.get(c, ("", "", ""))[2] == "bool" for c in name):
                parsed.values.update({known[c][0]: True for c in name})
                continue
            from pyoci.commands.usage import elsewhere

            raise UsageError(f"flag provided but not defined: -{name}{elsewhere(name, flags)}")
        if not equals and found[2] != "bool":
            if index == len(argv):
                raise UsageError(f"flag needs an argument: -{name}")
            value = argv[index]
            index += 1
        _store(parsed, found, name, value if equals or found[2] != "bool" else "true")
    parsed.args.extend(argv[index:])
    return parsed


def _store(parsed: Parsed, flag: Flag, name: str, value: str) -> None:
    full, kind = flag[0], flag[2]
    if kind == "bool":
        if value not in TRUE and value not in FALSE:
            raise UsageError(f'invalid boolean value "{value}" for -{name}: parse error')
        parsed.values[full] = value in TRUE
    elif kind == "count":
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise UsageError(f'invalid value "{value}" for flag -{name}: parse error')
        parsed.values[full] = int(value)
    elif kind == "list":
        parsed.values[full] = [*parsed.many(full), value]
    else:
        parsed.values[full] = value


def main(argv: list[str]) -> int:
    """Run the command line `argv` (without the program's name) and return the exit status.

    Nothing is raised: a failure is one line on stderr, the same in the log, and a status that is not 0.
    """
    name = ""
    given = Parsed()
    try:
        try:
            parse(GLOBAL, argv, True, given)
        finally:  # who gave us a log finds there what is wrong with the flags behind it
            debug = given.flag("debug") or given.text("log-level") == "debug"
            level = "debug" if debug else given.text("log-level", "warning")
            log.configure(given.text("log"), given.text("log-format", "text"), level)
        if given.flag("version"):
            from pyoci.commands.version import show

            return show()
        name = given.args[0] if given.args else ""
        if given.flag("help") or name in ("", "help"):
            from pyoci.commands.usage import overview

            return overview(given.args[1:])
        command = COMMANDS.get(name)
        if command is None:
            log.error(f"No help topic for '{name}': there is no such command (see pyoci --help)")
            return 3
        return _run(name, command, given)
    except UsageError as error:
        where = f"pyoci {name} --help" if name in COMMANDS else "pyoci --help"
        log.error(f"Incorrect Usage: {error} (see {where})")
        return error.exit_status
    except PyociError as error:
        log.error(PREFIX.get(name, "") + str(error))
        return 255 if name == "exec" else error.exit_status
    except KeyboardInterrupt:
        log.error(PREFIX.get(name, "") + "interrupted")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (EMFILE, ENFILE):
            log.error(f"{PREFIX.get(name, '')}too many open files; {OPEN_FILES}")
            return 255 if name == "exec" else 1
        if debug:
            from traceback import print_exc

            print_exc()
        log.error(f"{PREFIX.get(name, '')}internal error: {_describe(error)}")
        return 255 if name == "exec" else 1


# With which operation failed; engines and tests look for these words.
PREFIX = {"create": "pyoci create failed: ", "run": "pyoci run failed: ", "exec": "exec failed: "}


def _run(name: str, command: Command, given: Parsed) -> int:
    _, least, most, stop, _, flags = command
    options = parse(flags, given.args[1:], stop)
    if options.values.get("help") is True:
        from pyoci.commands.usage import overview

        return overview([name])
    count = len(options.args)
    if count < least or (0 <= most < count):
        if least == most:
            raise UsageError(f'"{name}" requires exactly {least} argument(s)')
        limit = f"minimum of {least}" if count < least else f"maximum of {most}"
        raise UsageError(f'"{name}" requires a {limit} argument(s)')
    manager, rootless = _cgroup_flags(given)
    if "pyoci" in sys._xoptions:
        from pyoci import archive

        archive.load(name)
    from pyoci.directory import default_root
    from pyoci.options import absolute
    from pyoci.signals import SIGCHLD, default

    # An engine that ignores SIGCHLD would have the kernel reap our children before we learn how they ended.
    default(SIGCHLD)
    root = given.text("root")
    settings = Globals(absolute(root) if root else default_root(), root != "", given.flag("debug"), manager, rootless)
    if log.debugging:
        from pyoci import VERSION

        log.debug(f"pyoci {name}", version=VERSION, root=settings.root, cgroups=manager)
    module = __import__("pyoci.commands." + name, None, None, ["run"])
    status: int = module.run(settings, options)
    return status


def _cgroup_flags(given: Parsed) -> tuple[str, bool | None]:
    """--cgroup-manager and --rootless; engines give them to every command."""
    rootless = given.text("rootless", "auto")
    if rootless not in ("auto", *TRUE, *FALSE):
        raise UsageError(f'invalid value "{rootless}" for flag -rootless: true, false or auto')
    manager = "systemd" if given.flag("systemd-cgroup") else given.text("cgroup-manager", "cgroupfs")
    if manager not in ("cgroupfs", "systemd", "disabled"):
        raise UsageError(f'invalid value "{manager}" for flag -cgroup-manager: cgroupfs, systemd or disabled')
    return manager, None if rootless == "auto" else rootless in TRUE


def _describe(error: Exception) -> str:
    """`Type: text (at file:line)` of the place that raised, which is where a maintainer starts."""
    where = ""
    trace = error.__traceback__
    if trace is not None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        where = f" (at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {error}{where}"
