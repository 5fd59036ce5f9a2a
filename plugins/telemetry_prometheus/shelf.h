// The directory through which several processes show what they count at one endpoint: each agent
// replaces a file of its own, and who serves reads them all. Functions, any thread.
#pragma once

#include <string>
#include <vector>

#include <prometheus/metric_family.h>

#include "nixl/exporter.h"

namespace nixl::prometheus_exporter {

// The name of an agent's file.
std::string fileOf(const std::string& id);

// OK (empty), or what went wrong.
std::string leave(const std::string& directory,
                  const std::string& file,
                  const nixl_metrics& metrics);

// All of this user's agents that live: families of one name together. Takes away files of
// processes that are gone.
std::vector<prometheus::MetricFamily> collect(const std::string& directory);

// As text and back; of a damaged text what comes before the damage. For tests.
std::string toText(const nixl_metrics& metrics);
void fromText(const std::string& text, std::vector<prometheus::MetricFamily>& into);

}  // namespace nixl::prometheus_exporter
