"""What an HDF5 file on standard input holds, as JSON on standard output. Run as a script of its own by ``hdf5.py``.

HDF5's library crashes on some broken files and loops on others, and follows what a file names into other files. So it is used
only here, in a process that has its limits and can be killed, and only to say where things are: numbers are not read.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

# Bytes that there are always, beside what the interpreter and h5py have: 6,000 objects in 1 MB take 10 MB, 48,000 in 10 MB 17
LEAST_MEMORY = 16 << 20
CACHE = 1 << 19  # bytes, HDF5's for what describes the file; by default it grows to 32 MB, and half of this takes twice the time
# Of processor time: a file of 50 kB takes 10 ms, 20,000 objects in 20 MB take 3 s; 4,000 in 1.3 MB 1.5 s on a slow, shared core
SECONDS, SECONDS_PER_BYTE, MOST_SECONDS = 0.7, 2e-6, 10
MAX_OBJECTS = 50_000
MAX_PATH = 1000  # characters
WANTED = ("name", "dtype", "keras_version", "model_config", "layer_names", "weight_names")  # the last two also with a number


class Refused(Exception):
    """The file does what no Keras file does."""


def main() -> None:
    request = json.loads(sys.argv[1])
    answer: dict[str, Any]
    sys.path[:] = request["path"]
    try:
        import h5py
    except ImportError as error:
        answer = {"missing": str(error)[:200]}
    else:
        rehearse(h5py)
        confine(request["memory"])
        try:
            with os.fdopen(0, "rb", closefd=False) as stream:
                entries = listing(h5py, stream, request["limit"])
        except Refused as error:
            answer = {"refused": str(error)}
        except MemoryError:
            answer = {"refused": "to list it takes more memory than there is for a file of this size"}
        except Exception as error:  # whatever h5py makes of HDF5's errors
            answer = {"broken": f"{type(error).__name__}: {str(error)[:300]}"}
        else:
            sys.stdout.write('{"entries": [')
            for index, entry in enumerate(entries):
                sys.stdout.write(f", {entry}" if index else entry)
            sys.stdout.write("]}")
            return
    sys.stdout.write(json.dumps(answer))


def rehearse(h5py: Any) -> None:
    """List a file of our own, so that whatever h5py imports only when it is needed is here before no more files can be opened."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_group("group").attrs["name"] = "text"
        file.attrs["layer_names"] = [b"bytes"]
        file["dataset"] = [1.5]
    listing(h5py, stream, MAX_PATH)


def confine(memory: int) -> None:
    """From here on: ``memory`` bytes in all and a bounded time, no other files, no other processes."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limits = {"RLIMIT_CPU": int(used) + MOST_SECONDS, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as statm:
            mapped, resident = (int(pages) * resource.getpagesize() for pages in statm.read().split()[:2])
        limits["RLIMIT_AS"] = mapped + max(memory - resident, LEAST_MEMORY)
    limits["RLIMIT_NOFILE"] = 0  # what is open stays open
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends the process
    signal.setitimer(signal.ITIMER_PROF, min(MOST_SECONDS, SECONDS + SECONDS_PER_BYTE * os.fstat(0).st_size))
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def listing(h5py: Any, stream: BinaryIO, limit: int) -> list[str]:
    """Of each group path and attributes; of each dataset also shape, dtype, offset (None if it is in pieces) and bytes; as JSON.

    A group is open for as long as what is in it is looked at, and no others: HDF5 takes kilobytes for each. By
    h5py's identifiers: its objects, made for each, would take more than half as long again.
    """
    entries: list[str] = []
    room = limit

    def add(*entry: Any) -> None:
        nonlocal room
        entries.append(json.dumps(entry))
        room -= len(entries[-1]) + 2
        if room < 0:
            raise Refused(f"a description of more than {limit} bytes")

    seen = set()
    with h5py.File(stream, "r") as file:
        cache = file.id.get_mdc_config()
        cache.initial_size = cache.min_size = cache.max_size = CACHE
        file.id.set_mdc_config(cache)
        root = h5py.h5g.open(file.id, b"/")
        add("", attributes(h5py, root, ""))
        waiting = [("", root, iter(root))]
        while waiting:
            outer, group, names = waiting[-1]
            name = next(names, None)
            if name is None:
                waiting.pop()
                continue
            path = name.decode("utf-8", "surrogateescape")
            if outer:
                path = f"{outer}/{path}"
            if len(path) > MAX_PATH or len(entries) >= MAX_OBJECTS:
                raise Refused(f"more than {MAX_OBJECTS} objects, or a name of more than {MAX_PATH} characters")
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise Refused(f"{path[:100]!a} is a link to another place, perhaps in another file")
            item = h5py.h5o.open(group, name)
            address = h5py.h5o.get_info(item).addr
            if address in seen:
                raise Refused(f"{path[:100]!a} is another name of an object, or a circle")
            seen.add(address)
            if isinstance(item, h5py.h5d.DatasetID):
                add(path, attributes(h5py, item, path), *dataset(h5py, item, path))
            elif isinstance(item, h5py.h5g.GroupID):
                add(path, attributes(h5py, item, path))
                waiting.append((path, item, iter(item)))
    return entries


def dataset(h5py: Any, item: Any, path: str) -> tuple[Any, ...]:
    created = item.get_create_plist()
    if created.get_external_count() or created.get_layout() == h5py.h5d.VIRTUAL:
        raise Refused(f"the data of {path[:100]!a} lie in other files or datasets")
    offset = item.get_offset() if created.get_layout() == h5py.h5d.CONTIGUOUS else None
    try:
        dtype = item.dtype.str
    except TypeError:
        dtype = "of a kind that NumPy lacks"
    return item.shape, dtype, offset, item.get_storage_size()


def attributes(h5py: Any, item: Any, path: str) -> dict[str, list[str]]:
    """The attributes that matter, each as a list of texts."""
    found: dict[str, list[str]] = {}
    if not h5py.h5a.get_num_attrs(item):
        return found
    kind = h5py.Dataset if isinstance(item, h5py.h5d.DatasetID) else h5py.Group
    all_of_them = kind(item).attrs
    for key in all_of_them:
        if key.rstrip("0123456789") in WANTED:
            value = all_of_them[key]
            values = value.tolist() if hasattr(value, "tolist") else value
            values = values if isinstance(values, list) else [values]
            if not all(isinstance(text, (bytes, str)) for text in values):
                raise Refused(f"attribute {key[:100]!a} of {path[:100]!a} is no text")
            found[key] = [text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text for text in values]
    return found


if __name__ == "__main__":
    main()
