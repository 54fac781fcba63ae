/* The exponential that the kernels share, included by each: plain enough for a compiler to vectorise. */
#include <stdint.h>

/* e^x, relative error below 3e-7 for |x| < 87; clamped outside. */
static inline float exp_clamped(float x) {
    float scaled = x * 1.44269504088896341f;
    scaled = scaled < -126.0f ? -126.0f : scaled;
    scaled = scaled > 126.0f ? 126.0f : scaled;
    float whole = __builtin_rintf(scaled);
    float f = scaled - whole;
    float p = 1.52527338e-5f; /* ln(2)^k / k!, k = 7 .. 0 */
    p = p * f + 1.54035304e-4f;
    p = p * f + 1.33335581e-3f;
    p = p * f + 9.61812911e-3f;
    p = p * f + 5.55041087e-2f;
    p = p * f + 2.40226507e-1f;
    p = p * f + 6.93147181e-1f;
    p = p * f + 1.0f;
    union {
        int32_t bits;
        float value;
    } power;
    power.bits = ((int32_t)whole + 127) << 23;
    return p * power.value;
}
