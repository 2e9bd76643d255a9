"""The vote where the parameters live: each owner's piece is that of the whole result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import signax
from daily import daily
from workers import WORKERS, Mapped, worker_mesh

# Pieces of whole bytes along the first axis, pieces of 9 coordinates, pieces along a later axis, a
# bias and a scalar that everyone keeps.
SHAPES = {"bias": (70,), "bytes": (16, 4), "last": (3, 2, 12), "scalar": (), "thin": (36, 1)}
SPECS = {"bias": P(), "bytes": P(WORKERS), "last": P(None, None, WORKERS), "scalar": P()}
SPECS["thin"] = P(WORKERS, None)
DIMS = {"bytes": 0, "last": 2, "thin": 0}
RESULTS = {"majority": signax.majority_vote, "average": signax.average_signs}
WIRES = {"zero": ("packed", "radix"), "random": ("packed", "float32")}


def votes(num_workers: int):
    rng = np.random.default_rng(0)
    values = np.array([-2.0, 0.0, 0.0, 1.0], np.float32)  # ties and zeros
    return {name: rng.choice(values, (num_workers, *shape)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("num_workers", daily([1, 2, 4], [4]))
@pytest.mark.parametrize("result", daily(RESULTS, ["majority"]))
def test_each_owner_holds_its_piece_of_what_all_would_hold(
    mapped: Mapped, result: str, num_workers: int
):
    kinds = [(ties, wire) for ties, wires in WIRES.items() for wire in wires]
    rows = {name: np.stack([x, x], axis=1) for name, x in votes(num_workers).items()}  # two cases:
    rows["last"][num_workers // 2, 1, 0, 0, 0] = np.nan  # all vote, and one abstains

    def on_case(updates):
        out = {}
        for ties, wire in kinds:
            for part, specs in {"whole": None, "piece": SPECS}.items():
                tx = RESULTS[result](WORKERS, ties=ties, wire=wire, key=3, out_specs=specs)
                update, state = tx.update(updates, tx.init(updates))
                out[ties, wire, part] = (update, state.num_abstained)
        return out

    out = jax.device_get(mapped(lambda cases: jax.lax.map(on_case, cases), rows))
    for kind in kinds:
        (whole, absent), (piece, same) = out[*kind, "whole"], out[*kind, "piece"]
        np.testing.assert_array_equal(same, absent)
        for leaf in SHAPES:
            for n in range(num_workers):
                want = whole[leaf][n]
                if leaf in DIMS:
                    want = np.split(want, num_workers, axis=1 + DIMS[leaf])[n]
                np.testing.assert_array_equal(piece[leaf][n], want, err_msg=f"{kind} {leaf} {n}")


def test_one_bit_goes_up_and_none_comes_down():
    mesh, size = worker_mesh(8), 80_000

    def bits(specs):
        tx = signax.majority_vote(WORKERS, ties="random", out_specs=specs)

        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P(WORKERS), P()), out_specs=(specs or P(), P())
        )
        def vote(gradients, state):
            return tx.update(gradients[0], state)

        gradients = jax.ShapeDtypeStruct((8, size), jnp.float32)
        return signax.wire_bits(vote, gradients, tx.init(jnp.zeros(size)), num_coordinates=size)

    owned = bits(P(WORKERS))
    assert owned.bits_per_coordinate == pytest.approx(7 / 8, abs=0.01)
    assert owned.num_collectives == 2  # the second one tells all how many voted
    assert bits(None).bits_per_coordinate == pytest.approx(2 * 7 / 8, abs=0.01)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (P(WORKERS), r"leaf \['w'\] of shape \(3, 4\), which has 3 rows for 2 owners"),
        (P(None, None, WORKERS), r"which has no dimension 2 for 2 owners"),
        (P(WORKERS, WORKERS), r"one dimension must be cut over all of the voting axes"),
    ],
)
def test_a_leaf_that_cannot_be_owned_is_named(specs: P, message: str):
    tx = signax.majority_vote(WORKERS, out_specs=specs)
    update = {"w": jnp.ones((2, 3, 4))}
    with pytest.raises(ValueError, match=message):
        jax.vmap(lambda u: tx.update(u, tx.init(u))[0], axis_name=WORKERS)(update)


def test_the_owners_of_parameters_train_as_workers_who_hold_all_of_them():
    mesh, num_steps = worker_mesh(4), 5
    params = {"w": jnp.zeros((16, 3)), "b": jnp.zeros(5)}
    specs = {"w": P(WORKERS), "b": P()}
    batch = jax.random.normal(jax.random.key(0), (4, 16, 3))

    def loss(params, batch):
        return jnp.mean((params["w"] - batch) ** 2) + jnp.mean((params["b"] - batch.mean()) ** 2)

    def make_step(out_specs):
        tx = signax.majority_vote(WORKERS, ties="random", out_specs=out_specs)

        def step(params, state, batch):
            whole = params
            if out_specs:
                w = jax.lax.all_gather(params["w"], WORKERS, tiled=True)
                whole = params | {"w": w}
            _, grads = signax.local_value_and_grad(loss, WORKERS)(whole, batch[0])
            updates, state = tx.update(grads, state)
            return jax.tree.map(lambda p, u: p - 0.1 * u, params, updates), state

        laid_out = out_specs or P()
        return tx, jax.jit(
            jax.shard_map(
                step,
                mesh=mesh,
                in_specs=(laid_out, P(), P(WORKERS)),
                out_specs=(laid_out, P()),
            )
        )

    results = []
    for out_specs in (None, specs):
        tx, step = make_step(out_specs)
        trained, state = params, tx.init(params)
        for _ in range(num_steps):
            trained, state = step(trained, state, batch)
        results.append(jax.device_get(trained))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)
