"""trace_ids.py - the ids of traces: when each was made, in an order, and never the same twice.

Why:        traces are listed in the order of their time, so the time is the head of their id, and
            the index needs no entry for it. The id is a UUID of version 7:

                ms since 1970 (48 bits) | 7 (4) | fraction of the ms (12) | 10 (2) | random (62)

        Used by:    trace_layout.py; any thread of any process
Invariants: U1 the moments of one process rise strictly, even when the clock is set back: then each
            is one step behind the one before, until the clock is past it (test_traces)
            U2 random bits are the system's, and none serve twice, not in a forked child either
            (test_traces)
Cost:       about 0.1 us for an id
Source:     RFC 9562, sections 5.7 and 6.2 (method 3)
"""

from __future__ import annotations

import os
import re
import struct
from typing import Final

from shm_engine._core import forget_random, new_uuid, trace_text

__all__ = ["new_uuid", "parse_id", "text_of", "time_of"]

PREFIX: Final = "trace-"
FORM: Final = re.compile(
    r"trace-[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)
TEXT_SIZE: Final = 42
HEAD: Final = struct.Struct(">Q8x")


os.register_at_fork(after_in_child=forget_random)


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
    return trace_text(uuid)


def time_of(uuid: bytes) -> int:
    """When it was made, in milliseconds since 1970.

    >>> time_of(bytes.fromhex("0190163d8694739baea5966c26f8ad91"))
    1718360049300
    """
    moment: int = HEAD.unpack(uuid)[0]
    return moment >> 16
