# SPDX-License-Identifier: Apache-2.0
"""What the demo, the benchmarks and the tests ask of child processes, of Linux.

Needs nothing but Python's own library. From any thread.
"""

import ctypes
import os
import signal

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1

_LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """For ``preexec_fn``: the kernel ends the child when its parent dies, however."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def stat(pid: int | str) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on, which is the first; empty if
    there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name, in parentheses, may hold spaces; the fields after it do not.
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(fields: list[str]) -> float:
    """User and system time so far, of what `stat` gave, in steps of the kernel's clock
    tick; 0.0 of nothing."""
    if not fields:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
