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
//    Where nearly all are left over (clouds on a line, or far apart) many paths are searched at once.
// 4. The certificate, apart from all lists and shortcuts of the search: the lowest value of each person
//    again from all objects. How far the pairs stand above is the gap between the matching and its dual.

#include <functional>

#include "auction.h"
#include "kernels.h"

namespace ditmoe {
namespace {

template <bool kSquared>
class Finish {
  public:
    explicit Finish(Matching<double, kSquared>& matching)
        : m_(matching), pays_(m_.n), distance_(m_.n, kHuge), reached_(m_.n), through_(m_.n), root_(m_.n),
          settled_(m_.n) {}

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
        for (std::size_t served = kServed; free_.size() > kTogether && served >= kServed;) {
            const std::vector<int> starts = std::exchange(free_, {});
            augment(starts, starts.size() / 2);
            served = starts.size() - free_.size();
        }
        for (int i : std::exchange(free_, {})) augment({i}, 1);
    }

  private:
    // From so many persons on, paths are searched together, as long as that serves so many at once: less work where
    // most are without a partner (clouds on a line, or far apart), more where few are, whose paths are short.
    static constexpr std::size_t kTogether = 512, kServed = 24;

    // A step of the search for a path: an object, or ~person where its list was not enough.
    using Entry = std::pair<double, int>;

    Matching<double, kSquared>& m_;
    std::vector<double> pays_;  // u_i, the lowest value to a person
    std::vector<int> free_;     // persons without a partner
    std::vector<Entry> heap_;
    std::vector<double> distance_, reached_;  // from the start of a path: to an object, to a person
    std::vector<int> through_, touched_, tree_, root_;
    std::vector<char> settled_;
    double target_ = 0;  // distance to the nearest object without an owner
    bool together_ = false;

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
        if (m_.owner[j] < 0 && !together_) target_ = distance;
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

    // Dijkstra's search from persons without a partner to the nearest objects without an owner, until `wanted` of
    // the persons have one in reach, each in a tree of its own. Then prices rise such that no step of the trees has a
    // length, and all along the paths they change partners. Who was not served goes back to `free_`.
    void augment(const std::vector<int>& starts, std::size_t wanted) {
        heap_.clear(), touched_.clear(), tree_.clear();
        // The search for one leaves out what is beyond its nearest object; for several it has to go on.
        target_ = kHuge / 2, together_ = wanted > 1;
        for (int i : starts) {
            pays_[i] = m_.offer(i).best;
            root_[i] = i;
            walk(i, 0);
        }
        std::vector<int> ends;
        double length = 0;
        while (ends.size() < wanted && !heap_.empty()) {
            const auto [distance, j] = pop();
            if (j < 0) {
                walk_beyond_list(~j);
            } else if (!settled_[j]) {
                settled_[j] = 1;
                length = distance;
                const int root = root_[through_[j]], next = m_.owner[j];
                if (next >= 0) {
                    root_[next] = root;
                    walk(next, distance);
                } else if (m_.partner[root] < 0) {
                    m_.partner[root] = j;  // stands for "served" until the path is walked back
                    ends.push_back(j);
                }
            }
        }
        for (int i : tree_) pays_[i] += length - reached_[i];
        for (int j : touched_) {
            if (settled_[j]) m_.price[j] += length - distance_[j];
            settled_[j] = 0, distance_[j] = kHuge;
        }
        for (int end : ends) {
            const int start = root_[through_[end]];
            m_.partner[start] = -1;
            for (int i = -1, j = end; i != start;) {
                i = through_[j];
                const int before = m_.partner[i];
                m_.match(i, j);
                j = before;
            }
        }
        for (int i : starts)
            if (m_.partner[i] < 0) free_.push_back(i);
    }
};

template <bool kSquared>
void solve(const Pair& pair, double limit, double* mean, double* gap) {
    const int n = pair.n;
    const double unit = kSquared ? pair.frame.scale * pair.frame.scale : pair.frame.scale;
    Matching<double, kSquared> points(
        n, [&](int i, int k) { return pair.person(i, k); }, [&](int i, int k) { return pair.object(i, k); });
    if (is_one_point(n, pair.x) || is_one_point(n, pair.y)) {
        // Every matching costs the same; to the search, a tie of everything with everything is the worst case.
        for (int i = 0; i < n; ++i) points.match(i, i);
        *mean = points.mean_cost() * unit;
        return;
    }
    Finish<kSquared> finish(points);
    if (n > kSmall) {
        double bound = 0;
        const auto above_limit = [&](const Matching<float, kSquared>& prices) {
            if (!std::isfinite(limit)) return false;
            bound = dual_value(prices) * unit;
            return bound > limit;
        };
        const Level<kSquared> start = approximate<kSquared>(pair, 1, above_limit);
        if (bound > limit) {
            *mean = bound, *gap = std::numeric_limits<double>::infinity();
            return;
        }
        finish.begin(*start);
    } else {
        finish.begin();
    }
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
    int n, const double* x, const double* y, int squared, double limit, double* mean, double* gap) try {
    if (n < 1) return ditmoe_bad_argument;
    *mean = *gap = 0;
    // The same computation for (x, y) and (y, x), and so the same last digit.
    if (std::lexicographical_compare(y, y + 3 * n, x, x + 3 * n)) std::swap(x, y);
    const ditmoe::Pair pair(n, x, y);
    if (!std::isfinite(pair.frame.scale)) return ditmoe_bad_argument;
    if (pair.frame.scale == 0) return ditmoe_done;
    if (squared) ditmoe::solve<true>(pair, limit, mean, gap);
    else ditmoe::solve<false>(pair, limit, mean, gap);
    return ditmoe_done;
} catch (...) {
    return ditmoe_out_of_memory;
}
