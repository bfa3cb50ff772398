# SPDX-License-Identifier: Apache-2.0
"""A login by a Kerberos ticket, with a real key distribution centre.

Only where it is installed (in Debian krb5-kdc, krb5-admin-server, krb5-user and
libsasl2-modules-gssapi-mit), and proton has Cyrus SASL.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from greenamqp.engine import has_cyrus_sasl

pytestmark = pytest.mark.skipif(
    not has_cyrus_sasl()
    or not all(map(shutil.which, ("krb5kdc", "kdb5_util", "kadmin.local", "kinit")))
    or not list(pathlib.Path("/usr/lib").glob("**/sasl2/libgssapiv2.so")),
    reason="needs Kerberos, its module for Cyrus SASL, and proton with that",
)

_CLIENT = """
[libdefaults]
default_realm = TEST
dns_lookup_kdc = false
dns_canonicalize_hostname = false
rdns = false
# The server is called by the name of this machine as well.
ignore_acceptor_hostname = true
[realms]
TEST = {{
  kdc = 127.0.0.1:{port}
}}
[domain_realm]
localhost = TEST
[logging]
kdc = STDERR
"""

_CENTRE = """
[realms]
TEST = {{
  kdc_ports = {port}
  kdc_tcp_ports = {port}
  database_name = {folder}/principals
  key_stash_file = {folder}/stash
}}
"""

_SERVER = """
import sys
from proton.handlers import MessagingHandler
from proton.reactor import Container

folder, port = sys.argv[1:]


class Server(MessagingHandler):
    def on_start(self, event):
        event.container.listen(f"127.0.0.1:{port}")
        print("up", flush=True)

    def on_connection_bound(self, event):
        sasl = event.transport.sasl()
        sasl.config_path(folder)
        sasl.config_name("server")
        sasl.allowed_mechs("GSSAPI")

    def on_connection_opening(self, event):
        sasl = event.transport.sasl()
        print(sasl.mech, sasl.user, event.connection.remote_hostname, flush=True)


Container(Server()).run()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.fixture
def realm(tmp_path):
    """The environment of whoever takes part in a realm that has nova and amqp."""
    port = free_port()
    environment = os.environ | {
        "KRB5_CONFIG": f"{tmp_path}/krb5.conf",
        "KRB5_KDC_PROFILE": f"{tmp_path}/kdc.conf",
        "KRB5_KTNAME": f"{tmp_path}/keytab",
        "KRB5CCNAME": f"{tmp_path}/tickets",
    }
    (tmp_path / "krb5.conf").write_text(_CLIENT.format(port=port))
    (tmp_path / "kdc.conf").write_text(_CENTRE.format(port=port, folder=tmp_path))

    def do(*words, **options):
        subprocess.run(
            words, env=environment, check=True, stdout=subprocess.DEVNULL, **options
        )

    do("kdb5_util", "create", "-s", "-r", "TEST", "-P", "master")
    for query in (
        "addprinc -pw secret nova",
        "addprinc -randkey amqp/localhost",
        f"ktadd -k {tmp_path}/keytab amqp/localhost",
    ):
        do("kadmin.local", "-r", "TEST", "-q", query)
    centre = subprocess.Popen(
        ["krb5kdc", "-n"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in centre.stderr:
            if "commencing operation" in line:
                break
        do("kinit", "nova@TEST", input=b"secret\n")
        yield environment
    finally:
        centre.kill()
        centre.communicate()


@pytest.fixture
def server(realm, tmp_path):
    """A server that wants GSSAPI, and its port."""
    port = free_port()
    keytab = realm["KRB5_KTNAME"]
    (tmp_path / "server.conf").write_text(f"mech_list: GSSAPI\nkeytab: {keytab}\n")
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, tmp_path, str(port)],
        env=realm,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "up\n"
        yield process, port
    finally:
        process.kill()
        process.communicate()


def login(realm, url):
    """What doctor finds of a login."""
    done = subprocess.run(
        [sys.executable, "-m", "greenamqp"]
        + ["doctor", "--quick", "-f", "json", "--url", url],
        env=realm,
        capture_output=True,
        text=True,
    )
    steps = json.loads(done.stdout)["steps"]
    (step,) = (each for each in steps if each["step"] == "login and Open")
    return step


@pytest.mark.parametrize("virtual_host", ["", "cell"])
def test_a_ticket_logs_in(realm, server, virtual_host):
    process, port = server
    url = f"amqp://localhost:{port}/{virtual_host}?sasl_mechanisms=GSSAPI"
    step = login(realm, url)
    assert step["result"] == "ok", step
    assert "SASL GSSAPI" in step["text"]
    assert process.stdout.readline() == "GSSAPI nova localhost\n"


def test_without_a_ticket(realm, server, tmp_path):
    _, port = server
    step = login(
        realm | {"KRB5CCNAME": f"{tmp_path}/none"},
        f"amqp://localhost:{port}/?sasl_mechanisms=GSSAPI",
    )
    assert step["result"] == "failed"
    assert "No Kerberos credentials" in step["text"]


def test_a_ticket_is_used_where_that_is_asked_for(realm, server):
    """Nobody else fails for want of one."""
    _, port = server
    step = login(realm, f"amqp://nova:secret@localhost:{port}/")
    assert step["result"] == "failed"
    assert "no common SASL mechanism: the peer offers GSSAPI" in step["text"]
