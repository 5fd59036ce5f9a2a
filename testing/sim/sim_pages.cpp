// The revocation pages (lanes/host/pages.h) in interleaved steps of the lane's own code: an
// initiator with several copy threads, and a target that deregisters a region, waits for the marks
// and gives the memory to somebody else. Copies go through a mapping of the region, which the
// initiator lets go of when it is told.
#include <array>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lanes/host/pages.h"
#include "testing/sim/sim.h"

namespace nixl::sim {

namespace {

constexpr size_t kThreads = 3;

// What both sides share. One for all schedules: the page of generations is large.
struct Pages {
    Pages() : marks(std::make_shared<peer::PeerMarks>()) {
        marks->page = map<peer::MarkPage>();
        marks->pidfd = base::Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));  // readable: it has ended
        memory = map<peer::GenerationPage>();
    }
    void reset() {
        uint64_t count = 0;
        if (std::exchange(ended, false)) {
            static_cast<void>(!read(marks->pidfd.get(), &count, sizeof(count)));
        }
        generations().epoch = 1;
        generations().lowestValid[kRegion] = 0;
        for (peer::MarkPage::Mark& mark : markPage().marks) {
            mark.epoch = 0;
        }
    }
    void endProcess() {
        const uint64_t one = 1;
        ended = true;
        static_cast<void>(!write(marks->pidfd.get(), &one, sizeof(one)));
    }
    peer::GenerationPage& generations() { return *memory.as<peer::GenerationPage>(); }
    peer::MarkPage& markPage() { return *marks->page.as<peer::MarkPage>(); }

    static constexpr uint64_t kRegion = 7;
    const std::shared_ptr<peer::PeerMarks> marks;
    peer::Mapping memory;
    bool ended = false;

  private:
    template <typename Page>
    static peer::Mapping map() {
        void* const at =
            mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        return {at == MAP_FAILED ? nullptr : at, sizeof(Page)};
    }
};

Pages& pages() {
    static auto* const kPages = new Pages;
    return *kPages;
}

// One copy thread, one step at a time: enter a mark, look at the generation, copy in pieces, leave.
struct Copier {
    enum class At : uint8_t { IDLE, ENTER, CHECK, COPY, LEAVE };
    At at = At::IDLE;
    std::optional<peer::PageAccess> access;
    bool allowed = false;
    bool mapped = false;  // copies through the mapping, and holds it
    int piecesLeft = 0;
};

class PageModel {
  public:
    PageModel(uint64_t seed, Bug bug) : random_(seed), bug_(bug) { pages_.reset(); }

    Outcome run() {
        for (int step = 0; step < 400 && outcome_.good; ++step) {
            ++outcome_.steps;
            const auto who = random_() % (kThreads + 2);
            if (who < kThreads) {
                advance(copiers_[who]);
            } else {
                advanceTarget();
            }
            if (random_() % (phase_ == Phase::REUSED ? 8 : 100) == 0) {
                dropMapping();
            }
            if (random_() % 2000 == 0) {
                dead_ = true;  // the initiator is killed: its marks stay as they are
                pages_.endProcess();
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
    enum class Phase : uint8_t { USE, REVOKE, WAIT, REUSED };

    void advance(Copier& copier) {
        if (dead_) {
            return;
        }
        switch (copier.at) {
            case Copier::At::IDLE:
                copier.mapped = inTable_;
                holders_ += copier.mapped ? 1 : 0;
                // Near each other, so that they also meet at one mark.
                copier.access.emplace(pages_.markPage(), pages_.generations(),
                                      static_cast<unsigned>(random_() % kThreads));
                copier.at = bug_ == Bug::MARK_ORDER ? Copier::At::CHECK : Copier::At::ENTER;
                break;
            case Copier::At::ENTER:
                if (copier.access->enter()) {
                    copier.at = bug_ == Bug::MARK_ORDER ? Copier::At::COPY : Copier::At::CHECK;
                    copier.piecesLeft = static_cast<int>(random_() % 3) + 1;
                }
                break;
            case Copier::At::CHECK:
                copier.allowed = copier.access->allowed(Pages::kRegion, kGeneration);
                copier.at = bug_ == Bug::MARK_ORDER ? Copier::At::ENTER : Copier::At::COPY;
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
                copier.access->leave();
                copier.at = Copier::At::IDLE;
                holders_ -= copier.mapped ? 1 : 0;
                mapped_ = mapped_ && (inTable_ || holders_ > 0);
                ++outcome_.transfers;
                break;
        }
    }

    void advanceTarget() {
        switch (phase_) {
            case Phase::USE:
                if (random_() % 20 == 0) {
                    revocation_.emplace(pages_.generations(), Pages::kRegion, kGeneration);
                    phase_ = Phase::REVOKE;
                }
                break;
            case Phase::REVOKE:
                if (revocation_->step()) {
                    wait_.emplace(pages_.generations(), std::vector{pages_.marks});
                    phase_ = Phase::WAIT;
                }
                break;
            case Phase::WAIT:
                // The marks that are in use are the first ones; of the others many at once.
                for (uint64_t looks = looked_++ < 2 * kThreads ? 1 : 20; looks > 0; --looks) {
                    if (wait_->step()) {
                        phase_ = Phase::REUSED;
                        break;
                    }
                    if (wait_->looks() > 0) {
                        break;  // it stands
                    }
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
                    advance(copiers_[i]);
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
                advance(copiers_[i]);
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
    Pages& pages_ = pages();
    std::array<Copier, kThreads> copiers_{};
    Phase phase_ = Phase::USE;
    std::optional<peer::Revocation> revocation_;
    std::optional<peer::QuietWait> wait_;
    size_t looked_ = 0;
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
    // Its channels are descriptors of the system, which cost more than the rest.
    Outcome pool = seed % 4 == 0 ? runPool(seed, bug) : Outcome();
    if (!pool.good) {
        return pool;
    }
    Outcome session = runSession(seed, bug);
    session.steps += pages.steps + pool.steps;
    return session;
}

}  // namespace nixl::sim
