// See json.h. Written by hand: the core is built where no JSON library is installed.
#include "telemetry/json.h"

#include <charconv>
#include <concepts>

#include <unistd.h>

namespace nixl::telemetry {
namespace {

class Writer {
  public:
    void open(char bracket) {
        separate();
        out_ += bracket;
        first_ = true;
    }
    void close(char bracket) {
        out_ += bracket;
        first_ = false;
    }
    Writer& key(std::string_view name) {
        text(name);
        out_ += ':';
        first_ = true;
        return *this;
    }
    void text(std::string_view value) {
        separate();
        out_ += '"';
        for (const char c : value) {
            const auto byte = static_cast<unsigned char>(c);
            if (c == '"' || c == '\\') {
                out_ += '\\';
                out_ += c;
            } else if (byte < 0x20) {
                constexpr char kDigits[] = "0123456789abcdef";
                out_ += "\\u00";
                out_ += kDigits[byte >> 4];
                out_ += kDigits[byte & 15];
            } else {
                out_ += c;
            }
        }
        out_ += '"';
    }
    template <typename T>
    void number(T value) {
        separate();
        char digits[40];
        const auto end = std::to_chars(std::begin(digits), std::end(digits), value);
        out_.append(digits, end.ptr);
    }
    void null() {
        separate();
        out_ += "null";
    }
    void field(std::string_view name, std::string_view value) { key(name).text(value); }
    template <typename T>
        requires std::integral<T> || std::floating_point<T>
    void field(std::string_view name, T value) {
        key(name).number(value);
    }
    void field(std::string_view name, std::chrono::nanoseconds value) {
        key(name).number(std::chrono::duration<double>(value).count());
    }
    // Pairs of bound and number, those that are not 0; the bound of the last bucket is null.
    template <typename Buckets, typename Bound>
    void histogram(std::string_view name, const Buckets& buckets, const Bound& bound) {
        key(name).open('[');
        for (size_t i = 0; i < buckets.size(); ++i) {
            if (buckets[i] == 0) {
                continue;
            }
            open('[');
            if (i + 1 == buckets.size()) {
                null();
            } else {
                number(bound(i));
            }
            number(buckets[i]);
            close(']');
        }
        close(']');
    }
    std::string take() { return std::move(out_); }

  private:
    void separate() {
        if (!first_) {
            out_ += ',';
        }
        first_ = false;
    }
    std::string out_;
    bool first_ = true;
};

void write(Writer& out, const TransferCounts& counts) {
    out.open('{');
    out.field("backend", counts.backend);
    out.field("lane", counts.lane);
    out.field("peer", counts.peer);
    out.field("operation", opName(counts.op));
    out.field("posts", counts.posts);
    out.field("done", counts.done);
    out.field("failed", counts.failed);
    out.field("canceled", counts.canceled);
    out.field("in_progress", counts.inProgress());
    out.field("bytes", counts.bytes);
    out.field("seconds", counts.time);
    out.key("errors").open('{');
    for (const auto& [code, number] : counts.errors) {
        out.field(errorName(code), number);
    }
    out.close('}');
    out.histogram("microseconds", counts.times, [](size_t i) { return timeBound(i).count(); });
    out.histogram("sizes", counts.sizes, [](size_t i) { return sizeBound(i); });
    out.close('}');
}

void write(Writer& out, const PendingTransfer& one) {
    out.open('{');
    out.field("id", one.id);
    out.field("backend", one.backend);
    out.field("lane", one.lane);
    out.field("peer", one.peer);
    out.field("operation", opName(one.op));
    out.field("seconds", one.age);
    out.field("bytes", one.bytes);
    out.field("bytes_done", one.bytesDone);
    out.close('}');
}

}  // namespace

std::string toJson(const AgentTelemetry& telemetry) {
    Writer out;
    out.open('{');
    out.field("agent", telemetry.agent);
    out.field("id", telemetry.incarnation);
    out.field("pid", getpid());
    out.field("time",
              std::chrono::nanoseconds(std::chrono::system_clock::now().time_since_epoch()));
    out.field("age", telemetry.age);
    out.field("prepared", telemetry.prepared);
    out.field("peers", telemetry.peers);
    out.field("endpoint", telemetry.endpoint);
    out.key("counters").open('{');
    for (const auto& [name, value] : telemetry.counters) {
        out.field(name, value);
    }
    out.close('}');
    out.key("registered").open('{');
    for (const auto& [type, memory] : telemetry.registered) {
        out.key(memTypeName(type)).open('{');
        out.field("regions", memory.regions);
        out.field("bytes", memory.bytes);
        out.close('}');
    }
    out.close('}');
    out.key("transfers").open('[');
    for (const TransferCounts& counts : telemetry.transfers) {
        write(out, counts);
    }
    out.close(']');
    out.key("pending").open('[');
    for (const PendingTransfer& one : telemetry.pending) {
        write(out, one);
    }
    out.close(']');
    out.close('}');
    return out.take();
}

}  // namespace nixl::telemetry
