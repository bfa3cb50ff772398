# SPDX-License-Identifier: Apache-2.0
"""``python -m greenamqp`` is the same as the ``greenamqp`` command."""

import sys

from greenamqp.command import main

if __name__ == "__main__":
    sys.exit(main())
