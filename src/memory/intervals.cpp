// See intervals.h and region.h.
#include "memory/intervals.h"

#include <algorithm>

namespace nixl::memory {

bool Region::waitQuiet(base::Deadline deadline) {
    for (;;) {
        const uint32_t now = pins_.load(std::memory_order_acquire);
        if ((now & ~kRevoked) == 0) {
            return true;
        }
        if (base::futexWait(pins_, now, deadline) == base::WaitResult::TIMED_OUT) {
            return (pins_.load(std::memory_order_acquire) & ~kRevoked) == 0;
        }
    }
}

Region::Holding* Region::holding(unsigned backend) noexcept {
    for (Holding& one : holdings) {
        if (one.backend == backend) {
            return &one;
        }
    }
    return nullptr;
}

IntervalTree::~IntervalTree() {
    // Iteratively: a list of right children, so no recursion as deep as a degenerate tree.
    while (root_ != nullptr) {
        if (root_->left_ != nullptr) {
            Region* left = root_->left_;
            root_->left_ = left->right_;
            left->right_ = root_;
            root_ = left;
        } else {
            Region* right = root_->right_;
            root_->unref();
            root_ = right;
        }
    }
}

void IntervalTree::update(Region* node) noexcept {
    node->maxEnd_ = node->treeEnd();
    if (node->left_ != nullptr) {
        node->maxEnd_ = std::max(node->maxEnd_, node->left_->maxEnd_);
    }
    if (node->right_ != nullptr) {
        node->maxEnd_ = std::max(node->maxEnd_, node->right_->maxEnd_);
    }
}

Region* IntervalTree::merge(Region* low, Region* high) noexcept {
    if (low == nullptr || high == nullptr) {
        return low == nullptr ? high : low;
    }
    if (low->priority_ > high->priority_) {
        low->right_ = merge(low->right_, high);
        update(low);
        return low;
    }
    high->left_ = merge(low, high->left_);
    update(high);
    return high;
}

void IntervalTree::split(Region* node, const Region* at, Region*& low, Region*& high) noexcept {
    if (node == nullptr) {
        low = high = nullptr;
        return;
    }
    if (before(node, at)) {
        split(node->right_, at, node->right_, high);
        low = node;
    } else {
        split(node->left_, at, low, node->left_);
        high = node;
    }
    update(node);
}

void IntervalTree::insert(Region* region) {
    region->ref();
    region->left_ = region->right_ = nullptr;
    // A mixed id is as good as a random number here, and needs no state.
    uint64_t mixed = region->id + 0x9e37'79b9'7f4a'7c15;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58'476d'1ce4'e5b9;
    region->priority_ = static_cast<uint32_t>((mixed ^ (mixed >> 27)) >> 16);
    update(region);
    Region** link = &root_;
    while (*link != nullptr && (*link)->priority_ >= region->priority_) {
        (*link)->maxEnd_ = std::max((*link)->maxEnd_, region->treeEnd());
        link = before(*link, region) ? &(*link)->right_ : &(*link)->left_;
    }
    split(*link, region, region->left_, region->right_);
    update(region);
    *link = region;
}

Region* IntervalTree::eraseFrom(Region* node, const Region* region) noexcept {
    if (node == region) {
        return merge(node->left_, node->right_);
    }
    if (before(node, region)) {
        node->right_ = eraseFrom(node->right_, region);
    } else {
        node->left_ = eraseFrom(node->left_, region);
    }
    update(node);
    return node;
}

void IntervalTree::erase(Region* region) {
    root_ = eraseFrom(root_, region);
    region->left_ = region->right_ = nullptr;
    region->unref();
}

}  // namespace nixl::memory
