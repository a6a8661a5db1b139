"""trace_ids.py - the ids of traces: when each was made, in an order, and never the same twice.

Why:        traces are listed in the order of their time, so the time is the head of their id, and
            the index needs no entry for it. The id is a UUID of version 7:

                ms since 1970 (48 bits) | 7 (4) | fraction of the ms (12) | 10 (2) | random (62)

            Here the moment is one number of 60 bits, counted in 1/4096 ms.
Used by:    trace_layout.py; any thread of any process
Invariants: U1 the moments of one process rise strictly, even when the clock is set back: then each
            is one step behind the one before, until the clock is past it (test_traces)
            U2 random bits are the system's, and none serve twice: not in another thread, a forked
            child, or a signal handler or finalizer that runs within `new` (test_traces)
Cost:       about 1 us for an id
Source:     RFC 9562, sections 5.7 and 6.2 (method 3)
"""

from __future__ import annotations

import os
import re
import struct
import threading
from time import time_ns
from typing import Final

__all__ = ["new_uuid", "parse_id", "text_of", "time_of"]

PREFIX: Final = "trace-"
FORM: Final = re.compile(
    r"trace-[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)
TEXT_SIZE: Final = 42
HEAD: Final = struct.Struct(">Q8x")
TAILS: Final = 512  # how many are made together
# The first byte of a tail: its upper two bits are the variant of the UUID.
VARIANT: Final = bytes(byte & 0x3F | 0x80 for byte in range(256))


class _Source:
    """Where the UUIDs of this process come from."""

    __slots__ = ("_last", "_lock", "_tails")

    def __init__(self) -> None:
        self._last = 0
        self.renew()

    def renew(self) -> None:
        """In a forked child: another thread of the parent may have been within `new`, and the
        random bits that are left are the parent's."""
        self._lock = threading.RLock()
        self._tails: list[bytes] = []

    def new(self) -> bytes:
        """A new UUID."""
        # The lock is for other threads. A signal handler or finalizer that makes one while its own
        # thread is within here passes it: hence the loop, and each state in one word.
        with self._lock:
            while True:
                last = self._last
                moment = (time_ns() << 12) // 1_000_000
                if moment <= last:
                    moment = last + 1
                if self._last == last:
                    self._last = moment
                    break
            try:
                tail = self._tails.pop()
            except IndexError:
                tail = self._more().pop()
        return (moment >> 12 << 16 | 0x7000 | moment & 0xFFF).to_bytes(8, "big") + tail

    def _more(self) -> list[bytes]:
        random = bytearray(os.urandom(8 * TAILS))
        random[::8] = random[::8].translate(VARIANT)
        tails = self._tails = [
            bytes(random[start : start + 8]) for start in range(0, len(random), 8)
        ]
        return tails


_source = _Source()
os.register_at_fork(after_in_child=_source.renew)

new_uuid = _source.new


def parse_id(text: str) -> bytes | None:
    """The UUID in an id of the form that `text_of` gives, None for any other text.

    >>> parse_id("trace-0190163d-8694-739b-aea5-966c26f8ad91").hex()
    '0190163d8694739baea5966c26f8ad91'
    >>> parse_id("step-1") is None
    True
    """
    if len(text) != TEXT_SIZE or FORM.fullmatch(text) is None:
        return None
    return bytes.fromhex(text[len(PREFIX) :].replace("-", ""))


def text_of(uuid: bytes) -> str:
    """The id with this UUID.

    >>> text_of(bytes.fromhex("0190163d8694739baea5966c26f8ad91"))
    'trace-0190163d-8694-739b-aea5-966c26f8ad91'
    """
    text = uuid.hex("-", 6)  # two of the four hyphens, counted from the end, are right
    return f"trace-{text[:13]}-{text[13:17]}-{text[17:]}"


def time_of(uuid: bytes) -> int:
    """When it was made, in milliseconds since 1970.

    >>> time_of(bytes.fromhex("0190163d8694739baea5966c26f8ad91"))
    1718360049300
    """
    moment: int = HEAD.unpack(uuid)[0]
    return moment >> 16
