/* Tensors of torch by its DLPack exchange interface (DLPack 1.2 and later), without torch's headers.

   `use_tensors` takes the class and the address of the interface. Only tensors of exactly that class are taken. */

#ifndef XFER_TENSOR_H
#define XFER_TENSOR_H

#include "shared.h"

#include <stdlib.h>

typedef struct {
    void *data;
    int32_t device, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
} Tensor;

typedef struct Managed {
    uint32_t major, minor;
    void *context;
    void (*deleter)(struct Managed *);
    uint64_t flags;
    Tensor tensor;
} Managed;

typedef struct {
    uint32_t major, minor;
    void *older, *allocate;
    int (*take)(void *, Managed **);
    int (*give)(Managed *, void **);
    int (*look)(void *, Tensor *);
} Exchange;

enum { ON_HOST = 1, COMPLEX = 5, ALIGNED = 64 };

/* The interface, or NULL with an error set where it is of a later kind. */
static inline const Exchange *exchange(PyObject *capsule)
{
    const Exchange *found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    if (found && (found->major != 1 || !found->take || !found->give || !found->look)) {
        PyErr_SetString(PyExc_ValueError, "this DLPack interface is of another version");
        return NULL;
    }
    return found;
}

static inline uint32_t kind_of(const Tensor *tensor)
{
    return tensor->code | (uint32_t)tensor->bits << 8 | (uint32_t)tensor->lanes << 16;
}

/* How many bytes lie in one block, in the order of the shape; -1 if they do not. */
static inline int64_t bytes_of(const Tensor *tensor)
{
    int64_t count = 1;
    for (int32_t i = tensor->ndim - 1; i >= 0; i--) {
        if (tensor->strides && tensor->shape[i] != 1 && tensor->strides[i] != count)
            return -1;
        count *= tensor->shape[i];
    }
    return tensor->bits % 8 ? -1 : count * (tensor->bits / 8) * tensor->lanes;
}

/* Look at a tensor: how many bytes it has, or -1 where it is not to be copied as it lies. */
static inline int64_t look_at(const Exchange *torch, PyObject *is_neg, PyObject *tensor, Tensor *view)
{
    if (torch->look(tensor, view)) {
        PyErr_Clear();
        return -1;
    }
    if (view->device != ON_HOST || view->code == COMPLEX || view->ndim > MAX_DIMS)
        return -1; /* a complex tensor may be conjugated when it is read */
    PyObject *negated = PyObject_CallMethodObjArgs(tensor, is_neg, NULL); /* so may a real one be negated */
    Py_XDECREF(negated);
    if (negated != Py_False) {
        PyErr_Clear();
        return -1;
    }
    int64_t count = bytes_of(view);
    return count > 0 && !view->data ? -1 : count; /* zeros that torch keeps no memory for */
}

static inline void free_managed(Managed *managed) { free(managed); }

/* A new tensor over a copy of these bytes. */
static inline PyObject *new_tensor(const Exchange *torch, const char *data, size_t count, uint32_t kind, uint32_t ndim,
                                   const int64_t *shape)
{
    size_t head = (sizeof(Managed) + 2 * sizeof(int64_t) * ndim + ALIGNED - 1) / ALIGNED * ALIGNED;
    char *memory = aligned_alloc(ALIGNED, head + (count + ALIGNED - 1) / ALIGNED * ALIGNED);
    if (!memory)
        return PyErr_NoMemory();
    Managed *managed = (Managed *)memory;
    int64_t *lengths = (int64_t *)(managed + 1), *strides = lengths + ndim, stride = 1;
    for (uint32_t i = ndim; i-- > 0; stride *= shape[i]) {
        lengths[i] = shape[i];
        strides[i] = stride;
    }
    memcpy(memory + head, data, count);
    *managed = (Managed){1, 0, NULL, free_managed, 0,
                         {memory + head, ON_HOST, 0, (int32_t)ndim, (uint8_t)kind, (uint8_t)(kind >> 8),
                          (uint16_t)(kind >> 16), lengths, strides, 0}};
    void *made = NULL;
    if (torch->give(managed, &made)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "torch refused the tensor");
        return NULL;
    }
    return made;
}

#endif
