# SPDX-License-Identifier: Apache-2.0
"""What becomes of all this in a child process.

A fork copies everything: the socket and its connection's state, the epoll set, a lock
that another thread of the parent held at that moment.  The child must use none of it.
A byte that it read or wrote would be missing or superfluous in the parent's
connection; and an epoll set is shared, not copied, so what the child takes out of it is
taken out of the parent's.

So whoever holds such things registers with :func:`tell`, and hears of a fork in the
child, before anything else runs there.  It then

* forgets, without a call to the kernel that the parent could notice.  Closing the
  child's copy of a descriptor is no such call: it ends nothing, but for the child.  It
  is even needed, since the peer hears of the parent's end only when the last copy of
  the socket is closed;
* from then on refuses whoever uses it, with :class:`ForkedError`.

The driver is the exception: it makes a connection of the child's own when it is next
used.  So a transport may be made, and used, before the fork; listeners and started
servers are of the process that made them.

Registered once, at import, for ``os.fork`` and all that is made of it.  A process that
is spawned (``multiprocessing`` with that method, ``subprocess``) inherits nothing.
"""

from __future__ import annotations

import logging
import os
import typing
import weakref

LOG = logging.getLogger(__name__)


class ForkedError(RuntimeError):
    """Something was used in a child process that its parent had made before the fork.

    The child has to make its own.
    """


class Forked(typing.Protocol):
    """Whoever is to hear of a fork."""

    def forked(self) -> None:
        """This is a child process: let go, as the module says.

        Called with no lock held, in the only thread there is.  May not wait.
        """


# In the order in which they registered.
_told: weakref.WeakKeyDictionary[typing.Any, None] = weakref.WeakKeyDictionary()

# What must not be freed in this process; see `keep`.
_kept: list[object] = []


def tell(holder: Forked) -> None:
    """Have `holder` told of a fork, in the child, as long as it lives."""
    _told[holder] = None


def keep(inherited: object) -> None:
    """In a child: never free this.

    Another thread of the parent may have been at work on it, within the C library that
    it belongs to.  It costs no memory as long as neither process writes to it.
    """
    _kept.append(inherited)


def wait_for(lock: typing.Any) -> None:
    """Begin no fork while another native thread holds `lock`, for good.

    For C libraries with locks of their own, which a child would find taken by a thread
    that it does not have.

    :param lock: a real, reentrant one, that nobody holds for long; in C, so that no
        signal handler comes between its being taken and its owner's being known
    """
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )


def _in_child() -> None:
    for holder in list(_told):
        try:
            holder.forked()
        except Exception:  # the others must hear of it all the same
            LOG.exception("after a fork")


os.register_at_fork(after_in_child=_in_child)
