"""The typed boundary between Python and the kernels: packed weights, calls, threads. No arithmetic.

Checks that talk to the user are in network.py and tape.py; sizes are checked once more here before a pointer leaves.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_CheckSignals
from cython cimport floating
from cython.parallel cimport parallel, threadid
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset, strcmp

from numpy import empty, ndarray


cdef extern from *:
    """
    #if defined __OPTIMIZE__ && !defined __clang__
    #pragma GCC optimize("O2") /* as fast as O3 here, and 60 KB less */
    #endif
    #ifdef _OPENMP
    #include <omp.h>
    #define FL_OPENMP _OPENMP
    #else
    static int omp_get_num_threads(void) { return 1; }
    static int omp_get_num_procs(void) { return 1; }
    #define FL_OPENMP 0
    #endif
    #if defined(__clang__)
    #define FL_COMPILER "clang " __clang_version__
    #else
    #define FL_COMPILER "gcc " __VERSION__
    #endif
    """
    int omp_get_num_threads() noexcept nogil
    int omp_get_num_procs() noexcept nogil
    const int FL_OPENMP
    const char *FL_COMPILER


cdef extern from "fastlstm.h" nogil:
    ctypedef Py_ssize_t fl_index

    ctypedef void fl_add(fl_index n, const void *a, void *out)

    ctypedef struct fl_kernels:
        fl_add *add

    ctypedef struct fl_isa:
        const char *name
        int available
        const fl_kernels *f32
        const fl_kernels *f64

    ctypedef struct fl_activation:
        int kind
        double alpha, beta

    ctypedef struct fl_variant:
        fl_activation gate, candidate, hidden
        int coupled
        double gate_clip, cell_clip, proj_clip

    ctypedef struct fl_layer:
        fl_index I
        void *peephole
        void *h_0
        void *c_0

    ctypedef struct fl_network:
        const fl_kernels *kernels
        fl_index I, H, P, L, D, C, gates
        int relu, has_projection, reverse
        fl_layer *layers
        fl_index item
        int kind
        size_t bytes

    ctypedef struct fl_layer_weights:
        const void *weight_ih
        const void *weight_hh
        const void *bias_ih
        const void *bias_hh
        const void *weight_hr
        const fl_variant *variant
        const void *weight_peephole
        const void *h_0
        const void *c_0

    ctypedef struct fl_plan:
        int threads, layer_groups, directions, row_groups, unit_groups
        fl_index chunk, stride
        int blocks_at_once
        int64_t expected_ns
        int64_t patience_ns

    ctypedef struct fl_array:
        char *data
        fl_index strides[2]

    ctypedef struct fl_watch:
        int (*poll)(void *) noexcept nogil
        void *context

    ctypedef struct fl_transposed:
        pass

    ctypedef struct fl_dropout:
        double p
        uint64_t seed

    ctypedef struct fl_tape:
        fl_index T, B, tokens
        void *memory
        fl_index bytes

    ctypedef struct fl_job

    ctypedef struct fl_job_type:
        fl_plan (*plan)(const fl_job *job, int threads, double meeting_price, int pace) noexcept nogil
        int (*prepare)(fl_job *job) noexcept nogil
        void (*work)(fl_job *job, int thread) noexcept nogil

    ctypedef struct fl_job:
        const fl_job_type *type
        fl_watch watch
        fl_plan plan
        int begun

    ctypedef struct fl_call:
        fl_job job
        const fl_network *net
        fl_index T, B
        fl_array x, output
        const char *h_0
        const char *c_0
        char *h_n
        char *c_n
        const int64_t *lengths
        fl_array resets
        fl_tape *tape

    ctypedef struct fl_layer_gradients:
        char *weight_ih
        char *weight_hh
        char *bias
        char *weight_hr
        char *weight_peephole
        char *h_0
        char *c_0

    ctypedef struct fl_backward_call:
        fl_job job
        const fl_network *net
        const fl_transposed *transposed
        fl_tape *tape
        fl_array d_output
        const char *d_h_n
        const char *d_c_n
        fl_array resets
        fl_index steps, first_step
        fl_array d_x
        char *d_h_0
        char *d_c_0
        const fl_layer_gradients *d_weights
        int adds

    const fl_isa *fl_isas()
    void fl_complete(fl_network *net)
    int fl_pack(fl_network *net, const fl_layer_weights *weights)
    void fl_unpack(fl_network *net)
    void fl_end_job(fl_job *job)
    void fl_learn(const fl_job *job)
    const fl_job_type fl_forward_job, fl_backward_job
    fl_plan fl_make_plan(const fl_network *net, fl_index T, fl_index B, int threads, double meeting_price, int pace)
    int fl_transpose(const fl_network *net, const fl_layer_weights *weights, fl_transposed *transposed)
    void fl_free_transposed(fl_transposed *transposed)
    int fl_make_tape(fl_tape *tape, const fl_network *net, fl_index T, fl_index B, const int64_t *lengths, const char *h_0,
                     const char *c_0, fl_dropout dropout)
    void fl_drop(const fl_dropout *dropout, fl_index layer, fl_index t, fl_index row, fl_index column, fl_index n, fl_index item,
                 void *values)
    const int FL_C, FL_H
    void fl_free_tape(fl_tape *tape)
    void fl_clear_unused(fl_tape *tape, const fl_network *net)
    void fl_read_tape(const fl_tape *tape, const fl_network *net, fl_index record, int what, char *to)
    fl_plan fl_make_backward_plan(const fl_network *net, fl_index T, fl_index B, int threads, double meeting_price, int pace)
    fl_index fl_block_steps(fl_index B)
    void *fl_borrow(size_t bytes)
    void fl_give_back(void *memory)
    const int FL_ACTIVATIONS
    const int FL_FULL, FL_FLOAT16, FL_BFLOAT16, FL_INT8


cdef extern from "claim.h" nogil:
    int fl_claim_threads(int wanted, int limit)
    void fl_return_threads(int threads)


cdef extern from "crowd.h" nogil:
    void fl_note_team(int64_t begun_ns, int64_t worked_ns)


cdef extern from "clock.h" nogil:
    int64_t fl_worked_ns()


cdef extern from "team.h" nogil:
    ctypedef struct fl_barrier:
        int64_t begun_ns

    void fl_open_barriers(fl_barrier *barriers, int count)
    void fl_join(fl_barrier *barrier, int size, int64_t patience_ns)


cdef extern from "float_state.h" nogil:
    uint64_t fl_enter_float_state()
    void fl_leave_float_state(uint64_t found)


cdef extern from "pace.h" nogil:
    const int FL_EVEN
    int fl_pace()


cdef extern from "meeting.h" nogil:
    double fl_meeting_price()
    bint fl_meeting_is_due()
    void fl_measure_meeting(fl_barrier *barrier, int size, int thread)


cdef extern from "waking.h" nogil:
    bint fl_workers_sleep()
    bint fl_is_worth_waking(int64_t gain_ns)
    void fl_wake_always(bint always)
    void fl_measure_waking(fl_barrier *barrier, int size, int thread)
    void fl_note_awake()


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

WEIGHTS = {None: FL_FULL, "float16": FL_FLOAT16, "bfloat16": FL_BFLOAT16, "int8": FL_INT8}


@cython.final
cdef class Network:
    """Packed weights; nothing changes them after they are made.

    Parameters
    ----------
    layers : list of (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole, h_0, c_0)
        For each layer and direction: flat, C-contiguous arrays of bytes (uint8), or None where the network has none.
    variants : list of None or (gate, candidate, hidden, coupled, gate_clip, cell_clip, proj_clip)
        Of the same records; None is PyTorch's cell. The first three are (kind, alpha, beta).
    item : 4 for float32, 8 for float64
    reverse : whether the one direction runs from the end to the beginning
    nonlinearity : None for an LSTM, "tanh" or "relu" for a plain RNN, whose state c has no columns
    weight_dtype : None, or "float16", "bfloat16", "int8": how matrices are kept whose float32 numbers that type can express
    """

    cdef fl_network net

    def __cinit__(self, list layers not None, list variants not None, int item, Py_ssize_t input_size, Py_ssize_t hidden_size,
                  Py_ssize_t num_layers, Py_ssize_t num_directions, Py_ssize_t proj_size, bint reverse, str nonlinearity=None,
                  str weight_dtype=None):
        cdef fl_network *net = &self.net
        cdef fl_layer_weights *weights
        cdef fl_variant *cells
        cdef Py_ssize_t index
        cdef int status

        if len(variants) != num_layers * num_directions or (reverse and num_directions > 1):
            raise ValueError("variants: one for each layer and direction")
        if nonlinearity not in (None, "tanh", "relu") or (nonlinearity is not None and proj_size):
            raise ValueError("a nonlinearity that weights.py should have refused")
        if weight_dtype not in WEIGHTS or (weight_dtype is not None and item != 4):
            raise ValueError("a weight_dtype that weights.py should have refused")
        net.kernels = chosen_isa.f32 if item == 4 else chosen_isa.f64
        net.kind = WEIGHTS[weight_dtype]
        net.I, net.H, net.P = input_size, hidden_size, proj_size or hidden_size
        net.L, net.D = num_layers, num_directions
        net.has_projection, net.reverse = proj_size > 0, reverse
        net.gates, net.relu = 4 if nonlinearity is None else 1, nonlinearity == "relu"
        fl_complete(net)

        cells = <fl_variant *>calloc(len(variants), sizeof(fl_variant))
        if cells == NULL:
            raise MemoryError("packed weights")
        weights = NULL
        try:
            weights = rows_of(net, layers)
            for index, variant in enumerate(variants):
                if variant is not None:
                    read_variant(&cells[index], variant)
                    weights[index].variant = &cells[index]
                elif weights[index].weight_peephole != NULL:
                    raise ValueError("peepholes without a variant")
            with nogil:
                status = fl_pack(net, weights)
            if status:
                raise MemoryError("packed weights")
        finally:
            free(weights)
            free(cells)

    def __dealloc__(self):
        fl_unpack(&self.net)

    @property
    def nbytes(self):
        """Bytes of packed weights."""
        return self.net.bytes


@cython.final
cdef class Transposed:
    """The same weights packed for gradients; `layers` as in :class:`Network`."""

    cdef fl_transposed weights

    def __cinit__(self, Network network not None, list layers not None):
        cdef fl_layer_weights *weights = rows_of(&network.net, layers)
        cdef int status
        try:
            with nogil:
                status = fl_transpose(&network.net, weights, &self.weights)
            if status:
                raise MemoryError("transposed weights")
        finally:
            free(weights)

    def __dealloc__(self):
        fl_free_transposed(&self.weights)


cdef fl_layer_weights *rows_of(const fl_network *net, list layers) except NULL:
    """Pointers to weights in PyTorch's rows, to be freed; `layers` keeps the arrays alive."""
    cdef Py_ssize_t index, inputs, rows = net.gates * net.H * net.item
    cdef fl_layer_weights *weights

    if len(layers) != net.L * net.D:
        raise ValueError("layers: one record for each layer and direction")
    weights = <fl_layer_weights *>calloc(len(layers), sizeof(fl_layer_weights))
    if weights == NULL:
        raise MemoryError("packed weights")
    try:
        for index, (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole, h_0, c_0) in enumerate(layers):
            inputs = net.I if index < net.D else net.D * net.P
            weights[index].weight_ih = bytes_of(weight_ih, rows * inputs)
            weights[index].weight_hh = bytes_of(weight_hh, rows * net.P)
            weights[index].bias_ih = bytes_of(bias_ih, rows) if bias_ih is not None else NULL
            weights[index].bias_hh = bytes_of(bias_hh, rows) if bias_ih is not None else NULL
            weights[index].weight_hr = bytes_of(weight_hr, net.P * net.H * net.item) if net.has_projection else NULL
            weights[index].weight_peephole = bytes_of(peephole, 3 * net.H * net.item) if peephole is not None else NULL
            weights[index].h_0 = bytes_of(h_0, net.P * net.item) if h_0 is not None else NULL
            weights[index].c_0 = bytes_of(c_0, net.H * net.item) if h_0 is not None else NULL
    except BaseException:
        free(weights)
        raise
    return weights


cdef int read_variant(fl_variant *cell, tuple variant) except -1:
    cdef int k
    for k in range(3):
        if not 0 <= variant[k][0] < FL_ACTIVATIONS:
            raise ValueError("an activation that cell.py should have refused")
    cell.gate.kind, cell.gate.alpha, cell.gate.beta = variant[0]
    cell.candidate.kind, cell.candidate.alpha, cell.candidate.beta = variant[1]
    cell.hidden.kind, cell.hidden.alpha, cell.hidden.beta = variant[2]
    cell.coupled, cell.gate_clip, cell.cell_clip, cell.proj_clip = variant[3:]
    return 0


cdef const void *bytes_of(const uint8_t[::1] array, Py_ssize_t size) except NULL:
    """The first byte; `layers` keeps the array alive while it is read."""
    if array.shape[0] != size:
        raise ValueError(f"expected {size} bytes of weights, got {array.shape[0]}")
    return &array[0]


def same_arrays(list ours not None, list theirs not None):
    """Whether the arrays of two lists, C-contiguous all, have the same shapes and bytes; at the speed of memory."""
    cdef Py_buffer a, b
    cdef bint same = len(ours) == len(theirs)
    cdef int k
    for x, y in zip(ours, theirs):
        if not same:
            break
        PyObject_GetBuffer(x, &a, PyBUF_C_CONTIGUOUS)
        try:
            PyObject_GetBuffer(y, &b, PyBUF_C_CONTIGUOUS)
            same = a.ndim == b.ndim and a.itemsize == b.itemsize
            for k in range(a.ndim if same else 0):
                same = same and a.shape[k] == b.shape[k]
            if same:
                with nogil:
                    same = memcmp(a.buf, b.buf, a.len) == 0
            PyBuffer_Release(&b)
        finally:
            PyBuffer_Release(&a)
    return same


# ---- Threads -------------------------------------------------------------------------------------------------------------------

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() noexcept


cdef unsigned long main_thread = 0


def set_main_thread(unsigned long ident):
    """Calls made by this thread look for signals while they run."""
    global main_thread
    main_thread = ident


def openmp_processors():
    """Processors that OpenMP's runtime has for a team."""
    return omp_get_num_procs()


def wake_always(bint always):
    """Tests: small calls use sleeping workers, too."""
    fl_wake_always(always)


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


cdef inline void divide(fl_job *job, int threads, double meeting_price) noexcept nogil:
    job.plan = job.type.plan(job, threads, meeting_price, fl_pace())


cdef inline bint choose(fl_job *job, int threads, double meeting_price) noexcept nogil:
    """Divide a call, but leave it to one thread if waking up workers costs more than they bring. Whether they are to be woken."""
    cdef int64_t team_ns
    divide(job, threads, meeting_price)
    if job.plan.threads == 1 or not fl_workers_sleep():
        return False
    team_ns = job.plan.expected_ns
    divide(job, 1, meeting_price)
    if not fl_is_worth_waking(job.plan.expected_ns - team_ns):
        return False
    divide(job, threads, meeting_price)
    return True


cdef int run_team(fl_job *job, int threads, int limit) except -1:
    """Run a call whose arrays are set: plan, claim threads, take scratch, open the one parallel region."""
    cdef int claimed = 0, team
    cdef int status = 0
    cdef double meeting_price = fl_meeting_price()
    cdef bint wakes, measures
    cdef fl_barrier end
    cdef _Pending pending = _Pending()

    job.watch.poll = NULL
    if PyThread_get_thread_ident() == main_thread:  # only the main thread handles signals
        job.watch.poll = poll
    job.watch.context = <void *>pending
    with nogil:
        wakes = choose(job, threads, meeting_price)
        if job.plan.threads > 1:
            claimed = fl_claim_threads(job.plan.threads, limit)
            if claimed < job.plan.threads:
                divide(job, claimed, meeting_price)
        status = job.type.prepare(job)
        if status == 0:
            team = job.plan.threads
            if team == 1:
                job.type.work(job, 0)
            else:
                fl_open_barriers(&end, 1)
                measures = fl_meeting_is_due()
                with parallel(num_threads=team):
                    if omp_get_num_threads() == team:
                        if wakes:
                            fl_measure_waking(&end, team, threadid())
                        if measures:
                            fl_measure_meeting(&end, team, threadid())
                        job.type.work(job, threadid())
                        fl_join(&end, team, job.plan.patience_ns)
                if job.begun:
                    fl_note_awake()
                    fl_note_team(end.begun_ns, fl_worked_ns())
                    if team == 2:
                        fl_learn(job)
                else:  # the runtime gave fewer threads than were asked for
                    fl_end_job(job)
                    divide(job, 1, 1)
                    status = job.type.prepare(job)
                    if status == 0:
                        job.type.work(job, 0)
            fl_end_job(job)
        if claimed:
            fl_return_threads(claimed)
    if status:
        raise MemoryError("scratch memory of a call")
    if pending.error is not None:
        raise pending.error
    return 0


def plan(Network network not None, Py_ssize_t T, Py_ssize_t B, int threads):
    """How a call of this size would be divided."""
    return fl_make_plan(&network.net, T, B, threads, 1, FL_EVEN)


def backward_plan(Network network not None, Py_ssize_t T, Py_ssize_t B, int threads):
    """How the gradients of such a call would be divided."""
    return fl_make_backward_plan(&network.net, T, B, threads, 1, FL_EVEN)


# ---- Whole sequences -----------------------------------------------------------------------------------------------------------

cdef inline void begin_call(fl_call *call, const fl_network *net, Py_ssize_t T, Py_ssize_t B) noexcept nogil:
    """A call that is given nothing yet."""
    memset(call, 0, sizeof(fl_call))
    call.job.type, call.net, call.T, call.B = &fl_forward_job, net, T, B


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
    Tape tape=None,
):
    """Run a network; shapes as fl_call has them in fastlstm.h. States may be None.

    A `tape` made for the same sizes, lengths and states keeps what :func:`backward` needs. `threads` is the most that may be
    used; `limit` the processors that all calls of the process share, 0 for no limit.
    """
    cdef const fl_network *net = &network.net
    cdef fl_call call
    cdef Py_ssize_t T = x.shape[0], B = x.shape[1], states = net.L * net.D

    if (sizeof(floating) != net.item or x.shape[2] != net.I
            or not has_shape(h_n, states, B, net.P) or not has_shape(c_n, states, B, net.C)
            or (h_0 is not None and not has_shape(h_0, states, B, net.P))
            or (c_0 is not None and not has_shape(c_0, states, B, net.C))
            or (lengths is not None and lengths.shape[0] != B)):
        raise ValueError("shapes that network.py should have refused")

    begin_call(&call, net, T, B)
    call.x = array_of(x, T, B, net.I, net.item)
    call.output = array_of(output, T, B, net.D * net.P, net.item)
    call.resets = resets_of(resets, T, B)
    if tape is not None:
        if tape.network is not network or tape.tape.T != T or tape.tape.B != B:
            raise ValueError("a tape that tape.py should have made for this call")
        call.tape = &tape.tape
    if B == 0:  # there is nothing to do at any of the steps, however many there are
        return
    call.h_n = <char *>&h_n[0, 0, 0]
    if h_0 is not None:
        call.h_0 = <const char *>&h_0[0, 0, 0]
    if net.C:
        call.c_n = <char *>&c_n[0, 0, 0]
        if c_0 is not None:
            call.c_0 = <const char *>&c_0[0, 0, 0]
    if lengths is not None:
        call.lengths = &lengths[0]
    run_team(&call.job, threads, limit)


def step(Network network not None, x, tuple state not None, dtype, bint batch_first, int threads, int limit):
    """:func:`forward` for one step from a given state, in half the time; None if an array does not fit it, for whatever reason.

    `x` is (1, B, I), (B, 1, I) if `batch_first`, or (1, I), and the state (L * D, B, P) and (L * D, B, H), without B in the last
    case. All are C-contiguous arrays of native floats, no subclasses. The result is (output, (h_n, c_n)).
    """
    cdef const fl_network *net = &network.net
    cdef fl_call call
    cdef Py_buffer[6] views
    cdef Py_ssize_t records = net.L * net.D, B
    cdef tuple shape, h_shape, c_shape
    cdef int taken = 0, i

    if len(state) != 2 or net.C == 0:
        return None
    h_0, c_0 = state
    try:
        for array in (x, h_0, c_0):
            if type(array) is not ndarray:
                return None
            try:
                PyObject_GetBuffer(array, &views[taken], PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            except (BufferError, ValueError):  # not contiguous
                return None
            taken += 1
        if views[0].ndim == 3 and views[0].shape[batch_first] == 1:
            B = views[0].shape[1 - batch_first]
            shape = (views[0].shape[0], views[0].shape[1], net.D * net.P)
            h_shape, c_shape = (records, B, net.P), (records, B, net.C)
        elif views[0].ndim == 2 and views[0].shape[0] == 1:
            B = 1
            shape, h_shape, c_shape = (1, net.D * net.P), (records, net.P), (records, net.C)
        else:
            return None
        if (B == 0 or not is_rows(&views[0], net.item, B, net.I)
                or not is_state(&views[1], net.item, records, views[0].ndim, B, net.P)
                or not is_state(&views[2], net.item, records, views[0].ndim, B, net.C)):
            return None
        output, h_n, c_n = empty(shape, dtype), empty(h_shape, dtype), empty(c_shape, dtype)
        for array in (output, h_n, c_n):
            PyObject_GetBuffer(array, &views[taken], PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            taken += 1
        begin_call(&call, net, 1, B)
        call.x.data, call.output.data = <char *>views[0].buf, <char *>views[3].buf
        call.x.strides[1], call.output.strides[1] = net.I * net.item, net.D * net.P * net.item
        call.h_0, call.c_0 = <const char *>views[1].buf, <const char *>views[2].buf
        call.h_n, call.c_n = <char *>views[4].buf, <char *>views[5].buf
        run_team(&call.job, threads, limit)
        return output, (h_n, c_n)
    finally:
        for i in range(taken):
            PyBuffer_Release(&views[i])


cdef bint is_rows(const Py_buffer *view, Py_ssize_t item, Py_ssize_t rows, Py_ssize_t columns) noexcept:
    """Native floats, aligned, in so many rows of so many columns if the array is contiguous."""
    return is_native(view, item) and view.shape[view.ndim - 1] == columns and view.len == rows * columns * item


cdef bint is_state(const Py_buffer *view, Py_ssize_t item, Py_ssize_t records, int ndim, Py_ssize_t B,
                   Py_ssize_t columns) noexcept:
    return (view.ndim == ndim and view.shape[0] == records and (ndim == 2 or view.shape[1] == B)
            and is_rows(view, item, records * B, columns))


cdef bint is_native(const Py_buffer *view, Py_ssize_t item) noexcept:
    return (view.itemsize == item and view.format != NULL and view.format[0] == (c'f' if item == 4 else c'd')
            and view.format[1] == 0 and <Py_ssize_t>view.buf % item == 0)


# ---- Gradients -----------------------------------------------------------------------------------------------------------------

@cython.final
cdef class Tape:
    """What one recorded call keeps for its gradients, until :func:`backward` uses it up.

    `lengths` and the initial state are those of the call, the states as flat arrays of bytes. `dropout` is the probability that
    an element between two layers is dropped.
    """

    cdef Network network
    cdef fl_tape tape

    def __cinit__(self, Network network not None, Py_ssize_t T, Py_ssize_t B, const int64_t[::1] lengths, const uint8_t[::1] h_0,
                  const uint8_t[::1] c_0, double dropout=0, uint64_t seed=0):
        cdef fl_network *net = &network.net
        cdef Py_ssize_t rows = net.L * net.D * B * net.item
        cdef const int64_t *lengths_at = NULL
        cdef const char *h_at = NULL
        cdef const char *c_at = NULL
        cdef int status

        if ((lengths is not None and lengths.shape[0] != B) or (h_0 is not None and h_0.shape[0] != rows * net.P)
                or (c_0 is not None and c_0.shape[0] != rows * net.C)):
            raise ValueError("shapes that tape.py should have refused")
        self.network = network
        if B:
            lengths_at = &lengths[0] if lengths is not None else NULL
            h_at = <const char *>&h_0[0] if h_0 is not None else NULL
            c_at = <const char *>&c_0[0] if c_0 is not None and net.C else NULL
        with nogil:
            status = fl_make_tape(&self.tape, net, T, B, lengths_at, h_at, c_at, fl_dropout(dropout, seed))
        if status:
            raise MemoryError("the tape of a recorded call")

    def __dealloc__(self):
        fl_free_tape(&self.tape)

    @property
    def nbytes(self):
        """Bytes of memory."""
        return self.tape.bytes

    def read(self, Py_ssize_t record, str what not None, uint8_t[::1] to not None):
        """What one direction of one layer had at each step: "i", "f", "g", "o", "c" or "h", as bytes of (T, B, H or P)."""
        cdef const fl_network *net = &self.network.net
        cdef int number = "ifgoch".index(what)
        cdef Py_ssize_t size = self.tape.T * self.tape.B * (net.P if number == FL_H else net.H) * net.item
        if not 0 <= record < net.L * net.D or to.shape[0] != size or (net.gates == 1 and number != FL_H):
            raise ValueError("a record or size that trace.py should not have asked for")
        if size:
            fl_read_tape(&self.tape, net, record, number, <char *>&to[0])

    def content(self):
        """Everything kept, to be given to :meth:`restore` of a tape made with the same arguments."""
        fl_clear_unused(&self.tape, &self.network.net)
        return (<char *>self.tape.memory)[:self.tape.bytes]

    def restore(self, bytes content not None):
        """Take over what :meth:`content` gave."""
        if len(content) != self.tape.bytes:
            raise ValueError(f"expected {self.tape.bytes} bytes of a tape, got {len(content)}")
        memcpy(self.tape.memory, <const char *>content, self.tape.bytes)


def backward(
    Transposed transposed not None,
    Tape tape not None,
    const floating[:, :, :] d_output,
    const floating[:, :, ::1] d_h_n,
    const floating[:, :, ::1] d_c_n,
    const uint8_t[:, :] resets,
    Py_ssize_t steps,
    Py_ssize_t first_step,
    floating[:, :, :] d_x,
    floating[:, :, ::1] d_h_0 not None,
    floating[:, :, ::1] d_c_0 not None,
    list gradients not None,
    bint adds,
    int threads,
    int limit,
):
    """Gradients of a recorded call; shapes as fl_backward_call has them in fastlstm.h. Uses the tape up.

    `gradients` has, for each layer and direction, arrays of bytes for weight_ih, weight_hh, the biases, weight_hr,
    weight_peephole, h_0 and c_0 (or None): written, or added to if `adds`.
    """
    cdef const fl_network *net = &tape.network.net
    cdef fl_backward_call call
    cdef Py_ssize_t T = tape.tape.T, B = tape.tape.B, states = net.L * net.D
    cdef Py_ssize_t index, rows = net.gates * net.H * net.item
    cdef fl_layer_gradients *d_weights

    if (sizeof(floating) != net.item or steps < 0 or first_step < 0 or len(gradients) != states
            or not has_shape(d_h_0, states, B, net.P) or not has_shape(d_c_0, states, B, net.C)
            or (d_h_n is not None and not has_shape(d_h_n, states, B, net.P))
            or (d_c_n is not None and not has_shape(d_c_n, states, B, net.C))):
        raise ValueError("shapes that tape.py should have refused")
    memset(&call, 0, sizeof(call))
    call.job.type = &fl_backward_job
    call.d_output = array_of(d_output, T, B, net.D * net.P, net.item)
    call.d_x = array_of(d_x, T, B, net.I, net.item)
    call.net, call.transposed, call.tape = net, &transposed.weights, &tape.tape
    if B:
        call.d_h_0 = <char *>&d_h_0[0, 0, 0]
        if d_h_n is not None:
            call.d_h_n = <const char *>&d_h_n[0, 0, 0]
    if B and net.C:
        call.d_c_0 = <char *>&d_c_0[0, 0, 0]
        if d_c_n is not None:
            call.d_c_n = <const char *>&d_c_n[0, 0, 0]
    call.steps, call.first_step, call.adds = steps, first_step, adds
    call.resets = resets_of(resets, T, B)
    d_weights = <fl_layer_gradients *>calloc(len(gradients), sizeof(fl_layer_gradients))
    if d_weights == NULL:
        raise MemoryError("gradients")
    try:
        for index, (weight_ih, weight_hh, bias, weight_hr, peephole, own_h_0, own_c_0) in enumerate(gradients):
            d_weights[index].weight_ih = writable_bytes_of(weight_ih, rows * net.layers[index].I)
            d_weights[index].weight_hh = writable_bytes_of(weight_hh, rows * net.P)
            d_weights[index].bias = writable_bytes_of(bias, rows) if bias is not None else NULL
            d_weights[index].weight_hr = writable_bytes_of(weight_hr, net.P * net.H * net.item) if net.has_projection else NULL
            if net.layers[index].peephole != NULL:
                d_weights[index].weight_peephole = writable_bytes_of(peephole, 3 * net.H * net.item)
            if net.layers[index].h_0 != NULL:
                d_weights[index].h_0 = writable_bytes_of(own_h_0, net.P * net.item)
                d_weights[index].c_0 = writable_bytes_of(own_c_0, net.H * net.item)
        call.d_weights = d_weights
        if B:
            run_team(&call.job, threads, limit)
    finally:
        free(d_weights)


def drop(floating[:, :, ::1] values not None, double p, uint64_t seed, Py_ssize_t layer):
    """Dropout on what a layer gives to the next one, (T, B, D*P), in place, as a recorded call does it."""
    cdef fl_dropout dropout = fl_dropout(p, seed)
    cdef Py_ssize_t t, row
    cdef uint64_t found
    if values.shape[2]:
        found = fl_enter_float_state()
        for t in range(values.shape[0]):
            for row in range(values.shape[1]):
                fl_drop(&dropout, layer, t, row, 0, values.shape[2], sizeof(floating), &values[t, row, 0])
        fl_leave_float_state(found)


def add(Network network not None, floating[:, :, ::1] total not None, const floating[:, :, ::1] values not None):
    """total += values, as a call of the network adds the gradients of two directions."""
    cdef Py_ssize_t n = values.shape[0] * values.shape[1] * values.shape[2]
    cdef uint64_t found
    if sizeof(floating) != network.net.item:
        raise ValueError("values must have the network's dtype")
    if total.shape[0] != values.shape[0] or total.shape[1] != values.shape[1] or total.shape[2] != values.shape[2]:
        raise ValueError("total and values must have one shape")
    if n:
        with nogil:
            found = fl_enter_float_state()
            network.net.kernels.add(n, &values[0, 0, 0], &total[0, 0, 0])
            fl_leave_float_state(found)


@cython.final
cdef class _Loan:
    """Memory under an array of the caller's, lent to the next call when the array is gone."""
    cdef void *memory
    cdef Py_ssize_t size

    def __cinit__(self, Py_ssize_t size):
        self.size = size
        self.memory = fl_borrow(<size_t>size)
        if self.memory == NULL:
            raise MemoryError(f"no room for an array of {size} bytes")

    def __dealloc__(self):
        fl_give_back(self.memory)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.memory, self.size, 0, flags)


def new_array(tuple shape, dtype, double lent_from=4 << 20):
    """An array of any contents. From so many bytes on it is of memory that calls before may have used, as fresh pages cost time.

    Such memory comes in pieces of 2 MB: too large for smaller arrays that callers keep.
    """
    cdef double size = dtype.itemsize
    cdef Py_ssize_t n

    for n in shape:
        size *= n
    return ndarray(shape, dtype, _Loan(<Py_ssize_t>size)) if lent_from <= size < 1 << 50 else empty(shape, dtype)


def block_steps(Py_ssize_t B):
    """Steps whose tokens are summed on their own before they join the gradient of a weight."""
    return fl_block_steps(B)


cdef inline bint has_shape(const floating[:, :, ::1] array, Py_ssize_t records, Py_ssize_t B, Py_ssize_t columns):
    return array.shape[0] == records and array.shape[1] == B and array.shape[2] == columns


cdef fl_array resets_of(const uint8_t[:, :] resets, Py_ssize_t T, Py_ssize_t B):
    """Steps (T, B) before which a row begins anew; None has no data."""
    cdef fl_array found
    found.data, found.strides[0], found.strides[1] = NULL, 0, 0
    if resets is None:
        return found
    if resets.shape[0] != T or resets.shape[1] != B:
        raise ValueError("shapes that network.py and tape.py should have refused")
    if T and B:
        found.data = <char *>&resets[0, 0]
        found.strides[0], found.strides[1] = resets.strides[0], resets.strides[1]
    return found


cdef fl_array array_of(const floating[:, :, :] array, Py_ssize_t T, Py_ssize_t B, Py_ssize_t columns, Py_ssize_t item):
    """An array (T, B, columns) to be read or written where it stands; None has no data."""
    cdef fl_array found
    found.data, found.strides[0], found.strides[1] = NULL, 0, 0
    if array is None:
        return found
    if (array.shape[0] != T or array.shape[1] != B or array.shape[2] != columns
            or (columns > 1 and T > 0 and B > 0 and array.strides[2] != item)):
        raise ValueError("shapes or strides that network.py and tape.py should have refused")
    if T and B:
        found.data = <char *>&array[0, 0, 0]
        found.strides[0], found.strides[1] = array.strides[0], array.strides[1]
    return found


cdef char *writable_bytes_of(uint8_t[::1] array, Py_ssize_t size) except NULL:
    if array.shape[0] != size:
        raise ValueError(f"expected {size} bytes of gradients, got {array.shape[0]}")
    return <char *>&array[0]


# ---- Streams -------------------------------------------------------------------------------------------------------------------

@cython.final
cdef class StreamState:
    """A prepared call of one step, with the state it carries: nothing is allocated from step to step.

    `h` and `c` are pairs of arrays of bytes, the state before a step and after it; they change places at every step.
    """

    cdef Network network
    cdef fl_call call
    cdef Py_ssize_t B
    cdef bint prepared, busy
    cdef tuple owners  # of the memory behind `state`
    cdef char *state[4]  # h, h, c, c
    cdef readonly int current  # which of each pair holds the state now

    def __cinit__(self, Network network not None, Py_ssize_t batch_size, tuple h not None, tuple c not None, int threads):
        cdef fl_network *net = &network.net
        cdef Py_ssize_t rows = net.L * net.D * batch_size
        cdef uint8_t[::1] view
        self.network, self.B = network, batch_size
        self.owners = (h, c)
        for i, pair, size in ((0, h, rows * net.P * net.item), (2, c, rows * net.C * net.item)):
            for k in range(2):
                view = pair[k]
                if view.shape[0] != size:
                    raise ValueError("state of the wrong size")
                self.state[i + k] = <char *>&view[0] if size else NULL
        begin_call(&self.call, net, 1, batch_size)
        # What a team that meets at a usual price does little faster, one thread does without looking at the clock
        self.call.job.plan = fl_make_plan(net, 1, batch_size, threads, 3, FL_EVEN)
        # A step that takes long is an ordinary call, which signals end
        if self.call.job.plan.threads == 1 and self.call.job.plan.expected_ns < 5000000:
            if self.call.job.type.prepare(&self.call.job):
                raise MemoryError("scratch memory of a stream")
            self.prepared = True

    def __dealloc__(self):
        if self.prepared:
            fl_end_job(&self.call.job)

    def step(self, x not None, output not None, int threads, int limit):
        """One step; False if `x` is not exactly a float array of shape (B, I) (or (I,)) that can be read in place."""
        cdef Py_buffer source, target
        cdef fl_network *net = &self.network.net
        self.check_idle()
        PyObject_GetBuffer(x, &source, PyBUF_STRIDES | PyBUF_FORMAT)
        try:
            if not fits(&source, net.item, self.B, net.I):
                return False
            PyObject_GetBuffer(output, &target, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)
            try:
                if not fits(&target, net.item, self.B, net.D * net.P):
                    raise ValueError("output that stream.py should have made")
                self.run(&source, &target, threads, limit)
            finally:
                PyBuffer_Release(&target)
        finally:
            PyBuffer_Release(&source)
        return True

    cpdef check_idle(self):
        """Refuse what would meet a step that is running: of another thread, or of this one under a signal's handler."""
        if self.busy:
            raise RuntimeError("this stream is in use: by another thread, or by the step that this signal's handler interrupts")

    def take_back(self, bint current):
        """Forget the last step, or none: the state that it began from is still there; `current` is where that was."""
        self.current = current

    cdef int run(self, Py_buffer *source, Py_buffer *target, int threads, int limit) except -1:
        cdef fl_call *call = &self.call
        cdef int before = self.current
        call.x.data, call.output.data = <char *>source.buf, <char *>target.buf
        call.x.strides[1] = source.strides[0] if source.ndim == 2 else 0
        call.output.strides[1] = target.strides[0] if target.ndim == 2 else 0
        call.h_0, call.h_n = self.state[before], self.state[1 - before]
        call.c_0, call.c_n = self.state[2 + before], self.state[3 - before]
        self.busy = True
        try:
            if self.prepared:
                with nogil:
                    call.job.type.work(&call.job, 0)
            else:
                run_team(&call.job, threads, limit)
            PyErr_CheckSignals()  # now: later an exception would lose the output of a step that is taken
        finally:
            self.busy = False
        self.current = 1 - before
        return 0


cdef bint fits(const Py_buffer *view, Py_ssize_t item, Py_ssize_t rows, Py_ssize_t columns) noexcept:
    """A (rows, columns) array of native floats, aligned, contiguous along its last axis; or (columns,) where rows is 1."""
    if not is_native(view, item):
        return False
    if view.ndim == 2:
        if view.shape[0] != rows or view.shape[1] != columns or (rows > 1 and view.strides[0] % item):
            return False
    elif view.ndim != 1 or rows != 1 or view.shape[0] != columns:
        return False
    return columns == 1 or view.strides[view.ndim - 1] == item
