"""Makes the golden files of Flax in this folder, and what Flax computes with them: ``python tests/golden/make_flax.py``.

Made with flax 0.12.8 and jax 0.10.2 on CPU. The tests read them without either.
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, serialization

HERE = Path(__file__).parent
rng = np.random.default_rng(20260101)
x = rng.standard_normal((2, 6, 3)).astype(np.float32)
expected: dict[str, np.ndarray] = {"x": x}


def randomised(tree: dict) -> dict:
    """Flax begins with biases of zero, which would hide a bias that is lost."""
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape), leaf.dtype), tree)


class Model(nn.Module):
    """Two LSTMs with names of Flax's own and one with a name of its own, beside other layers."""

    @nn.compact
    def __call__(self, x):
        a = nn.RNN(nn.LSTMCell(4))(nn.Dense(3)(x))
        return nn.RNN(nn.OptimizedLSTMCell(5), name="top")(nn.LayerNorm()(a))


def main() -> None:
    rnn = nn.RNN(nn.LSTMCell(5))
    variables = randomised(rnn.init(jax.random.key(0), x))
    (HERE / "flax_linen.msgpack").write_bytes(serialization.to_bytes(variables))
    expected["flax_linen.msgpack"] = np.asarray(rnn.apply(variables, x))

    both = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(5)), nn.RNN(nn.OptimizedLSTMCell(5)))
    variables = randomised(both.init(jax.random.key(0), x))
    limit, serialization.MAX_CHUNK_SIZE = serialization.MAX_CHUNK_SIZE, 48
    (HERE / "flax_chunked.msgpack").write_bytes(serialization.to_bytes(variables))
    serialization.MAX_CHUNK_SIZE = limit
    expected["flax_chunked.msgpack"] = np.asarray(both.apply(variables, x))

    network = nnx.RNN(nnx.OptimizedLSTMCell(3, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    state = randomised(nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    nnx.update(network, state)
    (HERE / "flax_nnx.msgpack").write_bytes(serialization.to_bytes(state))
    expected["flax_nnx.msgpack"] = np.asarray(network(x))

    variables = randomised(rnn.init(jax.random.key(0), x))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    (HERE / "flax_bfloat16.msgpack").write_bytes(serialization.to_bytes(half))
    expected["flax_bfloat16.msgpack"] = np.asarray(rnn.apply(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half), x))

    variables = randomised(Model().init(jax.random.key(0), x))
    moments = {"0": {"count": np.int32(3), "mu": variables, "nu": variables}, "1": {}}
    state = {"step": 3, "params": variables, "opt_state": moments, "tags": ["a", None, 1.5, True, complex(1, 2)]}
    (HERE / "flax_state.msgpack").write_bytes(serialization.msgpack_serialize(state))

    np.savez_compressed(HERE / "flax_expected.npz", **expected)


if __name__ == "__main__":
    main()
