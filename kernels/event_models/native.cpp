// Event models on the CPU: a whole poll of events scored and learned in one call, one after the other.
//
// Contract: every array of the state is bound once and changed in place; `learn` takes the events' times [n]
// (float64), types [n] (int64, below the capacity) and slots [n] (int64, rows of `keys`), and fills scores
// [n, 7] (float64). Everything is checked before anything is changed, but the order of a key's events, which shows
// only on the way: an event before the last of its key ends the call with an error, the events before it learned.

#include "native.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace {

constexpr int64_t MAX_SCALES = 32, FIELDS = 7;
constexpr int64_t GAP_CLASS = 4;  // bins of gaps that are about as long
constexpr double FORGOTTEN = 1e-30;  // of one event, after 69 time scales

#include "models.inl"

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

  double number(const char* name) { return cast<double>(name); }

  int64_t count(const char* name, int64_t low, int64_t high) {
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
    if (types.shape(0) != n || slots.shape(0) != n || scores.shape(0) != n || scores.shape(1) != size_t(FIELDS))
      throw nb::value_error("times, types and slots must have one length n, and scores the shape [n, 7]");
    const double* time = times.data();
    const int64_t *type = types.data(), *slot = slots.data();
    Scores* out = reinterpret_cast<Scores*>(scores.data());
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

 private:
  State state_;
  Model model_{};
  int64_t slots_ = 0;
  std::byte* keys_ = nullptr;
};

template <typename Model>
void bind(nb::module_& module, const char* name) {
  using Bound = EventModel<Model>;
  nb::class_<Bound>(module, name)
      .def(nb::init<const nb::dict&>(), nb::arg("state"))
      .def("learn", &Bound::learn, nb::arg("times").noconvert(), nb::arg("types").noconvert(),
           nb::arg("slots").noconvert(), nb::arg("scores").noconvert())
      .def("key_bytes", &Bound::key_bytes);
}

}  // namespace

void bind_event_models(nb::module_& module) {
  bind<Poisson>(module, "PoissonModel");
  bind<Hawkes>(module, "HawkesModel");
  bind<CountsModel>(module, "CountsModel");
}
