"""The typed boundary between Python and the kernels: packed weights, calls, threads. No arithmetic.

Checks that talk to the user are in lstm.py; sizes are checked once more here before a pointer leaves.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cython cimport floating
from cython.parallel cimport parallel, threadid
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport strcmp


cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define FL_OPENMP _OPENMP
    #else
    static int omp_get_num_threads(void) { return 1; }
    #define FL_OPENMP 0
    #endif
    #if defined(__clang__)
    #define FL_COMPILER "clang " __clang_version__
    #else
    #define FL_COMPILER "gcc " __VERSION__
    #endif
    """
    int omp_get_num_threads() noexcept nogil
    const int FL_OPENMP
    const char *FL_COMPILER


cdef extern from "fastlstm.h" nogil:
    ctypedef Py_ssize_t fl_index

    ctypedef struct fl_kernels:
        fl_index item, V

    ctypedef struct fl_isa:
        const char *name
        int available
        const fl_kernels *f32
        const fl_kernels *f64

    ctypedef struct fl_network:
        const fl_kernels *kernels
        fl_index I, H, P, L, D
        int has_projection
        fl_index item, V, blocks, projected_blocks

    ctypedef struct fl_layer_weights:
        const void *weight_ih
        const void *weight_hh
        const void *bias_ih
        const void *bias_hh
        const void *weight_hr

    ctypedef struct fl_plan:
        int threads, directions, row_groups, unit_groups
        fl_index chunk, stride
        int blocks_at_once
        int64_t patience_ns

    ctypedef struct fl_array:
        char *data
        fl_index strides[3]

    ctypedef struct fl_call:
        const fl_network *net
        fl_index T, B
        fl_array x, output
        const char *h_0
        const char *c_0
        char *h_n
        char *c_n
        const int64_t *lengths
        const uint8_t *resets
        fl_index resets_strides[2]
        int (*poll)(void *) noexcept nogil
        void *poll_context
        fl_plan plan
        int64_t begun_ns

    const fl_isa *fl_isas()
    int fl_pack(fl_network *net, const fl_layer_weights *weights)
    void fl_unpack(fl_network *net)
    fl_plan fl_make_plan(const fl_network *net, fl_index T, fl_index B, int threads)
    int fl_prepare(fl_call *call)
    void fl_forward(fl_call *call, int thread)
    void fl_joined(const fl_call *call)
    void fl_release(fl_call *call)
    fl_index fl_ceil_div(fl_index a, fl_index b)
    const int FL_VECTORS


cdef extern from "claim.h" nogil:
    int fl_claim_threads(int wanted, int limit)
    void fl_return_threads(int threads)


# ---- Instruction sets ----------------------------------------------------------------------------------------------------------

cdef const fl_isa *chosen_isa = NULL


def available_isas():
    """Names of the instruction sets this machine runs, from worst to best."""
    cdef const fl_isa *isa = fl_isas()
    names = []
    while isa.name != NULL:
        if isa.available:
            names.append(isa.name.decode())
        isa += 1
    return tuple(names)


def choose_isa(str name not None):
    """Use this instruction set for networks made from now on; called once, at import."""
    global chosen_isa
    cdef const fl_isa *isa = fl_isas()
    cdef bytes wanted = name.encode()
    while isa.name != NULL:
        if isa.available and strcmp(isa.name, wanted) == 0:
            chosen_isa = isa
            return
        isa += 1
    raise ValueError(name)


def build_info():
    """What this module was built with."""
    return {"compiler": FL_COMPILER.decode(), "openmp": str(FL_OPENMP) if FL_OPENMP else "no"}


# ---- Packed weights ------------------------------------------------------------------------------------------------------------

@cython.final
cdef class Network:
    """Packed weights; nothing changes them after they are made.

    Parameters
    ----------
    layers : list of (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
        For each layer and direction: flat, C-contiguous arrays of bytes (uint8), or None where the network has none.
    item : 4 for float32, 8 for float64
    """

    cdef fl_network net

    def __cinit__(self, list layers not None, int item, Py_ssize_t input_size, Py_ssize_t hidden_size, Py_ssize_t num_layers,
                  Py_ssize_t num_directions, Py_ssize_t proj_size):
        cdef fl_network *net = &self.net
        cdef Py_ssize_t index, inputs, rows = 4 * hidden_size * item
        cdef fl_layer_weights *weights
        cdef int status

        if len(layers) != num_layers * num_directions:
            raise ValueError("layers: one record for each layer and direction")
        net.kernels = chosen_isa.f32 if item == 4 else chosen_isa.f64
        net.I, net.H, net.P = input_size, hidden_size, proj_size or hidden_size
        net.L, net.D = num_layers, num_directions
        net.has_projection = proj_size > 0
        net.item, net.V = net.kernels.item, net.kernels.V
        net.blocks = fl_ceil_div(net.H, net.V)
        net.projected_blocks = fl_ceil_div(proj_size, FL_VECTORS * net.V) if proj_size else 0

        weights = <fl_layer_weights *>calloc(len(layers), sizeof(fl_layer_weights))
        if weights == NULL:
            raise MemoryError("packed weights")
        try:
            for index, (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) in enumerate(layers):
                inputs = net.I if index < net.D else net.D * net.P
                weights[index].weight_ih = bytes_of(weight_ih, rows * inputs)
                weights[index].weight_hh = bytes_of(weight_hh, rows * net.P)
                weights[index].bias_ih = bytes_of(bias_ih, rows) if bias_ih is not None else NULL
                weights[index].bias_hh = bytes_of(bias_hh, rows) if bias_ih is not None else NULL
                weights[index].weight_hr = bytes_of(weight_hr, net.P * net.H * item) if proj_size else NULL
            with nogil:
                status = fl_pack(net, weights)
            if status:
                raise MemoryError("packed weights")
        finally:
            free(weights)

    def __dealloc__(self):
        fl_unpack(&self.net)


cdef const void *bytes_of(const uint8_t[::1] array, Py_ssize_t size) except NULL:
    """The first byte; `layers` keeps the array alive while it is read."""
    if array.shape[0] != size:
        raise ValueError(f"expected {size} bytes of weights, got {array.shape[0]}")
    return &array[0]


# ---- Threads -------------------------------------------------------------------------------------------------------------------

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() noexcept


cdef unsigned long main_thread = 0


def set_main_thread(unsigned long ident):
    """Calls made by this thread look for signals while they run."""
    global main_thread
    main_thread = ident


cdef class _Pending:
    """What a signal handler raised during a call."""
    cdef object error


cdef int poll(void *context) noexcept with gil:
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<_Pending>context).error = error
        return 1
    return 0


cdef int run_team(fl_call *call, int limit) except -1:
    """Run a call whose arrays are set: claim threads, plan, take scratch, open the one parallel region."""
    cdef int claimed = 0, team
    cdef int status = 0
    cdef _Pending pending = _Pending()

    call.poll = NULL
    if PyThread_get_thread_ident() == main_thread:  # only the main thread handles signals
        call.poll = poll
    call.poll_context = <void *>pending
    with nogil:
        if call.plan.threads > 1:
            claimed = fl_claim_threads(call.plan.threads, limit)
            if claimed < call.plan.threads:
                call.plan = fl_make_plan(call.net, call.T, call.B, claimed)
        status = fl_prepare(call)
        if status == 0:
            team = call.plan.threads
            if team == 1:
                fl_forward(call, 0)
            else:
                with parallel(num_threads=team):
                    if omp_get_num_threads() == team:
                        fl_forward(call, threadid())
                if call.begun_ns:
                    fl_joined(call)
                else:  # the runtime gave fewer threads than were asked for
                    fl_release(call)
                    call.plan = fl_make_plan(call.net, call.T, call.B, 1)
                    status = fl_prepare(call)
                    if status == 0:
                        fl_forward(call, 0)
            fl_release(call)
        if claimed:
            fl_return_threads(claimed)
    if status:
        raise MemoryError("scratch memory of an LSTM call")
    if pending.error is not None:
        raise pending.error
    return 0


def plan(Network network not None, Py_ssize_t T, Py_ssize_t B, int threads):
    """How a call of this size would be divided."""
    return fl_make_plan(&network.net, T, B, threads)


# ---- Whole sequences -----------------------------------------------------------------------------------------------------------

def forward(
    Network network not None,
    const floating[:, :, :] x not None,
    const floating[:, :, ::1] h_0,
    const floating[:, :, ::1] c_0,
    floating[:, :, :] output not None,
    floating[:, :, ::1] h_n not None,
    floating[:, :, ::1] c_n not None,
    const int64_t[::1] lengths,
    const uint8_t[:, :] resets,
    int threads,
    int limit,
):
    """Run a network; shapes as fl_call has them in fastlstm.h. States may be None.

    `threads` is the most that may be used; `limit` the processors that all calls of the process share, 0 for no limit.
    """
    cdef const fl_network *net = &network.net
    cdef fl_call call
    cdef Py_ssize_t T = x.shape[0], B = x.shape[1], states = net.L * net.D

    if (sizeof(floating) != net.item or x.shape[2] != net.I
            or output.shape[0] != T or output.shape[1] != B or output.shape[2] != net.D * net.P
            or h_n.shape[0] != states or h_n.shape[1] != B or h_n.shape[2] != net.P
            or c_n.shape[0] != states or c_n.shape[1] != B or c_n.shape[2] != net.H
            or (h_0 is not None and (h_0.shape[0] != states or h_0.shape[1] != B or h_0.shape[2] != net.P))
            or (c_0 is not None and (c_0.shape[0] != states or c_0.shape[1] != B or c_0.shape[2] != net.H))
            or (lengths is not None and lengths.shape[0] != B)
            or (resets is not None and (resets.shape[0] != T or resets.shape[1] != B))
            or (net.I > 1 and T > 0 and B > 0 and x.strides[2] != net.item)
            or (net.D * net.P > 1 and T > 0 and B > 0 and output.strides[2] != net.item)):
        raise ValueError("shapes or strides that lstm.py should have refused")

    call.net = net
    call.T, call.B = T, B
    call.x.data = <char *>&x[0, 0, 0] if T and B else NULL
    call.x.strides[0], call.x.strides[1], call.x.strides[2] = x.strides[0], x.strides[1], net.item
    call.output.data = <char *>&output[0, 0, 0] if T and B else NULL
    call.output.strides[0], call.output.strides[1], call.output.strides[2] = output.strides[0], output.strides[1], net.item
    call.h_0 = <const char *>&h_0[0, 0, 0] if h_0 is not None and B else NULL
    call.c_0 = <const char *>&c_0[0, 0, 0] if c_0 is not None and B else NULL
    call.h_n = <char *>&h_n[0, 0, 0] if B else NULL
    call.c_n = <char *>&c_n[0, 0, 0] if B else NULL
    call.lengths = &lengths[0] if lengths is not None and B else NULL
    call.resets = NULL
    if resets is not None and T and B:
        call.resets = &resets[0, 0]
        call.resets_strides[0], call.resets_strides[1] = resets.strides[0], resets.strides[1]
    call.plan = fl_make_plan(net, T, B, threads)
    run_team(&call, limit)


# ---- Streams -------------------------------------------------------------------------------------------------------------------

@cython.final
cdef class StreamState:
    """A prepared call of one step, with the state it carries: nothing is allocated from step to step.

    `h` and `c` are pairs of arrays of bytes, the state before a step and after it; they change places at every step.
    """

    cdef Network network
    cdef fl_call call
    cdef Py_ssize_t B
    cdef int threads
    cdef bint prepared, busy
    cdef tuple owners  # of the memory behind `state`
    cdef char *state[4]  # h, h, c, c
    cdef readonly int current  # which of each pair holds the state now

    def __cinit__(self, Network network not None, Py_ssize_t batch_size, tuple h not None, tuple c not None, int threads):
        cdef fl_network *net = &network.net
        cdef Py_ssize_t rows = net.L * net.D * batch_size
        cdef uint8_t[::1] view
        self.network, self.B, self.threads = network, batch_size, threads
        self.owners = (h, c)
        for i, pair, size in ((0, h, rows * net.P * net.item), (2, c, rows * net.H * net.item)):
            for k in range(2):
                view = pair[k]
                if view.shape[0] != size:
                    raise ValueError("state of the wrong size")
                self.state[i + k] = <char *>&view[0] if size else NULL
        self.call.net = net
        self.call.T, self.call.B = 1, batch_size
        self.call.plan = fl_make_plan(net, 1, batch_size, threads)
        if self.call.plan.threads == 1:
            if fl_prepare(&self.call):
                raise MemoryError("scratch memory of an LSTM stream")
            self.prepared = True

    def __dealloc__(self):
        if self.prepared:
            fl_release(&self.call)

    def step(self, x not None, output not None, int limit):
        """One step; False if `x` is not exactly a float array of shape (B, I) (or (I,)) that can be read in place."""
        cdef Py_buffer source, target
        cdef fl_network *net = &self.network.net
        if self.busy:
            raise RuntimeError("this stream is in use by another thread")
        PyObject_GetBuffer(x, &source, PyBUF_STRIDES | PyBUF_FORMAT)
        try:
            if not fits(&source, net.item, self.B, net.I):
                return False
            PyObject_GetBuffer(output, &target, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)
            try:
                if not fits(&target, net.item, self.B, net.D * net.P):
                    raise ValueError("output that stream.py should have made")
                self.run(&source, &target, limit)
            finally:
                PyBuffer_Release(&target)
        finally:
            PyBuffer_Release(&source)
        return True

    cdef int run(self, Py_buffer *source, Py_buffer *target, int limit) except -1:
        cdef fl_call *call = &self.call
        cdef int before = self.current
        call.x.data, call.output.data = <char *>source.buf, <char *>target.buf
        call.x.strides[0] = call.output.strides[0] = 0
        call.x.strides[1] = source.strides[0] if source.ndim == 2 else 0
        call.output.strides[1] = target.strides[0] if target.ndim == 2 else 0
        call.h_0, call.h_n = self.state[before], self.state[1 - before]
        call.c_0, call.c_n = self.state[2 + before], self.state[3 - before]
        self.busy = True
        try:
            if self.prepared:
                with nogil:
                    fl_forward(call, 0)
            else:
                call.plan = fl_make_plan(call.net, 1, self.B, self.threads)
                run_team(call, limit)
        finally:
            self.busy = False
        self.current = 1 - before
        return 0


cdef bint fits(const Py_buffer *view, Py_ssize_t item, Py_ssize_t rows, Py_ssize_t columns) noexcept:
    """A (rows, columns) array of native floats, aligned, contiguous along its last axis; or (columns,) where rows is 1."""
    if view.itemsize != item or view.format == NULL or view.format[0] != (c'f' if item == 4 else c'd') or view.format[1] != 0:
        return False
    if view.ndim == 2:
        if view.shape[0] != rows or view.shape[1] != columns or (rows > 1 and view.strides[0] % item):
            return False
    elif view.ndim != 1 or rows != 1 or view.shape[0] != columns:
        return False
    return (columns == 1 or view.strides[view.ndim - 1] == item) and <Py_ssize_t>view.buf % item == 0
