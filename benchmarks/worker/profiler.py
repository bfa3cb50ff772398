# SPDX-License-Identifier: Apache-2.0
"""Where a worker's CPU time goes: stacks sampled by CPU time, not by the clock.

The kernel's profiling timer counts only while the process runs, so a process that
waits is not sampled, and what a C call costs is seen at the line that made it.  Python
runs signal handlers in the main thread alone: right for green threads, of no use for
native ones.
"""

import collections
import signal

#: Seconds of CPU between samples.  The kernel's clock tick may make it longer.
INTERVAL = 0.001


class Profile:
    """Samples of this process's main thread, from start to stop."""

    def __init__(self):
        self._stacks = collections.Counter()

    def start(self):
        """Begin."""
        signal.signal(signal.SIGPROF, self._sample)
        # A system call that is interrupted goes on.
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def _sample(self, _number, frame):
        stack = []
        while frame is not None:
            stack.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        self._stacks[tuple(stack)] += 1

    def stop(self, path):
        """End, and write one line per stack, outermost call first, as flame graph
        programs take it."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        with open(path, "w") as file:
            for stack, count in self._stacks.items():
                calls = ";".join(
                    f"{code.co_qualname} ({code.co_filename}:{line})".replace(";", ",")
                    for code, line in reversed(stack)
                )
                file.write(f"{calls} {count}\n")


def commands():
    """What a worker's control can be told about profiling."""
    current = Profile()

    def start():
        current.start()
        return {"profiling": True}

    def stop(path):
        current.stop(path)
        return {"profiling": False}

    return {"profile": start, "profiled": stop}
