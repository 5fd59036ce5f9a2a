// GDS_MT: threads that draw requests and make cuFile's plain calls. See engine.h.
#include "engine.h"

namespace nixl::gds {

namespace {

constexpr size_t kDrawn = 8;  // small requests that a thread takes at a time
constexpr uint64_t kDrawnBytes = 256 << 10;

class ThreadEngine final : public Engine {
  public:
    ThreadEngine(const CuFileDriver& driver, PluginServices& services, const EngineOptions& options)
        : library_(*driver.library), services_(services), count_(options.threads) {}

    std::string start() override {
        for (unsigned i = 0; i < count_; ++i) {
            const int error = threads_.start("nixl-gds-io", [this] { run(); });
            if (error != 0 && i == 0) {
                return "starting a thread: " + errnoText(error);
            }
            if (error != 0) {
                break;  // fewer threads do as well
            }
        }
        return {};
    }

    void post(Job& job) override { queue_.push(&job); }

    bool stop(double seconds) override {
        queue_.stop();
        return threads_.join(seconds);
    }

    std::string describe() const override {
        return std::to_string(count_) + " threads of cuFile calls";
    }

  private:
    void run() {
        std::vector<Request> drawn;
        while (queue_.draw(drawn, {kDrawn, kDrawnBytes, count_})) {
            if (drawn.empty()) {
                continue;
            }
            const GpuScope gpu(services_, drawn.front().device);
            for (Request& request : drawn) {
                if (!gpu.status().ok()) {
                    request.job->fail(request, gpu.status().message(), 0);
                } else if (request.job->open(request, true) == Job::Opened::YES) {
                    perform(library_, request);
                }
            }
        }
    }

    const CuFile& library_;
    PluginServices& services_;
    const unsigned count_;
    JobQueue queue_;
    Threads threads_;
};

}  // namespace

std::unique_ptr<Engine> makeThreadEngine(const CuFileDriver& driver,
                                         PluginServices& services,
                                         const EngineOptions& options) {
    return std::make_unique<ThreadEngine>(driver, services, options);
}

}  // namespace nixl::gds
