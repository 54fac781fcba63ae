/* Ragged paged attention on a CPU: query/key norm, RoPE, the write of new keys and values, and softmax attention,
 * for a flat batch of new tokens whose context lies anywhere in a pool of token slots.
 *
 * A segment is `counts[s]` consecutive new tokens of one sequence, the first at position `starts[s]`; position p of the
 * sequence lives in slot `slot_table[table_rows[s] * table_stride + p]`. Keys and values are read where they lie.
 * Softmax is computed online over blocks of KEY_BLOCK positions counted from 0, so a token's result depends neither
 * on how its sequence was cut into segments nor on the rest of the batch.
 *
 * Built without the options that imply flush-to-zero: loading a library must not change the arithmetic of its host.
 */
#include <stdint.h>
#include <string.h>

#include "exponential.c"

#define KEY_BLOCK 64
#define MAX_DIM 256
#define MAX_QUERY_ROWS 32 /* (token, head) pairs that share one pass over the keys */

#ifndef __has_builtin
#define __has_builtin(x) 0
#endif
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float lanes_t __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    float *qkv;                /* [tokens, (heads + 2 kv_heads) * dim]; its query part is overwritten */
    float *out;                /* [tokens, heads * dim] */
    float *keys, *values;      /* [slots, kv_heads * dim] of one layer */
    const float *q_norm, *k_norm; /* [dim] or null */
    const float *cosines, *sines; /* [positions, dim / 2] */
    const int32_t *slot_table;
    const int32_t *table_rows, *starts, *counts; /* [segments] */
    int64_t table_stride, segments;
    int32_t heads, kv_heads, dim;
    float norm_eps;
} step_t;

static inline __attribute__((always_inline)) void norm_and_rotate(float *restrict x, float *restrict to,
        const float *norm, const float *cosines, const float *sines, float eps, float scale, int dim) {
    float factor = 1.0f;
    if (norm) {
        float sum = 0.0f;
        for (int d = 0; d < dim; d++) sum += x[d] * x[d];
        factor = 1.0f / __builtin_sqrtf(sum / (float)dim + eps);
        for (int d = 0; d < dim; d++) x[d] = x[d] * factor * norm[d];
    }
    int half = dim / 2;
    for (int d = 0; d < half; d++) {
        float low = x[d], high = x[d + half];
        to[d] = (low * cosines[d] - high * sines[d]) * scale;
        to[d + half] = (high * cosines[d] + low * sines[d]) * scale;
    }
}

static inline __attribute__((always_inline)) void write_token(const step_t *s, int64_t token, int64_t position,
        int64_t slot, int dim) {
    int64_t width = (int64_t)(s->heads + 2 * s->kv_heads) * dim;
    float *query = s->qkv + token * width, *key = query + (int64_t)s->heads * dim;
    float *value = key + (int64_t)s->kv_heads * dim;
    int64_t row = (int64_t)s->kv_heads * dim;
    const float *cosines = s->cosines + position * (dim / 2), *sines = s->sines + position * (dim / 2);
    float rotated[MAX_DIM];
    float scale = 1.0f / __builtin_sqrtf((float)dim);
    for (int h = 0; h < s->heads; h++) {
        norm_and_rotate(query + h * dim, rotated, s->q_norm, cosines, sines, s->norm_eps, scale, dim);
        memcpy(query + h * dim, rotated, sizeof(float) * dim);
    }
    for (int h = 0; h < s->kv_heads; h++)
        norm_and_rotate(key + h * dim, s->keys + slot * row + h * dim, s->k_norm, cosines, sines, s->norm_eps, 1.0f,
                        dim);
    memcpy(s->values + slot * row, value, sizeof(float) * row);
}

typedef struct {
    float top, total;
    float sum[MAX_DIM];
} softmax_t;

/* HALVES(b, x, y): in blocks of 2b lanes, the first b of x beside the first b of y, plus the same of the second b.
 * log2(LANES) rounds of it turn LANES vectors into the vector of their sums. */
#if LANES == 16
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#define HALVES_1(x, y) (SHUFFLE(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) + \
                        SHUFFLE(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#define HALVES_2(x, y) (SHUFFLE(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) + \
                        SHUFFLE(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
#define HALVES_4(x, y) (SHUFFLE(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) + \
                        SHUFFLE(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
#define HALVES_8(x, y) (SHUFFLE(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) + \
                        SHUFFLE(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#elif LANES == 8
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#define HALVES_1(x, y) (SHUFFLE(x, y, 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(x, y, 1, 9, 3, 11, 5, 13, 7, 15))
#define HALVES_2(x, y) (SHUFFLE(x, y, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(x, y, 2, 3, 10, 11, 6, 7, 14, 15))
#define HALVES_4(x, y) (SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15))
#else
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#define HALVES_1(x, y) (SHUFFLE(x, y, 0, 4, 2, 6) + SHUFFLE(x, y, 1, 5, 3, 7))
#define HALVES_2(x, y) (SHUFFLE(x, y, 0, 1, 4, 5) + SHUFFLE(x, y, 2, 3, 6, 7))
#endif

/* scores[j] = query . keys[j] for LANES keys. */
static inline __attribute__((always_inline)) void score_lanes(const float *query, const float *const *keys,
        float *scores, int dim) {
#if __has_builtin(__builtin_shufflevector)
    if (dim % LANES == 0) {
        lanes_t part[LANES];
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) {
            lanes_t sum = *(const lanes_t *)query * *(const lanes_t *)keys[j];
            for (int d = LANES; d < dim; d += LANES)
                sum += *(const lanes_t *)(query + d) * *(const lanes_t *)(keys[j] + d);
            part[j] = sum;
        }
#pragma GCC unroll 8
        for (int j = 0; j < LANES / 2; j++) part[j] = HALVES_1(part[2 * j], part[2 * j + 1]);
#pragma GCC unroll 8
        for (int j = 0; j < LANES / 4; j++) part[j] = HALVES_2(part[2 * j], part[2 * j + 1]);
#if LANES >= 8
#pragma GCC unroll 8
        for (int j = 0; j < LANES / 8; j++) part[j] = HALVES_4(part[2 * j], part[2 * j + 1]);
#endif
#if LANES >= 16
        part[0] = HALVES_8(part[0], part[1]);
#endif
        *(lanes_t *)scores = part[0];
        return;
    }
#endif
    for (int j = 0; j < LANES; j++) {
        float sum = 0.0f;
        for (int d = 0; d < dim; d++) sum += query[d] * keys[j][d];
        scores[j] = sum;
    }
}

/* sum = sum * keep + weights[0 .. n) . values[0 .. n) */
static inline __attribute__((always_inline)) void add_values(float *restrict sum, float keep, const float *weights,
        const float *const *values, int n, int dim) {
    if (dim % LANES == 0 && dim <= 8 * LANES) { /* the sums stay in registers */
        lanes_t part[8];
#pragma GCC unroll 8
        for (int d = 0; d < dim / LANES; d++) part[d] = *(const lanes_t *)(sum + d * LANES) * keep;
        for (int j = 0; j < n; j++) {
            const float *value = values[j];
#pragma GCC unroll 8
            for (int d = 0; d < dim / LANES; d++) part[d] += *(const lanes_t *)(value + d * LANES) * weights[j];
        }
#pragma GCC unroll 8
        for (int d = 0; d < dim / LANES; d++) *(lanes_t *)(sum + d * LANES) = part[d];
        return;
    }
    for (int d = 0; d < dim; d++) sum[d] *= keep;
    for (int j = 0; j < n; j++)
        for (int d = 0; d < dim; d++) sum[d] += weights[j] * values[j][d];
}

/* One query row against `n` keys. `keys` and `values` point at the slots' vectors of the row's kv head, and are filled
 * up to a multiple of LANES with any readable ones. Always the same arithmetic for the same n. */
static inline __attribute__((always_inline)) void visit_block(const float *restrict query, const float *const *keys,
        const float *const *values, int n, softmax_t *restrict state, int dim) {
    float scores[KEY_BLOCK];
    int full = (n + LANES - 1) / LANES * LANES;
    for (int j = 0; j < full; j += LANES) score_lanes(query, keys + j, scores + j, dim);
    for (int j = n; j < full; j++) scores[j] = -1e30f;
    float top = state->top;
    for (int j = 0; j < full; j++) top = scores[j] > top ? scores[j] : top;
    float keep = exp_clamped(state->top - top), total = 0.0f;
    for (int j = 0; j < full; j++) {
        scores[j] = j < n ? exp_clamped(scores[j] - top) : 0.0f;
        total += scores[j];
    }
    state->top = top;
    state->total = state->total * keep + total;
    float *restrict sum = state->sum;
    add_values(sum, keep, scores, values, n, dim);
}

/* `num_tokens` tokens of one segment, heads `first_head` .. `first_head + num_heads` that share kv head `kv_head`. */
static inline __attribute__((always_inline)) void attend_rows(const step_t *s, const int32_t *slots, int64_t token,
        int64_t position, int num_tokens, int first_head, int num_heads, int kv_head, int dim) {
    softmax_t states[MAX_QUERY_ROWS];
    int64_t width = (int64_t)(s->heads + 2 * s->kv_heads) * dim, row = (int64_t)s->kv_heads * dim;
    for (int i = 0; i < num_tokens * num_heads; i++) {
        states[i].top = -1e30f;
        states[i].total = 0.0f;
        memset(states[i].sum, 0, sizeof(float) * dim);
    }
    for (int64_t begin = 0; begin < position + num_tokens; begin += KEY_BLOCK) {
        const float *keys[KEY_BLOCK], *values[KEY_BLOCK];
        int64_t left = position + num_tokens - begin;
        int block = left < KEY_BLOCK ? (int)left : KEY_BLOCK;
        for (int j = 0; j < block; j++) {
            keys[j] = s->keys + slots[begin + j] * row + kv_head * dim;
            values[j] = s->values + slots[begin + j] * row + kv_head * dim;
        }
        for (int j = block; j < KEY_BLOCK; j++) keys[j] = keys[block - 1], values[j] = values[block - 1];
        for (int t = 0; t < num_tokens; t++) {
            int64_t visible = position + t + 1 - begin;
            if (visible <= 0) continue;
            int n = visible < block ? (int)visible : block;
            for (int h = 0; h < num_heads; h++)
                visit_block(s->qkv + (token + t) * width + (first_head + h) * dim, keys, values, n,
                            &states[t * num_heads + h], dim);
        }
    }
    for (int t = 0; t < num_tokens; t++)
        for (int h = 0; h < num_heads; h++) {
            const softmax_t *state = &states[t * num_heads + h];
            float *to = s->out + ((token + t) * s->heads + first_head + h) * dim, scale = 1.0f / state->total;
            for (int d = 0; d < dim; d++) to[d] = state->sum[d] * scale;
        }
}

static inline __attribute__((always_inline)) void run(const step_t *s, int dim) {
    int64_t token = 0;
    for (int64_t i = 0; i < s->segments; i++) {
        const int32_t *slots = s->slot_table + s->table_rows[i] * s->table_stride;
        for (int32_t t = 0; t < s->counts[i]; t++, token++)
            write_token(s, token, s->starts[i] + t, slots[s->starts[i] + t], dim);
    }
    int group = s->heads / s->kv_heads;
    int heads_at_once = group < MAX_QUERY_ROWS ? group : MAX_QUERY_ROWS;
    int tokens_at_once = MAX_QUERY_ROWS / heads_at_once;
    token = 0;
    for (int64_t i = 0; i < s->segments; i++) {
        const int32_t *slots = s->slot_table + s->table_rows[i] * s->table_stride;
        for (int32_t t = 0; t < s->counts[i]; t += tokens_at_once) {
            int num_tokens = s->counts[i] - t < tokens_at_once ? s->counts[i] - t : tokens_at_once;
            for (int kv_head = 0; kv_head < s->kv_heads; kv_head++)
                for (int h = 0; h < group; h += heads_at_once) {
                    int num_heads = group - h < heads_at_once ? group - h : heads_at_once;
                    attend_rows(s, slots, token + t, s->starts[i] + t, num_tokens, kv_head * group + h, num_heads,
                                kv_head, dim);
                }
        }
        token += s->counts[i];
    }
}

/* Returns 0, or 1 where the head dimension is not supported. The usual ones are compiled as constants. */
int paged_attention(const step_t *s) {
    switch (s->dim) {
    case 16: run(s, 16); return 0;
    case 32: run(s, 32); return 0;
    case 64: run(s, 64); return 0;
    case 128: run(s, 128); return 0;
    default:
        if (s->dim < 2 || s->dim > MAX_DIM || s->dim % 2) return 1;
        run(s, s->dim);
        return 0;
    }
}
