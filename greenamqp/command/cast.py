# SPDX-License-Identifier: Apache-2.0
"""``greenamqp cast``: an RPC cast by hand, or many."""

from greenamqp.command.messages import Command

_command = Command("cast")
add_arguments = _command.add_arguments
run = _command.run
