/* The small operations of a decode step in float32: RMS norm, gated SiLU, and drawing tokens. Each is one pass over
 * a row that torch makes in three to eight; at 32 rows of 128 their dispatch costs more than their arithmetic.
 * A row's result depends on that row alone, bit by bit.
 */
#include <stdint.h>

#include "exponential.c"

/* out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight, rows of `size`. */
void rms_norm(const float *restrict x, const float *restrict weight, float *restrict out, int64_t rows, int64_t size,
              float eps) {
    for (int64_t r = 0; r < rows; r++, x += size, out += size) {
        float sum = 0.0f;
        for (int64_t i = 0; i < size; i++) sum += x[i] * x[i];
        float factor = 1.0f / __builtin_sqrtf(sum / (float)size + eps);
        for (int64_t i = 0; i < size; i++) out[i] = x[i] * factor * weight[i];
    }
}

/* out[r] = silu(both[r, :size]) * both[r, size:], rows of 2 * `size` in `both`. */
void gated_silu(const float *restrict both, float *restrict out, int64_t rows, int64_t size) {
    for (int64_t r = 0; r < rows; r++, both += 2 * size, out += size)
        for (int64_t i = 0; i < size; i++) out[i] = both[i] / (1.0f + exp_clamped(-both[i])) * both[size + i];
}

#define CHUNK 64

static inline int32_t bits_of(float x) {
    union {
        float value;
        int32_t bits;
    } both = {x};
    return both.bits;
}

/* Draws one token a row: the first whose cumulative probability, in vocabulary order, exceeds coins[r] in [0, 1);
 * for temperatures[r] == 0 the likeliest, under temperature 1. A row that is not finite gives a log-probability and an
 * entropy that are not a number. `logits` is overwritten by e^(scaled logit - largest),
 * exactly 0 below e^-87, and what has 0 is never drawn.
 * Sums are in float64 over chunks of 64, so that neither a large vocabulary nor the tail of a distribution is lost. */
void draw(float *restrict logits, const float *restrict temperatures, const double *restrict coins, int64_t rows,
          int64_t size, int32_t *restrict tokens, float *restrict logprobs, float *restrict entropies) {
    for (int64_t r = 0; r < rows; r++, logits += size) {
        float scale = temperatures[r] == 0.0f ? 1.0f : 1.0f / temperatures[r];
        float top = logits[0];
        for (int64_t i = 0; i < size; i++) top = logits[i] > top ? logits[i] : top;
        int64_t best = 0;
        if (temperatures[r] == 0.0f)
            while (best < size - 1 && logits[best] != top) best++;
        int is_finite = 1; /* by its bits: the compiler was told that there are only finite numbers */
        for (int64_t i = 0; i < size; i++) is_finite &= (bits_of(logits[i]) & 0x7f800000) != 0x7f800000;
        double total = 0.0, weighted = 0.0;
        for (int64_t begin = 0; begin < size; begin += CHUNK) {
            int64_t end = begin + CHUNK < size ? begin + CHUNK : size;
            float sum = 0.0f, product = 0.0f;
            for (int64_t i = begin; i < end; i++) {
                float score = (logits[i] - top) * scale;
                float weight = score < -87.0f ? 0.0f : exp_clamped(score);
                logits[i] = weight;
                sum += weight;
                product += weight * score;
            }
            total += sum;
            weighted += product;
        }
        int64_t chosen = best;
        if (temperatures[r] != 0.0f) {
            double goal = coins[r] * total, reached = 0.0;
            int64_t begin = 0;
            for (; begin + CHUNK < size; begin += CHUNK) { /* the same chunk sums again, to find the chunk */
                float sum = 0.0f;
                for (int64_t i = begin; i < begin + CHUNK; i++) sum += logits[i];
                if (reached + sum > goal) break;
                reached += sum;
            }
            int64_t last = begin;
            for (chosen = begin; chosen < size; chosen++) {
                if (logits[chosen] > 0.0f) last = chosen;
                reached += logits[chosen];
                if (reached > goal) break;
            }
            if (chosen >= size) chosen = last; /* rounding left the goal a hair above the sum */
        }
        tokens[r] = (int32_t)chosen;
        double log_total = __builtin_log(total);
        entropies[r] = (float)(log_total - weighted / total);
        logprobs[r] = (float)(__builtin_log((double)logits[chosen]) - log_total);
        if (!is_finite) entropies[r] = logprobs[r] = __builtin_nanf("");
    }
}
