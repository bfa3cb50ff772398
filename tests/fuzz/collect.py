# SPDX-License-Identifier: Apache-2.0
"""Look for examples that end in a way that no example of the corpus does.

    python -m tests.fuzz.collect [EXAMPLES]

What is told apart is what became of the callers, what was logged, and what was taken
(the result of subject.run).  Each new way is kept with the shortest example of it that
was met, as a file in ``corpus``.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
import warnings

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import NonInteractiveExampleWarning

from tests.fuzz import strategies, subject

# Longer examples are left out: what they do, shorter ones do as well.
LONGEST = 4000

CORPUS = pathlib.Path(__file__).parent / "corpus"


def load() -> dict[str, subject.Example]:
    """The examples of the corpus, by their names."""
    paths = sorted(CORPUS.glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def _way(example: subject.Example) -> str:
    return json.dumps(subject.run(example))


def main() -> None:
    warnings.simplefilter("ignore", NonInteractiveExampleWarning)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    known = {_way(example) for example in load().values()}
    new: dict[str, str] = {}

    @given(strategies.EXAMPLES)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def look(example: subject.Example) -> None:
        way = _way(example)
        if way in known:
            return
        text = json.dumps(example)
        if len(text) > LONGEST:
            return
        if way not in new or len(text) < len(new[way]):
            new[way] = text

    look()
    CORPUS.mkdir(exist_ok=True)
    for text in new.values():
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        (CORPUS / f"{name}.json").write_text(text + "\n")
    print(f"{len(new)} new, {len(known)} known before")


if __name__ == "__main__":
    main()
