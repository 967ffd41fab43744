"""Flags of checkpoint and restore, each with a container that could not go on without it, or that it changes."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoints import COUNTER, Images, count, criu, images, works
from containers import CGROUPS, Box, box, needed, processes_of, until

from pyoci.container.checkpoint import CheckpointOptions, checkpoint
from pyoci.criu import service
from pyoci.errors import WrongState

pytestmark = [*needed, works]
__all__ = ("box", "images")


PASSCRED = "Can't get 1:16 opt"
WHY_NOT_TCP = "this criu cannot dump any TCP socket of this kernel, which refuses SO_PASSCRED for them"


def feature(name: str) -> bool:
    """What `criu check` knows of the kernel and of itself."""
    words = [criu(), "check", "--feature", name]
    return subprocess.run(words, capture_output=True, check=False, timeout=30).returncode == 0


SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", {port}))
print("ready", file=open("{ready}", "w"), flush=True)
connection, _ = listener.accept()
while data := connection.recv(100):
    connection.sendall(data.upper())
"""


@pytest.mark.skipif(shutil.which("iptables-restore") is None and shutil.which("nft") is None, reason="needs iptables")
def test_a_connection(box: Box, images: Images) -> None:
    """Of the host's network: refused unless asked for, then what is sent comes back as if nothing had happened."""
    host_programs(box)
    box.without("network")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready = box.rootfs / "tmp/ready"
    (box.rootfs / "tmp/server.py").write_text(SERVER.format(port=port, ready="/tmp/ready"))
    box.start("exec /usr/bin/python3 /tmp/server.py")
    until(lambda: ready.exists() and ready.read_text())
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"one")
        assert client.recv(100) == b"ONE"
        error = box.fails("checkpoint", *images.flags(), box.id)
        assert "criu dump failed: " in error and str(images.work / "dump.log") in error, error

        assert box.status() == "running"
        if PASSCRED in error:
            pytest.skip(WHY_NOT_TCP)
        client.sendall(b"two")
        assert client.recv(100) == b"TWO"
        images.checkpoint("--tcp-established")
        box.gone()
        client.sendall(b"three")
        images.restore("--tcp-established")
        client.settimeout(20)
        assert client.recv(100) == b"THREE"


def test_a_chain_of_memory(box: Box, images: Images) -> None:
    """--pre-dump while it runs, twice, then what has changed since; --auto-dedup on the way."""
    if not feature("mem_dirty_track"):
        pytest.skip("this kernel does not track written pages (CONFIG_MEM_SOFT_DIRTY)")
    pid = box.start("word=$(head -c 400000 /dev/urandom | tr -dc 'a-z'); " + COUNTER)
    until(lambda: count(box) > 2)
    images.checkpoint("--pre-dump", name="1")
    assert (box.status(), box.pid()) == ("running", pid)
    images.checkpoint("--pre-dump", "--parent-path", "../1", name="2")
    images.checkpoint("--parent-path", "../2", "--auto-dedup", name="3")
    box.gone()

    def pages(name: str) -> int:
        return sum(path.stat().st_size for path in (images.images / name).glob("pages-*"))

    assert (images.images / "3/parent").is_symlink()
    assert pages("3") < pages("1")
    before = count(box)
    images.restore(name="3")
    until(lambda: count(box) > before + 3)

def host_programs(box: Box) -> None:
    """The host's interpreter in the container."""
    for name in ("usr", "lib", "lib64"):
        (box.rootfs / name).mkdir(exist_ok=True)
        box.mount(f"/{name}", "bind", f"/{name}", "rbind", "ro")


def python(box: Box, script: str) -> None:
    """A container whose first process runs `script`, which must write a line to /tmp/ready."""
    host_programs(box)
    (box.rootfs / "tmp/script.py").write_text(script)
    box.start("exec /usr/bin/python3 -I -S /tmp/script.py")
    box.output("ready")


LISTENER = """
import os, socket, time
listener = socket.create_server(("127.0.0.1", 0), backlog=5)
clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
print("ready", file=open("/tmp/ready", "w"), flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
served = [listener.accept()[0] for _ in clients]
clients[0].sendall(b"hello")
print(served[0].recv(5).decode(), file=open("/tmp/out", "w"), flush=True)
time.sleep(100)
"""


def test_connections_that_nobody_has_accepted(box: Box, images: Images) -> None:
    """--tcp-skip-in-flight leaves out what CRIU cannot write; without it, that is the error."""
    box.capabilities("CAP_NET_ADMIN")
    python(box, LISTENER)
    box.exec("ip", "link", "set", "lo", "up")
    error = box.fails("checkpoint", *images.flags(), "--tcp-established", box.id)
    assert "criu dump failed: " in error and "n-flight" in error, error
    assert box.status() == "running"
    done = box("checkpoint", *images.flags(), "--tcp-established", "--tcp-skip-in-flight", box.id)
    if PASSCRED in done.stderr:
        pytest.skip(WHY_NOT_TCP)
    assert (done.returncode, done.stderr) == (0, "")
    images.restore("--tcp-established")
    assert box.status() == "running"


LOCK = """
import fcntl, time
file = open("/tmp/locked", "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("ready", file=open("/tmp/ready", "w"), flush=True)
time.sleep(1000)
"""


def test_a_lock(box: Box, images: Images) -> None:
    """--file-locks: refused without, held again with it."""
    python(box, LOCK)
    error = box.fails("checkpoint", *images.flags(), box.id)
    assert "criu dump failed: " in error and "lock" in error, error

    def locked() -> bool:
        with (box.rootfs / "tmp/locked").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    assert locked()
    images.checkpoint("--file-locks")
    assert not locked()
    images.restore("--file-locks")
    assert locked()


OUTSIDE = """
import socket, time
peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
peer.connect("/shared/socket")
print("ready", file=open("/tmp/ready", "w"), flush=True)
n = 0
while True:
    n += 1
    try:
        peer.send(b"%d" % n)
    except OSError as error:
        print(error, file=open("/tmp/error", "w"), flush=True)
    time.sleep(0.02)
"""


def test_a_socket_of_somebody_outside(box: Box, images: Images) -> None:
    """--ext-unix-sk: a datagram socket is connected again to what has its name; CRIU looks for the other end in the
    same network namespace, and by the name that it has for the one who bound it."""
    box.without("network")
    shared = str(box.folder / "shared")
    os.mkdir(shared)
    box.mount(shared, "bind", shared, "bind")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        listener.bind(str(box.folder / "shared/socket"))
        python(box, OUTSIDE.replace("/shared", shared))
        assert int(listener.recv(20)) >= 1
        error = box.fails("checkpoint", *images.flags(), box.id)
        assert "criu dump failed: " in error and "--ext-unix-sk" in error, error
        images.checkpoint("--ext-unix-sk")
        last = 0
        listener.setblocking(False)
        try:
            while True:
                last = int(listener.recv(20))
        except BlockingIOError:
            listener.settimeout(10)
        images.restore("--ext-unix-sk")
        assert last < int(listener.recv(20)) < last + 5


UNLINKED = """
import os, time
file = open("/tmp/gone", "w+")
file.write("kept")
file.flush()
os.link("/tmp/gone", "/tmp/other")
os.unlink("/tmp/gone")
print("ready", file=open("/tmp/ready", "w"), flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
file.seek(0)
print(file.read(), os.fstat(file.fileno()).st_nlink, file=open("/tmp/out", "w"), flush=True)
time.sleep(1000)
"""


def test_a_file_that_has_lost_its_name(box: Box, images: Images) -> None:
    """--link-remap gives it one meanwhile: refused without, gone again after restore."""
    python(box, UNLINKED)
    error = box.fails("checkpoint", *images.flags(), box.id)
    assert "criu dump failed: " in error and "link-remap" in error, error
    before = set(os.listdir(box.rootfs / "tmp"))
    images.checkpoint("--link-remap")
    (meanwhile,) = set(os.listdir(box.rootfs / "tmp")) - before
    assert meanwhile.startswith("link_remap")
    images.restore("--link-remap")
    (box.rootfs / "tmp/go").touch()
    assert box.output() == "kept 1\n"
    assert meanwhile not in os.listdir(box.rootfs / "tmp")


def test_a_session_of_a_shell(box: Box, images: Images) -> None:
    """--shell-job: a terminal that comes from outside the container goes on as the one that restore has."""
    first, slave = os.openpty()
    box.start(COUNTER, stdin=slave, stdout=slave)
    os.close(slave)
    until(lambda: count(box) > 2)
    images.checkpoint("--shell-job")
    before = count(box)
    os.close(first)
    second, slave = os.openpty()
    images.restore("--shell-job", stdin=slave, stdout=slave)
    name = os.ttyname(slave)
    os.close(slave)
    until(lambda: count(box) > before + 3)
    assert os.readlink(f"/proc/{box.pid()}/fd/1") == name
    box.ok("delete", "--force", box.id)
    os.close(second)


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another CRIU at work beside ours."""
    child = subprocess.Popen(
        [criu(), *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listening(port: int) -> bool:
    """Whether somebody does, without a connection that a page server would take for its client's."""
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text(encoding="ascii")


def test_a_page_server(box: Box, images: Images) -> None:
    """--page-server: memory goes there, everything else here; together they are a checkpoint."""
    there = box.folder / "there"
    there.mkdir()
    port = free_port()
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    with running("page-server", "-D", str(there), "--address", "127.0.0.1", "--port", str(port)) as server:
        until(lambda: listening(port) or server.poll() is not None)
        assert server.poll() is None
        images.checkpoint("--page-server", f"127.0.0.1:{port}")
        server.wait(20)
    assert list(there.glob("pages-*")) and not list(images.images.glob("pages-*"))
    assert "criu restore failed: " in images.refused()
    for path in there.iterdir():
        shutil.copy(path, images.images)
    before = count(box)
    images.restore()
    until(lambda: count(box) > before + 3)
    assert "use --page-server ADDRESS:PORT" in box.fails("checkpoint", *images.flags(), "--page-server", "x", box.id)


def serve(box: Box, images: Images) -> tuple[subprocess.Popen[bytes], int, int]:
    """A checkpoint that waits for who wants the container's memory, its CRIU, and the port where that waits."""
    if not feature("uffd-noncoop"):
        pytest.skip("this kernel has no userfaultfd of another process's (criu check --feature uffd-noncoop)")
    port = free_port()
    box.start("word=" + "x" * 100000 + "; " + COUNTER)
    until(lambda: count(box) > 2)
    reading, writing = os.pipe()
    words = ["checkpoint", *images.flags(), "--lazy-pages", "--status-fd", str(writing)]
    dump = subprocess.Popen(
        box.command(*words, "--page-server", f"127.0.0.1:{port}", box.id), pass_fds=[writing],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    box.others.append(dump)
    os.close(writing)
    told = os.read(reading, 1)
    os.close(reading)
    assert told == b"\0", dump.communicate(timeout=30)
    # its memory is here still, and it waits for who wants it
    assert dump.poll() is None
    assert sum(path.stat().st_size for path in images.images.glob("pages-*")) < 100000
    (child,) = Path(f"/proc/{dump.pid}/task/{dump.pid}/children").read_text(encoding="ascii").split()
    return dump, int(child), port


def test_memory_that_is_left_where_it_is(box: Box, images: Images) -> None:
    """--lazy-pages and --status-fd: the caller is told when pages can be asked for."""
    dump, child, port = serve(box, images)
    # not at every address of the machine's, as CRIU has it without more
    assert f" 0100007F:{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text(encoding="ascii")
    os.kill(child, signal.SIGKILL)
    _, said = dump.communicate(timeout=30)
    assert dump.returncode == 1 and b"criu dump failed: " in said
    assert "--page-server" in box.fails("checkpoint", *images.flags(), "--lazy-pages", box.id)


def pipes_can_be_large() -> bool:
    """Whether CRIU may make the pipes that it serves memory through as large as it wants them: beyond what
    fs.pipe-max-size allows only with CAP_SYS_RESOURCE, and it does not notice."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 819 * os.sysconf("SC_PAGE_SIZE"))
    except PermissionError:
        return False
    finally:
        os.close(reading)
        os.close(writing)
    return True


@pytest.mark.skipif(not pipes_can_be_large(), reason="CRIU's page server needs CAP_SYS_RESOURCE")
def test_memory_that_comes_when_it_is_wanted(box: Box, images: Images) -> None:
    """restore --lazy-pages: the container goes on before its memory is there; when that has come, the old one ends."""
    dump, _, port = serve(box, images)
    other = box.new_id()
    before = count(box)
    box.write(other)
    address = ("--page-server", "--address", "127.0.0.1", "--port", str(port))
    with running("lazy-pages", *address, "-D", str(images.images), "-W", str(images.work)) as pages:
        until(lambda: (images.work / "lazy-pages.socket").exists() or pages.poll() is not None)
        images.restore("--lazy-pages", id=other)
        until(lambda: count(box) > before + 3)
        _, said = dump.communicate(timeout=30)
        assert (dump.returncode, said) == (0, b"")
        assert pages.wait(30) == 0
    box.gone()
    assert processes_of(other)
    last = count(box)
    until(lambda: count(box) > last)


def test_memory_that_does_not_come(box: Box, images: Images) -> None:
    """Who should bring it is gone when CRIU has made everything: then CRIU waits for processes that wait for it."""
    if not feature("uffd-noncoop"):
        pytest.skip("this kernel has no userfaultfd of another process's (criu check --feature uffd-noncoop)")
    box.start("sleep 1000 & " + COUNTER)
    until(lambda: count(box) > 2)
    images.checkpoint()
    processes = len(list(images.images.glob("core-*.img")))

    def hear() -> None:
        connection, _ = listener.accept()
        with connection:
            for _ in range(processes):
                connection.recv(4)
                os.close(socket.recv_fds(connection, 1, 1)[1][0])

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(images.work / "lazy-pages.socket"))
        listener.listen(1)
        threading.Thread(target=hear, daemon=True).start()
        error = images.refused("--lazy-pages")
    assert "criu restore failed: " in error and "uffd" in error, error


def test_who_serves_memory_ends_with_the_container(box: Box, images: Images) -> None:
    """A checkpoint that is killed meanwhile leaves its CRIU, which would wait for ever; delete ends it."""
    dump, child, _ = serve(box, images)
    dump.kill()
    dump.communicate(timeout=30)
    descriptor = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([descriptor], [], [], 0.3)
        assert not ended, "it ends by itself: then there is nothing to be remembered"
        assert f"process {child}, waits" in box.fails("checkpoint", *images.flags(), box.id)
        box.ok("delete", "--force", box.id)
        ended, _, _ = select.select([descriptor], [], [], 10)
        assert ended
    finally:
        os.close(descriptor)
    box.gone()


def test_a_network_that_hooks_make(box: Box, images: Images) -> None:
    """--empty-ns network: addresses and links are not in the images; the namespace is, and is empty."""
    box.capabilities("CAP_NET_ADMIN")
    box.start(COUNTER)
    box.exec("ip", "link", "set", "lo", "up")
    until(lambda: count(box) > 2)
    assert "LOOPBACK,UP" in box.exec("ip", "link")
    assert "only network can be made empty" in box.fails("checkpoint", *images.flags(), "--empty-ns", "pid", box.id)
    images.checkpoint("--empty-ns", "network")
    assert not list(images.images.glob("netdev-*"))
    images.restore("--empty-ns", "network")
    assert os.readlink(f"/proc/{box.pid()}/ns/net") != os.readlink("/proc/self/ns/net")
    assert "LOOPBACK,UP" not in box.exec("ip", "link")


@pytest.mark.parametrize("mode", ["ignore", "none", "props", "soft", "full", "strict"])
def test_what_is_done_about_cgroups(box: Box, images: Images, mode: str) -> None:
    """--manage-cgroups-mode: in each the container is where config.json has it; strict wants no cgroup there yet."""
    box.start(COUNTER)
    until(lambda: count(box) > 2)
    images.checkpoint("--manage-cgroups-mode", mode)
    before = count(box)
    if mode == "strict":
        # restore has made it, with the limits that config.json gives, before CRIU looks
        assert "criu restore failed: " in images.refused("--manage-cgroups-mode", mode)
        return
    images.restore("--manage-cgroups-mode", mode)
    until(lambda: count(box) > before)
    for line in Path(f"/proc/{box.pid()}/cgroup").read_text(encoding="utf-8").splitlines():
        controllers = line.split(":")[1]
        if any((CGROUPS / name / box.id).is_dir() for name in (controllers or "unified", ".")):
            assert line.endswith(f"/{box.id}"), line


def test_labels_where_there_is_no_such_module(box: Box, images: Images) -> None:
    """--lsm-profile and --lsm-mount-context reach CRIU, which says what it thinks of them."""
    if Path("/sys/module/apparmor/parameters/enabled").exists() or Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("a security module is enabled here, and this is about machines without")
    box.start(COUNTER)
    images.checkpoint()
    error = images.refused("--lsm-profile", "apparmor:nonexistent")
    assert ("criu restore failed: " in error and "apparmor" in error.lower()) or "lsm" in error.lower(), error
    assert "invalid argument nothing for --lsm-profile" in images.refused("--lsm-profile", "nothing")


def test_where_its_files_go(box: Box, images: Images) -> None:
    """--work-path has logs and statistics, --image-path images; without the first all are together."""
    box.start(COUNTER)
    box.ok("checkpoint", "--image-path", str(images.images), box.id)
    names = {path.name for path in images.images.iterdir()}
    assert {"dump.log", "stats-dump", "inventory.img", "descriptors.json"} <= names
    box.write()
    images.restore()
    assert {path.name for path in images.work.iterdir()} == {"restore.log", "stats-restore"}


def test_configuration_of_criu(box: Box, images: Images) -> None:
    """The annotation org.criu.config names CRIU's own configuration, at checkpoint and at restore."""
    (box.folder / "criu.conf").write_text("tcp-close\nlog-file other.log\n")
    box.config["annotations"] = {"org.criu.config": str(box.folder / "criu.conf")}
    box.start(COUNTER)
    images.checkpoint()
    assert (images.work / "other.log").exists()
    (images.work / "other.log").unlink()
    images.restore()
    assert (images.work / "other.log").exists()


def test_configuration_of_criu_that_is_not_there(box: Box, images: Images) -> None:
    conf = box.folder / "criu.conf"
    conf.touch()
    box.config["annotations"] = {"org.criu.config": str(conf)}
    box.start(COUNTER)
    images.checkpoint()
    conf.unlink()
    assert f"/annotations/org.criu.config: open {conf}: no such file or directory" in images.refused()
    conf.touch()
    images.restore()


def test_a_container_that_ends_meanwhile(box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Between the look at its status and CRIU's."""
    box.start(COUNTER)
    pid = box.pid()

    def find() -> str:
        os.kill(pid, signal.SIGKILL)
        until(lambda: box.status() == "stopped")
        return criu()

    monkeypatch.setattr(service, "find", find)
    with pytest.raises(WrongState, match="container not running"):
        checkpoint(str(box.states), box.id, CheckpointOptions(str(tmp_path / "images")))
