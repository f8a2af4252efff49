// A nearly best matching of two clouds with its prices, from coarse to fine: steps 1 and 2 of emd.cpp.
#pragma once

#include "matching.h"
#include "transform.h"

namespace ditmoe {

constexpr int kSmall = 32;       // with fewer points the paths alone are as fast
constexpr int kCoarsest = 256;   // groups at most on the first level
// Epsilons in mean costs, from the first to the last: on the coarsest level, below it, and of the points. A finer level
// starts above where a coarser one ends, as its prices are new; an exact finish costs no less for smaller last ones.
constexpr double kCoarse[2] = {0.5, 0.05}, kMiddle[2] = {0.1, 0.05}, kPoints[2] = {0.04, 2e-3};
constexpr double kStep = 0.2;    // from one epsilon to the next
constexpr int kBids = 200;       // a person, on average: an auction that takes more is left to the paths
// Raising a price of up to 8 by less may leave it where it is in float32.
constexpr float kResolution = 2e-6f;

// About what a pair will cost: a person's nearest object is a lower bound, and so is the way of the centre.
template <bool kSquared>
double cost_scale(Matching<float, kSquared>& level) {
    double square = 0;
    for (int k = 0; k < 3; ++k) {
        double way = 0;
        for (int i = 0; i < level.n; ++i) way += double(level.persons.axis[k][i]) - level.objects.axis[k][i];
        square += way / level.n * (way / level.n);
    }
    double nearest = 0;
    int count = 0;
    for (int i = 0; i < level.n; i += whole_blocks(level.n) / 8 + 1, ++count) {
        nearest += double(level.lowest(i, float(kHuge)));
    }
    return std::max(kSquared ? square : std::sqrt(square), nearest / count);
}

// First in, first out; a person waits at most once.
class Queue {
  public:
    explicit Queue(int n) : ring_(n) {}
    bool empty() const { return count_ == 0; }
    void push(int i) {
        const int tail = head_ + count_++, size = int(ring_.size());
        ring_[tail < size ? tail : tail - size] = i;
    }
    int pop() {
        const int i = ring_[head_];
        head_ = head_ + 1 == int(ring_.size()) ? 0 : head_ + 1;
        --count_;
        return i;
    }

  private:
    std::vector<int> ring_;
    int head_ = 0, count_ = 0;
};

// Parts pairs that are further than epsilon from the lowest value; returns all without a partner.
template <bool kSquared>
Queue released(Matching<float, kSquared>& level, float epsilon) {
    Queue queue(level.n);
    for (int i = 0; i < level.n; ++i) {
        const int j = level.partner[i];
        if (j >= 0) {
            if (level.value(i, j) <= level.offer(i).best + epsilon) continue;
            level.owner[j] = level.partner[i] = -1;
        }
        queue.push(i);
    }
    return queue;
}

// Between two epsilons, and at the end, `enough(level)` may say that the prices will do.
template <bool kSquared, class Enough>
void auction(Matching<float, kSquared>& level, float epsilon, float last, Enough enough) {
    for (int i = 0; i < level.n; ++i) level.lists[i].width = 6 * epsilon;
    for (long bids = 0, budget = long(kBids) * level.n;; epsilon = std::max(epsilon * float(kStep), last)) {
        level.renew_floors();
        for (Queue queue = released(level, epsilon); !queue.empty(); ++bids) {
            if (bids == budget) return;
            const int i = queue.pop();
            const Offer<float> offer = level.offer(i);
            const int evicted = level.owner[offer.at];
            level.price[offer.at] += offer.second - offer.best + epsilon;
            level.match(i, offer.at);
            if (evicted >= 0) {
                level.partner[evicted] = -1;
                queue.push(evicted);
            }
            if ((bids + 1) % level.n == 0) level.renew_floors();
        }
        if (enough(level) || epsilon <= last) return;
    }
}

// Prices for the points `to` from those of a coarser matching by a c-transform.
template <bool kSquared>
void extend(Matching<float, kSquared>& coarse, const Cloud<float>& to, Array<float>& price) {
    Array<float> pays;
    transform<kSquared>(coarse.persons, coarse.objects, coarse.price, pays);
    for (float& paid : pays) paid = -paid;
    transform<kSquared>(to, coarse.persons, pays, price);
    for (float& lowest : price) lowest = -lowest;
    // Only differences count: small prices keep more digits.
    const float least_price = *std::min_element(price.begin(), price.begin() + to.n);
    for (int j = 0; j < int(price.size()); ++j) price[j] = j < to.n ? price[j] - least_price : 0;
}

template <bool kSquared>
using Level = std::unique_ptr<Matching<float, kSquared>>;

// Two clouds of equal size, as the frame around both sees them.
struct Pair {
    int n;
    const double *x, *y;
    Frame frame;

    Pair(int count, const double* first, const double* second)
        : n(count), x(first), y(second), frame(count, first, count, second) {}

    double person(int i, int k) const { return frame.seen(x, i, k); }
    double object(int j, int k) const { return frame.seen(y, j, k); }
};

// The problem of the centres of `size` points each.
template <bool kSquared>
Level<kSquared> grouped(const Pair& pair, int size) {
    const auto centre = [&](const double* points, int group, int k) {
        const int first = group * size, last = std::min(pair.n, first + size);
        double sum = 0;
        for (int i = first; i < last; ++i) sum += pair.frame.seen(points, i, k);
        return sum / (last - first);
    };
    return std::make_unique<Matching<float, kSquared>>(
        (pair.n + size - 1) / size,
        [&](int i, int k) { return centre(pair.x, i, k); },
        [&](int i, int k) { return centre(pair.y, i, k); });
}

// A matching that is nearly best, with its prices: of the points for `finest` 1, otherwise of the centres of groups of
// at least `finest` points, or of the coarsest groups. `enough` may end it early, see `auction`, at the finest.
template <bool kSquared, class Enough>
Level<kSquared> approximate(const Pair& pair, int finest, Enough enough) {
    int size = 1;
    while (pair.n / size > kCoarsest) size *= 4;
    double scale = 0;
    Level<kSquared> coarse;
    for (; size > 0 && (size >= finest || !coarse); size /= 4) {
        Level<kSquared> level = grouped<kSquared>(pair, size);
        scale = std::max(scale, cost_scale(*level));
        if (coarse) extend(*coarse, level->objects, level->price);
        const auto step = [scale](double part) { return std::max(kResolution, float(part * scale)); };
        const float first = step((!coarse ? kCoarse : size > 1 ? kMiddle : kPoints)[0]);
        const float last = step((size == 1 ? kPoints : coarse ? kMiddle : kCoarse)[1]);
        auction(*level, first, last, [&](const auto& prices) { return size <= finest && enough(prices); });
        scale = level->mean_cost();
        coarse = std::move(level);
    }
    return coarse;
}

template <bool kSquared>
Level<kSquared> approximate(const Pair& pair, int finest) {
    return approximate<kSquared>(pair, finest, [](const auto&) { return false; });
}

}  // namespace ditmoe
