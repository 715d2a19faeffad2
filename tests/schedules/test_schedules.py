"""The curves meet the vectors of their papers and the properties that the Pruner relies on."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import espalier as es
from espalier.schedules import SCHEDULES, Constant, Cosine, Cubic, DenseSparseDense, Exponential, OneCycle, Staircase, Step


def percent_by_epoch(schedule, epochs):
    return [100 * schedule(epoch / 10) for epoch in epochs]


def test_one_cycle_meets_the_sparsity_log_of_the_authors():
    expected = [2.53, 9.48, 29.46, 61.34, 83.69, 91.94, 94.24, 94.82, 94.96, 95.00]
    assert percent_by_epoch(OneCycle(0.95), range(1, 11)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("beta", "shares"),
    [
        (5, [0.0067, 0.0266, 0.0998, 0.1825, 0.3101, 0.6457, 0.8809, 0.9678, 0.9920, 0.9961, 0.9981, 0.9996, 1]),
        (6, [0.0025, 0.0100, 0.0392, 0.0759, 0.1419, 0.4015, 0.7313, 0.9171, 0.9785, 0.9893, 0.9949, 0.9990, 1]),
    ],
)
def test_one_cycle_meets_the_normalised_table(beta, shares):
    times = [0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1]
    schedule = OneCycle(0.9, initial=0.1, beta=beta)
    assert [(schedule(t) - 0.1) / 0.8 for t in times] == pytest.approx(shares, abs=1e-4)


def test_agp_meets_the_log_of_the_authors():
    expected = [31.36, 54.92, 71.81, 83.12, 89.99, 93.52, 94.81, 95.00]
    assert percent_by_epoch(Cubic(0.95, start=0.2), range(3, 11)) == pytest.approx(expected, abs=0.01)


def test_iterative_meets_the_log_of_the_authors():
    expected = [31.67, 31.67, 63.33, 63.33, 63.33, 95, 95, 95]
    schedule = Staircase(0.95, start=0.2, steps=3)
    assert percent_by_epoch(schedule, range(3, 11)) == pytest.approx(expected, abs=0.01)
    assert schedule(0.2) == 0


def test_one_shot_jumps_at_its_start_and_not_before():
    schedule = Step(0.95, start=0.4)
    assert (schedule(0.3999), schedule(0.4), schedule(1)) == (0, 0.95, 0.95)


def test_dense_sparse_dense_ends_dense():
    schedule = DenseSparseDense(0.8)
    assert (schedule(0), schedule(0.5), schedule(1)) == pytest.approx((0, 0.8, 0))


def test_window_of_a_cosine():
    schedule = Cosine(0.9, start=0.1, end=0.7)
    assert (schedule(0.05), schedule(0.4), schedule(0.7), schedule(0.9)) == pytest.approx((0, 0.45, 0.9, 0.9))


def test_exponential_is_the_authors_formula():
    assert Exponential(0.95, initial=1e-6)(0.5) == pytest.approx((1e-6 * 0.95) ** 0.5)


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0.01, 0.99), st.floats(0, 0.4), st.floats(0, 1))
def test_every_schedule_stays_between_its_ends_and_reaches_the_final_one(name, final, start, progress):
    schedule = SCHEDULES[name](final, start=start)
    low, high = sorted([schedule.initial, final])
    assert low - 1e-12 <= schedule(progress) <= high + 1e-12
    if name != "dense-sparse-dense":
        assert schedule(1.0) == final


@given(st.sampled_from(["one-cycle", "step", "staircase", "cubic", "linear", "cosine", "exponential", "constant"]), st.data())
def test_pruning_schedules_never_fall(name, data):
    schedule = SCHEDULES[name](0.9)
    early, late = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    assert schedule(early) <= schedule(late) + 1e-12


def test_schedules_are_values():
    assert OneCycle(0.9) == OneCycle(0.9)
    assert hash(Constant(0.5)) == hash(Constant(0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        OneCycle(0.9).final = 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OneCycle(90), "looks like a percentage"),
        (lambda: OneCycle(1.0), r"\[0, 1\)"),
        (lambda: OneCycle(-0.1), r"\[0, 1\)"),
        (lambda: OneCycle(float("nan")), "number"),
        (lambda: OneCycle("0.9"), "number"),
        (lambda: OneCycle(0.9, start=0.5, end=0.5), "start < end"),
        (lambda: OneCycle(0.9, alpha=0), "alpha"),
        (lambda: Staircase(0.9, steps=0), "at least one step"),
        (lambda: Exponential(0.9, initial=0.0), "above 0"),
        (lambda: DenseSparseDense(0.9, turn=1.0), "turn"),
    ],
)
def test_bad_schedules_are_refused_in_one_sentence(make, words):
    with pytest.raises(es.EspalierError, match=words):
        make()
