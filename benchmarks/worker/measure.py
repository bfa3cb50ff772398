# SPDX-License-Identifier: Apache-2.0
"""What a process used so far, and summaries of latencies."""

import gc
import math
import os
import resource
import sys
import time

#: Latency histograms have this many buckets per factor of ten, from 1 microsecond on.
BUCKETS_PER_DECADE = 20
_BUCKETS = 8 * BUCKETS_PER_DECADE


def mark():
    """This process's resource use: CPU seconds of all its threads, bytes, counts."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "at": time.monotonic(),
        "cpu": usage.ru_utime + usage.ru_stime,
        "user": usage.ru_utime,
        "switches": usage.ru_nvcsw + usage.ru_nivcsw,
        "rss": resident(),
        "threads": len(os.listdir("/proc/self/task")),
        "fds": len(os.listdir("/proc/self/fd")),
    }


def census():
    """`mark`, and how many green threads there are."""
    greenlets = 0
    if "greenlet" in sys.modules:
        gc.collect()
        kind = sys.modules["greenlet"].greenlet
        greenlets = sum(
            isinstance(each, kind) and not each.dead for each in gc.get_objects()
        )
    return {**mark(), "greenlets": greenlets}


def resident():
    """Bytes of resident memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def summary(latencies):
    """Percentiles and a histogram of latencies in seconds, both in microseconds."""
    values = sorted(latencies)
    if not values:
        return {"p50": None, "p99": None, "p999": None, "max": None, "histogram": []}
    return {
        "p50": 1e6 * _percentile(values, 0.5),
        "p99": 1e6 * _percentile(values, 0.99),
        "p999": 1e6 * _percentile(values, 0.999),
        "max": 1e6 * values[-1],
        "histogram": histogram(values),
    }


def _percentile(values, share):
    """The smallest value that `share` of all are not above."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def histogram(values):
    """Counts per bucket; see BUCKETS_PER_DECADE."""
    counts = [0] * _BUCKETS
    for value in values:
        position = math.log10(max(value * 1e6, 1.0)) * BUCKETS_PER_DECADE
        counts[min(int(position), _BUCKETS - 1)] += 1
    return counts
