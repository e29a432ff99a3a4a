"""Gates and states of every step, as ``LSTM.trace`` returns them."""

import sys
from dataclasses import replace

import numpy as np
import pytest

import fastlstm
from fastlstm.cell import Activation, Cell
from fastlstm.weights import Weights


def make(variant: bool, **options):
    lstm = fastlstm.LSTM(5, 19, **options, seed=3)
    if not variant:
        return lstm
    rng, kind, cell = np.random.default_rng(4), lstm.dtype, Cell(gate=Activation("hard_sigmoid"), gate_clip=0.7, cell_clip=0.9)
    layers = (
        replace(w, cell=cell, weight_peephole=rng.normal(size=3 * lstm.hidden_size).astype(kind)) for w in lstm.weights.layers
    )
    return fastlstm.LSTM.from_weights(Weights(tuple(layers), lstm.bidirectional), lstm.batch_first)


@pytest.mark.parametrize("variant", [False, True])
@pytest.mark.parametrize("proj_size", [0, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_satisfy_the_equations(variant, proj_size, dtype):
    lstm = make(variant, num_layers=2, bidirectional=True, proj_size=proj_size, dtype=dtype)
    rng = np.random.default_rng(0)
    T, B = 9, 4
    x = rng.normal(size=(T, B, 5)).astype(dtype)
    state = rng.normal(size=(4, B, proj_size or 19)).astype(dtype), rng.normal(size=(4, B, 19)).astype(dtype)
    lengths = [9, 0, 5, 9]
    output, (_, c_n) = lstm(x, state, lengths=lengths)
    trace = lstm.trace(x, state, lengths=lengths)
    assert trace.i.shape == trace.c.shape == (2, 2, T, B, 19)
    assert trace.h.shape == (2, 2, T, B, proj_size or 19)
    np.testing.assert_array_equal(np.concatenate(list(trace.h[1]), axis=-1), output)
    tolerance = {"rtol": 0, "atol": 2e-6 if dtype == "float32" else 1e-14}
    for layer in range(2):
        for side in range(2):
            at = {name: getattr(trace, name)[layer, side] for name in "ifgoch"}
            for b, length in enumerate(lengths):
                steps = range(length) if side == 0 else range(length - 1, -1, -1)
                c = state[1][2 * layer + side, b]
                for t in steps:
                    i, f, g, o, c_next, h = (at[name][t, b] for name in "ifgoch")
                    expected = f * c + i * g
                    np.testing.assert_allclose(c_next, expected.clip(-0.9, 0.9) if variant else expected, **tolerance)
                    m, w = o * np.tanh(c_next), lstm.weights.layers[2 * layer + side].weight_hr
                    np.testing.assert_allclose(h, m if w is None else w @ m, **tolerance)
                    c = c_next
                np.testing.assert_array_equal(c, c_n[2 * layer + side, b])
                for name in "ifgoch":
                    assert not at[name][length:, b].any(), "padding is zero"


def test_masked_steps_are_zero_and_the_others_at_their_own_times():
    lstm, rng = make(False, num_layers=2, bidirectional=True), np.random.default_rng(1)
    x, mask = rng.standard_normal((9, 4, 5), np.float32), rng.random((9, 4)) < 0.6
    trace = lstm.trace(x, mask=mask)
    for b in range(4):
        alone = lstm.trace(np.ascontiguousarray(x[mask[:, b], b]))
        for name in "ifgoch":
            values = getattr(trace, name)[:, :, :, b]
            np.testing.assert_array_equal(values[:, :, mask[:, b]], getattr(alone, name))
            assert not values[:, :, ~mask[:, b]].any()


def test_one_sequence_and_batch_first():
    lstm = fastlstm.LSTM(3, 4, batch_first=True, seed=0)
    x = np.random.default_rng(1).normal(size=(2, 6, 3)).astype(np.float32)
    batch, single = lstm.trace(x), lstm.trace(x[1])
    assert single.f.shape == (1, 1, 6, 4)
    for name in "ifgoch":
        np.testing.assert_array_equal(getattr(single, name), getattr(batch, name)[:, :, :, 1])


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    lstm = fastlstm.LSTM(3, 12, num_layers=2, proj_size=5, seed=0)
    trace = lstm.trace(np.random.default_rng(1).normal(size=(20, 2, 3)).astype(np.float32))
    figure = trace.plot(tmp_path / "trace.png", layer=0, row=1, units=[0, 11])
    assert (tmp_path / "trace.png").stat().st_size > 10_000
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["input gate i", "forget gate f", "output gate o", "candidate g", "cell state c", "output h"]
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), trace.f[0, 0, :, 1, 11])
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2, 2, 2, 1], "unit 11 has no output"
    for wrong, message in (
        ({"layer": 2}, "layer must be between -2 and 1, got 2"),
        ({"direction": -2}, "direction must be between -1 and 0, got -2"),
        ({"row": 5}, "row must be between -2 and 1, got 5"),
        ({"units": [0, 12]}, r"units\[1\] must be between -12 and 11, got 12"),
    ):
        with pytest.raises(IndexError, match=message):
            trace.plot(**wrong)
    for wrong, message in (
        ({"layer": 1.0}, "layer must be an integer, got 1.0"),
        ({"row": True}, "row must be an integer, got True"),
        ({"units": 3}, "units must be several integers, got 3"),
        ({"units": ["a"]}, r"units\[0\] must be an integer, got 'a'"),
    ):
        with pytest.raises(TypeError, match=message):
            trace.plot(**wrong)


def test_plot_without_matplotlib(monkeypatch):
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    trace = fastlstm.LSTM(3, 4, seed=0).trace(np.zeros((2, 1, 3), np.float32))
    with pytest.raises(ImportError, match="pip install matplotlib"):
        trace.plot()


def test_repr():
    trace = fastlstm.LSTM(3, 4, proj_size=2, seed=0).trace(np.zeros((5, 1, 3), np.float32))
    assert repr(trace) == "Trace(gates and c: (1, 1, 5, 1, 4), h: (1, 1, 5, 1, 2))"
