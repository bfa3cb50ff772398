# SPDX-License-Identifier: Apache-2.0
"""greenamqp: an AMQP 1.0 transport driver for oslo.messaging, native to green threads."""
