# SPDX-License-Identifier: Apache-2.0
"""A server that says what a script says, byte by byte, in a process of its own.

    python -m tests.functional.byte_server SPEC

SPEC is a JSON object:

``tls``      what to speak TLS with: ``cert`` (PEM file with key), ``ca`` (PEM file;
             clients must show a certificate), ``max`` (a name of ssl.TLSVersion)
``forward``  a port of this machine: join each client with it, instead of a script
``steps``    the script, for each connection anew: ``{"read": COUNT}``,
             ``{"write": HEX}``, ``{"close": true}``, ``{"hold": true}`` (say no more)

It listens on 127.0.0.1, and on ::1 where there is one, at one port, which it prints.
To the line ``report`` it answers with a JSON list of what has happened: one list per
connection, of ``tls`` with version, SNI and the client's common name, ``failed`` with
the reason, ``read`` with what was read in hex.  It ends with its stdin.
"""

import json
import os
import socket
import ssl
import sys
import threading

_names: dict[int, str | None] = {}


def tls_context(spec: dict) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(spec["cert"])
    if "max" in spec:
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion[spec["max"]]
    if "ca" in spec:
        context.load_verify_locations(spec["ca"])
        context.verify_mode = ssl.CERT_REQUIRED

    def named(tls_socket, name, _context):
        _names[tls_socket.fileno()] = name

    context.sni_callback = named
    return context


def common_name(certificate: dict | None) -> str | None:
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return value
    return None


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    finally:
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def serve(client: socket.socket, spec: dict, context, events: list) -> None:
    fd = client.fileno()
    try:
        if context is not None:
            client = context.wrap_socket(client, server_side=True)
            name = common_name(client.getpeercert())
            events.append(["tls", client.version(), _names.pop(fd, None), name])
        if "forward" in spec:
            bus = socket.create_connection(("127.0.0.1", spec["forward"]))
            threading.Thread(target=pump, args=(client, bus), daemon=True).start()
            pump(bus, client)
            bus.close()
            return
        for step in spec.get("steps", ()):
            if "read" in step:
                data = b""
                while len(data) < step["read"]:
                    piece = client.recv(step["read"] - len(data))
                    if not piece:
                        break
                    data += piece
                events.append(["read", data.hex()])
            elif "write" in step:
                client.sendall(bytes.fromhex(step["write"]))
            elif "hold" in step:
                while client.recv(65536):
                    pass
        # What the client has sent is read before the end, or the socket's reset
        # would take back what it was told.
        client.settimeout(0.5)
        while client.recv(65536):
            pass
    except (OSError, ValueError) as exc:
        events.append(["failed", str(exc)])
    finally:
        client.close()


def accept(listener: socket.socket, spec: dict, context, report: list) -> None:
    while True:
        client, _address = listener.accept()
        events: list = []
        report.append(events)
        threading.Thread(
            target=serve, args=(client, spec, context, events), daemon=True
        ).start()


def main() -> None:
    spec = json.loads(sys.argv[1])
    context = tls_context(spec["tls"]) if "tls" in spec else None
    report: list = []
    listeners = [socket.create_server(("127.0.0.1", 0))]
    port = listeners[0].getsockname()[1]
    try:
        listeners.append(socket.create_server(("::1", port), family=socket.AF_INET6))
    except OSError:
        pass  # no IPv6 here
    for listener in listeners:
        threading.Thread(
            target=accept, args=(listener, spec, context, report), daemon=True
        ).start()
    print(port, flush=True)
    for line in sys.stdin:
        if line.strip() == "report":
            print(json.dumps(report), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
