# SPDX-License-Identifier: Apache-2.0
"""The environment of the predecessor: the last oslo.messaging with an amqp driver.

    python -m tests.interop.predecessor [FOLDER]

makes it there if need be, and prints its Python.  ``GREENAMQP_PREDECESSOR`` names a
Python that has it already.
"""

import os
import pathlib
import subprocess
import sys
import venv

ENV = "GREENAMQP_PREDECESSOR"

#: The second and third are for tests.chaos.faults, which has its faults as well.
REQUIREMENTS = "oslo.messaging[amqp1]==14.9.3", "oslo.service[threading]", "fixtures"

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def python(folder: str | None = None) -> str:
    """The path of a Python with the predecessor.  Makes its environment if need be.

    :raises subprocess.CalledProcessError: if that fails
    """
    given = os.environ.get(ENV)
    if given:
        return given
    place = pathlib.Path(
        folder or os.environ.get("TOX_ENV_DIR") or _ROOT / ".tox"
    ).joinpath("predecessor")
    interpreter = place / "bin" / "python"
    # Written last, so that an environment that is not complete is made anew.
    stamp = place / "requirements"
    wanted = "\n".join(REQUIREMENTS)
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(place, clear=True, with_pip=True)
        subprocess.run(
            [
                str(interpreter),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                *REQUIREMENTS,
            ],
            stdin=subprocess.DEVNULL,
            check=True,
        )
        stamp.write_text(wanted)
    return str(interpreter)


if __name__ == "__main__":
    print(python(*sys.argv[1:2]))
