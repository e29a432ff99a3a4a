from typing import Any

Array = Any

def available_isas() -> tuple[str, ...]: ...
def choose_isa(name: str) -> None: ...
def build_info() -> dict[str, str]: ...
def set_main_thread(ident: int | None) -> None: ...
def plan(network: Network, T: int, B: int, threads: int) -> dict[str, int]: ...

class Network:
    def __init__(
        self,
        layers: list[tuple[Array, Array, Array | None, Array | None, Array | None]],
        item: int,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_directions: int,
        proj_size: int,
    ) -> None: ...

class _Forward:
    def __getitem__(self, floating: str) -> _Forward: ...
    def __call__(
        self,
        network: Network,
        x: Array,
        h_0: Array | None,
        c_0: Array | None,
        output: Array,
        h_n: Array,
        c_n: Array,
        lengths: Array | None,
        resets: Array | None,
        threads: int,
        limit: int,
    ) -> None: ...

forward: _Forward

class StreamState:
    current: int
    def __init__(
        self, network: Network, batch_size: int, h: tuple[Array, Array], c: tuple[Array, Array], threads: int
    ) -> None: ...
    def step(self, x: Array, output: Array, limit: int) -> bool: ...
