/* The receiving end: makes an array over a slot, and returns the slot when the array dies. */

#include "tensor.h"

typedef struct {
    PyObject *shape, *dtype;
    uint32_t ndim, length, kind; /* kind: of the elements of a tensor, 0 if there is none */
    int64_t lengths[MAX_DIMS];
    char meta[META];
} Incoming;

typedef struct {
    PyObject_HEAD
    Shared shared;
    PyObject *ndarray, *base;
    const Exchange *torch;
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

PyTypeObject *slot_type;

static int receiver_init(Receiver *self, PyObject *args, PyObject *kwargs)
{
    PyObject *ndarray;
    if (share(&self->shared, args, &ndarray) < 0)
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
    char *meta;
    Py_ssize_t length;
    unsigned int ndim, kind;
    PyObject *description, *shape, *dtype;
    if (!PyArg_ParseTuple(args, "SIO!OI", &description, &ndim, &PyTuple_Type, &shape, &dtype, &kind) ||
        PyBytes_AsStringAndSize(description, &meta, &length))
        return NULL;
    if (length > META || PyTuple_Size(shape) != ndim || ndim > MAX_DIMS) {
        PyErr_SetString(PyExc_ValueError, "the description is too long");
        return NULL;
    }
    int64_t lengths[MAX_DIMS];
    for (unsigned int i = 0; i < ndim; i++)
        lengths[i] = PyLong_AsLongLong(PyTuple_GetItem(shape, i));
    if (PyErr_Occurred())
        return NULL;
    Incoming *one = &self->incoming[self->newest];
    replace(&one->shape, shape);
    replace(&one->dtype, dtype);
    memcpy(one->meta, meta, length);
    one->length = (uint32_t)length;
    one->ndim = ndim;
    one->kind = kind;
    memcpy(one->lengths, lengths, sizeof(int64_t) * ndim);
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

/* Find the oldest message of a known kind; NULL if there is none, or an error is set. */
static const Incoming *receiver_next(Receiver *self, PyObject *nanoseconds, uint64_t *tail, Message *message)
{
    const Shared *shared = &self->shared;
    long long limit = PyLong_AsLongLong(nanoseconds);
    if ((limit == -1 && PyErr_Occurred()) || !shared->memory)
        return NULL;
    *tail = look(shared, TAIL);
    if (self->head - *tail - 1 >= shared->capacity) { /* no message is known to wait: read the sender's count again */
        self->head = look(shared, HEAD);
        if (self->head == *tail)
            self->head = spin(shared, HEAD, *tail, limit);
        if (self->head == *tail)
            return NULL;
    }
    const char *place = entry(shared, *tail);
    memcpy(message, place, sizeof *message);
    if (message->slot >= self->slots || message->epoch != self->epoch || message->length > META
        || message->nbytes > self->stride)
        return NULL;
    return receiver_find(self, message, place + sizeof *message);
}

/* Publish that a message is taken. */
static void receiver_took(const Receiver *self, uint64_t tail)
{
    const Shared *shared = &self->shared;
    tell(shared, TAIL, tail + 1);
    atomic_thread_fence(memory_order_seq_cst); /* publish the count before reading whether the sender waits */
    /* A sender that waits for room is woken at half of the ring, not once for each message, unless it asks for 1. */
    uint64_t waits = look(shared, SENDER_WAITS);
    if (waits == 1 || (waits && 2 * (look(shared, HEAD) - tail - 1) <= shared->capacity))
        wake(shared);
}

/* Return a slot to the sender. */
static void receiver_give_back(const Receiver *self, uint32_t slot)
{
    const Shared *shared = &self->shared;
    uint64_t head = look(shared, RETURN_HEAD);
    if (head - look(shared, RETURN_TAIL) > shared->mask)
        return; /* the slot stays out of use, which is safe */
    atomic_store_explicit(returned(shared, head), (uint64_t)self->epoch << 32 | slot, memory_order_relaxed);
    tell(shared, RETURN_HEAD, head + 1);
}

static PyObject *receiver_recv(Receiver *self, PyObject *nanoseconds)
{
    uint64_t tail;
    Message message;
    const Incoming *one = receiver_next(self, nanoseconds, &tail, &message);
    if (!one)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
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
    if (!array || !self->shared.memory) {
        Py_DECREF(slot);
        return array;
    }
    slot->generation = self->generation;
    self->live++;
    Py_DECREF(slot);
    receiver_took(self, tail);
    return array;
}

static PyObject *receiver_use_tensors(Receiver *self, PyObject *capsule)
{
    return (self->torch = exchange(capsule)) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *receiver_recv_tensor(Receiver *self, PyObject *nanoseconds)
{
    uint64_t tail;
    Message message;
    const Incoming *one = receiver_next(self, nanoseconds, &tail, &message);
    if (!one || !one->kind || !self->torch)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    uint64_t count = (uint8_t)(one->kind >> 8) / 8;
    int fits = self->stride < UINT32_MAX; /* no product of two such numbers overflows */
    for (uint32_t i = 0; i < one->ndim && fits; i++) {
        fits = count <= self->stride && (uint64_t)one->lengths[i] <= self->stride;
        count *= (uint64_t)one->lengths[i];
    }
    if (!fits || count != message.nbytes) {
        PyErr_SetString(PyExc_ValueError, "the bytes of the message do not fit its description");
        return NULL;
    }
    const char *data = self->data + self->stride * message.slot;
    PyObject *made = new_tensor(self->torch, data, count, one->kind, one->ndim, one->lengths);
    if (made && self->shared.memory) {
        receiver_took(self, tail);
        receiver_give_back(self, message.slot);
    }
    return made;
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
    if (owner->shared.memory && self->generation == owner->generation && self->epoch == owner->epoch) {
        owner->live--;
        receiver_give_back(owner, self->slot);
    }
    Py_DECREF(self->base);
    Py_DECREF(owner);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef receiver_methods[] = {
    {"recv", (PyCFunction)receiver_recv, METH_O, "Return the next array, or None if it needs the slow path."},
    {"recv_tensor", (PyCFunction)receiver_recv_tensor, METH_O, "Return it as a tensor of its own, or None likewise."},
    {"use_tensors", (PyCFunction)receiver_use_tensors, METH_O, "Make tensors by a DLPack interface."},
    {"learn", (PyCFunction)receiver_learn, METH_VARARGS, "Remember the shape and dtype behind a description."},
    {"use_slab", (PyCFunction)receiver_use_slab, METH_VARARGS, "Use the slots of this array from now on."},
    {"pin", (PyCFunction)receiver_pin, METH_NOARGS, "Return none of the slots in use, ever; tell if there were any."},
    {"detach", (PyCFunction)receiver_detach, METH_NOARGS, "Release the ring's memory."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef receiver_fields[] = {
    {"epoch", (getter)receiver_get_epoch, NULL, "Number of the slab.", NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot receiver_slots[] = {{Py_tp_init, receiver_init}, {Py_tp_dealloc, receiver_dealloc},
    {Py_tp_methods, receiver_methods}, {Py_tp_getset, receiver_fields}, {0, NULL}};
PyType_Spec receiver_spec = {"xfer._native.ReceiverCore", sizeof(Receiver), 0, Py_TPFLAGS_DEFAULT,
    receiver_slots};

static PyType_Slot slot_slots[] = {{Py_tp_dealloc, slot_dealloc}, {Py_bf_getbuffer, slot_buffer}, {0, NULL}};
PyType_Spec slot_spec = {"xfer._native.Slot", sizeof(Slot), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slot_slots};
