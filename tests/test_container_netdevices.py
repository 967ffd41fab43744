"""Network devices of a container.  Everything happens in a network namespace of the test's own, never the machine's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import LIMIT, Box, box, needed, until  # noqa: F401 - a fixture

from pyoci.netdevice import tell_lost

pytestmark = [
    *needed,
    pytest.mark.skipif(shutil.which("ip") is None, reason="ip is not installed: install iproute2"),
    pytest.mark.skipif(shutil.which("nsenter") is None, reason="nsenter is not installed: install util-linux"),
]


class Network:
    """A network namespace in which pyoci runs as if it were the machine's, and `ip` in it."""

    def __init__(self, box: Box) -> None:  # noqa: F811
        self.box = box
        self.holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        box.others.append(self.holder)
        self.path = f"/proc/{self.holder.pid}/ns/net"
        ours = Path("/proc/self/ns/net").readlink()
        until(lambda: Path(self.path).readlink() != ours)
        self.enter = ["nsenter", f"--net={self.path}"]
        plain = box.command
        box.command = lambda *args: [*self.enter, *plain(*args)]  # type: ignore[method-assign]
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str, path: str = "") -> str:
        """What `ip` prints in the namespace, or in the one at `path`."""
        enter = ["nsenter", f"--net={path}"] if path else self.enter
        done = subprocess.run([*enter, "ip", *words], capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def show(self, path: str = "") -> dict[str, dict[str, Any]]:
        """Links by name, each with what `ip -details` knows, and its global addresses as text at "global"."""
        links = {}
        for link in json.loads(self.ip("-json", "-details", "address", path=path)):
            found = [entry for entry in link["addr_info"] if entry.get("scope") == "global"]
            links[link["ifname"]] = link | {"global": {f"{entry['local']}/{entry['prefixlen']}" for entry in found}}
        return links

    def inside(self) -> dict[str, dict[str, Any]]:
        """`show` in the container's namespace."""
        return self.show(f"/proc/{self.box.pid()}/ns/net")

    def veth(self, name: str, *addresses: str) -> None:
        """A device whose other end is NAMEp, with addresses."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        for address in addresses:
            self.ip("address", "add", *address.split(), "dev", name)


@pytest.fixture
def net(box: Box) -> Iterator[Network]:  # noqa: F811
    plain = box.command
    yield Network(box)
    box.command = plain  # type: ignore[method-assign]


def devices(net: Network, **wanted: str) -> None:
    """/linux/netDevices: name on the host -> name in the container, "" for none."""
    net.box.linux["netDevices"] = {name: {"name": new} if new else {} for name, new in wanted.items()}


def test_a_device_moves_with_its_addresses(net: Network) -> None:
    net.veth("data0", "192.0.2.7/24 broadcast 192.0.2.255", "2001:db8::7/64 nodad", "198.51.100.1 peer 198.51.100.2/32")
    net.ip("link", "set", "data0", "mtu", "1400", "address", "02:00:00:00:00:07", "alias", "a word", "txqueuelen", "77")
    devices(net, data0="")
    net.box.create()
    assert "data0" not in net.show()
    found = net.inside()["data0"]
    assert found["global"] == {"192.0.2.7/24", "2001:db8::7/64", "198.51.100.1/32"}
    assert "UP" in found["flags"]
    kept = {name: found[name] for name in ("mtu", "address", "ifalias", "txqlen")}
    assert kept == {"mtu": 1400, "address": "02:00:00:00:00:07", "ifalias": "a word", "txqlen": 77}
    by_address = {entry.get("local"): entry for entry in found["addr_info"]}
    assert by_address["192.0.2.7"]["broadcast"] == "192.0.2.255"
    assert by_address["192.0.2.7"]["label"] == "data0"
    assert by_address["198.51.100.1"]["address"] == "198.51.100.2"
    assert by_address["2001:db8::7"]["nodad"] is True


def test_a_physical_device_comes_back(box: Box) -> None:  # noqa: F811
    """The kernel's doing when its namespace ends, with the name that it had there (config-linux.md#network-devices).

    It is of the machine's namespace, so this is for a machine that has one which nobody uses.
    """
    name = os.environ.get("PYOCI_SPARE_DEVICE", "")
    if not name:
        pytest.skip("$PYOCI_SPARE_DEVICE names no network card that may be given away: test_vm.py does")
    ours = Path("/sys/class/net")
    assert (ours / name / "device").exists(), "a device of the kernel's own making"

    def ip(*words: str, pid: int = 1) -> str:
        enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *words]
        return subprocess.run(enter, capture_output=True, text=True, timeout=LIMIT, check=True).stdout

    ip("address", "add", "192.0.2.7/24", "dev", name)
    address = (ours / name / "address").read_text()
    box.linux["netDevices"] = {name: {"name": "data0"}}
    box.write()
    words, null = box.command("create", "--bundle", str(box.bundle), box.id), subprocess.DEVNULL
    # pyroute2 is much for a processor that is emulated
    subprocess.run(words, stdin=null, stdout=null, timeout=8 * LIMIT, check=True)
    assert not (ours / name).exists()
    inside = ip("address", "show", "dev", "data0", pid=box.pid())
    assert "192.0.2.7/24" in inside and ",UP" in inside and address.strip() in inside
    box.ok("delete", "--force", box.id)
    until((ours / "data0").exists)
    assert (ours / "data0/address").read_text() == address
    ip("link", "set", "data0", "name", name)


def test_it_carries_data(net: Network) -> None:
    net.veth("data0", "192.0.2.7/24")
    net.ip("address", "add", "192.0.2.8/24", "dev", "data0p")
    net.ip("link", "set", "data0p", "up")
    devices(net, data0="eth0")
    net.box.capabilities("CAP_NET_RAW")
    (net.box.rootfs / "bin/ping").symlink_to("busybox")
    assert "1 packets received" in net.box.run("ip address; ping -c 1 -w 10 192.0.2.8")


def test_a_new_name(net: Network) -> None:
    net.veth("data0", "192.0.2.7/24 label data0:x")
    devices(net, data0="eth0")
    net.box.create()
    found = net.inside()
    assert set(found) == {"lo", "eth0"} and found["eth0"]["global"] == {"192.0.2.7/24"}
    assert [entry["label"] for entry in found["eth0"]["addr_info"] if entry["family"] == "inet"] == ["eth0:x"]


def test_only_permanent_global_addresses_move(net: Network) -> None:
    net.veth(
        "data0", "192.0.2.7/24", "192.0.2.8/24 valid_lft 1000 preferred_lft 1000", "198.51.101.9/24 scope link",
        "2001:db8::7/64 nodad preferred_lft 0", "2001:db8::8/64 nodad valid_lft 1000 preferred_lft 1000",
    )  # fmt: skip
    devices(net, data0="")
    net.box.create()
    found = net.inside()["data0"]
    assert found["global"] == {"192.0.2.7/24", "2001:db8::7/64"}
    assert not [entry for entry in found["addr_info"] if entry.get("local") == "198.51.101.9"]
    # permanent, but not to be used for new connections
    assert [entry["preferred_life_time"] for entry in found["addr_info"] if entry.get("local") == "2001:db8::7"] == [0]


def test_the_order_of_addresses_is_kept(net: Network) -> None:
    """The first one may be what connections come from."""
    net.veth("data0", *(f"192.0.2.{n}/24" for n in (7, 3, 5)), *(f"2001:db8::{n}/64 nodad" for n in (7, 3, 5)))
    before = [entry["local"] for entry in net.show()["data0"]["addr_info"]]
    devices(net, data0="")
    net.box.create()
    found = [entry["local"] for entry in net.inside()["data0"]["addr_info"]]
    assert [address for address in found if not address.startswith("fe80:")] == before


def test_names_may_change_places(net: Network) -> None:
    net.veth("one", "192.0.2.1/24")
    net.veth("two", "192.0.2.2/24")
    devices(net, one="two", two="one")
    net.box.create()
    found = net.inside()
    assert (found["two"]["global"], found["one"]["global"]) == ({"192.0.2.1/24"}, {"192.0.2.2/24"})


@pytest.mark.parametrize("other", ["eth0", ""])
def test_a_template_of_a_name(net: Network, other: str) -> None:
    """The kernel makes a name of it that is free, whether or not the old one would be."""
    space = joined(net)
    if other:
        net.ip("link", "add", other, "type", "bridge", path=space)
    net.veth("eth0", "192.0.2.7/24")
    net.veth("eth5", "192.0.2.8/24")
    devices(net, eth0="eth%d", eth5="eth%d")
    net.box.create()
    found = {name: link["global"] for name, link in net.inside().items() if name not in ("lo", other)}
    assert len(found) == 2 and all(name[:3] == "eth" and name[3:].isdigit() for name in found)
    assert {text for addresses in found.values() for text in addresses} == {"192.0.2.7/24", "192.0.2.8/24"}


def joined(net: Network) -> str:
    """The path of another namespace, which the container joins."""
    holder = subprocess.Popen([*net.enter, "unshare", "-n", "sleep", "1000"])
    net.box.others.append(holder)
    path = f"/proc/{holder.pid}/ns/net"
    known = {Path("/proc/self/ns/net").readlink(), Path(net.path).readlink()}
    until(lambda: Path(path).readlink() not in known)
    net.box.namespace("network", path)
    return path


def test_into_a_namespace_by_path_where_it_stays(net: Network) -> None:
    """Whoever made the namespace keeps its devices: delete does not bring them back."""
    space = joined(net)
    net.veth("data0", "192.0.2.7/24")
    devices(net, data0="eth0")
    net.box.start()
    net.box.ok("delete", "--force", net.box.id)
    assert net.show(space)["eth0"]["global"] == {"192.0.2.7/24"}
    assert "data0" not in net.show()


def test_a_device_of_the_container_ends_with_its_namespace(net: Network) -> None:
    net.veth("data0")
    devices(net, data0="")
    net.box.start()
    net.box.ok("delete", "--force", net.box.id)
    # the other end of a pair goes with it
    until(lambda: "data0p" not in net.show())
    assert "data0" not in net.show()


def user_namespace(net: Network) -> None:
    """One for the container, in which root is root."""
    net.box.namespace("user")
    ids = [{"containerID": 0, "hostID": 0, "size": 65536}]
    net.box.linux.update({"uidMappings": ids, "gidMappings": ids})


def test_in_a_user_namespace(net: Network) -> None:
    net.veth("data0", "192.0.2.7/24", "2001:db8::7/64 nodad")
    devices(net, data0="eth0")
    user_namespace(net)
    net.box.create()
    assert net.inside()["eth0"]["global"] == {"192.0.2.7/24", "2001:db8::7/64"}


def test_sysctls_and_hooks_find_it(net: Network) -> None:
    net.veth("data0")
    devices(net, data0="eth0")
    net.box.linux["sysctl"] = {"net.ipv4.conf.eth0.forwarding": "1"}
    script = net.box.folder / "hook"
    find = "sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'"
    script.write_text(f"#!/bin/sh\nnsenter --net=/proc/$({find})/ns/net ip link show eth0\n")
    script.chmod(0o755)
    net.box.config["hooks"] = {"createRuntime": [{"path": str(script), "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]}
    assert net.box.run("cat /proc/sys/net/ipv4/conf/eth0/forwarding") == "1\n"


def state(net: Network) -> tuple[Any, ...]:
    """All about data0 that is to be as before: name, number, addresses, flags, routes of the namespace."""
    link = net.show()["data0"]
    addresses = sorted(
        (entry["local"], entry["prefixlen"], entry.get("label", ""), entry["scope"])
        for entry in link["addr_info"]
        if not entry["local"].startswith("fe80:")  # the kernel's own, which come some time after
    )
    lines = [line for f in ("-4", "-6") for line in net.ip(f, "route", "show", "table", "all").splitlines()]
    routes = sorted(line for line in lines if "fe80:" not in line and "ff00:" not in line)
    flags = sorted(set(link["flags"]) - {"LOWER_UP", "NO-CARRIER"})
    return link["ifindex"], link["mtu"], link.get("master"), addresses, flags, routes


def prepared(net: Network) -> tuple[Any, ...]:
    """data0 with addresses, routes and a bridge above it; what `state` says once it has settled."""
    net.ip("link", "add", "above", "type", "bridge")
    net.veth("data0", "192.0.2.7/24", "198.51.101.9/24 scope link", "2001:db8::7/64 nodad")
    net.ip("link", "set", "data0p", "up")
    net.ip("link", "set", "data0", "master", "above", "mtu", "1400", "up")
    net.ip("route", "add", "203.0.113.0/24", "via", "192.0.2.1", "metric", "77")
    net.ip("-6", "route", "add", "2001:db8:1::/48", "via", "2001:db8::1")
    until(lambda: "tentative" not in net.ip("address", "show", "data0"))
    return state(net)


def failed(net: Network, command: str = "run") -> str:
    """The error of a create that fails behind the move, with data0 as it was."""
    before = prepared(net)
    devices(net, data0="eth0")
    error = net.box.refused(command=command)
    until(lambda: "tentative" not in net.ip("address", "show", "data0"))
    assert state(net) == before
    return error


def test_a_failing_hook_brings_it_back_as_it_was(net: Network) -> None:
    net.box.config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}
    assert "/hooks/createRuntime" in failed(net, "create")


def test_a_failing_call_brings_it_back_as_it_was(net: Network) -> None:
    net.box.mount("/b", "bind", str(net.box.folder / "nothing"), "bind")
    assert "/mounts/" in failed(net, "create")


def test_a_program_that_is_not_there_brings_it_back_as_it_was(net: Network) -> None:
    before = prepared(net)
    devices(net, data0="eth0")
    assert "executable file not found" in net.box.refused_with(["nothing"])
    until(lambda: "tentative" not in net.ip("address", "show", "data0"))
    assert state(net) == before


def test_a_second_device_that_is_not_there_moves_none(net: Network) -> None:
    before = prepared(net)
    devices(net, data0="eth0", other="")
    assert "/linux/netDevices/other: there is no network device 'other'" in net.box.refused()
    assert state(net) == before


def test_a_name_that_is_taken(net: Network) -> None:
    space = joined(net)
    net.ip("link", "add", "eth0", "type", "bridge", path=space)
    net.ip("link", "property", "add", "dev", "eth0", "altname", "another", path=space)
    before = prepared(net)
    net.veth("first")
    for name in ("eth0", "another"):
        devices(net, first="", data0=name)
        error = net.box.refused()
        assert f"/linux/netDevices/data0: the container's network namespace has a network device '{name}'" in error
        net.box.id = net.box.new_id()
    assert state(net) == before
    assert set(net.show(space)) == {"lo", "eth0"}


RACE = """\
import json, subprocess, sys
wanted, space = json.loads(sys.argv[1]), sys.argv[2]
sys.path[:] = sys.argv[3:]
from pyoci.errors import CallError
from pyoci.netdevice import NetDevices
from pyoci.plan.net_devices import find, move

class Late(NetDevices):
    def _open(self, pid, op):
        found = super()._open(pid, op)
        subprocess.run(["nsenter", f"--net={space}", "ip", "link", "add", "eth0", "type", "bridge"], check=True)
        return found

made = Late()
made.perform(find(wanted)[0], 0)
try:
    made.perform(move(wanted)[0], int(space.split("/")[2]))
except CallError as error:
    print(error)
made.give_back()
"""


def test_a_name_that_is_taken_at_the_last_moment(net: Network, tmp_path: Path) -> None:
    """The kernel moves first and renames then: what it could not rename comes back."""
    space = joined(net)
    net.veth("data0", "192.0.2.7/24")
    wanted = {"data0": {"name": "eth0"}}
    words = [*net.enter, sys.executable, "-c", RACE, json.dumps(wanted), space, *sys.path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('/linux/netDevices/data0: RTM_NEWLINK("data0", {IFLA_NET_NS_FD=')
    assert ": file exists;" in done.stdout
    assert net.show()["data0"]["global"] == {"192.0.2.7/24"}
    assert set(net.show(space)) == {"lo", "eth0"}


def test_the_runtimes_own_namespace_by_path(net: Network) -> None:
    before = prepared(net)
    net.box.namespace("network", net.path)
    devices(net, data0="eth0")
    assert "/linux/netDevices: the container's network namespace is the runtime's own" in net.box.refused()
    assert state(net) == before


def test_another_name_of_a_device(net: Network) -> None:
    net.veth("data0")
    net.ip("link", "property", "add", "dev", "data0", "altname", "quite-another-long-name")
    net.ip("link", "property", "add", "dev", "data0", "altname", "short")
    devices(net, short="eth0")
    assert "'short' is another name of the network device 'data0'" in net.box.refused()


def test_without_the_right_to_move(net: Network) -> None:
    """Who owns only its container's network may not take a device of the host's."""
    before = prepared(net)
    devices(net, data0="eth0")
    user_namespace(net)
    net.box.write()
    enter = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    words = [*net.enter, *enter, *net.box.command("run", "--bundle", str(net.box.bundle), net.box.id)[len(net.enter) :]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode and done.stderr.count("\n") == 1
    assert "/linux/netDevices/data0" in done.stderr and "CAP_NET_ADMIN" in done.stderr
    net.box.gone()
    assert state(net) == before


def test_killed_with_a_device_on_its_way(net: Network) -> None:
    """Nobody is left who could give it back; it is not lost without a word."""
    prepared(net)
    mark = net.box.folder / "hook"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo >{mark}; exec sleep 2 >/dev/null 2>&1"]}
    net.box.config["hooks"] = {"createRuntime": [hook]}
    devices(net, data0="eth0")
    net.box.write()
    null = subprocess.DEVNULL
    words = net.box.command("create", "--bundle", str(net.box.bundle), net.box.id)
    child = subprocess.Popen(words, stdin=null, stdout=null, stderr=null)
    until(mark.exists, "the hook")
    child.kill()
    child.wait()
    done = net.box("delete", "--force", net.box.id)
    assert done.returncode == 0
    assert "/linux/netDevices/data0: create was killed while it had this device, and it is not back" in done.stderr
    assert "data0" not in net.show()
    net.box.gone()


def test_a_device_that_came_back_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    tell_lost(["lo"])
    assert "what it had of addresses and routes may be lost: see ip address show dev lo" in capfd.readouterr().err
