/* The hot path of a channel and the copy of large arrays, as one small extension; knows no pools, leases or policy.

   The memory layout is that of ring.py and slab.py, which do the same in Python: either end may run either one.
   Everything here runs under the interpreter's lock, and each end under its own lock, except the waiting. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() ((void)0)
#endif

enum { HEAD, TAIL, SENDER_PID, RECEIVER_PID, SENDER_CLOSED, RECEIVER_CLOSED, SENDER_WAITS, RECEIVER_WAITS, CAPACITY,
       RETURN_HEAD, RETURN_TAIL, SLAB_SPENT };
enum { SENT, CANNOT, UNKNOWN, FULL };
enum { ENTRY = 640, RETURNS_AT = 1536, DRAIN_EACH = 8, KNOWN = 8, MAX_DIMS = 64 };

typedef struct {
    uint32_t length, slot;
    uint64_t nbytes;
    uint32_t ndim, epoch;
} Message;

enum { META = ENTRY - (int)sizeof(Message) };

/* What both ends have: the shared memory, and how to wake the other end. */
typedef struct {
    Py_buffer buffer;
    char *memory;
    uint64_t capacity, entries, mask;
    int bell;
} Shared;

typedef struct {
    PyObject *dtype; /* compared by identity; the reference keeps the identity */
    uint32_t ndim, length;
    Py_ssize_t shape[MAX_DIMS];
    char meta[META];
} Outgoing;

typedef struct {
    PyObject *shape, *dtype;
    uint32_t ndim, length;
    char meta[META];
} Incoming;

typedef struct {
    PyObject_HEAD
    Shared shared;
    PyObject *ndarray, *dtype_name;
    Py_buffer slab;
    char *data;
    uint64_t stride, taken, last, tail;
    uint32_t slots, epoch, free_count;
    uint32_t *free;
    uint8_t *away;
    uint32_t known, newest;
    Outgoing outgoing[KNOWN];
} Sender;

typedef struct {
    PyObject_HEAD
    Shared shared;
    PyObject *ndarray, *base;
    char *data;
    uint64_t stride, head, live;
    uint32_t slots, epoch, generation;
    uint32_t known, newest;
    Incoming incoming[KNOWN];
} Receiver;

typedef struct {
    PyObject_HEAD
    Receiver *owner;
    PyObject *base;
    char *data;
    Py_ssize_t nbytes;
    uint32_t slot, epoch, generation;
} Slot;

static PyTypeObject *slot_type;

static inline _Atomic uint64_t *word(const Shared *shared, int number)
{
    return (_Atomic uint64_t *)(shared->memory + 64 * number);
}

static inline uint64_t look(const Shared *shared, int number)
{
    return atomic_load_explicit(word(shared, number), memory_order_acquire);
}

static inline void tell(const Shared *shared, int number, uint64_t value)
{
    atomic_store_explicit(word(shared, number), value, memory_order_release);
}

static inline _Atomic uint64_t *returned(const Shared *shared, uint64_t number)
{
    return (_Atomic uint64_t *)(shared->memory + RETURNS_AT) + (number & shared->mask);
}

static inline char *entry(const Shared *shared, uint64_t number)
{
    return shared->memory + shared->entries + ENTRY * (number % shared->capacity);
}

static void wake(const Shared *shared)
{
    ssize_t ignored = write(shared->bell, "", 1); /* a full pipe wakes as well, and a broken one has nobody to wake */
    (void)ignored;
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

/* Look at a word until it differs from `value` or the time is up; return what it is. */
static uint64_t spin(const Shared *shared, int number, uint64_t value, long long nanoseconds)
{
    uint64_t found = value;
    if (nanoseconds <= 0)
        return found;
    Py_BEGIN_ALLOW_THREADS
    int64_t end = now() + nanoseconds;
    do {
        for (int i = 0; i < 64 && (found = look(shared, number)) == value; i++)
            RELAX();
    } while (found == value && now() < end);
    Py_END_ALLOW_THREADS
    return found;
}

static void replace(PyObject **place, PyObject *object)
{
    PyObject *old = *place;
    *place = Py_NewRef(object);
    Py_XDECREF(old);
}

static int share(Shared *shared, PyObject *memory, unsigned long long capacity, unsigned long long entries,
                 unsigned long long returns, int bell)
{
    if (PyObject_GetBuffer(memory, &shared->buffer, PyBUF_WRITABLE) < 0)
        return -1;
    if (!capacity || !returns || returns & (returns - 1) || RETURNS_AT + 8 * returns > entries
        || entries + ENTRY * capacity > (unsigned long long)shared->buffer.len) {
        PyBuffer_Release(&shared->buffer);
        PyErr_SetString(PyExc_ValueError, "the ring does not fit its memory");
        return -1;
    }
    shared->memory = shared->buffer.buf;
    shared->capacity = capacity;
    shared->entries = entries;
    shared->mask = returns - 1;
    shared->bell = bell;
    return 0;
}

static void unshare(Shared *shared)
{
    if (shared->memory)
        PyBuffer_Release(&shared->buffer);
    shared->memory = NULL;
}

/* The sender */

static int sender_init(Sender *self, PyObject *args, PyObject *kwargs)
{
    PyObject *memory, *ndarray;
    unsigned long long capacity, entries, returns;
    int bell;
    if (self->shared.memory) {
        PyErr_SetString(PyExc_TypeError, "made before");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "OKKKiO", &memory, &capacity, &entries, &returns, &bell, &ndarray)
        || share(&self->shared, memory, capacity, entries, returns, bell) < 0)
        return -1;
    self->ndarray = Py_NewRef(ndarray);
    self->dtype_name = PyUnicode_InternFromString("dtype");
    self->tail = look(&self->shared, TAIL);
    self->taken = look(&self->shared, RETURN_TAIL);
    return self->dtype_name ? 0 : -1;
}

static void sender_drop_slab(Sender *self)
{
    if (self->data)
        PyBuffer_Release(&self->slab);
    PyMem_Free(self->free);
    PyMem_Free(self->away);
    self->data = NULL;
    self->free = NULL;
    self->away = NULL;
    self->stride = 0;
    self->slots = self->free_count = 0;
}

static PyObject *sender_let_slab_go(Sender *self, PyObject *unused)
{
    sender_drop_slab(self);
    Py_RETURN_NONE;
}

static PyObject *sender_detach(Sender *self, PyObject *unused)
{
    sender_drop_slab(self);
    unshare(&self->shared);
    Py_RETURN_NONE;
}

static void sender_dealloc(Sender *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    sender_drop_slab(self);
    unshare(&self->shared);
    for (uint32_t i = 0; i < self->known; i++)
        Py_XDECREF(self->outgoing[i].dtype);
    Py_XDECREF(self->ndarray);
    Py_XDECREF(self->dtype_name);
    release(self);
    Py_DECREF(type);
}

static PyObject *sender_use_slab(Sender *self, PyObject *args)
{
    PyObject *memory;
    unsigned long long offset, stride;
    unsigned int slots, epoch;
    if (!PyArg_ParseTuple(args, "OKKII", &memory, &offset, &stride, &slots, &epoch))
        return NULL;
    sender_drop_slab(self);
    if (PyObject_GetBuffer(memory, &self->slab, PyBUF_WRITABLE) < 0)
        return NULL;
    self->data = (char *)self->slab.buf + offset;
    self->free = PyMem_Malloc(sizeof(uint32_t) * slots);
    self->away = PyMem_Malloc(slots);
    if (!self->free || !self->away || !stride || offset + stride * slots > (unsigned long long)self->slab.len) {
        sender_drop_slab(self);
        PyErr_SetString(PyExc_ValueError, "the slots do not fit their memory");
        return NULL;
    }
    for (uint32_t i = 0; i < slots; i++)
        self->free[i] = slots - 1 - i;
    memset(self->away, 0, slots);
    self->stride = stride;
    self->slots = self->free_count = slots;
    self->epoch = epoch;
    Py_RETURN_NONE;
}

static PyObject *sender_learn(Sender *self, PyObject *args)
{
    PyObject *dtype, *shape;
    const char *meta;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "OO!y#", &dtype, &PyTuple_Type, &shape, &meta, &length))
        return NULL;
    Py_ssize_t ndim = PyTuple_Size(shape);
    if (ndim > MAX_DIMS || length > META) {
        PyErr_SetString(PyExc_ValueError, "the description is too long");
        return NULL;
    }
    Outgoing *one = &self->outgoing[self->newest];
    replace(&one->dtype, dtype);
    one->ndim = UINT32_MAX; /* not to be found while it is half written */
    for (Py_ssize_t i = 0; i < ndim; i++)
        one->shape[i] = PyLong_AsSsize_t(PyTuple_GetItem(shape, i));
    memcpy(one->meta, meta, length);
    one->length = (uint32_t)length;
    one->ndim = (uint32_t)ndim;
    self->newest = (self->newest + 1) % KNOWN;
    if (self->known < KNOWN)
        self->known++;
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static void sender_drain(Sender *self)
{
    const Shared *shared = &self->shared;
    uint64_t head = look(shared, RETURN_HEAD);
    if (head - self->taken > shared->mask + 1)
        return; /* no receiver of ours counts like that */
    while (self->taken != head) {
        uint64_t value = atomic_load_explicit(returned(shared, self->taken++), memory_order_relaxed);
        uint32_t slot = (uint32_t)value;
        if (value >> 32 == self->epoch && slot < self->slots && self->away[slot]) {
            self->away[slot] = 0;
            self->free[self->free_count++] = slot;
        }
    }
    tell(shared, RETURN_TAIL, self->taken);
}

static const Outgoing *sender_find(const Sender *self, PyObject *dtype, const Py_buffer *view)
{
    for (uint32_t i = 0; i < self->known; i++) {
        const Outgoing *one = &self->outgoing[i];
        if (one->dtype == dtype && one->ndim == (uint32_t)view->ndim
            && !memcmp(one->shape, view->shape, sizeof(Py_ssize_t) * view->ndim))
            return one;
    }
    return NULL;
}

static int sender_try(Sender *self, PyObject *array, long long nanoseconds)
{
    const Shared *shared = &self->shared;
    if (!shared->memory || !self->data || (PyObject *)Py_TYPE(array) != self->ndarray || look(shared, RECEIVER_CLOSED))
        return CANNOT;
    uint64_t head = look(shared, HEAD);
    if (head - self->tail >= shared->capacity) {
        self->tail = look(shared, TAIL);
        if (head - self->tail >= shared->capacity)
            self->tail = spin(shared, TAIL, self->tail, nanoseconds);
        if (head - self->tail >= shared->capacity)
            return FULL;
    }
    /* Slots that came back lately are in the cache, so they are fetched before the others are used up. */
    if (!self->free_count || head % DRAIN_EACH == 0)
        sender_drain(self);
    if (!self->free_count)
        return CANNOT;
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS) < 0) {
        PyErr_Clear();
        return CANNOT;
    }
    int result = CANNOT;
    PyObject *dtype = NULL;
    if (view.len <= 0 || (uint64_t)view.len > self->stride)
        goto done;
    if (!(dtype = PyObject_GetAttr(array, self->dtype_name))) {
        PyErr_Clear();
        goto done;
    }
    const Outgoing *one = sender_find(self, dtype, &view);
    if (!one) {
        result = UNKNOWN;
        goto done;
    }
    uint32_t slot = self->free[--self->free_count];
    self->away[slot] = 1;
    memcpy(self->data + self->stride * slot, view.buf, view.len);
    char *place = entry(shared, head);
    Message message = {one->length, slot, view.len, one->ndim, self->epoch};
    memcpy(place, &message, sizeof message);
    memcpy(place + sizeof message, one->meta, one->length);
    self->last = head + 1;
    tell(shared, HEAD, head + 1);
    atomic_thread_fence(memory_order_seq_cst); /* first the message, then the look whether anyone sleeps */
    if (look(shared, RECEIVER_WAITS))
        wake(shared);
    result = SENT;
done:
    Py_XDECREF(dtype);
    PyBuffer_Release(&view);
    return result;
}

static PyObject *sender_send(Sender *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "send(array, nanoseconds)");
        return NULL;
    }
    long long nanoseconds = PyLong_AsLongLong(args[1]);
    if (nanoseconds == -1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromLong(sender_try(self, args[0], nanoseconds));
}

static PyObject *sender_get_stride(Sender *self, void *unused) { return PyLong_FromUnsignedLongLong(self->stride); }
static PyObject *sender_get_epoch(Sender *self, void *unused) { return PyLong_FromUnsignedLong(self->epoch); }
static PyObject *sender_get_last(Sender *self, void *unused) { return PyLong_FromUnsignedLongLong(self->last); }

/* The receiver, and the slots that its arrays look at */

static int receiver_init(Receiver *self, PyObject *args, PyObject *kwargs)
{
    PyObject *memory, *ndarray;
    unsigned long long capacity, entries, returns;
    int bell;
    if (self->shared.memory) {
        PyErr_SetString(PyExc_TypeError, "made before");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "OKKKiO", &memory, &capacity, &entries, &returns, &bell, &ndarray)
        || share(&self->shared, memory, capacity, entries, returns, bell) < 0)
        return -1;
    self->ndarray = Py_NewRef(ndarray);
    self->head = look(&self->shared, TAIL);
    return 0;
}

static PyObject *receiver_detach(Receiver *self, PyObject *unused)
{
    unshare(&self->shared);
    self->slots = 0;
    Py_CLEAR(self->base);
    Py_RETURN_NONE;
}

static void receiver_dealloc(Receiver *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    unshare(&self->shared);
    for (uint32_t i = 0; i < self->known; i++) {
        Py_XDECREF(self->incoming[i].shape);
        Py_XDECREF(self->incoming[i].dtype);
    }
    Py_XDECREF(self->ndarray);
    Py_XDECREF(self->base);
    release(self);
    Py_DECREF(type);
}

static PyObject *receiver_use_slab(Receiver *self, PyObject *args)
{
    PyObject *base;
    unsigned long long stride;
    unsigned int slots, epoch;
    if (!PyArg_ParseTuple(args, "OKII", &base, &stride, &slots, &epoch))
        return NULL;
    Py_buffer view;
    if (PyObject_GetBuffer(base, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    char *data = view.buf;
    int fits = stride && stride * slots <= (unsigned long long)view.len;
    PyBuffer_Release(&view); /* the array itself keeps its memory */
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the slots do not fit their memory");
        return NULL;
    }
    replace(&self->base, base);
    self->data = data;
    self->stride = stride;
    self->slots = slots;
    self->epoch = epoch;
    self->live = 0;
    Py_RETURN_NONE;
}

static PyObject *receiver_learn(Receiver *self, PyObject *args)
{
    const char *meta;
    Py_ssize_t length;
    unsigned int ndim;
    PyObject *shape, *dtype;
    if (!PyArg_ParseTuple(args, "y#IOO", &meta, &length, &ndim, &shape, &dtype))
        return NULL;
    if (length > META) {
        PyErr_SetString(PyExc_ValueError, "the description is too long");
        return NULL;
    }
    Incoming *one = &self->incoming[self->newest];
    replace(&one->shape, shape);
    replace(&one->dtype, dtype);
    memcpy(one->meta, meta, length);
    one->length = (uint32_t)length;
    one->ndim = ndim;
    self->newest = (self->newest + 1) % KNOWN;
    if (self->known < KNOWN)
        self->known++;
    Py_RETURN_NONE;
}

static const Incoming *receiver_find(const Receiver *self, const Message *message, const char *meta)
{
    for (uint32_t i = 0; i < self->known; i++) {
        const Incoming *one = &self->incoming[i];
        if (one->length == message->length && one->ndim == message->ndim && !memcmp(one->meta, meta, one->length))
            return one;
    }
    return NULL;
}

static PyObject *receiver_recv(Receiver *self, PyObject *nanoseconds)
{
    const Shared *shared = &self->shared;
    long long limit = PyLong_AsLongLong(nanoseconds);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    if (!shared->memory)
        Py_RETURN_NONE;
    uint64_t tail = look(shared, TAIL);
    if (self->head - tail - 1 >= shared->capacity) { /* none known: as many as there are, or the count was overtaken */
        self->head = look(shared, HEAD);
        if (self->head == tail)
            self->head = spin(shared, HEAD, tail, limit);
        if (self->head == tail)
            Py_RETURN_NONE;
    }
    const char *place = entry(shared, tail);
    Message message;
    memcpy(&message, place, sizeof message);
    if (message.slot >= self->slots || message.epoch != self->epoch || message.length > META
        || message.nbytes > self->stride)
        Py_RETURN_NONE;
    const Incoming *one = receiver_find(self, &message, place + sizeof message);
    if (!one)
        Py_RETURN_NONE;
    Slot *slot = PyObject_New(Slot, slot_type);
    if (!slot)
        return NULL;
    slot->owner = (Receiver *)Py_NewRef((PyObject *)self);
    slot->base = Py_NewRef(self->base);
    slot->data = self->data + self->stride * message.slot;
    slot->nbytes = (Py_ssize_t)message.nbytes;
    slot->slot = message.slot;
    slot->epoch = message.epoch;
    slot->generation = self->generation - 1; /* not to be returned before the message is taken */
    PyObject *array = NULL, *args = PyTuple_Pack(3, one->shape, one->dtype, (PyObject *)slot);
    if (args)
        array = PyObject_CallObject(self->ndarray, args);
    Py_XDECREF(args);
    if (!array || !shared->memory) {
        Py_DECREF(slot);
        return array;
    }
    slot->generation = self->generation;
    self->live++;
    Py_DECREF(slot);
    tell(shared, TAIL, tail + 1);
    atomic_thread_fence(memory_order_seq_cst); /* first the count, then the look whether anyone sleeps */
    /* A sender that sleeps before a full ring is woken at half of it, not once for each message. */
    if (look(shared, SENDER_WAITS) && 2 * (look(shared, HEAD) - tail - 1) <= shared->capacity)
        wake(shared);
    return array;
}

static PyObject *receiver_pin(Receiver *self, PyObject *unused)
{
    self->generation++;
    int held = self->live != 0;
    self->live = 0;
    return PyBool_FromLong(held);
}

static PyObject *receiver_get_epoch(Receiver *self, void *unused) { return PyLong_FromUnsignedLong(self->epoch); }

static int slot_buffer(Slot *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, self->data, self->nbytes, 1, flags);
}

static void slot_dealloc(Slot *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Receiver *owner = self->owner;
    const Shared *shared = &owner->shared;
    if (shared->memory && self->generation == owner->generation && self->epoch == owner->epoch) {
        uint64_t head = look(shared, RETURN_HEAD);
        owner->live--;
        if (head - look(shared, RETURN_TAIL) <= shared->mask) { /* else it is lost to this slab, which is safe */
            atomic_store_explicit(returned(shared, head), (uint64_t)self->epoch << 32 | self->slot,
                                  memory_order_relaxed);
            tell(shared, RETURN_HEAD, head + 1);
        }
    }
    Py_DECREF(self->base);
    Py_DECREF(owner);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* The copy of large arrays */

static size_t stream_from = (size_t)32 << 20; /* what fits the cache is better left there for the reader */

#if defined(__x86_64__)
/* Stores that pass by the cache: the old content of the target is not read first, which is a third of the traffic. */
static void stream(char *to, const char *from, size_t count)
{
    size_t lead = (-(uintptr_t)to) & 63;
    if (lead > count)
        lead = count;
    memcpy(to, from, lead);
    to += lead;
    from += lead;
    count -= lead;
    for (; count >= 64; to += 64, from += 64, count -= 64) {
        const __m128i *source = (const __m128i *)from;
        __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
        __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        __m128i *target = (__m128i *)to;
        _mm_stream_si128(target, a);
        _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c);
        _mm_stream_si128(target + 3, d);
    }
    _mm_sfence();
    memcpy(to, from, count);
}
#else
#define stream memcpy
#endif

static PyObject *copy(PyObject *module, PyObject *args)
{
    PyObject *target, *source;
    unsigned long long offset;
    Py_buffer to, from;
    if (!PyArg_ParseTuple(args, "OKO", &target, &offset, &source)
        || PyObject_GetBuffer(source, &from, PyBUF_ANY_CONTIGUOUS) < 0)
        return NULL;
    if (PyObject_GetBuffer(target, &to, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&from);
        return NULL;
    }
    int fits = offset <= (unsigned long long)to.len && (unsigned long long)from.len <= to.len - offset;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        if ((size_t)from.len >= stream_from)
            stream((char *)to.buf + offset, from.buf, from.len);
        else
            memcpy((char *)to.buf + offset, from.buf, from.len);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "the bytes do not fit behind the offset");
    }
    PyBuffer_Release(&to);
    PyBuffer_Release(&from);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef sender_methods[] = {
    {"send", (PyCFunction)(void (*)(void))sender_send, METH_FASTCALL, "Copy a known kind of array into a free slot."},
    {"learn", (PyCFunction)sender_learn, METH_VARARGS, "Remember how arrays of a dtype and shape are described."},
    {"use_slab", (PyCFunction)sender_use_slab, METH_VARARGS, "Use slots of this memory from now on."},
    {"drop_slab", (PyCFunction)sender_let_slab_go, METH_NOARGS, "Let go of the slab's memory."},
    {"detach", (PyCFunction)sender_detach, METH_NOARGS, "Let go of all memory."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef sender_fields[] = {
    {"stride", (getter)sender_get_stride, NULL, "Bytes of a slot.", NULL},
    {"epoch", (getter)sender_get_epoch, NULL, "Number of the slab.", NULL},
    {"last", (getter)sender_get_last, NULL, "Count of messages up to the last one in a slot.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot sender_slots[] = {{Py_tp_init, sender_init}, {Py_tp_dealloc, sender_dealloc},
    {Py_tp_methods, sender_methods}, {Py_tp_getset, sender_fields}, {0, NULL}};
static PyType_Spec sender_spec = {"xfer._native.SenderCore", sizeof(Sender), 0, Py_TPFLAGS_DEFAULT, sender_slots};

static PyMethodDef receiver_methods[] = {
    {"recv", (PyCFunction)receiver_recv, METH_O, "Return the next array, or None if it needs the slow path."},
    {"learn", (PyCFunction)receiver_learn, METH_VARARGS, "Remember the shape and dtype behind a description."},
    {"use_slab", (PyCFunction)receiver_use_slab, METH_VARARGS, "Take slots to lie in this array from now on."},
    {"pin", (PyCFunction)receiver_pin, METH_NOARGS, "Return none of the slots in use, ever; tell if there were any."},
    {"detach", (PyCFunction)receiver_detach, METH_NOARGS, "Let go of the ring's memory."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef receiver_fields[] = {
    {"epoch", (getter)receiver_get_epoch, NULL, "Number of the slab.", NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot receiver_slots[] = {{Py_tp_init, receiver_init}, {Py_tp_dealloc, receiver_dealloc},
    {Py_tp_methods, receiver_methods}, {Py_tp_getset, receiver_fields}, {0, NULL}};
static PyType_Spec receiver_spec = {"xfer._native.ReceiverCore", sizeof(Receiver), 0, Py_TPFLAGS_DEFAULT,
    receiver_slots};

static PyType_Slot slot_slots[] = {{Py_tp_dealloc, slot_dealloc}, {Py_bf_getbuffer, slot_buffer}, {0, NULL}};
static PyType_Spec slot_spec = {"xfer._native.Slot", sizeof(Slot), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slot_slots};

static PyMethodDef functions[] = {
    {"copy", copy, METH_VARARGS, "Copy a contiguous array behind an offset of writable memory, past the cache."},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, functions};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
#ifdef _SC_LEVEL3_CACHE_SIZE
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (cache > 0 && (size_t)cache < stream_from)
        stream_from = (size_t)cache > (size_t)8 << 20 ? (size_t)cache : (size_t)8 << 20;
#endif
    PyObject *sender = PyType_FromSpec(&sender_spec), *receiver = PyType_FromSpec(&receiver_spec);
    slot_type = (PyTypeObject *)PyType_FromSpec(&slot_spec);
    if (!module || !sender || !receiver || !slot_type || PyModule_AddObjectRef(module, "SenderCore", sender) < 0
        || PyModule_AddObjectRef(module, "ReceiverCore", receiver) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    Py_DECREF(sender);
    Py_DECREF(receiver);
    return module;
}
