// An intrusive interval tree (treap with subtree ends) over the regions of one memory type and
// device. O(log n) insert, erase and look-up; overlaps and duplicates are legal. Holds a reference
// to each region. Threads: under the owner's lock.
#pragma once

#include "memory/region.h"

namespace nixl::memory {

class IntervalTree {
  public:
    IntervalTree() = default;
    IntervalTree(IntervalTree&& other) noexcept : root_(std::exchange(other.root_, nullptr)) {}
    IntervalTree& operator=(IntervalTree&&) = delete;
    ~IntervalTree();

    void insert(Region* region);
    void erase(Region* region);  // REQUIRES: it was inserted
    bool empty() const noexcept { return root_ == nullptr; }

    // Calls `visit(Region&)` for each region with address <= point < end (an empty range
    // counts as one byte), until it returns true.
    template <typename Visit>
    bool atPoint(uint64_t point, const Visit& visit) const {
        return pointIn(root_, point, visit);
    }
    // All regions by address, then id.
    template <typename Visit>
    void all(const Visit& visit) const {
        walk(root_, visit);
    }

  private:
    static bool before(const Region* a, const Region* b) noexcept {
        return a->address != b->address ? a->address < b->address : a->id < b->id;
    }
    static void update(Region* node) noexcept;
    static Region* merge(Region* low, Region* high) noexcept;
    static void split(Region* node, const Region* at, Region*& low, Region*& high) noexcept;
    static Region* eraseFrom(Region* node, const Region* region) noexcept;

    template <typename Visit>
    static bool pointIn(Region* node, uint64_t point, const Visit& visit) {
        while (node != nullptr && node->maxEnd_ > point) {
            if (node->left_ != nullptr && node->left_->maxEnd_ > point &&
                pointIn(node->left_, point, visit)) {
                return true;
            }
            if (node->address > point) {
                return false;
            }
            if (node->treeEnd() > point && visit(*node)) {
                return true;
            }
            node = node->right_;
        }
        return false;
    }
    template <typename Visit>
    static void walk(Region* node, const Visit& visit) {
        for (; node != nullptr; node = node->right_) {
            walk(node->left_, visit);
            visit(*node);
        }
    }

    Region* root_ = nullptr;
};

}  // namespace nixl::memory
