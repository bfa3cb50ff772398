# SPDX-License-Identifier: Apache-2.0
"""The demo's notifications."""

import itertools
import json
import pathlib
import statistics

import pytest

from greenamqp.command.demo import plan, workload

_NOVA = pathlib.Path(__file__).parents[3] / "shared/notifications/nova.jsonl"


def first(count, service="nova", **kwargs):
    return list(itertools.islice(workload.Notifications(service, **kwargs), count))


@pytest.mark.parametrize("service", workload.SERVICES)
def test_the_same_seed_gives_the_same_sequence(service):
    assert first(200, service, seed=1) == first(200, service, seed=1)
    assert first(200, service, seed=1) != first(200, service, seed=2)


@pytest.mark.parametrize("service", workload.SERVICES)
def test_bodies_are_plain_json_and_their_checksums_right(service):
    for body, checksum in first(100, service):
        again = json.loads(json.dumps(body.payload))
        assert again == body.payload
        assert workload.checksum(again) == checksum
        assert body.priority in workload.PRIORITIES
        assert workload.checksum(again | {"more": 1}) != checksum


def test_the_median_body_has_the_size_of_a_real_one():
    sizes = [
        body.size
        for service, share in plan.SHARES.items()
        for body, _ in first(int(1000 * share), service)
    ]
    assert 2200 <= statistics.median(sizes) <= 2400
    assert min(sizes) > 300 and max(sizes) < 5000


def test_both_priorities_occur():
    assert {body.priority for body, _ in first(200)} == {"info", "error"}


def test_an_unknown_service_is_named():
    with pytest.raises(ValueError, match="'swift'.*nova"):
        workload.Notifications("swift")


def test_samples_replace_the_generated_ones(tmp_path):
    path = tmp_path / "samples"
    body = {
        "event_type": "a.b",
        "priority": "INFO",
        "publisher_id": "nova:x",
        "payload": {"a": 1},
    }
    path.write_text(json.dumps(body) + "\n")
    samples = workload.load_samples(path)
    assert [body.payload for body, _ in first(3, samples=samples)] == [{"a": 1}] * 3


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"event_type": "x"}', '{"priority": 3, "event_type": ""}']
)
def test_a_bad_sample_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "samples"
    good = '{"event_type": "e", "priority": "INFO", "publisher_id": "", "payload": {}}'
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match="samples, line 2"):
        workload.load_samples(path)


def test_a_file_without_a_usable_sample_is_an_error(tmp_path):
    path = tmp_path / "samples"
    path.write_text("")
    with pytest.raises(ValueError, match="no notification"):
        workload.load_samples(path)


@pytest.mark.skipif(not _NOVA.exists(), reason="nova's samples are not here")
def test_generated_nova_bodies_have_the_fields_of_real_ones():
    """Every field of a generated body occurs in nova's own of the same type."""
    real = [
        sample.payload["nova_object.data"]
        for sample in workload.load_samples(_NOVA)
        if sample.payload["nova_object.name"] == "InstanceActionPayload"
    ]
    known = set().union(*real)
    for body, _ in first(50):
        assert set(body.payload["nova_object.data"]) <= known
    real_median = statistics.median(s.size for s in workload.load_samples(_NOVA))
    made_median = statistics.median(body.size for body, _ in first(500))
    assert abs(real_median - made_median) < 200
