// A queue of events, earliest first: a 4-ary heap, one cache line for the four children of a node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct Event {
  int64_t time;
  uint32_t number;  // orders events of one time; no two are the same
  uint32_t flight;

  bool operator<(const Event& other) const {
#ifdef __SIZEOF_INT128__  // one comparison without a jump: which way it goes cannot be predicted
    const unsigned __int128 a = (static_cast<unsigned __int128>(time) << 64) | (uint64_t{number} << 32);
    const unsigned __int128 b = (static_cast<unsigned __int128>(other.time) << 64) | (uint64_t{other.number} << 32);
    return a < b;
#else
    return time != other.time ? time < other.time : number < other.number;
#endif
  }
};

class EventHeap {
 public:
  bool empty() const { return events_.empty(); }
  const Event& top() const { return events_.front(); }

  void push(const Event& event) {
    std::size_t at = events_.size();
    events_.push_back(event);
    while (at > 0) {
      const std::size_t parent = (at - 1) / 4;
      if (!(event < events_[parent])) break;
      events_[at] = events_[parent];
      at = parent;
    }
    events_[at] = event;
  }

  void pop() {
    const Event last = events_.back();
    events_.pop_back();
    if (!events_.empty()) sink(last);
  }

  void replace_top(const Event& event) { sink(event); }

 private:
  // Put `event` where the top was.
  void sink(const Event& event) {
    const std::size_t size = events_.size();
    std::size_t at = 0;
    Event* const heap = events_.data();
    for (std::size_t first = 1; first < size; first = 4 * at + 1) {
      std::size_t best = first;
      if (first + 4 <= size) {
        const std::size_t left = first + (heap[first + 1] < heap[first]);
        const std::size_t right = first + 2 + (heap[first + 3] < heap[first + 2]);
        best = heap[right] < heap[left] ? right : left;
      } else {
        for (std::size_t child = first + 1; child < size; ++child)
          if (heap[child] < heap[best]) best = child;
      }
      if (!(heap[best] < event)) break;
      heap[at] = heap[best];
      at = best;
    }
    heap[at] = event;
  }

  std::vector<Event> events_;
};
