// The revocation page as interleaved steps: an initiator with several copy threads, and a target
// that deregisters a region, waits for the slots and gives the memory to somebody else. Copies go
// through a mapping of the region, which the initiator lets go of when it is told.
#include <array>
#include <random>
#include <vector>

#include "testing/sim/sim.h"

namespace nixl::sim {

namespace {

constexpr size_t kThreads = 3;

// What both sides share, as peer/host_pages.h lays it out.
struct Pages {
    uint64_t epoch = 1;
    uint32_t lowestValid = 0;
    std::array<uint64_t, kThreads> slots{};
};

// One copy thread, one step at a time: read the epoch, enter the slot, look at the generation,
// copy in pieces, leave.
struct Copier {
    enum class At : uint8_t { IDLE, READ_EPOCH, ENTER, CHECK, COPY, LEAVE, DEAD };
    At at = At::IDLE;
    uint64_t epoch = 0;
    bool allowed = false;
    bool mapped = false;  // copies through the mapping, and holds it
    int piecesLeft = 0;
};

class PageModel {
  public:
    PageModel(uint64_t seed, Bug bug) : random_(seed), bug_(bug) {}

    Outcome run() {
        for (int step = 0; step < 400 && outcome_.good; ++step) {
            ++outcome_.steps;
            const auto who = random_() % (kThreads + 2);
            if (who < kThreads) {
                advance(copiers_[who], pages_.slots[who]);
            } else {
                advanceTarget();
            }
            if (random_() % (phase_ == Phase::REUSED ? 8 : 100) == 0) {
                dropMapping();
            }
            if (random_() % 2000 == 0) {
                dead_ = true;  // the initiator is killed: its slots stay as they are
            }
        }
        if (outcome_.good && phase_ == Phase::WAIT && !dead_) {
            finishAll();
        }
        if (outcome_.good && phase_ == Phase::REUSED && !dead_) {
            letGo();
        }
        return outcome_;
    }

  private:
    enum class Phase : uint8_t { USE, BUMP_EPOCH, WAIT, REUSED };

    void advance(Copier& copier, uint64_t& slot) {
        if (dead_) {
            return;
        }
        switch (copier.at) {
            case Copier::At::IDLE:
                copier.mapped = inTable_;
                holders_ += copier.mapped ? 1 : 0;
                copier.at = bug_ == Bug::SLOT_ORDER ? Copier::At::CHECK : Copier::At::READ_EPOCH;
                break;
            case Copier::At::READ_EPOCH:
                copier.epoch = pages_.epoch;
                copier.at = Copier::At::ENTER;
                break;
            case Copier::At::ENTER:
                slot = copier.epoch;
                copier.at = bug_ == Bug::SLOT_ORDER ? Copier::At::COPY : Copier::At::CHECK;
                copier.piecesLeft = static_cast<int>(random_() % 3) + 1;
                break;
            case Copier::At::CHECK:
                copier.allowed = pages_.lowestValid <= kGeneration;
                copier.at = bug_ == Bug::SLOT_ORDER ? Copier::At::READ_EPOCH : Copier::At::COPY;
                break;
            case Copier::At::COPY:
                if (copier.allowed && phase_ == Phase::REUSED) {
                    outcome_.good = false;
                    outcome_.what = "a copy went on after the deregistration had returned";
                }
                if (copier.allowed && copier.mapped && !mapped_) {
                    outcome_.good = false;
                    outcome_.what = "a copy goes through memory that has been unmapped";
                }
                if (!copier.allowed || --copier.piecesLeft <= 0) {
                    copier.at = Copier::At::LEAVE;
                }
                break;
            case Copier::At::LEAVE:
                slot = 0;
                copier.at = Copier::At::IDLE;
                holders_ -= copier.mapped ? 1 : 0;
                mapped_ = mapped_ && (inTable_ || holders_ > 0);
                ++outcome_.transfers;
                break;
            case Copier::At::DEAD:
                break;
        }
    }

    void advanceTarget() {
        switch (phase_) {
            case Phase::USE:
                if (random_() % 20 == 0) {
                    pages_.lowestValid = kGeneration + 1;
                    phase_ = Phase::BUMP_EPOCH;
                }
                break;
            case Phase::BUMP_EPOCH:
                ++pages_.epoch;
                waitFor_ = 0;
                phase_ = Phase::WAIT;
                break;
            case Phase::WAIT:
                // One slot a step, as the real loop reads them one by one.
                if (waitFor_ == kThreads) {
                    phase_ = Phase::REUSED;
                } else if (dead_ || pages_.slots[waitFor_] == 0 ||
                           pages_.slots[waitFor_] >= pages_.epoch) {
                    ++waitFor_;
                }
                break;
            case Phase::REUSED:
                break;
        }
    }

    // The target's notice has arrived, or the session has been lost, in the middle of copies.
    void dropMapping() {
        inTable_ = false;
        mapped_ = mapped_ && holders_ > 0 && bug_ != Bug::EARLY_UNMAP;
    }

    // The memory of a region that is gone must not stay mapped.
    void letGo() {
        dropMapping();
        for (int step = 0; step < 20; ++step) {
            for (size_t i = 0; i < kThreads; ++i) {
                if (copiers_[i].at != Copier::At::IDLE) {
                    advance(copiers_[i], pages_.slots[i]);
                }
            }
        }
        if (outcome_.good && mapped_) {
            outcome_.good = false;
            outcome_.what = "a mapping outlives its region";
        }
    }

    // Without the deregistration ever ending something waits for ever.
    void finishAll() {
        for (int step = 0; step < 1000 && phase_ != Phase::REUSED; ++step) {
            for (size_t i = 0; i < kThreads; ++i) {
                advance(copiers_[i], pages_.slots[i]);
            }
            advanceTarget();
        }
        if (phase_ != Phase::REUSED) {
            outcome_.good = false;
            outcome_.what = "a deregistration waits for ever";
        }
    }

    static constexpr uint32_t kGeneration = 1;
    std::mt19937_64 random_;
    const Bug bug_;
    Pages pages_;
    std::array<Copier, kThreads> copiers_{};
    Phase phase_ = Phase::USE;
    size_t waitFor_ = 0;
    bool dead_ = false;
    bool inTable_ = true;  // new copies find the mapping
    bool mapped_ = true;
    int holders_ = 0;
    Outcome outcome_;
};

}  // namespace

Outcome runPages(uint64_t seed, Bug bug) {
    return PageModel(seed ^ 0x9e3779b97f4a7c15ULL, bug).run();
}

Outcome runSchedule(uint64_t seed, Bug bug) {
    Outcome pages = runPages(seed, bug);
    if (!pages.good) {
        return pages;
    }
    Outcome session = runSession(seed, bug);
    session.steps += pages.steps;
    return session;
}

}  // namespace nixl::sim
