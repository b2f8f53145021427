// What the bindings and the attention of the live event model share. Plain data and one virtual face, so that the
// engine (attention.inl) can be compiled once per instruction set without the copies meeting in the linker.

#pragma once

#include <cstdint>

#include "../stream_step/engine.h"

namespace streamwise {

enum class Decoder : int64_t { bins, intensity };

// Sizes and settings, and the learner's own arrays, which are changed in place. T is float or double.
struct AttentionSpec {
  int64_t types, window, width, time_width, layers, heads, hidden, bins;
  int64_t prompts, selected, rows;  // of a prompt: pairs of a key and a value
  int64_t group, refresh_every;     // events an optimiser step is made from; steps a step of the pool is made from
  int64_t hot, cache_age;           // keys whose projections are kept; steps after which they are made anew
  int64_t decoder, exact, recency, calendar, pool_only;
  int64_t node_cells, node_count;   // of the compensator of an intensity: cells of a gap, Gauss-Legendre nodes in each
  int64_t random_prompts;           // for comparison: retrieve by chance
  int64_t history, history_length;  // chunks that are kept of a key's older events, and events in each
  int64_t history_reads, history_features, history_heads;
  chunk_attention::Functions<float> of_float;
  chunk_attention::Functions<double> of_double;
  double learning_rate, weight_decay, clip, matching, usage_balance, reuse_after, drift_boost, unit;
  uint64_t seed;
  const double *edges, *rates;      // [bins] where bins of gaps begin; [time_width / 2] of the embedding of a gap
  const double *node_at, *node_weight;  // [node_count], in [0, 1]
  const double* middles;            // [bins], the gap that stands for a bin
  const void* history_positions;    // T [history_length, width + time_width]
  void *weights, *gradients, *first, *second;  // T [size]: parameters, the open group's gradients, Adam's moments
  void* prompt_gradients;           // T [heads, layers, 2, prompts * rows, width], of projected prompts
  void* cache;                      // T [hot, heads, layers, 2, window, width]: keys and values of events
  int64_t* cached;                  // [hot, 4]: serial of the key, when used, at which step made, events in it
  double *progress, *usage;         // [kProgress]; [prompts, 2]: fading share, and when it was last selected
};

// Entries of `progress`.
enum Progress : int {
  kEvents, kInGroup, kUpdates, kPoolPending, kSerials, kLookups, kHits, kGradientNorm, kClipped, kMeanCosine, kFloored,
  kSilence, kCharged, kDriftCount, kDriftSum, kDriftSquares, kDriftWalk, kDriftLow, kDriftAlarms,
  kBoostUntil, kRebuilds, kReused, kProgress
};

constexpr int64_t kQuantiles = 5;  // of a gap: 5%, 25%, 50%, 75%, 95%

// A key's part of the state: its newest events in rings, and what sums it up.
struct AttentionKey {
  double events, last_time;  // of the key, before the present event
  int64_t serial;
  double mean_log_gap;
  const double *times, *gaps;  // [window]: event number e is at e % window
  const int32_t* kinds;        // [window]
  double* query;               // [width + time features], fading mean of tokens
  const int16_t* history;      // [history, history_length, 2], type and bin of the gap of events before the window
};

// One event, or one moment of silence, of a key that has had an event.
struct AttentionInput {
  double time, gap, charged;    // seconds; charged: how much of the gap was charged as silence
  int64_t type, classes;        // type < 0: silence, which has no type
  const double *gap_floor;      // [bins], sums to 1
  const double *type_floor;     // [classes], sums to 1
  const double *type_counts;    // [types] of this key
  const float *issued;          // [bins], what was forecast of the gap right after the key's last event; or null
};

struct AttentionOutput {
  double time_log_density, at_arrival, type_log_probability, compensator, silence, predicted_gap;
  int64_t predicted_type, rank;  // rank: how many types were likelier than the true one
  double confidence, quantiles[kQuantiles];
};

class Attention {
 public:
  virtual ~Attention() = default;
  // Score the event, or the silence.
  virtual void score(const AttentionKey& key, const AttentionInput& input, AttentionOutput& output) = 0;
  // The distribution of the gap that begins now, [bins]. Only for Decoder::bins.
  virtual void forecast(const AttentionKey& key, const AttentionInput& input, float* out) = 0;
  // After `score`: the distribution of types after another gap, [classes].
  virtual void types_after(double gap, const double* type_floor, double* out) = 0;
  // After `score`: add the gradient to the open group; a full group makes a step.
  virtual void train(const AttentionOutput& output) = 0;
  // Take an event into what sums a key up. gap: seconds, 0 for a key's first.
  virtual void append(const AttentionKey& key, double time, double gap, int64_t type) = 0;
  // Parameters were changed from outside.
  virtual void refresh() = 0;
};

// How many parameters there are; attention.inl lays them out in this order.
inline int64_t attention_size(const AttentionSpec& s) {
  const int64_t inputs = s.width + s.time_width + (s.calendar ? 4 : 0), stacks = s.heads * s.layers;
  const int64_t attention = stacks * (inputs * 3 * s.width + 3 * s.width + s.window + 1);
  const int64_t features = s.heads * s.width + (inputs - s.width) + inputs + s.types + 1 + s.history_features;
  const int64_t bins = (features + 1) * s.hidden + (s.hidden + 1) * (s.bins + s.types + (s.calendar ? 8 : 0));
  const int64_t head = s.heads * s.width * s.types + 2 * s.types, found = s.history_features;
  const int64_t history = found * (2 * 2 * inputs + 3 * (s.width + s.time_width) + found + 3);
  return s.types * s.width + attention + history + (s.decoder == int64_t(Decoder::bins) ? bins : head) +
         s.prompts * (inputs + s.rows * 2 * s.width);
}

}  // namespace streamwise
