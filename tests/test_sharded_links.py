"""Links over parameters that are cut: what is refused, and where nothing is cut."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import signax
from cut_model import HOSTS, LINES, SPECS, assert_equal, loss, mesh_of, params, started, targets

slow = pytest.mark.slow


def in_all_axes(tx: Any) -> Any:
    """One update in a `jax.shard_map` over all axes."""
    update = lambda g: tx.update(signax.as_varying(g, HOSTS), tx.init(g))[0]  # noqa: E731
    mapped = jax.shard_map(update, mesh=mesh_of(2, 4), in_specs=(SPECS,), out_specs=SPECS)
    return jax.eval_shape(mapped, params())


@pytest.mark.parametrize("name", LINES)
def test_a_chain_that_was_not_told_of_the_shards_is_refused(name: str):
    with pytest.raises(ValueError, match=r"also differs over \('devices',\)") as error:
        in_all_axes(LINES[name](HOSTS))
    assert "signax.sharded(tx, param_specs)" in str(error.value)
    tx = LINES[name](HOSTS)
    update = lambda g: tx.update(signax.as_varying(g, HOSTS), tx.init(g))[0]  # noqa: E731
    mapped = jax.shard_map(
        update, mesh=mesh_of(2, 4), in_specs=(P(),), out_specs=P(), axis_names={HOSTS}
    )
    with pytest.raises(ValueError, match=r"^signax: .* would gather the whole model"):
        jax.eval_shape(mapped, params())


def test_links_that_need_whole_leaves_say_so():
    blocks = signax.ssdm(0.1, axis_name=HOSTS, scale=signax.Scale("linf", 256))
    with pytest.raises(ValueError, match=r"blocks of 256 coordinates .* scope=\"leaf\""):
        in_all_axes(signax.sharded(blocks, SPECS))
    with pytest.raises(ValueError, match=r"baselines.* leaf \['columns'\] is cut over"):
        in_all_axes(signax.sharded(signax.baselines.top_k_sgd(0.1, 0.5, axis_name=HOSTS), SPECS))


def test_specs_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"\['rows'\] .* 8 coordinates do not make 3 equal pieces"):
        signax.state_specs(
            LINES["signum"](HOSTS), params(), mesh_of(2, 3), axis_names=(HOSTS,), param_specs=SPECS
        )
    types = (AxisType.Auto, AxisType.Explicit)
    explicit = jax.make_mesh((2, 4), (HOSTS, "devices"), types)
    with pytest.raises(ValueError, match=r"\['devices'\] inside a worker are Explicit"):
        started(LINES["signum"](HOSTS), explicit)
    tx, mesh = LINES["signum"](HOSTS), mesh_of(2, 4)
    with pytest.raises(TypeError, match=r"^signax: param_specs at \['rows'\] is 'devices'"):
        signax.sharded(tx, {"rows": "devices"})
    for specs in ({"rows": P(HOSTS)}, {"rows": P("model")}):
        with pytest.raises(ValueError, match="needs the whole parameter"):
            signax.state_specs(tx, params(), mesh, axis_names=(HOSTS,), param_specs=specs)
    with pytest.raises(ValueError, match=r"the mesh has the axes \('hosts', 'devices'\)"):
        signax.make_train_step(loss, tx, mesh, axis_names=("workers",))


@slow
def test_a_sharded_chain_is_the_chain_itself_where_nothing_is_cut():
    tx = signax.ssdm(0.25, axis_name="workers")
    told = signax.sharded(tx, SPECS)
    rows = jax.tree.map(jnp.asarray, targets(0, 3))

    def update(tx):
        one = lambda g: tx.update(g, tx.init(g), g)[0]  # noqa: E731
        return jax.jit(jax.vmap(one, axis_name="workers"))(rows)

    assert_equal(update(told), update(tx))
