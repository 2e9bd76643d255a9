"""What devices that hold pieces of the parameters send, and the memory that a step needs."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import signax
from cut_model import HOSTS, LINES, MESHES, loss, mesh_of, on_mesh, started, targets
from daily import thorough
from signax.wire import _hlo

pytestmark = pytest.mark.machine_code

slow = pytest.mark.slow


def across_hosts(text: str, num_devices: int) -> list[_hlo.Collective]:
    """The collectives in which devices of different hosts meet, but for the step's metrics."""
    found = [
        c
        for c in _hlo.read_collectives(text)
        if any(len({device // num_devices for device in group}) > 1 for group in c.groups)
    ]
    scalars = [c for c in found if c.kind == "all-reduce" and c.elements <= 2]  # the mean loss
    return [c for c in found if c not in scalars]


@pytest.mark.parametrize("shape", [MESHES[0], pytest.param(MESHES[1], marks=slow)], ids=str)
def test_a_device_sends_the_words_of_its_own_shard_in_two_collectives(shape: tuple[int, int]):
    num_hosts, num_devices = shape
    step, state = started(LINES["majority random"](HOSTS), mesh_of(*shape))
    text = step.lower(state, targets(0, num_hosts)).compile().as_text()
    up, down = across_hosts(text, num_devices)
    assert (up.kind, down.kind) == ("all-to-all", "all-gather")
    # Whole bytes of each leaf's shard; of the leaves with copies, 13 + 1 coordinates in 2 + 1
    # bytes, each device sends its part.
    own = math.ceil(40 / num_devices / 8) + math.ceil(72 / num_devices / 8)
    words = own + math.ceil(3 / num_devices)
    part = math.ceil(words / num_hosts)
    assert (up.dtype, up.elements) == ("u8", num_hosts * (part + 1))  # and whether the host votes
    assert (down.dtype, down.elements) == ("u8", part + 4)  # and how many hosts voted
    assert {len(group) for group in up.groups} == {num_hosts}


@pytest.mark.parametrize("num_devices", [*(pytest.param(n, marks=slow) for n in (1, 2)), 4])
def test_bits_between_hosts_do_not_depend_on_the_devices_inside(num_devices: int):
    size = 1 << 16
    mesh = mesh_of(2, num_devices)
    tx = signax.sign_sgd(0.1, axis_name=HOSTS, ties="random")
    step = signax.make_train_step(loss, tx, mesh, axis_names=(HOSTS,))
    x = {"cut": jnp.zeros((8, size // 8)), "copied": jnp.zeros(size)}
    specs = {"cut": P("devices"), "copied": P()}
    state = signax.init_train_state(on_mesh(mesh, x, specs), tx, mesh, axis_names=(HOSTS,))
    batch = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), x)
    found = across_hosts(step.lower(state, batch).compile().as_text(), num_devices)
    bits = num_devices * sum(c.bits for c in found)  # of all devices of one host
    headers = num_devices * (8 + 4 * 8)  # a byte up, four down
    assert bits == 2 * (2 - 1) / 2 * (2 * size) + headers


@thorough
def test_memory_of_the_step_is_that_of_the_dense_one_and_the_packed_words():
    size, mesh = 256, mesh_of(2, 4)
    x = {f"layer {i}": jnp.zeros((size, size)) for i in range(3)}

    def layers(x, batch):
        hidden = batch.astype(jnp.bfloat16)
        for kernel in x.values():
            hidden = jnp.tanh(hidden @ kernel.astype(jnp.bfloat16))
        return hidden

    def mean_square(x, batch):
        return jnp.mean(jax.checkpoint(layers)(x, batch).astype(jnp.float32) ** 2)

    def temporary(tx):
        step = signax.make_train_step(mean_square, tx, mesh, axis_names=(HOSTS,))
        cut = on_mesh(mesh, x, dict.fromkeys(x, P("devices")))
        state = signax.init_train_state(cut, tx, mesh, axis_names=(HOSTS,))
        batch = jax.device_put(jnp.ones((64, size)), NamedSharding(mesh, P((HOSTS, "devices"))))
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    dense = temporary(signax.dense_sgd(0.1, axis_name=HOSTS))
    words = 3 * size**2 // 4 // 8
    for tx in (
        signax.sign_sgd(0.1, axis_name=HOSTS, ties="random"),
        signax.signum(0.1, axis_name=HOSTS, ties="random"),
        signax.ssdm(0.1, axis_name=HOSTS),
    ):
        # sent and received; and a few scalars, such as who votes
        assert temporary(tx) <= dense + 2 * words + 256
