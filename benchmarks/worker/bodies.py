# SPDX-License-Identifier: Apache-2.0
"""What the messages carry: the same for every side, and reproducible."""

#: Up to this many bytes of JSON, and above LARGE, a body is one text; between, a tree
#: as notifications have them.
SMALL = 512
LARGE = 16 * 1024

_TEXT = "The quick brown fox jumps over the lazy dog 0123456789; "


def body(size):
    """A JSON value whose JSON text has `size` bytes."""
    if SMALL < size < LARGE:
        return _tree(size)
    return _text(size - 2)


def _text(length):
    return (_TEXT * (length // len(_TEXT) + 1))[: max(0, length)]


def _tree(size):
    import json

    tree = {
        "tenant_id": "f26a7f0b3a0c4e3ab5b8d3d5ac1c4f0a",
        "user_id": "1e3ce043029547f1a61c1996d1a531a2",
        "instance_id": "9f75c1c0-7a1e-4a4b-9a38-6d3a6dc1f1ab",
        "display_name": "a-server-of-the-web-tier",
        "memory_mb": 512,
        "vcpus": 1,
        "disk_gb": 20,
        "state": "active",
        "state_description": "",
        "launched_at": "2026-01-04T10:00:00.000000",
        "deleted_at": None,
        "metadata": {},
        "fixed_ips": [],
    }
    number = 0
    while len(json.dumps(tree)) < size - 200:
        number += 1
        tree["fixed_ips"].append(
            {
                "address": f"192.168.1.{number}",
                "floating": False,
                "label": "private",
                "version": 4,
                "meta": {"mtu": 1500, "weight": 0.5, "tags": ["a", "b", None]},
            }
        )
    tree["state_description"] = _text(size - len(json.dumps(tree)))
    return tree
