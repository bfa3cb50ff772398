# SPDX-License-Identifier: Apache-2.0
"""greenamqp and its predecessor on one message bus, each in its own environment."""
