# SPDX-License-Identifier: Apache-2.0
"""``greenamqp-status upgrade check``."""

from importlib import metadata

import pytest

from greenamqp.command import status

CODES = {"success": 0, "warning": 1, "failure": 2}


@pytest.fixture
def check(tmp_path, capsys):
    """Runs it on the text of a configuration; its exit status and what it shows."""

    def run(text):
        path = tmp_path / "service.conf"
        path.write_text(text)
        code = status.main(["--config-file", str(path), "upgrade", "check"])
        shown = capsys.readouterr().out
        return code, " ".join(shown.replace("|", " ").split())

    return run


@pytest.mark.parametrize(
    "text, result, said",
    [
        ("[DEFAULT]\ntransport_url = amqp://h", "success", "Result: Success"),
        ("", "warning", "no transport URL"),
        ("[DEFAULT]\ntransport_url = rabbit://u:secret@h", "warning", "rabbit://"),
        ("[DEFAULT]\ntransport_url = amqp://h:99999", "warning", "out of range"),
        ("[DEFAULT]\ntransport_url = amqp://u:secret$x@h", "warning", "written as $$"),
        (
            "[DEFAULT]\ntransport_url = amqp://h\n[oslo_messaging_amqp]\nnosuch = 1",
            "warning",
            "nosuch: there is no such option",
        ),
        (
            "[DEFAULT]\ntransport_url = amqp://h\n"
            "[oslo_messaging_amqp]\nidle_timeout = soon",
            "failure",
            "idle_timeout",
        ),
    ],
)
def test_a_configuration(check, text, result, said):
    code, shown = check(text)
    assert code == CODES[result]
    assert said in shown
    assert "secret" not in shown


def test_another_driver_of_that_name(check, monkeypatch):
    ours = metadata.EntryPoint("amqp", "greenamqp.driver:GreenAMQPDriver", "drivers")
    other = metadata.EntryPoint(
        "amqp", "oslo_messaging._drivers.impl_amqp1:ProtonDriver", "drivers"
    )
    monkeypatch.setattr(status.metadata, "entry_points", lambda **asked: (ours, other))
    code, shown = check("[DEFAULT]\ntransport_url = amqp://h")
    assert code == CODES["failure"]
    assert "impl_amqp1:ProtonDriver is called amqp as well" in shown
