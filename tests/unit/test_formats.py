# SPDX-License-Identifier: Apache-2.0
"""What commands print for people and for programs."""

import csv
import io
import json

import pytest
import yaml

from greenamqp.command import formats, main, state

ROWS = [
    {"host": "bus:5672", "sent": 3, "why": None, "hubs": ["a", "b"], "up": True},
    {"host": 'žluť, "x"\nnext \x1b[2J', "sent": 2.5, "hubs": []},
]
COLUMNS = ("host", "sent", "hubs", "up", "why")


def rendered(form):
    return formats.rendered(form, {"rows": ROWS}, ROWS, COLUMNS)


@pytest.mark.parametrize("read", [json.loads, yaml.safe_load])
def test_all_of_it(read):
    form = "json" if read is json.loads else "yaml"
    assert read(rendered(form)) == {"rows": ROWS}
    assert not rendered(form).endswith("\n")


def test_csv_has_what_is_in_the_columns_as_it_is():
    head, first, second = csv.reader(io.StringIO(rendered("csv")))
    assert tuple(head) == COLUMNS
    assert first == ["bus:5672", "3", "a, b", "true", ""]
    assert second == [ROWS[1]["host"], "2.5", "", "", ""]


def test_a_table_is_aligned_and_moves_no_cursor():
    lines = rendered("table").splitlines()
    assert len(lines) == 3
    assert (
        len(
            {
                line.index(cell)
                for line, cell in zip(lines, ("sent", "3", "2.5"), strict=True)
            }
        )
        == 1
    )
    assert lines[1].split() == ["bus:5672", "3", "a,", "b", "true", "-"]
    assert "\x1b" not in rendered("table")


def test_without_rows():
    assert formats.rendered("table", [], [], COLUMNS) == "  ".join(COLUMNS)
    assert formats.rendered("csv", [], [], COLUMNS) == ",".join(COLUMNS)


def test_what_is_no_plain_data_is_shown_as_text():
    for form in ("json", "yaml"):
        assert "(1+2j)" in formats.rendered(form, [1 + 2j], [], ())


def test_fields_are_named_by_the_way_to_them():
    whole = {"pid": 1, "links": [{"to": "a"}, {"to": "b"}], "no": {}, "n": [1, 2]}
    assert formats.flat(whole) == [
        {"field": "pid", "value": 1},
        {"field": "links.0.to", "value": "a"},
        {"field": "links.1.to", "value": "b"},
        {"field": "no", "value": {}},
        {"field": "n", "value": [1, 2]},
    ]


@pytest.mark.parametrize("form", ["json", "yaml", "table", "csv"])
def test_every_command_that_finds_something(form, capsys, tmp_path):
    config = tmp_path / "nova.conf"
    config.write_text("[DEFAULT]\ntransport_url = rabbit://nova:s3cr3t@bus/\n")
    read = {
        "json": json.loads,
        "yaml": yaml.safe_load,
        "csv": lambda text: list(csv.DictReader(io.StringIO(text))),
        "table": lambda text: text.splitlines(),
    }[form]

    def told(*arguments):
        main([*arguments, "-f", form])
        shown = capsys.readouterr()
        assert "s3cr3t" not in shown.out + shown.err
        return read(shown.out)

    migrated = told("migrate", str(config))
    found = told("doctor", "--url", "amqp://127.0.0.1:1/", "--quick")
    listed = told("outbox", "list", str(tmp_path))
    counted = told("outbox", "count", str(tmp_path))
    if form in ("json", "yaml"):
        assert migrated["settings"][0]["option"] == "transport_url"
        assert found["ok"] is False
        assert (listed, counted) == ([], {"waiting": 0})
    elif form == "csv":
        assert migrated[0]["verdict"] == "becomes"
        assert found[-1]["result"] == "failed" and found[-1]["fault"]
        assert (listed, counted) == ([], [{"waiting": "0"}])
    else:
        assert "transport_url" in migrated[1] and "becomes" in migrated[1]
        assert "failed" in found[-1]
        assert listed == ["waiting  to  oldest  bus  state  file"]
        assert counted == ["waiting", "0"]


def test_the_outline_of_a_state_moves_no_cursor():
    whole = {"a": {"b": "x\x1b[2Jy", "c": ["\n", 1], "d": [{"e": None, "f": ""}]}}
    assert state._outline(whole) == [
        "a:",
        "    b: x [2Jy",
        "    c:  , 1",
        "    d: 1",
        "      - e: -",
        "        f: -",
    ]
