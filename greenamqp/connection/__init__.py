# SPDX-License-Identifier: Apache-2.0
"""The life of one connection: hosts, attempts, TLS, login, bytes, liveness.

It knows nothing of messages, targets or what a message bus calls its queues.
"""
