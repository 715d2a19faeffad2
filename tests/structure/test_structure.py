"""The record of a cut is a value: it composes, compares, and refuses what is malformed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import espalier as es
from espalier.structure import Structure


@st.composite
def two_cuts(draw):
    size = draw(st.integers(2, 12))
    first = sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))
    second = sorted(draw(st.sets(st.integers(0, len(first) - 1), min_size=1)))
    return size, first, second


@given(two_cuts())
def test_two_cuts_are_one_cut_of_the_original(cuts):
    size, first, second = cuts
    once = Structure().cut({("w", 0): tuple(first)}, {"w": (size, 3)}, {"m.n": (size, len(first))})
    twice = once.cut({("w", 0): tuple(second)}, {"w": (len(first), 3)}, {"m.n": (len(first), len(second))})
    direct = tuple(first[index] for index in second)
    assert twice == Structure().cut({("w", 0): direct}, {"w": (size, 3)}, {"m.n": (size, len(direct))})
    assert ("w" in twice.shapes) == (len(direct) < size)
    assert "w" not in twice.shapes or twice.shape("w") == (len(direct), 3)
    assert Structure.from_json(twice.to_json()) == twice
    assert hash(Structure.from_json(twice.to_json())) == hash(twice)


def test_the_empty_structure_is_dense():
    assert Structure().is_dense
    assert Structure.from_json(Structure().to_json()).is_dense


GOOD = {"version": 1, "shapes": {"w": [4, 2]}, "kept": {"w": {"0": [0, 3]}}, "integers": {"m.n": [4, 2]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"shapes": {"w": [4, -2]}}, "malformed"),
        ({"shapes": {}}, "malformed"),
        ({"kept": {"w": {"0": [3, 0]}}}, "impossible indices"),
        ({"kept": {"w": {"0": [4]}}}, "impossible indices"),
        ({"kept": {"w": {"7": [0]}}}, "impossible indices"),
        ({"kept": {"w": {"0": []}}}, "impossible indices"),
        ({"kept": {"w": {"0": [True]}}}, "malformed"),
        ({"kept": {"w": {" 0": [0]}}}, "no dimension"),
        ({"kept": {"w": {"00": [0]}}}, "no dimension"),
        ({"version": True}, "malformed"),
        ({"kept": [1]}, "malformed"),
        ({"integers": {"m.n": [4]}}, "malformed"),
        ({"integers": {"m.n": ["a", 2]}}, "malformed"),
    ],
)
def test_malformed_records_are_refused(change, words):
    with pytest.raises(es.EspalierError, match=words):
        Structure.from_json(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"version": 1}', "[" * 100_000])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(es.EspalierError, match="malformed"):
        Structure.from_json(text)


def test_what_is_whole_is_left_out():
    whole = Structure({"w": (3, 2)}, {("w", 0): (0, 1, 2)}, {"m.n": (3, 3)})
    assert whole == Structure()
    assert whole.is_dense


def test_the_record_keeps_its_own_content():
    kept = {("w", 0): [0, 2]}
    structure = Structure({"w": (3, 2)}, kept)
    kept["w", 0].append(1)
    assert structure.kept["w", 0] == (0, 2)
