# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks``."""

import signal
import sys

from benchmarks import compare, fleet, instructions, listeners, soak

COMMANDS = {
    "compare": compare.main,
    "fleet": fleet.main,
    "instructions": instructions.main,
    "listeners": listeners.main,
    "soak": soak.main,
}


def _ended(number: int, _frame: object) -> None:
    """Told to end: as by an exception, so that all processes are stopped."""
    sys.exit(128 + number)


def main() -> int:
    """Run one of the commands."""
    signal.signal(signal.SIGTERM, _ended)
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python -m benchmarks {{{','.join(COMMANDS)}}} ...")
        return 2
    return COMMANDS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
