// See framework_store.h.
#include "exchange/framework_store.h"

#include <utility>

#include "exchange/store_thread.h"

namespace nixl::exchange {

namespace {

class FrameworkMetadataStore final : public MetadataStore {
  public:
    explicit FrameworkMetadataStore(std::shared_ptr<FrameworkStore> store)
        : store_(std::move(store)), text_(store_->describe()), thread_("nixl-store") {}

    std::string describe() const override { return text_; }

    void put(std::string key,
             std::string value,
             Lifetime /*lifetime*/,
             std::function<void(Status)> done) override {
        thread_.run(
            [store = store_, key = std::move(key), value = std::move(value), done,
             text = text_](const StoreThread::Finish& finish) {
                Status status = told(store->set(key, value), text);
                if (finish()) {
                    done(std::move(status));
                }
            },
            done);
    }
    void get(std::string key,
             std::function<void(Result<std::optional<StoreEntry>>)> done) override {
        using Found = Result<std::optional<StoreEntry>>;
        thread_.run(
            [store = store_, key = std::move(key), done,
             text = text_](const StoreThread::Finish& finish) {
                auto value = store->get(key);
                if (!finish()) {
                    return;
                }
                if (!value.ok()) {
                    return done(Found(told(value.status(), text)));
                }
                std::optional<StoreEntry> entry;
                if (value.value().has_value()) {
                    entry = StoreEntry{key, *std::move(value).value(), 0};
                }
                done(Found(std::move(entry)));
            },
            [done](Status why) { done(Found(std::move(why))); });
    }
    void list(std::string /*prefix*/,
              std::function<void(Result<std::vector<StoreEntry>>)> done) override {
        done(
            Result<std::vector<StoreEntry>>(Status::notSupported(
                text_ + " cannot tell what it holds, so that agents do not find each other by it "
                        "alone: name the agent to fetch")));
    }
    void remove(std::string key, std::function<void(Status)> done) override {
        thread_.run(
            [store = store_, key = std::move(key), done,
             text = text_](const StoreThread::Finish& finish) {
                Status status = told(store->remove(key), text);
                if (finish()) {
                    done(std::move(status));
                }
            },
            done);
    }
    std::unique_ptr<StoreWatch> watch(std::string /*prefix*/,
                                      std::function<void(StoreEvent)> /*event*/) override {
        return nullptr;
    }

  private:
    static Status told(const Status& status, const std::string& text) {
        return status.ok()
                   ? status
                   : Status(status.code(), text + ": " + status.message(), status.systemErrno());
    }

    const std::shared_ptr<FrameworkStore> store_;
    const std::string text_;
    StoreThread thread_;  // ends first
};

}  // namespace

std::unique_ptr<MetadataStore> makeFrameworkStore(std::shared_ptr<FrameworkStore> store) {
    return std::make_unique<FrameworkMetadataStore>(std::move(store));
}

}  // namespace nixl::exchange
