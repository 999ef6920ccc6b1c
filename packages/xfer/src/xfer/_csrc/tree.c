/* Trees of tensors: their descriptions, the copy of their bytes, and tensors over a block of bytes, all in one call. */

#include "tensor.h"

enum { ROOM = 8 + 8 * MAX_DIMS }; /* the most that a description takes */

/* Ask for the memory of tensors before it is used: after a large copy it lies in no cache, and waiting for one tensor at
   a time takes longer than all else here. What an object's fields point to is only a hint, and is never read here. */
static void warm(PyObject *leaves, PyObject *class)
{
    Py_ssize_t count = PyList_Size(leaves);
    for (Py_ssize_t i = 0; i < count; i++)
        __builtin_prefetch(PyList_GetItem(leaves, i));
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *leaf = PyList_GetItem(leaves, i);
        if ((PyObject *)Py_TYPE(leaf) == class) {
            const char *field = ((const char *const *)(leaf + 1))[0];
            for (int at = 0; at < 256; at += 64)
                __builtin_prefetch((const void *)((uintptr_t)field + (uintptr_t)at));
        }
    }
}

/* Describe the tensors among the leaves; return the descriptions and the indexes of all other leaves. */
PyObject *tree_look(PyObject *module, PyObject *args)
{
    PyObject *leaves, *class, *capsule, *others = NULL, *found = NULL;
    const Exchange *torch;
    if (!PyArg_ParseTuple(args, "O!OO", &PyList_Type, &leaves, &class, &capsule) || !(torch = exchange(capsule)))
        return NULL;
    PyObject *is_neg = PyUnicode_InternFromString("is_neg");
    size_t used = 0, room = 4096;
    char *text = PyMem_Malloc(room);
    others = PyList_New(0);
    int failed = !is_neg || !text || !others;
    warm(leaves, class);
    for (Py_ssize_t i = 0; !failed && i < PyList_Size(leaves); i++) {
        PyObject *leaf = Py_NewRef(PyList_GetItem(leaves, i));
        Tensor view;
        uint32_t head[2] = {0, 0};
        if ((PyObject *)Py_TYPE(leaf) == class && look_at(torch, is_neg, leaf, &view) >= 0) {
            head[0] = kind_of(&view);
            head[1] = (uint32_t)view.ndim;
        } else {
            PyObject *index = PyLong_FromSsize_t(i);
            failed = !index || PyList_Append(others, index) < 0;
            Py_XDECREF(index);
        }
        if (!failed && used + ROOM > room) {
            char *more = PyMem_Realloc(text, room *= 2);
            failed = !more;
            text = more ? more : text;
        }
        if (!failed) {
            memcpy(text + used, head, sizeof head);
            used += sizeof head;
            if (head[1])
                memcpy(text + used, view.shape, 8 * head[1]);
            used += 8 * head[1];
        }
        Py_DECREF(leaf);
    }
    if (!failed)
        found = Py_BuildValue("(NO)", PyBytes_FromStringAndSize(text, (Py_ssize_t)used), others);
    else if (!PyErr_Occurred())
        PyErr_NoMemory();
    PyMem_Free(text);
    Py_XDECREF(is_neg);
    Py_XDECREF(others);
    return found;
}

typedef struct {
    uint64_t offset, count;
} Extent;

/* Take hold of the memory of the tensors, so that no other thread can free it; return how many, or -1. */
static Py_ssize_t hold(const Exchange *torch, PyObject *leaves, PyObject *class, const Extent *extents, Managed **held,
                       uint64_t room)
{
    Py_ssize_t count = PyList_Size(leaves);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *leaf = PyList_GetItem(leaves, i);
        held[i] = NULL;
        if ((PyObject *)Py_TYPE(leaf) != class)
            continue;
        if (torch->take(leaf, &held[i]) || !held[i]) {
            held[i] = NULL;
            return -1;
        }
        const Extent *extent = &extents[i];
        int64_t bytes = bytes_of(&held[i]->tensor);
        if (bytes < 0 || (uint64_t)bytes != extent->count || extent->offset > room
            || extent->count > room - extent->offset) {
            PyErr_SetString(PyExc_ValueError, "a tensor was resized while its tree was put");
            return -1;
        }
    }
    return count;
}

static const char *start_of(const Managed *managed)
{
    return (const char *)managed->tensor.data + managed->tensor.offset;
}

/* Copy the tensors among the leaves to their extents behind an offset of writable memory. */
PyObject *tree_write(PyObject *module, PyObject *args)
{
    PyObject *memory, *places, *leaves, *class, *capsule;
    const Exchange *torch;
    unsigned long long start, total;
    char *text;
    Py_ssize_t length;
    Py_buffer to;
    if (!PyArg_ParseTuple(args, "OKSO!OOK", &memory, &start, &places, &PyList_Type, &leaves, &class, &capsule, &total)
        || !(torch = exchange(capsule)) || PyBytes_AsStringAndSize(places, &text, &length) < 0)
        return NULL;
    Py_ssize_t count = PyList_Size(leaves);
    if (length != count * (Py_ssize_t)sizeof(Extent)) {
        PyErr_SetString(PyExc_ValueError, "each leaf needs one extent");
        return NULL;
    }
    if (PyObject_GetBuffer(memory, &to, PyBUF_WRITABLE) < 0)
        return NULL;
    const Extent *extents = (const Extent *)text;
    Managed **held = PyMem_Calloc(count ? (size_t)count : 1, sizeof *held);
    Py_ssize_t ready = -1;
    if (!held)
        PyErr_NoMemory();
    else if (start > (unsigned long long)to.len)
        PyErr_SetString(PyExc_ValueError, "the bytes do not fit behind the offset");
    else
        ready = hold(torch, leaves, class, extents, held, (uint64_t)to.len - start);
    if (ready > 0) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < ready; i++)
            if (held[i])
                copy_bytes((char *)to.buf + start + extents[i].offset, start_of(held[i]), extents[i].count,
                           i + 1 < ready && held[i + 1] ? start_of(held[i + 1]) : NULL, total);
        copied();
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t i = 0; held && i < count; i++)
        if (held[i] && held[i]->deleter)
            held[i]->deleter(held[i]);
    PyMem_Free(held);
    PyBuffer_Release(&to);
    if (ready < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* A block of bytes that tensors lie over; it ends with the last of them. */
typedef struct {
    _Atomic size_t users;
    Py_buffer view;
} Block;

static void drop(Block *block)
{
    if (atomic_fetch_sub(&block->users, 1) != 1)
        return;
    if (Py_IsInitialized()) {
        PyGILState_STATE state = PyGILState_Ensure();
        PyBuffer_Release(&block->view);
        PyGILState_Release(state);
    }
    free(block);
}

static void drop_managed(Managed *managed)
{
    Block *block = managed->context;
    free(managed);
    drop(block);
}

typedef struct {
    uint32_t kind, ndim;
    uint64_t offset;
} Leaf;

/* A tensor over a part of a block, or NULL with an error set. */
static PyObject *over(const Exchange *torch, Block *block, uint64_t start, const Leaf *leaf, const char *shape)
{
    uint64_t length = (uint64_t)block->view.len, count = (uint8_t)(leaf->kind >> 8) / 8;
    Managed *managed = malloc(sizeof *managed + 16 * leaf->ndim);
    if (!managed)
        return PyErr_NoMemory();
    int64_t *lengths = (int64_t *)(managed + 1), *strides = lengths + leaf->ndim, stride = 1;
    memcpy(lengths, shape, 8 * leaf->ndim);
    int fits = length <= INT64_MAX;
    for (uint32_t i = leaf->ndim; i-- > 0;) {
        strides[i] = stride;
        fits = fits && lengths[i] >= 0 && !__builtin_mul_overflow(stride, lengths[i] ? lengths[i] : 1, &stride)
               && !__builtin_mul_overflow(count, (uint64_t)lengths[i], &count);
    }
    if (!fits || leaf->offset > length || start > length - leaf->offset || count > length - leaf->offset - start) {
        free(managed);
        PyErr_SetString(PyExc_ValueError, "a tensor lies outside its block");
        return NULL;
    }
    char *data = (char *)block->view.buf + start + leaf->offset;
    *managed = (Managed){1, 0, block, drop_managed, 0,
                         {data, ON_HOST, 0, (int32_t)leaf->ndim, (uint8_t)leaf->kind, (uint8_t)(leaf->kind >> 8),
                          (uint16_t)(leaf->kind >> 16), lengths, strides, 0}};
    atomic_fetch_add(&block->users, 1);
    void *made = NULL;
    if (torch->give(managed, &made)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "torch refused the tensor");
        drop_managed(managed);
        return NULL;
    }
    return made;
}

/* Make a list of tensors over a writable block; None stands where the description has no kind of elements. */
PyObject *tree_tensors(PyObject *module, PyObject *args)
{
    PyObject *bytes, *description, *capsule;
    const Exchange *torch;
    unsigned long long start;
    char *text;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "OKSO", &bytes, &start, &description, &capsule) || !(torch = exchange(capsule))
        || PyBytes_AsStringAndSize(description, &text, &length) < 0)
        return NULL;
    Block *block = malloc(sizeof *block);
    if (!block)
        return PyErr_NoMemory();
    if (PyObject_GetBuffer(bytes, &block->view, PyBUF_WRITABLE) < 0) {
        free(block);
        return NULL;
    }
    atomic_init(&block->users, 1);
    PyObject *found = PyList_New(0);
    for (const char *at = text, *end = text + length; found && at < end;) {
        Leaf leaf;
        PyObject *made = NULL;
        if ((size_t)(end - at) >= sizeof leaf) {
            memcpy(&leaf, at, sizeof leaf);
            at += sizeof leaf;
            if (leaf.ndim <= MAX_DIMS && (size_t)(end - at) >= 8 * leaf.ndim)
                made = leaf.kind ? over(torch, block, start, &leaf, at) : Py_NewRef(Py_None);
            at += 8 * leaf.ndim;
        }
        if (!made || PyList_Append(found, made) < 0) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "the description is cut off");
            Py_CLEAR(found);
        }
        Py_XDECREF(made);
    }
    drop(block);
    return found;
}
