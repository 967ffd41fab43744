"""Network devices move from our network namespace into the container's (config-linux.md#network-devices).

    find_net_device(name, new)            the device is there, under this very name, and is none of a namespace's own
    move_net_device(name, new, pid)       it is in that process's namespace, named `new`, with its addresses, and up

The kernel takes a device down and its addresses and routes away when it leaves a namespace.  So what is to be kept is
read before, and what the container does not get is kept for the case that create fails: then devices come back as they
were.  The container's namespace is held open until then, because a namespace that ends takes virtual devices with it.

A runtime that is killed in between brings nothing back: then the kernel does what it does when a namespace ends, and
delete says so.

Who moves is the runtime itself, by netlink sockets in both namespaces.  pyroute2 speaks netlink; it is loaded for
nothing else.
"""

from __future__ import annotations

import posix
from _socket import AF_INET6, if_nametoindex
from errno import EBUSY, EEXIST, EINVAL, ENODEV

from pyoci.errors import CallError, PyociError
from pyoci.kernel.errnos import words
from pyoci.kernel.flags import CLONE_NEWNET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyoci.plan.ops import Op

OURS = "/proc/self/ns/net"
TEMPLATE = "%d"
# of an address and of a route, what an equal one is made from: attributes without their "IFA_" and "RTA_"
ADDRESS = ("ADDRESS", "LOCAL", "BROADCAST", "LABEL", "FLAGS", "RT_PRIORITY", "PROTO")
ROUTE = ("DST", "SRC", "GATEWAY", "VIA", "PREFSRC", "PRIORITY", "TABLE", "METRICS", "PREF")
FIELDS = ("family", "dst_len", "src_len", "tos", "proto", "scope", "type", "flags")
# routes that the kernel makes by itself: for addresses, and from router advertisements (rtnetlink(7))
BY_THE_KERNEL = (2, 9)
TABLE_LOCAL = 255
PATIENCE = 1.0  # seconds for devices to come back by themselves


class Device:
    """One device: `name` and `index` with us, `new` and `new_index` in the container; all it had with us."""

    __slots__ = ("addresses", "index", "link", "name", "new", "new_index", "origin", "routes")

    def __init__(self, name: str, new: str, link: Any, origin: str) -> None:
        self.origin = origin
        self.name = name
        self.new = new
        self.link = link
        self.index: int = link["index"]
        self.new_index = 0
        self.addresses: list[Any] = []
        self.routes: list[Any] = []


class Netlink:
    """A routing socket in the network namespace that we are in while it is made."""

    def __init__(self) -> None:
        try:
            from pyroute2 import IPRoute
            from pyroute2.netlink.exceptions import NetlinkError
            from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_PERMANENT
            from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOOPBACK, IFF_UP
        except ImportError as error:
            raise PyociError(f"/linux/netDevices: the Python package pyroute2 cannot be loaded: {error}") from None
        self.error = NetlinkError
        self.permanent: int = IFA_F_PERMANENT
        self.loopback: int = IFF_LOOPBACK
        self.up: int = IFF_UP
        self.socket = IPRoute()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def links(self) -> list[Any]:
        """All devices."""
        return list(self.socket.link("dump"))

    def link(self, name: str) -> Any | None:
        """The device of this name, which may be an alternative one."""
        try:
            return next(iter(self.socket.link("get", ifname=name)))
        except self.error as error:
            if error.code == ENODEV:
                return None
            raise

    def addresses(self, index: int) -> list[Any]:
        """All addresses of a device, in an order that makes the same one of them again: the kernel puts a new IPv6
        address in front of the others, and the first one may be what connections come from."""
        found = [entry for entry in self.socket.addr("dump") if entry["index"] == index]
        return [entry for entry in found if entry["family"] != AF_INET6] + [
            entry for entry in reversed(found) if entry["family"] == AF_INET6
        ]

    def routes(self, index: int) -> list[Any]:
        """The routes of all tables and families that lead through a device and no other."""
        return [entry for entry in self.socket.route("dump") if entry.get_attr("RTA_OIF") == index]

    def change(self, index: int, **what: Any) -> None:
        """RTM_NEWLINK for a device that is there."""
        self.socket.link("set", index=index, **what)

    def add_address(self, **what: Any) -> None:
        """RTM_NEWADDR."""
        self.socket.addr("add", **what)

    def add_route(self, **what: Any) -> None:
        """RTM_NEWROUTE, of one that is not there yet."""
        self.socket.route("add", **what)


class NetDevices:
    """The devices of one create.  `perform` an op; `give_back` when it fails; `close` when it does not."""

    def __init__(self) -> None:
        self.found: dict[str, Device] = {}
        self.moved: list[Device] = []
        self.here: Netlink | None = None
        self.there: Netlink | None = None
        self.target = -1
        self.names: set[str] = set()
        self.indexes: set[int] = set()

    def perform(self, op: Op, pid: int) -> None:
        """Raises CallError or PyociError; what was moved before is given back by `give_back` only."""
        name, new = op.args[:2]
        assert isinstance(name, bytes) and isinstance(new, bytes)
        if op.call == "find_net_device":
            self._find(name.decode(), new.decode(), op)
        else:
            self._move(self.found[name.decode()], pid, op)

    def _find(self, name: str, new: str, op: Op) -> None:
        if self.here is None:
            self.here = Netlink()
        link = self._ask(op, f'RTM_GETLINK("{name}")', lambda here: here.link(name), self.here)
        if link is None:
            raise PyociError(f"{op.origin}: there is no network device {name!r} in the runtime's network namespace")
        own = link.get_attr("IFLA_IFNAME")
        if own != name:
            raise PyociError(f"{op.origin}: {name!r} is another name of the network device {own!r}: use that one")
        if link["flags"] & self.here.loopback:
            raise PyociError(f"{op.origin}: {name!r} is a loopback device, which its network namespace keeps")
        self.found[name] = Device(name, new, link, op.origin)

    def _ask(self, op: Op, call: str, do: Callable[[Netlink], Any], where: Netlink) -> Any:
        try:
            return do(where)
        except where.error as error:
            hint = op.hint
            if error.code == EINVAL:
                hint = "some devices belong to their network namespace and cannot be moved"
            raise CallError(op.origin, call, error.code, words(error.code), "", hint) from None

    def _open(self, pid: int, op: Op) -> Netlink:
        """A socket in the container's network namespace; every name that is asked for must be free there."""
        self.target = posix.open(f"/proc/{pid}/ns/net", posix.O_RDONLY | posix.O_CLOEXEC)
        theirs, ours = posix.fstat(self.target), posix.stat(OURS)
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            raise PyociError(
                "/linux/netDevices: the container's network namespace is the runtime's own, where the devices are"
            )
        home = posix.open(OURS, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            setns(self.target, op.origin)
            try:
                there = Netlink()
                # a socket is in the namespace that it is made in, and it is made when it is needed
                links = there.links()
            finally:
                setns(home, op.origin)
        finally:
            posix.close(home)
        for link in links:
            self.indexes.add(link["index"])
            self.names.add(link.get_attr("IFLA_IFNAME"))
            others = link.get_attr("IFLA_PROP_LIST")
            if others is not None:
                self.names.update(others.get_attrs("IFLA_ALT_IFNAME"))
        for device in self.found.values():
            if device.new in self.names:
                raise PyociError(
                    f"{device.origin}: the container's network namespace has a network device {device.new!r} already; "
                    f"'name' may be another one, or end in %d for a number that is free"
                )
        return there

    def _move(self, device: Device, pid: int, op: Op) -> None:
        here = self.here
        assert here is not None
        if self.there is None:
            self.there = self._open(pid, op)
        there = self.there
        device.addresses = here.addresses(device.index)
        device.routes = here.routes(device.index)
        # its number is chosen, so that the device is known there by whatever name; its own one if that is free
        device.new_index = device.index if device.index not in self.indexes else max(self.indexes) + 1
        self.indexes.add(device.new_index)
        target, new_index = self.target, device.new_index
        # whatever is said of it: a device may have been moved and then not renamed
        self.moved.append(device)
        call = f'RTM_NEWLINK("{device.name}", {{IFLA_NET_NS_FD=/proc/{pid}/ns/net, IFLA_IFNAME="{device.new}"}})'

        def move(here: Netlink) -> None:
            here.change(device.index, net_ns_fd=target, ifname=device.new, new_ifindex=new_index)

        self._ask(op, call, move, here)
        name = self._ask(op, "RTM_GETLINK", lambda there: name_of(there, device.new_index), there)
        for entry in device.addresses:
            flags = entry.get_attr("IFA_FLAGS") or entry["flags"]
            # permanent, and of scope "universe": config-linux.md#network-devices
            if flags & there.permanent and entry["scope"] == 0:
                equal = address(entry, new_index, device.name, name)
                shown = f'RTM_NEWADDR("{name}", {entry.get_attr("IFA_ADDRESS")}/{entry["prefixlen"]})'
                self._ask(op, shown, lambda there, equal=equal: there.add_address(**equal), there)  # type: ignore[misc]
        self._ask(op, f'RTM_NEWLINK("{name}", IFF_UP)', lambda there: there.change(new_index, state="up"), there)

    def give_back(self) -> None:
        """The devices that were moved are here again, as they were; what cannot be done is said, and the rest done."""
        from pyoci import log

        here, there = self.here, self.there
        for device in reversed(self.moved):
            if here is None or there is None:
                break
            try:
                index = self._bring(device, here, there)
            except (OSError, here.error) as error:
                log.warning(f"/linux/netDevices: {device.name!r} could not be brought back: {error}")
                continue
            if index:
                lost = self._restore(device, here, index)
                if lost:
                    log.warning(f"/linux/netDevices: {device.name!r} is back, but without {', '.join(lost)}")
        self.moved.clear()
        self.close()

    def _bring(self, device: Device, here: Netlink, there: Netlink) -> int:
        """Its number here; 0 if it had never left."""
        if not any(link["index"] == device.new_index for link in there.links()):
            return 0
        home = posix.open(OURS, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            # somebody may have taken its number or its name meanwhile: then as the kernel itself does it
            for name, number in ((device.name, device.index), (device.name, None), ("dev%d", None)):
                before = {link["index"] for link in here.links()}
                chosen = {"new_ifindex": number} if number else {}
                try:
                    there.change(device.new_index, net_ns_fd=home, ifname=name, **chosen)
                except there.error as error:
                    if error.code not in (EBUSY, EEXIST) or name != device.name:
                        raise
                    continue
                new = {link["index"] for link in here.links()} - before
                return number or (new.pop() if new else 0)
        finally:
            posix.close(home)
        return 0

    def _restore(self, device: Device, here: Netlink, index: int) -> list[str]:
        """Give it what it had; what it could not get."""
        lost: list[str] = []

        def attempt(what: str, do: Callable[[], None]) -> None:
            try:
                do()
            except here.error as error:
                if error.code != EEXIST:
                    lost.append(f"{what} ({error.args[-1]})")

        master = device.link.get_attr("IFLA_MASTER")
        if master:
            attempt("its master", lambda: here.change(index, master=master))
        for entry in device.addresses:
            equal = address(entry, index, device.name, device.name)
            text = f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}"
            attempt(text, lambda equal=equal: here.add_address(**equal))  # type: ignore[misc]
        if device.link["flags"] & here.up:
            attempt("being up", lambda: here.change(index, state="up"))
        # those with a gateway after those that the gateway is reached by
        for entry in sorted(device.routes, key=lambda entry: entry.get_attr("RTA_GATEWAY") is not None):
            if entry["proto"] in BY_THE_KERNEL or entry["table"] == TABLE_LOCAL:
                continue
            route = {name: entry[name] for name in FIELDS} | {"oif": index}
            for name in ROUTE:
                if (value := entry.get_attr(f"RTA_{name}")) is not None:
                    route[name.lower()] = value
            text = f"the route to {route.get('dst', 'anywhere')}"
            attempt(text, lambda route=route: here.add_route(**route))  # type: ignore[misc]
        return lost

    def close(self) -> None:
        """Let go of the container's namespace."""
        for netlink in (self.here, self.there):
            if netlink is not None:
                netlink.close()
        self.here = self.there = None
        if self.target >= 0:
            posix.close(self.target)
            self.target = -1


def tell_lost(names: list[str]) -> None:
    """Warn of each device that a create had when it was killed: nobody is left who could give it back as it was."""
    from time import monotonic, sleep

    from pyoci import log

    until = monotonic() + PATIENCE
    for name in names:
        # the kernel takes namespaces down at its leisure
        while not (back := _exists(name)) and monotonic() < until:
            sleep(0.01)
        had = f"/linux/netDevices/{name}: create was killed while it had this device"
        if back:
            log.warning(f"{had}; what it had of addresses and routes may be lost: see ip address show dev {name}")
        else:
            log.warning(
                f"{had}, and it is not back: a virtual one has ended with the container's network namespace and has to"
                " be made again; if the namespace was joined by path, it still is there"
            )


def _exists(name: str) -> bool:
    try:
        return bool(if_nametoindex(name))
    except OSError:
        return False


def name_of(netlink: Netlink, index: int) -> str:
    """The name of the device with this number, which must be there."""
    for link in netlink.links():
        if link["index"] == index:
            return str(link.get_attr("IFLA_IFNAME"))
    raise netlink.error(ENODEV)


def address(entry: Any, index: int, old: str, new: str) -> dict[str, Any]:
    """What makes an address equal to `entry`; its label goes with the device's name, as when a device is renamed."""
    equal: dict[str, Any] = {name: entry[name] for name in ("family", "prefixlen", "scope")} | {"index": index}
    for name in ADDRESS:
        value = entry.get_attr(f"IFA_{name}")
        if name == "LABEL" and isinstance(value, str) and value.partition(":")[0] == old:
            value = new + value[len(old) :]
        if value is not None:
            equal[name.lower()] = value
    lifetime = entry.get_attr("IFA_CACHEINFO")
    if lifetime is not None:
        equal |= {"valid": lifetime["ifa_valid"], "preferred": lifetime["ifa_preferred"]}
    return equal


def setns(fd: int, origin: str) -> None:
    """setns(2) into the network namespace `fd`: this thread's sockets are made there from now on."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        hint = "moving network devices needs CAP_SYS_ADMIN over the container's network namespace"
        raise CallError(origin, "setns(/proc/@pid/ns/net, CLONE_NEWNET)", number, words(number), "", hint)
