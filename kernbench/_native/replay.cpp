// The replay. kernbench/sim_engine/reference.py states its rules; names here are the same as there.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "event_heap.h"
#include "export.h"

// What kernbench/sim_engine/native.py fills in, field by field in this order. Everything is 8 bytes wide.
struct KbReplay {
  // Ops, and the queues they stand in.
  int64_t ops, queues;
  const int32_t *queue, *pattern, *path;
  const int64_t *duration, *release, *dep_ptr;
  const int32_t* deps;
  const int32_t* queue_depth;
  const int64_t* queue_issue;
  const int32_t* queue_engine;
  // Patterns.
  const int64_t* set_ptr;
  const int32_t* set_channel;
  const int64_t* set_ps;
  const int32_t* set_stack;
  const int64_t* message_ptr;
  const int32_t* slot;
  const int64_t* bytes;
  const int32_t *source, *destination;
  // Paths.
  const int64_t* hop_ptr;
  const int32_t* hop_link;
  const int64_t *hop_latency, *request;
  const int32_t *slot_route, *first_slot, *source_channel, *destination_channel;
  const int64_t* access;
  // The machine and its state.
  int64_t links, engines, channels_per_cube;
  const double* link_ps_per_byte;
  int64_t *link_free, *link_last, *channel_free, *stack_last, *engine_free, *engine_last;
  const int64_t* queue_issued;  // [queues]
  const int64_t* queue_tail;    // [queues, tail_width]
  int64_t tail_width;
  // Results. start, finish and waits_for come in filled with -1, moved with 0.
  int64_t *order, *ptr;  // queue q's ops are order[ptr[q]..ptr[q + 1])
  int64_t *start, *finish;
  uint8_t* moved;
  int64_t* waits_for;
  int64_t events;
};

namespace {

constexpr int32_t kFixed = -1;
enum Stage : int32_t { kSource, kRoute, kDestination, kEngine };

// A message on its way, or a fixed op that waits for a shared engine.
struct Flight {
  int64_t tail;
  double bytes;
  int32_t hop, hop_end;
  int32_t op, source, destination;
  Stage stage;
};

struct Link {
  int64_t free, last;
  double ps_per_byte;
};

class Replay {
 public:
  explicit Replay(KbReplay& io) : io_(io) {}

  // 0, or 1 where there are more messages than an event's number can tell apart.
  int run() {
    if (!prepare()) return 1;
    for (int64_t q = 0; q < io_.queues; ++q) ready_.push_back(static_cast<int32_t>(q));
    issue();
    while (!heap_.empty()) {
      ++io_.events;
      step(heap_.top());
    }
    for (std::size_t l = 0; l < links_.size(); ++l) {
      io_.link_free[l] = links_[l].free;
      io_.link_last[l] = links_[l].last;
    }
    return 0;
  }

 private:
  bool prepare() {
    const int64_t ops = io_.ops, queues = io_.queues;
    std::fill(io_.ptr, io_.ptr + queues + 1, 0);
    for (int64_t i = 0; i < ops; ++i) ++io_.ptr[io_.queue[i] + 1];
    for (int64_t q = 0; q < queues; ++q) io_.ptr[q + 1] += io_.ptr[q];
    at_.assign(io_.ptr, io_.ptr + queues);
    std::vector<int64_t> events(queues, 0);
    for (int64_t i = 0; i < ops; ++i) {
      const int32_t q = io_.queue[i], p = io_.pattern[i];
      io_.order[at_[q]++] = i;
      events[q] += p == kFixed ? 1 : io_.message_ptr[p + 1] - io_.message_ptr[p];
    }
    at_.assign(io_.ptr, io_.ptr + queues);
    number_.resize(queues);
    std::vector<int32_t> fed(io_.engines, 0);
    int64_t total = 0;
    for (int64_t q = 0; q < queues; ++q) {
      number_[q] = static_cast<uint32_t>(total);
      total += events[q];
      if (io_.ptr[q + 1] > io_.ptr[q] && io_.queue_engine[q] >= 0) ++fed[io_.queue_engine[q]];
    }
    if (total > UINT32_MAX) return false;
    shared_.resize(io_.engines);
    for (int64_t e = 0; e < io_.engines; ++e) shared_[e] = fed[e] > 1;
    issued_.assign(io_.queue_issued, io_.queue_issued + queues);
    pending_.assign(ops, 0);
    latest_.assign(ops, 0);
    first_waiter_.assign(ops, -1);
    next_waiter_.assign(queues, -1);
    links_.resize(io_.links);
    for (int64_t l = 0; l < io_.links; ++l) links_[l] = {io_.link_free[l], io_.link_last[l], io_.link_ps_per_byte[l]};
    return true;
  }

  // Issue what the queues in ready_ can, and what that sets free.
  void issue() {
    while (!ready_.empty()) {
      const int32_t q = ready_.back();
      ready_.pop_back();
      while (at_[q] < io_.ptr[q + 1]) {
        const auto op = static_cast<int32_t>(io_.order[at_[q]]);
        int64_t time;
        if (!ready(q, op, time)) break;
        io_.waits_for[q] = -1;
        ++at_[q];
        begin(q, op, time);
        if (io_.finish[op] >= 0) wake(op);
      }
    }
  }

  // When the next op of a queue can issue; false (and the queue is put to wait) while that is not known.
  bool ready(int32_t q, int32_t op, int64_t& time) {
    time = std::max(io_.release[op], issued_[q]);
    for (int64_t d = io_.dep_ptr[op]; d < io_.dep_ptr[op + 1]; ++d) {
      const int32_t dep = io_.deps[d];
      if (io_.finish[dep] < 0) return wait(q, dep);
      time = std::max(time, io_.finish[dep]);
    }
    const int64_t depth = io_.queue_depth[q];
    if (depth == 0) return true;
    const int64_t n = at_[q] - io_.ptr[q];
    if (n < depth) {
      time = std::max(time, io_.queue_tail[q * io_.tail_width + n]);
      return true;
    }
    const int64_t before = io_.order[at_[q] - depth];
    if (io_.finish[before] < 0) return wait(q, static_cast<int32_t>(before));
    time = std::max(time, io_.finish[before]);
    return true;
  }

  bool wait(int32_t q, int32_t op) {
    next_waiter_[q] = first_waiter_[op];
    first_waiter_[op] = q;
    io_.waits_for[q] = op;
    return false;
  }

  void wake(int32_t op) {
    for (int32_t q = first_waiter_[op]; q >= 0; q = next_waiter_[q]) ready_.push_back(q);
    first_waiter_[op] = -1;
  }

  void begin(int32_t q, int32_t op, int64_t time) {
    io_.start[op] = time;
    issued_[q] = time + io_.queue_issue[q];
    if (io_.pattern[op] != kFixed) {
      send(q, op, time);
      return;
    }
    const int32_t engine = io_.queue_engine[q];
    if (engine >= 0 && shared_[engine]) {
      const uint32_t flight = take();
      flights_[flight].op = op;
      flights_[flight].stage = kEngine;
      heap_.push({time, number_[q], flight});
    } else if (engine >= 0) {
      occupy(engine, op, time);
    } else {
      io_.finish[op] = time + io_.duration[op];
    }
    ++number_[q];
  }

  void occupy(int32_t engine, int32_t op, int64_t time) {
    arrive(op, time, io_.engine_last[engine]);
    io_.start[op] = std::max(time, io_.engine_free[engine]);
    io_.finish[op] = io_.engine_free[engine] = io_.start[op] + io_.duration[op];
  }

  // `last` is when the newest piece of work came to a resource; in one replay that is never later than now.
  void arrive(int32_t op, int64_t time, int64_t& last) {
    if (time < last) {
      io_.moved[op] = 1;
    } else {
      last = time;
    }
  }

  void send(int32_t q, int32_t op, int64_t time) {
    const int32_t pattern = io_.pattern[op], path = io_.path[op];
    const int64_t first = io_.message_ptr[pattern], end = io_.message_ptr[pattern + 1];
    pending_[op] = static_cast<int32_t>(end - first);
    if (first == end) {
      io_.finish[op] = time + io_.duration[op];
      return;
    }
    for (int64_t m = first; m < end; ++m) {
      const int32_t route = io_.slot_route[io_.first_slot[path] + io_.slot[m]];
      const uint32_t flight = take();
      Flight& f = flights_[flight];
      f.op = op;
      f.bytes = static_cast<double>(io_.bytes[m]);
      f.hop = static_cast<int32_t>(io_.hop_ptr[route]);
      f.hop_end = static_cast<int32_t>(io_.hop_ptr[route + 1]);
      f.source = io_.source[m];
      f.destination = io_.destination[m];
      f.tail = time + io_.request[route];
      f.stage = f.source >= 0 ? kSource : kRoute;
      const uint32_t number = number_[q]++;
      if (onward(f)) {
        heap_.push({f.tail, number, flight});
      } else {
        land(flight);
        if (pending_[op] == 0) return;
      }
    }
  }

  // Whether the message needs anything more; sets its stage.
  bool onward(Flight& f) {
    if (f.stage == kRoute && f.hop == f.hop_end) {
      if (f.destination < 0) return false;
      f.stage = kDestination;
    }
    return true;
  }

  void step(const Event event) {
    Flight& f = flights_[event.flight];
    int64_t head = event.time;
    bool more = true;
    switch (f.stage) {
      case kRoute:
        head = hop(f, event.time);
        more = onward(f);
        break;
      case kSource:
        head = channels(f, event.time, f.source, io_.source_channel);
        f.stage = kRoute;
        more = onward(f);
        break;
      case kDestination:
        channels(f, event.time, f.destination, io_.destination_channel);
        more = false;
        break;
      case kEngine: {
        const int32_t op = f.op;
        heap_.pop();
        release(event.flight);
        occupy(io_.queue_engine[io_.queue[op]], op, event.time);
        wake(op);
        issue();
        return;
      }
    }
    if (more) {
      heap_.replace_top({head, event.number, event.flight});
      return;
    }
    heap_.pop();
    const int32_t op = f.op;
    if (land(event.flight)) {
      wake(op);
      issue();
    }
  }

  // The head's arrival at the next link.
  int64_t hop(Flight& f, int64_t time) {
    Link& link = links_[io_.hop_link[f.hop]];
    const int64_t latency = io_.hop_latency[f.hop++];
    arrive(f.op, time, link.last);
    const int64_t start = std::max(time, link.free);
    const int64_t busy = static_cast<int64_t>(f.bytes * link.ps_per_byte + 0.5);  // not negative, so this is floor
    link.free = start + std::max<int64_t>(busy, 1);
    f.tail = std::max(f.tail, link.free) + latency;
    return start + latency;
  }

  // When the head leaves the channel set.
  int64_t channels(Flight& f, int64_t time, int32_t chosen, const int32_t* first_channel) {
    const int32_t path = io_.path[f.op], base = first_channel[path];
    arrive(f.op, time, io_.stack_last[base / io_.channels_per_cube + io_.set_stack[chosen]]);
    int64_t* const free = io_.channel_free + base;
    int64_t head = INT64_MAX, tail = 0;
    for (int64_t c = io_.set_ptr[chosen]; c < io_.set_ptr[chosen + 1]; ++c) {
      int64_t& channel = free[io_.set_channel[c]];
      const int64_t start = std::max(channel, time);
      channel = start + io_.set_ps[c];
      head = std::min(head, start);
      tail = std::max(tail, channel);
    }
    f.tail = std::max(f.tail, tail) + io_.access[path];
    return head + io_.access[path];
  }

  // A message is done; true where it was the last one of its op.
  bool land(uint32_t flight) {
    const Flight& f = flights_[flight];
    const int32_t op = f.op;
    latest_[op] = std::max(latest_[op], f.tail);
    release(flight);
    if (--pending_[op] > 0) return false;
    io_.finish[op] = std::max(latest_[op], io_.start[op] + io_.duration[op]);
    return true;
  }

  uint32_t take() {
    if (free_flights_.empty()) {
      flights_.emplace_back();
      return static_cast<uint32_t>(flights_.size() - 1);
    }
    const uint32_t flight = free_flights_.back();
    free_flights_.pop_back();
    return flight;
  }

  void release(uint32_t flight) { free_flights_.push_back(flight); }

  KbReplay& io_;
  EventHeap heap_;
  std::vector<Flight> flights_;
  std::vector<uint32_t> free_flights_;
  std::vector<Link> links_;
  std::vector<uint8_t> shared_;
  std::vector<int64_t> at_;  // position of each queue's next op in order
  std::vector<int64_t> issued_;
  std::vector<uint32_t> number_;  // each queue's next event number
  std::vector<int32_t> pending_;
  std::vector<int64_t> latest_;
  std::vector<int32_t> first_waiter_, next_waiter_;  // queues that wait for an op, as a linked list
  std::vector<int32_t> ready_;
};

}  // namespace

KB_EXPORT int64_t kb_replay(KbReplay* io) { return Replay(*io).run(); }
