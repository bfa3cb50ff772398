# SPDX-License-Identifier: Apache-2.0
"""Tests at the level of the oslo.messaging API, for any driver by URL.

    TRANSPORT_URL=amqp://host:port       which bus (default: an embedded broker)
    GREENAMQP_TEST_HUB=eventlet          in which world (default: threads)

Monkey patching is for the whole process, so one process runs the tests in one
world; ``python tests/functional/run.py`` runs them in all.
"""
