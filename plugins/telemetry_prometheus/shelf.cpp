// See shelf.h. A file is lines of fields separated by tabs: P process and its namespace, F family,
// S sample.
#include "shelf.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nixl::prometheus_exporter {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr std::string_view kPrefix = "prometheus-";
constexpr std::string_view kSuffix = ".metrics";
constexpr time_t kStaleSeconds = 180;  // three times the longest interval
constexpr off_t kMostBytes = 64 << 20;

void appendField(std::string& out, std::string_view field) {
    for (const char c : field) {
        switch (c) {
            case '\t':
                out += "\\t";
                break;
            case '\n':
                out += "\\n";
                break;
            case '\\':
                out += "\\\\";
                break;
            default:
                out += c;
        }
    }
}

std::vector<std::string> fieldsOf(std::string_view line) {
    std::vector<std::string> fields(1);
    for (size_t i = 0; i < line.size(); ++i) {
        if (line[i] == '\t') {
            fields.emplace_back();
        } else if (line[i] == '\\' && i + 1 < line.size()) {
            const char next = line[++i];
            fields.back() += next == 't' ? '\t' : next == 'n' ? '\n' : next;
        } else {
            fields.back() += line[i];
        }
    }
    return fields;
}

template <typename T>
void appendNumber(std::string& out, T number) {
    char digits[40];
    const auto end = std::to_chars(std::begin(digits), std::end(digits), number);
    out.append(digits, end.ptr);
}

template <typename T>
bool readNumber(std::string_view text, T& number) {
    const auto end = std::from_chars(text.data(), text.data() + text.size(), number);
    return end.ec == std::errc() && end.ptr == text.data() + text.size();
}

template <typename T>
bool readNumbers(std::string_view text, std::vector<T>& numbers) {
    while (!text.empty()) {
        const size_t comma = std::min(text.find(','), text.size());
        if (!readNumber(text.substr(0, comma), numbers.emplace_back())) {
            return false;
        }
        text.remove_prefix(std::min(comma + 1, text.size()));
    }
    return true;
}

// Tells the processes of this machine's containers apart, where a number means another process.
std::string processNamespace() {
    char text[64];
    const ssize_t length = readlink("/proc/self/ns/pid", text, sizeof text);
    return {text, length > 0 ? static_cast<size_t>(length) : 0};
}

MetricType typeOf(int kind) {
    return kind == NIXL_METRIC_COUNTER ? MetricType::Counter
           : kind == NIXL_METRIC_GAUGE ? MetricType::Gauge
                                       : MetricType::Histogram;
}

bool fillHistogram(ClientMetric& metric,
                   double sum,
                   const std::vector<double>& bounds,
                   std::string_view text) {
    std::vector<uint64_t> buckets;
    if (!readNumbers(text, buckets) || buckets.size() != bounds.size() + 1) {
        return false;
    }
    uint64_t count = 0;
    for (size_t i = 0; i < buckets.size(); ++i) {
        count += buckets[i];
        const double bound =
            i < bounds.size() ? bounds[i] : std::numeric_limits<double>::infinity();
        metric.histogram.bucket.push_back({count, bound});
    }
    metric.histogram.sample_count = count;
    metric.histogram.sample_sum = sum;
    return true;
}

// S value buckets name value name value …
bool readSample(const std::vector<std::string>& fields,
                const std::vector<double>& bounds,
                MetricFamily& family) {
    double value = 0;
    if (fields.size() < 3 || fields.size() % 2 == 0 || !readNumber(fields[1], value)) {
        return false;
    }
    ClientMetric metric;
    for (size_t i = 3; i + 1 < fields.size(); i += 2) {
        metric.label.push_back({fields[i], fields[i + 1]});
    }
    if (family.type == MetricType::Histogram) {
        if (!fillHistogram(metric, value, bounds, fields[2])) {
            return false;
        }
    } else if (family.type == MetricType::Counter) {
        metric.counter.value = value;
    } else {
        metric.gauge.value = value;
    }
    family.metric.push_back(std::move(metric));
    return true;
}

// Whether the process that wrote this lives; of another namespace only its files' age tells.
bool lives(const std::string& first_line, const struct stat& facts) {
    const std::vector<std::string> fields = fieldsOf(first_line);
    pid_t pid = 0;
    if (fields.size() != 3 || fields[0] != "P" || !readNumber(fields[1], pid) || pid <= 0) {
        return false;
    }
    if (fields[2] == processNamespace() && kill(pid, 0) != 0 && errno == ESRCH) {
        return false;
    }
    return time(nullptr) - facts.st_mtime <= kStaleSeconds;
}

}  // namespace

std::string fileOf(const std::string& id) {
    return std::string(kPrefix) + std::to_string(getpid()) + "-" + id + std::string(kSuffix);
}

std::string toText(const nixl_metrics& metrics) {
    std::string out = "P\t" + std::to_string(getpid()) + "\t" + processNamespace() + "\n";
    for (size_t m = 0; m < metrics.metric_count; ++m) {
        const nixl_metric& metric = metrics.metrics[m];
        out += "F\t";
        appendField(out, metric.name);
        out += "\t" + std::to_string(static_cast<int>(metric.kind)) + "\t";
        appendField(out, metric.help);
        out += '\t';
        for (size_t i = 0; i < metric.bound_count; ++i) {
            out += i == 0 ? "" : ",";
            appendNumber(out, metric.bounds[i]);
        }
        out += '\n';
        for (size_t s = 0; s < metric.sample_count; ++s) {
            const nixl_sample& sample = metric.samples[s];
            out += "S\t";
            appendNumber(out, sample.value);
            out += '\t';
            for (size_t i = 0; sample.buckets != nullptr && i <= metric.bound_count; ++i) {
                out += i == 0 ? "" : ",";
                appendNumber(out, sample.buckets[i]);
            }
            for (size_t i = 0; i < sample.label_count; ++i) {
                out += '\t';
                appendField(out, sample.labels[i].name);
                out += '\t';
                appendField(out, sample.labels[i].value);
            }
            out += '\n';
        }
    }
    return out;
}

void fromText(const std::string& text, std::vector<MetricFamily>& into) {
    std::istringstream lines(text);
    MetricFamily* family = nullptr;
    std::vector<double> bounds;
    for (std::string line; std::getline(lines, line);) {
        const std::vector<std::string> fields = fieldsOf(line);
        if (fields[0] == "P") {
            continue;
        }
        if (fields[0] == "S" && family != nullptr && readSample(fields, bounds, *family)) {
            continue;
        }
        int kind = 0;
        bounds.clear();
        if (fields[0] != "F" || fields.size() != 5 || !readNumber(fields[2], kind) ||
            !readNumbers(fields[4], bounds)) {
            return;
        }
        const auto known = std::find_if(into.begin(), into.end(), [&](const MetricFamily& one) {
            return one.name == fields[1];
        });
        if (known != into.end() && known->type != typeOf(kind)) {
            return;  // of another version of the library
        }
        family = known != into.end()
                     ? &*known
                     : &into.emplace_back(MetricFamily{fields[1], fields[3], typeOf(kind), {}});
    }
}

std::string leave(const std::string& directory,
                  const std::string& file,
                  const nixl_metrics& metrics) {
    const std::string path = directory + "/" + file;
    const std::string fresh = directory + "/." + file + ".new";
    const std::string text = toText(metrics);
    unlink(fresh.c_str());
    const int out = open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    errno = out < 0 ? errno : ENOSPC;  // what a short write means
    const bool good =
        out >= 0 && write(out, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    const std::string why = good ? "" : strerror(errno);
    if (out >= 0) {
        close(out);
    }
    if (good && rename(fresh.c_str(), path.c_str()) == 0) {
        return {};
    }
    unlink(fresh.c_str());
    return "cannot write " + path + ": " + (good ? strerror(errno) : why);
}

std::vector<MetricFamily> collect(const std::string& directory) {
    std::vector<MetricFamily> all;
    std::vector<std::filesystem::path> paths;
    std::error_code ignored;
    for (std::filesystem::directory_iterator entry(directory, ignored), end; entry != end;
         entry.increment(ignored)) {
        const std::string name = entry->path().filename();
        if (name.starts_with(kPrefix) && name.ends_with(kSuffix)) {
            paths.push_back(entry->path());
        }
    }
    std::sort(paths.begin(), paths.end());
    for (const std::filesystem::path& path : paths) {
        struct stat facts {};
        if (lstat(path.c_str(), &facts) != 0 || !S_ISREG(facts.st_mode) ||
            facts.st_uid != geteuid() || facts.st_size > kMostBytes) {
            continue;  // nobody else speaks for this user's agents
        }
        std::ifstream file(path, std::ios::binary);
        const std::string text((std::istreambuf_iterator<char>(file)), {});
        if (!lives(text.substr(0, text.find('\n')), facts)) {
            unlink(path.c_str());
            continue;
        }
        fromText(text, all);
    }
    return all;
}

}  // namespace nixl::prometheus_exporter
