// Bindings of the streaming step: checks what Python hands over, then runs the engine without the GIL.

#include "native.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "engine.h"
#include "reading.h"

// The engine once for each instruction set. Nothing below a target pragma may include a header.
namespace streamwise {
namespace baseline {
#include "engine.inl"
}  // namespace baseline

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define STREAMWISE_MULTIVERSION 1
#define STREAMWISE_LANES 8
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "engine.inl"
}  // namespace avx2
#pragma GCC pop_options
#undef STREAMWISE_LANES
#define STREAMWISE_LANES 16
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")
namespace avx512 {
#include "engine.inl"
}  // namespace avx512
#pragma GCC pop_options
#undef STREAMWISE_LANES
#elif defined(__x86_64__) && defined(__clang__)
#define STREAMWISE_MULTIVERSION 1
#define STREAMWISE_LANES 8
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
namespace avx2 {
#include "engine.inl"
}  // namespace avx2
#pragma clang attribute pop
#undef STREAMWISE_LANES
#define STREAMWISE_LANES 16
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), \
                             apply_to = function)
namespace avx512 {
#include "engine.inl"
}  // namespace avx512
#pragma clang attribute pop
#undef STREAMWISE_LANES
#endif
}  // namespace streamwise

namespace {

using namespace streamwise;

Learner* make_learner(const LearnerSpec& spec, bool is_double, const std::string& instruction_set) {
#ifdef STREAMWISE_MULTIVERSION
  if (instruction_set == "avx512") return avx512::make_learner(spec, is_double);
  if (instruction_set == "avx2") return avx2::make_learner(spec, is_double);
#endif
  return baseline::make_learner(spec, is_double);
}

// A call's turn at a learner, for the engine runs without the GIL: a second thread would find it half way through.
class Turn {
 public:
  explicit Turn(bool& taken) : taken_(taken) {
    if (taken_) throw std::runtime_error("this learner is at work in another call; give each thread a learner of its own");
    taken_ = true;
  }
  ~Turn() { taken_ = false; }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  bool& taken_;  // read and written with the GIL held
};

// One learner's step. Holds on to the memory it works in.
class StreamStep {
 public:
  StreamStep(const nb::dict& given, const std::string& instruction_set)
      : new_action_(get<nb::object>(given, "new_action")) {
    const auto kind = get<std::string>(given, "learner");
    if (kind == "stream-ac") spec_.kind = LearnerKind::stream_ac;
    else if (kind == "stream-q") spec_.kind = LearnerKind::stream_q;
    else if (kind == "stream-sarsa") spec_.kind = LearnerKind::stream_sarsa;
    else if (kind == "stream-td") spec_.kind = LearnerKind::stream_td;
    else throw nb::value_error(("unknown learner '" + kind + "'").c_str());

    shape_ = get<std::vector<int64_t>>(given, "observation_shape");
    spec_.observation_size = 1;
    for (const int64_t side : shape_) {
      if (side < 1 || side > kLargestSize / spec_.observation_size)
        throw nb::value_error("observation_shape is out of range");
      spec_.observation_size *= side;
    }
    spec_.passthrough = get<int64_t>(given, "passthrough");
    if (spec_.passthrough < 0 || spec_.passthrough > spec_.observation_size)
      throw nb::value_error("passthrough is out of range");
    spec_.discount = get<double>(given, "discount");
    spec_.trace_decay = get<double>(given, "trace_decay");
    spec_.bootstrap_on_truncation = get<bool>(given, "bootstrap_on_truncation");

    const auto precision = get<std::string>(given, "dtype");
    const bool is_double = precision == "float64";
    if (!is_double && precision != "float32") throw nb::value_error("dtype must be float32 or float64");
    const nb::dlpack::dtype dtype = is_double ? nb::dtype<double>() : nb::dtype<float>();
    const int64_t features = spec_.observation_size - spec_.passthrough;
    spec_.mean = static_cast<double*>(hold(given, "mean", nb::dtype<double>(), features));
    spec_.squared_deviation = static_cast<double*>(hold(given, "squared_deviation", nb::dtype<double>(), features));

    read_memory(get<nb::object>(given, "memory"), dtype, instruction_set);
    read_books(get<nb::object>(given, "books"), dtype);
    std::vector<LayerSpec> value_layers, policy_layers;
    read_network(get<nb::dict>(given, "value"), "value", dtype, spec_.value, value_layers);
    spec_.actions = 1;
    const int64_t value_outputs = value_layers.back().outputs;
    int64_t expected_outputs = 1;
    if (spec_.kind == LearnerKind::stream_ac) {
      read_network(get<nb::dict>(given, "policy"), "policy", dtype, spec_.policy, policy_layers);
      spec_.entropy_coefficient = get<double>(given, "entropy_coefficient");
      spec_.actions = get<int64_t>(given, "actions");
      const bool gaussian = get<bool>(given, "gaussian");
      spec_.policy_kind = gaussian ? PolicyKind::gaussian : PolicyKind::categorical;
      if (spec_.actions < 1 || spec_.actions > kLargestSize || policy_layers.back().outputs != (gaussian ? 2 : 1) * spec_.actions)
        throw nb::value_error("policy has another number of outputs than actions ask for");
    } else if (spec_.kind != LearnerKind::stream_td) {
      spec_.policy_kind = PolicyKind::categorical;
      expected_outputs = spec_.actions = get<int64_t>(given, "actions");
      spec_.epsilon_start = get<double>(given, "epsilon_start");
      spec_.epsilon_end = get<double>(given, "epsilon_end");
      spec_.exploration_steps = get<double>(given, "exploration_steps");
    }
    report(spec_.kind == LearnerKind::stream_td ? "prediction" : "value",
           spec_.kind == LearnerKind::stream_td ? &StepMetrics::prediction : &StepMetrics::value);
    report("td_error_magnitude", &StepMetrics::td_error_magnitude);
    if (spec_.kind == LearnerKind::stream_ac) report("entropy", &StepMetrics::entropy);
    report("step_size", &StepMetrics::step_size);
    if (spec_.kind == LearnerKind::stream_ac) report("policy_step_size", &StepMetrics::policy_step_size);
    else if (spec_.kind != LearnerKind::stream_td) report("epsilon", &StepMetrics::epsilon);
    if (value_outputs != expected_outputs) throw nb::value_error("value has the wrong number of outputs");
    action_.resize(size_t(spec_.actions));
    action_shape_ = {spec_.actions};
    learner_.reset(make_learner(spec_, is_double, instruction_set));
  }

  nb::object act(nb::handle observation, nb::handle explore_object) {
    const Turn turn(taken_);
    const bool explore = is_true(explore_object);
    Buffer seen;
    if (!see(observation, seen)) return nb::none();
    bool accepted;
    {
      nb::gil_scoped_release release;
      accepted = learner_->act(seen.data, seen.kind, explore, action_.data());
    }
    if (!accepted) return nb::none();
    if (!is_gaussian()) return nb::int_(int64_t(action_[0]));
    nb::object result = new_action_();
    Buffer array;
    if (!read(result, action_shape_, array, PyBUF_WRITABLE) || array.kind == InputKind::uint8)
      throw nb::type_error("new_action() must make a writable float32 or float64 array of the action's size");
    if (array.kind == InputKind::float32) copy_action(static_cast<float*>(array.data));
    else copy_action(static_cast<double*>(array.data));
    return result;
  }

  nb::object learn_one(nb::handle observation, nb::handle action, double reward, nb::handle next_observation,
                       nb::handle terminated_object, nb::handle truncated_object) {
    const Turn turn(taken_);
    const bool terminated = is_true(terminated_object), truncated = is_true(truncated_object);
    Buffer seen, seen_next;
    if (!see(observation, seen) || !see(next_observation, seen_next) || !read_action(action)) return nb::none();
    StepMetrics metrics;
    bool accepted;
    {
      nb::gil_scoped_release release;
      accepted = learner_->learn_one(seen.data, seen.kind, action_.data(), reward, seen_next.data, seen_next.kind,
                                     terminated, truncated, metrics);
    }
    if (!accepted) return nb::none();
    nb::dict result;
    for (const auto& [name, member] : metrics_) {
      const nb::object number = nb::float_(metrics.*member);
      if (PyDict_SetItem(result.ptr(), name.ptr(), number.ptr()) != 0) throw nb::python_error();
    }
    return result;
  }

  bool remember(nb::handle observation) {
    const Turn turn(taken_);
    Buffer seen;
    return see(observation, seen) && learner_->remember(seen.data, seen.kind);
  }

  void forget() {
    const Turn turn(taken_);
    learner_->end_episode();
  }

  nb::object predict(nb::handle observation) {
    const Turn turn(taken_);
    Buffer seen;
    double value;
    if (!see(observation, seen) || !learner_->predict(seen.data, seen.kind, value)) return nb::none();
    return nb::float_(value);
  }

  nb::dict state() {
    const Turn turn(taken_);
    const LearnerState& s = learner_->state;
    nb::dict result;
    result["steps"] = s.steps;
    result["episode_starts"] = s.episode_starts;
    result["observation_count"] = s.observation_count;
    result["reward_count"] = s.reward_count;
    result["reward_mean"] = s.reward_mean;
    result["reward_squared_deviation"] = s.reward_squared_deviation;
    result["discounted_return"] = s.discounted_return;
    result["key"] = s.key;
    result["counter"] = s.counter;
    result["next_action"] = s.next_action;
    result["value"] = state_of(s.value);
    result["policy"] = state_of(s.policy);
    return result;
  }

  void set_state(const nb::dict& from) {
    const Turn turn(taken_);
    LearnerState s;
    s.steps = get<int64_t>(from, "steps");
    s.episode_starts = get<bool>(from, "episode_starts");
    s.observation_count = get<int64_t>(from, "observation_count");
    s.reward_count = get<int64_t>(from, "reward_count");
    s.reward_mean = get<double>(from, "reward_mean");
    s.reward_squared_deviation = get<double>(from, "reward_squared_deviation");
    s.discounted_return = get<double>(from, "discounted_return");
    s.key = get<uint64_t>(from, "key");
    s.counter = get<uint64_t>(from, "counter");
    s.next_action = get<int64_t>(from, "next_action");
    if (s.next_action >= spec_.actions) throw nb::value_error("next_action is no action");
    s.value = read_rule_state(get<nb::dict>(from, "value"));
    s.policy = read_rule_state(get<nb::dict>(from, "policy"));
    learner_->state = s;
    learner_->forget();
  }

 private:
  // A view of a NumPy array by the buffer protocol, which costs a third of DLPack's.
  struct Buffer {
    Py_buffer view{};
    bool held = false;
    void* data = nullptr;
    InputKind kind{};
    ~Buffer() {
      if (held) PyBuffer_Release(&view);
    }
  };

  // Environments and policies answer with Python's booleans or NumPy's.
  static bool is_true(nb::handle object) {
    const int truth = PyObject_IsTrue(object.ptr());
    if (truth < 0) throw nb::python_error();
    return truth != 0;
  }

  bool is_gaussian() const { return spec_.kind == LearnerKind::stream_ac && spec_.policy_kind == PolicyKind::gaussian; }

  template <class S>
  void copy_action(S* out) const {
    for (size_t i = 0; i < action_.size(); ++i) out[i] = S(action_[i]);
  }

  // False unless this is a contiguous array of the right shape and of a dtype the engine reads.
  static bool read(nb::handle object, const std::vector<int64_t>& shape, Buffer& seen, int also = 0) {
    if (PyObject_GetBuffer(object.ptr(), &seen.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | also) != 0) {
      PyErr_Clear();
      return false;
    }
    seen.held = true;
    if (size_t(seen.view.ndim) != shape.size()) return false;
    for (size_t axis = 0; axis < shape.size(); ++axis)
      if (int64_t(seen.view.shape[axis]) != shape[axis]) return false;
    const char* format = seen.view.format;
    if (!format || format[0] == '\0' || format[1] != '\0') return false;
    if (format[0] == 'f') seen.kind = InputKind::float32;
    else if (format[0] == 'd') seen.kind = InputKind::float64;
    else if (format[0] == 'B') seen.kind = InputKind::uint8;
    else return false;
    seen.data = seen.view.buf;
    return true;
  }
  bool see(nb::handle object, Buffer& seen) const { return read(object, shape_, seen); }

  bool read_action(nb::handle action) {
    if (spec_.kind == LearnerKind::stream_td) return true;
    if (!is_gaussian()) {
      // What policies.check_discrete takes, and not whatever else can be made an index of.
      if (!PyLong_Check(action.ptr()) &&
          !PyObject_TypeCheck(action.ptr(), reinterpret_cast<PyTypeObject*>(numpy_integer_.ptr())))
        return false;
      int64_t index;
      if (!nb::try_cast(action, index, true) || index < 0 || index >= spec_.actions) return false;
      action_[0] = double(index);
      return true;
    }
    Buffer taken;
    if (!read(action, action_shape_, taken)) return false;
    if (taken.kind == InputKind::float32) {
      const float* values = static_cast<const float*>(taken.data);
      for (size_t i = 0; i < action_.size(); ++i) action_[i] = double(values[i]);
    } else if (taken.kind == InputKind::float64) {
      const double* values = static_cast<const double*>(taken.data);
      for (size_t i = 0; i < action_.size(); ++i) action_[i] = values[i];
    } else {
      return false;
    }
    return true;
  }

  void report(const char* name, double StepMetrics::* member) {
    metrics_.emplace_back(nb::steal<nb::object>(PyUnicode_InternFromString(name)), member);
  }

  void* hold(const nb::dict& from, const std::string& name, nb::dlpack::dtype dtype, int64_t size) {
    nb::object object = get<nb::object>(from, name.c_str());
    // Of a tensor, another one on the same memory, for `tensor.data = ...` takes the memory from whoever holds it.
    if (nb::hasattr(object, "detach")) object = object.attr("detach")();
    held_.push_back(own_array(object, name, dtype, size));
    return held_.back().data();
  }

  void read_network(const nb::dict& from, const std::string& name, nb::dlpack::dtype dtype, NetworkSpec& network,
                    std::vector<LayerSpec>& layers) {
    int64_t count = 0;
    layers = read_layers(get<nb::list>(from, "layers"), spec_.observation_size, spec_.memory, spec_.books, count);
    network.layers = layers.data();
    network.layer_count = int64_t(layers.size());
    network.rule = read_rule(from);
    if (array_size(get<nb::object>(from, "parameters"), name + ".parameters") != count)
      throw nb::value_error((name + ".parameters must hold " + std::to_string(count) + " numbers").c_str());
    network.size = count;
    network.parameters = hold(from, "parameters", dtype, count);
    network.trace = hold(from, "trace", dtype, count);
    network.second_moment = network.rule.kind == RuleKind::obgd ? nullptr : hold(from, "second_moment", dtype, count);
    network.positions = network.hidden = nullptr;
    if (layers[0].kind == LayerKind::recurrent) network.hidden = hold(from, "hidden", dtype, layers[0].features);
    if (layers[0].kind == LayerKind::read && !get<nb::object>(from, "positions").is_none())
      network.positions = hold(from, "positions", dtype, spec_.memory.length * spec_.memory.row);
  }

  void read_memory(const nb::object& given, nb::dlpack::dtype dtype, const std::string& instruction_set) {
    if (given.is_none()) return;
    const nb::dict from = nb::cast<nb::dict>(given);
    MemorySpec& memory = spec_.memory;
    const auto shape = get<std::vector<int64_t>>(from, "shape");
    if (shape.size() != 3 || shape[0] < 2 || shape[1] < 1 || shape[2] < spec_.observation_size)
      throw nb::value_error("memory.shape must be [slots, length, row], of two slots at least and rows of an observation");
    memory.own = get<int64_t>(from, "own"), memory.lasting = get<bool>(from, "lasting");
    if (memory.own < 2 || memory.own > shape[0]) throw nb::value_error("memory.own must be two slots at least, and not more than all");
    memory.slots = shape[0], memory.length = shape[1], memory.row = shape[2];
    if (memory.row > kLargestSize || memory.length > kLargestSize / memory.row ||
        memory.slots > (int64_t(1) << 40) / (memory.length * memory.row))
      throw nb::value_error("memory.shape is out of range");
    memory.contents = hold(from, "contents", dtype, memory.slots * memory.length * memory.row);
    memory.summaries = hold(from, "summaries", dtype, memory.slots * memory.row);
    memory.visible = static_cast<uint8_t*>(hold(from, "visible", nb::dtype<uint8_t>(), memory.slots));
    memory.counters = static_cast<int64_t*>(hold(from, "counters", nb::dtype<int64_t>(), 5));
    memory.random_reads = get<int64_t>(from, "random_reads");
    memory.of_float = chunk_attention::float_functions(instruction_set.c_str());
    memory.of_double = chunk_attention::double_functions(instruction_set.c_str());
  }

  void read_books(const nb::object& given, nb::dlpack::dtype dtype) {
    if (given.is_none()) return;
    const nb::dict from = nb::cast<nb::dict>(given);
    BooksSpec& books = spec_.books;
    const auto shape = get<std::vector<int64_t>>(from, "shape");
    if (shape.size() != 5 || shape[3] != spec_.observation_size)
      throw nb::value_error("books.shape must be [books, pairs, key_width, width, batch], as wide as an observation");
    for (const int64_t side : shape)
      if (side < 1 || side > kLargestSize) throw nb::value_error("books.shape is out of range");
    books.books = shape[0], books.pairs = shape[1], books.key_width = shape[2], books.width = shape[3], books.batch = shape[4];
    if (books.books > kLargestSize / books.key_width) throw nb::value_error("books.shape is out of range");
    books.projection = hold(from, "projection", dtype, books.books * books.key_width * books.width);
    books.keys = hold(from, "keys", dtype, books.books * books.key_width * books.pairs);
    books.waiting = hold(from, "waiting", dtype, books.batch * books.width);
    books.counters = static_cast<int64_t*>(hold(from, "counters", nb::dtype<int64_t>(), 2));
    books.warm_up = get<int64_t>(from, "warm_up");
    move_keys_ = get<nb::object>(from, "move_keys");
    books.mover = this;
    books.move = [](void* mover, int64_t count) {
      const nb::gil_scoped_acquire acquire;
      static_cast<StreamStep*>(mover)->move_keys_(count);
    };
  }

  LearnerSpec spec_{};
  std::vector<int64_t> shape_, action_shape_;
  std::vector<nb::ndarray<>> held_;
  nb::object new_action_, move_keys_;
  nb::object numpy_integer_ = nb::module_::import_("numpy").attr("integer");
  std::vector<std::pair<nb::object, double StepMetrics::*>> metrics_;  // what an update reports, by name
  bool taken_ = false;
  std::vector<double> action_;
  std::unique_ptr<Learner> learner_;
};

}  // namespace

void bind_stream_step(nb::module_& module) {
  nb::class_<StreamStep>(module, "StreamStep", "One streaming learner's step, on the learner's own arrays.")
      .def(nb::init<const nb::dict&, const std::string&>(), nb::arg("spec"), nb::arg("instruction_set"))
      .def("act", &StreamStep::act, nb::arg("observation"), nb::arg("explore"),
           "Return an action, or None for an observation that cannot be read or is not finite.")
      .def("learn_one", &StreamStep::learn_one, nb::arg("observation"), nb::arg("action").none(), nb::arg("reward"),
           nb::arg("next_observation"), nb::arg("terminated"), nb::arg("truncated"),
           "Make one update and return its metrics, or None, having changed nothing, for a transition that cannot be "
           "read or is not finite.")
      .def("predict", &StreamStep::predict, nb::arg("observation"),
           "Return the value of an observation, or None if it cannot be read or is not finite.")
      .def("remember", &StreamStep::remember, nb::arg("observation"),
           "Take an observation into the memory, if there is one, learning nothing; False for one that cannot be read or "
           "is not finite.")
      .def("forget", &StreamStep::forget, "Forget the episode, as at its end: traces, and what was remembered of it.")
      .def("state", &StreamStep::state, "Return everything that changes besides the arrays.")
      .def("set_state", &StreamStep::set_state, nb::arg("state"),
           "Go on from `state`; also to be called after writing to the arrays.");
}
