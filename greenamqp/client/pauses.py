# SPDX-License-Identifier: Apache-2.0
"""How long to wait before something is tried once more."""


def doubled(first: float, times: int, longest: float) -> float:
    """`first`, doubled so many times, and no more than `longest`.  Seconds."""
    factor: int = 2 ** min(times, 16)
    return min(first * factor, longest)
