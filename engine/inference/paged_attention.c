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
#define MAX_QUERY_ROWS 64 /* (token, head) pairs that share one pass over the keys */

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

#define INLINE static inline __attribute__((always_inline))

/* to = rope(norm(x)) * scale; `to` may be x. */
INLINE void norm_and_rotate(const float *x, float *to, const float *norm, const float *cosines, const float *sines,
                            float eps, float scale, int dim) {
    float normed[MAX_DIM], rotated[MAX_DIM];
    float factor = 1.0f;
    if (norm) {
        float sum = 0.0f;
        for (int d = 0; d < dim; d++) sum += x[d] * x[d];
        factor = 1.0f / __builtin_sqrtf(sum / (float)dim + eps);
        for (int d = 0; d < dim; d++) normed[d] = x[d] * factor * norm[d];
    } else {
        for (int d = 0; d < dim; d++) normed[d] = x[d];
    }
    int half = dim / 2;
    for (int d = 0; d < half; d++) {
        rotated[d] = (normed[d] * cosines[d] - normed[d + half] * sines[d]) * scale;
        rotated[d + half] = (normed[d + half] * cosines[d] + normed[d] * sines[d]) * scale;
    }
    memcpy(to, rotated, sizeof(float) * dim);
}

INLINE void write_token(const step_t *s, int64_t token, int64_t position, int64_t slot, int dim) {
    int64_t row = (int64_t)s->kv_heads * dim;
    float *query = s->qkv + token * ((int64_t)s->heads * dim + 2 * row), *key = query + (int64_t)s->heads * dim;
    const float *cosines = s->cosines + position * (dim / 2), *sines = s->sines + position * (dim / 2);
    float scale = 1.0f / __builtin_sqrtf((float)dim);
    for (float *head = query; head < key; head += dim)
        norm_and_rotate(head, head, s->q_norm, cosines, sines, s->norm_eps, scale, dim);
    for (int64_t h = 0; h < row; h += dim)
        norm_and_rotate(key + h, s->keys + slot * row + h, s->k_norm, cosines, sines, s->norm_eps, 1.0f, dim);
    memcpy(s->values + slot * row, key + row, sizeof(float) * row);
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
INLINE void score_lanes(const float *query, const float *const *keys,
        int64_t offset, float *scores, int dim) {
#if __has_builtin(__builtin_shufflevector)
    if (dim % LANES == 0) {
        lanes_t part[LANES];
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) {
            lanes_t sum = *(const lanes_t *)query * *(const lanes_t *)(keys[j] + offset);
            for (int d = LANES; d < dim; d += LANES)
                sum += *(const lanes_t *)(query + d) * *(const lanes_t *)(keys[j] + offset + d);
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
        for (int d = 0; d < dim; d++) sum += query[d] * keys[j][offset + d];
        scores[j] = sum;
    }
}

/* sum = sum * keep + weights[0 .. n) . values[0 .. n); weights behind the n-th, up to a multiple of 4, are zero. */
INLINE void add_values(float *restrict sum, float keep, const float *weights, const float *const *values,
                       int64_t offset, int n, int dim) {
    if (dim % LANES == 0 && dim <= 8 * LANES) { /* the sums stay in registers, in four chains to hide the latency */
        lanes_t part[4][8];
#pragma GCC unroll 8
        for (int d = 0; d < dim / LANES; d++) {
            part[0][d] = *(const lanes_t *)(sum + d * LANES) * keep;
            part[1][d] = part[2][d] = part[3][d] = part[0][d] * 0.0f;
        }
        for (int j = 0; j < n; j += 4)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const float *value = values[j + c] + offset;
#pragma GCC unroll 8
                for (int d = 0; d < dim / LANES; d++)
                    part[c][d] += *(const lanes_t *)(value + d * LANES) * weights[j + c];
            }
#pragma GCC unroll 8
        for (int d = 0; d < dim / LANES; d++)
            *(lanes_t *)(sum + d * LANES) = (part[0][d] + part[1][d]) + (part[2][d] + part[3][d]);
        return;
    }
    for (int d = 0; d < dim; d++) sum[d] *= keep;
    for (int j = 0; j < n; j++)
        for (int d = 0; d < dim; d++) sum[d] += weights[j] * values[j][offset + d];
}

/* Scores of `n` keys to weights, into the running softmax; returns what its sum so far is to be multiplied by. Always
 * the same arithmetic for the same n. */
INLINE float to_weights(float *restrict scores, int n, softmax_t *restrict state) {
    int full = (n + LANES - 1) / LANES * LANES;
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
    return keep;
}

/* All query heads of one token against `n` keys. `keys` and `values` point at the slots, and are filled up to a
 * multiple of LANES with any readable ones. Heads are the inner loop, so that a slot is read as a whole. */
INLINE void visit_block(const step_t *s, const float *query, const float *const *keys, const float *const *values,
                        int n, softmax_t *states, int dim) {
    float scores[MAX_QUERY_ROWS][KEY_BLOCK];
    int group = s->heads / s->kv_heads;
    for (int j = 0; j < n; j += LANES)
        for (int h = 0; h < s->heads; h++) score_lanes(query + h * dim, keys + j, h / group * dim, scores[h] + j, dim);
    for (int h = 0; h < s->heads; h++) {
        float keep = to_weights(scores[h], n, &states[h]);
        add_values(states[h].sum, keep, scores[h], values, h / group * dim, n, dim);
    }
}

/* All heads of `num_tokens` tokens of segment `i`, the first at `position`. */
INLINE void attend_tokens(const step_t *s, int64_t i, int64_t token, int64_t position, int num_tokens, int dim) {
    softmax_t states[MAX_QUERY_ROWS];
    int64_t row = (int64_t)s->kv_heads * dim, width = (int64_t)s->heads * dim + 2 * row;
    const int32_t *slots = s->slot_table + s->table_rows[i] * s->table_stride;
    for (int r = 0; r < num_tokens * s->heads; r++) {
        states[r].top = -1e30f;
        states[r].total = 0.0f;
        memset(states[r].sum, 0, sizeof(float) * dim);
    }
    int64_t end = position + num_tokens;
    for (int64_t begin = 0; begin < end; begin += KEY_BLOCK) {
        const float *keys[KEY_BLOCK], *values[KEY_BLOCK];
        int block = end - begin < KEY_BLOCK ? (int)(end - begin) : KEY_BLOCK;
        for (int j = 0; j < KEY_BLOCK; j++) {
            int64_t slot = slots[begin + (j < block ? j : block - 1)];
            keys[j] = s->keys + slot * row;
            values[j] = s->values + slot * row;
        }
        for (int t = 0; t < num_tokens; t++) {
            int64_t visible = position + t + 1 - begin;
            if (visible <= 0) continue;
            int n = visible < block ? (int)visible : block;
            visit_block(s, s->qkv + (token + t) * width, keys, values, n, &states[t * s->heads], dim);
        }
    }
    for (int r = 0; r < num_tokens * s->heads; r++) {
        float *to = s->out + (token * s->heads + r) * dim, scale = 1.0f / states[r].total;
        for (int d = 0; d < dim; d++) to[d] = states[r].sum[d] * scale;
    }
}

INLINE void run(const step_t *s, int dim) {
    int64_t token = 0;
    for (int64_t i = 0; i < s->segments; i++) {
        const int32_t *slots = s->slot_table + s->table_rows[i] * s->table_stride + s->starts[i];
        for (int32_t t = 0; t < s->counts[i]; t++, token++) write_token(s, token, s->starts[i] + t, slots[t], dim);
    }
    int tokens_at_once = MAX_QUERY_ROWS / s->heads;
    token = 0;
    for (int64_t i = 0; i < s->segments; i++)
        for (int32_t t = 0; t < s->counts[i]; t += tokens_at_once) {
            int num_tokens = s->counts[i] - t < tokens_at_once ? s->counts[i] - t : tokens_at_once;
            attend_tokens(s, i, token, s->starts[i] + t, num_tokens, dim);
            token += num_tokens;
        }
}

/* Returns 0, or 1 where there are more heads or a larger head than there is room for. The usual head sizes are
 * compiled as constants. */
int paged_attention(const step_t *s) {
    if (s->heads > MAX_QUERY_ROWS || s->dim < 2 || s->dim > MAX_DIM || s->dim % 2) return 1;
    switch (s->dim) {
    case 16: run(s, 16); return 0;
    case 32: run(s, 32); return 0;
    case 64: run(s, 64); return 0;
    case 128: run(s, 128); return 0;
    default:
        run(s, s->dim);
        return 0;
    }
}
