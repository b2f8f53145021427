// What Python hands over to a learner's step, read and checked, for the engine itself checks nothing: arrays, layers,
// step-size rules. For native.cpp alone.

#pragma once

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine.h"

namespace nb = nanobind;

namespace {

using namespace streamwise;

template <class T>
T get(const nb::dict& from, const char* name) {
  if (!from.contains(name)) throw nb::value_error((std::string("missing entry: ") + name).c_str());
  try {
    return nb::cast<T>(from[name]);
  } catch (const nb::cast_error&) {
    throw nb::type_error((std::string(name) + " has the wrong type").c_str());
  }
}

std::string type_name(nb::dlpack::dtype dtype) {
  const char* kind = dtype.code == uint8_t(nb::dlpack::dtype_code::Float) ? "float"
                     : dtype.code == uint8_t(nb::dlpack::dtype_code::Int) ? "int" : "uint";
  return kind + std::to_string(dtype.bits);
}

// A writable, contiguous, one-dimensional array of the learner's own; its memory is used, never copied, and stays
// while the answer is held.
nb::ndarray<> own_array(nb::handle object, const std::string& name, nb::dlpack::dtype dtype, int64_t size) {
  nb::ndarray<> array;
  if (!nb::try_cast(object, array, false))
    throw nb::type_error((name + " is not an array that can be written to").c_str());
  if (array.device_type() != nb::device::cpu::value) throw nb::value_error((name + " is not on the CPU").c_str());
  if (array.dtype() != dtype)
    throw nb::type_error((name + " must hold " + type_name(dtype)).c_str());
  if (array.ndim() != 1 || (size >= 0 && int64_t(array.shape(0)) != size))
    throw nb::value_error((name + " has the wrong shape; expected [" + std::to_string(size) + "]").c_str());
  if (array.shape(0) > 1 && array.stride(0) != 1) throw nb::value_error((name + " is not contiguous").c_str());
  return array;
}

int64_t array_size(nb::handle object, const std::string& name) {
  nb::ndarray<> array;
  if (!nb::try_cast(object, array, false) || array.ndim() != 1)
    throw nb::type_error((name + " is not a one-dimensional array that can be written to").c_str());
  return int64_t(array.shape(0));
}

[[noreturn]] void refuse_layer(size_t index, const std::string& why) {
  throw nb::value_error(("layer " + std::to_string(index) + ": " + why).c_str());
}

constexpr int64_t kLargestSize = int64_t(1) << 28;  // products of two and sums of such products stay below 2^63

int64_t times(int64_t a, int64_t b, size_t layer) {
  if (a > kLargestSize / b) refuse_layer(layer, "a size is out of range");
  return a * b;
}

// One place of a layer's description, (kind, number, ...).
template <class T>
T layer_entry(const nb::tuple& entry, size_t at, size_t layer) {
  if (at >= entry.size()) refuse_layer(layer, "too few numbers");
  T value;
  if (!nb::try_cast(entry[at], value)) refuse_layer(layer, "entry " + std::to_string(at) + " has the wrong type");
  return value;
}

// Read the layers and check that each fits the one before it: the engine itself checks nothing.
std::vector<LayerSpec> read_layers(const nb::list& described, int64_t inputs, const MemorySpec& memory,
                                   const BooksSpec& books, int64_t& parameters) {
  std::vector<LayerSpec> layers;
  parameters = 0;
  int64_t current = inputs;
  int64_t positions = 1;  // of the grid that `current` numbers lie on
  bool channels_last = false;
  for (size_t index = 0; index < described.size(); ++index) {
    nb::tuple entry;
    if (!nb::try_cast(described[index], entry, false)) refuse_layer(index, "is not a tuple");
    const auto kind = layer_entry<std::string>(entry, 0, index);
    auto number = [&](size_t at) {
      const auto value = layer_entry<int64_t>(entry, at, index);
      if (value < 1 || value > kLargestSize) refuse_layer(index, "a size is out of range");
      return value;
    };
    if (int64_t(layers.size()) == kMaxLayers) refuse_layer(index, "more than " + std::to_string(kMaxLayers) + " layers");
    LayerSpec layer{};
    layer.inputs = layer.outputs = current;
    if (kind == "linear") {
      layer.kind = LayerKind::linear;
      layer.outputs = number(2);
      if (number(1) != current) refuse_layer(index, "takes another number of inputs than come");
      if (positions != 1) refuse_layer(index, "a linear layer needs flatten before it");
      parameters += layer.outputs * (layer.inputs + 1);
    } else if (kind == "read") {
      if (index != 0) refuse_layer(index, "read is only for the input");
      if (memory.contents == nullptr) refuse_layer(index, "there is no memory to read");
      layer.kind = LayerKind::read;
      if (number(1) != current) refuse_layer(index, "takes another number of inputs than come");
      layer.features = number(2), layer.heads = number(3), layer.k = number(4);
      layer.joint = layer_entry<bool>(entry, 5, index);
      if (memory.random_reads < 0 || memory.random_reads >= layer.k) refuse_layer(index, "reads no chunk but random ones");
      if (layer.features % layer.heads != 0) refuse_layer(index, "its features are no multiple of its heads");
      times(times(layer.heads, layer.k, index), memory.length, index);
      parameters += times(layer.features, 2 * current + 3 * memory.row + layer.features + 3, index);
      layer.outputs = current + layer.features;
    } else if (kind == "recurrent") {
      if (index != 0) refuse_layer(index, "recurrent is only for the input");
      layer.kind = LayerKind::recurrent;
      if (number(1) != current) refuse_layer(index, "takes another number of inputs than come");
      layer.features = number(2);
      parameters += times(3 * layer.features, current + layer.features + 2, index);
      layer.outputs = current + layer.features;
    } else if (kind == "bottleneck") {
      if (described.size() != 1) refuse_layer(index, "a bottleneck is all of a network");
      if (books.keys == nullptr) refuse_layer(index, "there are no keys to look up by");
      layer.kind = LayerKind::bottleneck;
      if (number(1) != current) refuse_layer(index, "takes another number of inputs than come");
      layer.outputs = number(2);
      parameters += times(times(books.books, books.pairs, index), layer.outputs, index);
    } else if (kind == "channels_last") {
      if (index != 0) refuse_layer(index, "channels_last is only for the input");
      channels_last = true;
      continue;
    } else if (kind == "convolution") {
      layer.kind = LayerKind::convolution;
      layer.channels_in = number(1), layer.height = number(2), layer.width = number(3);
      layer.channels_out = number(4), layer.kernel = number(5), layer.stride = number(6);
      if (times(times(layer.channels_in, layer.height, index), layer.width, index) != current)
        refuse_layer(index, "takes another grid than comes");
      if (layer.kernel > layer.height || layer.kernel > layer.width) refuse_layer(index, "its kernel is too large");
      if (!layers.empty() && positions != layer.height * layer.width) refuse_layer(index, "takes another grid than comes");
      layer.channels_last = layers.empty() && channels_last;
      layer.height_out = (layer.height - layer.kernel) / layer.stride + 1;
      layer.width_out = (layer.width - layer.kernel) / layer.stride + 1;
      positions = layer.height_out * layer.width_out;
      layer.outputs = times(positions, layer.channels_out, index);
      parameters += layer.channels_out * (layer.channels_in * layer.kernel * layer.kernel + 1);
    } else if (kind == "layer_norm") {
      layer.kind = LayerKind::layer_norm;
    } else if (kind == "leaky_relu") {
      layer.kind = LayerKind::leaky_relu;
      layer.slope = layer_entry<double>(entry, 1, index);
    } else if (kind == "flatten") {
      layer.kind = LayerKind::flatten;
      positions = 1;
    } else {
      refuse_layer(index, "unknown kind '" + kind + "'");
    }
    // Only these can do without a place for d objective / d input, which the first layer has none of.
    const bool has_weights = layer.kind == LayerKind::linear || layer.kind == LayerKind::convolution ||
                             layer.kind == LayerKind::read || layer.kind == LayerKind::recurrent ||
                             layer.kind == LayerKind::bottleneck;
    if (layers.empty() && !has_weights) refuse_layer(index, "the first layer must be linear, a convolution, or what reads a memory");
    current = layer.outputs;
    layers.push_back(layer);
  }
  if (layers.empty() || (layers.back().kind != LayerKind::linear && layers.back().kind != LayerKind::bottleneck))
    refuse_layer(described.size(), "the last must be linear");
  return layers;
}

RuleSpec read_rule(const nb::dict& from) {
  const auto kind = get<std::string>(from, "rule");
  RuleSpec rule{};
  if (kind == "obgd") rule.kind = RuleKind::obgd;
  else if (kind == "adaptive-obgd") rule.kind = RuleKind::adaptive_obgd;
  else if (kind == "intentional") rule.kind = RuleKind::intentional;
  else throw nb::value_error(("unknown rule '" + kind + "'").c_str());
  if (rule.kind == RuleKind::intentional) {
    rule.intended_change = get<double>(from, "intended_change");
    rule.normalize_td_error = get<bool>(from, "normalize_td_error");
    rule.td_error_decay = get<double>(from, "td_error_decay");
    rule.td_error_cap = get<double>(from, "td_error_cap");
  } else {
    rule.step_size = get<double>(from, "step_size");
    rule.overshoot_margin = get<double>(from, "overshoot_margin");
  }
  if (rule.kind != RuleKind::obgd) {
    rule.second_moment_decay = get<double>(from, "second_moment_decay");
    rule.epsilon = get<double>(from, "epsilon");
  }
  return rule;
}

nb::dict state_of(const RuleState& state) {
  nb::dict result;
  result["updates"] = state.updates;
  result["gradient_norm"] = state.gradient_norm;
  result["decay_product"] = state.decay_product;
  result["td_error_square"] = state.td_error_square;
  result["td_error_magnitude"] = state.td_error_magnitude;
  return result;
}

RuleState read_rule_state(const nb::dict& from) {
  return {get<int64_t>(from, "updates"), get<double>(from, "gradient_norm"), get<double>(from, "decay_product"),
          get<double>(from, "td_error_square"), get<double>(from, "td_error_magnitude")};
}

}  // namespace
