/* What both ends of a channel have: its shared memory, and looking and waiting there.

   The memory layout is that of _channel/layout.py; ring.py and slab.py do the same in Python, and either end may run
   either one. `layout()` reports these numbers, and Python refuses a core whose numbers differ from its own.
   Everything here runs under the interpreter's lock, and each end under its own lock, except the waiting. */

#ifndef XFER_SHARED_H
#define XFER_SHARED_H

/* No format with a "#": compiled against Python 3.13 it would mean another function than 3.11 and 3.12 have. */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() ((void)0)
#endif

enum { HEAD, TAIL, SENDER_PID, RECEIVER_PID, SENDER_CLOSED, RECEIVER_CLOSED, SENDER_WAITS, RECEIVER_WAITS, CAPACITY,
       RETURN_HEAD, RETURN_TAIL, SLAB_SPENT, COUNTERS };
enum { SENT, CANNOT, UNKNOWN, FULL };
enum { ENTRY = 640, RETURNS_AT = 1536, DRAIN_EACH = 8, KNOWN = 8, MAX_DIMS = 64, COUNTER = 64 };

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

static inline _Atomic uint64_t *word(const Shared *shared, int number)
{
    return (_Atomic uint64_t *)(shared->memory + COUNTER * number);
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

static inline void wake(const Shared *shared)
{
    ssize_t ignored = write(shared->bell, "", 1); /* a full pipe wakes as well; a broken one has no reader left */
    (void)ignored;
}

static inline int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

/* Look at a word until it differs from `value` or the time is up; return what it is. */
static inline uint64_t spin(const Shared *shared, int number, uint64_t value, long long nanoseconds)
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

static inline void replace(PyObject **place, PyObject *object)
{
    PyObject *old = *place;
    *place = Py_NewRef(object);
    Py_XDECREF(old);
}

/* Take the arguments that either end is made with; the class of arrays is borrowed. */
static inline int share(Shared *shared, PyObject *args, PyObject **ndarray)
{
    PyObject *memory;
    unsigned long long capacity, entries, returns;
    int bell;
    if (shared->memory) {
        PyErr_SetString(PyExc_TypeError, "made before");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "OKKKiO", &memory, &capacity, &entries, &returns, &bell, ndarray)
        || PyObject_GetBuffer(memory, &shared->buffer, PyBUF_WRITABLE) < 0)
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

static inline void unshare(Shared *shared)
{
    if (shared->memory)
        PyBuffer_Release(&shared->buffer);
    shared->memory = NULL;
}

/* Copy a part of `total` bytes, past the cache where the whole does not fit it; `copied` orders it before what follows.
   `next` is what will be copied after it, or NULL: its start is read ahead, as the rest of the part is. */
void copy_bytes(char *to, const char *from, size_t count, const char *next, unsigned long long total);
void copied(void);

PyObject *tree_look(PyObject *module, PyObject *args);
PyObject *tree_write(PyObject *module, PyObject *args);
PyObject *tree_tensors(PyObject *module, PyObject *args);

extern PyType_Spec sender_spec, receiver_spec, slot_spec;
extern PyTypeObject *slot_type;

#endif
