"""The published cases of GrowthBook's SDK specification; growthbook_cases.json names where they are from."""

import json
from pathlib import Path

import pytest

from infnet.experiments.hashing import bucket_ranges, choose_variation, equal_weights, fnv1a_32, in_namespace, unit_hash

CASES = json.loads((Path(__file__).parent / "growthbook_cases.json").read_text())
KNOWN_HASHES = [case for case in CASES["hash"] if case[3] is not None]


@pytest.mark.parametrize(("seed", "value", "version", "bucket"), KNOWN_HASHES)
def test_buckets_are_those_published(seed, value, version, bucket):
    assert unit_hash(seed, value, version) == bucket


def test_the_hash_is_fnv1a():
    # Test vectors of the authors of the hash: http://www.isthe.com/chongo/tech/comp/fnv
    assert (fnv1a_32(""), fnv1a_32("a"), fnv1a_32("foobar")) == (0x811C9DC5, 0xE40C292C, 0xBF9CF968)


def test_a_hash_goes_on_from_the_state_of_what_stands_before():
    assert fnv1a_32("user-7", fnv1a_32("seed")) == fnv1a_32("seeduser-7")


@pytest.mark.parametrize(("name", "arguments", "ranges"), CASES["getBucketRange"])
def test_ranges_are_those_published(name, arguments, ranges):
    assert [list(r) for r in bucket_ranges(*arguments)] == [pytest.approx(r, abs=1e-12) for r in ranges], name


@pytest.mark.parametrize(("name", "bucket", "ranges", "chosen"), CASES["chooseVariation"])
def test_variations_are_those_published(name, bucket, ranges, chosen):
    assert choose_variation(bucket, ranges) == chosen, name


@pytest.mark.parametrize(("name", "user", "namespace", "is_in"), CASES["inNamespace"])
def test_namespaces_are_those_published(name, user, namespace, is_in):
    within, start, end = namespace
    assert in_namespace(user, within, (start, end)) is is_in, name


@pytest.mark.parametrize(("number", "weights"), CASES["getEqualWeights"])
def test_equal_weights_are_those_published(number, weights):
    assert equal_weights(number) == pytest.approx(weights, abs=1e-8)
