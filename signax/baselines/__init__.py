r"""Other ways to send less, with the contracts of the sign methods: what they are compared with.

Each row is a network link and a named algorithm; bits are for one worker, one coordinate and one
step, to be multiplied by (M - 1)/M, for M workers. A float32 all-reduce is 64.

| link | algorithm | bits |
| --- | --- | --- |
| `signax.average_gradients` | `signax.dense_sgd` | 32 up, 32 down |
| `average_bfloat16` | `bfloat16_sgd` | 16 up, 16 down |
| `average_quantized(levels=s)` | `qsgd`, `tern_grad` (s = 1) | ceil(log2(2s+1)) up, 32 or 16 down |
| `average_low_rank(rank=r)` | `power_sgd` | 64 for each of r(n + m) numbers of an n by m matrix |
| `average_random_k(fraction=f)` | `random_k_sgd` | 64 f |
| `average_top_k(fraction=f)` | `top_k_sgd` | 64 f M, as all of it goes to everyone |

A link refuses gradients that were already summed, leaves out a worker with a NaN, returns an update
typed as replicated, and runs under `jax.shard_map`, `jax.vmap` and `jax.pmap`.
"""

from signax.baselines._few_bits import bfloat16_sgd, qsgd, tern_grad
from signax.baselines._link import LinkState
from signax.baselines._low_rank import average_low_rank
from signax.baselines._parts import power_sgd, random_k_sgd, top_k_sgd
from signax.baselines._quantized import average_quantized
from signax.baselines._rounded import average_bfloat16
from signax.baselines._sparse import average_random_k, average_top_k

__all__ = [
    "LinkState",
    "average_bfloat16",
    "average_low_rank",
    "average_quantized",
    "average_random_k",
    "average_top_k",
    "bfloat16_sgd",
    "power_sgd",
    "qsgd",
    "random_k_sgd",
    "tern_grad",
    "top_k_sgd",
]
