# SPDX-License-Identifier: Apache-2.0
"""What becomes of greenamqp when the network, the bus or the process misbehaves."""
