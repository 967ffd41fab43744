"""restore: a container whose processes CRIU makes of the images that checkpoint wrote."""

from __future__ import annotations

import posix
import stat

from pyoci.container.checkpoint import DESCRIPTORS, NETWORK, PIDS, PROCESS, check, common, config_file
from pyoci.container.create import Blueprint, Creation, check_directory, check_terminal, look, read_config
from pyoci.container.perform import run_container_hooks, write_pid_file
from pyoci.criu import rpc, service
from pyoci.criu.external import of_host, on_this_host
from pyoci.errors import PyociError
from pyoci.kernel.syscalls import numbers
from pyoci.launch import Session, run_ops, template
from pyoci.options import absolute, read_document
from pyoci.plan.container import PlanOptions
from pyoci.plan.external import ROOT, SHOWN, YARD, External, external
from pyoci.plan.namespaces import Namespaces
from pyoci.plan.restoring import FDS, STREAMS, cgroups_of, plan_restore
from pyoci.program import assemble, leading
from pyoci.spec.load import load
from pyoci.state import ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyoci.container.checkpoint import CheckpointOptions
    from pyoci.options import CreateOptions
    from pyoci.spec.types import Spec

OUTSIDE = "criu-outside"  # in the state directory: where CRIU's file system is put together
LOG = "restore.log"
KILL = 9
REPLACED = ("pipe:[", "socket:[", "file[", "tty[")


def restore(options: CreateOptions, images: CheckpointOptions, lsm_profile: str, lsm_mount_context: str) -> int:
    """Exits like the container's first process, or with 0 when detached."""
    if posix.geteuid() != 0:
        raise PyociError("restore: CRIU needs root's rights")
    program = service.find()
    if program.startswith(f"{SHOWN}/"):
        raise PyociError(f"{program}: restore gives CRIU another {SHOWN}, so it cannot be started from there")
    blueprint, outside = draw(options, images, program)
    restoration = Restoration(options, blueprint, images, outside)
    restoration.lsm = [
        field for field in (("lsm_profile", lsm_profile), ("lsm_mount_context", lsm_mount_context)) if field[1]
    ]
    restoration.profile = lsm_profile
    restoration.build()
    return restoration.attend()


def draw(options: CreateOptions, images: CheckpointOptions, program: str) -> tuple[Blueprint, list[External]]:
    """Read, check and plan, as create does; and what comes from the host."""
    bundle = absolute(options.bundle)
    data = read_config(bundle)
    spec = load(data)
    check(spec)
    check_terminal(spec, options, "console" if options.console_socket else None if options.detach else "control")
    host = look(spec, options, bundle)
    check_directory("--image-path", images.image_path)
    if not posix.access(f"{images.image_path}/inventory.img", posix.F_OK):
        raise PyociError(f"--image-path: there is no checkpoint in {images.image_path}: it has no inventory.img")
    plan_options = PlanOptions(
        options.id, bundle, listen=False, cgroup_manager=options.cgroup_manager, rootless=options.rootless
    )
    given = ["control", "rpc", "in", "out", "err"]
    given += [name for name in ("network", "pid") if name in Namespaces(spec.linux).joined]
    folder = f"{absolute(options.root)}/{options.id}/{OUTSIDE}"
    cgroups = cgroups_of(spec, host, plan_options)
    mapped = any(entry.type == "user" for entry in spec.linux.namespaces)
    outside = on_this_host(external(spec, host, bundle, cgroups.paths), mapped)
    work = images.work_path or images.image_path
    asked = spec.process is not None and spec.process.no_new_privileges
    confined = asked or had_no_new_privileges(images.image_path)
    plan = plan_restore(spec, host, plan_options, cgroups, outside, program, folder, work, given, confined)
    return Blueprint(spec, data, host, plan_options, plan, bundle, {}), outside


def had_no_new_privileges(folder: str) -> bool:
    """Whether the container's init had set no_new_privs itself, as checkpoint found it."""
    try:
        data = read_document(f"{folder}/{PROCESS}", PROCESS, regular=True)
        from pyoci.jsontext import loads

        found = loads(data)
    except (PyociError, ValueError):
        return False  # of another runtime's checkpoint
    return isinstance(found, dict) and found.get("noNewPrivileges") is True


class Restoration(Creation):
    """One restore under way: what is made, remembered and undone is as for create; CRIU takes init's place."""

    __slots__ = ("ending", "images", "lsm", "master", "outside", "profile", "unfit")

    def __init__(
        self, options: CreateOptions, blueprint: Blueprint, images: CheckpointOptions, outside: list[External]
    ) -> None:
        self.images = images
        self.outside = outside
        self.lsm: list[tuple[str, rpc.Value]] = []
        self.profile = ""
        self.unfit: list[int] = []  # those of our streams that cannot take the place of the container's
        self.master = -1
        self.ending = False  # the container's init was about to end when we looked last
        super().__init__(options, blueprint, False)

    def _build(self) -> Session:
        blueprint, store = self.blueprint, self.store
        plan = blueprint.plan
        self.announce()
        store.write("config.json", blueprint.data)
        posix.mkdir(OUTSIDE, 0o700, dir_fd=store.fd)
        ops = plan.ops
        first = leading(ops)
        arch = blueprint.host.arch
        image = assemble(ops[first:], template(), arch, numbers(arch), plan.fds, {})
        session = self.session = Session(image, self.performer)
        run_ops(ops[:first], self._before)
        self._talk(session)
        return session

    def _talk(self, session: Session) -> None:
        images, blueprint = self.images, self.blueprint
        image = posix.open(images.image_path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        opened = [image]
        service.let_in(image, blueprint.spec)
        criu = None
        try:
            work = service.directory(images.work_path or images.image_path, "--work-path")
            opened.append(work)
            criu = service.Service(work, LOG, images.work_path or images.image_path)
            null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
            opened.append(null)
            given = {"rpc": criu.theirs.fileno()}
            kept = self._kept(image)
            for number, name in enumerate(STREAMS):
                if not _fits(kept[number], number):
                    self.unfit.append(number)
                given[name] = posix.dup(null if number in self.unfit else number)
                opened.append(given[name])
                if kept[number]:
                    _own(given[name], blueprint.spec)
            joined = Namespaces(blueprint.spec.linux).joined
            for name in ("network", "pid"):
                if name in joined:
                    given[name] = _namespace(*joined[name])
                    opened.append(given[name])
            session.spawn(blueprint.host.kernel, FDS, given, (null, criu.output, criu.output))
            session.play()
            theirs = image
            try:
                # where it is now, of its mount namespace (pyoci.plan.restoring)
                theirs = posix.open(f"/proc/{session.pid}/cwd", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
                opened.append(theirs)
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has ended already: it is asked nevertheless, and what it has said is the answer
            try:
                # by our descriptor: CRIU has another /tmp
                config = config_file(blueprint.spec)
                if config:
                    opened.append(_open("/annotations/org.criu.config", config, posix.O_RDONLY))
                    config = f"/proc/{posix.getpid()}/fd/{opened[-1]}"
                criu.ask(rpc.RESTORE, self._fields(image, theirs, config), self._notified, self._unlock_ends)
            except PyociError as error:
                raise self._explain_streams(error) from None
        finally:
            if criu is not None:
                criu.close()
            for fd in opened:
                posix.close(fd)
        # CRIU has done its work: the container's first process is our child beside it
        posix.waitpid(session.pid, 0)
        session.pid = self.state.pid
        try:
            posix.rmdir(OUTSIDE, dir_fd=self.store.fd)
        except OSError:
            pass  # delete removes it with the rest
        self._restored()
        self._warn()

    def _explain_streams(self, error: PyociError) -> PyociError:
        """What CRIU means by a bad mode."""
        if "has bad mode" not in str(error):
            return error
        ours = ", ".join(f"{number} is a {_kind(number)}" for number in range(3))
        return PyociError(
            f"{error}; a file that was the container's standard stream needs one of the same kind and permissions in"
            f" its place: of restore's descriptors {ours}"
        )

    def _warn(self) -> None:
        """Of what we were given and the container does not use."""
        from pyoci import log

        for number in self.unfit:
            if number and _kind(number) != "/dev/null":
                log.warning(
                    f"restore: what the container writes to descriptor {number} goes to /dev/null, as it did before:"
                    f" CRIU can put a file in its place, and no {_kind(number)}"
                )

    def _fields(self, image: int, work: int, config: str) -> list[tuple[str, rpc.Value]]:
        images, blueprint, state = self.images, self.blueprint, self.state
        spec = blueprint.spec
        fields = common(images, config, image, LOG)
        fields += [("work_dir_fd", work), ("root", f"{SHOWN}/{ROOT}"), ("rst_sibling", True), *self.lsm]
        if images.status_fd >= 0:
            fields.append(("status_fd", images.status_fd))
        for name, path in of_host(self.outside, SHOWN):
            fields.append(("ext_mnt", rpc.encode("ext_mount_map", [("key", name), ("val", path)])))
        for controller, path in state.cgroup_paths.items():
            mount = blueprint.host.cgroup_mounts.get(controller, "")
            entry = [("ctrl", controller.removeprefix("name=")), ("path", path.removeprefix(mount) or "/")]
            fields.append(("cg_root", rpc.encode("cgroup_root", entry if controller else entry[1:])))
        if "" in state.cgroup_paths:
            fields.append(("cgroup_yard", f"{SHOWN}/{YARD}"))
        fields += _join(spec)
        # one for all that were the same
        kept = self._kept(image)
        first = {key: STREAMS[kept.index(key)] for key in kept if key}
        fields += [_inherit(key, FDS[name]) for key, name in first.items()]
        return fields

    def _kept(self, image: int) -> list[str]:
        """CRIU's names of the standard streams that the container had from its caller; "" for none."""
        found = ["", "", ""]
        try:
            data = read_document(f"/proc/self/fd/{image}/{DESCRIPTORS}", DESCRIPTORS, regular=True)
            from pyoci.jsontext import loads

            kept = loads(data)
        except (PyociError, ValueError):
            return found
        if isinstance(kept, list):
            for number, key in enumerate(kept[:3]):
                # nothing but these: a name of a file in the container is not to be replaced by a descriptor of ours
                if isinstance(key, str) and key.startswith(REPLACED):
                    found[number] = key
        return found

    def _notified(self, script: str, pid: int, descriptor: int) -> None:
        state = self.state
        if script == "setup-namespaces":
            self.performer.know(pid)
            self.store.save(state)
            hooks = self.blueprint.spec.hooks
            for kind, entries in (("prestart", hooks.prestart), ("createRuntime", hooks.create_runtime)):
                if entries:
                    self.performer.ran_hooks = True
                    run_container_hooks(kind, entries, state, None)
        elif script == "orphan-pts-master" and descriptor >= 0:
            self._terminal(descriptor)
        elif script == "post-restore":
            self.performer.know(pid)
            self.store.save(state)
        elif script == "pre-resume":
            from pyoci.container.restored import check as check_confinement

            assert self.session is not None
            try:
                check_confinement(self.blueprint.spec, state, self.session.pid, self.profile)
            except BaseException:
                # whatever is answered now, CRIU lets them go on
                from pyoci.cgroup.live import kill_all
                from pyoci.container.restored import descendants

                for one in descendants(state.pid):
                    posix.kill(one, KILL)
                kill_all(state.cgroup_paths)
                raise

    def _unlock_ends(self) -> None:
        """When CRIU fails at its very end, it kills what it has made and waits for the container's init; which waits
        for those processes, whose end must first be seen by who traces them: CRIU."""
        assert self.session is not None
        ending, self.ending = self.ending, ends(self.state.pid)
        if ending and self.ending:
            posix.kill(self.session.pid, KILL)

    def _terminal(self, master: int) -> None:
        if self.options.console_socket:
            import _socket

            from pyoci.console import connect_console_socket

            console = _socket.socket(fileno=connect_console_socket(absolute(self.options.console_socket)))
            try:
                rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, master.to_bytes(4, "little"))
                console.sendmsg([b"/dev/ptmx"], [rights])
            finally:
                console.close()
        else:
            self.master = posix.dup(master)
            posix.set_inheritable(self.master, False)

    def _restored(self) -> None:
        from pyoci.console import hold_signals

        hold_signals()
        state = self.state
        state.phase = "running"
        self.store.save(state)
        if self.performer.pid_file:
            write_pid_file(self.performer.pid_file, state.pid)

    def attend(self) -> int:
        """Stay with the container, as `run` does, unless detached."""
        self.store.unlock()
        if self.options.detach:
            self.store.close()
            return 0
        from pyoci.console import attend

        pidfd = posix.pidfd_open(self.state.pid)
        result = attend(self.state.pid, pidfd, self.master if self.master >= 0 else None)
        posix.close(pidfd)
        if not self.options.keep:
            from pyoci.container.run import forget

            forget(self.store)
        return result


def _namespace(index: int, path: str) -> int:
    return _open(f"/linux/namespaces/{index}/path", path, posix.O_RDONLY | posix.O_NONBLOCK)


def _open(origin: str, path: str, flags: int) -> int:
    try:
        return posix.open(path, flags | posix.O_CLOEXEC)
    except OSError as error:
        from pyoci.kernel.errnos import words

        raise PyociError(f"{origin}: open {path}: {words(error.errno or 0)}") from None


def _fits(key: str, number: int) -> bool:
    """Whether our stream can take the place of the container's: CRIU seeks in what was a file or /dev/null."""
    if not key.startswith("file["):
        return True
    try:
        posix.lseek(number, 0, 1)
    except OSError:
        return False
    return True


def _own(fd: int, spec: Spec) -> None:
    """A stream becomes the user's, as create makes it, or root of a user namespace could not open it again for CRIU."""
    uid = spec.process.user.uid if spec.process is not None else 0
    for entry in spec.linux.uid_mappings:
        if entry.container_id <= uid < entry.container_id + entry.size:
            uid += entry.host_id - entry.container_id
            break
    if uid and not stat.S_ISCHR(posix.fstat(fd).st_mode):
        try:
            posix.chown(fd, uid, -1)
        except OSError:
            pass  # on a file system that is read-only, or that has no owners


def _kind(number: int) -> str:
    """What a descriptor of ours is, in a word."""
    try:
        link = posix.readlink(f"/proc/self/fd/{number}")
        mode = posix.fstat(number).st_mode
    except OSError:
        return "closed one"
    for known, name in ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISREG, "file")):
        if known(mode):
            return f"{name} (mode {mode & 0o7777:o})" if name == "file" else name
    return link


def _inherit(key: str, fd: int) -> tuple[str, rpc.Value]:
    return "inherit_fd", rpc.encode("inherit_fd", [("key", key), ("fd", fd)])


def _join(spec: Spec) -> list[tuple[str, rpc.Value]]:
    """Namespaces by path: network and pid are external in the images, others are joined."""
    fields: list[tuple[str, rpc.Value]] = []
    for entry in spec.linux.namespaces:
        if not entry.path:
            continue
        if entry.type in ("network", "pid"):
            fields.append(_inherit(NETWORK if entry.type == "network" else PIDS, FDS[entry.type]))
        elif entry.type in ("ipc", "uts", "user", "time"):
            path = rpc.encode("join_namespace", [("ns", entry.type), ("ns_file", entry.path)])
            fields.append(("join_ns", path))
    return fields
