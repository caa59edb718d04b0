#include "dot_neurons.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "dispatch.h"
#include "quantize_activations.h"
#include "silu.h"

namespace prosparse {
namespace {

// Where tokens use so many of a block's neurons, the next block's rows of up_proj are prefetched before it is known
// which are used, while gate_proj keeps the processor busy.
constexpr size_t kMostPercent = 70;

uint32_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return (bits + 0x8000) >> 16;
}

// Runs gate_proj and up_proj of a piece, a block of neurons at a time so that activations stay in the cache.
class Neurons {
 public:
  Neurons(const Kernels& kernels, DotLevel level, const Ffn& ffn, const DotTokens& x, const LeftOut& others,
          float* work, bool& most_are_used, DotPiece& out, Scratch& scratch)
      : kernels_(kernels),
        run_(dot_kernels(kernels, ffn.gate.format, level)),
        down_(dot_kernels(kernels, ffn.down.format, level)),
        ffn_(ffn),
        x_(x),
        others_(others),
        z_(work),
        a_(z_ + x.count * kDotBlock),
        v_(a_ + x.count * kDotStride),
        slots_(reinterpret_cast<int32_t*>(v_ + x.count * kDotStride)),
        rare_(slots_ + x.count * kDotStride),
        shares_(run_.up_panels != nullptr),
        prefetches_(row_prefetches(ffn.d_model)),
        most_are_used_(most_are_used),
        out_(out),
        scratch_(scratch) {}

  void compute(Range panels) {
    out_.count = 0;
    for (size_t panel = panels.begin; panel < panels.end; panel += kDotBlock / kLanes) {
      const size_t last = std::min(panels.end, panel + kDotBlock / kLanes), first_row = panel * kLanes;
      const size_t width = std::min(ffn_.d_ff, last * kLanes) - first_row;
      const MemoryRange then = rows_to_prefetch(first_row, width);
      run_.multiply(ffn_.gate, panel, last, x_, then, z_, kDotBlock);
      block_prefetches_ = then.bytes == 0 ? prefetches_ : 0;
      const size_t used = list(width);
      most_are_used_ = used * 100 >= width * kMostPercent;
      for (size_t i = 0; i < used; ++i) used_[i] += static_cast<int32_t>(first_row);
      if (ffn_.gated) up(used);
      for (size_t t = 0; t < x_.count; ++t) finish(t);
      add_tiles(used);
    }
  }

 private:
  // The block's rows of up_proj, if most of the last block's were used.
  MemoryRange rows_to_prefetch(size_t first, size_t count) const {
    if (!ffn_.gated || !most_are_used_ || prefetches_ == 0 || x_.count <= run_.direct_tokens) return {nullptr, 0};
    return {ffn_.up.row(first), count * ffn_.up.row_bytes};
  }

  // Lists the active neurons of each token among the block's `width`, and in used_ those of any.
  size_t list(size_t width) {
    uint8_t uses[kDotBlock] = {};
    for (size_t t = 0; t < x_.count; ++t) {
      int32_t* const slots = slots_ + t * kDotStride;
      float* const a = a_ + t * kDotStride;
      const size_t count = others_[t] ? 0 : list_token(z_ + t * kDotBlock, width, slots, a);
      lists_[t] = {slots, ffn_.gated ? v_ + t * kDotStride : a, count, 0};
      size_t fresh = 0;
      for (size_t i = 0; i < count; ++i) fresh += uses[slots[i]]++ == 0;
      if (is_worth_prefetching(fresh, count)) lists_[t].prefetches = block_prefetches_;
    }
    int32_t place[kDotBlock];
    size_t used = 0;
    for (size_t k = 0; k < width; ++k) {
      place[k] = static_cast<int32_t>(used);
      used_[used] = static_cast<int32_t>(k);
      uses[used] = uses[k];
      used += uses[k] != 0;
    }
    if (shares_) choose_shared(uses, used);
    for (size_t t = 0; t < x_.count && used != width; ++t) {
      int32_t* const slots = slots_ + t * kDotStride;
      for (size_t i = 0; i < lists_[t].count; ++i) slots[i] = place[slots[i]];
    }
    return used;
  }

  // Finds the neurons that are computed for all tokens: the most used ones, 16 at a time.
  void choose_shared(const uint8_t* uses, size_t used) {
    size_t ends[kMaxDotTokens + 1] = {}, order[kDotBlock];  // ends[n]: in order, of neurons that more use
    for (size_t i = 0; i < used; ++i) ++ends[uses[i]];
    for (size_t n = kMaxDotTokens, end = 0; n != 0; --n) end += std::exchange(ends[n], end);
    for (size_t i = 0; i < used; ++i) order[ends[uses[i]]++] = i;
    std::fill_n(is_shared_, used, false);
    for (size_t first = 0; first + kLanes <= used; first += kLanes) {
      size_t pairs = 0;
      for (size_t i = first; i < first + kLanes; ++i) pairs += uses[order[i]];
      if (pairs * 100 < kLanes * x_.count * run_.shared_percent) return;
      for (size_t i = first; i < first + kLanes; ++i) is_shared_[order[i]] = true;
    }
  }

  // v of the lists, from the first `used` of used_. What is computed for all tokens replaces z_.
  void up(size_t used) {
    int32_t rows[kDotBlock], place[kDotBlock];  // shared ones first
    size_t shared = 0;
    for (size_t i = 0; i < used; ++i) shared += shares_ && is_shared_[i];
    if (shared == 0) return run_.up(ffn_.up, x_, used_, lists_);
    for (size_t i = 0, next = 0, rare = shared; i < used; ++i) {
      place[i] = static_cast<int32_t>(is_shared_[i] ? next++ : rare++);
      rows[place[i]] = used_[i];
    }
    run_.up_panels(ffn_.up, x_, rows, shared, z_, kDotBlock);
    if (shared != used) up_rare(rows, place, shared, used);
    for (size_t t = 0; t < x_.count; ++t) {
      const float* const v = z_ + t * kDotBlock;
      for (size_t i = 0; i < lists_[t].count; ++i) lists_[t].values[i] = v[place[lists_[t].slots[i]]];
    }
  }

  // v of the others, in z_ too.
  void up_rare(const int32_t* rows, const int32_t* place, size_t shared, size_t used) {
    DotList lists[kMaxDotTokens];
    bool is_read[kDotBlock];
    std::fill_n(is_read, used, false);
    for (size_t t = 0; t < x_.count; ++t) {
      int32_t* const slots = rare_ + t * kDotStride;
      size_t n = 0;
      for (size_t i = 0; i < lists_[t].count; ++i) {
        slots[n] = place[lists_[t].slots[i]];
        n += static_cast<size_t>(slots[n]) >= shared;
      }
      size_t fresh = 0;
      for (size_t i = 0; i < n; ++i) fresh += !std::exchange(is_read[slots[i]], true);
      lists[t] = {slots, lists_[t].values, n, is_worth_prefetching(fresh, n) ? block_prefetches_ : 0};
    }
    run_.up(ffn_.up, x_, rows, lists);
    for (size_t t = 0; t < x_.count; ++t) {
      for (size_t i = 0; i < lists[t].count; ++i)
        z_[t * kDotBlock + static_cast<size_t>(lists[t].slots[i])] = lists[t].values[i];
    }
  }

  size_t list_token(float* z, size_t width, int32_t* slots, float* a) const {
    const bool by_magnitude = ffn_.activation == Activation::kSilu;
    if (by_magnitude) silu(z, width);
    size_t count = width;
    if (ffn_.dense) {
      for (size_t k = 0; k < width; ++k) {
        slots[k] = static_cast<int32_t>(k);
        a[k] = (by_magnitude ? std::fabs(z[k]) : z[k]) <= ffn_.threshold ? 0.0f : z[k];
      }
    } else if (by_magnitude) {
      count = compact_magnitude(z, width, ffn_.threshold, slots, a);
    } else {
      count = kernels_.compact(z, width, ffn_.threshold, slots, a);
    }
    if (ffn_.activation == Activation::kRelu2) {
      for (size_t i = 0; i < count; ++i) a[i] *= a[i];
    }
    return count;
  }

  // values: down_proj's input.
  void finish(size_t t) {
    DotList& list = lists_[t];
    float* const h = list.values;
    if (ffn_.gated) {
      const float* const a = a_ + t * kDotStride;
      const bool drelu = ffn_.activation == Activation::kDrelu;
      for (size_t i = 0; i < list.count; ++i) h[i] = a[i] * (drelu && h[i] <= 0.0f ? 0.0f : h[i]);
    }
    if (is_in_range(h, list.count)) return;
    list.count = 0;
    scratch_.needs_fallback[t].store(true, std::memory_order_relaxed);
  }

  // Appends the block's neurons.
  void add_tiles(size_t used) {
    size_t place[kMaxDotTokens] = {};
    const size_t size = group_size(used, down_.tile_rows);
    for (size_t first = 0; first < used; first += size) {
      const size_t last = std::min(used, first + size);
      out_.tiles[out_.count++] = {out_.rows, last - first, out_.entries, out_.ends};
      out_.rows = std::copy(used_ + first, used_ + last, out_.rows);
      DotEntry* end = out_.entries;
      for (size_t t = 0; t < x_.count; ++t) {
        end = (down_.has_pairs ? add_pairs : add_rows)(lists_[t], place[t], first, last, end);
        out_.ends[t] = static_cast<uint32_t>(end - out_.entries);
      }
      out_.entries = end;
      out_.ends += x_.count;
    }
  }

  // Of one token, from list entry i on.
  static DotEntry* add_rows(const DotList& list, size_t& i, size_t first, size_t last, DotEntry* out) {
    for (; i < list.count && static_cast<size_t>(list.slots[i]) < last; ++i, ++out) {
      const uint16_t row = static_cast<uint16_t>(static_cast<size_t>(list.slots[i]) - first);
      *out = {{row, row}, 0};
      std::memcpy(&out->h, &list.values[i], sizeof(out->h));
    }
    return out;
  }

  // The same in pairs. An odd one is its own partner, with 0 for h.
  static DotEntry* add_pairs(const DotList& list, size_t& i, size_t first, size_t last, DotEntry* out) {
    const auto is_left = [&] { return i < list.count && static_cast<size_t>(list.slots[i]) < last; };
    const auto row = [&] { return static_cast<uint16_t>(static_cast<size_t>(list.slots[i]) - first); };
    while (is_left()) {
      const uint16_t own = row();
      const uint32_t h = to_bf16(list.values[i++]);
      if (is_left()) {
        *out++ = {{own, row()}, h | to_bf16(list.values[i]) << 16};
        ++i;
      } else {
        *out++ = {{own, own}, h};
      }
    }
    return out;
  }

  const Kernels& kernels_;
  const DotKernels& run_;
  const DotKernels& down_;
  const Ffn& ffn_;
  const DotTokens& x_;
  const LeftOut& others_;
  float *z_, *a_, *v_;  // of a block
  int32_t *slots_, *rare_;
  const bool shares_;
  const int prefetches_;
  int block_prefetches_ = 0;   // of its rows of up_proj: 0 if all are prefetched
  bool& most_are_used_;        // of the last block, so that all rows of this one are prefetched
  bool is_shared_[kDotBlock];  // by place in used_
  DotList lists_[kMaxDotTokens];
  int32_t used_[kDotBlock + 1];  // the last neuron of a block is written in any case
  DotPiece& out_;
  Scratch& scratch_;
};

}  // namespace

void run_dot_neurons(const Kernels& kernels, DotLevel level, const Ffn& ffn, const DotTokens& x, Range panels,
                     const LeftOut& others, float* work, bool& most_are_used, DotPiece& out, Scratch& scratch) {
  Neurons(kernels, level, ffn, x, others, work, most_are_used, out, scratch).compute(panels);
}

}  // namespace prosparse
