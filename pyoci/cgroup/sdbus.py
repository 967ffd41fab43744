"""D-Bus by systemd's own library, libsystemd.so.0 (sd-bus(3)), through ctypes.

Where systemd is process 1 its library is there too, and loading it with ctypes takes 6 ms.  Libraries in Python take
30, as much as others need for a whole create.  Nothing here waits without an end: sd_bus_call(3) would wait 90 s for a
bus that says nothing, so a connection is driven until it is ready before anything is asked.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from errno import ETIMEDOUT
from time import monotonic

from pyoci.errors import PyociError
from pyoci.gvariant import members
from pyoci.kernel.errnos import words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

LIBRARY = "libsystemd.so.0"
SECOND = 1_000_000  # in its unit of time
NUMBERS: dict[str, Any] = {
    "y": ctypes.c_uint8, "b": c_int, "n": ctypes.c_int16, "q": ctypes.c_uint16, "i": ctypes.c_int32,
    "u": ctypes.c_uint32, "x": ctypes.c_int64, "t": c_uint64, "d": ctypes.c_double,
}  # fmt: skip
OWN_ERRORS = tuple(f"org.freedesktop.DBus.Error.{name}" for name in ("Disconnected", "Timeout"))
STRINGS = ("s", "o", "g")


class _Error(ctypes.Structure):
    """sd_bus_error."""

    _fields_ = (("name", c_char_p), ("message", c_char_p), ("_need_free", c_int))


class Refused(Exception):
    """A call that was answered with an error: D-Bus's `name` for it, and `words`."""

    def __init__(self, name: str, said: str) -> None:
        super().__init__(f"{said} ({name})")
        self.name = name
        self.words = said or name


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise PyociError(
            f"--systemd-cgroup: cannot load {LIBRARY}: {error}; install the package libsystemd0 (Debian, Ubuntu) or"
            " systemd-libs (others)"
        ) from None
    bus, message, handle = c_void_p, c_void_p, POINTER(c_void_p)
    for function, *arguments in (
        ("new", handle),
        ("set_address", bus, c_char_p),
        ("set_bus_client", bus, c_int),
        ("start", bus),
        ("is_ready", bus),
        ("process", bus, handle),
        ("wait", bus, c_uint64),
        ("call", bus, message, c_uint64, POINTER(_Error), handle),
        ("send", bus, message, c_void_p),
        ("message_new_method_call", bus, handle, c_char_p, c_char_p, c_char_p, c_char_p),
        ("message_set_expect_reply", message, c_int),
        ("message_append_basic", message, c_char, c_void_p),
        ("message_append_array", message, c_char, c_char_p, c_size_t),
        ("message_open_container", message, c_char, c_char_p),
        ("message_close_container", message),
        ("message_is_signal", message, c_char_p, c_char_p),
        ("message_has_signature", message, c_char_p),
        ("message_enter_container", message, c_char, c_char_p),
        ("message_read_basic", message, c_char, c_void_p),
    ):
        getattr(library, "sd_bus_" + function).argtypes = arguments
    for function in ("message_unref", "unref"):
        entry = getattr(library, "sd_bus_" + function)
        entry.argtypes, entry.restype = (c_void_p,), c_void_p
    for function in ("message_get_path", "message_get_sender"):
        entry = getattr(library, "sd_bus_" + function)
        entry.argtypes, entry.restype = (message,), c_char_p
    library.sd_bus_error_free.argtypes, library.sd_bus_error_free.restype = (POINTER(_Error),), None
    return library


def _done(result: int) -> int:
    """What a function returned that tells its errors as negative numbers; OSError for those."""
    if result < 0:
        raise OSError(-result, words(-result))
    return result


class Connection:
    """To an address of D-Bus's; OSError where there is nobody, TimeoutError after so many seconds without an answer.

    `bus` says whether it is a bus, which gives us a name, or somebody's own socket.  `answered` is who gave the last
    answer, by the name that the bus gives a connection; "" on a socket.
    """

    def __init__(self, address: str, bus: bool, timeout: float) -> None:
        self.library = _load()
        self.bus = c_void_p()
        self.answered = ""
        library = self.library
        _done(library.sd_bus_new(byref(self.bus)))
        try:
            _done(library.sd_bus_set_address(self.bus, _bytes(address)))
            _done(library.sd_bus_set_bus_client(self.bus, bus))
            _done(library.sd_bus_start(self.bus))
            end = monotonic() + timeout
            while not _done(library.sd_bus_is_ready(self.bus)):
                self._drive(end)
        except OSError:
            library.sd_bus_unref(self.bus)
            raise

    def _drive(self, end: float) -> c_void_p:
        """Do what there is to do, or wait for something until `end`; a message that came in, or a null pointer."""
        message = c_void_p()
        left = end - monotonic()
        # before anything else: there may be something to do for as long as somebody wishes
        if left <= 0:
            raise TimeoutError(ETIMEDOUT, words(ETIMEDOUT))
        if not _done(self.library.sd_bus_process(self.bus, byref(message))):
            _done(self.library.sd_bus_wait(self.bus, int(left * SECOND)))
        return message

    def call(
        self, to: str, path: str, interface: str, member: str, arguments: Sequence[tuple[str, object]], timeout: float
    ) -> str:
        """The answer's first value if that is a string, or a variant with one, else ""."""
        library = self.library
        message = self._message(to, path, interface, member, arguments)
        error, reply = _Error(), c_void_p()
        try:
            result = library.sd_bus_call(self.bus, message, int(timeout * SECOND), byref(error), byref(reply))
            if result < 0:
                name, said = _text(error.name), _text(error.message)
                # the library's own failures are told in the same way
                if not name or name.startswith("System.Error.") or name in OWN_ERRORS:
                    _done(result)
                raise Refused(name, said)
            self.answered = _text(library.sd_bus_message_get_sender(reply))
            if library.sd_bus_message_has_signature(reply, b"v"):
                _done(library.sd_bus_message_enter_container(reply, b"v", b"s"))
                return self._string(reply, "s")
            for kind in ("s", "o"):
                if library.sd_bus_message_has_signature(reply, kind.encode()):
                    return self._string(reply, kind)
            return ""
        finally:
            library.sd_bus_message_unref(message)
            library.sd_bus_message_unref(reply)
            library.sd_bus_error_free(byref(error))

    def send(
        self, to: str, path: str, interface: str, member: str, arguments: Sequence[tuple[str, object]]
    ) -> None:
        """A call that nobody needs the answer of."""
        message = self._message(to, path, interface, member, arguments)
        try:
            _done(self.library.sd_bus_message_set_expect_reply(message, 0))
            _done(self.library.sd_bus_send(self.bus, message, None))
        finally:
            self.library.sd_bus_message_unref(message)

    def signal(
        self, path: str, interface: str, member: str, signature: str, timeout: float
    ) -> tuple[str, list[str | int]]:
        """(who sent it, its values) of the next signal of that kind."""
        end = monotonic() + timeout
        while True:
            message = self._drive(end)
            try:
                if (
                    message.value
                    and self.library.sd_bus_message_is_signal(message, interface.encode(), member.encode()) > 0
                    and self.library.sd_bus_message_get_path(message) == path.encode()
                    and self.library.sd_bus_message_has_signature(message, signature.encode())
                ):
                    sender = _text(self.library.sd_bus_message_get_sender(message))
                    return sender, [self._read(message, kind) for kind in signature]
            finally:
                self.library.sd_bus_message_unref(message)

    def _read(self, message: c_void_p, kind: str) -> str | int:
        if kind in STRINGS:
            return self._string(message, kind)
        number = NUMBERS[kind]()
        _done(self.library.sd_bus_message_read_basic(message, kind.encode(), byref(number)))
        return int(number.value)

    def _string(self, message: c_void_p, kind: str) -> str:
        text = c_char_p()
        _done(self.library.sd_bus_message_read_basic(message, kind.encode(), byref(text)))
        return _text(text.value)

    def _message(
        self, to: str, path: str, interface: str, member: str, arguments: Sequence[tuple[str, object]]
    ) -> c_void_p:
        message = c_void_p()
        names = (part.encode() for part in (to, path, interface, member))
        _done(self.library.sd_bus_message_new_method_call(self.bus, byref(message), *names))
        for signature, value in arguments:
            self._append(message, signature, value)
        return message

    def _append(self, message: c_void_p, signature: str, value: object) -> None:
        library = self.library
        kind = signature[0]
        if signature == "ay":
            assert isinstance(value, bytes)
            _done(library.sd_bus_message_append_array(message, b"y", value, len(value)))
        elif kind in STRINGS:
            _done(library.sd_bus_message_append_basic(message, kind.encode(), _bytes(str(value))))
        elif kind in NUMBERS:
            _done(library.sd_bus_message_append_basic(message, kind.encode(), byref(NUMBERS[kind](value))))
        else:
            assert isinstance(value, (list, tuple))
            if kind == "v":
                container, content = b"v", str(value[0])
                parts = [(content, value[1])]
            elif kind == "a":
                container, content = b"a", signature[1:]
                parts = [(content, item) for item in value]
            else:
                container, content = b"r", signature[1:-1]
                parts = list(zip(members(signature), value, strict=True))
            _done(library.sd_bus_message_open_container(message, container, content.encode()))
            for part in parts:
                self._append(message, *part)
            _done(library.sd_bus_message_close_container(message))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "surrogateescape")
