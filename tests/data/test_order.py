"""Order, shares and keyed randomness."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llf_ray.data.order import below, bits, order, share_of, uniform


@given(st.integers(1, 300), st.integers(0, 2**40), st.none() | st.integers(0, 9), st.integers(0, 99))
def test_an_order_is_a_permutation(num_items, seed, generation, epoch):
    assert sorted(order(num_items, seed, generation, epoch)) == list(range(num_items))


def test_orders_differ_by_seed_generation_and_epoch_and_repeat_otherwise():
    orders = [tuple(order(50, *key)) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, None, 0))]
    assert len(set(orders)) == len(orders)
    assert tuple(order(50, 0, 0, 0)) == orders[0]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_shares_of_the_ranks_are_the_batch_in_order(size):
    batch = order(100, 0, 0, 0)[:48]
    shares = [share_of(batch, rank, size, micro=6) for rank in range(size)]
    assert np.array_equal(np.concatenate([part for share in shares for part in share]), batch)
    assert {len(share) for share in shares} == {48 // size // 6}
    assert all(len(part) == 6 for share in shares for part in share)


def test_uneven_batches_are_shared_whole():
    shares = [share_of(np.arange(10), rank, 4, micro=2) for rank in range(4)]
    assert [int(i) for share in shares for part in share for i in part] == list(range(10))


def test_an_impossible_rank_is_refused():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        share_of(np.arange(4), 2, 2, micro=1)


def test_bits_of_a_sample_do_not_depend_on_its_company():
    together = bits((1, 2, 3), np.arange(100))
    assert together[17] == bits((1, 2, 3), np.array([17]))[0]
    assert np.array_equal(together[::-1], bits((1, 2, 3), np.arange(100)[::-1]))


def test_bits_are_the_same_on_every_machine():
    assert [f"{word:016x}" for word in bits((7, -1), np.arange(3))] == GOLDEN


def test_draws_are_uniform():
    draws = below(8, (0,), np.arange(80_000))
    counts = np.bincount(draws, minlength=8)
    assert np.all(np.abs(counts - 10_000) < 500)  # five standard deviations
    values = uniform((1,), np.arange(80_000))
    assert 0 <= values.min() < values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


GOLDEN = ["a850971994ad6b53", "0d9c3a38becd2d50", "dd91caf332552523"]
