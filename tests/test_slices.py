"""The buffer cut for its servers, against a list with an entry for every bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signax.wire import _slices

TREES = {
    "one leaf": [37],
    "whole bytes": [16, 8, 24],
    "a leaf ends with its slice, in half a word": [11, 16, 3],
    "more leaves than words in a slice": [1, 1, 9, 1, 2, 8],
    "a leaf without coordinates": [5, 0, 12],
    "fewer words than workers": [3, 2],
    "nothing": [0],
    "a leaf over three slices": [4, 200, 7],
}
on_trees = pytest.mark.parametrize("sizes", TREES.values(), ids=TREES)
among_workers = pytest.mark.parametrize("num_workers", [1, 2, 3, 8])


def bits_of_slices(sizes: list[int], num_workers: int) -> list[list[tuple[int, bool]]]:
    """For every bit of every slice: whose it is, and whether it is a coordinate."""
    bits = [
        (leaf, place < size)
        for leaf, size in enumerate(sizes)
        for place in range(8 * -(-size // 8))
    ]
    width = 8 * -(-len(bits) // 8 // num_workers)
    return [bits[worker * width : (worker + 1) * width] for worker in range(num_workers)]


@on_trees
@among_workers
def test_a_slice_counts_the_words_and_the_coordinates_of_its_leaves(
    sizes: list[int], num_workers: int
):
    slices, expected = _slices.cut(sizes, num_workers), bits_of_slices(sizes, num_workers)
    assert slices.num_words == len(expected[0]) // 8
    most = max(len({leaf for leaf, _ in bits}) for bits in expected)
    assert slices.leaf.shape == (num_workers, max(1, most))
    for worker, bits in enumerate(expected):
        counted = {
            int(leaf): (words, coordinates)
            for leaf, words, coordinates in zip(
                slices.leaf[worker], slices.words[worker], slices.coordinates[worker], strict=True
            )
            if words
        }
        assert counted == {
            leaf: (
                sum(other == leaf for other, _ in bits) // 8,
                sum(other == leaf and is_coordinate for other, is_coordinate in bits),
            )
            for leaf, _ in bits
        }


@on_trees
@among_workers
def test_a_server_tells_whose_each_word_is_and_which_bits_only_pad(
    sizes: list[int], num_workers: int
):
    slices = _slices.cut(sizes, num_workers)

    @jax.jit
    def words_and_bits(worker):
        place = _slices.leaf_of_words(slices, worker)
        return jnp.asarray(slices.leaf)[worker][place], _slices.is_coordinate(slices, worker, place)

    for worker, bits in enumerate(bits_of_slices(sizes, num_workers)):
        leaf, is_coordinate = jax.device_get(words_and_bits(worker))
        np.testing.assert_array_equal(leaf[: len(bits) // 8], [leaf for leaf, _ in bits[::8]])
        flags = [is_coordinate for _, is_coordinate in bits]
        np.testing.assert_array_equal(is_coordinate.reshape(-1)[: len(bits)], flags)
        assert not is_coordinate.reshape(-1)[len(bits) :].any()


@on_trees
@among_workers
def test_a_value_for_each_leaf_in_each_slice_is_one_for_each_word(
    sizes: list[int], num_workers: int
):
    slices = _slices.cut(sizes, num_workers)
    values = jnp.arange(slices.leaf.size, dtype=jnp.float32).reshape(slices.leaf.shape)
    expected: list[list[float]] = [[] for _ in sizes]
    for worker, bits in enumerate(bits_of_slices(sizes, num_workers)):
        inside = sorted({leaf for leaf, _ in bits})
        for leaf, _ in bits[::8]:
            expected[leaf].append(float(values[worker, inside.index(leaf)]))
    spread = jax.jit(functools.partial(_slices.of_leaves, slices=slices))(values)
    for words, want in zip(spread, expected, strict=True):
        np.testing.assert_array_equal(words, want)
