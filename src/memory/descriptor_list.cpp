// Descriptor lists: flat entries, or runs where at least four steps are equal; see
// nixl/descriptor.h.
#include <algorithm>
#include <string>

#include "nixl/descriptor.h"

namespace nixl {
namespace {

constexpr uint64_t kMinRun = 4;
// A list whose beginning has as many runs as this, and hardly fewer than descriptors, is taken for
// irregular as a whole.
constexpr uint64_t kEnoughToTell = 1024;

// The number of descriptors from `data` on (at most `left`) that continue with one size, device
// and stride; `next(i)` gives the i-th.
template <typename Next>
uint64_t runLength(uint64_t left, const Next& next) {
    if (left < 2) {
        return left;
    }
    const Descriptor first = next(0);
    Descriptor before = next(1);
    if (before.size != first.size || before.deviceId != first.deviceId) {
        return 1;
    }
    const uint64_t stride = before.address - first.address;
    uint64_t length = 2;
    for (; length < left; ++length) {
        const Descriptor now = next(length);
        if (now.size != first.size || now.deviceId != first.deviceId ||
            now.address - before.address != stride) {
            break;
        }
        before = now;
    }
    return length;
}

// Splits `count` descriptors into runs; false, with nothing promised about `runs`, when that does
// not save at least half.
template <typename Next>
bool compressInto(std::vector<DescriptorRun>& runs, uint64_t count, const Next& next) {
    const uint64_t limit = count / kMinRun + 1;
    for (uint64_t at = 0; at < count;) {
        uint64_t length = runLength(count - at, [&](uint64_t i) { return next(at + i); });
        const Descriptor first = next(at);
        if (length < kMinRun) {
            length = 1;
        }
        const uint64_t stride = length > 1 ? next(at + 1).address - first.address : 0;
        runs.push_back({first.address, first.size, first.deviceId, stride, length});
        at += length;
        if (runs.size() > limit || (runs.size() >= kEnoughToTell && runs.size() * 2 > at)) {
            return false;
        }
    }
    return true;
}

template <typename List>
MemType commonType(const List& descriptors) {
    const MemType type = descriptors.size() == 0 ? MemType::DRAM : std::begin(descriptors)->type;
    int64_t index = 0;
    for (const MemDescriptor& descriptor : descriptors) {
        if (descriptor.type != type) {
            throw Error(Status::mismatch("descriptor " + std::to_string(index) + " is " +
                                             memTypeName(descriptor.type) +
                                             " but the list's first is " + memTypeName(type),
                                         index));
        }
        ++index;
    }
    return type;
}

}  // namespace

DescriptorList::DescriptorList(const std::vector<MemDescriptor>& descriptors)
    : type_(commonType(descriptors)) {
    for (const MemDescriptor& descriptor : descriptors) {
        append(descriptor.address, descriptor.size, descriptor.deviceId);
    }
}

DescriptorList::DescriptorList(std::initializer_list<MemDescriptor> descriptors)
    : type_(commonType(descriptors)) {
    for (const MemDescriptor& descriptor : descriptors) {
        append(descriptor.address, descriptor.size, descriptor.deviceId);
    }
}

Result<DescriptorList> DescriptorList::fromRows(MemType type,
                                                const uint64_t* data,
                                                size_t rows,
                                                size_t columns) {
    DescriptorList list(type);
    if (columns == 5) {
        for (size_t row = 0; row < rows; ++row) {
            const uint64_t* at = data + row * 5;
            if (at[4] > UINT64_MAX - list.count_) {
                return Status::invalidParam("row " + std::to_string(row) +
                                            ": the counts add up to more than 2^64");
            }
            list.appendRun({at[0], at[1], at[2], at[3], at[4]});
        }
        return list;
    }
    if (columns != 3) {
        return Status::invalidParam(
            "an array of descriptors has 3 columns (address, size, "
            "device) or 5 (… stride, count), not " +
            std::to_string(columns));
    }
    const auto next = [data](uint64_t i) {
        return Descriptor{data[i * 3], data[i * 3 + 1], data[i * 3 + 2]};
    };
    list.count_ = rows;
    if (rows >= kMinRun && compressInto(list.runs_, rows, next)) {
        uint64_t start = 0;
        for (const DescriptorRun& run : list.runs_) {
            list.starts_.push_back(start);
            start += run.count;
        }
        return list;
    }
    list.runs_.clear();
    list.flat_.resize(rows);
    for (size_t row = 0; row < rows; ++row) {
        list.flat_[row] = next(row);
    }
    return list;
}

void DescriptorList::append(uint64_t address, uint64_t size, uint64_t device_id) {
    if (!runs_.empty()) {
        appendRun({address, size, device_id, 0, 1});
        return;
    }
    flat_.push_back({address, size, device_id});
    ++count_;
}

void DescriptorList::appendRun(const DescriptorRun& run) {
    if (run.count == 0) {
        return;
    }
    toRuns();
    if (!runs_.empty() && run.count == 1) {
        DescriptorRun& last = runs_.back();
        if (last.count >= kMinRun && last.size == run.size && last.deviceId == run.deviceId &&
            last.address + last.count * last.stride == run.address) {
            ++last.count;
            ++count_;
            return;
        }
    }
    starts_.push_back(count_);
    runs_.push_back(run);
    count_ += run.count;
}

void DescriptorList::toRuns() {
    for (const Descriptor& entry : flat_) {
        starts_.push_back(runs_.size());
        runs_.push_back({entry.address, entry.size, entry.deviceId, 0, 1});
    }
    flat_.clear();
    flat_.shrink_to_fit();
}

void DescriptorList::reserve(size_t descriptors) {
    if (runs_.empty()) {
        flat_.reserve(descriptors);
    }
}

void DescriptorList::clear() {
    count_ = 0;
    flat_.clear();
    runs_.clear();
    starts_.clear();
}

void DescriptorList::compress() {
    if (flat_.size() < kMinRun) {
        return;
    }
    std::vector<DescriptorRun> runs;
    if (!compressInto(runs, flat_.size(), [this](uint64_t i) { return flat_[i]; })) {
        return;
    }
    runs_ = std::move(runs);
    flat_.clear();
    flat_.shrink_to_fit();
    uint64_t start = 0;
    for (const DescriptorRun& run : runs_) {
        starts_.push_back(start);
        start += run.count;
    }
}

void DescriptorList::erase(size_t index) {
    if (!runs_.empty()) {
        std::vector<Descriptor> expanded;
        expanded.reserve(count_);
        for (size_t i = 0; i < count_; ++i) {
            expanded.push_back(at(i));
        }
        runs_.clear();
        starts_.clear();
        flat_ = std::move(expanded);
    }
    flat_.erase(flat_.begin() + static_cast<std::ptrdiff_t>(index));
    --count_;
}

Descriptor DescriptorList::at(size_t index) const {
    if (runs_.empty()) {
        return flat_[index];
    }
    const auto after = std::upper_bound(starts_.begin(), starts_.end(), index);
    const auto which = static_cast<size_t>(after - starts_.begin()) - 1;
    const DescriptorRun& run = runs_[which];
    return {run.address + (index - starts_[which]) * run.stride, run.size, run.deviceId};
}

int64_t DescriptorList::find(const Descriptor& wanted) const {
    for (size_t i = 0; i < count_; ++i) {
        if (at(i) == wanted) {
            return static_cast<int64_t>(i);
        }
    }
    return -1;
}

bool DescriptorList::operator==(const DescriptorList& other) const {
    if (type_ != other.type_ || count_ != other.count_) {
        return false;
    }
    for (size_t i = 0; i < count_; ++i) {
        if (!(at(i) == other.at(i))) {
            return false;
        }
    }
    return true;
}

RegistrationList::RegistrationList(const std::vector<MemDescriptor>& descriptors)
    : type_(commonType(descriptors)) {
    for (const MemDescriptor& d : descriptors) {
        append(d.address, d.size, d.deviceId, d.metadata);
    }
}

RegistrationList::RegistrationList(std::initializer_list<MemDescriptor> descriptors)
    : type_(commonType(descriptors)) {
    for (const MemDescriptor& d : descriptors) {
        append(d.address, d.size, d.deviceId, d.metadata);
    }
}

DescriptorList RegistrationList::trim() const {
    DescriptorList list(type_);
    list.reserve(entries.size());
    for (const Entry& entry : entries) {
        list.append(entry.address, entry.size, entry.deviceId);
    }
    return list;
}

}  // namespace nixl
