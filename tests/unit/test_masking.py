# SPDX-License-Identifier: Apache-2.0
"""No command shows a password."""

import pytest

from greenamqp.command import masking


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rabbit://u:p@h:1/v", "rabbit://u:***@h:1/v"),
        ("rabbit://h:1,u:p@h2/", "rabbit://h:1,u:***@h2/"),
        ("amqp://u:p@h:1,v:q@i:2/x", "amqp://u:***@h:1,v:***@i:2/x"),
        ("rabbit://u:p@p@h", "rabbit://u:***@h"),
        ("rabbit://u:p/p@h", "rabbit://u:***@h"),
        ("rabbit://u:p,p@h", "rabbit://***,p@h"),
        ("rabbit://u@[::1]:5,[::2]", "rabbit://u@[::1]:5,[::2]"),
        ("amqp://h/?a=1&ssl_key_password=p", "amqp://h/?a=1&ssl_key_password=***"),
        ("amqp://host:5672", "amqp://host:5672"),
        ("nothing", "nothing"),
    ],
)
def test_of_a_url(text, shown):
    assert masking.masked(text) == shown


@pytest.mark.parametrize(
    ("url", "said", "shown"),
    [
        ("amqp://u:s3c@h", "amqp://u:s3c@h: no", "amqp://u:***@h: no"),
        ("amqp://u:a%2Fb@h", "a/b is no port", "*** is no port"),
        ("amqp://u:a%2Fb@h", "a%2Fb is no port", "*** is no port"),
        ("amqp://h/?ssl_key_password=s3c", "s3c opens nothing", "*** opens nothing"),
        ("amqp://u:s3,c@h", "u:s3 is no host", "*** is no host"),
        ("amqp://h", "no host h", "no host h"),
        (None, "none is set", "none is set"),
    ],
)
def test_of_what_is_said_of_a_url(url, said, shown):
    assert masking.without_passwords(said, url) == shown
