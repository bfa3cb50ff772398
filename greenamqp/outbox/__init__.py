# SPDX-License-Identifier: Apache-2.0
"""Notifications that the message bus does not take at once wait on disk.

Off by default: the option ``notify_outbox`` names a directory.  In it is a folder for
each message bus, and in that a file for each process that has something to keep.  Who
uses a file holds its lock, which the operating system takes back when the process ends,
however it does.  What is in a file that nobody holds, a process that still runs moves
into its own: at its start, and every now and then.

Within: ``store`` (one file, as SQLite has it), ``directory`` (which files there are,
and whose), ``disk`` (the jobs that use them), ``outbox`` (what is sent at once, what is
kept, and when that is sent).  Only the last one knows of hubs and of the client.
"""

from greenamqp.outbox.directory import Directory, NoOutbox
from greenamqp.outbox.outbox import Outbox
from greenamqp.outbox.store import Letter, Store

__all__ = ["Directory", "Letter", "NoOutbox", "Outbox", "Store"]
