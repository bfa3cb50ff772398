# SPDX-License-Identifier: Apache-2.0
"""Imports go down only, function-level and typing ones included.

The floors are the table in docs/architecture.rst: a room may import those that stand
below it, and within a room no two modules import each other.
"""

import ast
import pathlib
import re

import greenamqp

ROOT = pathlib.Path(greenamqp.__file__).parent
TABLE = ROOT.parent / "docs" / "architecture.rst"

# What a file of the package's top is part of, where that is not the door.
OTHER_ROOMS = {
    name: name
    for name in ("policy", "options", "fork", "interrupts", "chance", "private")
}
FRONT = ("__init__", "__main__")


def floors():
    """The rooms, the highest first, as the page has them."""
    text = TABLE.read_text()
    block = text[text.index(".. floors") :].split("::\n", 1)[1]
    rooms = []
    for line in block.splitlines():
        if not line.strip():
            if rooms:
                break
            continue
        rooms.append(set(re.split(r"\s{2,}", line.strip())[0].split()))
    assert len(rooms) > 5
    return rooms


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield parts, path


def room(parts):
    if (ROOT / parts[0]).is_dir():
        return parts[0]
    return OTHER_ROOMS.get(parts[0], "door")


def imported(path):
    """What a file imports of the package, wherever in it that stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("greenamqp."):
                    yield tuple(name.name.split(".")[1:])
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            module = (node.module or "").split(".")
            if module[0] != "greenamqp":
                continue
            for name in node.names:
                parts = (*module[1:], name.name)
                target = ROOT.joinpath(*parts)
                if target.with_suffix(".py").exists() or target.is_dir():
                    yield parts
                elif module[1:]:
                    yield tuple(module[1:])


def test_no_import_goes_up():
    level = {}
    for height, rooms in enumerate(reversed(floors())):
        for name in rooms:
            level[name] = height
    upward = []
    for parts, path in modules():
        if parts[0] in FRONT:
            continue  # what the package offers, by name; and the command
        here = room(parts)
        assert here in level, f"docs/architecture.rst does not say where {here} is"
        for target in imported(path):
            there = room(target)
            if there != here and level[there] >= level[here]:
                upward.append(f"{'.'.join(parts)} -> {'.'.join(target)}")
    assert not upward, "imports that do not go down: " + ", ".join(upward)


def test_no_circle():
    arrows = {}
    for parts, path in modules():
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found = set()
        for target in imported(path):
            if ROOT.joinpath(*target).is_dir() and target != parts[: len(target)]:
                found.add(target)
            elif ROOT.joinpath(*target).with_suffix(".py").exists():
                found.add(target)
        if parts:
            arrows[parts] = found - {parts}
    circle = _circle(arrows)
    assert not circle, "these import each other: " + " -> ".join(
        ".".join(parts) for parts in circle
    )


def _circle(arrows):
    """A path that ends where it began, if there is one."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node) :] + [node]
        if node in done:
            return []
        path.append(node)
        for target in sorted(arrows.get(node, ())):
            found = visit(target)
            if found:
                return found
        path.pop()
        done.add(node)
        return []

    for start in sorted(arrows):
        found = visit(start)
        if found:
            return found
    return []
