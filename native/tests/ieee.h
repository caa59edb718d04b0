// What float32 arithmetic must give where NaN, infinities and overflow take part: IEEE 754, whatever the order of sums.
#ifndef PROSPARSE_TESTS_IEEE_H_
#define PROSPARSE_TESTS_IEEE_H_

#include <limits>

#include "check.h"

namespace prosparse::testing {

enum class Kind { kNumber, kPlus, kMinus, kNan, kAny };  // kAny: the order of the sum, or rounding, decides which

// A value as far as it is determined. `value` and `bound`: of kNumber only.
struct Ieee {
  Kind kind = Kind::kNumber;
  double value = 0.0, bound = 0.0;
};

constexpr double kMaxFloat = std::numeric_limits<float>::max();
constexpr double kHalfUlp = 0x1p-24;

inline Ieee infinity(bool is_negative) { return {is_negative ? Kind::kMinus : Kind::kPlus, 0.0, 0.0}; }

// A number that is stored as float32, which may overflow.
inline Ieee stored(double value, double bound) {
  if (std::abs(value) + bound < kMaxFloat) return {Kind::kNumber, value, bound};
  if (std::abs(value) - bound > kMaxFloat * (1 + kHalfUlp)) return infinity(value < 0.0);
  return {Kind::kAny, 0.0, 0.0};
}

inline Ieee exactly(float x) {
  if (std::isnan(x)) return {Kind::kNan, 0.0, 0.0};
  return std::isinf(x) ? infinity(x < 0.0f) : Ieee{Kind::kNumber, x, 0.0};
}

inline int sign(const Ieee& x) {  // 0: not determined
  if (x.kind == Kind::kPlus) return 1;
  if (x.kind == Kind::kMinus) return -1;
  if (x.kind != Kind::kNumber || std::abs(x.value) <= x.bound) return 0;
  return x.value > 0.0 ? 1 : -1;
}

inline bool is_zero(const Ieee& x) { return x.kind == Kind::kNumber && x.value == 0.0 && x.bound == 0.0; }

inline Ieee product(const Ieee& a, const Ieee& b) {
  if (a.kind == Kind::kNan || b.kind == Kind::kNan) return {Kind::kNan, 0.0, 0.0};
  if (a.kind == Kind::kNumber && b.kind == Kind::kNumber) {
    const double value = a.value * b.value;
    const double bound = a.bound * (std::abs(b.value) + b.bound) + std::abs(a.value) * b.bound;
    return stored(value, bound + kHalfUlp * (std::abs(value) + bound));
  }
  if (is_zero(a) || is_zero(b))
    return {a.kind == Kind::kAny || b.kind == Kind::kAny ? Kind::kAny : Kind::kNan, 0.0, 0.0};
  const int s = sign(a) * sign(b);
  return s == 0 ? Ieee{Kind::kAny, 0.0, 0.0} : infinity(s < 0);
}

// A sum of products in float32, in any order. Products are not rounded on their own: they may be fused with the
// addition, and one that overflows does so either way. Two infinities of one sign agree; beside one, what is finite
// must not overflow on the other side.
class Sum {
 public:
  void add(double weight, const Ieee& x) {
    ++count_;
    if (x.kind == Kind::kNumber) {
      const double p = weight * x.value;
      (p > 0.0 ? positive_ : negative_) += std::abs(p);
      bound_ += std::abs(weight) * x.bound;
      return;
    }
    if (x.kind == Kind::kAny) {
      any_ = true;
    } else if (x.kind == Kind::kNan || weight == 0.0) {
      nan_ = true;
    } else {
      ((x.kind == Kind::kPlus) == (weight > 0.0) ? plus_ : minus_) = true;
    }
  }
  void loosen(double by) { bound_ += by; }  // rounding of activations

  Ieee result() const {
    if (nan_ || (plus_ && minus_)) return {Kind::kNan, 0.0, 0.0};
    const double slack = bound_ + gamma_bound(count_ + 6) * (positive_ + negative_ + bound_);
    const bool may_rise = positive_ + slack >= kMaxFloat, may_fall = negative_ + slack >= kMaxFloat;
    if (any_ || (may_rise && may_fall) || (plus_ && may_fall) || (minus_ && may_rise)) return {Kind::kAny, 0.0, 0.0};
    if (plus_ || minus_) return infinity(minus_);
    const Ieee sum = stored(positive_ - negative_, slack);
    return sum.kind == Kind::kNumber && (may_rise || may_fall) ? Ieee{Kind::kAny, 0.0, 0.0}
                                                               : sum;  // on its way it may overflow
  }

 private:
  size_t count_ = 0;
  double positive_ = 0.0, negative_ = 0.0, bound_ = 0.0;
  bool nan_ = false, plus_ = false, minus_ = false, any_ = false;
};

inline bool agrees(float actual, const Ieee& expected) {
  switch (expected.kind) {
    case Kind::kNumber: return std::abs(actual - expected.value) <= expected.bound;  // false for a NaN
    case Kind::kPlus: return std::isinf(actual) && actual > 0.0f;
    case Kind::kMinus: return std::isinf(actual) && actual < 0.0f;
    case Kind::kNan: return std::isnan(actual);
    case Kind::kAny: return true;
  }
  return false;
}

}  // namespace prosparse::testing

#endif  // PROSPARSE_TESTS_IEEE_H_
