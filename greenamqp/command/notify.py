# SPDX-License-Identifier: Apache-2.0
"""``greenamqp notify``: a notification by hand, or many."""

from greenamqp.command.messages import Command

_command = Command("notify")
add_arguments = _command.add_arguments
run = _command.run
