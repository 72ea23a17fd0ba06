/*
 * A trace function that has something happen at one opcode, and changes nothing else.
 *
 * It is C, so that it runs no Python by itself: CPython looks for signals where it always does, and
 * not in the tracer. The few functions of its API that this takes are declared here, for headers
 * are not installed everywhere; all of them are the same from 3.11 on.
 */

#include <stddef.h>
#include <string.h>

typedef struct object object;
typedef int (*trace_function)(object *, object *, int, object *);

extern void PyEval_SetTrace(trace_function function, object *argument);
extern object *PyFrame_GetBack(object *frame);
extern object *PyFrame_GetCode(object *frame);
extern int PyFrame_GetLineNumber(object *frame);
extern object *PyObject_GetAttrString(object *of, const char *name);
extern int PyObject_SetAttrString(object *of, const char *name, object *value);
extern int PyObject_IsTrue(object *value);
extern const char *PyUnicode_AsUTF8(object *string);
extern object *PyBool_FromLong(long value);
extern void PyErr_SetNone(object *kind);
extern void PyErr_SetInterrupt(void);
extern int PyThreadState_SetAsyncExc(unsigned long thread, object *kind);
extern unsigned long PyThread_get_thread_ident(void);
extern void Py_DecRef(object *value);
extern object *PyExc_KeyboardInterrupt;

enum { CALL = 0, EXCEPTION = 1, OPCODE = 7 }; /* PyTrace_* in cpython/pystate.h */
enum { SIGNAL, ASYNCHRONOUS, AT_ONCE };

struct strike {
    const char *package, *programs; /* folders */
    long place;                     /* which opcode strikes; -1: none */
    long seen;                      /* how many there were so far */
    long landed;                    /* after how many the exception came; -1: it has not */
    int how, line, has_struck;
    char file[200];                 /* where it was */
};

static struct strike *current;

static int is_in(object *frame, const char *folder, char *name, size_t size)
{
    object *code = PyFrame_GetCode(frame);
    object *file = PyObject_GetAttrString(code, "co_filename");
    const char *text = PyUnicode_AsUTF8(file);
    int is_inside = strncmp(text, folder, strlen(folder)) == 0;
    if (name != NULL)
        strncpy(name, text, size - 1);
    Py_DecRef(file);
    Py_DecRef(code);
    return is_inside;
}

static int is_traced(object *frame)
{
    object *flag = PyObject_GetAttrString(frame, "f_trace_opcodes");
    int is_true = PyObject_IsTrue(flag);
    Py_DecRef(flag);
    return is_true;
}

static void trace_opcodes(object *frame)
{
    object *yes = PyBool_FromLong(1), *no = PyBool_FromLong(0);
    PyObject_SetAttrString(frame, "f_trace", yes); /* any object: 3.13 looks whether there is one */
    PyObject_SetAttrString(frame, "f_trace_lines", no);
    PyObject_SetAttrString(frame, "f_trace_opcodes", yes);
    Py_DecRef(yes);
    Py_DecRef(no);
}

/* What counts are the opcodes of the package, and of what it calls, but for the programs. */
static int step(object *argument, object *frame, int what, object *value)
{
    (void)argument;
    (void)value;
    if (current == NULL)
        return 0;
    if (what == CALL && !is_in(frame, current->programs, NULL, 0)) {
        int is_below = is_in(frame, current->package, NULL, 0);
        object *caller = is_below ? NULL : PyFrame_GetBack(frame);
        if (is_below || (caller != NULL && is_traced(caller)))
            trace_opcodes(frame);
        if (caller != NULL)
            Py_DecRef(caller);
    }
    if (what == EXCEPTION && current->has_struck && current->landed < 0)
        current->landed = current->seen;
    if (what != OPCODE || !is_traced(frame) || current->seen++ != current->place)
        return 0;
    current->has_struck = 1;
    current->line = PyFrame_GetLineNumber(frame);
    is_in(frame, "", current->file, sizeof current->file);
    if (current->how == AT_ONCE) {
        PyErr_SetNone(PyExc_KeyboardInterrupt);
        return -1;
    }
    if (current->how == ASYNCHRONOUS)
        PyThreadState_SetAsyncExc(PyThread_get_thread_ident(), PyExc_KeyboardInterrupt);
    else
        PyErr_SetInterrupt();
    return 0;
}

void strike_begin(struct strike *strike)
{
    current = strike;
    PyEval_SetTrace(step, NULL);
}

void strike_end(void)
{
    PyEval_SetTrace(NULL, NULL);
    current = NULL;
}
