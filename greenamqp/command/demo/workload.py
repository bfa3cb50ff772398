# SPDX-License-Identifier: Apache-2.0
"""What the demo sends: notifications as OpenStack's services send them.

The bodies are in ``notifications.jsonl``, with the fields and sizes of real ones:
nova's versioned instance notifications, neutron's ports and security groups, cinder's
volumes, glance's images, keystone's CADF events. The median is 2.3 kB, as measured for
nova.
"""

import dataclasses
import json
import pathlib
import random
import typing
import zlib
from collections.abc import Iterator, Sequence

#: The services whose notifications the demo publishes, each on an exchange of its
#: own.
SERVICES = ("nova", "neutron", "cinder", "glance", "keystone")

#: The topic that services notify on by default.
TOPIC = "notifications"

#: The priorities used here; an agent has to subscribe to each.
PRIORITIES = ("info", "error")

_BODIES = pathlib.Path(__file__).with_name("notifications.jsonl")


@dataclasses.dataclass(frozen=True)
class Notification:
    """One notification, ready for a Notifier."""

    event_type: str
    priority: str
    publisher_id: str
    payload: dict[str, typing.Any]

    @property
    def size(self) -> int:
        """The bytes of the body's JSON text."""
        body = dataclasses.asdict(self) | {"priority": self.priority.upper()}
        return len(json.dumps(body))


def checksum(payload: object) -> int:
    """A CRC of a JSON value that does not depend on the order of its keys."""
    return zlib.crc32(json.dumps(payload, sort_keys=True).encode())


class Notifications:
    """An endless sequence of one service's notifications, the same for the same seed.

    ``samples`` are used instead of the service's own (see :func:`load_samples`).
    """

    def __init__(
        self, service: str, seed: int = 0, samples: Sequence[Notification] = ()
    ):
        if service not in SERVICES:
            raise ValueError(
                f"no notifications of {service!r}: one of {', '.join(SERVICES)}"
            )
        self._random = random.Random(f"{service}/{seed}")
        bodies = samples or load_samples(_BODIES, service)
        self._bodies = [(body, checksum(body.payload)) for body in bodies]

    def __iter__(self) -> Iterator[tuple[Notification, int]]:
        """Yield (notification, checksum of its payload), for ever."""
        while True:
            yield self._random.choice(self._bodies)


def load_samples(
    path: str | pathlib.Path, service: str | None = None
) -> list[Notification]:
    """Read notifications from a file with one JSON body per line.

    Each has ``event_type``, ``payload``, ``priority`` and ``publisher_id``; with
    ``service``, only those are read whose ``service`` it is. Raises
    OSError if the file cannot be read and ValueError, with the line, if it is not
    of that form.
    """
    found = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                body = json.loads(line)
                notification = Notification(
                    event_type=body["event_type"],
                    priority=body["priority"].lower(),
                    publisher_id=body["publisher_id"],
                    payload=body["payload"],
                )
                wanted = service is None or body["service"] == service
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise ValueError(f"{path}, line {number}: {exc!r}") from exc
            if wanted and notification.priority in PRIORITIES:
                found.append(notification)
    if not found:
        raise ValueError(f"{path}: no notification of a priority in {PRIORITIES}")
    return found
