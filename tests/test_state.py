"""States: directories that only we can write to, files that are whole, and a status that the kernel tells."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import posix
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoci import directory
from pyoci.errors import Exists, NotFound, PyociError
from pyoci.state import (
    ADDED,
    SOCKET,
    State,
    Store,
    alive,
    default_root,
    document,
    ends,
    ids,
    open_init,
    process,
    status,
    timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture
def store(base: str) -> Iterator[Store]:
    made = Store.create(base, "c1")
    yield made
    made.close()


def test_a_directory_that_became_anothers_is_left_alone(store: Store, base: str) -> None:
    """A delete between mkdir and open, and another create: what both have opened is whose state it is."""
    with Store.open(base, "c1") as other:
        other.take()
        other.save(State("c1", "/b", "/r", phase="creating"))
        other.unlock()
        with pytest.raises(Exists):
            store.take()
        assert other.load().phase == "creating"


def test_a_directory_without_a_state_is_taken(store: Store, base: str) -> None:
    store.take()
    with Store.open(base, "c1") as other:
        assert other.busy()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as running:
        yield running
        running.kill()


def state_of(child: subprocess.Popen[bytes], phase: str = "created", listen: bool = True) -> State:
    found = process(child.pid)
    assert found is not None
    return State("c1", "/b", "/b/rootfs", pid=child.pid, pid_start=found[1], phase=phase, listen=listen)


@pytest.mark.parametrize("id", ["a", "A-b_c+d.9", "+", "_", "0", "x" * 255])
def test_ids(id: str) -> None:
    directory.check_id(id)


@pytest.mark.parametrize("id", ["", ".", "..", ".a", "a/b", "/", "a b", "ä", "a\n", "a\0", "x" * 256, "a:b"])
def test_no_ids(id: str, base: str) -> None:
    for operation in (directory.check_id, lambda name: Store.create(base, name), lambda name: Store.open(base, name)):
        with pytest.raises(PyociError, match="invalid container ID format"):
            operation(id)
    assert not os.path.exists(base)


def test_what_create_makes_is_private(base: str) -> None:
    with_store = Store.create(base, "c1")
    assert with_store.path == f"{base}/c1"
    for path in (base, f"{base}/c1"):
        assert os.stat(path).st_mode & 0o077 == 0
    assert not os.get_inheritable(with_store.fd)
    assert not os.get_inheritable(with_store.root_fd)
    with_store.close()
    with_store.close()


def test_an_id_is_taken_once(base: str, store: Store) -> None:
    with pytest.raises(Exists, match="container with given ID already exists"):
        Store.create(base, "c1")
    assert ids(base) == ["c1"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EMFILE])
def test_a_create_that_gets_no_further_leaves_nothing(base: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where states are on a file system without locks, or there is no descriptor left."""

    def refuse(*unused: object, **more: object) -> None:
        raise OSError(number, "refused")

    def open_all_but_it(path: str, *rest: object, **more: object) -> object:
        return (refuse if path == "c1" else opened)(path, *rest, **more)

    opened: Callable[..., object] = posix.open
    os.mkdir(base, 0o700)
    if number == errno.ENOLCK:
        monkeypatch.setattr(fcntl, "flock", refuse)
        with Store.create(base, "c1") as store, pytest.raises(PyociError, match=r"flock\(.*/c1\): no locks available;"):
            store.take()
    else:
        monkeypatch.setattr(posix, "open", open_all_but_it)
        with pytest.raises(OSError, match="refused"):
            Store.create(base, "c1")
    assert os.listdir(base) == []


def test_what_does_not_exist(base: str) -> None:
    with pytest.raises(NotFound):
        Store.open(base, "c1")
    with pytest.raises(FileNotFoundError):
        ids(base)
    assert not os.path.exists(base)


def test_ids_are_sorted_directories(base: str) -> None:
    for name in ("b", "a", "c"):
        Store.create(base, name).close()
    os.mkdir(f"{base}/.cache")
    with open(f"{base}/file", "w", encoding="ascii"):
        pass
    os.symlink("a", f"{base}/link")
    assert ids(base) == ["a", "b", "c"]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_root_that_others_can_write_to_is_refused(base: str, mode: int) -> None:
    os.mkdir(base)
    os.chmod(base, mode)
    for operation in (lambda: Store.create(base, "c1"), lambda: Store.open(base, "c1"), lambda: ids(base)):
        with pytest.raises(PyociError, match="writable by others"):
            operation()


@pytest.mark.root
def test_directories_of_others_are_refused(base: str, store: Store) -> None:
    os.chown(store.path, 12345, 12345)
    with pytest.raises(PyociError, match="belongs to user 12345"):
        Store.open(base, "c1")
    os.chown(base, 12345, 12345)
    with pytest.raises(PyociError, match="belongs to user 12345"):
        ids(base)


def test_a_link_is_no_container(base: str, store: Store) -> None:
    os.symlink(store.path, f"{base}/c2")
    with pytest.raises(PyociError):
        Store.open(base, "c2")


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PyociError, match="not a directory"):
        Store.create(str(tmp_path / "file"), "c1")
    with pytest.raises(PyociError, match="mkdir"):
        Store.create("/proc/nothing/here", "c1")


def test_default_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    def root(uid: int, inside: bool, **environment: str) -> str:
        monkeypatch.setattr(posix, "geteuid", lambda: uid)
        monkeypatch.setattr(directory, "_in_user_namespace", lambda: inside)
        monkeypatch.setattr(posix, "environ", {k.encode(): v.encode() for k, v in environment.items()})
        return default_root()

    assert root(0, False) == "/run/pyoci"
    assert root(0, False, XDG_RUNTIME_DIR="/x") == "/run/pyoci"
    assert root(0, True, XDG_RUNTIME_DIR="/x") == "/x/pyoci"
    assert root(0, True, XDG_RUNTIME_DIR="/x", USER="root") == "/run/pyoci"
    assert root(0, True, XDG_RUNTIME_DIR="") == "/run/pyoci"
    assert root(7, False, XDG_RUNTIME_DIR="/x") == "/x/pyoci"
    assert root(7, False, XDG_RUNTIME_DIR="") == "/run/user/7/pyoci"


def test_a_state_comes_back(store: Store) -> None:
    state = State("c1", "/b", "/r", pid=7, annotations={"a": "é\udcff"}, cgroup_paths={"": "/x"}, listen=False)
    store.save(state)
    assert store.load().to_json() == state.to_json()
    assert os.listdir(store.path) == ["creating.json"]
    state.phase = "created"
    store.save(state)
    assert store.load().to_json() == state.to_json()
    assert os.stat(f"{store.path}/state.json").st_mode & 0o777 == 0o600
    assert os.listdir(store.path) == ["state.json"]


# what config.json, and any path, can hold
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.dictionaries(texts, texts), st.lists(texts), st.integers(0, 2**63), st.booleans())
def test_any_state_comes_back(annotations: dict[str, str], names: list[str], start: int, flag: bool) -> None:
    state = State("i", "b", "r", annotations=annotations, cgroup_created=names, pid_start=start, terminal=flag)
    text = json.dumps(state.to_json())
    assert State.from_json(json.loads(text)).to_json() == state.to_json()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"id": 1}', b"null", b"\xff"])
def test_a_damaged_state_is_an_error(store: Store, data: bytes) -> None:
    store.write("state.json", data)
    with pytest.raises(PyociError, match=r"state\.json is damaged"):
        store.load()


def test_a_later_version_may_know_more(store: Store) -> None:
    raw = State("c1", "/b", "/r").to_json()
    store.write("state.json", json.dumps({**raw, "later": 1}).encode())
    assert store.load().id == "c1"
    del raw["pid"]
    store.write("state.json", json.dumps(raw).encode())
    with pytest.raises(PyociError, match="/pid is missing"):
        store.load()


def test_an_earlier_version_knew_less(store: Store) -> None:
    raw = State("c1", "/b", "/r", pid=7).to_json()
    for name in ADDED:
        del raw[name]
    store.write("state.json", json.dumps(raw).encode())
    state = store.load()
    assert (state.pid, state.mounts, state.net_devices, state.resctrl, state.unit) == (7, {}, [], {}, "")
    assert (state.criu_pid, state.criu_start) == (0, 0)


def test_a_directory_without_a_state_is_no_container_yet(store: Store) -> None:
    with pytest.raises(NotFound):
        store.load()


def test_files_are_replaced_whole(store: Store) -> None:
    """Somebody reads all the time and never sees a file that is missing or half written."""
    store.write("f", b"0" * 100_000)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            data = store.read("f")
            seen.add(data if len(data) != 100_000 or len(set(data)) != 1 else b"whole")

    reader = threading.Thread(target=read)
    reader.start()
    for round in range(200):
        store.write("f", b"%d" % (round % 10) * 100_000)
    stop.set()
    reader.join()
    assert seen == {b"whole"}


@pytest.mark.root
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """In a mount namespace of its own, on a tmpfs of 64 kB."""
    mounted = tmp_path / "m"
    mounted.mkdir()
    script = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]!r}
from pyoci.errors import PyociError
from pyoci.state import State, Store
store = Store.create({str(mounted / "root")!r}, "c1")
store.save(State("c1", "/before", "/r", phase="created"))
try:
    store.save(State("c1", "/b" * 200000, "/r", phase="created"))
except PyociError as error:
    print(error)
print(store.load().bundle, __import__("os").listdir(store.path))
"""
    command = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3"'
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", command, "sh", str(mounted), sys.executable, script],
        check=True,
        capture_output=True,
        text=True,
    )
    first, second = done.stdout.splitlines()
    assert first.endswith("state.json: no space left on device")
    assert second == "/before ['state.json']"


def test_what_a_killed_writer_left_is_in_nobodys_way(store: Store) -> None:
    with open(f"{store.path}/.f.new", "wb") as file:
        file.write(b"half")
    store.write("f", b"whole")
    assert store.read("f") == b"whole"
    store.remove()


def test_the_lock_excludes(base: str, store: Store) -> None:
    other = Store.open(base, "c1")
    store.lock()
    assert other.busy()
    assert not store.busy()
    with pytest.raises(PyociError, match="another command"):
        other.lock(0.02)
    store.unlock()
    assert not other.busy()
    other.lock()
    other.lock()
    with pytest.raises(PyociError, match="another command"):
        store.lock(0)
    other.close()
    store.lock(0)


def test_the_lock_of_a_deleted_container_is_worth_nothing(base: str, store: Store) -> None:
    late = Store.open(base, "c1")
    store.lock()
    store.save(State("c1", "/b", "/r"))
    store.remove()
    with pytest.raises(NotFound):
        late.lock()
    late.close()
    late = Store.create(base, "c1")
    old = Store.open(base, "c1")
    late.remove()
    new = Store.create(base, "c1")
    with pytest.raises(NotFound):
        old.lock()
    new.lock(0)
    new.close()


def test_many_at_once_keep_the_state_whole(base: str, store: Store) -> None:
    store.save(State("c1", "0", "/r"))
    script = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]!r}
from pyoci.state import Store
for _ in range(50):
    store = Store.open({base!r}, "c1")
    store.lock()
    state = store.load()
    state.bundle = str(int(state.bundle) + 1)
    store.save(state)
    store.close()
"""
    workers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert store.load().bundle == "200"


def test_remove_takes_everything_and_the_state_last(base: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(State("c1", "/b", "/r", phase="created"))
    for name in ("a", "z", ".hidden"):
        store.write(name, b"")
    gone: list[str] = []
    unlink = os.unlink

    def see(name: str, *, dir_fd: int) -> None:
        gone.append(name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(posix, "unlink", see)
    store.remove()
    assert gone[-1] == "state.json"
    assert sorted(gone) == [".hidden", "a", "state.json", "z"]
    assert os.listdir(base) == []


def test_processes_are_told_apart(child: subprocess.Popen[bytes]) -> None:
    found = process(child.pid)
    assert found is not None
    state = state_of(child)
    assert alive(state)
    descriptor = open_init(state)
    assert descriptor is not None
    os.close(descriptor)
    state.pid_start += 1
    assert not alive(state)
    assert open_init(state) is None
    assert process(2**22 + 1) is None
    assert open_init(State("c", "b", "r")) is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EPERM])
def test_what_cannot_be_looked_at_has_not_ended(
    store: Store, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """delete would forget a container whose process runs on."""

    def refuse(*unused: object, **more: object) -> None:
        raise OSError(number, "refused")

    state = state_of(child)
    with monkeypatch.context() as patch:
        patch.setattr(posix, "pidfd_open", refuse)
        with pytest.raises(OSError, match="refused"):
            open_init(state)
    monkeypatch.setattr("pyoci.state.read_file", refuse)
    before = len(os.listdir("/proc/self/fd"))
    for look in (lambda: status(store, state), lambda: open_init(state), lambda: ends(child.pid)):
        with pytest.raises(OSError, match="refused"):
            look()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_may_be_called_anything(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "100"]) as running:
        try:
            deadline = time.monotonic() + 30
            while (found := process(running.pid)) is not None and found[0] != "S" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert found is not None
            assert found[0] == "S"
            assert found[1] > 1000
        finally:
            running.kill()


def test_a_zombie_has_stopped(store: Store, child: subprocess.Popen[bytes]) -> None:
    state = state_of(child)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(state)
    assert status(store, state) == "stopped"


def listening(store: Store) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"/proc/self/fd/{store.fd}/{SOCKET}")
    listener.listen(1)
    return listener


def test_created_is_what_listens(store: Store, child: subprocess.Popen[bytes]) -> None:
    state = state_of(child)
    assert status(store, state) == "running"
    with listening(store) as listener:
        for _ in range(3):
            assert status(store, state) == "created"
        # asking left nothing behind
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        # not even when the queue is full
        waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(f"/proc/self/fd/{store.fd}/{SOCKET}")
        assert status(store, state) == "created"
        for one in waiting:
            one.close()
    assert os.path.exists(f"{store.path}/{SOCKET}")
    assert status(store, state) == "running"


def test_created_works_for_long_paths(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    store = Store.create(str(tmp_path / ("x" * 200)), "y" * 200)
    with listening(store):
        assert status(store, state_of(child)) == "created"
    store.close()


def test_without_a_socket_the_phase_decides(store: Store, child: subprocess.Popen[bytes]) -> None:
    assert status(store, state_of(child, "created", listen=False)) == "created"
    assert status(store, state_of(child, "running", listen=False)) == "running"


def test_creating_lasts_as_long_as_its_creator(base: str, store: Store, child: subprocess.Popen[bytes]) -> None:
    state = State("c1", "/b", "/r")
    looking = Store.open(base, "c1")
    store.lock()
    assert status(looking, state) == "creating"
    assert status(looking, state_of(child, "creating")) == "creating"
    store.unlock()
    assert status(looking, state) == "stopped"
    assert status(looking, state_of(child, "creating")) == "stopped"
    looking.close()


def test_a_dead_creators_lock_is_gone(base: str, store: Store) -> None:
    with subprocess.Popen(["flock", store.path, "sleep", "100"], start_new_session=True) as creator:
        deadline = time.monotonic() + 30
        while not store.busy() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status(store, State("c1", "/b", "/r")) == "creating"
        os.killpg(creator.pid, signal.SIGKILL)
    while store.busy() and time.monotonic() < deadline:
        time.sleep(0.01)  # until sleep is gone too, which holds the descriptor as well
    assert status(store, State("c1", "/b", "/r")) == "stopped"


def test_the_document() -> None:
    state = State("c1", "/b", "/r", pid=7, created="T", oci_version="1.3.0", annotations={"k": "v"}, owner=0)
    shown = document(state, "running")
    assert list(shown) == ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner"]
    assert shown["pid"] == 7
    assert shown["owner"] == "root"
    assert document(state, "stopped")["pid"] == 0
    state.annotations = {}
    state.owner = 4294967294
    assert "annotations" not in document(state, "created")
    assert document(state, "created")["owner"] == "#4294967294"


def test_timestamps_are_rfc_3339() -> None:
    text = timestamp()
    assert len(text) == len("2026-11-24T07:54:21.123456789Z")
    assert abs(datetime.fromisoformat(text[:26] + "Z").timestamp() - time.time()) < 60


def test_the_lock_is_flock(store: Store) -> None:
    """Others (a shell script) can take it with flock(1)."""
    store.lock()
    other = os.open(store.path, os.O_RDONLY)
    with pytest.raises(OSError) as refused:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert refused.value.errno == errno.EAGAIN
    os.close(other)
