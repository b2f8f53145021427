// What the bindings and the engine share: descriptions of networks and learners, and one learner's face.
//
// Everything here is plain data or virtual, so that the engine can be compiled once per instruction set
// (engine.inl) without the copies meeting in the linker.

#pragma once

#include <cstddef>
#include <cstdint>

#include "../chunk_attention/lookup.h"

namespace streamwise {

constexpr int64_t kMaxLayers = 32;  // of one network; agents/native.py says the same

enum class LayerKind : int { read, recurrent, bottleneck, linear, convolution, layer_norm, leaky_relu, flatten };

// One layer. Grids are [channel, position], so that flatten has nothing to do; only the input of the first layer may be
// [position, channel] (`channels_last`), as MinAtar's grids are.
struct LayerSpec {
  LayerKind kind;
  int64_t inputs = 0, outputs = 0;                                // numbers going in and coming out
  int64_t channels_in = 0, height = 0, width = 0;                 // convolution
  int64_t channels_out = 0, kernel = 0, stride = 0;               // convolution
  int64_t height_out = 0, width_out = 0;                          // convolution
  bool channels_last = false;                                     // convolution: how its input lies
  double slope = 0.0;                                             // leaky_relu
  int64_t features = 0, heads = 0, k = 0;                         // read, recurrent: as many features beside its input
  bool joint = false;                                             // read
};

// What a learner remembers of its episode; memory/episode.py says how it lies.
struct MemorySpec {
  void* contents = nullptr;     // [slots, length, row], the learner's own, changed in place; null: no memory
  void* summaries = nullptr;    // [slots, row]
  uint8_t* visible = nullptr;   // [slots]
  int64_t* steps = nullptr;     // [slots], how many of a chunk's are real, the first ones; null: all
  int64_t* counters = nullptr;  // chunks sealed, steps of the open chunk, steps of all episodes, key of random reads,
                                // guests that can be read
  int64_t slots = 0, length = 0, row = 0;
  int64_t own = 0;              // slots of the learner's own chunks, the first ones; the others are for guests
  bool lasting = false;         // whether chunks stay at the end of an episode
  int64_t random_reads = 0;     // of the chunks that are read, how many are any
  chunk_attention::Functions<float> of_float{};
  chunk_attention::Functions<double> of_double{};
};

// What bottlenecks look up by; memory/bottleneck.py says how it lies.
struct BooksSpec {
  const void* projection = nullptr;  // [books, width, key_width]
  const void* keys = nullptr;        // [books, pairs, key_width], changed by `move`; null: no bottleneck
  void* waiting = nullptr;           // [batch, width], changed in place: what the keys have not followed yet
  int64_t* counters = nullptr;       // observations seen, and how many of them are waiting
  int64_t books = 0, pairs = 0, key_width = 0, width = 0, batch = 0;
  int64_t warm_up = 0;               // observations until the keys stay
  void (*move)(void* mover, int64_t count) = nullptr;  // let the keys follow the first of what is waiting; may throw
  void* mover = nullptr;
};

enum class RuleKind : int { obgd, adaptive_obgd, intentional };

struct RuleSpec {
  RuleKind kind;
  double step_size, overshoot_margin;         // obgd, adaptive_obgd
  double intended_change;                     // intentional
  bool normalize_td_error;                    // intentional
  double second_moment_decay, epsilon;        // adaptive_obgd, intentional
  double td_error_decay, td_error_cap;        // intentional
};

// What a rule remembers besides its arrays.
struct RuleState {
  int64_t updates = 0;
  double gradient_norm = 0.0, decay_product = 1.0, td_error_square = 1.0, td_error_magnitude = 0.0;
};

struct NetworkSpec {
  const LayerSpec* layers;  // read while the learner is made, not kept
  int64_t layer_count;
  void* parameters;     // [size], the learner's own memory, changed in place
  void* trace;          // [size]
  void* second_moment;  // [size], or null for obgd
  int64_t size;
  RuleSpec rule;
  void* positions;  // read: [length, row] of the memory's chunks, or null
  void* hidden;     // recurrent: [features], the learner's own, changed in place
};

enum class LearnerKind : int { stream_ac, stream_q, stream_sarsa, stream_td };
enum class PolicyKind : int { gaussian, categorical };
enum class InputKind : int { uint8, float32, float64 };

struct LearnerSpec {
  LearnerKind kind;
  NetworkSpec value, policy;  // policy: stream_ac only
  MemorySpec memory;
  BooksSpec books;
  PolicyKind policy_kind;
  int64_t actions;            // discrete actions, or the size of a continuous one
  int64_t observation_size, passthrough;
  double* mean;               // [observation_size - passthrough], changed in place
  double* squared_deviation;  // likewise
  double discount, trace_decay, entropy_coefficient;
  bool bootstrap_on_truncation;
  double epsilon_start, epsilon_end, exploration_steps;
};

// Everything that changes besides the arrays: what a checkpoint holds as scalars.
struct LearnerState {
  int64_t steps = 0;
  bool episode_starts = true;
  int64_t observation_count = 0;
  int64_t reward_count = 0;
  double reward_mean = 0.0, reward_squared_deviation = 0.0, discounted_return = 0.0;
  uint64_t key = 0;
  uint64_t counter = 0;
  int64_t next_action = -1;  // stream_sarsa: the action chosen for the next `act`, or -1
  RuleState value, policy;
};

struct StepMetrics {
  double value, prediction, td_error_magnitude, entropy, step_size, policy_step_size, epsilon;
};

class Learner {
 public:
  virtual ~Learner() = default;
  LearnerState state;

  // Both return false, having changed nothing, if an observation, a reward or an action is not finite.
  // action: [actions] doubles for a Gaussian policy; otherwise the index is returned in action[0].
  virtual bool act(const void* observation, InputKind kind, bool explore, double* action) = 0;
  virtual bool learn_one(const void* observation, InputKind kind, const double* action, double reward,
                         const void* next_observation, InputKind next_kind, bool terminated, bool truncated,
                         StepMetrics& metrics) = 0;
  // stream_td: the value of an observation in units of the scaled reward; false if it is not finite.
  virtual bool predict(const void* observation, InputKind kind, double& value) = 0;
  // Take an observation into the memory, learning nothing; false if it is not finite.
  virtual bool remember(const void* observation, InputKind kind) = 0;
  virtual void end_episode() = 0;  // as if the newest transition had ended it
  // Something outside has written to the parameters or the statistics: forget what was computed.
  virtual void forget() = 0;
};

// The bytes one observation takes.
inline int64_t bytes_of(InputKind kind) {
  return kind == InputKind::uint8 ? 1 : kind == InputKind::float32 ? 4 : 8;
}

}  // namespace streamwise
