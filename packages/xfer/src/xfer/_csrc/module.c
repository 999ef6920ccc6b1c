/* The extension module: both ends of a channel, trees of tensors, and the copy of large arrays. */

#include "shared.h"

static size_t stream_from = (size_t)32 << 20; /* what fits the cache is better left there for the reader */

#if defined(__x86_64__)
#include <cpuid.h>

static int whole_lines; /* whether `wide` is used */

/* Not by __builtin_cpu_supports, which says no in a library that some linkers make. */
static int has_avx512(void)
{
    unsigned a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) /* no xgetbv */
        return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    return (saved & 0xe6) == 0xe6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 16 & 1;
}

enum { LINE = 64, AHEAD = 2048 }; /* bytes read ahead of the copy: the processor's own prefetching ends with each page */

/* Have a line read that stays out of the outer caches, so that what lies there stays. */
static inline void read_ahead(const char *from, size_t at, size_t count, const char *next)
{
    uintptr_t line = at + AHEAD < count ? (uintptr_t)from + at + AHEAD : (uintptr_t)next + (at + AHEAD - count);
    _mm_prefetch((const char *)line, _MM_HINT_NTA);
}

static inline void line(char *to, const char *from)
{
    const __m128i *source = (const __m128i *)from;
    __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    __m128i *target = (__m128i *)to;
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
}

/* The same with one store for the whole line, an eighth faster. */
__attribute__((target("avx512f"))) static void wide(char *to, const char *from, size_t count, const char *next)
{
    for (size_t at = 0; at < count; at += LINE) {
        read_ahead(from, at, count, next);
        _mm512_stream_si512((__m512i *)(to + at), _mm512_loadu_si512(from + at));
    }
}

/* Stores that pass by the cache: the old content of the target is not read first, which is a third of the traffic. */
static void stream(char *to, const char *from, size_t count, const char *next)
{
    size_t lead = (-(uintptr_t)to) & (LINE - 1);
    if (lead > count)
        lead = count;
    memcpy(to, from, lead);
    to += lead;
    from += lead;
    size_t whole = (count - lead) & ~(size_t)(LINE - 1);
    memcpy(to + whole, from + whole, count - lead - whole);
    if (whole_lines) {
        wide(to, from, whole, next);
        return;
    }
    /* A load waits for an earlier store whose address has the same last 12 bits, so go where it has none. */
    if ((((uintptr_t)to - (uintptr_t)from) & 4095) < 2048)
        for (size_t at = whole; at > 0; at -= LINE) {
            _mm_prefetch((const char *)((uintptr_t)from + at - LINE - AHEAD), _MM_HINT_NTA);
            line(to + at - LINE, from + at - LINE);
        }
    else
        for (size_t at = 0; at < whole; at += LINE) {
            read_ahead(from, at, whole, next);
            line(to + at, from + at);
        }
}
#define FENCE() _mm_sfence()
#else
#define stream(to, from, count, next) memcpy(to, from, count)
#define FENCE() ((void)0)
#endif

enum { PART = 1 << 14 }; /* a part of a large copy that is worth streaming by itself */

void copied(void) { FENCE(); }

void copy_bytes(char *to, const char *from, size_t count, const char *next, unsigned long long total)
{
    if (count >= stream_from || (count >= PART && total >= stream_from))
        stream(to, from, count, next ? next : from + count);
    else
        memcpy(to, from, count);
}

/* Choose how large arrays are copied, for tests; return whether whole lines were stored until now. */
static PyObject *store_whole_lines(PyObject *module, PyObject *wanted)
{
#if defined(__x86_64__)
    int before = whole_lines, now = PyObject_IsTrue(wanted);
    if (now < 0)
        return NULL;
    whole_lines = now && has_avx512();
    return PyBool_FromLong(before);
#else
    Py_RETURN_FALSE;
#endif
}

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
        copy_bytes((char *)to.buf + offset, from.buf, (size_t)from.len, NULL, total);
        copied();
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

#ifndef SOURCES
#define SOURCES "unknown"
#endif

/* Which sources this was compiled from, by the rule of _sources.py. */
static PyObject *sources(PyObject *module, PyObject *unused) { return PyUnicode_FromString(SOURCES); }

static PyMethodDef functions[] = {
    {"layout", layout, METH_NOARGS, "Return where everything lies in a channel's memory."},
    {"sources", sources, METH_NOARGS, "Return a digest of the sources that this was compiled from."},
    {"copy", copy, METH_VARARGS, "Copy a contiguous array behind an offset of writable memory, past the cache."},
    {"store_whole_lines", store_whole_lines, METH_O, "Choose how large arrays are copied; return how they were."},
    {"look", tree_look, METH_VARARGS, "Describe the tensors of a list, and return the indexes of all other leaves."},
    {"write", tree_write, METH_VARARGS, "Copy the tensors of a list behind an offset of writable memory."},
    {"tensors", tree_tensors, METH_VARARGS, "Make tensors over a writable block of bytes."},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, functions};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
#if defined(__x86_64__)
    whole_lines = has_avx512();
#endif
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
