"""Take a snapshot of an interpreter that has imported everything: what launcher/snapshot.c resumes, and why it may.

An interpreter is started as the launcher would start it, imports what the commands of archives need, practises
(`container.rehearsal`), and waits in read(2) (`waiting`).  It is stopped there with ptrace(2), its mappings and
registers are written down, and it is killed.  The file is tried before it gets its name (`snapshot_write`); if anything
is not as expected there is no snapshot, and commands start an interpreter as before.

Mappings of files that nobody has written to are mapped from those files again; all else is in the snapshot, page by
page, but for pages of zeros.  Three things in memory say something about the process that it was taken of, and are
found by their values: addresses inside the vdso, which is elsewhere in every process; the end of the heap, which is set
to where brk(2) can never grow, so that malloc(3) maps memory instead; and the base of the thread's data, which is in a
register.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from copy import copy
from pathlib import Path
from struct import Struct, iter_unpack

from pyoci.container.rehearsal import USED
from pyoci.waiting import SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
ZEROS = bytes(PAGE)
MAGIC = b"pyoci snapshot 5"
CHECKED = 24  # bytes before what `check` is of
HEAD = 65536  # bytes of the file before the first page
STACK = 8 << 20
# brk(2) to somewhere above all mappings fails, because they are in between
HEAP_END = 0x7FFF_0000_0000
SHORTEST = 8  # pages of zeros that are worth a mapping of their own
PATIENCE = 30.0  # seconds; a machine may be busy
# struct head, struct mapping, struct mapped_file, struct range of launcher/snapshot.c
START = Struct("<16sQ17QQQQQQQQQQQQ")
MAPPING = Struct("<QQQii")
FILE = Struct("<208sQQqqIIII")
RANGE = Struct("<QQQ")
SNAPSHOT, NOTHING, DENSE = -1, -2, -3
HUGE = 2 << 20  # bytes of a huge page
# Pages in use that are worth a huge page: filling one costs as much as 90 that are written to one by one.
MANY = 192
# Pages that nobody uses, between two that are: to fill them costs less than another call.
GAP = 2
# madvise(2)
POPULATE_READ, POPULATE_WRITE = 22, 23
LATE = 0x100  # in a protection: writable until addresses are put right
# user_regs_struct of the kernel (x86_64), by position
R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, _, RDX, RSI, RDI, ORIG_RAX, RIP, _, _, RSP, _, FS_BASE = range(22)
PTRACE_GETREGS, PTRACE_SEIZE, PTRACE_INTERRUPT, EXITKILL = 12, 0x4206, 0x4207, 1 << 20
NR_READ = 0
SYSCALL = b"\x0f\x05"


class Unfit(Exception):
    """Why there can be no snapshot."""


class Mapping:
    """A line of /proc/PID/maps; `written` tells whether the process has pages of its own in it."""

    def __init__(self, line: str) -> None:
        place, permissions, offset, _, _, *rest = line.split(maxsplit=5)
        self.start, self.end = (int(word, 16) for word in place.split("-"))
        self.protection = sum(bit for letter, bit in (("r", 1), ("w", 2), ("x", 4)) if letter in permissions)
        self.offset = int(offset, 16)
        self.path = rest[0].strip() if rest else ""
        self.written = False

    def piece(self, start: int, end: int) -> Mapping:
        """A part of memory that is no file's."""
        part = copy(self)
        part.start, part.end = start, end
        return part

    @property
    def anonymous(self) -> bool:
        """No file's: `[anon:NAME]` is memory with a name (PR_SET_VMA(2const)), other brackets are the kernel's."""
        return self.path in ("", "[heap]") or self.path.startswith("[anon:")

    @property
    def empty(self) -> bool:
        """Whether only room is reserved."""
        return not self.path and not self.protection


class Frozen:
    """A process that stands still in read(2)."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.registers = self._stop(descriptor)
        self.memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self.mappings = list(self._look())

    def _stop(self, descriptor: int) -> tuple[int, ...]:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        libc.ptrace.restype = ctypes.c_long
        # it has said that it is about to read; when it sleeps it does
        until = time.monotonic() + PATIENCE
        while not Path(f"/proc/{self.pid}/syscall").read_text(encoding="ascii").startswith(f"{NR_READ} "):
            if time.monotonic() > until:
                raise Unfit("it does not wait")
            time.sleep(0.001)
        # whatever ends us ends it as well: stopped, it would stay for ever
        if libc.ptrace(PTRACE_SEIZE, self.pid, None, EXITKILL) or libc.ptrace(PTRACE_INTERRUPT, self.pid, None, None):
            raise Unfit(f"ptrace: {os.strerror(ctypes.get_errno())}")
        os.waitpid(self.pid, 0)
        values = (ctypes.c_ulong * 27)()
        if libc.ptrace(PTRACE_GETREGS, self.pid, None, values):
            raise Unfit(f"ptrace: {os.strerror(ctypes.get_errno())}")
        found = tuple(values)
        if (found[ORIG_RAX], found[RDI], found[RDX]) != (NR_READ, descriptor, SIZE):
            raise Unfit("it waits for something else")
        return found

    def _look(self) -> Iterator[Mapping]:
        current: Mapping | None = None
        for line in Path(f"/proc/{self.pid}/smaps").read_text(encoding="utf-8").splitlines():
            if "-" in line.split()[0]:
                if current is not None:
                    yield current
                current = Mapping(line)
            elif line.startswith("Anonymous:") and current is not None:
                current.written = line.split()[1] != "0"
        if current is not None:
            yield current

    def read(self, start: int, length: int) -> bytes:
        data = os.pread(self.memory, length, start)
        if len(data) != length:
            raise Unfit("its memory cannot be read")
        return data


class Snapshot:
    """What is written down of a frozen process."""

    def __init__(self, process: Frozen) -> None:
        self.process = process
        self.mappings: list[tuple[int, int, int, int, int]] = []
        self.files: list[str] = []
        self.dense: list[int] = []  # where huge pages are
        self.pages = bytearray()
        self.addresses: list[int] = []
        self.heap_ends: list[int] = []
        special = {mapping.path: mapping for mapping in process.mappings if mapping.path.startswith("[")}
        if "[vdso]" not in special or "[stack]" not in special:
            raise Unfit("no vdso, or no stack")
        self.vdso = special["[vdso]"]
        self.heap = special.get("[heap]")
        self.stack_end = special["[stack]"].end
        # the red zone is below the pointer
        self.stack_start = (process.registers[RSP] - 128) // PAGE * PAGE
        self.stack_used = self.stack_end - self.stack_start
        library = ""
        for place in places(process.mappings):
            self.add_dense(place)
        for mapping in process.mappings:
            if not mapping.empty and (mapping.anonymous or mapping.path.startswith("/")):
                library = mapping.path or library
                for piece in self.outside(mapping):
                    self.add(piece, "/libc.so" in library or "/libc-" in library)
        # the last of the file: the launcher reads it first, and so finds out whether the file is whole
        self.stack_offset = self.keep(self.stack_start, process.read(self.stack_start, self.stack_used))
        if self.heap is not None and len(self.heap_ends) != 1:
            raise Unfit(f"the end of the heap is in {len(self.heap_ends)} places")

    def add(self, mapping: Mapping, of_libc: bool) -> None:
        """A mapping, from its file or from the snapshot."""
        length = mapping.end - mapping.start
        if mapping.path.startswith("/") and not mapping.written:
            if mapping.path.endswith(" (deleted)"):
                raise Unfit(f"{mapping.path}")
            if mapping.path not in self.files:
                self.files.append(mapping.path)
            number = self.files.index(mapping.path)
            self.mappings.append((mapping.start, length, mapping.offset, mapping.protection, number))
            return
        if not mapping.protection & 1:
            self.mappings.append((mapping.start, length, 0, mapping.protection, NOTHING))
            return
        data = bytearray(self.process.read(mapping.start, length))
        if of_libc and self.heap is not None and mapping.protection & 2:
            self.move_heap_end(mapping.start, data, self.heap.end)
        for first, count, empty in runs(data):
            piece = data[first * PAGE : (first + count) * PAGE]
            start = mapping.start + first * PAGE
            if empty:
                self.mappings.append((start, len(piece), 0, mapping.protection, NOTHING))
            else:
                known = len(self.addresses)
                offset = self.keep(start, bytes(piece))
                # what the dynamic linker made read-only has addresses as well
                late = LATE if len(self.addresses) > known and not mapping.protection & 2 else 0
                self.mappings.append((start, len(piece), offset, mapping.protection | late, SNAPSHOT))

    def add_dense(self, place: int) -> None:
        """What is in one huge page, if it is worth one."""
        data = bytearray(HUGE)
        for mapping in self.process.mappings:
            first, last = max(mapping.start, place), min(mapping.end, place + HUGE)
            if first < last and not mapping.empty:
                data[first - place : last - place] = self.process.read(first, last - first)
        used = [page for page in range(HUGE // PAGE) if data[PAGE * page : PAGE * (page + 1)] != ZEROS]
        if len(used) >= MANY:
            first, last = used[0] * PAGE, (used[-1] + 1) * PAGE
            offset = self.keep(place + first, bytes(data[first:last]))
            self.mappings.append((place + first, last - first, offset, 3, DENSE))
            self.dense.append(place)

    def outside(self, mapping: Mapping) -> Iterator[Mapping]:
        """The pieces of a mapping that are in no huge page."""
        for place in sorted(self.dense):
            if mapping.start < place + HUGE and place < mapping.end:
                if mapping.start < place:
                    yield mapping.piece(mapping.start, place)
                if mapping.end <= place + HUGE:
                    return
                mapping = mapping.piece(place + HUGE, mapping.end)
        yield mapping

    def keep(self, start: int, data: bytes) -> int:
        """Pages of the file; their offset."""
        offset = HEAD + len(self.pages)
        self.pages += data
        for index, (word,) in enumerate(iter_unpack("<Q", data)):
            if self.vdso.start <= word < self.vdso.end:
                self.addresses.append(start + 8 * index)
        return offset

    def move_heap_end(self, start: int, data: bytearray, end: int) -> None:
        """Let the C library believe that its heap ends where brk(2) cannot grow it."""
        needle = end.to_bytes(8, "little")
        at = data.find(needle)
        while at >= 0:
            if at % 8 == 0:
                self.heap_ends.append(start + at)
                data[at : at + 8] = HEAP_END.to_bytes(8, "little")
            at = data.find(needle, at + 8)

    def content(self, used: list[tuple[int, ...]]) -> bytes:
        """The file; `used` is the memory that commands use."""
        found = self.process.registers
        # the instruction again, from the start
        order = (R15, R14, R13, R12, RBP, RBX, R11, R11, R10, R9, R8, RAX, RDX, RSI, RDI, RIP, RSP)
        registers = [found[position] for position in order]
        registers[order.index(RAX)] = NR_READ
        registers[order.index(RIP)] -= len(SYSCALL)
        if self.process.read(registers[order.index(RIP)], len(SYSCALL)) != SYSCALL:
            raise Unfit("it does not stand behind a system call")
        ranges = list(self.ranges(used))
        head = START.pack(
            MAGIC, 0, *registers, found[FS_BASE], self.vdso.start, self.vdso.end,
            self.stack_end - STACK, self.stack_end, self.stack_offset, self.stack_used,
            len(self.mappings), len(self.files), len(self.addresses), len(ranges),
        )  # fmt: skip
        head += b"".join(MAPPING.pack(*mapping) for mapping in self.mappings)
        head += b"".join(self.describe(path) for path in self.files)
        head += b"".join(address.to_bytes(8, "little") for address in self.addresses)
        head += b"".join(RANGE.pack(*piece) for piece in ranges)
        head = MAGIC + check(head[CHECKED:]).to_bytes(8, "little") + head[CHECKED:]
        counts = len(self.mappings), len(self.addresses), len(ranges)
        if len(head) > HEAD or len(self.files) > 40 or max(counts) > 200:
            raise Unfit("too many mappings")
        return head.ljust(HEAD, b"\0") + bytes(self.pages)

    def ranges(self, used: list[tuple[int, ...]]) -> Iterator[tuple[int, int, int]]:
        """(address, bytes, advice) of memory to fill at once: what commands use, but for huge pages and zeros."""
        merged: list[list[int]] = []
        for start, length, written in used:
            if merged and merged[-1][2] == written and start - merged[-1][1] <= GAP * PAGE:
                merged[-1][1] = start + length
            else:
                merged.append([start, start + length, written])
        for first, last, written in merged:
            for start, length, _, _, kind in self.mappings:
                begin, end = max(first, start), min(last, start + length)
                if begin < end and (kind == SNAPSHOT or kind >= 0):
                    yield begin, end - begin, POPULATE_WRITE if written else POPULATE_READ

    @staticmethod
    def describe(path: str) -> bytes:
        name = os.fsencode(path)
        if len(name) > 207:
            raise Unfit(f"{path}: too long")
        status = os.stat(path)
        modified, modified_ns = divmod(status.st_mtime_ns, 1_000_000_000)
        # nobody sets that one: what is unpacked over another version can have all else of it
        changed, changed_ns = divmod(status.st_ctime_ns, 1_000_000_000)
        device = os.major(status.st_dev), os.minor(status.st_dev)
        return FILE.pack(
            name, status.st_ino, status.st_size, modified, changed, modified_ns, changed_ns, *device
        )


def check(data: bytes) -> int:
    """What the launcher makes of the head of a snapshot (`mix` of launcher/kernel.h), but for magic and this number."""
    value = 1
    for (word,) in iter_unpack("<Q", data):
        value = (value ^ word) * 0x9E37_79B9_7F4A_7C15 & 0xFFFF_FFFF_FFFF_FFFF
        value ^= value >> 29
    return value


def places(mappings: list[Mapping]) -> Iterator[int]:
    """Starts of huge pages where nothing but memory that can be written to is."""
    found: dict[int, bool] = {}
    for mapping in mappings:
        if not mapping.empty:
            plain = mapping.protection == 3 and mapping.anonymous
            for place in range(mapping.start // HUGE * HUGE, mapping.end, HUGE):
                found[place] = found.get(place, True) and plain
    yield from (place for place, plain in found.items() if plain)


def runs(data: bytes | bytearray) -> Iterator[tuple[int, int, bool]]:
    """(first page, pages, are they all zeros) of pieces that make up `data`; few zeros are not worth a piece."""
    pages = len(data) // PAGE
    empty = [data[PAGE * page : PAGE * (page + 1)] == ZEROS for page in range(pages)]
    pieces: list[list[int]] = []  # first, count, zeros
    for page, zero in enumerate(empty):
        if pieces and bool(pieces[-1][2]) == zero:
            pieces[-1][1] += 1
        else:
            pieces.append([page, 1, int(zero)])
    merged: list[list[int]] = []
    for first, count, zeros in pieces:
        worth = bool(zeros) and count >= SHORTEST
        if merged and not worth and not merged[-1][2]:
            merged[-1][1] += count
        else:
            merged.append([first, count, int(worth)])
    for first, count, zeros in merged:
        yield first, count, bool(zeros)


def waiting_interpreter() -> tuple[subprocess.Popen[bytes], int, int, list[tuple[int, ...]]]:
    """An interpreter that has imported everything, the descriptor that it reads, the other end of that pipe, and the
    memory that commands use (`container.rehearsal.USED`)."""
    from pyoci.__main__ import OPTIONS, PLACES

    reading, writing = os.pipe()
    told, ready = os.pipe()
    body = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pyoci.__main__ import prepare; prepare();"
        "from pyoci import archive; [archive.load(command) for command in (archive.ALL, *archive.HOT)];"
        "import pyoci.cgroup.systemd, pyoci.plan.systemd, pyoci.trust;"
        f"from pyoci.waiting import wait; wait({reading}, {ready})"
    )
    option = f"pyoci={sys._xoptions['pyoci']}"
    child = subprocess.Popen(
        [sys.executable, *OPTIONS, "-X", option, "-c", body, *PLACES],
        env={"LD_PRELOAD": str(Path(__file__).with_name("place.so"))},
        cwd="/",
        pass_fds=(reading, ready),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(ready)
    with open(told, "rb") as file:
        answer = file.read()
    if not answer:
        child.wait()
        raise Unfit("the interpreter did not get as far as waiting")
    return child, reading, writing, list(USED.iter_unpack(answer[:-1]))


def take() -> bytes:
    """The bytes of a snapshot; Unfit or OSError when there cannot be one."""
    child, reading, writing, used = waiting_interpreter()
    try:
        process = Frozen(child.pid, reading)
        try:
            return Snapshot(process).content(used)
        finally:
            os.close(process.memory)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        os.close(reading)
        os.close(writing)
