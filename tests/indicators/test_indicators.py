"""Indicators against the formulas of the papers, on selections made by hand and at random."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import espalier as es
from espalier.indicators import (
    INDICATORS,
    CountStability,
    JaccardStability,
    MaskDistance,
    agreement,
    count_similarity,
    has_levelled_off,
    jaccard,
)

A = np.arange(16) < 8
B = np.isin(np.arange(16), [0, 1, 2, 3, 4, 5, 6, 8])  # one channel swapped


def counts(*numbers, size=300):
    return [np.arange(size) < number for number in numbers]


def run(indicator, selections):
    """Scores, and at which checks it fires, as a training goes through them."""
    similarities, scores, fired = [], [], []
    for t in range(len(selections)):
        similarities.append(indicator.similarity(selections[max(0, t + 1 - indicator.history) : t + 1]))
        scores.append(indicator.score(similarities))
        fired.append(indicator.fires(scores))
    return scores, fired


def test_vectors_of_the_papers():
    assert count_similarity([64, 100, 200, 50], [60, 110, 190, 54]) == pytest.approx(0.96401, abs=5e-6)
    assert count_similarity([64, 100], [64, 100]) == 1
    assert count_similarity([0, 5], [0, 5]) == 1
    assert count_similarity([0, 4], [4, 4]) == 0.5
    assert jaccard([A], [B]) == pytest.approx(7 / 9)
    assert agreement([A], [B]) == 0.875
    assert count_similarity([A.sum()], [B.sum()]) == 1
    assert jaccard([A, A], [A, B]) == pytest.approx((1 + 7 / 9) / 2)
    nothing = np.zeros(4, dtype=bool)
    assert jaccard([nothing], [nothing]) == 1


def test_jaccard_is_zero_until_three_structures_exist_and_averages_a_window_with_these_zeros():
    scores, fired = run(JaccardStability(), [[A]] * 6)
    assert scores == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])
    assert fired == [False] * 4 + [True] * 2
    assert [JaccardStability().similarity([[A]] * n) for n in (1, 2, 3)] == [None, None, 1]


def test_jaccard_looks_back_by_its_lag():
    alternating = [[A], [B]] * 4
    assert run(JaccardStability(lag=2, window=1), alternating)[0] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert run(JaccardStability(lag=1, window=1), alternating)[0][1:] == pytest.approx([7 / 9] * 7)
    assert run(JaccardStability(lag=2, window=1, threshold=1.0), alternating)[1][2:] == [True] * 6


def test_the_threshold_of_jaccard_is_reached_with_equality():
    assert JaccardStability(threshold=0.5).fires([0.5])
    assert not JaccardStability(threshold=0.5).fires([0.4999])
    assert not JaccardStability(threshold=0.0).fires([])


def test_epi_waits_for_r_earlier_structures():
    scores, fired = run(CountStability(r=5), [counts(64, 100)] * 8)
    assert scores == [None] * 5 + [1] * 3
    assert fired == [False] * 5 + [True] * 3


def test_epi_is_the_mean_over_r_earlier_structures():
    history = [counts(60), counts(70), counts(80)]
    psi = [1 - 10 / 150, 1 - 20 / 140]
    assert CountStability(r=2).similarity(history) == pytest.approx(sum(psi) / 2)


def test_epi_is_above_tau_and_at_least_as_high_as_at_the_last_five_checks():
    rule = CountStability(threshold=0.9)
    assert rule.fires([None, None, 0.95])
    assert not rule.fires([0.9])  # above, not equal
    assert rule.fires([0.95, 0.95, 0.95])
    assert not rule.fires([0.96, 0.93, 0.94, 0.95])  # falling, against three checks ago
    assert rule.fires([0.99, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96])  # six checks ago is forgotten
    assert not rule.fires([0.99, 0.91, 0.92, 0.93, 0.94, 0.96])
    assert CountStability(threshold=0.9, look_back=1).fires([0.96, 0.93, 0.94])
    assert not rule.fires([])
    assert not rule.fires([0.95, None])


def test_early_bird_compares_the_newest_mask_with_each_of_the_window():
    rule = MaskDistance(window=3, distance=0.125)
    assert rule.similarity([[A], [A]]) is None
    assert rule.similarity([[A], [A], [B]]) == 0.875
    assert rule.similarity([[B], [A], [A]]) == 0.875
    scores, fired = run(rule, [[A], [A], [B], [B], [~B]])
    assert scores[:2] == [None, None]
    assert scores[2:] == [0.875, 0.875, 0]
    assert fired == [False, False, True, True, False]


def test_the_plateau_rule():
    rising = [0.0, 0.2, 0.4, 0.6, 0.8]
    assert not has_levelled_off(rising)
    assert has_levelled_off([*rising, 0.7, 0.8])
    assert not has_levelled_off([0.5] * 4)  # not later than check 3
    assert has_levelled_off([0.5] * 5)
    assert has_levelled_off([0, 0, 0.5, 0.4, 0.50009])
    assert not has_levelled_off([0, 0, 0.5, 0.4, 0.5002])
    assert has_levelled_off([0.5, 0.5, 0.5, 0.6], lag=2, rise=0.2, first=2)
    assert not has_levelled_off([None, None, None, None, None])
    assert not has_levelled_off([None, None, None, None, 0.9])
    assert not has_levelled_off([])


@pytest.mark.parametrize(
    "make",
    [
        lambda: JaccardStability(lag=0),
        lambda: JaccardStability(window=True),
        lambda: JaccardStability(threshold=99.9),
        lambda: CountStability(r=1.5),
        lambda: CountStability(look_back=0),
        lambda: MaskDistance(window=1),
        lambda: MaskDistance(distance=-0.1),
    ],
)
def test_settings_that_mean_nothing(make):
    with pytest.raises(es.EspalierError):
        make()


masks = arrays.arrays(bool, st.shared(st.integers(1, 12), key="size"))
selections = st.lists(masks, min_size=2, max_size=2)


@settings(max_examples=60, deadline=None)
@given(selections, selections)
def test_similarities_are_shares_and_symmetric(one, other):
    for measure in (jaccard, agreement):
        assert 0 <= measure(one, other) <= 1
        assert measure(one, other) == measure(other, one)
        assert measure(one, one) == 1
        assert (measure(one, other) == 1) == all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    mine, theirs = ([int(mask.sum()) for mask in selection] for selection in (one, other))
    assert 0 <= count_similarity(mine, theirs) == count_similarity(theirs, mine) <= 1
    assert (count_similarity(mine, theirs) == 1) == (mine == theirs)


@settings(max_examples=30, deadline=None)
@given(st.lists(masks.map(lambda mask: [mask]), min_size=1, max_size=12))
def test_scores_stay_in_the_unit_interval_and_look_no_further_than_the_history(history):
    for kind in INDICATORS.values():
        rule = kind()
        scores, _ = run(rule, history)
        assert all(score is None or 0 <= score <= 1 for score in scores)
        assert rule.similarity(history[-rule.history :]) == pytest.approx(rule.similarity(history))
