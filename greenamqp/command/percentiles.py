# SPDX-License-Identifier: Apache-2.0
"""What most of many measurements do not exceed."""

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest of these, which are sorted, that `part` (0 < part <= 1) of them do
    not exceed."""
    return ordered[math.ceil(len(ordered) * part) - 1]
