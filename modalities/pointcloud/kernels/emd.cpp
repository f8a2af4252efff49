// Exact earth mover's distance: the best one-to-one matching of two clouds, with a proof that it is best.
//
// The matching that minimises the sum of costs c_ij has a dual: for any prices p_j of the objects,
//
//     sum_i min_j (c_ij + p_j) - sum_j p_j  <=  cost of any matching,
//
// and equal where every person's partner has the lowest value c_ij + p_j. All steps here look for such prices:
//
// 1. Coarse to fine. Both clouds come in k-d order, so runs of 16 or 4 points are groups close in space.
//    First the groups' centres are matched, then finer groups, then the points. Prices go down a level by a
//    c-transform, p_j = max_I (u_I - c_Ij) with u_I = min_J (c_IJ + p_J): the least prices at which a coarse
//    person pays no less than before. (Villani, Optimal Transport, 2009, ch. 5; multiscale: Merigot 2011.)
// 2. Auction (Bertsekas, Annals of Operations Research 14, 1988). A person without a partner takes the
//    object of the lowest value and raises its price until it is `epsilon` worse than the second; the former
//    owner has to look again. At the end all pairs are within epsilon of the lowest value. Small epsilons take
//    long from bad prices, so epsilon falls in steps, by about ten a level. In float32: it gives only a start.
// 3. Shortest augmenting paths in float64 (Jonker and Volgenant, Computing 38, 1987), for the persons whose
//    partner is not of the lowest value to the last digit, from the auction's prices. This ends at the optimum
//    from any start; a good one makes it short.
// 4. The certificate, apart from all lists and shortcuts of the search: the lowest value of each person
//    again from all objects. How far the pairs stand above is the gap between the matching and its dual.

#include <functional>

#include "kernels.h"
#include "matching.h"

namespace ditmoe {
namespace {

constexpr int kSmall = 32;       // with fewer points the paths alone are as fast
constexpr int kCoarsest = 256;   // groups at most on the first level
constexpr double kFirstEpsilon = 0.5, kLastEpsilon = 5e-4;  // in mean costs
constexpr double kStep = 0.1;    // from one epsilon to the next
constexpr int kBids = 200;       // a person, on average: an auction that takes more is left to the paths
// Raising a price of up to 8 by less may leave it where it is in float32.
constexpr float kResolution = 2e-6f;

// --- the auction

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

template <bool kSquared>
void auction(Matching<float, kSquared>& level, float epsilon, float last) {
    for (int i = 0; i < level.n; ++i) level.lists[i].width = 4 * epsilon;
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
        if (epsilon <= last) return;
    }
}

// Gives the finer level the coarser one's prices by a c-transform.
template <bool kSquared>
void extend(Matching<float, kSquared>& coarse, Matching<float, kSquared>& fine) {
    using V = Lanes<float>;
    coarse.renew_floors();
    std::vector<float> pays(coarse.n);
    for (int i = 0; i < coarse.n; ++i) pays[i] = coarse.lowest(i, float(kHuge));
    for (int j = 0; j < int(fine.price.size()); j += kLanes<float>) {
        V highest = all(float(-kHuge));
        for (int i = 0; i < coarse.n; ++i) {
            V square = {};
            for (int k = 0; k < 3; ++k) {
                const V way = load(&fine.objects.axis[k][j]) - coarse.persons.axis[k][i];
                square += way * way;
            }
            highest = larger<V>(highest, pays[i] - (kSquared ? square : root<float>(square)));
        }
        store<float>(&fine.price[j], highest);
    }
    // Only differences count: small prices keep more digits.
    const float lowest = *std::min_element(fine.price.begin(), fine.price.begin() + fine.n);
    for (int j = 0; j < int(fine.price.size()); ++j) fine.price[j] = j < fine.n ? fine.price[j] - lowest : 0;
}

template <bool kSquared>
using Level = std::unique_ptr<Matching<float, kSquared>>;

// The problem of the centres of `size` points each.
template <bool kSquared>
Level<kSquared> grouped(const Matching<double, kSquared>& points, int size) {
    const auto centre = [size](const Cloud<double>& cloud, int group, int k) {
        const int first = group * size, last = std::min(cloud.n, first + size);
        double sum = 0;
        for (int i = first; i < last; ++i) sum += cloud.axis[k][i];
        return sum / (last - first);
    };
    return std::make_unique<Matching<float, kSquared>>(
        (points.n + size - 1) / size,
        [&](int i, int k) { return centre(points.persons, i, k); },
        [&](int i, int k) { return centre(points.objects, i, k); });
}

// A matching of the points that is nearly best, with its prices, through all levels.
template <bool kSquared>
Level<kSquared> approximate(const Matching<double, kSquared>& points) {
    int size = 1, levels = 1;
    for (; points.n / size > kCoarsest; size *= 4) ++levels;
    const double fall = std::pow(kLastEpsilon / kFirstEpsilon, 1.0 / levels);
    double scale = 0, epsilon = kFirstEpsilon;
    Level<kSquared> coarse;
    for (; size > 0; size /= 4, epsilon *= fall) {
        Level<kSquared> level = grouped(points, size);
        scale = std::max(scale, cost_scale(*level));
        if (coarse) extend(*coarse, *level);
        const auto step = [scale](double part) { return std::max(kResolution, float(part * scale)); };
        auction(*level, step(epsilon), step(epsilon * fall));
        scale = level->mean_cost();
        coarse = std::move(level);
    }
    return coarse;
}

// --- the exact finish

template <bool kSquared>
class Finish {
  public:
    explicit Finish(Matching<double, kSquared>& matching)
        : m_(matching), pays_(m_.n), distance_(m_.n, kHuge), reached_(m_.n), through_(m_.n), settled_(m_.n) {}

    // Takes the prices of `start` and, of its pairs, those that have the lowest value in float64 too.
    void begin(Matching<float, kSquared>& start) {
        for (int j = 0; j < m_.n; ++j) m_.price[j] = start.price[j];
        m_.renew_floors();
        for (int i = 0; i < m_.n; ++i) m_.lists[i].width = start.lists[i].width;
        // What float32 gives is a bound but for its rounding; `scan` sees to it where that was more.
        match_lowest([&](int i) { return double(start.offer(i).second) + 5 * kResolution; }, start.partner);
    }

    void begin() {
        for (int i = 0; i < m_.n; ++i) m_.lists[i].width = 1;
        match_lowest([](int) { return kHuge; }, m_.partner);
    }

    void run() {
        reduce();
        reduce();
        m_.renew_floors();
        for (int i : free_) augment(i);
    }

  private:
    // A step of the search for a path: an object, or ~person where its list was not enough.
    using Entry = std::pair<double, int>;

    Matching<double, kSquared>& m_;
    std::vector<double> pays_;  // u_i, the lowest value to a person
    std::vector<int> free_;     // persons without a partner
    std::vector<Entry> heap_;
    std::vector<double> distance_, reached_;  // from the start of a path: to an object, to a person
    std::vector<int> through_, touched_, tree_;
    std::vector<char> settled_;
    double target_ = 0;  // distance to the nearest object without an owner

    template <class Second>
    void match_lowest(Second second, const std::vector<int>& wanted) {
        std::vector<int> best(m_.n);
        for (int i = 0; i < m_.n; ++i) {
            const Offer<double> offer = m_.scan(i, second(i));
            const int j = wanted[i];
            pays_[i] = offer.best, best[i] = offer.at;
            if (j >= 0 && m_.value(i, j) <= offer.best) m_.match(i, j);
        }
        for (int i = 0; i < m_.n; ++i) {
            if (m_.partner[i] >= 0) continue;
            if (m_.owner[best[i]] < 0) m_.match(i, best[i]);
            else free_.push_back(i);
        }
    }

    // Jonker and Volgenant's augmenting row reduction: bids with epsilon zero, while they raise a price.
    void reduce() {
        std::vector<int> left;
        long budget = 4L * m_.n;
        for (int i : free_) {
            while (i >= 0) {
                const Offer<double> offer = m_.offer(i);
                const int evicted = m_.owner[offer.at];
                m_.price[offer.at] += offer.second - offer.best;
                pays_[i] = offer.second;
                m_.match(i, offer.at);
                i = evicted;
                if (i < 0) break;
                m_.partner[i] = -1;
                if (offer.second <= offer.best || --budget < 0) {
                    left.push_back(i);
                    break;
                }
            }
        }
        free_ = std::move(left);
    }

    void push(double distance, int what) {
        heap_.emplace_back(distance, what);
        std::push_heap(heap_.begin(), heap_.end(), std::greater<Entry>());
    }

    Entry pop() {
        std::pop_heap(heap_.begin(), heap_.end(), std::greater<Entry>());
        const Entry entry = heap_.back();
        heap_.pop_back();
        return entry;
    }

    void reach(int i, int j, double distance) {
        if (distance >= distance_[j] || distance >= target_) return;
        if (distance_[j] == kHuge) touched_.push_back(j);
        distance_[j] = distance, through_[j] = i;
        if (m_.owner[j] < 0) target_ = distance;
        push(distance, j);
    }

    // Steps from person i to the objects on its list. A step costs what the object is above the lowest value.
    void walk(int i, double start) {
        tree_.push_back(i);
        reached_[i] = start;
        const auto& list = m_.lists[i];
        double values[kList];
        m_.read(list, values);
        const double offset = start - pays_[i];
        for (int from = 0; from < list.size; from += kBlock) {
            for (unsigned bits = below(values + from, kBlock, target_ - offset); bits; bits &= bits - 1) {
                const int q = from + lowest_bit(bits);
                reach(i, list.object[q], std::max(start, offset + values[q]));
            }
        }
        if (offset + list.beyond < target_) push(offset + list.beyond, ~i);
    }

    void walk_beyond_list(int i) {
        const double start = reached_[i], offset = start - pays_[i];
        m_.for_each_below(i, target_ - offset, [&](int j, double value) {
            reach(i, j, std::max(start, offset + value));
        });
    }

    // Dijkstra's search from a person without a partner to the nearest object without an owner; then prices
    // rise such that the path has no length, and all along it change partners.
    void augment(int start) {
        heap_.clear(), touched_.clear(), tree_.clear();
        target_ = kHuge / 2;
        pays_[start] = m_.offer(start).best;
        walk(start, 0);
        int end = -1;
        while (end < 0) {
            const auto [distance, j] = pop();
            if (j < 0) {
                walk_beyond_list(~j);
            } else if (!settled_[j]) {
                if (m_.owner[j] < 0) end = j;
                else walk(m_.owner[j], distance);
                settled_[j] = 1;
            }
        }
        const double length = distance_[end];
        for (int i : tree_) pays_[i] += length - reached_[i];
        for (int j : touched_) {
            if (settled_[j]) m_.price[j] += length - distance_[j];
            settled_[j] = 0, distance_[j] = kHuge;
        }
        for (int i = -1, j = end; i != start;) {
            i = through_[j];
            const int before = m_.partner[i];
            m_.match(i, j);
            j = before;
        }
    }
};

template <bool kSquared>
void solve(int n, const double* x, const double* y, const Frame& frame, double* mean, double* gap) {
    Matching<double, kSquared> points(
        n,
        [&](int i, int k) { return frame.seen(x, i, k); },
        [&](int i, int k) { return frame.seen(y, i, k); });
    const double unit = kSquared ? frame.scale * frame.scale : frame.scale;
    if (is_one_point(n, x) || is_one_point(n, y)) {
        // Every matching costs the same; to the search, a tie of everything with everything is the worst case.
        for (int i = 0; i < n; ++i) points.match(i, i);
        *mean = points.mean_cost() * unit;
        return;
    }
    Finish<kSquared> finish(points);
    if (n > kSmall) finish.begin(*approximate(points));
    else finish.begin();
    finish.run();

    points.renew_floors();
    double cost = 0, above = 0;
    for (int i = 0; i < n; ++i) {
        const double value = points.value(i, points.partner[i]);
        cost += points.cost(i, points.partner[i]);
        above += value - points.lowest(i, value);
    }
    *mean = cost / n * unit;
    *gap = above > 0 ? above / cost : 0;
}

}  // namespace
}  // namespace ditmoe

extern "C" DITMOE_EXPORT int ditmoe_emd(
    int n, const double* x, const double* y, int squared, double* mean, double* gap) try {
    if (n < 1) return ditmoe_bad_argument;
    *mean = *gap = 0;
    const ditmoe::Frame frame(n, x, n, y);
    if (!std::isfinite(frame.scale)) return ditmoe_bad_argument;
    if (frame.scale == 0) return ditmoe_done;
    if (squared) ditmoe::solve<true>(n, x, y, frame, mean, gap);
    else ditmoe::solve<false>(n, x, y, frame, mean, gap);
    return ditmoe_done;
} catch (...) {
    return ditmoe_out_of_memory;
}
