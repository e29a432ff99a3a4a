"""What puts several results of Keras' layers together, and what it does with their masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from fastlstm.errors import FormatError
from fastlstm.loaders.keras.config import is_operation, shown
from fastlstm.loaders.keras.draft import Draft, Layer, Shape, Value, with_batch

__all__ = ["concatenate", "either", "last_axis", "merge"]

DIFFERS = Value("", problem="it is made of several, which Keras 2 does otherwise than Keras 3")


def merge(operation: str) -> Callable[[Draft, Layer], Value]:
    def make(draft: Draft, layer: Layer) -> Value:
        from fastlstm.models.layers import Merge

        layer.check_keys()
        if layer.constants:
            raise FormatError(f"it is called with {shown(layer.constants[0])}, and only results of layers go together here")
        shapes = {value.shape for value in layer.inputs}
        if len(shapes) != 1:
            raise FormatError(f"it takes {_listing(shapes)}, and only what has the same shape goes together here")
        if len(layer.inputs) < 2 or (operation == "subtract" and len(layer.inputs) > 2):
            # Of one alone Keras' operation Average is the mean
            raise FormatError(f"it is called with {len(layer.inputs)} values, not two")
        masked = any(value.mask for value in layer.inputs) and not is_operation(layer.entry)
        if masked and operation in ("multiply", "maximum", "minimum"):
            raise FormatError("this layer looks at masks, which is not supported")
        mask = _mask_of_sum(draft, layer)
        return draft.add(Merge, layer.name, layer.inputs, layer.inputs[0].shape, mask, operation=operation)

    return make


def concatenate(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import Concatenate

    layer.check_keys("axis")
    shapes, axis = [value.shape for value in layer.inputs], layer.config.get("axis", -1)
    axes = len(shapes[0])
    if not isinstance(axis, int) or isinstance(axis, bool) or not (1 <= axis <= axes or -axes <= axis <= -1):
        raise FormatError(f"its axis must be one of its input's, without the batch, got {shown(axis)}")
    axis = axis if axis < 0 else axis - axes - 1
    others = {(*shape[: axis + len(shape)], *shape[axis + len(shape) + 1 :]) for shape in shapes}
    if len({len(shape) for shape in shapes}) > 1 or len(others) > 1 or layer.constants:
        raise FormatError(f"it takes {_listing(shapes)}, which do not fit side by side")
    sizes = [shape[axis] for shape in shapes]
    size = None if None in sizes else sum(size for size in sizes if size is not None)
    shape = tuple(size if index == axis + axes else other for index, other in enumerate(shapes[0]))
    mask = _mask_side_by_side(draft, layer, axis)
    return draft.add(Concatenate, layer.name, layer.inputs, shape, mask, axis=axis)


def _listing(shapes: Iterable[Shape]) -> str:
    return f"{' and '.join(sorted(str(with_batch(shape)) for shape in shapes)):.200}"


def _same_mask(a: Value | None, b: Value | None) -> bool:
    """Whether two masks are equal; a mask may have one itself, and so on for as many layers as a file likes."""
    while a is not b:
        if a is None or b is None or replace(a, mask=None) != replace(b, mask=None):
            return False
        a, b = a.mask, b.mask
    return True


def _mask_of_sum(draft: Draft, layer: Layer) -> Value | None:
    """None if any input has none, else a step counts that is real in any of them."""
    masks = [value.mask for value in layer.inputs if value.mask]
    if not masks or all(_same_mask(value.mask, masks[0]) for value in layer.inputs):
        return masks[0] if masks else None
    if draft.version != 3:
        return DIFFERS
    if len(masks) < len(layer.inputs):
        return None
    result = masks[0]
    for number, mask in enumerate(masks[1:], 1):
        result = either(draft, f"{layer.name}/mask{number}", result, mask)
    return result


def _mask_side_by_side(draft: Draft, layer: Layer, axis: int) -> Value | None:
    """The masks as wide as their inputs, side by side as these are; a step counts that is real in any feature."""
    from fastlstm.models.layers import AnyFeature, Concatenate, Everywhere

    first = layer.inputs[0].mask
    if all(value.mask is None for value in layer.inputs):
        return None
    if first and axis == -1 and all(_same_mask(value.mask, first) for value in layer.inputs):
        return first
    if draft.version != 3:
        return DIFFERS
    name, wide = f"{layer.name}/mask", []
    for number, value in enumerate(layer.inputs):
        each = draft.add(Everywhere, f"{name}_like{number}", [value], value.shape, value=value.mask is None)
        if value.mask and len(value.mask.shape) < len(value.shape):
            each = either(draft, f"{name}_wide{number}", last_axis(draft, f"{name}_axis{number}", value.mask), each)
        wide.append(value.mask if value.mask and len(value.mask.shape) == len(value.shape) else each)
    problem = next((value.problem for value in wide if value.problem), "")
    if problem:
        return Value("", problem=problem)
    together = draft.add(Concatenate, f"{name}_all", wide, wide[0].shape, axis=axis)
    return draft.add(AnyFeature, name, [together], wide[0].shape[:-1])


def either(draft: Draft, name: str, a: Value, b: Value) -> Value:
    """Of two masks that are the same, that one."""
    from fastlstm.models.layers import Either

    if a.problem or b.problem or (a.step, a.shape) == (b.step, b.shape):
        return b if b.problem else a
    pairs = list(zip(a.shape, b.shape, strict=False))
    if len(a.shape) != len(b.shape) or any(m != n and 1 not in (m, n) for m, n in pairs):
        raise FormatError(f"masks of the shapes {_listing([a.shape, b.shape])} do not go together")
    return draft.add(Either, name, [a, b], tuple(n if m == 1 else m for m, n in pairs))


def last_axis(draft: Draft, name: str, given: Value) -> Value:
    from fastlstm.models.layers import LastAxis

    return given if given.problem else draft.add(LastAxis, name, [given], (*given.shape, 1))
