// What a scheduler of nixl.disaggregation asks of its rooms again and again: send() of whole pages,
// poll(), and the notifications behind them. What is seldom is in Python.
//
// Threads: a poll is a few loads of what the pusher's and the inbox's threads have written, which
// never hold the GIL: what belongs to Python is in a KvWatch, which they do not know. Any thread
// may call; each object's mutex guards what is not atomic. No call of Python is made under one.
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

// What the threads know of a room.
class KvRoom : public KvJobOwner, public std::enable_shared_from_this<KvRoom> {
  public:
    // `patience`: seconds without anything that ends or comes.
    explicit KvRoom(double patience) : patience_(patience) {}

    // The jobs of a room, in order.
    void add(const std::shared_ptr<KvJob>& job) {
        job->setOwner(weak_from_this());
        const std::lock_guard lock(mutex_);
        jobs_.push_back(job);
        advance();  // it may be over
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
    void jobEnded() override {
        const std::lock_guard lock(mutex_);
        advance();
    }
    // The last job is given: without one on its way the room is a success.
    void setEnded() {
        const std::lock_guard lock(mutex_);
        ended_.store(true);
        advance();
    }
    bool ended() const { return ended_.load(); }

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

    // Whether Python has to look: something failed, or is late.
    bool needsCare() const { return failed_.load() || now() > deadline_.load(); }
    double endedAt() const { return endedAt_.load(); }
    int status() const { return status_.load(); }
    // Nothing follows a final state.
    void setStatus(int status) {
        int before = status_.load();
        while (!isFinal(before) && !status_.compare_exchange_weak(before, status)) {
        }
    }
    void setDeadline(double deadline) { deadline_.store(deadline); }
    double deadline() const { return deadline_.load(); }
    void postpone() { deadline_.store(now() + patience_); }

  private:
    // Under the lock.
    void advance() {
        while (done_ < jobs_.size()) {
            const JobState state = jobs_[done_]->state();
            if (state > JobState::DONE) {
                failed_.store(true);
            }
            if (state != JobState::DONE) {
                return;
            }
            ++done_;
            postpone();
        }
        if (ended_.load() && !isFinal(status_.load())) {
            endedAt_.store(now());
            setStatus(kSuccess);
        }
    }

    const double patience_;
    std::atomic<int> status_{1};
    std::atomic<double> deadline_{0}, endedAt_{0};
    std::atomic<bool> ended_{false}, failed_{false};
    std::mutex mutex_;  // guards what follows
    std::vector<std::shared_ptr<KvJob>> jobs_;
    size_t done_ = 0;
    std::string secret_;
    size_t sources_ = 0;
    bool auxCame_ = true;
    int64_t came_ = 0;
    std::unordered_map<std::string, int64_t> lasts_;
};

// A decode rank's notifications: a thread of its own takes them, so that no poll has to.
class KvInbox {
  public:
    KvInbox(const RawAgent& agent, nb::object other)
        : agent_(agent.live), bell_(agent.live), other_(std::move(other)) {}
    KvInbox(const KvInbox&) = delete;
    KvInbox& operator=(const KvInbox&) = delete;
    ~KvInbox() { end(); }

    // Takes what has come, without Python.
    void look() {
        const std::lock_guard lock(taking_);
        Agent* agent = agent_->ifOpen();
        if (agent == nullptr) {
            return;
        }
        for (Notification& one : agent->takeNotifications()) {
            if (!take(one)) {
                const std::lock_guard others(mutex_);
                strange_.push_back(std::move(one));
                anyStrange_.store(true);
            }
        }
    }
    // Tells `other` of what is of no room.
    bool strange() const { return anyStrange_.load(std::memory_order_relaxed); }
    void tell() {
        std::vector<Notification> told;
        nb::object other;
        {
            const std::lock_guard lock(mutex_);
            anyStrange_.store(false);
            told.swap(strange_);
            other = other_;
        }
        for (const Notification& one : told) {
            if (other.is_valid()) {
                other(one.from, toBytes(one.message));
            }
        }
    }

    void add(int64_t room, std::shared_ptr<KvRoom> state) {
        const std::lock_guard lock(mutex_);
        rooms_[room] = std::move(state);
        if (!thread_.started() && !ended_.load()) {
            bell_.open();
            thread_.start([this] { run(); });
        }
    }
    void remove(int64_t room) {
        const std::lock_guard lock(mutex_);
        rooms_.erase(room);
    }
    void end() {
        nb::object other;  // goes after the lock
        KvThread thread;
        {
            const std::lock_guard lock(mutex_);
            ended_.store(true);
            std::swap(thread, thread_);
            std::swap(other, other_);
            rooms_.clear();
        }
        bell_.ring();
        const GilRelease release;  // which a warning of the thread may want
        thread.join();
    }

  private:
    // Others who use the agent may take the news of it that this thread sleeps for.
    static constexpr std::chrono::milliseconds kLookAgain{50};

    void run() {
        while (!ended_.load()) {
            try {
                look();
            } catch (const Error&) {
                return;  // the agent was closed, or is another process's (fork)
            }
            bell_.sleep(kLookAgain);
        }
    }

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
        std::shared_ptr<KvRoom> state;
        {
            const std::lock_guard lock(mutex_);
            const auto found = rooms_.find(room);
            state = found == rooms_.end() ? nullptr : found->second;
        }
        if (state == nullptr || !state->isSecret(words[aux ? 2 : 4])) {
            return false;
        }
        const bool last = none || (!aux && words[3] == "1");
        state->arrived(one.from, aux, none ? chunk - 1 : chunk, last, !none);
        return true;
    }

    static bool number(std::string_view text, int64_t& out) {
        const auto read = std::from_chars(text.data(), text.data() + text.size(), out);
        return read.ec == std::errc() && read.ptr == text.data() + text.size() && out >= 0;
    }

    const std::shared_ptr<LiveAgent> agent_;
    KvBell bell_;
    std::atomic<bool> ended_{false}, anyStrange_{false};
    std::mutex taking_;  // so that one sender's are told in order
    std::mutex mutex_;   // guards what follows
    nb::object other_;
    std::vector<Notification> strange_;
    std::unordered_map<int64_t, std::shared_ptr<KvRoom>> rooms_;
    KvThread thread_;
};

// A room, as its scheduler sees it.
class KvWatch {
  public:
    KvWatch(std::shared_ptr<KvInbox> inbox, nb::object slow, double patience)
        : inbox_(std::move(inbox)),
          room_(std::make_shared<KvRoom>(patience)),
          slow_(std::move(slow)) {}

    int poll();

    const std::shared_ptr<KvRoom>& room() const { return room_; }

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

  private:
    nb::object call() {
        const std::lock_guard lock(mutex_);
        return slow_;
    }
    void give(const std::shared_ptr<KvJob>& job) {
        pusher_->push(job);
        room_->add(job);
    }

    const std::shared_ptr<KvInbox> inbox_;
    const std::shared_ptr<KvRoom> room_;
    std::atomic<double> firstSend_{0};
    std::mutex mutex_;  // guards what follows; only who has the GIL takes it
    nb::object slow_;
    std::vector<KvRoute> routes_;
    std::vector<KvTail> tails_;
    std::shared_ptr<KvPusher> pusher_;
    int64_t at_ = 0, number_ = 0, count_ = 0;
    size_t limit_ = 0;
};

int KvWatch::poll() {
    const int seen = room_->status();
    if (inbox_ != nullptr && inbox_->strange()) {
        inbox_->tell();
    }
    if (isFinal(seen) || !room_->needsCare()) {
        return seen;
    }
    if (const nb::object slow = call(); slow.is_valid()) {
        slow();
    }
    return room_->status();
}

// False where Python has to do it: other layers, other types, too many pages, a full queue.
bool KvWatch::send(nb::handle pages) {
    const std::lock_guard lock(mutex_);
    if (pusher_ == nullptr || isFinal(room_->status()) ||
        pusher_->queued() + routes_.size() + tails_.size() > limit_) {
        return false;
    }
    const std::vector<int32_t> here = readPages(pages, "kv_indices");
    const auto count = static_cast<int64_t>(here.size());
    if (count == 0 || at_ + count > count_) {
        return false;
    }
    const bool last = at_ + count == count_;
    room_->setStatus(kTransferring);
    room_->postpone();
    if (number_ == 0) {
        firstSend_.store(now());
    }
    for (const KvRoute& route : routes_) {
        KvSide local{route.local.list, route.local.block, here};
        const auto from = route.remote.pages.begin() + at_;
        KvSide remote{route.remote.list, route.remote.block, {from, from + count}};
        auto job = std::make_shared<KvJob>(pusher_->agent(), std::move(local), std::move(remote));
        job->setShape(
            route.each, 0, route.buffers,
            route.prefix + std::to_string(number_) + (last ? "_1_" : "_0_") + route.suffix);
        give(job);
    }
    for (const KvTail& tail : tails_) {
        if (last) {
            auto job = std::make_shared<KvJob>(pusher_->agent(), tail.local, tail.remote);
            job->setShape(tail.each, 0, 1, tail.notification);
            give(job);
        }
    }
    pusher_->ring();
    at_ += count;
    ++number_;
    if (last) {
        room_->setEnded();
    }
    return true;
}

void KvRoom::arrived(const std::string& source, bool aux, int64_t chunk, bool last, bool counts) {
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
    postpone();
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
        .def("add", [](KvWatch& self, const std::shared_ptr<KvJob>& job) { self.room()->add(job); })
        .def_prop_ro("unfinished", [](KvWatch& self) { return self.room()->unfinished(); })
        .def_prop_ro("error", [](KvWatch& self) { return self.room()->error(); })
        .def("open", &KvWatch::open)
        .def("shut",
             [](KvWatch& self) {
                 const auto [at, number] = self.shut();
                 return nb::make_tuple(at, number);
             })
        .def("expect", [](KvWatch& self, std::string secret, size_t sources,
                          bool aux) { self.room()->expect(std::move(secret), sources, aux); })
        .def_prop_ro("progress",
                     [](KvWatch& self) {
                         const auto [came, lasts] = self.room()->progress();
                         return nb::make_tuple(came, lasts);
                     })
        .def("set_ended", [](KvWatch& self) { self.room()->setEnded(); })
        .def_prop_ro("ended", [](KvWatch& self) { return self.room()->ended(); })
        .def_prop_ro("ended_at", [](KvWatch& self) { return self.room()->endedAt(); })
        .def_prop_ro("first_send", &KvWatch::firstSend)
        .def("end", &KvWatch::end)
        .def_prop_rw(
            "status", [](KvWatch& self) { return self.room()->status(); },
            [](KvWatch& self, int status) { self.room()->setStatus(status); })
        .def_prop_rw(
            "deadline", [](KvWatch& self) { return self.room()->deadline(); },
            [](KvWatch& self, double deadline) { self.room()->setDeadline(deadline); });
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
        .def("look",
             [](KvInbox& self) {
                 {
                     const GilRelease release;
                     self.look();
                 }
                 self.tell();
             })
        .def("tell", &KvInbox::tell)
        .def("add",
             [](KvInbox& self, int64_t room, KvWatch& watch) { self.add(room, watch.room()); })
        .def("remove", &KvInbox::remove)
        .def("end", &KvInbox::end);
    bindWatch(module);
}

}  // namespace nixl::python
