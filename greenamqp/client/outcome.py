# SPDX-License-Identifier: Apache-2.0
"""What the outcome of a message means for who sent it (AMQP 1.0, part 3, section 3.4).

====================================  ==========================================
outcome                               verdict
====================================  ==========================================
ACCEPTED, or settled without a word   DONE
RELEASED; or REJECTED with not-found  UNDELIVERABLE where it is mandatory; DONE
where the bus says so that nobody     where nobody need listen; else AGAIN,
is there                              declared anew first
REJECTED with not-found, elsewhere    DONE where nobody need listen; AGAIN,
                                      declared anew first, where something was
                                      declared; else FAILED
REJECTED, as a queue is full          FAILED where nobody need listen; else AGAIN
REJECTED                              AGAIN where the bus may take it later,
                                      else FAILED
MODIFIED, by a consumer that may      AGAIN where it may be repeated, else
have worked on it                     FAILED
MODIFIED otherwise                    AGAIN
====================================  ==========================================

AGAIN means: after a pause, within the message's retries and its deadline.
"""

from __future__ import annotations

import enum
import typing

from greenamqp.buses import Bus, Node
from greenamqp.engine import MODIFIED, REJECTED, RELEASED, RemoteError


class Verdict(enum.Enum):
    """What is to be done with a message; see the table in the module."""

    DONE = enum.auto()
    AGAIN = enum.auto()
    #: As AGAIN, and what its address needs is declared anew before.
    AGAIN_DECLARED = enum.auto()
    FAILED = enum.auto()
    UNDELIVERABLE = enum.auto()


def judge(
    outcome: int,
    error: typing.Any,
    node: Node,
    bus: Bus,
    *,
    mandatory: bool,
    repeatable: bool,
) -> tuple[Verdict, str]:
    """The verdict, and why, for messages to people.

    :param error: of REJECTED a RemoteError or None; of MODIFIED its fields
    :param mandatory: whether it fails when nobody is there to take it
    :param repeatable: whether it may be sent again though it may have been worked on
    """
    if outcome == RELEASED:
        return _nobody_there("released", node, mandatory)
    if outcome == REJECTED:
        return _rejected(error, node, bus, mandatory)
    if outcome == MODIFIED:
        in_doubt = error["failed"] or error["undeliverable"]
        reason = "the message bus returned it: " + (
            "its consumer was lost" if error["failed"] else "it was modified"
        )
        if in_doubt and not repeatable:
            return Verdict.FAILED, reason
        return Verdict.AGAIN, reason
    return Verdict.DONE, ""


def _rejected(
    error: RemoteError | None, node: Node, bus: Bus, mandatory: bool
) -> tuple[Verdict, str]:
    reason = f"the message bus rejected it: {error or 'no reason given'}"
    if error is not None and error.condition == "amqp:not-found":
        if node.rejects_absent:
            return _nobody_there("rejected", node, mandatory)
        if node.may_be_unheard:
            # An exchange that went with the last of those who listened; the next one
            # who does will declare it.
            return Verdict.DONE, ""
        if node.declarations:
            return Verdict.AGAIN_DECLARED, reason
    if error is not None and error.condition == "amqp:resource-limit-exceeded":
        # What is for all does not wait for one of them, who may never make room.
        verdict = Verdict.FAILED if node.may_be_unheard else Verdict.AGAIN
        return verdict, reason
    if bus.may_take_it_later(error):
        return Verdict.AGAIN, reason
    return Verdict.FAILED, reason


def _nobody_there(how: str, node: Node, mandatory: bool) -> tuple[Verdict, str]:
    reason = f"the message bus {how} it: nobody there to take it"
    if mandatory:
        return Verdict.UNDELIVERABLE, reason
    if node.may_be_unheard:
        return Verdict.DONE, ""
    return Verdict.AGAIN_DECLARED, reason
