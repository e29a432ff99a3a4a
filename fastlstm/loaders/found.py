"""What a format reports: the recurrent layers in a file or object, and which of them a name means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from fastlstm.errors import FormatError
from fastlstm.weights import Weights

__all__ = ["Contents", "Found", "LSTMInfo", "distinct", "listing", "other_layer", "quoted", "refused", "summary"]


@dataclass(frozen=True)
class LSTMInfo:
    """One LSTM as a file describes it.

    Attributes
    ----------
    name : str
        What ``load(..., name=)`` calls it: the prefix of its tensors without the trailing dot, ``""`` without a prefix; the name
        of its first node in an ONNX model; the name of a Keras layer.
    input_size, hidden_size, num_layers, proj_size : int
        As in ``torch.nn.LSTM``; ``proj_size`` is 0 without a projection.
    bidirectional, bias : bool
    dtype : str
        The dtype the file stores, such as ``"float16"``; several are joined by ``+``.
    batch_first : bool or None
        None where the source does not say.
    problem : str
        Why it cannot be loaded; empty if it can. With a problem the sizes are 0, ``bidirectional`` and ``bias`` False, ``dtype``
        empty; but where the problem is that the weights lie in other files, which may be allowed, they are known.
    """

    name: str
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    proj_size: int
    bias: bool
    dtype: str
    batch_first: bool | None = None
    problem: str = ""

    def __str__(self) -> str:
        if self.problem and not self.hidden_size:
            return f"{quoted(self.name)}: cannot be loaded: {self.problem}"
        extras = [f"num_layers={self.num_layers}"] if self.num_layers != 1 else []
        extras += [f"{key}=True" for key in ("bidirectional", "batch_first") if getattr(self, key)]
        extras += ["bias=False"] if not self.bias else []
        extras += [f"proj_size={self.proj_size}"] if self.proj_size else []
        problem = f"; cannot be loaded: {self.problem}" if self.problem else ""
        sizes = ", ".join([str(self.input_size), str(self.hidden_size), *extras])
        return f"{quoted(self.name)}: LSTM({sizes}), {self.dtype}{problem}"


@dataclass(frozen=True)
class Found:
    """One recurrent layer; its weights are not read before ``read`` is called.

    Attributes
    ----------
    name : str
        The name shown, unique in its source.
    info : LSTMInfo or None
        None if it cannot be loaded. It has a problem of its own where ``read`` needs files that the caller has not allowed.
    read : function () -> Weights, or None
        None if it cannot be loaded.
    problem : str
        Why it cannot be loaded; empty if it can.
    is_lstm : bool
        False for a GRU or a plain RNN: understood, and not what is looked for.
    aliases : tuple of str
        Other names that mean it, as long as they mean nothing else.
    """

    name: str
    info: LSTMInfo | None = None
    read: Callable[[], Weights] | None = None
    problem: str = ""
    is_lstm: bool = True
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """All recurrent layers of one source, and in ``summary`` what else it is, for the message when there is none.

    ``parts`` are single layers of networks in ``found``, for who asks for one by its name.
    """

    found: Sequence[Found]
    summary: str
    parts: Sequence[Found] = ()

    @property
    def lstms(self) -> list[Found]:
        return [item for item in self.found if item.is_lstm]

    def infos(self) -> list[LSTMInfo]:
        """Each LSTM, also those that cannot be loaded, with the reason.

        Raises
        ------
        FormatError
            If there are some and none can be loaded.
        """
        self._check_any()
        return [item.info or LSTMInfo(item.name, 0, 0, 0, False, 0, False, "", problem=item.problem) for item in self.lstms]

    def _check_any(self) -> None:
        lstms = self.lstms
        if lstms and all(item.problem for item in lstms):
            names = listing(item.name for item in lstms)
            several = f"none of the {len(lstms)} LSTMs found can be loaded ({names}): " if len(lstms) > 1 else ""
            problems = dict.fromkeys(item.problem for item in lstms[:3])
            raise FormatError(several + "; ".join(problems))

    def choose(self, name: str | None) -> Found:
        """Return the only LSTM, or the one that ``name`` means; it can be read.

        Raises
        ------
        FormatError
            If there is none, or several and no name, or if that one cannot be loaded.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be str or None, got {name!r:.100}")
        lstms = self.lstms
        names = listing(item.name for item in lstms)
        if name is None:
            if not lstms:
                others = "".join(f"; {item.problem}" for item in self.found[:5])
                raise FormatError(f"no LSTM found: {self.summary}{others}")
            self._check_any()
            if len(lstms) > 1:
                # The only one without a problem need not be the one that is wanted
                sound = listing(item.name for item in lstms if not item.problem)
                broken = [item for item in lstms if item.problem]
                problems = "".join(f"; {quoted(item.name)} cannot be loaded: {item.problem}" for item in broken[:5])
                more = f"; and {len(broken) - 5} more cannot be loaded" if len(broken) > 5 else ""
                raise FormatError(f"{len(lstms)} LSTMs found, pass one of these as name=: {sound}{problems}{more}")
            matches = lstms
        else:
            matches = [item for item in self.found if item.name == name]
            matches = matches or [item for item in self.found if name in item.aliases]
            matches = matches or [item for item in self.parts if item.name == name]
            if not matches:
                raise FormatError(f"no LSTM is named {quoted(name)}; those found: {names or 'none, ' + self.summary}")
            if len(matches) > 1:
                raise FormatError(f"name {quoted(name)} is ambiguous, it means several: {listing(item.name for item in matches)}")
        if matches[0].problem:
            raise FormatError(matches[0].problem)
        return matches[0]


def distinct(found: Iterable[Found]) -> list[Found]:
    """Those that share a name become one that says so."""
    by_name: dict[str, list[Found]] = {}
    for item in found:
        by_name.setdefault(item.name, []).append(item)
    return [
        items[0] if len(items) == 1 else Found(name, problem=f"{len(items)} recurrent layers have the name {quoted(name)}")
        for name, items in by_name.items()
    ]


def other_layer(name: str, where: str, kind: str) -> Found:
    """A layer that is understood and no LSTM, but a GRU, say; ``where`` names it in the message."""
    return Found(name, problem=f"{where}: this is {kind}, not an LSTM", is_lstm=False)


def refused(name: str, where: str, error: ValueError) -> Found:
    """An LSTM that cannot be loaded: a FormatError names the tensor, another error is of sizes that no network has."""
    return Found(name, problem=str(error) if isinstance(error, FormatError) else f"{where}: {error}")


def quoted(text: str) -> str:
    """``repr`` cut to 100 characters: the only way a name from a file enters a message."""
    shown = repr(text[:100])
    return shown if len(shown) <= 100 else shown[:97] + "..."


def listing(names: Iterable[str], limit: int = 20) -> str:
    """``'a', 'b', 'c' and 4 more``."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(quoted(name) for name in every[:limit]) + more


def summary(what: str, names: Collection[str], unit: str = "tensors") -> str:
    """``a file with 8 tensors: 'a', 'b', 'c', 'd', 'e' and 3 more``."""
    return f"{what} with {len(names)} {unit}" + (f": {listing(names, 5)}" if names else "")
