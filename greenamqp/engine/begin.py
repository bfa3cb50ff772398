# SPDX-License-Identifier: Apache-2.0
"""How many links the peer takes in a session: its first Begin frame says it.

proton keeps to that limit and does not tell it: a link beyond it leaves the connection
standing still, without an event.  So the bytes that come from the peer are read along,
from the first one to its first Begin (AMQP 1.0 part 2, section 2.7.2).
"""

from __future__ import annotations

import struct

import proton

# Protocol headers, SASL's and AMQP's, have as many bytes as a frame's header.
_HEADER = 8
_HEADER_MAGIC = b"AMQP"

_AMQP_FRAME = 0

# The performative's descriptor, in both of its encodings (section 1.6.10, 2.7.2).
_BEGIN = (b"\x00\x53\x11", b"\x00\x80" + struct.pack(">Q", 0x11))

# Where handle-max stands among the Begin's fields.
_HANDLE_MAX = 4

# An Open or Begin is not longer; a longer frame is passed over.
_MAX_LENGTH = 64 * 1024


class BeginReader:
    """Reads a stream up to the first Begin.

    :ivar done: no more bytes are wanted: the Begin was there, or the stream is no AMQP
    :ivar max_links: how many links the peer takes in a session; None: not known
    """

    __slots__ = ("_buffer", "_skip", "done", "max_links")

    def __init__(self) -> None:
        self.done = False
        self.max_links: int | None = None
        self._buffer = bytearray()
        # How much of a frame that is passed over is still to come.
        self._skip = 0

    def feed(self, data: memoryview) -> None:
        """The next bytes of the stream."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        buffer += data
        while not self.done and len(buffer) >= _HEADER:
            if buffer.startswith(_HEADER_MAGIC):
                del buffer[:_HEADER]
                continue
            size, offset, kind = struct.unpack_from(">IBB", buffer)
            if size < _HEADER or not _HEADER <= offset * 4 <= size:
                self._finish()
            elif size > _MAX_LENGTH:
                self._skip = max(0, size - len(buffer))
                del buffer[:size]
            elif len(buffer) < size:
                return
            else:
                frame = bytes(buffer[offset * 4 : size])
                del buffer[:size]
                if kind == _AMQP_FRAME and frame.startswith(_BEGIN):
                    self.max_links = _max_links(frame)
                    self._finish()

    def _finish(self) -> None:
        self.done = True
        self._buffer.clear()


def _max_links(begin: bytes) -> int | None:
    data = proton.Data()
    try:
        data.decode(begin)
        data.rewind()
        data.next()
        described = data.get_object()
    except Exception:
        # A peer may nest it as deeply as it likes, or have lists for a map's keys.
        # proton will say what is wrong with it.
        return None
    fields = getattr(described, "value", None)
    if not isinstance(fields, list) or len(fields) <= _HANDLE_MAX:
        return None
    limit = fields[_HANDLE_MAX]
    return int(limit) + 1 if isinstance(limit, int) else None
