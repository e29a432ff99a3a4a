"""An interpreter of pickles as data: the opcodes that build plain values, and no others.

Python's own ``Unpickler`` imports what a pickle names and trusts the sizes it declares. Here a name is looked up in
``values.py``, and every opcode is charged to a budget before memory is taken.

References
----------
The opcodes are documented in the standard library's ``pickletools``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.torch.values import FUNCTIONS, INERT, NAMES, OBJECTS, RESAVE, Global, Storage, set_item, unsupported

__all__ = ["Budget", "Unpickler"]

# Bytes a value costs, rounded up: its object, the slots that refer to it, and the walk over it that follows
COST_OPCODE = 16
COST_CONTAINER = 300
COST_NUMBER = 40
COST_TEXT = 64
COST_ITEM = 120  # of a dictionary or the memo

MAX_OPCODES = 10_000_000  # some seconds; ordinary checkpoints have fewer than a million
MAX_LINE = 1000  # of a dotted name
MAX_INTEGER = 255  # bytes


@dataclass
class Budget:
    """What the values of one file may still cost; shared by its pickles."""

    remaining: int
    opcodes: int = MAX_OPCODES

    def charge(self, cost: int) -> None:
        self.remaining -= cost
        if self.remaining < 0:
            raise FormatError(f"the pickle takes more memory than a file of this size may: {RESAVE}")

    def count(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise FormatError(f"the pickle has more than {MAX_OPCODES} opcodes: {RESAVE}")
        self.charge(COST_OPCODE)


class Unpickler:
    """Reads one value after another.

    Parameters
    ----------
    stream : binary file
        Read from its position on; after :meth:`load` it stands behind the pickle.
    size : int
        The position at which the stream ends.
    budget : Budget
    storage : function (persistent id) -> Storage
        Called for what torch writes in place of a storage.
    """

    def __init__(self, stream: BinaryIO, size: int, budget: Budget, storage: Callable[[Any], Storage]) -> None:
        self.stream = stream
        self.size = size
        self.budget = budget
        self.storage = storage

    def load(self) -> Any:
        """Return the next value.

        Raises
        ------
        FormatError
            If the pickle is broken, uses an opcode or a name that is not listed, or costs more than its budget.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        try:
            while (opcode := self.stream.read(1)) != b".":
                if opcode not in ACTIONS:
                    raise self._unknown(opcode)
                self.budget.count()
                ACTIONS[opcode](self)
            if len(self.stack) != 1 or self.marks:
                raise FormatError(f"broken pickle: it ends with {len(self.stack)} values, not one")
            return self.stack[0]
        except FormatError:
            raise
        except (LookupError, ValueError, TypeError, OverflowError, struct.error) as error:
            # A stack that ran empty, text that is not UTF-8, arguments of a wrong number or type
            raise FormatError(f"broken pickle before offset {self.stream.tell()}: {str(error)[:200]}") from None

    def _unknown(self, opcode: bytes) -> FormatError:
        if not opcode:
            return FormatError("truncated pickle: it ends before its last opcode")
        return FormatError(f"broken pickle: opcode {opcode!r} at offset {self.stream.tell() - 1} is none that torch.save writes")

    def read(self, length: int) -> bytes:
        if length > 255:  # asked before memory is taken; a shorter read that falls short costs nothing
            left = self.size - self.stream.tell()
            if length > left:
                raise FormatError(f"truncated pickle: {length} bytes declared, {left} are left")
        data = self.stream.read(length)
        if len(data) != length:
            raise FormatError(f"truncated pickle: {length} bytes declared, {len(data)} are left")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.read(struct.calcsize(code)))[0]

    def line(self) -> str:
        line = self.stream.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise FormatError(f"broken pickle: a name without an end in {MAX_LINE} bytes")
        return line[:-1].decode()

    def push(self, value: Any, cost: int = COST_NUMBER) -> None:
        self.budget.charge(cost)
        self.stack.append(value)

    # Values

    def integer(self, length: int) -> None:
        if not 0 <= length <= MAX_INTEGER:
            raise FormatError(f"broken pickle: an integer of {length} bytes")
        self.push(int.from_bytes(self.read(length), "little", signed=True), COST_NUMBER + length)

    def text(self, length: int) -> None:
        data = self.read(length)
        # One character above U+FFFF makes each of the others take four bytes
        self.budget.charge(COST_TEXT + length * (1 if data.isascii() else 4))
        self.stack.append(data.decode("utf-8", "surrogatepass"))

    def octets(self, length: int) -> None:
        self.push(self.read(length), COST_TEXT + length)

    def string(self, length: int) -> None:
        """A ``str`` of Python 2: text in names, anything elsewhere."""
        self.octets(length)
        if self.stack[-1].isascii():
            self.stack[-1] = self.stack[-1].decode()

    def pack(self, length: int) -> None:
        start = len(self.stack) - length
        if start < (self.marks[-1] if self.marks else 0):
            raise FormatError(f"broken pickle: a tuple of {length} values where there are fewer")
        self.budget.charge(COST_CONTAINER + 8 * length)
        self.stack[start:] = [tuple(self.stack[start:])]

    def above_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise FormatError(f"broken pickle: values appended to {type(target).__name__}")
        self.budget.charge(COST_OPCODE * len(items))
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2 or not (type(target) is dict or target is INERT):
            raise FormatError(f"broken pickle: {len(items)} keys and values set in {type(target).__name__}")
        self.budget.charge(COST_ITEM * (len(items) // 2))
        if type(target) is dict:
            for index in range(0, len(items), 2):
                set_item(target, items[index], items[index + 1])

    def put(self, index: int) -> None:
        self.budget.charge(COST_ITEM)
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise FormatError(f"broken pickle: it refers to value {index} of the memo, which was not put there")
        self.stack.append(self.memo[index])

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()  # as in Python, a mark on top of the stack is what is popped
        else:
            self.stack.pop()

    # Names

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_LINE:
            raise FormatError("broken pickle: a global whose name is no short text")
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # protocol 2 keeps Python 2's spelling
        if full not in FUNCTIONS and full not in OBJECTS and full not in NAMES:
            raise unsupported(full)
        self.push(Global(full), COST_CONTAINER)

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise FormatError(f"broken pickle: a call of {type(function).__name__}")
        if function.name not in FUNCTIONS:
            raise unsupported(function.name)
        first = args[0] if args else None
        copied = len(first) * COST_ITEM if isinstance(first, (list, tuple)) else len(first) if isinstance(first, str) else 0
        self.budget.charge(COST_CONTAINER + copied)
        try:
            self.stack.append(FUNCTIONS[function.name](*args))
        except TypeError:
            raise FormatError(f"broken pickle: {quoted(function.name)} with {len(args)} arguments or of a wrong type") from None

    def new_object(self) -> None:
        self.stack.pop()
        kind = self.stack.pop()
        if not isinstance(kind, Global) or kind.name not in OBJECTS:
            raise unsupported(kind.name) if isinstance(kind, Global) else FormatError("broken pickle: an object of no class")
        self.stack.append(INERT)

    def build(self) -> None:
        """Attributes of an OrderedDict (torch's ``_metadata``, module versions) or of a blank: not needed."""
        self.stack.pop()
        target = self.stack[-1]
        if type(target) is not dict and target is not INERT:
            raise FormatError(f"broken pickle: attributes set on {type(target).__name__}")

    def persistent(self) -> None:
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise FormatError(f"broken pickle: a persistent id that names no storage; {RESAVE}")
        self.push(self.storage(identity), COST_CONTAINER)

    def protocol(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise FormatError(f"pickle protocol {version}, expected 2 to 5")


ACTIONS: dict[bytes, Callable[[Unpickler], Any]] = {
    b"\x80": lambda m: m.protocol(m.number("<B")),
    b"\x95": lambda m: m.number("<Q"),  # a frame: only a hint for buffering
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": Unpickler.pop,
    b"1": Unpickler.above_mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.integer(m.number("<B")),
    b"\x8b": lambda m: m.integer(m.number("<i")),
    b"G": lambda m: m.push(m.number(">d")),
    b"X": lambda m: m.text(m.number("<I")),
    b"\x8c": lambda m: m.text(m.number("<B")),
    b"\x8d": lambda m: m.text(m.number("<Q")),
    b"T": lambda m: m.string(m.number("<I")),
    b"U": lambda m: m.string(m.number("<B")),
    b"B": lambda m: m.octets(m.number("<I")),
    b"C": lambda m: m.octets(m.number("<B")),
    b"\x8e": lambda m: m.octets(m.number("<Q")),
    b"\x96": lambda m: m.octets(m.number("<Q")),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.pack(1),
    b"\x86": lambda m: m.pack(2),
    b"\x87": lambda m: m.pack(3),
    b"t": lambda m: m.push(tuple(m.above_mark()), COST_CONTAINER),
    b"]": lambda m: m.push([], COST_CONTAINER),
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"e": lambda m: m.extend(m.above_mark()),
    # Sets are kept as lists: nothing here needs the hashes of their members
    b"\x8f": lambda m: m.push([], COST_CONTAINER),
    b"\x90": lambda m: m.extend(m.above_mark()),
    b"\x91": lambda m: m.push(m.above_mark(), COST_CONTAINER),
    b"}": lambda m: m.push({}, COST_CONTAINER),
    b"s": lambda m: m.update([m.stack.pop(-2), m.stack.pop()]),
    b"u": lambda m: m.update(m.above_mark()),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": lambda m: m.name(m.stack.pop(-2), m.stack.pop()),
    b"R": Unpickler.call,
    b"\x81": Unpickler.new_object,
    b"b": Unpickler.build,
    b"Q": Unpickler.persistent,
}
