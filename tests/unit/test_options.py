# SPDX-License-Identifier: Apache-2.0
"""The options: the predecessor's names, and each of them effective."""

import json
import logging
import pathlib
import re
import subprocess
import sys

import oslo_messaging
import proton
import pytest
import trustme
from oslo_config import cfg
from oslo_messaging import Target, exceptions

import greenamqp.hubs
from greenamqp import buses, options
from greenamqp.broker import Broker
from greenamqp.connection.pump import Pump
from greenamqp.connection.security import Security
from greenamqp.engine import RELEASED, Message
from greenamqp.incoming import LONGEST_CALL
from tests.unit import fakes

GROUP = "oslo_messaging_amqp"

# What the amqp driver of oslo.messaging 14.9.3 had: kind, default, minimum, and
# whether the group [amqp1] was read as well.
PREDECESSOR = {
    "container_name": (cfg.StrOpt, None, None, True),
    "idle_timeout": (cfg.IntOpt, 0, None, True),
    "trace": (cfg.BoolOpt, False, None, True),
    "ssl": (cfg.BoolOpt, False, None, False),
    "ssl_ca_file": (cfg.StrOpt, "", None, True),
    "ssl_cert_file": (cfg.StrOpt, "", None, True),
    "ssl_key_file": (cfg.StrOpt, "", None, True),
    "ssl_key_password": (cfg.StrOpt, None, None, True),
    "ssl_verify_vhost": (cfg.BoolOpt, False, None, False),
    "sasl_mechanisms": (cfg.StrOpt, "", None, True),
    "sasl_config_dir": (cfg.StrOpt, "", None, True),
    "sasl_config_name": (cfg.StrOpt, "", None, True),
    "sasl_default_realm": (cfg.StrOpt, "", None, False),
    "connection_retry_interval": (cfg.IntOpt, 1, 1, False),
    "connection_retry_backoff": (cfg.IntOpt, 2, 0, False),
    "connection_retry_interval_max": (cfg.IntOpt, 30, 1, False),
    "link_retry_delay": (cfg.IntOpt, 10, 1, False),
    "default_reply_retry": (cfg.IntOpt, 0, -1, False),
    "default_reply_timeout": (cfg.IntOpt, 30, 5, False),
    "default_send_timeout": (cfg.IntOpt, 30, 5, False),
    "default_notify_timeout": (cfg.IntOpt, 30, 5, False),
    "default_sender_link_timeout": (cfg.IntOpt, 600, 1, False),
    "addressing_mode": (cfg.StrOpt, "dynamic", None, False),
    "pseudo_vhost": (cfg.BoolOpt, True, None, False),
    "server_request_prefix": (cfg.StrOpt, "exclusive", None, True),
    "broadcast_prefix": (cfg.StrOpt, "broadcast", None, True),
    "group_request_prefix": (cfg.StrOpt, "unicast", None, True),
    "rpc_address_prefix": (cfg.StrOpt, "openstack.org/om/rpc", None, False),
    "notify_address_prefix": (cfg.StrOpt, "openstack.org/om/notify", None, False),
    "multicast_address": (cfg.StrOpt, "multicast", None, False),
    "unicast_address": (cfg.StrOpt, "unicast", None, False),
    "anycast_address": (cfg.StrOpt, "anycast", None, False),
    "default_notification_exchange": (cfg.StrOpt, None, None, False),
    "default_rpc_exchange": (cfg.StrOpt, None, None, False),
    "reply_link_credit": (cfg.IntOpt, 200, 1, False),
    "rpc_server_credit": (cfg.IntOpt, 100, 1, False),
    "notify_server_credit": (cfg.IntOpt, 100, 1, False),
    "pre_settled": (cfg.MultiStrOpt, ["rpc-cast", "rpc-reply"], None, False),
}

# Where this driver's defaults are others, on purpose: these lost messages.
DEVIATIONS = {
    "idle_timeout": 30,
    "pre_settled": ["rpc-reply-volatile"],
    "default_reply_retry": -1,
    "default_notify_timeout": None,
}

BY_NAME = {option.dest: option for option in options.OPTIONS}


pytestmark = pytest.mark.usefixtures("no_chance")


# -- names, kinds, defaults


@pytest.mark.parametrize("name", PREDECESSOR)
def test_every_option_of_the_predecessor_is_there(name):
    kind, default, minimum, _ = PREDECESSOR[name]
    option = BY_NAME[name]
    assert type(option) is kind
    assert option.default == DEVIATIONS.get(name, default)
    if minimum is not None:
        assert option.type.min == minimum


def test_every_deviation_is_one():
    for name, default in DEVIATIONS.items():
        assert PREDECESSOR[name][1] != default


@pytest.mark.parametrize("option", options.OPTIONS, ids=lambda option: option.dest)
def test_every_option_is_explained(option):
    assert len(option.help) > 20
    assert option.name == option.dest


def test_only_secrets_are_secret():
    secret = {name for name, option in BY_NAME.items() if option.secret}
    assert secret == {"ssl_key_password"}


def configured(tmp_path, text):
    path = tmp_path / "program.conf"
    path.write_text(text)
    conf = cfg.ConfigOpts()
    conf(["--config-file", str(path)], default_config_dirs=[])
    return conf


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An outbox is made where an option says."""
    monkeypatch.chdir(tmp_path)


def sample(name):
    """A value that is allowed and not the default, as text."""
    option = BY_NAME[name]
    if isinstance(option, cfg.BoolOpt):
        return str(not option.default)
    if isinstance(option, cfg.FloatOpt):
        return "11.5"
    if isinstance(option, cfg.IntOpt):
        return "11"
    return {
        "pre_settled": "notify",
        "addressing_mode": "legacy",
        "hub": "blocking",
        "password_file": __file__,
        "sasl_mechanisms": "PLAIN",
        "rabbit_queue_type": "classic",
        "rabbit_transient_queue_type": "quorum",
    }.get(name, "text")


def parsed(name):
    option = BY_NAME[name]
    value = option.type(sample(name))
    return [value] if isinstance(option, cfg.MultiStrOpt) else value


@pytest.mark.parametrize("name", BY_NAME)
def test_a_file_may_set_it(name, tmp_path):
    conf = configured(tmp_path, f"[{GROUP}]\n{name} = {sample(name)}\n")
    options.register(conf)
    assert conf[GROUP][name] == parsed(name)


@pytest.mark.parametrize("name", PREDECESSOR)
def test_the_old_group_is_read_where_the_predecessor_read_it(name, tmp_path):
    conf = configured(tmp_path, f"[amqp1]\n{name} = {sample(name)}\n")
    options.register(conf)
    expected = parsed(name) if PREDECESSOR[name][3] else BY_NAME[name].default
    assert conf[GROUP][name] == expected


def test_the_new_group_comes_before_the_old_one(tmp_path):
    conf = configured(
        tmp_path, f"[amqp1]\nidle_timeout = 7\n[{GROUP}]\nidle_timeout = 8\n"
    )
    options.register(conf)
    assert conf[GROUP].idle_timeout == 8


def read(conf, url):
    """The options as a driver sees them."""
    with fakes.driver(url, configuration=conf) as s:
        return s.driver._options


@pytest.mark.parametrize(
    "name", [name for name in BY_NAME if not name.startswith("ssl")]
)
def test_the_query_of_the_url_may_set_it(name):
    seen = read(fakes.conf(), f"amqp://bus/?{name}={sample(name)}")
    expected = parsed(name)
    assert getattr(seen, name) == (
        frozenset(expected) if name == "pre_settled" else expected
    )


def test_the_query_comes_before_the_file(tmp_path):
    conf = configured(
        tmp_path, f"[amqp1]\nidle_timeout = 7\n[{GROUP}]\nidle_timeout = 8\n"
    )
    assert read(conf, "amqp://bus/?idle_timeout=9").idle_timeout == 9
    assert read(conf, "amqp://bus/").idle_timeout == 8


@pytest.mark.parametrize(
    "query, expected",
    [
        ("pre_settled=rpc-cast", {"rpc-cast"}),
        ("pre_settled=rpc-cast,notify", {"rpc-cast", "notify"}),
        ("pre_settled=rpc-cast&pre_settled=notify", {"rpc-cast", "notify"}),
    ],
)
def test_several_values_in_the_query(query, expected):
    assert read(fakes.conf(), f"amqp://bus/?{query}").pre_settled == expected


@pytest.mark.parametrize(
    "lines, expected",
    [
        ("pre_settled = notify\npre_settled = rpc-call\n", {"notify", "rpc-call"}),
        ("pre_settled =\n", set()),
        ("", {"rpc-reply-volatile"}),
    ],
)
def test_several_values_in_a_file(lines, expected, tmp_path):
    conf = configured(tmp_path, f"[{GROUP}]\n{lines}")
    assert read(conf, "amqp://bus/").pre_settled == expected


def test_two_configurations_do_not_mix():
    one, other = fakes.conf(idle_timeout=7), fakes.conf()
    assert one[GROUP].idle_timeout == 7
    assert other[GROUP].idle_timeout == 30
    options.register(one)
    assert one[GROUP].idle_timeout == 7


# -- bad values


BAD = [
    ("idle_timeout", "soon", r"Integer|int\(\)"),
    ("idle_timeout", "-1", "0"),
    ("connection_retry_interval", "0", "1"),
    ("default_send_timeout", "4", "5"),
    ("rpc_server_credit", "0", "1"),
    ("trace", "perhaps", "[Bb]oolean"),
    ("addressing_mode", "rabbit-hole", "dynamic.*legacy.*routable"),
    ("hub", "twisted", "auto.*eventlet.*gevent.*threads.*blocking"),
    ("pre_settled", "everything", "rpc-call, rpc-reply, rpc-cast, notify"),
    ("queue_expires", "0", "0.001"),
    ("queue_expires", "nan", "from 0.001 to 4294967"),
    # oslo.config rounds what it shows.
    ("queue_message_ttl", "4294968", "4294967|4.29497e"),
    ("queue_max_length", "0", "1"),
    ("queue_max_length", "2147483648", "2147483647|2.14748e"),
    ("idle_timeout", "2147484", "2147483|2.14748e"),
    ("rpc_server_credit", "2147483648", "2147483647|2.14748e"),
]


@pytest.mark.parametrize("name, value, allowed", BAD)
@pytest.mark.parametrize("place", ["file", "query"])
def test_a_bad_value_is_named_with_what_is_allowed(
    place, name, value, allowed, tmp_path
):
    if place == "file":
        conf = configured(tmp_path, f"[{GROUP}]\n{name} = {value}\n")
        url = "amqp://bus/"
    else:
        conf, url = fakes.conf(), f"amqp://bus/?{name}={value}"
    with pytest.raises(ValueError, match=allowed) as caught:
        read(conf, url)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [o for o in options.OPTIONS if isinstance(o, cfg.IntOpt | cfg.FloatOpt)],
    ids=lambda option: option.dest,
)
def test_every_number_has_a_range(option):
    assert option.type.min is not None
    assert option.type.max is not None


@pytest.mark.parametrize("port", ["99999", "65536", "0", "-1"])
@pytest.mark.parametrize("hosts", ["one:{}", "[::1]:{}", "two:5672,u:p@one:{}"])
def test_a_port_out_of_range(hosts, port):
    with pytest.raises(ValueError, match=f"port of .* from 1 to 65535: {port}"):
        read(fakes.conf(), f"amqp://{hosts.format(port)}/")


def test_a_host_with_two_ports():
    with pytest.raises(ValueError, match="'one:5672:5673' is neither"):
        read(fakes.conf(), "amqp://one:5672:5673/")
    read(fakes.conf(), "amqp://[fe80::1%eth0]:5672/")


def test_a_negative_number_for_rabbit_in_the_query():
    with pytest.raises(ValueError, match="rabbit_qos_prefetch_count must not be neg"):
        read(fakes.conf(), "amqp://bus/?rabbit_qos_prefetch_count=-1")


def test_an_unknown_option_in_the_query():
    with pytest.raises(ValueError, match="'idle_time'.*idle_timeout"):
        read(fakes.conf(), "amqp://bus/?idle_time=5")


def test_a_bad_value_reaches_who_makes_the_transport():
    with pytest.raises(ValueError, match="hub must be"):
        oslo_messaging.get_rpc_transport(fakes.conf(), "amqp://bus/?hub=twisted")


# -- TLS that the URL asks for


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("amqp://one/", [5672]),
        ("amqps://one/", [5671]),
        ("greenamqps://one/", [5671]),
        # Newer Pythons refuse an address in brackets that is not the first.
        ("amqps://[::1]:7,one:5672,two/v", [7, 5672, 5671]),
        ("amqps://[::1]/", [5671]),
        ("amqps://u:p@one,u:p@two:9/?idle_timeout=9&ssl=true", [5671, 9]),
        ("amqp://one/?ssl=true", [5671]),
        ("amqp://one:5672,two/?ssl=1", [5672, 5671]),
        ("amqp://one/?ssl=false", [5672]),
    ],
)
def test_the_port_of_a_url_that_asks_for_tls(url, ports):
    with fakes.driver(url) as s:
        s.driver.use_hub()
        hosts = s.driver._client.connection._hosts._hosts
        assert [host.port for host in hosts] == ports
        assert s.driver._options.ssl is (5671 in ports)


def test_the_port_stays_where_the_configuration_asks_for_tls():
    with fakes.driver("amqp://one/", ssl=True) as s:
        s.send(timeout=5)
        s.world.settle()
        assert [attempt[1:] for attempt in s.network.attempts] == [("one", 5672)]
        assert s.network.secured[0]["server_name"] == "one"


@pytest.mark.parametrize("scheme", ["amqps", "greenamqps"])
def test_a_url_that_contradicts_itself(scheme):
    with pytest.raises(ValueError, match=f"{scheme}:// asks for TLS, and ssl=no"):
        read(fakes.conf(), f"{scheme}://bus/?ssl=no")


# -- the sample


def test_the_generator_writes_every_option():
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from oslo_config import generator; import sys; sys.exit(generator.main())",
            "--namespace",
            "greenamqp",
        ],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    assert f"[{GROUP}]" in run.stdout
    for name in BY_NAME:
        assert re.search(rf"^#{name} =", run.stdout, re.MULTILINE), name


# -- every option has an effect: each test below fails if the option is not read

EFFECTIVE = set()


def effect(*names):
    """A test of what these options do."""

    def mark(function):
        EFFECTIVE.update(names)
        return function

    return mark


def test_every_option_has_a_test_of_its_effect():
    assert set(BY_NAME) == EFFECTIVE


@effect("container_name")
def test_container_name():
    with fakes.driver(container_name="nova") as s:
        s.up()
        assert s.peer.engine.remote_container.startswith("nova.")
    with fakes.driver() as s:
        s.up()
        assert not s.peer.engine.remote_container.startswith("nova.")


@effect("idle_timeout")
@pytest.mark.parametrize("seconds", [4, 40])
def test_idle_timeout(seconds):
    with fakes.driver(idle_timeout=seconds) as s:
        s.up()
        s.peer.silent = True
        s.world.advance(seconds * 0.4)
        assert len(s.network.attempts) == 1
        s.world.advance(seconds * 1.7 + 2)
        assert len(s.network.attempts) >= 2


@effect("silent_host_timeout")
@pytest.mark.parametrize("seconds", [3, 20, 0])
def test_silent_host_timeout(seconds):
    with fakes.driver(
        "amqp://one:5672,two:5672/", silent_host_timeout=seconds, idle_timeout=40
    ) as s:
        s.up()
        s.peer.silent = True
        s.world.advance((seconds or 40) * 0.9)
        assert len(s.network.attempts) == 1
        s.world.advance((seconds or 40) * 0.6)
        assert len(s.network.attempts) == 2


@effect("repeat_calls")
@pytest.mark.parametrize("repeat", [True, False])
def test_repeat_calls(repeat):
    with fakes.driver(repeat_calls=repeat) as s:
        s.network.default = {"product": "greenamqp", "outcome": lambda message: None}
        call = s.call(timeout=100)
        s.world.settle()
        (first,) = s.peer.received
        s.peer.cut()
        s.world.advance(5)
        assert len(s.peer.received) == int(repeat)
        s.peer.reply(first, '{"response": 1}')
        s.world.settle()
        assert call.result() == 1


@effect("trace")
@pytest.mark.parametrize("trace", [True, False])
def test_trace(trace, capfd):
    with fakes.driver(trace=trace) as s:
        s.up()
    assert ("@open" in capfd.readouterr().err) is trace


@effect("pseudo_vhost")
@pytest.mark.parametrize("pseudo", [True, False])
def test_pseudo_vhost(pseudo):
    with fakes.driver("amqp://bus/there", pseudo_vhost=pseudo) as s:
        s.up()
        assert s.peer.engine.remote_hostname == (None if pseudo else "there")
        assert ("there" in s.peer.attaches[0]) is pseudo


@effect("fail_fast")
@pytest.mark.parametrize("fast", [True, False])
def test_fail_fast(fast):
    with fakes.driver("amqp://u:wrong@bus/", fail_fast=fast) as s:
        s.network.default = {"passwords": {"u": "right"}}
        task = s.send(timeout=5)
        s.world.settle()
        assert task.done is fast
        s.world.advance(6)
        with pytest.raises(exceptions.MessagingException):
            task.result()


@effect(
    "connection_retry_interval",
    "connection_retry_backoff",
    "connection_retry_interval_max",
)
@pytest.mark.parametrize(
    "interval, backoff, maximum, pauses",
    [(1, 2, 30, [1, 3, 5, 7]), (4, 0, 30, [4, 4, 4, 4]), (2, 5, 8, [2, 7, 8, 8])],
)
def test_connection_retry(interval, backoff, maximum, pauses):
    with fakes.driver(
        connection_retry_interval=interval,
        connection_retry_backoff=backoff,
        connection_retry_interval_max=maximum,
    ) as s:
        s.network.default = "refused"
        s.send(timeout=100)
        s.world.advance(40)
        assert fakes.pauses(at for at, _, _ in s.network.attempts)[:4] == pauses


@effect("link_retry_delay")
@pytest.mark.parametrize("delay, attempts", [(5, 5), (20, 2)])
def test_link_retry_delay(delay, attempts):
    with fakes.driver(link_retry_delay=delay) as s:
        s.up()
        s.peer.refuse[address := "unicast.openstack.later"] = ("amqp:not-found", "")
        s.send(Target(topic="later"), timeout=100)
        s.world.advance(24)
        assert s.peer.attaches.count(address) == attempts


def requested(s, ttl=None):
    """A request that came, to be replied to."""
    listener = s.listen()
    request = Message('{"request": {}}', id="1", reply_to="replies", ttl=ttl)
    s.peer.send("unicast.openstack.t", request)
    s.world.settle()
    (incoming,) = s.world.go(listener.poll, timeout=0).result()
    return incoming, listener


@effect("default_reply_retry")
@pytest.mark.parametrize("retries, attempts", [(0, 1), (2, 3)])
def test_default_reply_retry(retries, attempts):
    with fakes.driver(default_reply_retry=retries, pre_settled=[]) as s:
        incoming, listener = requested(s)
        s.peer.outcome = lambda message: RELEASED
        s.world.go(incoming.reply, "reply").result()
        s.world.advance(20)
        assert len(s.peer.received) == attempts
        listener.cleanup()


@effect("default_reply_timeout")
@pytest.mark.parametrize("seconds", [5, 50])
def test_default_reply_timeout(seconds, caplog):
    reply_is_tried_for(seconds, caplog, seconds)


def reply_is_tried_for(expected, caplog, timeout, *ttl):
    with fakes.driver(default_reply_timeout=timeout) as s:
        incoming, listener = requested(s, *ttl)
        s.peer.credit = 0
        s.world.go(incoming.reply, "reply").result()
        s.world.advance(expected - 1)
        assert "RPC reply" not in caplog.text
        s.world.advance(3)
        assert "RPC reply to replies timed out" in caplog.text
        listener.cleanup()


@pytest.mark.parametrize(
    "seconds, ttl, expected", [(5, 60, 60), (5, 2, 5), (5, 1e6, LONGEST_CALL)]
)
def test_a_reply_is_tried_as_long_as_its_caller_waits(seconds, ttl, expected, caplog):
    reply_is_tried_for(expected, caplog, seconds, ttl)


@effect("notify_outbox")
@pytest.mark.parametrize("outbox", [True, False])
def test_notify_outbox(outbox, tmp_path):
    with fakes.driver(
        notify_outbox=str(tmp_path / "outbox") if outbox else "", network={"credit": 0}
    ) as s:
        task = s.notify()
        s.world.advance(20)
        assert task.done is outbox
        assert bool(list(tmp_path.rglob("*.db"))) is outbox


@effect("notify_outbox_max_size")
@pytest.mark.parametrize("size", [1, 2])
def test_notify_outbox_max_size(size, tmp_path):
    with fakes.driver(
        notify_outbox=str(tmp_path), notify_outbox_max_size=size, network={"credit": 0}
    ) as s:
        for _ in range(30):
            s.notify(message={"event_type": "e", "payload": "x" * 100_000})
            s.world.advance(2)
        waiting = s.driver.outbox.describe()["waiting"]
        assert 5 * size < waiting < 11 * size
        assert s.driver.outbox.dropped["too many"] == 30 - waiting


@effect("notify_outbox_max_age")
@pytest.mark.parametrize("age", [1000, 2000])
def test_notify_outbox_max_age(age, tmp_path, monkeypatch):
    with fakes.driver(
        notify_outbox=str(tmp_path), notify_outbox_max_age=age, network={"credit": 0}
    ) as s:
        s.notify()
        s.world.advance(2)
        with s.driver.outbox._disk._store._db as db:
            db.execute("UPDATE letters SET created = created - 1500")
        s.world.advance(20)
        assert s.driver.outbox.dropped["too old"] == (age == 1000)


@effect("default_send_timeout", "default_notify_timeout")
@pytest.mark.parametrize("send, notify", [(5, 40), (40, 5)])
def test_send_timeouts(send, notify):
    with fakes.driver(
        default_send_timeout=send,
        default_notify_timeout=notify,
        network={"credit": 0},
    ) as s:
        tasks = {
            "cast": s.send(),
            "call": s.call(),
            "notify": s.notify(),
            "own": s.send(timeout=20),
        }
        s.world.advance(6)
        done = {name for name, task in tasks.items() if task.done}
        assert done == ({"cast", "call"} if send == 5 else {"notify"})
        s.world.advance(16)
        assert tasks["own"].done
        s.world.advance(20)
        for task in tasks.values():
            with pytest.raises(exceptions.MessagingException):
                task.result()


@effect("default_sender_link_timeout")
@pytest.mark.parametrize("seconds", [10, 100])
def test_default_sender_link_timeout(seconds):
    with fakes.driver(default_sender_link_timeout=seconds) as s:
        s.up()
        s.world.advance(seconds * 0.9)
        assert s.peer.inbound
        s.world.advance(seconds)
        assert not s.peer.inbound


@effect("pre_settled")
@pytest.mark.parametrize(
    "kind, product, expected",
    [
        *((kind, "greenamqp", kind) for kind in options.PRE_SETTLED[:4]),
        ("rpc-reply-volatile", "greenamqp", None),
        ("rpc-reply-volatile", "qpid-cpp", "rpc-reply"),
    ],
)
def test_pre_settled(kind, product, expected):
    with fakes.driver(pre_settled=[kind], network={"product": product}) as s:
        incoming, listener = requested(s)
        s.send(Target(topic="a"), message={"what": "rpc-cast"})
        s.call(Target(topic="b"), message={"what": "rpc-call"})
        s.notify(Target(topic="c"), message={"what": "notify"}, version=1.0)
        incoming.reply({"what": "rpc-reply"})
        s.world.settle()
        settled = {}
        for received in s.peer.received:
            body = json.loads(received.message.body)
            settled[(body.get("request") or body["response"])["what"]] = (
                received.settled
            )
        assert settled == {each: each == expected for each in options.PRE_SETTLED[:4]}
        listener.cleanup()


@effect("addressing_mode")
@pytest.mark.parametrize(
    "mode, product, address",
    [
        ("dynamic", "qpid-cpp", "unicast.openstack.t"),
        ("dynamic", "router", "openstack.org/om/rpc/anycast/openstack/t"),
        ("legacy", "router", "unicast.openstack.t"),
        ("routable", "qpid-cpp", "openstack.org/om/rpc/anycast/openstack/t"),
    ],
)
def test_addressing_mode(mode, product, address):
    with fakes.driver(addressing_mode=mode, network={"product": product}) as s:
        s.up()
        assert s.peer.attaches == [address]


ALL = Target(topic="t", fanout=True)
ONE = Target(topic="t", server="s")
ANY = Target(topic="t")


@effect(
    "server_request_prefix",
    "broadcast_prefix",
    "group_request_prefix",
    "rpc_address_prefix",
    "multicast_address",
    "unicast_address",
    "anycast_address",
    "default_rpc_exchange",
)
@pytest.mark.parametrize(
    "mode, name, target, address",
    [
        ("legacy", "server_request_prefix", ONE, "X.openstack.t.s"),
        ("legacy", "broadcast_prefix", ALL, "X.openstack.t.all"),
        ("legacy", "group_request_prefix", ANY, "X.openstack.t"),
        ("routable", "rpc_address_prefix", ANY, "X/anycast/openstack/t"),
        ("routable", "multicast_address", ALL, "openstack.org/om/rpc/X/openstack/t"),
        ("routable", "unicast_address", ONE, "openstack.org/om/rpc/X/openstack/t/s"),
        ("routable", "anycast_address", ANY, "openstack.org/om/rpc/X/openstack/t"),
        ("routable", "default_rpc_exchange", ANY, "openstack.org/om/rpc/anycast/X/t"),
    ],
)
def test_addresses_of_requests(mode, name, target, address):
    with fakes.driver(addressing_mode=mode, **{name: "X"}) as s:
        s.up(target)
        assert s.peer.attaches == [address]


@effect("notify_address_prefix", "default_notification_exchange")
@pytest.mark.parametrize(
    "name, address",
    [
        ("notify_address_prefix", "X/anycast/openstack/t"),
        ("default_notification_exchange", "openstack.org/om/notify/anycast/X/t"),
    ],
)
def test_addresses_of_notifications(name, address):
    with fakes.driver(addressing_mode="routable", **{name: "X"}) as s:
        task = s.notify()
        s.world.settle()
        assert task.result() is None
        assert s.peer.attaches == [address]


@effect("reply_link_credit")
@pytest.mark.parametrize("credit", [3, 30])
def test_reply_link_credit(credit):
    with fakes.driver(reply_link_credit=credit) as s:
        s.call()
        s.world.settle()
        (link,) = s.peer.outbound.values()
        assert link.credit == credit


@effect("rpc_server_credit", "notify_server_credit")
def test_server_credit():
    with fakes.driver(rpc_server_credit=7, notify_server_credit=8) as s:
        listeners = [s.listen(), s.listen_for_notifications()]
        credit = {name: link.credit for name, link in s.peer.outbound.items()}
        assert credit == {
            "exclusive.openstack.t.s": 7,
            "broadcast.openstack.t.all": 7,
            "unicast.openstack.t": 7,
            "unicast.openstack.t.info": 8,
        }
        for listener in listeners:
            listener.cleanup()


@effect("hub")
@pytest.mark.parametrize("name", ["auto", *greenamqp.hubs.NAMES])
def test_hub(name):
    with fakes.driver(hub=name) as s:
        s.up()
        assert s.world.asked_for == [name]


@effect("state_dir")
def test_state_dir(tmp_path):
    folder = tmp_path / "state"
    with Broker() as broker:
        url = f"{broker.url}/?state_dir={folder}"
        transport = oslo_messaging.get_rpc_transport(cfg.ConfigOpts(), url=url)
        try:
            transport._send(oslo_messaging.Target(topic="t"), {}, {})
            assert [path.suffix for path in folder.iterdir()] == [".sock"]
        finally:
            transport.cleanup()
    assert list(folder.iterdir()) == []


@effect("metrics")
@pytest.mark.parametrize("on", [True, False])
def test_metrics(on):
    with fakes.driver(metrics=on) as s:
        s.up()
        assert (s.driver.client.on_send is not None) is on


@effect("traces")
@pytest.mark.parametrize("on", [True, False])
def test_traces(on):
    with fakes.driver(traces=on) as s:
        s.up()
        assert bool(s.driver.client.on_hand_out) is on


@effect("heartbeat_guard")
@pytest.mark.parametrize("guard", [True, False])
def test_heartbeat_guard(guard, monkeypatch):
    guarded = []
    monkeypatch.setattr(Pump, "keep_alive", lambda pump: guarded.append(pump) or True)
    with fakes.driver(heartbeat_guard=guard) as s:
        s.up()
    assert len(guarded) == guard


@effect("queue_expires", "queue_message_ttl", "queue_max_length")
@pytest.mark.parametrize(
    "name, value, properties",
    [
        ("queue_expires", 1.5, {"x-expires": 1500}),
        ("queue_message_ttl", 2, {"x-message-ttl": 2000}),
        ("queue_max_length", 3, {"x-max-length": 3}),
    ],
)
def test_queue_policies(name, value, properties):
    with fakes.driver(network={"product": "greenamqp"}, **{name: value}) as s:
        s.up()
        (link,) = s.peer.inbound.values()
        assert link.remote_properties == properties


@effect("rpc_cast_ttl")
@pytest.mark.parametrize("ttl", [7, 0])
def test_rpc_cast_ttl(ttl):
    bus = {"product": "apache-activemq-artemis"}
    with fakes.driver(network=bus, rpc_cast_ttl=ttl) as s:
        for timeout in (None, 5, 60):
            s.send(timeout=timeout)
        s.world.settle()
        lives = [received.message.ttl for received in s.peer.received]
        assert lives == ([7, 5, 7] if ttl else [None, 5, 60])


@effect(
    "rabbit_queue_type", "rabbit_transient_queue_type", "rabbit_transient_queues_ttl"
)
@pytest.mark.parametrize(
    "name, value, which, argument",
    [
        ("rabbit_queue_type", "classic", "anycast", ("x-queue-type", "classic")),
        ("rabbit_transient_queue_type", "quorum", "reply", ("x-queue-type", "quorum")),
        ("rabbit_transient_queues_ttl", 7, "reply", ("x-expires", 7000)),
    ],
)
def test_queues_of_rabbitmq(name, value, which, argument):
    """As what a queue is declared that lasts, and one for replies."""
    with fakes.driver(addressing_mode="declared", **{name: value}) as s:
        bus = buses.identify(product="RabbitMQ", version="4.0.5")
        addresser = buses.choose(s.driver._options, "openstack", None, bus)
        nodes = [
            addresser.reply_source("unique"),
            *addresser.rpc_sources(Target(topic="t", server="s"), "unique"),
        ]
    (arguments,) = [
        dict(declaration.arguments)
        for node in nodes
        for declaration in node.declarations
        if declaration.what.startswith("queue") and which in declaration.what
    ]
    assert arguments[argument[0]] == argument[1]


# -- TLS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Certificates as files, by what they are."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    cert = ca.issue_cert("me.example")
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(cert.private_key_pem.bytes(), None)
    contents = {
        "ca": ca.cert_pem.bytes(),
        "cert": cert.cert_chain_pems[0].bytes(),
        "key": cert.private_key_pem.bytes(),
        "both": cert.private_key_and_cert_chain_pem.bytes(),
        "locked": key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"the password"),
        ),
    }
    paths = {}
    for name, content in contents.items():
        path = folder / f"{name}.pem"
        path.write_bytes(content)
        paths[name] = str(path)
    return paths


def secured(**overrides):
    """What an attempt to connect is told of TLS."""
    with fakes.driver("amqp://bus/vhost", **overrides) as s:
        s.network.default = "no"
        s.send()
        s.world.settle()
        return s.network.secured[0]


@effect("ssl")
@pytest.mark.parametrize("ssl", [True, False])
def test_ssl(ssl):
    assert ("context" in secured(ssl=ssl)) is ssl


@effect("ssl_ca_file", "ssl_cert_file")
@pytest.mark.parametrize(
    "name, kind", [("ssl_ca_file", "ca"), ("ssl_cert_file", "both")]
)
def test_files_switch_tls_on(files, name, kind):
    assert "context" in secured(**{name: files[kind]})


def test_ssl_ca_file(files):
    context = Security(fakes.options(ssl_ca_file=files["ca"])).context()
    assert len(context.get_ca_certs()) == 1
    with pytest.raises(ValueError, match="ssl_ca_file"):
        secured(ssl_ca_file=files["ca"] + ".gone")


@effect("ssl_key_file")
def test_ssl_key_file(files):
    Security(
        fakes.options(ssl_cert_file=files["cert"], ssl_key_file=files["key"])
    ).context()
    with pytest.raises(ValueError, match="ssl_key_file"):
        secured(ssl_cert_file=files["cert"])
    with pytest.raises(ValueError, match="ssl_key_file"):
        secured(ssl_cert_file=files["cert"], ssl_key_file=files["ca"])


@effect("ssl_key_password")
def test_ssl_key_password(files):
    given = {"ssl_cert_file": files["cert"], "ssl_key_file": files["locked"]}
    Security(fakes.options(ssl_key_password="the password", **given)).context()
    for password in ("another one", None):
        with pytest.raises(ValueError, match="ssl_key_password") as caught:
            secured(ssl_key_password=password, **given)
        assert "another one" not in str(caught.value)


@effect("ssl_verify_vhost")
@pytest.mark.parametrize("verify, name", [(True, "vhost"), (False, "bus")])
def test_ssl_verify_vhost(verify, name):
    assert secured(ssl=True, ssl_verify_vhost=verify)["server_name"] == name


# -- SASL


@effect("sasl_mechanisms")
def test_sasl_mechanisms():
    users = {"passwords": {"me": "secret"}}
    with fakes.driver("amqp://me:secret@bus/", network=users) as s:
        s.up()
        assert s.peer.engine.user == "me"
    with fakes.driver("amqp://me:secret@bus/", sasl_mechanisms="ANONYMOUS") as s:
        s.up()
        assert s.peer.engine.user in (None, "anonymous")


@effect("password_file", "password_command")
@pytest.mark.parametrize("option", ["password_file", "password_command"])
def test_passwords_that_change(option, tmp_path):
    path = tmp_path / "password"
    path.write_text("secret")
    value = str(path) if option == "password_file" else f"cat {path}"
    with fakes.driver("amqp://me@bus/", **{option: value}) as s:
        s.notify()
        s.world.settle()
        assert s.network.secured[0]["password"]() == "secret"
    users = {"passwords": {"me": "secret"}}
    with fakes.driver("amqp://me:secret@bus/", network=users, **{option: value}) as s:
        s.up()
        assert "password" not in s.network.secured[0]


@effect("sasl_default_realm")
@pytest.mark.parametrize(
    "user, realm, seen",
    [("me", "realm", "me@realm"), ("me@own", "realm", "me@own"), ("me", "", "me")],
)
def test_sasl_default_realm(user, realm, seen):
    with fakes.driver(
        f"amqp://{user.replace('@', '%40')}:secret@bus/",
        sasl_default_realm=realm,
        network={"passwords": {seen: "secret"}},
    ) as s:
        s.up()
        assert s.peer.engine.user == seen


@effect("sasl_config_dir", "sasl_config_name")
def test_cyrus_configuration(monkeypatch):
    told = {}
    monkeypatch.setattr(
        proton.SASL, "config_path", lambda sasl, path: told.update(dir=path)
    )
    monkeypatch.setattr(
        proton.SASL, "config_name", lambda sasl, name: told.update(name=name)
    )
    with fakes.driver(sasl_config_dir="/some/where", sasl_config_name="nova") as s:
        s.up()
    assert told == {"dir": "/some/where", "name": "nova"}
    told.clear()
    with fakes.driver() as s:
        s.up()
    assert told == {}


# -- odds and ends


def test_options_are_read_once():
    conf = fakes.conf()
    with fakes.driver(configuration=conf) as s:
        conf.set_override("default_send_timeout", 7, group=GROUP)
        assert s.driver._options.default_send_timeout == 30


def test_nothing_is_logged_for_good_options(caplog):
    caplog.set_level(logging.WARNING, "greenamqp")
    with fakes.driver("amqp://bus/?idle_timeout=10") as s:
        s.up()
    assert caplog.text == ""
