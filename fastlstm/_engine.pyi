from typing import Any, final

from fastlstm.arrays import Array as _Array

WEIGHTS: dict[str | None, int]

def available_isas() -> tuple[str, ...]: ...
def choose_isa(name: str) -> None: ...
def build_info() -> dict[str, str]: ...
def same_arrays(ours: list[_Array], theirs: list[_Array]) -> bool: ...
def set_main_thread(ident: int) -> None: ...
def openmp_processors() -> int: ...
def wake_always(always: bool) -> None: ...
def plan(network: Network, T: int, B: int, threads: int) -> dict[str, int]: ...
def backward_plan(network: Network, T: int, B: int, threads: int) -> dict[str, int]: ...

@final
class Network:
    def __new__(
        cls,
        layers: _Rows,
        variants: list[tuple[Any, ...] | None],
        item: int,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_directions: int,
        proj_size: int,
        reverse: bool,
        nonlinearity: str | None = None,
        weight_dtype: str | None = None,
    ) -> Network: ...
    @property
    def nbytes(self) -> int: ...

class _Forward:
    def __getitem__(self, floating: str) -> _Forward: ...
    def __call__(
        self,
        network: Network,
        x: _Array,
        h_0: _Array | None,
        c_0: _Array | None,
        output: _Array,
        h_n: _Array,
        c_n: _Array,
        lengths: _Array | None,
        resets: _Array | None,
        threads: int,
        limit: int,
        tape: Tape | None = None,
    ) -> None: ...

forward: _Forward

def step(
    network: Network, x: Any, state: tuple[Any, ...], dtype: Any, batch_first: bool, threads: int, limit: int
) -> tuple[_Array, tuple[_Array, _Array]] | None: ...

_Rows = list[tuple[_Array | None, ...]]  # weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole, h_0, c_0

@final
class Transposed:
    def __new__(cls, network: Network, layers: _Rows) -> Transposed: ...

@final
class Tape:
    nbytes: int
    def __new__(
        cls,
        network: Network,
        T: int,
        B: int,
        lengths: _Array | None,
        h_0: _Array | None,
        c_0: _Array | None,
        dropout: float = 0,
        seed: int = 0,
    ) -> Tape: ...
    def read(self, record: int, what: str, to: _Array) -> None: ...
    def content(self) -> bytes: ...
    def restore(self, content: bytes) -> None: ...

def new_array(shape: tuple[int, ...], dtype: Any, lent_from: float = 4 << 20) -> _Array: ...
def block_steps(B: int) -> int: ...

class _Drop:
    def __getitem__(self, floating: str) -> _Drop: ...
    def __call__(self, values: _Array, p: float, seed: int, layer: int) -> None: ...

drop: _Drop

class _Add:
    def __getitem__(self, floating: str) -> _Add: ...
    def __call__(self, network: Network, total: _Array, values: _Array) -> None: ...

add: _Add

class _Backward:
    def __getitem__(self, floating: str) -> _Backward: ...
    def __call__(
        self,
        transposed: Transposed,
        tape: Tape,
        d_output: _Array | None,
        d_h_n: _Array | None,
        d_c_n: _Array | None,
        resets: _Array | None,
        steps: int,
        first_step: int,
        d_x: _Array | None,
        d_h_0: _Array,
        d_c_0: _Array,
        gradients: list[tuple[_Array | None, ...]],  # weight_ih, weight_hh, bias, weight_hr, weight_peephole, h_0, c_0
        adds: bool,
        threads: int,
        limit: int,
    ) -> None: ...

backward: _Backward

@final
class StreamState:
    current: int
    def __new__(
        cls, network: Network, batch_size: int, h: tuple[_Array, _Array], c: tuple[_Array, _Array], threads: int
    ) -> StreamState: ...
    def step(self, x: _Array, output: _Array, threads: int, limit: int) -> bool: ...
    def check_idle(self) -> None: ...
    def take_back(self, current: int) -> None: ...
