# SPDX-License-Identifier: Apache-2.0
"""Look for trouble where the last input led to code that none before it did.

    pip install atheris
    python -W ignore -m tests.fuzz.guided [-max_total_time=3600] [FOLDER]

The options are libFuzzer's.  What was found to lead somewhere is kept in the folder,
from where the next run goes on; an input that breaks a promise is written to the
directory at hand, as ``crash-...``, and is run again by naming it.
"""

from __future__ import annotations

import sys

import atheris
from hypothesis import HealthCheck, given, settings

with atheris.instrument_imports(include=["greenamqp"]):
    from tests.fuzz import strategies, subject


@given(strategies.EXAMPLES)
@settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
def look(example: subject.Example) -> None:
    subject.run(example)


def main() -> None:
    """The command; it ends by its options, or with what it found."""
    atheris.Setup(sys.argv, look.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
