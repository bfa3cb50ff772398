# SPDX-License-Identifier: Apache-2.0
"""The plugin of devstack, with devstack's functions replaced by ones that tell how they
were called."""

import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).parents[2] / "devstack"

STUBS = r"""
set -o errexit -o nounset -o pipefail
SERVICE_HOST=192.0.2.1 SERVICE_PASSWORD=secret GREENAMQP_DIR=/opt/stack/greenamqp
ENABLED_SERVICES=rabbit,n-cpu
told() { printf '%s\n' "$*" >&3; }
for each in define_plugin iniset echo_summary setup_develop run_process stop_process \
    rpc_backend_add_vhost; do
    eval "$each() { told $each \"\$@\"; }"
done
is_service_enabled() { [[ ,$ENABLED_SERVICES, == *,$1,* ]]; }
enable_service() { ENABLED_SERVICES+=,$1; }
disable_service() {
    ENABLED_SERVICES=,$ENABLED_SERVICES,
    ENABLED_SERVICES=${ENABLED_SERVICES//,$1,/,}
}
get_python_exec_prefix() { echo "$PREFIX"; }
die() { shift; told die "$@"; exit 1; }
sudo() {
    if [[ "$*" == "rabbitmqctl version" ]]; then echo "$RABBITMQ"; else told "$@"; fi
}
iniset_rpc_backend() { told stock "$@"; }
get_notification_url() { echo "rabbit://"; }
exec 3>&1 >&2
"""


@pytest.fixture
def devstack(tmp_path):
    """Runs a script with the plugin's functions; returns its status and the calls."""
    command = tmp_path / "greenamqp"
    command.write_text('#!/bin/sh\necho "greenamqp $*" >&3\n')
    command.chmod(0o755)

    def run(script, rabbitmq="4.0.5", **settings):
        given = {"PREFIX": tmp_path, "RABBITMQ": rabbitmq, **settings}
        made = subprocess.run(
            ["bash", "-c", f"{STUBS}\nsource {HERE}/settings\n{script}"],
            env={"PATH": "/usr/bin:/bin"} | {k: str(v) for k, v in given.items()},
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0 or "die" in made.stdout, made.stderr
        lines = made.stdout.splitlines()
        assert lines.pop(0) == "define_plugin greenamqp"
        return made.returncode, [x for x in lines if not x.startswith("echo_summary")]

    return run


def phases(*names):
    return "\n".join(f"source {HERE}/plugin.sh {name}" for name in names)


ALL = phases(
    "stack pre-install", "stack install", "stack post-config", "stack test-config"
)
URL = "amqp://stackrabbit:secret@192.0.2.1:5672/"
INSTALLED = "setup_develop /opt/stack/greenamqp"
CHECKED = f"greenamqp doctor --url {URL}"


def test_on_rabbitmq(devstack):
    assert devstack(ALL) == (0, [INSTALLED, CHECKED])
    assert devstack(phases("unstack")) == (0, [])


def test_an_older_rabbitmq_gets_its_plugin(devstack):
    enabled = "rabbitmq-plugins enable rabbitmq_amqp1_0"
    assert devstack(ALL, rabbitmq="3.12.1") == (0, [INSTALLED, enabled, CHECKED])


def test_on_a_host_without_a_bus(devstack):
    script = "disable_service rabbit\n" + phases("stack install")
    assert devstack(script) == (0, [INSTALLED])


def test_on_the_embedded_broker(devstack, tmp_path):
    started = (
        f"run_process greenamqp-broker {tmp_path}/greenamqp broker --host 192.0.2.1 "
        "--port 5672 --user stackrabbit:secret"
    )
    status, told = devstack(
        f"is_service_enabled rabbit && told rabbit\n{ALL}\nrpc_backend_add_vhost cell\n"
        + phases("unstack"),
        GREENAMQP_BUS="embedded",
    )
    assert status == 0
    assert told == [INSTALLED, started, CHECKED, "stop_process greenamqp-broker"]


@pytest.mark.parametrize(
    "settings, url",
    [
        ({}, URL),
        (
            {"RABBIT_HOST": "bus", "RABBIT_USERID": "u", "RABBIT_PASSWORD": "p"},
            "amqp://u:p@bus:5672/",
        ),
        (
            {
                "RABBIT_HOST": "other",
                "GREENAMQP_HOST": "bus",
                "GREENAMQP_PORT": "5673",
                "GREENAMQP_USER": "g",
                "GREENAMQP_PASSWORD": "q",
            },
            "amqp://g:q@bus:5673/",
        ),
    ],
)
def test_services_get_its_url(devstack, settings, url):
    calls = (
        "iniset_rpc_backend nova /etc/nova/nova.conf\n"
        "iniset_rpc_backend nova /etc/nova/cell1.conf DEFAULT nova_cell1\n"
        "told $(get_transport_url nova_cell0)\n"
        "told $(get_notification_url)"
    )
    assert devstack(phases("stack pre-install") + "\n" + calls, **settings) == (
        0,
        [
            f"iniset /etc/nova/nova.conf DEFAULT transport_url {url}",
            f"iniset /etc/nova/cell1.conf DEFAULT transport_url {url}nova_cell1",
            f"{url}nova_cell0",
            url,
        ],
    )


def test_what_is_no_bus_is_refused(devstack):
    status, told = devstack("", GREENAMQP_BUS="kafka")
    assert status == 1
    assert told == ["die GREENAMQP_BUS is neither rabbitmq nor embedded: kafka"]
