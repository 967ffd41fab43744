"""A resctrl file system for machines without the hardware: Intel RDT's rules as the kernel's documentation has them.

    unshare -m --propagation private python resctrl.py DIRECTORY [GROUPS]

mounts one at DIRECTORY, in a mount namespace of its own, and serves it by the kernel's FUSE protocol (linux/fuse.h)
until it is killed.  One cache and one memory controller with domains 0 and 1; at most GROUPS groups; bandwidth in steps
of 10.
What it does not have: the processor's part, and tasks that end or fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

ROOT = 1
S_IFDIR, S_IFREG = 0o040755, 0o100644
DIRECT_IO = 1


class Failed(Exception):
    """An errno for whoever called, and words for info/last_cmd_status."""

    def __init__(self, number: int, words: str = "") -> None:
        super().__init__(words)
        self.number = number
        self.words = words


class Node:
    """A directory with `children`, or a file of a group with the name `kind`."""

    def __init__(self, kind: str, parent: Node | None, group: Group | None = None) -> None:
        self.kind = kind
        self.parent = parent
        self.group = group
        self.children: dict[str, Node] | None = None
        self.number = 0


class Group:
    """A CTRL_MON group, or with `above` a MON group."""

    def __init__(self, above: Group | None = None) -> None:
        self.above = above
        self.tasks: set[int] = set()
        self.schemata = {"L3": {0: 0x7FF, 1: 0x7FF}, "MB": {0: 100, 1: 100}}


class Resctrl:
    """The tree, and what each file does."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.nodes: dict[int, Node] = {}
        self.status = "ok"
        self.writes: list[str] = []
        self.root = self.directory("", None)
        self.default = Group()
        self.fill(self.root, self.default)
        info = self.directory("info", self.root)
        self.file("last_cmd_status", info)
        bandwidth = self.directory("MB", info)
        self.file("bandwidth_gran", bandwidth)

    def add(self, node: Node) -> Node:
        node.number = len(self.nodes) + 1
        self.nodes[node.number] = node
        if node.parent is not None:
            assert node.parent.children is not None
            node.parent.children[node.kind] = node
        return node

    def directory(self, name: str, parent: Node | None, group: Group | None = None) -> Node:
        node = Node(name, parent, group)
        node.children = {}
        return self.add(node)

    def file(self, name: str, parent: Node, group: Group | None = None) -> Node:
        return self.add(Node(name, parent, group))

    def fill(self, node: Node, group: Group) -> None:
        node.group = group
        self.file("tasks", node, group)
        if group.above is None:
            self.file("schemata", node, group)
            self.directory("mon_groups", node, group)

    def groups(self) -> list[Group]:
        return list({id(node.group): node.group for node in self.nodes.values() if node.group is not None}.values())

    def mkdir(self, parent: Node, name: str) -> Node:
        assert parent.children is not None
        if name in parent.children:
            raise Failed(errno.EEXIST)
        if parent is self.root:
            if sum(group.above is None for group in self.groups()) > self.most:
                raise Failed(errno.ENOSPC, "Out of CLOSIDs")
            group = Group()
        elif parent.kind == "mon_groups" and parent.group is not None:
            group = Group(parent.group)
        else:
            raise Failed(errno.EPERM)
        node = self.directory(name, parent, group)
        self.fill(node, group)
        return node

    def rmdir(self, parent: Node, name: str) -> None:
        assert parent.children is not None
        node = parent.children.get(name)
        if node is None:
            raise Failed(errno.ENOENT)
        if node.children is None or node.group is None or node.kind == "mon_groups":
            raise Failed(errno.EPERM)
        (node.group.above or self.default).tasks |= node.group.tasks
        gone = {node.number for node in self.nodes.values() if self.below(node, parent.children[name])}
        del parent.children[name]
        for number in gone:
            self.nodes[number].group = None

    @staticmethod
    def below(node: Node | None, top: Node) -> bool:
        while node is not None:
            if node is top:
                return True
            node = node.parent
        return False

    def read(self, node: Node) -> str:
        if node.kind == "last_cmd_status":
            return self.status + "\n"
        if node.kind == "bandwidth_gran":
            return "10\n"
        if node.group is None:
            raise Failed(errno.ENOENT)
        if node.kind == "tasks":
            return "".join(f"{pid}\n" for pid in sorted(node.group.tasks))
        lines = {name: ";".join(f"{n}={v:{'d' if name == 'MB' else 'x'}}" for n, v in values.items())
                 for name, values in node.group.schemata.items()}  # fmt: skip
        return "".join(f"{name:>6}:{values}\n" for name, values in lines.items())

    def write(self, node: Node, text: str) -> None:
        if node.group is None:
            raise Failed(errno.ENOENT)
        group = node.group
        if node.kind == "tasks":
            pid = int(text)
            if group.above is not None and pid not in group.above.tasks | group.tasks:
                raise Failed(errno.EINVAL, "Can't move task to different control group")
            for other in self.groups():
                # a task of a MON group is also one of the group above
                if other is not group and other is not group.above:
                    other.tasks.discard(pid)
            group.tasks.add(pid)
            return
        if node.kind != "schemata":
            raise Failed(errno.EPERM)
        staged: dict[tuple[str, int], int] = {}
        for line in text.splitlines():
            resource, colon, domains = line.strip().partition(":")
            if not colon or resource not in group.schemata:
                raise Failed(errno.EINVAL, f"Unknown or unsupported resource name '{resource}'")
            for domain in domains.split(";"):
                number, _, value = domain.partition("=")
                if (resource, int(number)) in staged:
                    raise Failed(errno.EINVAL, f"Duplicate domain {number}")
                new = int(value, 10 if resource == "MB" else 16)
                if int(number) not in group.schemata[resource] or not 0 < new <= (100 if resource == "MB" else 0x7FF):
                    raise Failed(errno.EINVAL, f"Mask out of range {value}")
                staged[resource, int(number)] = -(-new // 10) * 10 if resource == "MB" else new
        for (name, place), chosen in staged.items():
            group.schemata[name][place] = chosen


def attributes(node: Node) -> bytes:
    mode = S_IFREG if node.children is None else S_IFDIR
    return struct.pack("<6Q10I", node.number, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def entry(node: Node) -> bytes:
    return struct.pack("<4Q2I", node.number, 0, 0, 0, 0, 0) + attributes(node)


def listing(node: Node, offset: int) -> bytes:
    out = b""
    for index, (name, child) in enumerate((node.children or {}).items()):
        if index >= offset:
            data = name.encode()
            kind = 8 if child.children is None else 4
            out += struct.pack("<QQII", child.number, index + 1, len(data), kind) + data + bytes(-len(data) % 8)
    return out


def answer(tree: Resctrl, opcode: int, number: int, body: bytes) -> bytes | None:
    """The reply's body, None for requests that have none."""
    if opcode == 26:  # INIT
        return struct.pack("<IIIIHHII", 7, 31, 65536, 0, 16, 12, 65536, 1) + bytes(36)
    node = tree.nodes.get(number)
    if opcode in (2, 36, 42):  # FORGET INTERRUPT BATCH_FORGET
        return None
    if node is None:
        raise Failed(errno.ENOENT)
    if opcode == 1:  # LOOKUP
        child = (node.children or {}).get(body.rstrip(b"\0").decode())
        if child is None:
            raise Failed(errno.ENOENT)
        return entry(child)
    if opcode in (3, 4):  # GETATTR SETATTR
        return struct.pack("<QII", 0, 0, 0) + attributes(node)
    if opcode in (14, 27):  # OPEN OPENDIR
        return struct.pack("<QII", 0, DIRECT_IO if opcode == 14 else 0, 0)
    if opcode == 15:  # READ
        _, offset, size = struct.unpack_from("<QQI", body)
        return tree.read(node).encode()[offset : offset + size]
    if opcode == 28:  # READDIR
        return listing(node, struct.unpack_from("<QQ", body)[1])
    if opcode in (18, 25, 29):  # RELEASE FLUSH RELEASEDIR
        return b""
    if opcode in (9, 11, 16):  # MKDIR RMDIR WRITE: what last_cmd_status is about
        tree.status = "ok"
        if opcode == 9:
            return entry(tree.mkdir(node, body[8:].rstrip(b"\0").decode()))
        if opcode == 11:
            tree.rmdir(node, body.rstrip(b"\0").decode())
            return b""
        size = struct.unpack_from("<QQI", body)[2]
        tree.write(node, body[40 : 40 + size].decode())
        return struct.pack("<II", size, 0)
    raise Failed(errno.ENOSYS)


def serve(directory: str, most: int) -> None:
    """Mount, say so, and answer until the end."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"resctrl", directory.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    tree = Resctrl(most)
    print("mounted", flush=True)
    while True:
        try:
            request = os.read(fuse, 1 << 17)
        except OSError:
            return
        _, opcode, unique, number = struct.unpack_from("<IIQQ", request)
        try:
            reply, code = answer(tree, opcode, number, request[40:]), 0
        except Failed as error:
            reply, code = b"", -error.number
            if error.words:
                tree.status = error.words
        if reply is not None:
            os.write(fuse, struct.pack("<IiQ", 16 + len(reply), code, unique) + reply)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8)
