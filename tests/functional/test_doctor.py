# SPDX-License-Identifier: Apache-2.0
"""``greenamqp doctor`` against what works and what does not."""

import contextlib
import datetime
import json
import socket

import pytest
import trustme

from greenamqp import command
from greenamqp.broker import Broker
from tests.functional import world
from tests.functional.certificates import Authority

pytestmark = [
    pytest.mark.any_bus,
    pytest.mark.skipif(
        world.current() != "threads", reason="a command is a process of its own; once"
    ),
]

PASSWORD = "s3cr3t"

#: What listens and says nothing, or what nobody knows, is given up after so long.
PATIENCE = "2"


@pytest.fixture
def doctor(capsys):
    """Runs it; returns the exit status, and what it found as plain data."""

    def run(*arguments):
        status = command.main(
            ["doctor", "--timeout", PATIENCE, "-f", "json", *arguments]
        )
        shown = capsys.readouterr()
        assert PASSWORD not in shown.out + shown.err
        found = json.loads(shown.out)
        assert found["ok"] is (status == 0)
        return status, found["steps"]

    return run


def faults(steps):
    return {step["advice"]["fault"] for step in steps if step["result"] == "failed"}


@pytest.fixture
def broker():
    with Broker(users={"nova": PASSWORD}) as made:
        yield made


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.mark.parametrize("product", ["greenamqp", "qpid-dispatch-router", "qpid-cpp"])
def test_what_works(doctor, product):
    with Broker(product=product, users={"nova": PASSWORD}) as bus:
        status, steps = doctor("--url", f"amqp://nova:{PASSWORD}@127.0.0.1:{bus.port}/")
    assert status == 0, steps
    tried = [step["step"] for step in steps if step["result"] == "ok"]
    assert tried == [
        *("name", "TCP", "login and Open", "product"),
        *("RPC", "fanout", "notification"),
    ]
    assert all(step["seconds"] is not None for step in steps if step["step"] == "TCP")
    assert product in steps[2]["text"]


def test_quick_sends_nothing(doctor, broker):
    url = f"amqp://nova:{PASSWORD}@127.0.0.1:{broker.port}/"
    status, steps = doctor("--quick", "--url", url)
    assert status == 0
    assert steps[-1]["step"] == "product"


def test_quick_is_content_with_one_host(doctor, broker):
    good = f"nova:{PASSWORD}@127.0.0.1:{broker.port}"
    status, steps = doctor(
        "--quick", "--url", f"amqp://127.0.0.1:1,{good},nosuch.invalid"
    )
    assert status == 0
    (remark,) = (step for step in steps if step["result"] == "remark")
    assert remark["where"] == "127.0.0.1:1"
    assert "nosuch.invalid" not in str(steps)
    status, steps = doctor("--quick", "--url", "amqp://127.0.0.1:1,127.0.0.1:2")
    assert (status, faults(steps)) == (1, {"nothing-listens"})


def test_tls_is_described(doctor, authority, tmp_path):
    conf = tmp_path / "service.conf"
    with Broker(tls_cert=authority.issue("127.0.0.1")) as bus:
        conf.write_text(
            f"[DEFAULT]\ntransport_url = amqps://127.0.0.1:{bus.port}/\n"
            f"[oslo_messaging_amqp]\nssl_ca_file = {authority.ca}\n"
        )
        status, steps = doctor("--config-file", str(conf))
    assert status == 0, steps
    (tls,) = (step for step in steps if step["step"] == "TLS")
    assert tls["text"].startswith("TLSv1.3, certificate of ")
    assert "issued by trustme" in tls["text"] and "days left" in tls["text"]


# -- what is broken, and which fault it is


def serve_bytes(bus, *steps, **spec):
    program = bus.program("byte_server", json.dumps({"steps": list(steps), **spec}))
    return int(program.read())


HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n".hex()
PLAIN = b"AMQP\x00\x01\x00\x00".hex()
OLD = b"AMQP\x00\x00\x09\x01".hex()


@pytest.mark.parametrize(
    ("steps", "scheme", "fault"),
    [
        ([{"read": 8}, {"write": HTTP}, {"close": True}], "amqp", "not-amqp"),
        ([{"read": 8}, {"write": OLD}, {"close": True}], "amqp", "old-amqp"),
        ([{"read": 8}, {"close": True}], "amqp", "closed-at-once"),
        ([{"read": 8}, {"write": PLAIN}, {"close": True}], "amqp", "login-unwanted"),
        ([{"hold": True}], "amqp", "silent"),
        ([{"hold": True}], "amqps", "tls-handshake"),
        ([{"read": 8}, {"close": True}], "amqps", "tls-handshake"),
        ([{"read": 8}, {"write": HTTP}, {"close": True}], "amqps", "no-tls-there"),
    ],
)
def test_what_is_no_message_bus(bus, doctor, steps, scheme, fault):
    port = serve_bytes(bus, *steps)
    login = f"nova:{PASSWORD}@" if fault == "login-unwanted" else ""
    status, found = doctor("--url", f"{scheme}://{login}127.0.0.1:{port}")
    assert status == 1
    assert faults(found) == {fault}
    (failed,) = (step for step in found if step["result"] == "failed")
    assert failed["advice"]["who"] and failed["advice"]["how"]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("amqp://nova:wr0ng@127.0.0.1:{}", "login-refused"),
        ("amqp://127.0.0.1:{}", "login-wanted"),
        ("amqp://127.0.0.1:{}/?sasl_mechanisms=EXTERNAL", "no-mechanism"),
        ("amqps://nova:s3cr3t@127.0.0.1:{}", "no-tls-there"),
        ("amqp://127.0.0.1:1", "nothing-listens"),
        ("amqp://nosuch.invalid:{}", "unknown-name"),
        ("rabbit://nova:s3cr3t@127.0.0.1:{}", "configuration"),
        ("amqp://nova:s3cr3t@127.0.0.1:{}/?nosuch=1", "configuration"),
        ("amqp://nova:s3cr3t@127.0.0.1:99999", "configuration"),
        ("nonsense", "configuration"),
    ],
)
def test_wrong_urls(doctor, broker, url, fault):
    status, found = doctor("--url", url.format(broker.port))
    assert status == 1
    assert faults(found) == {fault}


def test_tls_that_is_too_old(bus, doctor, authority):
    tls = {"cert": authority.issue("127.0.0.1"), "max": "TLSv1_1"}
    port = serve_bytes(bus, {"hold": True}, tls=tls)
    url = f"amqps://127.0.0.1:{port}/?ssl_ca_file={authority.ca}"
    status, found = doctor("--url", url)
    assert (status, faults(found)) == (1, {"old-tls"})


def test_tls_is_wanted_and_not_spoken(doctor, authority):
    with Broker(tls_cert=authority.issue("127.0.0.1")) as bus:
        status, found = doctor("--url", f"amqp://127.0.0.1:{bus.port}")
    assert (status, faults(found)) == (1, {"tls-wanted"})


def dated(folder, authority, **when):
    """A certificate for another time: of yesterday, or of tomorrow."""
    made = authority._ca.issue_cert("127.0.0.1", **when)
    path = folder / "dated.pem"
    made.private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("expired", "certificate-expired"),
        ("early", "certificate-early"),
        ("name", "certificate-name"),
        ("foreign", "certificate-untrusted"),
        ("client", "no-client-certificate"),
        ("foreign client", "client-certificate-refused"),
    ],
)
def test_certificates(doctor, authority, tmp_path, kind, fault):
    trusted, more = authority.ca, {}
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    if kind == "expired":
        certificate = dated(tmp_path, authority, not_after=now - day)
    elif kind == "early":
        certificate = dated(tmp_path, authority, not_before=now + day)
    else:
        name = "bus.example" if kind == "name" else "127.0.0.1"
        certificate = authority.issue(name)
    if kind == "foreign":
        trusted = str(tmp_path / "other.pem")
        trustme.CA().cert_pem.write_to_path(trusted)
    if "client" in kind:
        more = {"tls_ca": authority.ca, "tls_require_client_cert": True}
    with Broker(tls_cert=certificate, **more) as bus:
        url = f"amqps://127.0.0.1:{bus.port}/?ssl_ca_file={trusted}"
        if kind == "foreign client":
            other = Authority(tmp_path, "foreign").issue("client")
            url += f"&ssl_cert_file={other}"
        status, found = doctor("--url", url)
    assert (status, faults(found)) == (1, {fault})


def test_a_ca_file_that_is_not_there(doctor, broker):
    url = f"amqps://127.0.0.1:{broker.port}/?ssl_ca_file=/nonexistent"
    status, found = doctor("--url", url)
    assert (status, faults(found)) == (1, {"tls-files"})


def test_one_host_of_three_is_down(doctor, broker):
    good = f"nova:{PASSWORD}@127.0.0.1:{broker.port}"
    status, found = doctor("--url", f"amqp://{good},127.0.0.1:1,{good}/")
    assert (status, faults(found)) == (1, {"nothing-listens"})
    (failed,) = (step for step in found if step["result"] == "failed")
    assert failed["where"] == "127.0.0.1:1"
    # The others do, and messages pass.
    assert {"RPC", "notification"} <= {step["step"] for step in found}


@pytest.fixture
def filtered():
    """A port that does not answer: what comes is dropped, as its queue is full."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        while True:
            filling = held.enter_context(socket.socket())
            filling.settimeout(0.5)
            try:
                filling.connect(address)
            except TimeoutError:
                yield address[1]
                return


def test_a_filtered_port(doctor, filtered):
    status, found = doctor("--url", f"amqp://127.0.0.1:{filtered}")
    assert (status, faults(found)) == (1, {"no-answer"})


@pytest.mark.parametrize("product", ["qpid-dispatch-router", "skupper-router"])
def test_a_router_whose_addresses_are_not_configured(doctor, product):
    with Broker(product=product) as bus:
        # What a router knows nothing of is for one receiver.
        status, found = doctor("--url", f"{bus.url}?rpc_address_prefix=unknown")
    assert (status, faults(found)) == (1, {"fanout-shared"})
    assert [step["step"] for step in found if step["result"] == "failed"] == ["fanout"]


def test_what_a_bus_refuses(doctor):
    with Broker(refused_prefixes=("broadcast",)) as bus:
        status, found = doctor("--url", bus.url)
    assert status == 1
    failed = [step for step in found if step["result"] == "failed"]
    assert [step["step"] for step in failed] == ["RPC", "fanout"]
    assert all("broadcast" in step["text"] for step in failed)


def test_options_that_do_nothing(doctor, broker, tmp_path):
    conf = tmp_path / "service.conf"
    conf.write_text(
        f"[DEFAULT]\ntransport_url = amqp://nova:{PASSWORD}@127.0.0.1:{broker.port}/\n"
        "[oslo_messaging_amqp]\n"
        "idle_timeot = 5\n"
        "ssl_verify_vhost = true\n"
        "silent_host_timeout = 3\n"
        "rpc_address_prefix = mine\n"
        "[oslo_messaging_rabbit]\n"
        "rabbit_retry_interval = 1\n"
        "rpc_conn_pool_size = 1\n"
        "rabbit_quorum_queue = true\n"
    )
    status, steps = doctor("--config-file", str(conf))
    assert status == 0, steps
    said = "\n".join(step["text"] for step in steps if step["result"] == "remark")
    for name in (
        "idle_timeot: there is no such option",
        "ssl_verify_vhost does nothing without TLS",
        "silent_host_timeout does nothing",
        "rpc_address_prefix: nothing on this bus",
        "rabbit_retry_interval: for rabbit:// alone; here it is [oslo_messaging_amqp] "
        "connection_retry_interval = 1",
        "rpc_conn_pool_size: for rabbit:// alone; nothing here",
        "rabbit_quorum_queue: nothing on this bus",
    ):
        assert name in said


@pytest.mark.parametrize("streams", ["true", "yes", "1", "no"])
def test_streams_are_told_as_migrate_tells_them(doctor, broker, tmp_path, streams):
    """With them a prefetch count is asked for, and means nothing here."""
    conf = tmp_path / "service.conf"
    conf.write_text(
        f"[DEFAULT]\ntransport_url = amqp://nova:{PASSWORD}@127.0.0.1:{broker.port}/\n"
        "[oslo_messaging_rabbit]\nrabbit_qos_prefetch_count = 5\n"
        f"rabbit_stream_fanout = {streams}\n"
    )
    _, steps = doctor("--quick", "--config-file", str(conf))
    said = "\n".join(step["text"] for step in steps if step["result"] == "remark")
    assert ("rpc_server_credit = 5" in said) is (streams == "no")


def test_a_file_that_is_not_there(doctor):
    status, found = doctor("--config-file", "/nonexistent.conf")
    assert (status, faults(found)) == (1, {"configuration"})


def test_as_people_read_it(capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://nova:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}"
        status = command.main(["doctor", "--timeout", "1", "--url", url])
    shown = capsys.readouterr().out
    assert status == 1
    assert PASSWORD not in shown
    assert "FAILED" in shown and "1 thing is wrong:" in shown
    assert "can be mended by" in shown


def test_all_in_order_ends_with_ok(capsys):
    with Broker() as bus:
        assert command.main(["doctor", "--url", bus.url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ok"
