// What a scheduler of nixl.disaggregation asks of its rooms again and again: send() of whole pages,
// poll(), and the notifications behind them. What is seldom is in Python.
//
// Threads: any may call; each object's mutex guards what is not atomic. No call of Python is made
// under one.
#include <charconv>
#include <unordered_map>

#include "kv_jobs.h"

namespace nixl::python {
namespace {

// KVPoll's values.
constexpr int kFailed = 0;
constexpr int kTransferring = 3;
constexpr int kSuccess = 4;

double now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(since).count();
}

bool isFinal(int state) {
    return state == kFailed || state == kSuccess;
}

// A decode rank's share in a room: where this rank's pages go, one chunk after the other.
struct KvRoute {
    KvSide local, remote;  // remote.pages: all pages of the room
    int64_t each = 1;
    int64_t buffers = 0;
    std::string prefix, suffix;
};

// The auxiliary data that follows the last pages.
struct KvTail {
    KvSide local, remote;
    int64_t each = 1;
    std::string notification;
};

class KvInbox;

class KvWatch {
  public:
    // `patience`: seconds without anything that ends or comes.
    KvWatch(std::shared_ptr<KvInbox> inbox, nb::object slow, double patience)
        : inbox_(std::move(inbox)), patience_(patience), slow_(std::move(slow)) {}

    int poll();

    // The jobs of a room, in order. Those that Python made are added; send() adds its own.
    void add(std::shared_ptr<KvJob> job) {
        const std::lock_guard lock(mutex_);
        jobs_.push_back(std::move(job));
    }
    std::vector<std::shared_ptr<KvJob>> unfinished() {
        const std::lock_guard lock(mutex_);
        std::vector<std::shared_ptr<KvJob>> out;
        for (const std::shared_ptr<KvJob>& job : jobs_) {
            if (job->state() <= JobState::POSTED) {
                out.push_back(job);
            }
        }
        return out;
    }
    // Why the first job that failed did; empty where none has.
    std::string error() {
        const std::lock_guard lock(mutex_);
        for (const std::shared_ptr<KvJob>& job : jobs_) {
            if (job->state() > JobState::DONE) {
                return job->error();
            }
        }
        return {};
    }

    void addRoute(KvRoute route) {
        const std::lock_guard lock(mutex_);
        routes_.push_back(std::move(route));
    }
    void addTail(KvTail tail) {
        const std::lock_guard lock(mutex_);
        tails_.push_back(std::move(tail));
    }
    // From now on send() knows what to do: `at` pages in `number` chunks are sent, of `count`.
    void open(
        std::shared_ptr<KvPusher> pusher, int64_t at, int64_t number, int64_t count, size_t limit) {
        const std::lock_guard lock(mutex_);
        pusher_ = std::move(pusher);
        at_ = at;
        number_ = number;
        count_ = count;
        limit_ = limit;
    }
    // Python goes on from here: (pages sent, chunks sent); send() does nothing any more.
    std::pair<int64_t, int64_t> shut() {
        const std::lock_guard lock(mutex_);
        pusher_.reset();
        return {at_, number_};
    }
    bool send(nb::handle pages);

    // Of a receiver: a message has come from a writer.
    void arrived(const std::string& source, bool aux, int64_t chunk, bool last, bool counts);
    void expect(std::string secret, size_t sources, bool aux) {
        const std::lock_guard lock(mutex_);
        secret_ = std::move(secret);
        sources_ = sources;
        auxCame_ = !aux;
    }
    bool isSecret(std::string_view secret) {
        const std::lock_guard lock(mutex_);
        return !secret_.empty() && secret_ == secret;
    }
    std::pair<int64_t, size_t> progress() {
        const std::lock_guard lock(mutex_);
        return {came_, lasts_.size()};
    }

    // The last job is given: without one on its way the room is a success.
    void setEnded() { ended_.store(true); }
    bool ended() const { return ended_.load(); }
    double endedAt() const { return endedAt_.load(); }
    double firstSend() const { return firstSend_.load(); }
    // The room is over: forgets the call, through which the room may hold this object.
    void end() {
        nb::object slow;  // goes after the lock
        const std::lock_guard lock(mutex_);
        std::swap(slow, slow_);
        pusher_.reset();
        routes_.clear();
        tails_.clear();
    }
    int status() const { return status_.load(); }
    // Nothing follows a final state.
    void setStatus(int status) {
        int before = status_.load();
        while (!isFinal(before) && !status_.compare_exchange_weak(before, status)) {
        }
    }
    void setDeadline(double deadline) { deadline_.store(deadline); }
    double deadline() const { return deadline_.load(); }

  private:
    // Whether Python has to look: something failed, or is late.
    bool look() {
        const std::lock_guard lock(mutex_);
        while (done_ < jobs_.size()) {
            const JobState state = jobs_[done_]->state();
            if (state > JobState::DONE) {
                return true;
            }
            if (state != JobState::DONE) {
                break;
            }
            ++done_;
            deadline_.store(now() + patience_);
        }
        if (done_ == jobs_.size() && ended_.load()) {
            endedAt_.store(now());
            setStatus(kSuccess);
            return false;
        }
        return now() > deadline_.load();
    }

    nb::object call() {
        const std::lock_guard lock(mutex_);
        return slow_;
    }

    const std::shared_ptr<KvInbox> inbox_;
    const double patience_;
    std::atomic<int> status_{1};
    std::atomic<double> deadline_{0}, endedAt_{0}, firstSend_{0};
    std::atomic<bool> ended_{false};
    std::mutex mutex_;  // guards what follows
    nb::object slow_;
    std::vector<std::shared_ptr<KvJob>> jobs_;
    size_t done_ = 0;
    std::vector<KvRoute> routes_;
    std::vector<KvTail> tails_;
    std::shared_ptr<KvPusher> pusher_;
    int64_t at_ = 0, number_ = 0, count_ = 0;
    size_t limit_ = 0;
    std::string secret_;
    size_t sources_ = 0;
    bool auxCame_ = true;
    int64_t came_ = 0;
    std::unordered_map<std::string, int64_t> lasts_;
};

// A decode rank's notifications. Whoever asks an agent for them in quick succession serves its
// sockets; many rooms are polled in a row, and a scheduler's time is not for that: so seldom.
class KvInbox {
  public:
    KvInbox(const RawAgent& agent, nb::object other)
        : agent_(agent.live), other_(std::move(other)) {}

    void look() {
        const double time = now();
        double before = looked_.load(std::memory_order_relaxed);
        if (time - before < kPause || !looked_.compare_exchange_strong(before, time)) {
            return;
        }
        for (const Notification& one : agent_->get().takeNotifications()) {
            if (!take(one)) {
                if (const nb::object other = call(); other.is_valid()) {
                    other(one.from, toBytes(one.message));
                }
            }
        }
    }

    void add(int64_t room, std::shared_ptr<KvWatch> watch) {
        const std::lock_guard lock(mutex_);
        rooms_[room] = std::move(watch);
    }
    void remove(int64_t room) {
        const std::lock_guard lock(mutex_);
        rooms_.erase(room);
    }
    void end() {
        nb::object other;  // goes after the lock
        const std::lock_guard lock(mutex_);
        std::swap(other, other_);
        rooms_.clear();
    }

  private:
    static constexpr double kPause = 150e-6;

    // ROOM_kv_CHUNK_LAST_SECRET, ROOM_kv_end_CHUNKS_SECRET, ROOM_aux_SECRET; false for all others.
    bool take(const Notification& one) {
        std::string_view rest = one.message;
        std::string_view words[5];
        size_t count = 0;
        while (count < 5) {
            const size_t end = rest.find('_');
            words[count++] = rest.substr(0, end);
            if (end == std::string_view::npos) {
                break;
            }
            rest.remove_prefix(end + 1);
        }
        const bool aux = count == 3 && words[1] == "aux";
        const bool none = count == 5 && words[2] == "end";
        int64_t room = 0;
        int64_t chunk = 0;
        if (!(aux || (count == 5 && words[1] == "kv")) || !number(words[0], room) ||
            (!aux && !number(words[none ? 3 : 2], chunk))) {
            return false;
        }
        std::shared_ptr<KvWatch> watch;
        {
            const std::lock_guard lock(mutex_);
            const auto found = rooms_.find(room);
            watch = found == rooms_.end() ? nullptr : found->second;
        }
        if (watch == nullptr || !watch->isSecret(words[aux ? 2 : 4])) {
            return false;
        }
        const bool last = none || (!aux && words[3] == "1");
        watch->arrived(one.from, aux, none ? chunk - 1 : chunk, last, !none);
        return true;
    }

    static bool number(std::string_view text, int64_t& out) {
        const auto read = std::from_chars(text.data(), text.data() + text.size(), out);
        return read.ec == std::errc() && read.ptr == text.data() + text.size() && out >= 0;
    }

    nb::object call() {
        const std::lock_guard lock(mutex_);
        return other_;
    }

    const std::shared_ptr<LiveAgent> agent_;
    std::atomic<double> looked_{0};
    std::mutex mutex_;  // guards what follows
    nb::object other_;
    std::unordered_map<int64_t, std::shared_ptr<KvWatch>> rooms_;
};

int KvWatch::poll() {
    if (const int seen = status_.load(); isFinal(seen)) {
        return seen;
    }
    if (inbox_ != nullptr) {
        inbox_->look();
    }
    if (!isFinal(status_.load()) && look()) {
        if (const nb::object slow = call(); slow.is_valid()) {
            slow();
        }
    }
    return status_.load();
}

// False where Python has to do it: other layers, other types, too many pages, a full queue.
bool KvWatch::send(nb::handle pages) {
    const std::lock_guard lock(mutex_);
    if (pusher_ == nullptr || isFinal(status_.load()) ||
        pusher_->queued() + routes_.size() + tails_.size() > limit_) {
        return false;
    }
    const std::vector<int32_t> here = readPages(pages, "kv_indices");
    const auto count = static_cast<int64_t>(here.size());
    if (count == 0 || at_ + count > count_) {
        return false;
    }
    const bool last = at_ + count == count_;
    for (const KvRoute& route : routes_) {
        KvSide local{route.local.list, route.local.block, here};
        const auto from = route.remote.pages.begin() + at_;
        KvSide remote{route.remote.list, route.remote.block, {from, from + count}};
        auto job = std::make_shared<KvJob>(pusher_->agent(), std::move(local), std::move(remote));
        job->setShape(
            route.each, 0, route.buffers,
            route.prefix + std::to_string(number_) + (last ? "_1_" : "_0_") + route.suffix);
        pusher_->push(job);
        jobs_.push_back(std::move(job));
    }
    for (const KvTail& tail : tails_) {
        if (last) {
            auto job = std::make_shared<KvJob>(pusher_->agent(), tail.local, tail.remote);
            job->setShape(tail.each, 0, 1, tail.notification);
            pusher_->push(job);
            jobs_.push_back(std::move(job));
        }
    }
    const double time = now();
    if (number_ == 0) {
        firstSend_.store(time);
    }
    at_ += count;
    ++number_;
    setStatus(kTransferring);
    deadline_.store(time + patience_);
    if (last) {
        ended_.store(true);
    }
    return true;
}

void KvWatch::arrived(const std::string& source, bool aux, int64_t chunk, bool last, bool counts) {
    const std::lock_guard lock(mutex_);
    if (isFinal(status_.load())) {
        return;
    }
    if (aux) {
        auxCame_ = true;
    } else {
        came_ += counts ? 1 : 0;
        if (last) {
            lasts_[source] = chunk + 1;
        }
    }
    int64_t expected = 0;
    for (const auto& [name, chunks] : lasts_) {
        expected += chunks;
    }
    setStatus(kTransferring);
    deadline_.store(now() + patience_);
    if (auxCame_ && lasts_.size() == sources_ && came_ == expected) {
        endedAt_.store(now());
        setStatus(kSuccess);
    }
}

KvSide makeSide(const RawAgent& raw, const DlistHandle& list, int64_t block, nb::handle pages) {
    return {list.checkedFor(raw, "the prepared list"), block, readPages(pages, "pages")};
}

void bindWatch(nb::module_& module) {
    nb::class_<KvWatch> watch(module, "_KvWatch", "A room, as its scheduler sees it.");
    watch
        .def(nb::init<std::shared_ptr<KvInbox>, nb::object, double>(), nb::arg("inbox").none(),
             nb::arg("slow"), nb::arg("patience"))
        .def("poll", &KvWatch::poll)
        .def("send", &KvWatch::send)
        .def("add", &KvWatch::add)
        .def_prop_ro("unfinished", &KvWatch::unfinished)
        .def_prop_ro("error", &KvWatch::error)
        .def("open", &KvWatch::open)
        .def("shut",
             [](KvWatch& self) {
                 const auto [at, number] = self.shut();
                 return nb::make_tuple(at, number);
             })
        .def("expect", &KvWatch::expect)
        .def_prop_ro("progress",
                     [](KvWatch& self) {
                         const auto [came, lasts] = self.progress();
                         return nb::make_tuple(came, lasts);
                     })
        .def("set_ended", &KvWatch::setEnded)
        .def_prop_ro("ended", &KvWatch::ended)
        .def_prop_ro("ended_at", &KvWatch::endedAt)
        .def_prop_ro("first_send", &KvWatch::firstSend)
        .def("end", &KvWatch::end)
        .def_prop_rw("status", &KvWatch::status, &KvWatch::setStatus)
        .def_prop_rw("deadline", &KvWatch::deadline, &KvWatch::setDeadline);
    watch.def("route",
              [](KvWatch& self, const RawAgent& raw, const DlistHandle& local, int64_t local_block,
                 const DlistHandle& remote, int64_t remote_block, nb::handle pages, int64_t each,
                 int64_t buffers, const std::string& prefix, const std::string& suffix) {
                  self.addRoute({{local.checkedFor(raw, "the local list"), local_block, {}},
                                 makeSide(raw, remote, remote_block, pages),
                                 each,
                                 buffers,
                                 prefix,
                                 suffix});
              });
    watch.def("tail",
              [](KvWatch& self, const RawAgent& raw, const DlistHandle& local, int64_t local_block,
                 nb::handle here, const DlistHandle& remote, int64_t remote_block, nb::handle there,
                 int64_t each, const std::string& notification) {
                  self.addTail({makeSide(raw, local, local_block, here),
                                makeSide(raw, remote, remote_block, there), each, notification});
              });
}

}  // namespace

void bindKvRooms(nb::module_& module) {
    nb::class_<KvInbox>(module, "_KvInbox", "What comes for rooms; all else goes to `other`.")
        .def(nb::init<const RawAgent&, nb::object>(), nb::arg("agent"), nb::arg("other"))
        .def("look", &KvInbox::look)
        .def("add", &KvInbox::add)
        .def("remove", &KvInbox::remove)
        .def("end", &KvInbox::end);
    bindWatch(module);
}

}  // namespace nixl::python
