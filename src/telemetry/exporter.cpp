// See exporter.h.
#include "telemetry/exporter.h"

#include "base/log.h"

namespace nixl::telemetry {
namespace {

constexpr size_t kErrorSize = 512;

const char* parameterOf(void* context, const char* name) {
    const auto& parameters = static_cast<const Exporter::Setup*>(context)->parameters;
    const auto found = parameters.find(name);
    return found == parameters.end() ? nullptr : found->second.c_str();
}

void warn(void* context, const char* text) {
    base::log(LogLevel::WARN, "agent \"" + static_cast<const Exporter::Setup*>(context)->agent +
                                  "\": telemetry: " + text);
}

}  // namespace

Exporter::Exporter(std::string name, const nixl_exporter& table, Setup setup)
    : name_(std::move(name)), table_(table), setup_(std::move(setup)) {}

Result<std::unique_ptr<Exporter>> Exporter::create(std::string name,
                                                   const nixl_exporter& table,
                                                   Setup setup) {
    const std::string what = "telemetry exporter " + name;
    if (table.abi != NIXL_EXPORTER_ABI) {
        return Status::mismatch(what + ": built for exporter ABI " + std::to_string(table.abi) +
                                ", this library has " + std::to_string(NIXL_EXPORTER_ABI) +
                                "; rebuild it with this version's headers");
    }
    if (table.create == nullptr || table.publish == nullptr || table.destroy == nullptr) {
        return Status::mismatch(what + ": has no create, publish or destroy");
    }
    std::unique_ptr<Exporter> made(new Exporter(std::move(name), table, std::move(setup)));
    char error[kErrorSize] = "";
    const nixl_exporter_setup given{made->setup_.agent.c_str(),
                                    made->setup_.id.c_str(),
                                    made->setup_.directory.c_str(),
                                    &parameterOf,
                                    &warn,
                                    const_cast<Setup*>(&made->setup_)};
    made->self_ = table.create(&given, error, sizeof error);
    if (made->self_ == nullptr) {
        return Status(ErrorCode::BACKEND,
                      what + ": " + (*error != '\0' ? error : "it gave no reason"));
    }
    return made;
}

Exporter::~Exporter() {
    if (self_ != nullptr) {
        table_.destroy(self_);
    }
}

Status Exporter::publish(const nixl_metrics& metrics) {
    char error[kErrorSize] = "";
    if (table_.publish(self_, &metrics, error, sizeof error) == 0) {
        return {};
    }
    return {ErrorCode::BACKEND, "telemetry exporter " + name_ + ": " +
                                    (*error != '\0' ? error : "it failed and gave no reason")};
}

std::string Exporter::endpoint() const {
    const char* const text = table_.endpoint != nullptr ? table_.endpoint(self_) : nullptr;
    return text != nullptr ? text : "";
}

}  // namespace nixl::telemetry
