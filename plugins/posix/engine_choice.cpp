// Trying engines in order; see engine_choice.h.
#include "engine_choice.h"

#include <array>

namespace nixl::posix {

namespace {

struct Candidate {
    EngineKind kind;
    const char* name;
    EngineOrReason (*make)(const EngineOptions&, RequestSource&);
};

constexpr std::array<Candidate, 4> kOrder{{
    {EngineKind::LINUX_AIO, "Linux AIO", &makeAioEngine},
    {EngineKind::IO_URING, "io_uring", &makeUringEngine},
    {EngineKind::POSIX_AIO, "POSIX AIO", &makePosixAioEngine},
    {EngineKind::THREADS, "threads", &makeThreadEngine},
}};

}  // namespace

Result<EngineChoice> chooseEngine(const EngineKind* wished,
                                  const EngineOptions& options,
                                  RequestSource& source) {
    std::string reasons;
    const auto attempt = [&](const Candidate& candidate) -> std::unique_ptr<Engine> {
        EngineOrReason made = candidate.make(options, source);
        if (made.engine == nullptr) {
            reasons += std::string(reasons.empty() ? "" : "; ") + candidate.name +
                       " cannot be used: " + made.reason;
        }
        return std::move(made.engine);
    };
    std::unique_ptr<Engine> engine;
    if (wished != nullptr) {
        engine = attempt(kOrder[static_cast<size_t>(*wished)]);
    }
    const bool as_wished = wished == nullptr || engine != nullptr;
    for (const Candidate& candidate : kOrder) {
        if (engine == nullptr && (wished == nullptr || candidate.kind != *wished)) {
            engine = attempt(candidate);
        }
    }
    if (engine == nullptr) {
        return Status::backend(std::string(options.plugin) + ": no engine works here: " + reasons);
    }
    std::string note;
    if (!reasons.empty()) {
        note = std::string(options.plugin) + ": " + reasons + "; using " + engine->name();
    }
    return EngineChoice{std::move(engine), std::move(note), as_wished};
}

}  // namespace nixl::posix
