/* The sending end: copies a small array into a free slot and publishes it. */

#include "tensor.h"

typedef struct {
    PyObject *dtype; /* compared by identity; the reference keeps the object alive. NULL for tensors */
    uint32_t kind, ndim, length; /* kind: of a tensor's elements */
    int64_t shape[MAX_DIMS];
    char meta[META];
} Outgoing;

typedef struct {
    PyObject_HEAD
    Shared shared;
    PyObject *ndarray, *dtype_name, *tensor, *is_neg;
    const Exchange *torch;
    Py_buffer slab;
    char *data;
    uint64_t stride, taken, last, tail;
    uint32_t slots, epoch, free_count;
    uint32_t *free;
    uint8_t *away;
    uint32_t known, newest;
    Outgoing outgoing[KNOWN];
} Sender;

static int sender_init(Sender *self, PyObject *args, PyObject *kwargs)
{
    PyObject *ndarray;
    if (share(&self->shared, args, &ndarray) < 0)
        return -1;
    self->ndarray = Py_NewRef(ndarray);
    self->dtype_name = PyUnicode_InternFromString("dtype");
    self->is_neg = PyUnicode_InternFromString("is_neg");
    self->tail = look(&self->shared, TAIL);
    self->taken = look(&self->shared, RETURN_TAIL);
    return self->dtype_name && self->is_neg ? 0 : -1;
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
    Py_XDECREF(self->is_neg);
    Py_XDECREF(self->tensor);
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

/* A place for a description, not to be found until `ndim` is set. */
static Outgoing *sender_new(Sender *self, const char *meta, Py_ssize_t length)
{
    Outgoing *one = &self->outgoing[self->newest];
    one->ndim = UINT32_MAX;
    memcpy(one->meta, meta, length);
    one->length = (uint32_t)length;
    self->newest = (self->newest + 1) % KNOWN;
    if (self->known < KNOWN)
        self->known++;
    return one;
}

static PyObject *sender_learn(Sender *self, PyObject *args)
{
    PyObject *dtype, *shape, *description;
    char *meta;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "OO!S", &dtype, &PyTuple_Type, &shape, &description) ||
        PyBytes_AsStringAndSize(description, &meta, &length))
        return NULL;
    Py_ssize_t ndim = PyTuple_Size(shape);
    if (ndim > MAX_DIMS || length > META) {
        PyErr_SetString(PyExc_ValueError, "the description is too long");
        return NULL;
    }
    Outgoing *one = sender_new(self, meta, length);
    replace(&one->dtype, dtype);
    for (Py_ssize_t i = 0; i < ndim; i++)
        one->shape[i] = PyLong_AsSsize_t(PyTuple_GetItem(shape, i));
    if (PyErr_Occurred())
        return NULL;
    one->ndim = (uint32_t)ndim;
    Py_RETURN_NONE;
}

static PyObject *sender_use_tensors(Sender *self, PyObject *args)
{
    PyObject *kind, *capsule;
    if (!PyArg_ParseTuple(args, "OO", &kind, &capsule) || !(self->torch = exchange(capsule)))
        return NULL;
    replace(&self->tensor, kind);
    Py_RETURN_NONE;
}

static PyObject *sender_learn_tensor(Sender *self, PyObject *args)
{
    PyObject *array, *description;
    char *meta;
    Py_ssize_t length;
    Tensor view;
    if (!PyArg_ParseTuple(args, "OS", &array, &description) || PyBytes_AsStringAndSize(description, &meta, &length))
        return NULL;
    if (length > META) {
        PyErr_SetString(PyExc_ValueError, "the description is too long");
        return NULL;
    }
    if ((PyObject *)Py_TYPE(array) == self->tensor && look_at(self->torch, self->is_neg, array, &view) >= 0) {
        Outgoing *one = sender_new(self, meta, length);
        Py_CLEAR(one->dtype);
        one->kind = kind_of(&view);
        memcpy(one->shape, view.shape, sizeof(int64_t) * view.ndim);
        one->ndim = (uint32_t)view.ndim;
    }
    Py_RETURN_NONE;
}

static void sender_drain(Sender *self)
{
    const Shared *shared = &self->shared;
    uint64_t head = look(shared, RETURN_HEAD);
    if (head - self->taken > shared->mask + 1)
        return; /* a correct receiver never counts that far */
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

static const Outgoing *sender_find(const Sender *self, PyObject *dtype, uint32_t kind, int ndim, const void *shape)
{
    for (uint32_t i = 0; i < self->known; i++) {
        const Outgoing *one = &self->outgoing[i];
        if (one->dtype == dtype && one->ndim == (uint32_t)ndim && (dtype || one->kind == kind)
            && !memcmp(one->shape, shape, sizeof(int64_t) * ndim))
            return one;
    }
    return NULL;
}

/* Copy bytes into a free slot and publish them. */
static int sender_publish(Sender *self, uint64_t head, const Outgoing *one, const void *data, uint64_t count)
{
    const Shared *shared = &self->shared;
    uint32_t slot = self->free[--self->free_count];
    self->away[slot] = 1;
    memcpy(self->data + self->stride * slot, data, count);
    char *place = entry(shared, head);
    Message message = {one->length, slot, count, one->ndim, self->epoch};
    memcpy(place, &message, sizeof message);
    memcpy(place + sizeof message, one->meta, one->length);
    self->last = head + 1;
    tell(shared, HEAD, head + 1);
    atomic_thread_fence(memory_order_seq_cst); /* publish the message before reading whether the receiver waits */
    if (look(shared, RECEIVER_WAITS))
        wake(shared);
    return SENT;
}

static int sender_array(Sender *self, uint64_t head, PyObject *array)
{
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS) < 0) {
        PyErr_Clear();
        return CANNOT;
    }
    int result = CANNOT;
    PyObject *dtype = NULL;
    if (view.len > 0 && (uint64_t)view.len <= self->stride) {
        if ((dtype = PyObject_GetAttr(array, self->dtype_name))) {
            const Outgoing *one = sender_find(self, dtype, 0, view.ndim, view.shape);
            result = one ? sender_publish(self, head, one, view.buf, view.len) : UNKNOWN;
        } else {
            PyErr_Clear();
        }
    }
    Py_XDECREF(dtype);
    PyBuffer_Release(&view);
    return result;
}

static int sender_tensor(Sender *self, uint64_t head, PyObject *array)
{
    Tensor view;
    int64_t count = look_at(self->torch, self->is_neg, array, &view);
    if (count <= 0 || (uint64_t)count > self->stride)
        return CANNOT;
    const Outgoing *one = sender_find(self, NULL, kind_of(&view), view.ndim, view.shape);
    return one ? sender_publish(self, head, one, (char *)view.data + view.offset, count) : UNKNOWN;
}

static int sender_try(Sender *self, PyObject *array, long long nanoseconds)
{
    const Shared *shared = &self->shared;
    PyObject *kind = (PyObject *)Py_TYPE(array);
    if (!shared->memory || !self->data || (kind != self->ndarray && kind != self->tensor)
        || look(shared, RECEIVER_CLOSED))
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
    return kind == self->tensor ? sender_tensor(self, head, array) : sender_array(self, head, array);
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

static PyMethodDef sender_methods[] = {
    {"send", (PyCFunction)(void (*)(void))sender_send, METH_FASTCALL, "Copy a known kind of array into a free slot."},
    {"learn", (PyCFunction)sender_learn, METH_VARARGS, "Remember how arrays of a dtype and shape are described."},
    {"use_tensors", (PyCFunction)sender_use_tensors, METH_VARARGS, "Take tensors of a class by its DLPack interface."},
    {"learn_tensor", (PyCFunction)sender_learn_tensor, METH_VARARGS, "Remember how tensors like one are described."},
    {"use_slab", (PyCFunction)sender_use_slab, METH_VARARGS, "Use slots of this memory from now on."},
    {"drop_slab", (PyCFunction)sender_let_slab_go, METH_NOARGS, "Release the slab's memory."},
    {"detach", (PyCFunction)sender_detach, METH_NOARGS, "Release all memory."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef sender_fields[] = {
    {"stride", (getter)sender_get_stride, NULL, "Bytes of a slot.", NULL},
    {"epoch", (getter)sender_get_epoch, NULL, "Number of the slab.", NULL},
    {"last", (getter)sender_get_last, NULL, "Count of messages up to the last one in a slot.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot sender_slots[] = {{Py_tp_init, sender_init}, {Py_tp_dealloc, sender_dealloc},
    {Py_tp_methods, sender_methods}, {Py_tp_getset, sender_fields}, {0, NULL}};
PyType_Spec sender_spec = {"xfer._native.SenderCore", sizeof(Sender), 0, Py_TPFLAGS_DEFAULT, sender_slots};
