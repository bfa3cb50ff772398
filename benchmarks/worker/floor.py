# SPDX-License-Identifier: Apache-2.0
"""The least that a round trip needs: proton's C API, a socket and an epoll set.

No oslo.messaging, no JSON, no scheduler, no reconnecting; one thread.  As many
requests are under way as there are callers.  What a driver on the same engine costs
above this is its own.
"""

import array
import collections
import select
import socket
import time
import urllib.parse

from bodies import body
from cproton_ffi import ffi, lib
from measure import mark, summary

_BUFFER = 1 << 16
_CREDIT = 500

_INIT = lib.PN_CONNECTION_REMOTE_OPEN
_ATTACHED = lib.PN_LINK_REMOTE_OPEN
_DETACHED = lib.PN_LINK_REMOTE_CLOSE
_DELIVERY = lib.PN_DELIVERY
_FLOW = lib.PN_LINK_FLOW
_ERROR = lib.PN_TRANSPORT_ERROR
_STRING = lib.PN_STRING
_ULONG = lib.PN_ULONG
_ACCEPTED = lib.PN_ACCEPTED


class Broken(Exception):
    """The connection or a link ended."""


class Peer:
    """One connection, and the loop that moves its bytes.

    What the subclass wants is called from `turn`: ``opened``, ``attached(link)``,
    ``flow(link)``, ``delivery(link, delivery)``.
    """

    def __init__(self, url, control):
        parts = urllib.parse.urlsplit(url.split(",")[0])
        self._control = control
        self._socket = socket.create_connection((parts.hostname, parts.port or 5672))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._socket.fileno(), select.EPOLLIN)
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._input = bytearray(_BUFFER)
        self._input_pointer = ffi.from_buffer(self._input)
        self._output = bytearray(_BUFFER)
        self._output_view = memoryview(self._output)
        self._output_pointer = ffi.from_buffer(self._output)
        self._message = lib.pn_message()
        self._encoded = bytearray(_BUFFER)
        self._encoded_pointer = ffi.from_buffer(self._encoded)
        self._received = bytearray(_BUFFER)
        self._received_pointer = ffi.from_buffer(self._received)
        self._writing = False

        self._connection = lib.pn_connection()
        self._collector = lib.pn_collector()
        lib.pn_connection_collect(self._connection, self._collector)
        lib.pn_connection_set_container(
            self._connection, f"floor-{time.monotonic_ns()}".encode()
        )
        self._transport = lib.pn_transport()
        sasl = lib.pn_sasl(self._transport)
        lib.pn_sasl_set_allow_insecure_mechs(sasl, True)
        if parts.username:
            lib.pn_connection_set_user(self._connection, parts.username.encode())
            lib.pn_connection_set_password(
                self._connection, (parts.password or "").encode()
            )
        else:
            lib.pn_sasl_allowed_mechs(sasl, b"ANONYMOUS")
        lib.pn_transport_bind(self._transport, self._connection)
        lib.pn_connection_open(self._connection)
        self._session = lib.pn_session(self._connection)
        lib.pn_session_open(self._session)
        self._tags = 0

    def sender(self, address):
        """A link to `address`."""
        link = lib.pn_sender(self._session, b"to " + address)
        lib.pn_terminus_set_address(lib.pn_link_source(link), address)
        lib.pn_terminus_set_address(lib.pn_link_target(link), address)
        lib.pn_link_open(link)
        return link

    def receiver(self, address=None):
        """A link from `address`, or from one that the peer makes."""
        link = lib.pn_receiver(self._session, b"from " + (address or b"me"))
        source = lib.pn_link_source(link)
        if address is None:
            lib.pn_terminus_set_dynamic(source, True)
        else:
            lib.pn_terminus_set_address(source, address)
            lib.pn_terminus_set_address(lib.pn_link_target(link), address)
        lib.pn_link_open(link)
        return link

    def send(self, link, text, number=None, reply_to=None, answers=None, durable=False):
        """Send a message; returns its delivery."""
        message = self._message
        lib.pn_message_clear(message)
        if number is not None:
            lib.pn_message_set_id(message, {"type": _ULONG, "u": {"as_ulong": number}})
        if answers is not None:
            lib.pn_message_set_correlation_id(
                message, {"type": _ULONG, "u": {"as_ulong": answers}}
            )
        if reply_to is not None:
            lib.pn_message_set_reply_to(message, reply_to)
        if durable:
            lib.pn_message_set_durable(message, True)
        raw = ffi.from_buffer(text)
        lib.pn_data_put_string(lib.pn_message_body(message), (len(raw), raw))
        while True:
            size = lib.pn_message_encode_py(
                message, self._encoded_pointer, len(self._encoded)
            )
            if size >= 0:
                break
            self._encoded = bytearray(2 * len(self._encoded))
            self._encoded_pointer = ffi.from_buffer(self._encoded)
        self._tags += 1
        tag = ffi.from_buffer(self._tags.to_bytes(8, "big"))
        delivery = lib.pn_delivery(link, (8, tag))
        lib.pn_link_send(link, self._encoded_pointer, size)
        lib.pn_link_advance(link)
        return delivery

    def receive(self, link, delivery):
        """Take a whole message into `_message`; False: not all of it is there."""
        if lib.pn_delivery_partial(delivery) or not lib.pn_delivery_readable(delivery):
            return False
        size = lib.pn_delivery_pending(delivery)
        if size > len(self._received):
            self._received = bytearray(2 * size)
            self._received_pointer = ffi.from_buffer(self._received)
        lib.pn_link_recv(link, self._received_pointer, size)
        lib.pn_link_advance(link)
        lib.pn_delivery_update(delivery, _ACCEPTED)
        lib.pn_delivery_settle(delivery)
        lib.pn_message_decode(self._message, self._received_pointer, size)
        return True

    def text(self):
        """The body of the message that was received last."""
        data = lib.pn_message_body(self._message)
        lib.pn_data_rewind(data)
        lib.pn_data_next(data)
        raw = lib.pn_data_get_string(data)
        return ffi.unpack(raw.start, raw.size)

    def turn(self, timeout=None):
        """Wait for something, and do what there is to do.  Returns whether a command
        has come."""
        commanded = False
        for fd, events in self._epoll.poll(timeout):
            if fd == self._control.fileno():
                commanded = True
                continue
            if events & ~select.EPOLLOUT:
                self._read()
        self.flush()
        return commanded

    def _read(self):
        try:
            size = self._socket.recv_into(self._input)
        except BlockingIOError:
            return
        if size == 0:
            raise Broken("the peer closed the connection")
        taken = 0
        while taken < size:
            count = lib.pn_transport_push(
                self._transport, self._input_pointer + taken, size - taken
            )
            if count <= 0:
                raise Broken("the peer's bytes make no sense")
            taken += count
            self._process()

    def _process(self):
        collector = self._collector
        while True:
            event = lib.pn_collector_peek(collector)
            if event == ffi.NULL:
                return
            kind = lib.pn_event_type(event)
            if kind == _DELIVERY:
                self.delivery(lib.pn_event_link(event), lib.pn_event_delivery(event))
            elif kind == _FLOW:
                self.flow(lib.pn_event_link(event))
            elif kind == _INIT:
                self.opened()
            elif kind == _ATTACHED:
                self.attached(lib.pn_event_link(event))
            elif kind == _DETACHED or kind == _ERROR:
                raise Broken("the peer closed a link or the connection")
            lib.pn_collector_pop(collector)

    def flush(self):
        """Write what can be written."""
        self._process()
        full = False
        while True:
            size = lib.pn_transport_peek(self._transport, self._output_pointer, _BUFFER)
            if size <= 0:
                break
            try:
                sent = self._socket.send(self._output_view[:size])
            except BlockingIOError:
                full = True
                break
            lib.pn_transport_pop(self._transport, sent)
        if full is not self._writing:
            self._writing = full
            self._epoll.modify(
                self._socket.fileno(), select.EPOLLIN | (select.EPOLLOUT if full else 0)
            )

    def opened(self):
        """The peer has opened the connection."""

    def attached(self, link):
        """The peer has attached a link."""

    def flow(self, link):
        """Credit may have come."""

    def delivery(self, link, delivery):
        """A delivery has come, or the outcome of one."""

    def close(self):
        """Leave: the peer notices."""
        self._epoll.close()
        self._socket.close()


class Server(Peer):
    """Echoes what wants a reply, counts what does not.

    :param idle_links: how many links it has besides, to which nobody sends
    """

    def __init__(self, side, control, tally, idle_links=0):
        super().__init__(side.url, control)
        self._address = side.topic().encode()
        self._tally = tally
        self._outlets = {}
        self._due = collections.defaultdict(collections.deque)
        self._taken = 0
        self._attaching = 1 + idle_links
        self._inlet = self.receiver(self._address)
        for number in range(idle_links):
            self.receiver(b"%s-%d" % (self._address, number))

    @property
    def ready(self):
        """Whether all links are attached."""
        return not self._attaching

    def attached(self, link):
        if lib.pn_link_is_receiver(link):
            lib.pn_link_flow(link, _CREDIT)
            self._attaching -= 1

    def delivery(self, link, delivery):
        if not lib.pn_link_is_receiver(link):
            lib.pn_delivery_settle(delivery)
            return
        if not self.receive(link, delivery):
            return
        self._taken += 1
        if self._taken * 2 >= _CREDIT:
            lib.pn_link_flow(link, self._taken)
            self._taken = 0
        number = lib.pn_message_get_id(self._message).u.as_ulong
        reply_to = lib.pn_message_get_reply_to(self._message)
        if reply_to == ffi.NULL:
            self._tally.note(number)
            return
        self._reply(ffi.string(reply_to), number, self.text())

    def _reply(self, address, number, text):
        outlet = self._outlets.get(address)
        if outlet is None:
            outlet = self._outlets[address] = self.sender(address)
        if lib.pn_link_credit(outlet) > 0:
            self.send(outlet, text, answers=number)
        else:
            self._due[outlet].append((number, text))

    def flow(self, link):
        due = self._due.get(link)
        while due and lib.pn_link_credit(link) > 0:
            number, text = due.popleft()
            self.send(link, text, answers=number)


class Client(Peer):
    """Keeps as many requests under way as it is told."""

    def __init__(self, side, control):
        super().__init__(side.url, control)
        self._outlet = self.sender(side.topic().encode())
        self._inlet = self.receiver()
        self._reply_to = None
        self._number = 0
        self._started = {}
        self._unsettled = {}
        self._idle = 0
        self._load = ""
        self._text = b""
        self._until = 0.0
        self.latencies = array.array("d")
        self.failures = 0
        #: Of the numbered ones, ever.
        self.failed = 0

    @property
    def ready(self):
        """Whether requests can be sent."""
        return self._reply_to is not None and lib.pn_link_credit(self._outlet) > 0

    @property
    def sent(self):
        """How many numbers were given to messages that the server counts."""
        return self._number

    def attached(self, link):
        if link == self._inlet:
            source = lib.pn_link_remote_source(link)
            self._reply_to = ffi.string(lib.pn_terminus_get_address(source))
            lib.pn_link_flow(link, 2 * _CREDIT)

    def run(self, load, text, callers, seconds):
        """One load, in this thread; the results are in `latencies`, `failures`."""
        self.latencies = array.array("d")
        self.failures = 0
        self._load = load
        self._text = text
        self._until = time.monotonic() + seconds
        self._idle = callers
        self._go()
        self.flush()
        while self._idle < callers:
            self.turn()

    def _go(self):
        while (
            self._idle
            and lib.pn_link_credit(self._outlet) > 0
            and time.monotonic() < self._until
        ):
            self._idle -= 1
            if self._load == "call":
                # Calls have numbers of their own: the server does not count them.
                number = time.monotonic_ns()
                self._started[number] = time.monotonic()
                self.send(self._outlet, self._text, number, self._reply_to)
            else:
                delivery = self.send(
                    self._outlet,
                    self._text,
                    self._number,
                    durable=self._load == "notify",
                )
                self._number += 1
                self._unsettled[delivery] = time.monotonic()

    def flow(self, link):
        if link == self._outlet:
            self._go()

    def delivery(self, link, delivery):
        if link == self._inlet:
            if not self.receive(link, delivery):
                return
            lib.pn_link_flow(link, 1)
            number = lib.pn_message_get_correlation_id(self._message).u.as_ulong
            started = self._started.pop(number)
            self.failures += self.text() != self._text
        else:
            accepted = lib.pn_delivery_remote_state(delivery) == _ACCEPTED
            lib.pn_delivery_settle(delivery)
            started = self._unsettled.pop(delivery, None)
            if started is None:
                return  # of a call: its reply counts
            self.failures += not accepted
            self.failed += not accepted
        self.latencies.append(time.monotonic() - started)
        self._idle += 1
        self._go()


def serve(side, control, tally, handlers, targets):
    """The serving process, with three links for each target, as RPC has them."""
    began = time.monotonic()
    server = Server(side, control, tally, 3 * targets - 1)
    server.flush()
    while not server.ready:
        server.turn()
    subscribed = time.monotonic() - began
    control.answer(ready=True, subscribed=subscribed, **mark())
    while not (server.turn() and control.serve_one(handlers)):
        pass
    server.close()


def call(side, control, handlers):
    """The calling process."""
    client = Client(side, control)
    client.flush()
    while not client.ready:
        client.turn()
    control.answer(ready=True, **mark())

    def load(*, load, size, callers, seconds, warmup):
        value = body(size)
        text = (value if isinstance(value, str) else str(value)).encode()
        client.run(load, text, callers, warmup)
        control.answer(warm=True, sent=client.sent, failed=client.failed)
        control.read()  # go
        before = mark()
        client.run(load, text, callers, seconds)
        after = mark()
        return {
            **summary(client.latencies),
            "operations": len(client.latencies),
            "before": before,
            "after": after,
            "sent": client.sent,
            "failed": client.failed,
            "failures": client.failures,
            "failure": "",
        }

    while not (client.turn() and control.serve_one({"load": load, **handlers})):
        pass
    client.close()
