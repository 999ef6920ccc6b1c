/* The extension module: both ends of a channel, and the copy of large arrays. */

#include "shared.h"

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

enum { PART = 1 << 14 }; /* a part of a large copy that is worth streaming by itself */

static PyObject *copy(PyObject *module, PyObject *args)
{
    PyObject *target, *source;
    unsigned long long offset, total = 0; /* of how many bytes in all this copy is a part */
    Py_buffer to, from;
    if (!PyArg_ParseTuple(args, "OKO|K", &target, &offset, &source, &total)
        || PyObject_GetBuffer(source, &from, PyBUF_ANY_CONTIGUOUS) < 0)
        return NULL;
    if (PyObject_GetBuffer(target, &to, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&from);
        return NULL;
    }
    int fits = offset <= (unsigned long long)to.len && (unsigned long long)from.len <= to.len - offset;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        if ((size_t)from.len >= stream_from || (from.len >= PART && total >= stream_from))
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

/* The numbers that _channel/layout.py has as well. */
static PyObject *layout(PyObject *module, PyObject *unused)
{
    return Py_BuildValue("{si si si si si si si si si si}", "counters", COUNTERS, "counter_bytes", COUNTER,
                         "returns_at", RETURNS_AT, "entry", ENTRY, "message", (int)sizeof(Message), "drain_each",
                         DRAIN_EACH, "sent", SENT, "cannot", CANNOT, "unknown", UNKNOWN, "full", FULL);
}

static PyMethodDef functions[] = {
    {"layout", layout, METH_NOARGS, "Return where everything lies in a channel's memory."},
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
