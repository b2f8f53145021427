// What Python calls of queries.inl. Shapes, and how many events are visible, are checked before anything is read.

// Numbers of a row are next to each other; rows may lie apart.
template <class T, int dimensions>
using Strided = nb::ndarray<T, nb::ndim<dimensions>, nb::device::cpu>;
template <class T, int dimensions>
using Packed = nb::ndarray<T, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;
template <class A>
using Maybe = std::optional<A>;

void require(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

template <class A>
bool shaped(const A& array, std::initializer_list<int64_t> shape) {
  size_t i = 0;
  for (int64_t size : shape)
    if (int64_t(array.shape(i++)) != size) return false;
  return true;
}

template <class T>
OfTimes<T> of_times(const Strided<T, 3>& array) {
  require(array.stride(2) == 1 || array.shape(2) == 1, "numbers of a row must be next to each other");
  return {array.data(), array.shape(0) == 1 ? 0 : array.stride(0), array.stride(1)};
}

template <class T>
OfEvents<T> of_events(const Strided<T, 4>& array) {
  require(array.stride(3) == 1 || array.shape(3) == 1, "numbers of a row must be next to each other");
  return {array.data(), array.stride(0), array.stride(1), array.stride(2)};
}

template <class T>
struct Queries {
  Strided<const T, 3> query;                // [heads or 1, times of all groups, width]
  Maybe<Strided<const T, 3>> own;           // [heads, times of all groups, width + values' width]
  Strided<const T, 4> keys, values;         // [heads, sequences, events, ...]
  Maybe<Packed<const T, 4>> since;          // [sequences, groups, times, events or more]
  Packed<const int64_t, 2> visible;         // [sequences, groups]
  Maybe<Packed<const T, 1>> fall;           // [heads]
  Maybe<Strided<const T, 4>> prompt_keys, prompt_values;  // [heads, prompts, rows, ...]
  Maybe<Packed<const int64_t, 3>> ids;                    // [sequences, groups, selected]
  Maybe<Packed<const T, 4>> added_keys, added_values;     // [heads, sequences, groups, ...]
  bool squash;

  QueryTask<T> task() const {
    QueryTask<T> t{};
    t.heads = int64_t(keys.shape(0)), t.sequences = int64_t(keys.shape(1)), t.events = int64_t(keys.shape(2));
    t.width = int64_t(keys.shape(3)), t.values_width = int64_t(values.shape(3));
    t.groups = int64_t(visible.shape(1)), t.visible = visible.data(), t.squash = squash;
    const int64_t all = t.sequences * t.groups;
    t.times = all > 0 ? int64_t(query.shape(1)) / all : 0;
    require(shaped(visible, {t.sequences, t.groups}), "visible must be [sequences, groups]");
    require(shaped(query, {int64_t(query.shape(0)), all * t.times, t.width}) && (query.shape(0) == 1 || int64_t(query.shape(0)) == t.heads),
            "query must be [heads or 1, times of all groups, width]");
    require(shaped(values, {t.heads, t.sequences, t.events, t.values_width}), "values must be [heads, sequences, events, width]");
    require(t.values_width % kPack<T> == 0, "the width of values must be that of whole vectors");
    t.query = of_times(query), t.keys = of_events(keys), t.values = of_events(values);
    if (own) {
      require(shaped(*own, {t.heads, all * t.times, t.width + t.values_width}), "own must be [heads, times of all groups, a key and a value]");
      t.own = of_times(*own);
    }
    require(bool(since) == bool(fall), "since and fall come together");
    if (since) {
      t.since_row = int64_t(since->shape(3));
      require(shaped(*since, {t.sequences, t.groups, t.times, t.since_row}) && t.since_row >= whole<T>(t.events) && shaped(*fall, {t.heads}),
              "since must be [sequences, groups, times, events], and fall [heads]");
      t.since = since->data(), t.fall = fall->data();
    }
    require(bool(prompt_keys) == bool(ids) && bool(prompt_values) == bool(ids) && bool(added_keys) == bool(ids) &&
                bool(added_values) == bool(ids),
            "the parts of prompts come together");
    if (ids) {
      t.table = int64_t(prompt_keys->shape(1)), t.rows = int64_t(prompt_keys->shape(2)), t.selected = int64_t(ids->shape(2));
      require(shaped(*prompt_keys, {t.heads, t.table, t.rows, t.width}) &&
                  shaped(*prompt_values, {t.heads, t.table, t.rows, t.values_width}),
              "keys and values of prompts must be [heads, prompts, rows, width]");
      require(shaped(*ids, {t.sequences, t.groups, t.selected}), "ids must be [sequences, groups, selected]");
      require(shaped(*added_keys, {t.heads, t.sequences, t.groups, t.width}) &&
                  shaped(*added_values, {t.heads, t.sequences, t.groups, t.values_width}),
              "what is added to prompts must be [heads, sequences, groups, width]");
      t.prompts = {of_events(*prompt_keys), of_events(*prompt_values), added_keys->data(), added_values->data()};
      t.ids = ids->data();
      for (int64_t i = 0; i < all * t.selected; ++i)
        require(t.ids[i] >= 0 && t.ids[i] < t.table, "ids holds the number of a prompt that is not there");
    }
    for (int64_t i = 0; i < all; ++i) {
      const int64_t seen = t.visible[i];
      require(seen >= 0 && seen <= t.events, "visible holds more events than there are");
      require(seen > 0 || t.selected * t.rows > 0 || own, "there is nothing to attend to");
    }
    t.columns = Columns<T>(t, t.events).all;
    return t;
  }
};

template <class T>
struct EventAttention {  // of an instruction set
  void (*log_ages)(const double*, int64_t, const double*, int64_t, int64_t, const int64_t*, double, T*, int64_t);
  void (*attend)(const QueryTask<T>&, T*, T*);
  void (*attend_back)(const QueryTask<T>&, const T*, const T*, const T*, const QueryGradients<T>&);
};

template <class T>
EventAttention<T> event_attention(const std::string& instruction_set) {
#ifdef STREAMWISE_MULTIVERSION
  if (instruction_set == "avx512")
    return {attention_avx512::log_ages<T>, attention_avx512::attend_events<T>, attention_avx512::attend_events_back<T>};
  if (instruction_set == "avx2")
    return {attention_avx2::log_ages<T>, attention_avx2::attend_events<T>, attention_avx2::attend_events_back<T>};
#endif
  (void)instruction_set;
  return {attention_baseline::log_ages<T>, attention_baseline::attend_events<T>, attention_baseline::attend_events_back<T>};
}

// events [sequences, events], asked [sequences, groups, times] in seconds; out [sequences, groups, times, row].
template <class T>
void log_ages(const Packed<const double, 2>& events, const Packed<const double, 3>& asked,
              const Packed<const int64_t, 2>& visible, double unit, const Packed<T, 4>& out, const std::string& instruction_set) {
  const int64_t B = int64_t(asked.shape(0)), G = int64_t(asked.shape(1)), S = int64_t(asked.shape(2));
  const int64_t L = int64_t(events.shape(1)), row = int64_t(out.shape(3));
  require(shaped(events, {B, L}) && shaped(visible, {B, G}), "events must be [sequences, events], visible [sequences, groups]");
  require(shaped(out, {B, G, S, row}) && row >= whole<T>(L), "out must be [sequences, groups, times, whole vectors of events]");
  for (int64_t i = 0; i < B * G; ++i)
    require(visible.data()[i] >= 0 && visible.data()[i] <= L, "visible holds more events than there are");
  const EventAttention<T> run = event_attention<T>(instruction_set);
  nb::gil_scoped_release free;
  for (int64_t b = 0; b < B; ++b)
    run.log_ages(events.data() + b * L, L, asked.data() + b * G * S, G, S, visible.data() + b * G, unit,
                 out.data() + b * G * S * row, row);
}

// out [heads, times of all groups, values' width]; shares [heads, times of all groups, columns], or None.
template <class T>
void attend_events(Strided<const T, 3> query, Maybe<Strided<const T, 3>> own, Strided<const T, 4> keys,
                   Strided<const T, 4> values, Maybe<Packed<const T, 4>> since, Packed<const int64_t, 2> visible,
                   Maybe<Packed<const T, 1>> fall, Maybe<Strided<const T, 4>> prompt_keys,
                   Maybe<Strided<const T, 4>> prompt_values, Maybe<Packed<const int64_t, 3>> ids,
                   Maybe<Packed<const T, 4>> added_keys, Maybe<Packed<const T, 4>> added_values, bool squash, Packed<T, 3> out, Maybe<Packed<T, 3>> shares,
                   const std::string& instruction_set) {
  const Queries<T> queries{query, own, keys, values, since, visible, fall, prompt_keys,
                           prompt_values, ids, added_keys, added_values, squash};
  const QueryTask<T> t = queries.task();
  const int64_t all = int64_t(query.shape(1));
  require(shaped(out, {t.heads, all, t.values_width}), "out must be [heads, times of all groups, width]");
  require(!shares || shaped(*shares, {t.heads, all, t.columns}), "shares must be [heads, times of all groups, columns]");
  const EventAttention<T> run = event_attention<T>(instruction_set);
  nb::gil_scoped_release free;
  run.attend(t, out.data(), shares ? shares->data() : nullptr);
}

template <class T>
void attend_events_back(Packed<const T, 3> gradient, Packed<const T, 3> out, Packed<const T, 3> shares, Strided<const T, 3> query,
                        Maybe<Strided<const T, 3>> own, Strided<const T, 4> keys, Strided<const T, 4> values,
                        Maybe<Packed<const T, 4>> since, Packed<const int64_t, 2> visible, Maybe<Packed<const T, 1>> fall,
                        Maybe<Strided<const T, 4>> prompt_keys, Maybe<Strided<const T, 4>> prompt_values,
                        Maybe<Packed<const int64_t, 3>> ids, Maybe<Packed<const T, 4>> added_keys,
                        Maybe<Packed<const T, 4>> added_values, bool squash, Maybe<Strided<T, 3>> of_query, Maybe<Strided<T, 3>> of_own, Packed<T, 4> of_keys,
                        Packed<T, 4> of_values, Maybe<Packed<T, 1>> of_fall, Maybe<Packed<T, 4>> of_prompt_keys,
                        Maybe<Packed<T, 4>> of_prompt_values, Maybe<Packed<T, 4>> of_added_keys,
                        Maybe<Packed<T, 4>> of_added_values, const std::string& instruction_set) {
  const Queries<T> queries{query, own, keys, values, since, visible, fall, prompt_keys,
                           prompt_values, ids, added_keys, added_values, squash};
  const QueryTask<T> t = queries.task();
  const int64_t H = t.heads, B = t.sequences, all = int64_t(query.shape(1));
  require(shaped(gradient, {H, all, t.values_width}) && shaped(out, {H, all, t.values_width}),
          "gradient and out must be [heads, times of all groups, width]");
  require(shaped(shares, {H, all, t.columns}), "shares must be [heads, times of all groups, columns]");
  require(shaped(of_keys, {H, B, t.events, t.width}) && shaped(of_values, {H, B, t.events, t.values_width}),
          "gradients of keys and values must be as these");
  require(bool(of_own) == bool(own) && bool(of_fall) == bool(fall) && bool(of_prompt_keys) == bool(ids) &&
              bool(of_prompt_values) == bool(ids) && bool(of_added_keys) == bool(ids) && bool(of_added_values) == bool(ids),
          "gradients are of what there is");
  QueryGradients<T> to{};
  to.keys = of_keys.data(), to.values = of_values.data();
  if (of_query) {
    require(shaped(*of_query, {H, all, t.width}), "a gradient of the query must be [heads, times of all groups, width]");
    require(t.width % kPack<T> == 0, "a query with a gradient must be of whole vectors");
    to.query = of_times(*of_query);
  }
  if (of_own) {
    require(shaped(*of_own, {H, all, t.width + t.values_width}), "the gradient of own must be as own");
    to.own = of_times(*of_own);
  }
  if (of_fall) {
    require(shaped(*of_fall, {H}), "the gradient of fall must be [heads]");
    to.fall = of_fall->data();
  }
  if (of_prompt_keys) {
    require(shaped(*of_prompt_keys, {H, t.table, t.rows, t.width}) && shaped(*of_prompt_values, {H, t.table, t.rows, t.values_width}) &&
                shaped(*of_added_keys, {H, B, t.groups, t.width}) && shaped(*of_added_values, {H, B, t.groups, t.values_width}),
            "gradients of prompts must be as these");
    to.prompt_keys = of_prompt_keys->data(), to.prompt_values = of_prompt_values->data();
    to.added_keys = of_added_keys->data(), to.added_values = of_added_values->data();
  }
  const EventAttention<T> run = event_attention<T>(instruction_set);
  nb::gil_scoped_release free;
  run.attend_back(t, gradient.data(), out.data(), shares.data(), to);
}

template <class T>
void bind_event_attention(nb::module_& module) {
  using nb::arg;
  module.def("log_ages", &log_ages<T>, arg("events"), arg("asked"), arg("visible"), arg("unit"), arg("out").noconvert(),
             arg("instruction_set"));
  module.def("attend_events", &attend_events<T>, arg("query"), arg("own").none(), arg("keys"), arg("values"),
             arg("since").none(), arg("visible"), arg("fall").none(), arg("prompt_keys").none(),
             arg("prompt_values").none(), arg("ids").none(), arg("added_keys").none(), arg("added_values").none(), arg("squash"),
             arg("out").noconvert(), arg("shares").noconvert().none(), arg("instruction_set"));
  module.def("attend_events_back", &attend_events_back<T>, arg("gradient"), arg("out"), arg("shares"), arg("query"),
             arg("own").none(), arg("keys"), arg("values"), arg("since").none(), arg("visible"), arg("fall").none(),
             arg("prompt_keys").none(), arg("prompt_values").none(), arg("ids").none(), arg("added_keys").none(),
             arg("added_values").none(), arg("squash"), arg("of_query").noconvert().none(), arg("of_own").noconvert().none(),
             arg("of_keys").noconvert(), arg("of_values").noconvert(), arg("of_fall").noconvert().none(),
             arg("of_prompt_keys").noconvert().none(), arg("of_prompt_values").noconvert().none(),
             arg("of_added_keys").noconvert().none(), arg("of_added_values").noconvert().none(),
             arg("instruction_set"));
}
