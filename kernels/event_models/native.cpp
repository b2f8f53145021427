// Event models on the CPU: a whole poll of events scored and learned in one call, one after the other.
//
// Contract: every array of the state is bound once and changed in place; `learn` takes the events' times [n]
// (float64), types [n] (int64, below the capacity) and slots [n] (int64, rows of `keys`), and fills scores
// [n, 7] (float64). Everything is checked before anything is changed, but the order of a key's events, which shows
// only on the way: an event before the last of its key ends the call with an error, the events before it learned.

#include "native.h"

#include "../event_attention/attention.h"
#include "../event_attention/queries.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace nb = nanobind;

// Attention once for each instruction set. Nothing below a target pragma may include a header.
namespace streamwise {
namespace attention_baseline {
#include "../event_attention/engine.inl"
}
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STREAMWISE_MULTIVERSION 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace attention_avx2 {
#include "../event_attention/engine.inl"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")
namespace attention_avx512 {
#include "../event_attention/engine.inl"
}
#pragma GCC pop_options
#elif defined(__x86_64__) && defined(__clang__)
#define STREAMWISE_MULTIVERSION 1
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
namespace attention_avx2 {
#include "../event_attention/engine.inl"
}
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), \
                             apply_to = function)
namespace attention_avx512 {
#include "../event_attention/engine.inl"
}
#pragma clang attribute pop
#endif
}  // namespace streamwise

namespace {

using namespace streamwise;

constexpr int64_t MAX_SCALES = 32;
constexpr double SHORTEST = 1e-3;  // seconds, the end of the first bin of gaps
constexpr double LEAST = 1e-12;    // of what a floor gives to anything
constexpr int64_t GAP_CLASS = 4;  // bins of gaps that are about as long
constexpr double FORGOTTEN = 1e-30;  // of one event, after 69 time scales

#include "models.inl"
#include "prompt_tpp.inl"
#include "../event_attention/bindings.inl"

template <typename T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// What Python hands over: arrays, which are kept alive, and numbers.
class State {
 public:
  explicit State(nb::dict given) : given_(std::move(given)) {}

  template <typename T>
  T* array(const char* name, int64_t size) {
    const nb::object object = entry(name);
    nb::ndarray<T, nb::c_contig, nb::device::cpu> array;
    if (!nb::try_cast(object, array, false))
      throw nb::type_error((std::string(name) + " is not a contiguous, writable array of the right dtype").c_str());
    if (int64_t(array.size()) != size)
      throw nb::value_error((std::string(name) + " has the wrong size; expected " + std::to_string(size)).c_str());
    return array.data();
  }

  double number(const char* name) const { return cast<double>(name); }

  std::string text(const char* name) const { return cast<std::string>(name); }

  State part(const char* name) const { return State(cast<nb::dict>(name)); }

  int64_t count(const char* name, int64_t low, int64_t high) const {
    const int64_t value = cast<int64_t>(name);
    if (value < low || value > high) throw nb::value_error((std::string(name) + " is out of range").c_str());
    return value;
  }

 private:
  nb::object entry(const char* name) const {
    if (!given_.contains(name)) throw nb::value_error((std::string("missing entry: ") + name).c_str());
    return nb::borrow(given_[name]);
  }

  template <typename T>
  T cast(const char* name) const {
    T value;
    if (!nb::try_cast(entry(name), value)) throw nb::type_error((std::string(name) + " has the wrong type").c_str());
    return value;
  }

  nb::dict given_;
};

void open(Poisson& model, State& state) {
  model.type_counts = state.array<double>("type_counts", model.types.capacity + 1);
  model.gaps = state.array<double>("gaps", 2);
  model.memory = state.number("memory");
  model.prior_gap = state.number("prior_gap");
  model.prior_count = state.number("type_prior");
}

void open(Hawkes& model, State& state) {
  const int64_t capacity = model.types.capacity;
  model.scales = state.count("scales", 1, MAX_SCALES);
  model.offsets = state.count("offsets", 1, 4096);
  model.decay_rates = state.array<double>("decay_rates", model.scales);
  model.offset_seconds = state.array<double>("offset_seconds", model.offsets);
  model.offset_passed = state.array<double>("offset_passed", model.offsets * model.scales);
  model.base_sum = state.array<double>("base_sum", capacity);
  model.child_sum = state.array<double>("child_sum", model.scales * capacity * capacity);
  model.child_total = state.array<double>("child_total", model.scales * capacity);
  model.pulse_exposure = state.array<double>("pulse_exposure", model.scales * capacity);
  model.progress = state.array<double>("progress", 3);
  model.forgetting = state.number("forgetting");
  model.memory = state.number("memory");
  model.warm_up = state.number("warm_up");
  model.prior_base = state.number("prior_base");
  model.prior_seconds = state.number("prior_seconds");
  model.prior_children = state.number("prior_children");
  model.prior_pulses = state.number("prior_pulses");
  model.intensity.resize(size_t(capacity));
  model.source.resize(size_t(model.scales * capacity));
  model.survival_at.resize(size_t(model.offsets));
}

void open(CountsModel& model, State& state) {
  const int64_t capacity = model.types.capacity;
  model.bins = state.count("bins", GAP_CLASS, 4096);
  if (model.bins % GAP_CLASS != 0) throw nb::value_error("bins must be a multiple of 4");
  model.buckets = state.count("buckets", 1, 62);
  const int64_t row = capacity + 1, gap_row = model.bins + 1;
  model.global_types = state.array<double>("global_types", row);
  model.after_one = state.array<double>("after_one", capacity * row);
  model.after_two = state.array<double>("after_two", capacity * capacity * row);
  model.global_gaps = state.array<double>("global_gaps", gap_row);
  model.gaps_after = state.array<double>("gaps_after", capacity * gap_row);
  model.type_weights = state.array<double>("type_weights", model.buckets * 4);
  model.gaps_like = state.array<double>("gaps_like", (1 + model.bins / GAP_CLASS) * gap_row);
  model.gap_weights = state.array<double>("gap_weights", model.buckets * 4);
  model.edges = state.array<double>("edges", model.bins);
  model.gap_prior = state.array<double>("gap_prior", model.bins);
  for (auto [name, number] : {std::pair{"memory", &model.memory}, {"key_memory", &model.key_memory},
                              {"type_prior", &model.type_prior}, {"type_pull", &model.type_pull},
                              {"gap_prior_total", &model.gap_prior_total}, {"gap_pull", &model.gap_pull},
                              {"share", &model.share}, {"log_width", &model.log_width}})
    *number = state.number(name);
  model.type_experts.resize(size_t(4 * capacity));
  model.type_mixed.resize(size_t(capacity));
  model.gap_experts.resize(size_t(4 * model.bins));
  model.gap_mixed.resize(size_t(model.bins));
}

Attention* make_attention(const AttentionSpec& spec, bool is_double, const std::string& instruction_set) {
#ifdef STREAMWISE_MULTIVERSION
  if (instruction_set == "avx512") return attention_avx512::make_attention(spec, is_double);
  if (instruction_set == "avx2") return attention_avx2::make_attention(spec, is_double);
#endif
  return attention_baseline::make_attention(spec, is_double);
}

template <typename T>
void open_arrays(AttentionSpec& s, State& state, int64_t size) {
  s.weights = state.array<T>("weights", size);
  s.gradients = state.array<T>("gradients", size);
  s.first = state.array<T>("first_moment", size);
  s.second = state.array<T>("second_moment", size);
  s.prompt_gradients = state.array<T>("prompt_gradients", s.heads * s.layers * 2 * s.prompts * s.rows * s.width);
  if (s.history > 0) s.history_positions = state.array<T>("history_positions", s.history_length * (s.width + s.time_width));
  s.cache = state.array<T>("cache", s.hot * s.heads * s.layers * 2 * s.window * s.width);
}

void open(PromptTPP& model, State& state) {
  State hawkes = state.part("hawkes"), counts = state.part("counts");
  model.hawkes.types = model.counts.types = {&model.known, model.types.capacity};
  open(model.hawkes, hawkes);
  open(model.counts, counts);
  AttentionSpec& s = model.spec;
  s.types = model.types.capacity;
  s.window = state.count("window", 2, 4096);
  s.width = state.count("width", 16, 128);
  s.time_width = state.count("time_width", 2, 64);
  s.layers = state.count("layers", 1, 8);
  s.heads = state.count("heads", 0, 8);
  s.hidden = state.count("hidden", 16, 1024);
  s.bins = model.counts.bins;
  s.prompts = state.count("prompts", 0, 1024);
  s.selected = state.count("selected", 0, s.prompts);
  s.rows = state.count("rows", 0, 64);
  s.group = state.count("group", 1, 1 << 20);
  s.refresh_every = state.count("refresh_every", 1, 1 << 20);
  s.hot = state.count("hot", 8, int64_t(1) << 24);
  s.cache_age = state.count("cache_age", 0, int64_t(1) << 40);
  s.decoder = state.count("decoder", 0, 1);
  s.exact = state.count("exact", 0, 1);
  s.recency = state.count("recency", 0, 1);
  s.calendar = state.count("calendar", 0, 1);
  s.pool_only = state.count("pool_only", 0, 1);
  s.random_prompts = state.count("random_prompts", 0, 1);
  s.history = state.count("history", 0, 4096);
  s.history_length = state.count("history_length", 1, 1024);
  s.history_reads = state.count("history_reads", 1, 4096);
  s.history_features = s.history > 0 ? state.count("history_features", 1, 1024) : 0;
  s.history_heads = state.count("history_heads", 1, 1024);
  if (s.history_features % s.history_heads || s.history * s.history_length % 2)
    throw nb::value_error("history_features must be a multiple of history_heads, and events of the history even");
  if (s.history > 0 && s.decoder != int64_t(Decoder::bins)) throw nb::value_error("a history is for bins alone");
  if (s.types > INT16_MAX || s.bins > INT16_MAX) throw nb::value_error("more types or bins than a history can name");
  s.node_cells = state.count("node_cells", 1, 16);
  s.node_count = state.count("node_count", 1, 32);
  s.seed = uint64_t(state.count("seed", INT64_MIN, INT64_MAX));
  for (auto [name, number] : {std::pair{"learning_rate", &s.learning_rate}, {"weight_decay", &s.weight_decay},
                              {"clip", &s.clip}, {"matching", &s.matching}, {"usage_balance", &s.usage_balance},
                              {"reuse_after", &s.reuse_after}, {"drift_boost", &s.drift_boost}, {"unit", &s.unit}})
    *number = state.number(name);
  if (s.width % 16 || s.hidden % 16 || s.window % 2 || s.time_width % 2 || s.hot % 8)
    throw nb::value_error("width and hidden must be multiples of 16, hot of 8, window and time_width of 2");
  s.edges = model.counts.edges;
  s.middles = state.array<double>("middles", s.bins);
  s.rates = state.array<double>("rates", s.time_width / 2);
  s.node_at = state.array<double>("node_at", s.node_count);
  s.node_weight = state.array<double>("node_weight", s.node_count);
  s.cached = state.array<int64_t>("cached", s.hot * 4);
  s.progress = state.array<double>("progress", kProgress);
  s.usage = state.array<double>("usage", s.prompts * 2);
  model.inputs = s.width + s.time_width + (s.calendar ? 4 : 0);
  model.floor = state.count("floor", 0, 3);
  model.floor_weights = state.array<double>("floor_weights", 4);
  model.forecast_weights = state.array<double>("forecast_weights", 3);
  if (model.hawkes.offsets != s.bins) throw nb::value_error("offset_seconds must be the edges of the bins");
  const bool is_double = state.count("double", 0, 1) == 1;
  const int64_t size = state.count("size", 1, int64_t(1) << 31);
  if (is_double) open_arrays<double>(s, state, size);
  else open_arrays<float>(s, state, size);
  if (size != attention_size(s)) throw nb::value_error("size is not that of the parameters");
  const std::string instruction_set = state.text("instruction_set");
  s.of_float = chunk_attention::float_functions(instruction_set.c_str());
  s.of_double = chunk_attention::double_functions(instruction_set.c_str());
  model.attention.reset(make_attention(s, is_double, instruction_set));
  model.open_scratch();
}

// What `learn` fills for each event.
template <typename Model>
struct ScoresOf { using type = Scores; };
template <>
struct ScoresOf<PromptTPP> { using type = PromptScores; };

template <typename Model>
class EventModel {
 public:
  explicit EventModel(const nb::dict& given) : state_(given) {
    State& state = state_;
    model_.types.capacity = state.count("capacity", 1, 4096);
    model_.types.seen = state.array<double>("seen", 1);
    open(model_, state);
    slots_ = state.count("slots", 1, int64_t(1) << 40);
    keys_ = reinterpret_cast<std::byte*>(state.array<uint8_t>("keys", slots_ * model_.key_bytes()));
  }

  void learn(const Column<double>& times, const Column<int64_t>& types, const Column<int64_t>& slots, Rows& scores) {
    const size_t n = times.shape(0);
    if (types.shape(0) != n || slots.shape(0) != n || scores.shape(0) != n || scores.shape(1) != size_t(kFields))
      throw nb::value_error(("times, types and slots must have one length n, and scores the shape [n, " +
                             std::to_string(kFields) + "]").c_str());
    const double* time = times.data();
    const int64_t *type = types.data(), *slot = slots.data();
    Filled* out = reinterpret_cast<Filled*>(scores.data());
    int64_t seen = int64_t(*model_.types.seen);
    for (size_t i = 0; i < n; ++i) {
      if (!std::isfinite(time[i])) throw nb::value_error("times must be finite");
      if (type[i] < 0 || type[i] > std::min(seen, model_.types.capacity - 1))
        throw nb::value_error("types must count up from 0 as they are first seen, below the capacity");
      if (slot[i] < 0 || slot[i] >= slots_) throw nb::value_error("slots must be rows of keys");
      seen = std::max(seen, type[i] + 1);
    }
    size_t done = 0;
    {
      nb::gil_scoped_release release;
      for (; done < n; ++done) {
        std::byte* key = keys_ + slot[done] * model_.key_bytes();
        KeyClock& clock = *reinterpret_cast<KeyClock*>(key);
        if (clock.events > 0.0 && time[done] < clock.last_time) break;
        out[done] = model_.learn(key, time[done], type[done]);
        out[done].type = double(type[done]);
        clock = {time[done], clock.events + 1.0, int32_t(type[done]), clock.last_type};
      }
    }
    if (done < n)
      throw nb::value_error(("event " + std::to_string(done) + " lies before the last one of its key").c_str());
  }

  int64_t key_bytes() const { return model_.key_bytes(); }

  void refresh() { model_.attention->refresh(); }

  // Let a key pay for its silence until `now`.
  void charge(double now, int64_t slot, bool train) {
    if (slot < 0 || slot >= slots_) throw nb::value_error("slot must be a row of keys");
    model_.charge(keys_ + slot * model_.key_bytes(), now, train);
  }

 private:
  using Filled = typename ScoresOf<Model>::type;
  static constexpr int64_t kFields = sizeof(Filled) / sizeof(double);

  State state_;
  Model model_{};
  int64_t slots_ = 0;
  std::byte* keys_ = nullptr;
};

template <typename Model>
void bind(nb::module_& module, const char* name) {
  using Bound = EventModel<Model>;
  auto bound = nb::class_<Bound>(module, name);
  if constexpr (std::is_same_v<Model, PromptTPP>)
    bound.def("refresh", &Bound::refresh)
        .def("charge", &Bound::charge, nb::arg("now"), nb::arg("slot"), nb::arg("train"));
  bound.def(nb::init<const nb::dict&>(), nb::arg("state"))
      .def("learn", &Bound::learn, nb::arg("times").noconvert(), nb::arg("types").noconvert(),
           nb::arg("slots").noconvert(), nb::arg("scores").noconvert())
      .def("key_bytes", &Bound::key_bytes);
}

}  // namespace

void bind_event_models(nb::module_& module) {
  bind<Poisson>(module, "PoissonModel");
  bind<Hawkes>(module, "HawkesModel");
  bind<CountsModel>(module, "CountsModel");
  bind<PromptTPP>(module, "PromptTPPModel");
  bind_event_attention<float>(module);
  bind_event_attention<double>(module);
}
