# SPDX-License-Identifier: Apache-2.0
"""A virtual environment for each of the peers, made when first needed and kept."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
import subprocess
import sys

CHECKOUT = pathlib.Path(__file__).parent.parent

#: What is installed for each.  The predecessor is the last oslo.messaging that had an
#: AMQP 1.0 driver of its own; the rabbit driver is current.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "greenamqp": (
        *("-e", f"{CHECKOUT}[eventlet,gevent,telemetry]"),
        *("uvloop", "opentelemetry-sdk"),
    ),
    "predecessor": ("oslo.messaging[amqp1]==14.9.3", "eventlet", "gevent"),
    "rabbit": ("oslo.messaging>=18.3", "eventlet", "gevent"),
    "peers": (
        *("python-qpid-proton", "aio-pika>=10"),
        "rabbitmq-amqp-python-client>=1.0",
    ),
}

#: What decides what is installed for greenamqp beside the above.
_PACKAGING = ("setup.cfg", "setup.py", "pyproject.toml", "requirements.txt")

#: Packages whose versions the results name.
_TELLING = (
    "greenamqp",
    "oslo.messaging",
    "python-qpid-proton",
    "pyngus",
    "kombu",
    "amqp",
    "rabbitmq-amqp-python-client",
    "aio-pika",
    "aiormq",
    "eventlet",
    "gevent",
    "greenlet",
)


class Environments:
    """Interpreters by name.

    :param folder: where environments are made
    :param given: interpreters that are used as they are
    """

    def __init__(self, folder: pathlib.Path, given: dict[str, str]) -> None:
        self._folder = folder
        self._given = given

    def python(self, name: str) -> str:
        """The interpreter of an environment, which is made if need be.

        :raises subprocess.CalledProcessError: if it cannot be made
        """
        if name in self._given:
            return self._given[name]
        folder = self._folder / name
        stamp = folder / "made-of"
        wanted = self._stamp(name)
        python = folder / "bin" / "python"
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making the environment of {name} in {folder}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run(
                [str(python), "-m", "pip", "install", "-q", *REQUIREMENTS[name]],
                check=True,
                env=None,
            )
            stamp.write_text(wanted)
        return str(python)

    def _stamp(self, name: str) -> str:
        parts = [sys.version, *REQUIREMENTS[name]]
        if name == "greenamqp":
            for file in _PACKAGING:
                content = (CHECKOUT / file).read_bytes()
                parts.append(hashlib.sha256(content).hexdigest())
        return "\n".join(parts)

    def versions(self, name: str) -> dict[str, str]:
        """The versions of what matters in an environment."""
        code = (
            "import importlib.metadata as m, json, platform, sys\n"
            "found = {'python': platform.python_version()}\n"
            "for name in sys.argv[1:]:\n"
            "    try: found[name] = m.version(name)\n"
            "    except m.PackageNotFoundError: pass\n"
            "print(json.dumps(found))"
        )
        import json

        out = subprocess.run(
            [self.python(name), "-c", code, *_TELLING],
            check=True,
            capture_output=True,
            cwd="/",
        )
        return json.loads(out.stdout)
