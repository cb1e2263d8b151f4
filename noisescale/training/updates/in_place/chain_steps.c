/* Steps of plain SGD on a chain of linear layers and activations, in one call.

At a small batch size a step is a few passes over the weights, and what Python and the libraries do
around each matrix product takes longer than these. Here the update of a layer waits for its next
forward pass, which makes it row by row, just before a row is used, so that both take one pass. What
a step computes does not depend on how many are made in a call: the arithmetic is the same. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { IDENTITY, RELU, TANH };           /* activations, as compiled.py numbers them */
enum { CROSS_ENTROPY, SQUARED_ERROR };   /* losses, likewise */
enum { AT_ONCE = 4 };                    /* rows, or examples, that share what is loaded */

/* A layer as compiled.py writes it: five numbers of 64 bits. */
typedef struct {
    float *weight; /* (rows, cols) */
    float *bias;   /* (rows,), or NULL */
    int64_t rows, cols;
    int64_t activation; /* of its outputs */
} Layer;

typedef struct {
    float *outputs[2]; /* (batch, rows), of even and odd steps */
    float *grad;       /* (batch, rows), of the mean loss at the products, before the activation */
} Buffers;

typedef struct {
    const Layer *layers;
    Buffers *buffers;
    int64_t depth, batch, loss;
    float rate, decay;
} Chain;

#define INLINE static inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")

/* row -= rate * (sum over the batch of coefficient * input + decay * row)

In one expression, for 1 - rate * decay is 1 in float32 where they are small. */
INLINE void update_row(float *restrict row, const float *coefficients, int64_t stride,
                       const float *restrict inputs, int64_t cols, const Chain *chain)
{
    float decay = chain->rate * chain->decay; /* in the first of the sums below */
    int64_t b = 0;
    for (; b + AT_ONCE <= chain->batch; b += AT_ONCE) {
        float c[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) c[k] = chain->rate * coefficients[(b + k) * stride];
        if (c[0] == 0 && c[1] == 0 && c[2] == 0 && c[3] == 0 && decay == 0) continue;
        const float *x0 = inputs + b * cols, *x1 = x0 + cols, *x2 = x1 + cols, *x3 = x2 + cols;
        SIMD for (int64_t j = 0; j < cols; j++)
            row[j] -= (c[0] * x0[j] + c[1] * x1[j]) + (c[2] * x2[j] + c[3] * x3[j]) + decay * row[j];
        decay = 0;
    }
    for (; b < chain->batch; b++) {
        float c = chain->rate * coefficients[b * stride];
        if (c == 0 && decay == 0) continue;
        const float *x = inputs + b * cols;
        SIMD for (int64_t j = 0; j < cols; j++) row[j] -= c * x[j] + decay * row[j];
        decay = 0;
    }
}

/* The update of rows [first, last), by the gradients and inputs of the step before. */
INLINE void update(const Chain *chain, int64_t place, const float *inputs, int64_t first,
                   int64_t last)
{
    const Layer *layer = chain->layers + place;
    const float *grad = chain->buffers[place].grad;
    for (int64_t i = first; i < last; i++) {
        update_row(layer->weight + i * layer->cols, grad + i, layer->rows, inputs, layer->cols,
                   chain);
        if (layer->bias == NULL) continue;
        float sum = chain->decay * layer->bias[i];
        for (int64_t b = 0; b < chain->batch; b++) sum += grad[b * layer->rows + i];
        layer->bias[i] -= chain->rate * sum;
    }
}

INLINE float activated(float value, int64_t activation)
{
    if (activation == RELU) return value <= 0 ? 0 : value; /* what is no number stays so */
    return activation == TANH ? tanhf(value) : value;
}

INLINE void forward(const Chain *chain, int64_t place, const float *old, const float *inputs,
                    float *outputs)
{
    const Layer *layer = chain->layers + place;
    int64_t rows = layer->rows, cols = layer->cols;
    for (int64_t i = 0; i < rows; i += AT_ONCE) {
        int64_t last = i + AT_ONCE < rows ? i + AT_ONCE : rows;
        if (old != NULL) update(chain, place, old, i, last);
        for (int64_t b = 0; b < chain->batch; b++) {
            const float *x = inputs + b * cols;
            float sums[AT_ONCE];
            if (last - i == AT_ONCE) {
                const float *w0 = layer->weight + i * cols;
                const float *w1 = w0 + cols, *w2 = w1 + cols, *w3 = w2 + cols;
                float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
                for (int64_t j = 0; j < cols; j++) {
                    s0 += w0[j] * x[j];
                    s1 += w1[j] * x[j];
                    s2 += w2[j] * x[j];
                    s3 += w3[j] * x[j];
                }
                sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
            } else {
                for (int64_t k = i; k < last; k++) {
                    const float *w = layer->weight + k * cols;
                    float s = 0;
#pragma omp simd reduction(+ : s)
                    for (int64_t j = 0; j < cols; j++) s += w[j] * x[j];
                    sums[k - i] = s;
                }
            }
            for (int64_t k = i; k < last; k++) {
                float bias = layer->bias == NULL ? 0 : layer->bias[k];
                outputs[b * rows + k] = activated(sums[k - i] + bias, layer->activation);
            }
        }
    }
}

/* From the gradient at the outputs to that at the products, before the activation. */
INLINE void through_activation(const Chain *chain, int64_t place, const float *outputs)
{
    const Layer *layer = chain->layers + place;
    float *grad = chain->buffers[place].grad;
    int64_t size = chain->batch * layer->rows;
    if (layer->activation == RELU)
        for (int64_t n = 0; n < size; n++) grad[n] = outputs[n] <= 0 ? 0 : grad[n];
    if (layer->activation == TANH)
        for (int64_t n = 0; n < size; n++) grad[n] *= 1 - outputs[n] * outputs[n];
}

/* The gradient at the products of the layer below, from that at the products of this one. */
INLINE void backward(const Chain *chain, int64_t place, const float *below)
{
    const Layer *layer = chain->layers + place;
    int64_t rows = layer->rows, cols = layer->cols;
    float *into = chain->buffers[place - 1].grad;
    memset(into, 0, (size_t)(chain->batch * cols) * sizeof(float));
    for (int64_t i = 0; i < rows; i += AT_ONCE) {
        int64_t last = i + AT_ONCE < rows ? i + AT_ONCE : rows;
        const float *w0 = layer->weight + i * cols;
        for (int64_t b = 0; b < chain->batch; b++) {
            const float *g = chain->buffers[place].grad + b * rows + i;
            float *restrict out = into + b * cols;
            if (last - i < AT_ONCE) {
                for (int64_t k = 0; k < last - i; k++) {
                    const float *w = w0 + k * cols;
                    SIMD for (int64_t j = 0; j < cols; j++) out[j] += g[k] * w[j];
                }
            } else if (g[0] != 0 || g[1] != 0 || g[2] != 0 || g[3] != 0) {
                const float *w1 = w0 + cols, *w2 = w1 + cols, *w3 = w2 + cols;
                float g0 = g[0], g1 = g[1], g2 = g[2], g3 = g[3];
                SIMD for (int64_t j = 0; j < cols; j++)
                    out[j] += (g0 * w0[j] + g1 * w1[j]) + (g2 * w2[j] + g3 * w3[j]);
            }
        }
    }
    through_activation(chain, place - 1, below);
}

/* The mean loss of classes, and its gradient at the outputs. */
INLINE float mean_loss(const Chain *chain, const float *outputs, const int64_t *targets, float *grad)
{
    int64_t classes = chain->layers[chain->depth - 1].rows;
    float share = 1 / (float)chain->batch, total = 0;
    for (int64_t b = 0; b < chain->batch; b++, outputs += classes, grad += classes) {
        if (chain->loss == SQUARED_ERROR) {
            float sum = 0;
            for (int64_t c = 0; c < classes; c++) {
                grad[c] = outputs[c] - (c == targets[b] ? 1 : 0);
                sum += grad[c] * grad[c];
                grad[c] *= share;
            }
            total += sum / 2;
            continue;
        }
        float largest = outputs[0], sum = 0;
        for (int64_t c = 1; c < classes; c++) largest = fmaxf(largest, outputs[c]);
        for (int64_t c = 0; c < classes; c++) sum += grad[c] = expf(outputs[c] - largest);
        for (int64_t c = 0; c < classes; c++) grad[c] *= share / sum;
        grad[targets[b]] -= share;
        total += logf(sum) - (outputs[targets[b]] - largest);
    }
    return total * share;
}

/* Makes up to so many steps, and ends after one whose loss is not finite. Returns their number. */
INLINE int64_t run(const Chain *chain, const float *inputs, const int64_t *targets, int64_t steps,
                   float *losses)
{
    int64_t top = chain->depth - 1, step = 0, taken = chain->batch * chain->layers[0].cols;
    int64_t now = 0; /* which of its two outputs a layer writes; the other ones are of the step before */
    for (int ends = 0; step < steps && !ends; step++) {
        now = step % 2;
        const float *x = inputs + step * taken;
        const float *old = step == 0 ? NULL : x - taken;
        for (int64_t l = 0; l <= top; l++) {
            forward(chain, l, old, x, chain->buffers[l].outputs[now]);
            x = chain->buffers[l].outputs[now];
            old = step == 0 ? NULL : chain->buffers[l].outputs[1 - now];
        }
        float *grad = chain->buffers[top].grad;
        losses[step] = mean_loss(chain, x, targets + step * chain->batch, grad);
        ends = !isfinite(losses[step]);
        through_activation(chain, top, x);
        for (int64_t l = top; l > 0; l--) backward(chain, l, chain->buffers[l - 1].outputs[now]);
    }
    const float *x = inputs + (step - 1) * taken;
    for (int64_t l = 0; l <= top; l++) {
        update(chain, l, x, 0, chain->layers[l].rows);
        x = chain->buffers[l].outputs[now];
    }
    return step;
}

typedef int64_t (*Run)(const Chain *, const float *, const int64_t *, int64_t, float *);

static int64_t run_plain(const Chain *chain, const float *inputs, const int64_t *targets,
                         int64_t steps, float *losses)
{
    return run(chain, inputs, targets, steps, losses);
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static int64_t run_avx2(const Chain *chain, const float *inputs,
                                                            const int64_t *targets, int64_t steps,
                                                            float *losses)
{
    return run(chain, inputs, targets, steps, losses);
}
#endif

static Run best_run(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return run_avx2;
#endif
    return run_plain;
}

/* The outputs and gradients of every layer, in one piece of memory that is to be freed. */
static Buffers *allocated(const Chain *chain)
{
    size_t size = 0;
    for (int64_t l = 0; l < chain->depth; l++)
        size += 3 * (size_t)(chain->batch * chain->layers[l].rows);
    Buffers *buffers = malloc((size_t)chain->depth * sizeof(Buffers) + size * sizeof(float));
    if (buffers == NULL) return NULL;
    float *next = (float *)(buffers + chain->depth);
    for (int64_t l = 0; l < chain->depth; l++) {
        size_t each = (size_t)(chain->batch * chain->layers[l].rows);
        buffers[l] = (Buffers){{next, next + each}, next + 2 * each};
        next += 3 * each;
    }
    return buffers;
}

PyDoc_STRVAR(sgd_doc,
             "sgd(layers, inputs, targets, losses, steps, batch_size, loss, learning_rate, "
             "weight_decay, /)\n--\n\n"
             "Makes steps of plain SGD on the mean loss of batches, and returns how many: they end\n"
             "after the first whose loss is not finite. Nothing is checked.\n\n"
             "layers: five numbers of 64 bits each: the addresses of the weight (rows, cols) in\n"
             "float32 and of the bias (rows,), or 0; rows, cols, the number of the activation.\n"
             "inputs, targets, losses: addresses of the examples (steps * batch_size, cols) in\n"
             "float32, of their classes in int64, and of where the losses (steps,) go, float32.");

static PyObject *sgd(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer layers;
    unsigned long long inputs, targets, losses;
    long long steps, batch, loss;
    float rate, decay;
    if (!PyArg_ParseTuple(args, "y*KKKLLLff", &layers, &inputs, &targets, &losses, &steps, &batch,
                          &loss, &rate, &decay))
        return NULL;
    Chain chain = {.layers = layers.buf,
                   .depth = layers.len / (Py_ssize_t)sizeof(Layer),
                   .batch = batch,
                   .loss = loss,
                   .rate = rate,
                   .decay = decay};
    chain.buffers = allocated(&chain);
    if (chain.buffers == NULL) {
        PyBuffer_Release(&layers);
        return PyErr_NoMemory();
    }
    Run best = best_run();
    int64_t made;
    Py_BEGIN_ALLOW_THREADS
    made = best(&chain, (const float *)inputs, (const int64_t *)targets, steps, (float *)losses);
    Py_END_ALLOW_THREADS
    free(chain.buffers);
    PyBuffer_Release(&layers);
    return PyLong_FromLongLong(made);
}

static PyMethodDef methods[] = {{"sgd", sgd, METH_VARARGS, sgd_doc}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_noisescale_chain_steps", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__noisescale_chain_steps(void)
{
    PyObject *built = PyModule_Create(&module);
    if (built != NULL && PyModule_AddIntConstant(built, "LAYOUT", 1) < 0) Py_CLEAR(built);
    return built;
}
