r"""The specification: an LSTM network and its gradients in float64 NumPy. Slow, short, and independent of the engine.

For each step t of each layer and direction, with :math:`\sigma` the logistic function [1]_ [2]_ [3]_; the next layer's input is
the :math:`h_t` of both directions side by side. In every array time comes first, then the row.

.. math::
    [z_i, z_f, z_g, z_o] &= W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh} \\
    i, f, g, o &= \sigma(z_i),\ \sigma(z_f),\ \tanh(z_g),\ \sigma(z_o) \\
    c_t &= f c_{t-1} + i g \\
    h_t &= o \tanh(c_t), \quad\text{or with a projection}\quad W_{hr} (o \tanh(c_t))

* The cell's variants stand in :class:`fastlstm.cell.Cell`. A plain RNN has :math:`h_t = \tanh(z)` or relu, and a c of no columns.
* ``lengths``: row b has the steps ``0 <= t < lengths[b]``; the rest is padding and not computed: output zero, state kept. The
  final state is that after the row's last step, which is step 0 in the reverse direction; with length 0 it is the initial state.
* ``resets``: row b starts anew, as without a state, at step t where ``resets[t, b]``. The forward direction forgets all before t,
  the initial state too; the reverse direction, coming from the end, forgets all from t on. Resets in the padding do nothing.

References
----------
.. [1] S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
.. [2] F. Gers, J. Schmidhuber, F. Cummins, "Learning to Forget: Continual Prediction with LSTM", Neural Computation 12(10), 2000.
.. [3] H. Sak, A. Senior, F. Beaufays, "Long Short-Term Memory Recurrent Neural Network Architectures ...", INTERSPEECH 2014.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastlstm import equations
from fastlstm.weights import TENSORS, Array, LayerWeights, Weights

__all__ = ["backward", "forward"]

State = tuple[Array, Array]
Pair = tuple[ArrayLike, ArrayLike] | None  # (h, c)
Opt = ArrayLike | None
Tape = list[tuple[Any, ...]]  # what each step keeps for its gradient


def forward(weights: Weights, x: ArrayLike, state: Pair = None, lengths: Opt = None, resets: Opt = None) -> tuple[Array, State]:
    """Run the network.

    Parameters
    ----------
    weights : Weights of float32 or float64; the arithmetic is float64
    x : array, shape (T, B, I)
    state : (h_0, c_0) of shapes (L*D, B, P or H) and (L*D, B, H), or None for the network's own, else zeros
    lengths : integers, shape (B,), or None for T everywhere
    resets : booleans, shape (T, B), or None for no resets

    Returns
    -------
    output : array of float64, shape (T, B, D*(P or H))
    state : (h_n, c_n), shaped as ``state``
    """
    return _network(weights, x, state, lengths, resets)[:2]


def backward(
    weights: Weights, x: ArrayLike, state: Pair, d_output: Opt, d_state: Pair, lengths: Opt = None, resets: Opt = None
) -> tuple[Array, State, dict[str, Array]]:
    """Gradients of ``sum(output * d_output) + sum(h_n * d_state[0]) + sum(c_n * d_state[1])``, by backpropagation through time.

    Parameters
    ----------
    weights, x, state, lengths, resets : as for :func:`forward`
    d_output, d_state : shaped as its results; None stands for zeros

    Returns
    -------
    d_x, (d_h_0, d_c_0) : arrays of float64, shaped as ``x`` and the state, whether one was given or not
    parameters : gradients by the names of ``state_dict()``; ``bias_ih`` and ``bias_hh`` have the same one
    """
    output, final, tapes = _network(weights, x, state, lengths, resets)
    d_y: Array = np.zeros_like(output) if d_output is None else np.asarray(d_output, np.float64)[:: -1 if weights.flipped else 1]
    d_h, d_c = (np.zeros_like(s) if d_state is None else np.array(d_state[n], np.float64) for n, s in enumerate(final))
    layers, D = list(weights.layers), weights.num_directions
    for first in reversed(range(0, len(layers), D)):
        d_xs = []
        for k, d_y_k in enumerate(np.split(d_y, D, axis=2), first):
            d_x_k, (d_h[k], d_c[k]), layers[k] = _backward(layers[k], tapes[k], d_y_k, d_h[k], d_c[k], state is None)
            d_xs.append(d_x_k)
        d_y = np.sum(d_xs, axis=0)
    return d_y, (d_h, d_c), dict(replace(weights, layers=tuple(layers)).named_tensors())


def _network(weights: Weights, x: ArrayLike, state: Pair, lengths: Opt, resets: Opt) -> tuple[Array, State, list[Tape]]:
    y, tapes = np.asarray(x, np.float64), list[Tape]()
    T, B, D = *y.shape[:2], weights.num_directions
    h, c = (np.stack([np.tile(np.float64(s), (B, 1)) for s in own]) for own in zip(*map(_own_state, weights.layers), strict=True))
    if state is not None:
        h[:], c[:] = state
    t = np.arange(T)[:, None]
    real = t < (np.full(B, T) if lengths is None else np.asarray(lengths))
    fresh = real & (False if resets is None else np.asarray(resets))
    starts = fresh, np.roll(fresh & (t > 0), -1, axis=0)  # the reverse direction starts anew at step t - 1
    for first in range(0, len(h), D):
        ys = []
        for k in range(first, first + D):
            back = weights.reverse or k > first
            y_k, (h[k], c[k]), tape = _direction(weights.layers[k], y, h[k], c[k], real, starts[back], back)
            ys.append(y_k)
            tapes.append(tape)
        y = np.concatenate(ys, axis=2)
    return y[:: -1 if weights.flipped else 1], (h, c), tapes


@np.errstate(all="ignore")  # infinity and NaN go where IEEE arithmetic takes them
def _direction(w: LayerWeights, x: Array, h: Array, c: Array, real: Array, fresh: Array, back: bool) -> tuple[Array, State, Tape]:
    """One direction of one layer: of each step only the rows that have it."""
    y, h, c, tape, (h_0, c_0) = np.zeros((*x.shape[:2], h.shape[1])), h.copy(), c.copy(), Tape(), _own_state(w)
    for t in range(len(x))[:: -1 if back else 1]:
        rows = np.flatnonzero(real[t])
        kept = ~fresh[t, rows, None]
        x_t, h_prev, c_prev = x[t, rows], np.where(kept, h[rows], h_0), np.where(kept, c[rows], c_0)
        z = x_t @ w.weight_ih.T + h_prev @ w.weight_hh.T  # float64, as x and h are
        if w.bias_ih is not None and w.bias_hh is not None:
            z = z + w.bias_ih + w.bias_hh
        c[rows], m, saved = equations.forward(w, z, c_prev)
        h_t, dh = (m, np.ones(1)) if w.weight_hr is None else equations.clip(m @ w.weight_hr.T, w.cell.proj_clip)
        h[rows] = y[t, rows] = h_t
        tape.append((t, rows, kept, x_t, h_prev, m, dh, saved))
    return y, (h, c), tape


@np.errstate(all="ignore")
def _backward(w: LayerWeights, tape: Tape, d_y: Array, d_h: Array, d_c: Array, own: bool) -> tuple[Array, State, LayerWeights]:
    """The chain rule through the lines of :func:`_direction`, last step first; `own`: the network's own state was the first."""
    d_x, d_h, d_c = np.zeros((*d_y.shape[:2], w.weight_ih.shape[1])), d_h.copy(), d_c.copy()
    d: dict[str, Any] = {name: np.zeros(np.shape(getattr(w, name))) for name in TENSORS}
    for t, rows, kept, x_t, h_prev, m, dh, saved in reversed(tape):
        d_p = (d_h[rows] + d_y[t, rows]) * dh  # of h before it was clipped
        d_z, d_c_prev, d_peephole = equations.backward(w, saved, d_p if w.weight_hr is None else d_p @ w.weight_hr, d_c[rows])
        d_h_prev, d_x[t, rows] = d_z @ w.weight_hh, d_z @ w.weight_ih
        d_h[rows], d_c[rows] = np.where(kept, d_h_prev, 0.0), np.where(kept, d_c_prev, 0.0)
        d_bias, d_h_0, d_c_0 = d_z.sum(0), np.where(kept, 0.0, d_h_prev).sum(0), np.where(kept, 0.0, d_c_prev).sum(0)
        sums = (d_z.T @ x_t, d_z.T @ h_prev, d_bias, d_bias, d_p.T @ m, d_peephole, d_h_0, d_c_0)
        d = {name: d[name] + part for name, part in zip(TENSORS, sums, strict=True)}
    if own:
        d |= {"h_0": d["h_0"] + d_h.sum(0), "c_0": d["c_0"] + d_c.sum(0)}
    return d_x, (d_h, d_c), replace(w, **{name: d[name] for name in TENSORS if getattr(w, name) is not None})


def _own_state(w: LayerWeights) -> State:  # h and c of a row that begins without a state
    if w.h_0 is not None and w.c_0 is not None:
        return w.h_0, w.c_0
    return np.zeros(w.weight_hh.shape[1]), np.zeros(0 if w.nonlinearity else len(w.weight_hh) // 4)
