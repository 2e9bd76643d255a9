"""Long buffers are laid end to end by copies: equal to `jnp.concatenate`, and never fused."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signax
from signax import _rules
from signax.wire import _contiguous
from workers import WORKERS

pytestmark = pytest.mark.machine_code

RNG = np.random.default_rng(0)
SMALL = _contiguous._SMALL
LONG = 3 * SMALL + 5  # words of a buffer that is copied


def some_bytes(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize(
    "sizes", [(0,), (0, 0), (3, 5), (SMALL - 1,), (SMALL,), (LONG,), (1, 0, LONG), (9_000,) * 20]
)
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16])
def test_pieces_are_laid_end_to_end(sizes: tuple[int, ...], dtype: jax.typing.DTypeLike):
    pieces = [some_bytes(size).astype(dtype) for size in sizes]
    laid = jax.jit(_contiguous.concatenate)(pieces)
    assert laid.dtype == dtype
    np.testing.assert_array_equal(laid, np.concatenate(pieces))


@pytest.mark.parametrize("num_rows", [1, 2, 8, _contiguous._MOST_ROWS, _contiguous._MOST_ROWS + 1])
@pytest.mark.parametrize("width", [5, 2 * SMALL])
def test_matrices_are_laid_side_by_side_and_rows_in_one_vector(num_rows: int, width: int):
    blocks = [some_bytes(num_rows, width), some_bytes(num_rows, 1)]
    beside = jax.jit(_contiguous.side_by_side)(blocks)
    np.testing.assert_array_equal(beside, np.concatenate(blocks, axis=1))
    flat = jax.jit(lambda rows: _contiguous.flat(rows[:, :width]))(beside)
    np.testing.assert_array_equal(flat, blocks[0].reshape(-1))


def test_a_map_over_workers_lays_each_workers_own_pieces():
    rows = some_bytes(3, LONG), some_bytes(3, 7)
    laid = jax.vmap(lambda *pieces: _contiguous.concatenate(pieces))(*rows)
    np.testing.assert_array_equal(laid, np.concatenate(rows, axis=1))


def concatenated_inside_fusions(fn: Callable, *args) -> list[int]:
    """How long the vectors are that a compiled program puts together within a larger loop."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    fused = re.findall(r"^%(?:\S*fused\S*|\S*computation\S*) .*?^}", text, re.MULTILINE | re.DOTALL)
    found = [re.findall(r"= u(?:8|16)\[(\d+)\]\S* concatenate\(", body) for body in fused]
    return [int(size) for sizes in found for size in sizes]


def test_what_reads_a_long_buffer_does_not_look_for_the_piece_at_each_element():
    pieces = some_bytes(LONG), some_bytes(LONG)
    fused = concatenated_inside_fusions(lambda *p: jnp.concatenate(p) + 1, *pieces)
    assert fused == [2 * LONG], "XLA no longer does what `_contiguous` is there to avoid"
    assert not concatenated_inside_fusions(lambda *p: _contiguous.concatenate(p) + 1, *pieces)


@pytest.mark.parametrize("ties", ["zero", "random"])
def test_no_loop_of_a_vote_over_a_long_model_holds_a_long_concatenation(ties: _rules.Ties):
    tx = signax.signum(0.1, axis_name=WORKERS, ties=ties)
    params = {"a": jnp.zeros(8 * LONG + 3), "b": jnp.zeros((3, 7))}
    mesh = signax.make_worker_mesh(4)

    def loss(params, batch):
        return sum(jnp.sum(jnp.sin(p)) for p in params.values()) * jnp.mean(batch)

    state = jax.eval_shape(lambda: signax.init_train_state(params, tx, mesh))
    step = signax.make_train_step(loss, tx, mesh)
    fused = concatenated_inside_fusions(lambda *args: step(*args), state, jnp.ones((4, 1)))
    assert all(size < SMALL for size in fused), fused


@pytest.mark.parametrize("ties", ["zero", "random"])
def test_one_workers_coins_are_drawn_for_each_word_and_not_for_each_coordinate(ties: _rules.Ties):
    size = 8 * LONG
    tx = signax.majority_vote(None, ties=ties)
    text = jax.jit(tx.update).lower(jnp.ones(size), tx.init(None)).compile().as_text()
    multiplied = {int(n) for n in re.findall(r"= u32\[(\d+)\]\S* multiply\(", text)}
    assert max(multiplied, default=0) == (size // 8 if ties == "random" else 0)
    unpacking = next(
        body
        for body in re.findall(r"^%\S+ .*?^}", text, re.MULTILINE | re.DOTALL)
        if re.search(rf"ROOT \S+ = f32\[{size}\]", body)
    )
    assert "u32[" not in unpacking
