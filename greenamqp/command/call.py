# SPDX-License-Identifier: Apache-2.0
"""``greenamqp call``: an RPC call by hand, or many."""

from greenamqp.command.messages import Command

_command = Command("call")
add_arguments = _command.add_arguments
run = _command.run
