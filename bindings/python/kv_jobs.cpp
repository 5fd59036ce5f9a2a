// See kv_jobs.h.
#include "kv_jobs.h"

namespace nixl::python {
namespace {

KvSide readSide(const RawAgent& raw,
                const DlistHandle& list,
                int64_t block,
                nb::handle pages,
                const char* name) {
    return {list.checkedFor(raw, name), block, readPages(pages, name)};
}

void checkShape(const KvSide& local, const KvSide& remote, int64_t each, int64_t buffers) {
    if (local.pages.size() != remote.pages.size()) {
        throw Error(Status::mismatch(std::to_string(local.pages.size()) + " source pages but " +
                                     std::to_string(remote.pages.size()) + " destination pages"));
    }
    if (each < 1 || buffers < 1 || local.block < 1 || remote.block < 1 || local.pages.empty()) {
        throw Error(Status::invalidParam("a job needs at least one page of one buffer"));
    }
}

}  // namespace

std::vector<int32_t> readPages(nb::handle pages, const char* name) {
    Indices numbers(pages, name);
    std::vector<int32_t> out;
    if (numbers.narrow()) {
        const std::span<const int32_t> span = numbers.narrowSpan();
        out.assign(span.begin(), span.end());
        return out;
    }
    out.reserve(numbers.size());
    for (const int64_t page : numbers.wideSpan()) {
        out.push_back(page < 0 || page > INT32_MAX ? -1 : static_cast<int32_t>(page));
    }
    return out;
}

void bindKvJobs(nb::module_& module) {
    nb::class_<KvJob>(module, "_KvJob", "Pages on their way; what it holds is freed when it goes.")
        .def_prop_ro("state", [](KvJob& job) { return static_cast<int>(job.state()); })
        .def_prop_ro("error", &KvJob::error)
        .def("cancel", [](KvJob& job) {
            const GilRelease release;
            job.cancel();
        });
    nb::class_<KvPusher>(module, "_KvPusher", "Writes pages of a KV cache on a thread of its own.")
        .def(nb::init<const RawAgent&, size_t>(), nb::arg("agent"), nb::arg("window"))
        .def(
            "push",
            [](KvPusher& self, const RawAgent& raw, const DlistHandle& local, int64_t local_block,
               nb::handle local_pages, const DlistHandle& remote, int64_t remote_block,
               nb::handle remote_pages, int64_t each, int64_t first, int64_t buffers,
               Text notification) {
                KvSide left = readSide(raw, local, local_block, local_pages, "source");
                KvSide right = readSide(raw, remote, remote_block, remote_pages, "destination");
                checkShape(left, right, each, buffers);
                auto job = std::make_shared<KvJob>(self.agent(), std::move(left), std::move(right));
                job->setShape(each, first, buffers, notification.str());
                self.push(job);
                self.ring();
                return job;
            },
            nb::arg("agent"), nb::arg("local"), nb::arg("local_block"), nb::arg("local_pages"),
            nb::arg("remote"), nb::arg("remote_block"), nb::arg("remote_pages"), nb::arg("each"),
            nb::arg("first"), nb::arg("buffers"), nb::arg("notif_msg"))
        .def_prop_ro("queued", &KvPusher::queued)
        .def("close", [](KvPusher& pusher) {
            const GilRelease release;
            pusher.close();
        });
    bindKvRooms(module);
}

}  // namespace nixl::python
