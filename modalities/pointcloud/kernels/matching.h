// An assignment problem between two clouds of n points: costs, prices, who has whom, and what to bid for.
//
// Persons are the points of the first cloud, objects those of the second. Object j has a price p_j, and its
// value to person i is c_ij + p_j, with c the distance or its square: the lower, the better. The n x n costs
// are computed where they are needed and never stored.
#pragma once

#include <limits>
#include <memory>
#include <utility>

#include "cloud.h"

namespace ditmoe {

// A shortlist holds this many objects, and aims at more than kFew: longer ones last longer, shorter ones
// are read faster, and the time is flat around these.
constexpr int kList = 64, kFew = 40;

// Points lie in [-1, 1]^3, so no value comes near kFar, where the points stand that fill up a block. kHuge is
// above even theirs: what has it is no object at all.
constexpr double kFar = 1e6, kHuge = 1e30;

// The two lowest values to a person; `at` is where the lowest stands.
template <class T>
struct Offer {
    T best, second;
    int at;
};

// `count` is a multiple of kBlock.
template <class T>
inline Offer<T> lowest_two(const T* values, int count) {
    using V = Lanes<T>;
    V best = all(T(kHuge)), second = best, at = {}, position = {};
    for (int l = 0; l < kLanes<T>; ++l) position[l] = T(l);
    for (int q = 0; q < count; q += kLanes<T>) {
        const V value = load(values + q);
        at = value < best ? position : at;
        second = smaller<V>(second, larger<V>(best, value));
        best = smaller<V>(best, value);
        position += T(kLanes<T>);
    }
    const T lowest = least<T>(best);
    int lane = 0;
    while (lane + 1 < kLanes<T> && best[lane] != lowest) ++lane;
    const int where = int(at[lane]);
    best[lane] = T(kHuge);
    return {lowest, least<T>(smaller<V>(second, best)), where};
}

template <class T, bool kSquared>
class Matching {
    using V = Lanes<T>;

  public:
    // Objects that were cheap for a person once, with their costs.
    struct List {
        int size = 0;     // a multiple of kBlock, filled up with objects of cost kHuge
        T beyond = 0;     // no object outside the list is of less value than this
        T width = 0;      // how far above the second lowest value the next list should reach
        T cost[kList];
        int object[kList];
    };

    const int n;
    Cloud<T> persons, objects;
    Array<T> price;                   // of an object; only ever rises once bidding has begun
    std::vector<int> owner, partner;  // of an object, of a person; -1: none
    std::unique_ptr<List[]> lists;    // of a person

    // `person(i, k)` and `object(j, k)` give coordinate k.
    template <class Person, class Object>
    Matching(int count, Person person, Object object)
        : n(count), owner(count, -1), partner(count, -1), lists(new List[count]) {
        persons.fill(n, T(kFar), person);
        objects.fill(n, T(kFar), object);
        const int padded = objects.blocks * kBlock, boxes = int(objects.low[0].size());
        price.assign(padded, 0);
        floors_.assign(boxes, 0), bounds_.assign(boxes, 0);
        costs_.resize(padded), values_.resize(padded), visited_.resize(boxes);
    }

    T cost(int i, int j) const {
        T square = 0;
        for (int k = 0; k < 3; ++k) {
            const T way = objects.axis[k][j] - persons.axis[k][i];
            square += way * way;
        }
        return kSquared ? square : std::sqrt(square);
    }

    T value(int i, int j) const { return cost(i, j) + price[j]; }

    void match(int i, int j) { partner[i] = j, owner[j] = i; }

    double mean_cost() const {
        double sum = 0;
        int pairs = 0;
        for (int i = 0; i < n; ++i)
            if (partner[i] >= 0) sum += double(cost(i, partner[i])), ++pairs;
        return pairs ? sum / pairs : 0;
    }

    // The least price in each block, for bounds. It stays a bound while prices rise, only a looser one.
    void renew_floors() {
        for (int b = 0; b < objects.blocks; ++b) {
            const auto first = price.begin() + b * kBlock, last = price.begin() + std::min(n, (b + 1) * kBlock);
            floors_[b] = *std::min_element(first, last);
        }
    }

    // The two lowest values of all objects to person i; `at` is the best object.
    //
    // Prices only rise. So objects outside the list stay beyond what they were beyond when it was made, and
    // the list's answer is that of all objects while its second lowest value is below: mostly, it is.
    Offer<T> offer(int i) {
        const List& list = lists[i];
        if (list.size == 0) return scan(i, T(kHuge));
        T values[kList];
        read(list, values);
        Offer<T> found = lowest_two(values, list.size);
        if (found.second > list.beyond) return scan(i, found.second);
        found.at = list.object[found.at];
        return found;
    }

    // The same from all objects, and a new list. `second` should not be less than the second lowest value:
    // the nearer, the fewer objects are looked at.
    Offer<T> scan(int i, T second) {
        List& list = lists[i];
        const int nearest = bound(i);
        if (second >= T(kHuge)) {
            look_into(i, nearest, 0);
            second = lowest_two(values_.data(), kBlock).second;
        }
        // At least by the rounding of a bound, or where values are equal it would leave out even the best.
        const T reach = second + larger(list.width, 8 * std::numeric_limits<T>::epsilon() * (1 + second));
        const int count = visit(reach);
        for (int v = 0; v < count; ++v) look_into(i, visited_[v], v);
        Offer<T> found = lowest_two(values_.data(), count * kBlock);
        if (found.second > reach) return scan(i, T(kHuge));  // `second` was less
        shorten(list, count, found.second, smaller(reach, found.second + list.width));
        found.at = object_at(found.at);
        return found;
    }

    // The lowest value alone, of all objects; it must not be above `upper`.
    T lowest(int i, T upper) {
        bound(i);
        const int count = visit(upper);
        for (int v = 0; v < count; ++v) {
            if (bounds_[visited_[v]] >= upper) continue;
            look_into(i, visited_[v], 0);
            V lanes = load(&values_[0]);
            for (int l = kLanes<T>; l < kBlock; l += kLanes<T>) lanes = smaller<V>(lanes, load(&values_[l]));
            upper = smaller(upper, least<T>(lanes));
        }
        return upper;
    }

    // Calls found(object, value) for all objects of less value than `reach`, and maybe for some others.
    template <class Found>
    void for_each_below(int i, T reach, Found found) {
        bound(i);
        const int count = visit(reach);
        for (int v = 0; v < count; ++v) {
            const int start = visited_[v] * kBlock, size = std::min(kBlock, n - start);
            look_into(i, visited_[v], 0);
            for (int l = 0; l < size; ++l) found(start + l, values_[l]);
        }
    }

    void read(const List& list, T* values) const {
        for (int q = 0; q < list.size; ++q) values[q] = list.cost[q] + price[list.object[q]];
    }

  private:
    Array<T> floors_, bounds_;  // of a block
    Array<T> costs_, values_;   // of the objects of the blocks that were looked into, slot by slot
    std::vector<int> visited_;  // the block in a slot
    std::vector<std::pair<T, int>> order_;

    int object_at(int q) const { return visited_[q / kBlock] * kBlock + q % kBlock; }

    // Bounds the values of each block's objects to person i from below; returns the block that is least.
    int bound(int i) {
        const V none = {};
        V best = all(T(kHuge));
        for (int b = 0; b < int(bounds_.size()); b += kLanes<T>) {
            V square = none;
            for (int k = 0; k < 3; ++k) {
                const T at = persons.axis[k][i];
                const V apart = larger<V>(load(&objects.low[k][b]) - at, at - load(&objects.high[k][b]));
                const V gap = larger<V>(none, apart);
                square += gap * gap;
            }
            const V bounds = (kSquared ? square : root<T>(square)) + load(&floors_[b]);
            store<T>(&bounds_[b], bounds);
            best = smaller<V>(best, bounds);
        }
        const T lowest_bound = least<T>(best);
        int block = 0;
        while (block + 1 < objects.blocks && bounds_[block] != lowest_bound) ++block;
        return block;
    }

    // Gives every block that may hold an object of less value than `reach` a slot; returns how many.
    int visit(T reach) {
        reach = smaller(reach, T(kFar));  // boxes that only fill up are further
        int count = 0;
        for (int b = 0; b < objects.blocks; b += kBlock)
            for (unsigned bits = below(&bounds_[b], kBlock, reach); bits; bits &= bits - 1)
                visited_[count++] = b + lowest_bit(bits);
        return count;
    }

    void look_into(int i, int block, int slot) {
        for (int l = 0; l < kBlock; l += kLanes<T>) {
            const int from = block * kBlock + l, to = slot * kBlock + l;
            V square = {};
            for (int k = 0; k < 3; ++k) {
                const V way = load(&objects.axis[k][from]) - persons.axis[k][i];
                square += way * way;
            }
            const V costs = kSquared ? square : root<T>(square);
            store<T>(&costs_[to], costs);
            store<T>(&values_[to], costs + load(&price[from]));
        }
    }

    // Makes the list of the visited objects of value under `reach`, or under less where they are too many.
    void shorten(List& list, int count, T second, T reach) {
        int size = count_below(count, reach);
        if (size < kFew) {
            list.width *= T(1.5);
        } else if (size > kList) {
            T low = second, high = reach;
            for (int tries = 0; tries < 8 && (size < kFew || size > kList); ++tries) {
                reach = low + (high - low) / 2;
                size = count_below(count, reach);
                (size > kList ? high : low) = reach;
            }
            if (size <= kList) list.width = reach - second;
        }
        list.beyond = reach;
        size = size > kList ? take_lowest(list, count, reach) : take(list, count, reach);
        list.size = whole_blocks(size) * kBlock;
        for (; size < list.size; ++size) list.cost[size] = T(kHuge), list.object[size] = 0;
    }

    int count_below(int count, T reach) const {
        auto lanes = V{} < V{};
        for (int q = 0; q < count * kBlock; q += kLanes<T>) lanes -= load(&values_[q]) < reach;  // true is -1
        int sum = 0;
        for (int l = 0; l < kLanes<T>; ++l) sum += int(lanes[l]);
        return sum;
    }

    int take(List& list, int count, T reach) {
        int size = 0;
        for (int v = 0; v < count; ++v) {
            if (bounds_[visited_[v]] >= reach) continue;
            for (unsigned bits = below(&values_[v * kBlock], kBlock, reach); bits; bits &= bits - 1) {
                const int q = v * kBlock + lowest_bit(bits);
                list.cost[size] = costs_[q], list.object[size] = object_at(q);
                ++size;
            }
        }
        return size;
    }

    // Where many values are equal, or nearly, no reach tells them apart: the list is full of some of them.
    int take_lowest(List& list, int count, T reach) {
        order_.clear();
        for (int q = 0; q < count * kBlock; ++q)
            if (values_[q] < reach) order_.emplace_back(values_[q], q);
        std::nth_element(order_.begin(), order_.begin() + kList, order_.end());
        for (int size = 0; size < kList; ++size) {
            const int q = order_[size].second;
            list.cost[size] = costs_[q], list.object[size] = object_at(q);
        }
        list.beyond = order_[kList].first;
        return kList;
    }
};

}  // namespace ditmoe
