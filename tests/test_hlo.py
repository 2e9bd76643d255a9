"""What the compiled step really sends: one exchange of packed words for the whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signax
from daily import daily
from signax.wire import _cost
from workers import WORKERS

pytestmark = pytest.mark.machine_code

M = 8
SIZE = 3_000  # coordinates of the model, however many leaves they lie in


def report(tx, num_leaves: int) -> signax.WireReport:
    """The collectives of `make_train_step` for a model of SIZE coordinates."""
    mesh = signax.make_worker_mesh(M)
    sizes = np.full(num_leaves, SIZE // num_leaves)
    params = {f"leaf{i}": jnp.ones(size) for i, size in enumerate(sizes)}

    def loss(params, batch):
        return sum(jnp.sum(p) for p in params.values()) * jnp.mean(batch)

    step = signax.make_train_step(loss, tx, mesh)
    state = jax.eval_shape(lambda: signax.init_train_state(params, tx, mesh))
    return signax.wire_bits(step, state, jnp.ones((M, 1)), num_coordinates=SIZE)


def assert_one_exchange(wire: signax.WireReport, num_scalars: int):
    words = [c for c in wire.collectives if c.kind in ("all-to-all", "all-gather")]
    assert sorted(c.kind for c in words) == ["all-gather", "all-to-all"], wire
    assert all(c.dtype == "u8" and c.times == 1 and c.exact for c in words), wire
    # what is left are the metrics and a shared R: a few scalars, never the model
    others = [c for c in wire.collectives if c not in words]
    assert all(c.kind == "all-reduce" for c in others), wire
    assert sum(c.elements for c in others) <= num_scalars, wire


@pytest.mark.parametrize("num_leaves", [1, 20, pytest.param(200, marks=pytest.mark.slow)])
def test_one_exchange_of_words_is_sent_whatever_the_number_of_leaves(num_leaves: int):
    wire = report(signax.signum(0.1, axis_name=WORKERS), num_leaves)
    assert_one_exchange(wire, num_scalars=2)  # the loss and on how many workers it is finite
    # Two bits each way. Each leaf starts a word of its own: at most 7 bits of padding a leaf, one
    # word a slice, and headers of a few bytes.
    least = _cost.majority_bits(M, "zero")
    padding = 4 * 8 * (num_leaves + 3 * M) / SIZE
    assert least <= wire.bits_per_coordinate <= least + padding + 4 * 64 / SIZE


OTHERS = {
    "sign_sgd": lambda: signax.sign_sgd(0.1, axis_name=WORKERS, ties="random"),
    "ssdm": lambda: signax.ssdm(0.1, axis_name=WORKERS),
    "ssdm shared": lambda: signax.ssdm(
        0.1, axis_name=WORKERS, scale=signax.Scale("linf", "leaf", shared=True)
    ),
}


@pytest.mark.parametrize("name", daily(OTHERS, ["ssdm shared"]))
def test_the_other_sign_methods_send_one_exchange_as_well(name: str):
    num_leaves = 3
    wire = report(OTHERS[name](), num_leaves)
    assert_one_exchange(wire, num_scalars=2 + (num_leaves if "shared" in name else 0))
    if name == "sign_sgd":
        assert wire.bits_per_coordinate == pytest.approx(_cost.majority_bits(M, "random"), rel=0.1)
    else:
        assert wire.bits_per_coordinate == pytest.approx(_cost.average_signs_bits(M), rel=0.1)


def test_the_dense_baseline_sends_the_whole_model_and_the_lanes_wire_one_all_reduce():
    dense = report(signax.dense_sgd(0.1, axis_name=WORKERS), 1)
    assert dense.bits_per_coordinate == pytest.approx(_cost.dense_bits(M), rel=0.05)
    lanes = report(signax.sign_sgd(0.1, axis_name=WORKERS, ties="random", wire="lanes"), 1)
    assert {c.kind for c in lanes.collectives} == {"all-reduce"}
    largest = max(lanes.collectives, key=lambda c: c.elements)
    assert largest.dtype == "u32"
    assert largest.elements == pytest.approx(SIZE / 8, rel=0.02)  # lanes of 4 bits, 8 in a word
