// See staging.h.
#include "staging.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "nixl/user_memory.h"

namespace nixl::obj {

namespace {

constexpr size_t kMaxCopies = 4096;  // of one batch

Status waitFor(std::shared_ptr<DeviceBatch>& batch) {
    if (batch == nullptr) {
        return {};
    }
    const Status status = batch->wait();
    batch.reset();
    return status;
}

// A buffer of `device`; keeps the one there is where that is its.
Status fit(Devices& devices, std::unique_ptr<DeviceStaging>& buffer, int& known, int device) {
    if (buffer != nullptr && known == device) {
        return {};
    }
    auto made = devices.staging(device, kStagingBytes);
    if (!made.ok()) {
        return made.status();
    }
    buffer = std::move(made).value();
    known = device;
    return {};
}

Status unreachable(const char* what, const PieceCursor::Place& place) {
    char text[96];
    snprintf(text, sizeof(text), "cannot %s the memory at %p (%llu bytes): Bad address", what,
             static_cast<const void*>(place.memory), static_cast<unsigned long long>(place.size));
    return Status::backend(text, EFAULT);
}

uint64_t addressOf(const std::unique_ptr<DeviceStaging>& buffer, uint64_t offset) {
    return reinterpret_cast<uint64_t>(buffer->data()) + offset;
}

}  // namespace

bool PieceReader::failed(const Status& status) {
    if (status_.ok()) {
        status_ = status;
    }
    return false;
}

// Begins to copy what lies from `offset` on, as far as it is memory of one GPU without gaps.
bool PieceReader::load(Slot& slot, uint64_t offset) {
    slot.begin = offset;
    slot.size = 0;
    PieceCursor at = cursor_;
    at.seek(offset);
    const PieceCursor::Place first = at.place(1);
    if (offset >= end_ || first.device < 0) {
        return true;  // nothing to be copied
    }
    if (const Status status = fit(devices_, slot.buffer, slot.device, first.device); !status.ok()) {
        return failed(status);
    }
    std::vector<DeviceCopy> copies;
    while (slot.size < kStagingBytes && copies.size() < kMaxCopies && at.offset() < end_) {
        const uint64_t room = std::min(kStagingBytes - slot.size, end_ - at.offset());
        const PieceCursor::Place next = at.place(room);
        if (next.size == 0 || next.device != first.device) {
            break;
        }
        copies.push_back({addressOf(slot.buffer, slot.size),
                          reinterpret_cast<uint64_t>(next.memory), next.size});
        slot.size += next.size;
        at.advance(next.size);
    }
    auto batch = devices_.copy(copies, first.device);
    if (!batch.ok()) {
        slot.size = 0;
        return failed(batch.status());
    }
    slot.batch = std::move(batch).value();
    return true;
}

bool PieceReader::settle(Slot& slot) {
    const Status status = waitFor(slot.batch);
    if (!status.ok()) {
        slot.size = 0;
        return failed(status);
    }
    return true;
}

std::span<const char> PieceReader::here(uint64_t most) {
    const uint64_t offset = cursor_.offset();
    if (offset >= end_ || !status_.ok()) {
        return {};
    }
    most = std::min(most, end_ - offset);
    const PieceCursor::Place place = cursor_.place(most);
    if (place.device < 0) {
        const uint64_t size = std::min(place.size, kHostBytes);
        host_.resize(std::max<uint64_t>(host_.size(), size));
        const iovec there{place.memory, size};
        if (!copyFromUser(host_.data(), {&there, 1}, size)) {
            failed(unreachable("read", place));
            return {};
        }
        return {host_.data(), size};
    }
    if (!slots_[0].holds(offset)) {
        std::swap(slots_[0], slots_[1]);
    }
    Slot& slot = slots_[0];
    Slot& other = slots_[1];
    if (!slot.holds(offset) && (!settle(slot) || !load(slot, offset))) {
        return {};
    }
    if (!settle(slot)) {
        return {};
    }
    if (const uint64_t next = slot.begin + slot.size; !other.holds(next) && next < end_) {
        if (!settle(other) || !load(other, next)) {
            return {};
        }
    }
    const uint64_t done = offset - slot.begin;
    return {static_cast<const char*>(slot.buffer->data()) + done, std::min(most, slot.size - done)};
}

uint64_t PieceReader::copy(char* to, uint64_t most) {
    if (offset() >= end_ || !status_.ok()) {
        return 0;
    }
    const PieceCursor::Place place = cursor_.place(std::min(most, end_ - offset()));
    uint64_t size = place.size;
    if (size > 0 && place.device < 0) {
        const iovec there{place.memory, size};
        if (!copyFromUser(to, {&there, 1}, size)) {
            failed(unreachable("read", place));
            return 0;
        }
    } else {
        const std::span<const char> bytes = here(most);
        size = bytes.size();
        std::memcpy(to, bytes.data(), size);
    }
    advance(size);
    return size;
}

void PieceReader::stop() {
    for (Slot& slot : slots_) {
        static_cast<void>(waitFor(slot.batch));  // nobody reads what it brings
    }
}

bool PieceWriter::failed(const Status& status) {
    if (status_.ok()) {
        status_ = status;
    }
    return false;
}

bool PieceWriter::settle(Slot& slot) {
    const Status status = waitFor(slot.batch);
    slot.used = 0;
    slot.copies.clear();
    return status.ok() || failed(status);
}

// Makes the current buffer one for `device`.
bool PieceWriter::begin(int device) {
    Slot& slot = slots_[current_];
    if (slot.batch != nullptr && !settle(slot)) {
        return false;
    }
    const Status status = fit(devices_, slot.buffer, slot.device, device);
    return status.ok() || failed(status);
}

// Sends the current buffer on its way, and turns to the other one.
bool PieceWriter::submit() {
    Slot& slot = slots_[current_];
    if (slot.copies.empty()) {
        return true;
    }
    auto batch = devices_.copy(slot.copies, slot.device);
    if (!batch.ok()) {
        slot.copies.clear();
        slot.used = 0;
        return failed(batch.status());
    }
    slot.batch = std::move(batch).value();
    current_ = 1 - current_;
    return true;
}

bool PieceWriter::put(const PieceCursor::Place& to, const char* data) {
    if (!status_.ok()) {
        return false;
    }
    if (to.device < 0) {
        const iovec there{to.memory, to.size};
        return copyToUser({&there, 1}, data, to.size) || failed(unreachable("write", to));
    }
    for (uint64_t done = 0; done < to.size;) {
        const Slot& filling = slots_[current_];
        const bool full = filling.used == kStagingBytes || filling.copies.size() >= kMaxCopies;
        if (!filling.copies.empty() && filling.batch == nullptr &&
            (full || filling.device != to.device) && !submit()) {
            return false;
        }
        if (!begin(to.device)) {
            return false;
        }
        Slot& slot = slots_[current_];
        const uint64_t step = std::min(to.size - done, kStagingBytes - slot.used);
        std::memcpy(static_cast<char*>(slot.buffer->data()) + slot.used, data + done, step);
        const uint64_t target = reinterpret_cast<uint64_t>(to.memory) + done;
        if (!slot.copies.empty() && slot.copies.back().to + slot.copies.back().size == target) {
            slot.copies.back().size += step;
        } else {
            slot.copies.push_back({target, addressOf(slot.buffer, slot.used), step});
        }
        slot.used += step;
        done += step;
    }
    return true;
}

bool PieceWriter::flush() {
    bool good = status_.ok() && submit();
    for (Slot& slot : slots_) {
        good = settle(slot) && good;
    }
    return good;
}

void PieceWriter::stop() {
    for (Slot& slot : slots_) {
        static_cast<void>(settle(slot));
    }
    status_ = {};
}

}  // namespace nixl::obj
