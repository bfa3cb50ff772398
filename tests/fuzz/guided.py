# SPDX-License-Identifier: Apache-2.0
"""Look for trouble where the last input led to code that none before it did.

    pip install atheris
    python -W ignore -m tests.fuzz.guided driver [-max_total_time=3600] [FOLDER]
    python -W ignore -m tests.fuzz.guided readers [-runs=10000000] [FOLDER]

`driver` is all of it and a peer, some fifty inputs a second; `readers` is what code of
ours reads without proton, thousands a second: see their modules.  The options are
libFuzzer's.  What was found to lead somewhere is kept in the folder, from where the
next run goes on; an input that breaks a promise is written to the directory at hand, as
``crash-...``, and is run again by naming it.
"""

from __future__ import annotations

import logging
import pathlib
import sys
import tempfile

import atheris
from hypothesis import HealthCheck, given, settings

with atheris.instrument_imports(include=["greenamqp"]):
    from tests.fuzz import readers, strategies, subject


@given(strategies.EXAMPLES)
@settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
def look(example: subject.Example) -> None:
    subject.run(example)


def _seeds() -> list[str]:
    """A folder with inputs to begin with; none where one input is to be run again."""
    if any(pathlib.Path(argument).is_file() for argument in sys.argv[2:]):
        return []
    # libFuzzer never returns: what is made for it stays there.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="seeds-"))
    for number, seed in enumerate(readers.seeds()):
        (folder / str(number)).write_bytes(seed)
    return [str(folder)]


def main() -> None:
    """The command; it ends by its options, or with what it found."""
    if sys.argv[1:2] == ["driver"]:
        atheris.Setup([sys.argv[0], *sys.argv[2:]], look.hypothesis.fuzz_one_input)
    elif sys.argv[1:2] == ["readers"]:
        # oslo.messaging tells of each exception that it does not know.
        logging.disable()
        atheris.Setup([sys.argv[0], *sys.argv[2:], *_seeds()], readers.run)
    else:
        sys.exit(__doc__)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
