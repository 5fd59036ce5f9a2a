// One exporter of one agent, made by a plugin (nixl/exporter.h). Not thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "nixl/error.h"
#include "nixl/exporter.h"

namespace nixl::telemetry {

class Exporter {
  public:
    struct Setup {
        std::string agent;
        std::string id;
        std::string directory;
        std::map<std::string, std::string> parameters;
    };
    static Result<std::unique_ptr<Exporter>> create(std::string name,
                                                    const nixl_exporter& table,
                                                    Setup setup);
    ~Exporter();
    Exporter(const Exporter&) = delete;
    Exporter& operator=(const Exporter&) = delete;

    const std::string& name() const noexcept { return name_; }
    Status publish(const nixl_metrics& metrics);
    std::string endpoint() const;

  private:
    Exporter(std::string name, const nixl_exporter& table, Setup setup);

    const std::string name_;
    const nixl_exporter& table_;
    const Setup setup_;
    void* self_ = nullptr;
};

}  // namespace nixl::telemetry
