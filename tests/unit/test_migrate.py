# SPDX-License-Identifier: Apache-2.0
"""``greenamqp migrate``, on what deployment projects write."""

import argparse
import json
import stat

import pytest

from greenamqp import command, options
from greenamqp.command import service
from greenamqp.command.migrate import table

PASSWORD = "s3cr3t"

#: In the manner of kolla-ansible: TLS and quorum queues for all.
KOLLA = """\
[DEFAULT]
debug = False
log_dir = /var/log/kolla/nova
# All services of a host have the same.
transport_url = rabbit://openstack:s3cr3t@10.1.0.11:5671,openstack:s3cr3t@10.1.0.12:5671//

[api_database]
connection = mysql+pymysql://nova_api:s3cr3t@10.1.0.250:3306/nova_api

[oslo_messaging_notifications]
transport_url = rabbit://openstack:s3cr3t@10.1.0.11:5671,openstack:s3cr3t@10.1.0.12:5671//
driver = messagingv2
topics = notifications

[oslo_messaging_rabbit]
use_queue_manager = true
processname = nova-api
heartbeat_in_pthread = True
ssl = true
ssl_ca_file = /etc/ssl/certs/ca-certificates.crt
rabbit_quorum_queue = true
rabbit_stream_fanout = true
rabbit_qos_prefetch_count = 1
rabbit_transient_quorum_queue = true

[wsgi]
api_paste_config = /etc/nova/api-paste.ini
"""

#: In the manner of openstack-ansible: TLS in the query, with what is no option here.
OSA = """\
# Ansible managed

[DEFAULT]
use_journal = True
# Rpc all
transport_url = rabbit://nova:s3cr3t@172.29.1.1:5671,nova:s3cr3t@172.29.1.2:5671/nova?ssl=1&ssl_version=TLSv1_2&ssl_ca_file=/etc/ssl/certs/ca-certificates.crt

# Notifications
[oslo_messaging_notifications]
topics = notifications
driver = messagingv2
transport_url = rabbit://nova:s3cr3t@172.29.1.1:5672/nova?ssl=0

# Messaging
[oslo_messaging_rabbit]
heartbeat_in_pthread = False
rabbit_quorum_queue = True
rabbit_transient_quorum_queue = True
rabbit_qos_prefetch_count = 5
use_queue_manager = True
hostname = infra1-nova-api
rabbit_stream_fanout = False
rabbit_quorum_delivery_limit = 0
rabbit_quorum_max_memory_bytes = 0
"""

#: In the manner of puppet-oslo, without spaces, one side mirrored.
PUPPET = """\
[DEFAULT]
transport_url=rabbit://guest:s3cr3t@bus.example/
rpc_backend=rabbit

[oslo_messaging_rabbit]
amqp_durable_queues=False
heartbeat_rate=2
heartbeat_timeout_threshold=60
heartbeat_in_pthread=true
kombu_reconnect_delay=1.0
kombu_failover_strategy=shuffle
rabbit_ha_queues=true
rabbit_interval_max=15
rabbit_login_method=EXTERNAL
ssl=False
ssl_ca_file=/etc/pki/ca.pem
"""

#: In the manner of TripleO: RPC by a router, notifications by RabbitMQ.
TRIPLEO = """\
[DEFAULT]
transport_url=amqp://guest:s3cr3t@overcloud-0.internalapi.localdomain:31459,guest:s3cr3t@overcloud-1.internalapi.localdomain:31459/?ssl=0

[oslo_messaging_amqp]
default_reply_timeout=30
addressing_mode=dynamic
pre_settled=rpc-cast
pre_settled=rpc-reply
idle_timeout=0
allow_insecure_clients=false
ssl_key_password=s3cr3t

[oslo_messaging_notifications]
driver=messagingv2
transport_url=rabbit://guest:s3cr3t@overcloud-0.internalapi.localdomain:5672/?ssl=0

[oslo_messaging_rabbit]
ssl=False
"""


@pytest.fixture
def migrate(tmp_path, capsys):
    """Runs it on files with these texts; returns the exit status, what it said as plain
    data, and the new texts by name."""

    def run(*texts):
        paths = []
        for number, text in enumerate(texts):
            paths.append(tmp_path / f"{number}.conf")
            paths[-1].write_text(text)
        made = [path.with_name(f"{path.name}.greenamqp") for path in paths]
        for path in made:
            path.unlink(missing_ok=True)
        arguments = ["migrate", "--write", *map(str, paths)]
        status = command.main([*arguments, "-f", "json"])
        shown = capsys.readouterr()
        assert command.main(arguments) == status
        assert PASSWORD not in shown.out + shown.err + capsys.readouterr().out
        assert [path.read_text() for path in paths] == list(texts)
        new = [path.read_text() if path.exists() else None for path in made]
        said = json.loads(shown.out)
        assert said["ok"] is (status == 0)
        assert said["written"] == [str(path) for path in made if path.exists()]
        return status, said, new

    return run


def told(said):
    return {row["option"]: row for row in said["settings"]}


def usable(tmp_path, text, *, notifications=False):
    """What greenamqp makes of a configuration: its URL and all its options."""
    path = tmp_path / "usable.conf"
    path.write_text(text)
    conf = service.configuration(argparse.Namespace(config_file=[str(path)]))
    parsed = service.parse(conf, None, notifications=notifications)
    return parsed, options.of(conf, parsed)


def added(old, new):
    """The lines that are new, if nothing is missing but the lines with their URLs."""
    gone = ("rabbit://", "kombu://")
    kept = [line for line in old.splitlines() if not any(g in line for g in gone)]
    lines = new.splitlines()
    for line in kept:
        lines.remove(line)
    return [line for line in lines if line]


def test_kolla_ansible(migrate, tmp_path):
    status, said, (new,) = migrate(KOLLA)
    assert status == 0, said["first"]
    rows = told(said)
    assert rows["heartbeat_in_pthread"]["verdict"] == table.NOTHING
    assert rows["rabbit_qos_prefetch_count"]["verdict"] == table.NOTHING
    assert rows["rabbit_stream_fanout"]["verdict"] == table.READ
    assert rows["ssl"]["becomes"] == {"ssl": "true"}
    assert any("cell_v2" in step for step in said["hosts"])
    url = "amqp://openstack:s3cr3t@10.1.0.11:5671,openstack:s3cr3t@10.1.0.12:5671//"
    assert added(KOLLA, new) == [
        f"transport_url = {url}",
        f"transport_url = {url}",
        "[oslo_messaging_amqp]",
        "# As [oslo_messaging_rabbit] ssl.",
        "ssl = true",
        "# As [oslo_messaging_rabbit] ssl_ca_file.",
        "ssl_ca_file = /etc/ssl/certs/ca-certificates.crt",
    ]
    parsed, values = usable(tmp_path, new)
    assert parsed.virtual_host == "/"
    assert values.ssl_ca_file and values.ssl


def test_openstack_ansible(migrate, tmp_path):
    status, said, (new,) = migrate(OSA)
    assert status == 0, said["first"]
    assert told(said)["ssl_version"]["verdict"] == table.NOTHING
    _, values = usable(tmp_path, new)
    assert values.ssl and values.ssl_ca_file == "/etc/ssl/certs/ca-certificates.crt"
    assert values.rpc_server_credit == values.notify_server_credit == 5
    parsed, values = usable(tmp_path, new, notifications=True)
    assert not values.ssl and not values.ssl_ca_file
    assert parsed.hosts[0].port == 5672
    # The query's were enough.
    assert "\nssl" not in new


def test_puppet_oslo(migrate, tmp_path):
    status, said, (new,) = migrate(PUPPET)
    assert status == 0, said["first"]
    rows = told(said)
    assert rows["ssl_ca_file"]["verdict"] == table.NOTHING
    assert "switch TLS on" in rows["ssl_ca_file"]["why"]
    assert rows["rabbit_ha_queues"]["verdict"] == table.READ
    parsed, values = usable(tmp_path, new)
    assert parsed.hosts[0].port == 5672
    assert not (values.ssl or values.ssl_ca_file)
    assert values.heartbeat_guard
    assert (values.idle_timeout, values.connection_retry_interval_max) == (60, 15)
    assert values.sasl_mechanisms == "EXTERNAL"


def test_tripleo(migrate, tmp_path):
    status, said, (new,) = migrate(TRIPLEO)
    assert status == 0, said["first"]
    rows = told(said)
    assert rows["allow_insecure_clients"]["verdict"] == table.NOTHING
    assert "was the default" in rows["idle_timeout"]["why"]
    assert rows["ssl_key_password"]["value"] == "***"
    text = "\n".join(said["bus"])
    assert "RabbitMQ" in text and "routers" in text
    parsed, _ = usable(tmp_path, new, notifications=True)
    assert str(parsed).startswith("amqp://")
    assert added(TRIPLEO, new) == [
        "transport_url=amqp://guest:s3cr3t@overcloud-0.internalapi.localdomain:5672/?ssl=0"
    ]


def test_what_is_migrated_needs_nothing_more(migrate):
    _, _, (new,) = migrate(KOLLA)
    status, said, (again,) = migrate(new)
    assert (status, again) == (0, None)


# -- traps


def rabbit(query="", section="", host="u:s3cr3t@bus"):
    return (
        f"[DEFAULT]\ntransport_url = rabbit://{host}/v{query}\n"
        f"[oslo_messaging_rabbit]\n{section}\n"
    )


def test_ssl_in_the_query_keeps_the_port(migrate, tmp_path):
    _, _, (new,) = migrate(rabbit("?ssl=true", "ssl_ca_file = /ca"))
    parsed, values = usable(tmp_path, new)
    assert parsed.hosts[0].port == 5672
    assert values.ssl and values.ssl_ca_file == "/ca"
    _, _, (new,) = migrate("[DEFAULT]\ntransport_url = amqp://u:s3cr3t@bus/?ssl=1\n")
    assert usable(tmp_path, new)[0].hosts[0].port == 5672


def test_tls_of_one_url_alone_goes_into_its_query(migrate, tmp_path):
    text = rabbit("", "ssl = true\nssl_ca_file = /${control_exchange}/$$&b\n") + (
        "[oslo_messaging_notifications]\n"
        "transport_url = rabbit://u:s3cr3t@other:1234/?ssl=0\n"
    )
    _, said, (new,) = migrate(text)
    assert "[oslo_messaging_amqp]" not in new
    _, values = usable(tmp_path, new)
    assert values.ssl and values.ssl_ca_file == "/openstack/$&b"
    _, values = usable(tmp_path, new, notifications=True)
    assert not (values.ssl or values.ssl_ca_file)


@pytest.mark.parametrize(
    ("text", "said_first"),
    [
        (rabbit("", "kombu_compression = gzip"), "no compressed message"),
        (rabbit("", "ssl = true"), "TLS without ssl_ca_file"),
        (
            rabbit("", "ssl=1\nssl_ca_file=/c\nssl_enforce_hostname_verification=no"),
            "certificate must name it",
        ),
        (rabbit("", "rabbit_retry_interval = soon"), "it cannot be used"),
        (rabbit("", "rabbit_retry_interval = 0"), "it cannot be used"),
        (rabbit(host="bus"), "logs in as guest"),
        (rabbit(host="u:s3cr3t@bus:99999x"), "port of a host is no number"),
        (rabbit(host="u:s3cr3t#x@bus"), "# as %23"),
        (rabbit(host="u:s3cr3t/x@bus"), "/ is written as %2F"),
        (rabbit(host="u:s3cr3t@a,\n u:s3cr3t@b"), "write it on one"),
        ("[oslo_messaging_rabbit]\nrabbit_password = s3cr3t\n", "no transport_url"),
        (
            "[DEFAULT]\ntransport_url = amqp://bus\n[amqp1]\npassword = s3cr3t\n",
            "write user and password into transport_url",
        ),
        (
            "[DEFAULT]\ntransport_url = amqp://bus\n"
            "[oslo_messaging_amqp]\naddressing_mode = nonsense\n",
            "it cannot be used",
        ),
    ],
)
def test_what_is_to_be_done_first(migrate, text, said_first):
    status, said, _ = migrate(text)
    assert status == 1
    assert said_first in "\n".join(said["first"])


def test_the_last_one_counts_and_what_is_set_stays(migrate, tmp_path):
    common = rabbit("", "heartbeat_timeout_threshold = 60\nrabbit_interval_max = 9")
    own = (
        "[oslo_messaging_rabbit]\nheartbeat-timeout-threshold = 20\n"
        "heartbeat_in_pthread = true\n"
        "heartbeat_in_pthread = false\n"
        "[oslo_messaging_amqp]\nconnection_retry_interval_max = 7\nhub = threads\n"
        "[other]\nx = 1\n"
    )
    _, said, (first, second) = migrate(common, own)
    assert "idle_timeout" not in first
    assert added(own, second) == [
        "# As [oslo_messaging_rabbit] heartbeat_timeout_threshold.",
        "idle_timeout = 20",
    ]
    # At the end of its group.
    assert second.index("hub") < second.index("idle_timeout") < second.index("[other]")
    assert "is set already" in told(said)["rabbit_interval_max"]["why"]


def test_any_option_may_have_a_url(migrate):
    text = (
        "[notification]\n"
        "messaging_urls = rabbit://u:s3cr3t@one:5672/nova\n"
        "messaging_urls = rabbit://u:s3cr3t@two/neutron\n"
        "[cell]\ncell_transport_url = 'rabbit://u:s3cr3t@[::1]/'\n"
        "[old]\nold_transport_url = kombu://u:s3cr3t@four/\n"
        "[other]\nlog_transport_url = kafka://u:s3cr3t@three/\n"
    )
    status, said, (new,) = migrate(text)
    assert status == 0, said["first"]
    assert added(text, new) == [
        "messaging_urls = amqp://u:s3cr3t@one:5672/nova",
        "messaging_urls = amqp://u:s3cr3t@two:5672/neutron",
        "cell_transport_url = 'amqp://u:s3cr3t@[::1]:5672/'",
        "old_transport_url = amqp://u:s3cr3t@four:5672/",
    ]


def test_as_people_read_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nova.conf").write_text(rabbit("", "heartbeat_rate = 2"))
    assert command.main(["migrate", "./nova.conf"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:6] == [
        "nova.conf",
        "  2: [DEFAULT] transport_url = rabbit://u:***@bus/v",
        "      becomes transport_url = amqp://u:***@bus:5672/v",
        "      AMQP 1.0, with the same hosts, users and virtual host",
        "  4: [oslo_messaging_rabbit] heartbeat_rate = 2",
        "      does nothing here: heartbeats are sent as often as the other side asks "
        "for",
    ]
    assert {"On the message bus:", "Host by host:", "And back:"} <= set(shown)
    assert "nothing was written" in shown[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["nova.conf"]


def test_nothing_else_of_the_file_changes(tmp_path):
    path = tmp_path / "odd.conf"
    odd = (
        "; a comment\r\n[DEFAULT]\r\nlist = one,\r\n   two\r\n"
        'transport_url : "rabbit://u:s3cr3t@bus/"   \r\n\x0c\r\n'
        "[oslo_messaging_rabbit]\r\nssl_version=\u00fc\r\nrabbit_interval_max=3"
    ).encode()
    path.write_bytes(odd)
    path.chmod(0o640)
    assert command.main(["migrate", "--write", str(path)]) == 0
    new = tmp_path / "odd.conf.greenamqp"
    assert new.read_bytes() == (
        odd.replace(b"rabbit://u:s3cr3t@bus", b"amqp://u:s3cr3t@bus:5672")
        + b"\r\n\r\n[oslo_messaging_amqp]\r\n"
        b"# As [oslo_messaging_rabbit] rabbit_interval_max.\r\n"
        b"connection_retry_interval_max = 3\r\n"
    )
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"[DEFAULT]\ns3cr3t\n", "line 2: No ':' or '=' found"),
        (b"\nx = s3cr3t\n", "line 2: Section must be started before assignment"),
        (b"[DEFAULT]\nx = \xff\n", "it is not UTF-8"),
        (b"[DEFAULT]\nurl = rabbit://u:s3cr3t@[::1", "u:***@[::1 is no URL"),
        (b"[DEFAULT]\nx = 1\n", "neither transport_url nor"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, capsys, content, said):
    path = tmp_path / "wrong.conf"
    if content is not None:
        path.write_bytes(content)
    assert command.main(["migrate", str(path)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert PASSWORD not in shown.err and not shown.out


# -- the table


def test_the_table_has_every_option_of_rabbit():
    theirs = table.rabbit_options()
    assert len(theirs) > 30
    assert set(theirs) <= set(table.RABBIT)
    for name, opt in theirs.items():
        for old in opt.deprecated_opts:
            # None: of another group, under this name.
            assert table.of_rabbit(old.name or name)[0] == name


def test_what_stays_is_what_the_driver_reads():
    stays = {name for name, each in table.RABBIT.items() if each.verdict == table.READ}
    assert stays == set(options.RABBIT_NAMES) - {"rabbit_qos_prefetch_count"}


@pytest.mark.parametrize("name", table.RABBIT)
def test_each_option_is_explained_with_its_default_and_another_value(name):
    opt = table.rabbit_options().get(name)
    default = "1" if opt is None or opt.default is None else str(opt.default)
    for value in (default, "1", "true"):
        for around in (table.Around(tls=True), table.Around(tls=False)):
            verdict, why, new = table.RABBIT[name].of(value, around)
            assert why
            assert bool(new) == (verdict == table.BECOMES)
            assert new.keys() <= table.OPTIONS.keys()


def test_the_old_driver_had_no_option_without_a_meaning():
    for name in table.AMQP.keys() - table.OPTIONS.keys():
        assert name in ("allow_insecure_clients", "username", "password")
