# SPDX-License-Identifier: Apache-2.0
"""Queues and exchanges as the rabbit:// driver has them: compared with what that driver
itself declares, which is run here without a broker."""

import types

import kombu
import pytest
from oslo_config import cfg
from oslo_messaging import Target
from oslo_messaging._drivers import amqp, amqpdriver, impl_rabbit

from greenamqp import buses
from greenamqp.buses import PREDECESSOR, RABBIT, Precedence, Service, identify
from greenamqp.buses.rabbitmq import management as rabbitmq
from greenamqp.options import RABBIT_GROUP, RABBIT_NAMES, RabbitOptions
from greenamqp.policy import Policies, QueuePolicy
from tests.unit import fakes

BUS = identify("RabbitMQ", "4.0.5")


def conf(**overrides):
    made = fakes.conf()
    made.register_opts(amqp.amqp_opts, group=RABBIT_GROUP)
    made.register_opts(impl_rabbit.rabbit_opts, group=RABBIT_GROUP)
    for name, value in overrides.items():
        made.set_override(name, value, group=RABBIT_GROUP)
    return made


def ours(configuration, default_exchange="openstack"):
    return buses.choose(
        configuration.oslo_messaging_amqp,
        default_exchange,
        "vhost",
        BUS,
        Policies(rabbit=RabbitOptions(configuration)),
    )


class Channel:
    """A channel of the 0-9-1 client that notes what is declared on it."""

    connection = types.SimpleNamespace(client=None)

    def __init__(self, noted):
        self._noted = noted

    def exchange_declare(self, exchange, type, durable, auto_delete, **rest):
        self._noted.append(("exchange", exchange, type, durable, auto_delete))

    def queue_declare(self, queue, durable, auto_delete, arguments, **rest):
        self._noted.append(
            ("queue", queue, durable, auto_delete, tuple(sorted(arguments.items())))
        )
        return types.SimpleNamespace(queue=queue)

    def queue_bind(self, queue, exchange, routing_key, **rest):
        self._noted.append(("binding", exchange, queue, routing_key))

    def prepare_queue_arguments(self, arguments, **rest):
        return arguments or {}


class Theirs(impl_rabbit.Connection):
    """A connection of the rabbit:// driver to nowhere; `noted`: what it declares and
    where it publishes."""

    def __init__(self, configuration):
        group = configuration.oslo_messaging_rabbit
        for name in RABBIT_NAMES:
            setattr(self, name, getattr(group, name))
        self.rabbit_quorum_queue_config = self._get_quorum_configurations(group)
        self.enable_cancel_on_failover = False
        self.direct_mandatory_flag = True
        self.kombu_compression = None
        self._q_manager = None
        self._declared_exchanges = set()
        self._declared_queues = set()
        self.noted = []
        self.channel = Channel(self.noted)
        self.connection = types.SimpleNamespace(channel_errors=())
        self.connection_id = "id"
        self._producer = self

    def declare_consumer(self, consumer):
        consumer.declare(self)

    def _ensure_publishing(self, method, exchange, msg, routing_key=None, **rest):
        method(exchange, msg, routing_key=routing_key)

    def _transport_socket_timeout(self, timeout):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def publish(self, msg, exchange, routing_key, **rest):
        self.noted.append(("publish", exchange.name, routing_key))


class Driver(amqpdriver.AMQPDriverBase):
    """The rabbit:// driver with such a connection."""

    prefetch_size = 1

    def __init__(self, configuration):
        super().__init__(configuration, None, None, "openstack", [])
        self.made = Theirs(configuration)

    def _get_connection(self, *rest, **options):
        return self.made

    def noted(self):
        return {_plain(each) for each in self.made.noted}


def _plain(entry):
    """Without what is random."""
    return tuple(
        part.rsplit("_", 1)[0] + "_<unique>"
        if isinstance(part, str) and "_fanout_" in part
        else part
        for part in entry
    )


def noted(*nodes):
    """What our nodes have declared, as Channel notes it."""
    found = set()
    for node in nodes:
        for declaration in node.declarations:
            what, fields = declaration.what.split()[0], declaration.body()
            name = declaration.what.split("'")[1]
            if what == "exchange":
                assert not fields["arguments"] and not fields["internal"]
                kind, durable = fields["type"], fields["durable"]
                found.add((what, name, kind, durable, fields["auto_delete"]))
            elif what == "queue":
                assert not fields["exclusive"]
                arguments = tuple(sorted(fields["arguments"].items()))
                found.add(
                    (what, name, fields["durable"], fields["auto_delete"], arguments)
                )
            else:
                found.add(
                    (
                        what,
                        fields["source"],
                        fields["destination_queue"],
                        fields["binding_key"],
                    )
                )
    return {_plain(each) for each in found}


SETTINGS = [
    {},
    {"amqp_durable_queues": True},
    {"amqp_auto_delete": True},
    {"rabbit_ha_queues": True},
    {"rabbit_transient_queues_ttl": 60},
    {"rabbit_transient_queues_ttl": 0},
    {"rabbit_quorum_queue": True},
    {"rabbit_transient_quorum_queue": True},
    {
        "rabbit_quorum_queue": True,
        "rabbit_transient_quorum_queue": True,
        "rabbit_quorum_delivery_limit": 5,
        "rabbit_quorum_max_memory_length": 6,
        "rabbit_quorum_max_memory_bytes": 7,
    },
    {
        "rabbit_transient_quorum_queue": True,
        "rabbit_stream_fanout": True,
        "rabbit_qos_prefetch_count": 1,
    },
]


@pytest.fixture(params=SETTINGS, ids=lambda setting: " ".join(setting) or "defaults")
def configuration(request):
    return conf(**request.param)


def test_the_settings_try_all_options():
    assert {name for setting in SETTINGS for name in setting} == set(RABBIT_NAMES)


@pytest.mark.parametrize("exchange", [None, "nova"])
def test_a_server_declares_what_theirs_does(configuration, exchange):
    target = Target(exchange=exchange, topic="top.ic", server="host")
    driver = Driver(configuration)
    driver.listen(target, 1, None)
    assert noted(*ours(configuration).rpc_sources(target, "u")) == driver.noted()


@pytest.mark.parametrize("pool", [None, "pool"])
def test_a_listener_declares_what_theirs_does(configuration, pool):
    targets = [Target(exchange="nova", topic="t"), Target(exchange=None, topic="t")]
    driver = Driver(configuration)
    driver.listen_for_notifications([(each, "info") for each in targets], pool, 1, None)
    with_priority = [Target(exchange=e.exchange, topic="t.info") for e in targets]
    made = ours(configuration).notification_sources(with_priority, pool)
    assert noted(*made) == driver.noted()
    # One queue, hence one link.
    assert [node.address for node in made] == [f"/queues/{pool or 't.info'}"]


@pytest.mark.parametrize(
    "target, service",
    [
        (Target(topic="t"), Service.RPC),
        (Target(topic="t", exchange="e/x"), Service.RPC),
        (Target(topic="t", server="s"), Service.RPC),
        (Target(topic="t", exchange="e", fanout=True), Service.RPC),
        (Target(topic="t.info", exchange="e"), Service.NOTIFY),
    ],
)
def test_what_is_sent_goes_where_theirs_does(configuration, target, service):
    driver = Driver(configuration)
    if service is Service.NOTIFY:
        driver.send_notification(target, {}, {}, 2.0)
    else:
        driver.send(target, {}, {})
    node = ours(configuration).destination(target, service)
    *declared, (_, exchange, key) = driver.made.noted
    assert noted(node) == {_plain(each) for each in declared}
    quoted = exchange.replace("/", "%2F")
    assert node.to == f"/exchanges/{quoted}" + (f"/{key}" if key else "")
    assert node.durable and node.may_be_unheard == bool(target.fanout)


def test_the_reply_queue_is_as_theirs(configuration):
    driver = Driver(configuration)
    driver.made.declare_direct_consumer("reply_u", None)
    node = ours(configuration).reply_source("u")
    # Who consumes from the default exchange declares no exchange and no binding.
    assert noted(node) == {each for each in driver.noted() if each[0] == "queue"}
    assert node.address == "/queues/reply_u"
    assert (node.reply_to, node.remove) == ("reply_u", "reply_u")
    assert node.survives
    answer = ours(configuration).reply_destination("reply_u:1/é")
    assert answer.to == "/queues/reply_u%3A1%2F%C3%A9"
    assert answer.declarations == ()


def test_a_stream_is_read_from_now_on():
    configuration = conf(**SETTINGS[-1])
    fanout = ours(configuration).rpc_sources(Target(topic="t", server="s"), "u")[1]
    assert fanout.address == "/queues/t_fanout"
    (offset,) = fanout.filter.values()
    assert offset.value == "next"
    assert fanout.remove is None
    # RabbitMQ refuses a priority there.
    assert fanout.precedence is Precedence.NEVER


@pytest.mark.parametrize("mode", ["rabbit", "declared"])
def test_what_goes_before_links_that_may_be_dead(mode):
    bus = identify("RabbitMQ", "4.0.5")
    made = buses.choose(fakes.options(addressing_mode=mode), None, None, bus)
    sources = made.rpc_sources(Target(topic="t", server="s"), "u")
    assert [node.precedence for node in sources] == [
        Precedence.BRIEFLY,
        Precedence.ALWAYS,
        Precedence.BRIEFLY,
    ]
    assert made.reply_source("u").precedence is Precedence.ALWAYS
    # What a listener works on would come again when its link is attached anew.
    (node,) = made.notification_sources([Target(topic="t.info")], None)
    assert node.precedence is Precedence.NEVER


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"rabbit_quorum_queue": True, "rabbit_ha_queues": True}, "rabbit_ha_queues"),
        (
            {"rabbit_transient_quorum_queue": True, "rabbit_ha_queues": True},
            "rabbit_transient_quorum_queue and rabbit_ha_queues",
        ),
        (
            {"rabbit_stream_fanout": True, "rabbit_qos_prefetch_count": 1},
            "needs rabbit_transient_quorum_queue",
        ),
        (
            {"rabbit_stream_fanout": True, "rabbit_transient_quorum_queue": True},
            "rabbit_qos_prefetch_count",
        ),
    ],
)
def test_options_that_contradict_are_refused(setting, words):
    family = ours(conf(**setting))
    for ask in (
        lambda: family.destination(Target(topic="t"), Service.RPC),
        lambda: family.rpc_sources(Target(topic="t", server="s"), "u"),
        lambda: family.notification_sources([Target(topic="t.info")], None),
        lambda: family.reply_source("u"),
    ):
        with pytest.raises(NotImplementedError, match=words):
            ask()


def test_every_property_that_an_option_decides_on_names_it():
    family = ours(conf(**SETTINGS[-2]))
    nodes = [
        *family.rpc_sources(Target(topic="t", server="s"), "u"),
        family.reply_source("u"),
        family.destination(Target(topic="t", fanout=True), Service.RPC),
    ]
    for declaration in [each for node in nodes for each in node.declarations]:
        if declaration.what.startswith("binding"):
            continue
        known = dict(declaration.options)
        assert set(declaration.body()["arguments"]) | {"durable"} <= set(known)
        assert f"[{RABBIT_GROUP}]" in known["durable"]


def test_a_policy_comes_on_top():
    policies = Policies()
    policies.set(Target(topic="t"), QueuePolicy(1, 2, 3))
    family = buses.choose(fakes.options(), None, None, BUS, policies)
    (source,) = family.notification_sources([Target(topic="t.info")], None)
    assert dict(source.declarations[1].arguments) == {
        "x-expires": 1000,
        "x-message-ttl": 2000,
        "x-max-length": 3,
        "x-overflow": "drop-head",
    }
    assert "queue_expires" in dict(source.declarations[1].options)["x-expires"]
    assert source.declarations[0].body()["durable"] is False
    # Without an exchange of its own or the transport's.
    assert source.declarations[0].path == "/exchanges/openstack"


# -- how it is chosen, and where the options come from


def test_it_is_the_default_on_rabbitmq_4():
    assert buses.choose(fakes.options(), None, None, BUS).format is RABBIT
    declared = fakes.options(addressing_mode="declared")
    assert buses.choose(declared, None, None, BUS).format is PREDECESSOR
    for bus in (identify(), identify("qpid-dispatch-router")):
        assert buses.choose(fakes.options(), None, None, bus).format is PREDECESSOR


def test_it_asks_in_the_way_of_rabbitmq():
    assert ours(conf()).dialect is rabbitmq.Management


def test_what_is_likely_before_a_bus_is_known():
    for mode, format in (
        ("rabbit", RABBIT),
        ("dynamic", PREDECESSOR),
        ("declared", PREDECESSOR),
    ):
        options = fakes.options(addressing_mode=mode)
        assert buses.likely_format(options) is format


def test_options_of_the_group_that_no_driver_has_registered(tmp_path):
    path = tmp_path / "service.conf"
    path.write_text(f"[{RABBIT_GROUP}]\nrabbit_quorum_queue = true\n")
    configuration = cfg.ConfigOpts()
    configuration(["--config-file", str(path)], default_config_dirs=[])
    assert RabbitOptions(configuration).values.rabbit_quorum_queue is True
    # The rabbit:// driver, in the same process, may still register its own.
    configuration.register_opts(amqp.amqp_opts, group=RABBIT_GROUP)
    configuration.register_opts(impl_rabbit.rabbit_opts, group=RABBIT_GROUP)


def test_a_value_that_makes_no_sense_is_told_to_who_asks(tmp_path):
    path = tmp_path / "service.conf"
    path.write_text(f"[{RABBIT_GROUP}]\nrabbit_transient_queues_ttl = long\n")
    configuration = cfg.ConfigOpts()
    configuration(["--config-file", str(path)], default_config_dirs=[])
    family = buses.choose(
        fakes.options(),
        None,
        None,
        BUS,
        Policies(rabbit=RabbitOptions(configuration)),
    )
    with pytest.raises(NotImplementedError, match="rabbit_transient_queues_ttl.*long"):
        family.reply_source("u")


def test_the_query_of_the_url_may_have_them():
    url = "amqp://host/?rabbit_quorum_queue=true&rabbit_quorum_delivery_limit=3"
    with fakes.driver(url) as s:
        values = s.driver.policies.rabbit.values
        assert values.rabbit_quorum_queue is True
        assert values.rabbit_quorum_delivery_limit == 3
        assert values.amqp_durable_queues is False


def test_a_bad_value_in_the_query_is_named():
    with pytest.raises(ValueError, match="rabbit_quorum_delivery_limit must be"):
        with fakes.driver("amqp://host/?rabbit_quorum_delivery_limit=many"):
            pass


def test_kombu_makes_what_was_compared():
    """The comparisons above hang on its entities declaring by these methods."""
    noted_ = []
    kombu.Queue(
        "q", kombu.Exchange("e", "topic"), "k", channel=Channel(noted_)
    ).declare()
    assert [each[0] for each in noted_] == ["exchange", "queue", "binding"]
