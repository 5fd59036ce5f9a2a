// See mooncake_library.h.
#include "mooncake_library.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>

#include "of_process.h"

namespace nixl::mooncake {
namespace {

constexpr char kSoname[] = "libtransfer_engine.so";
constexpr char kInstall[] =
    "; build Mooncake with -DBUILD_SHARED_LIBS=ON (its PyPI packages have no C interface) and name "
    "the file in NIXL_MOONCAKE_LIBRARY";
// A symbol of the C++ class behind the C functions, where that is another library.
constexpr char kClassSymbol[] = "_ZN8mooncake14TransferEngine11freeBatchIDEm";
// In every engine whose tcp transport acknowledges what has been written.
constexpr char kAcknowledges[] = "tcp_proto_version";
constexpr size_t kAcknowledgesLength = sizeof(kAcknowledges) - 1;

template <typename Function>
void load(void* handle, const char* name, Function& function, std::string& missing) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr) {
        missing += std::string(missing.empty() ? "" : " ") + name;
    }
}

std::string loadAll(void* handle, MooncakeLibrary& library) {
    std::string missing;
    load(handle, "createTransferEngine", library.create, missing);
    load(handle, "destroyTransferEngine", library.destroy, missing);
    load(handle, "getLocalIpAndPort", library.localName, missing);
    load(handle, "installTransport", library.installTransport, missing);
    load(handle, "openSegment", library.openSegment, missing);
    load(handle, "closeSegment", library.closeSegment, missing);
    load(handle, "registerLocalMemory", library.registerMemory, missing);
    load(handle, "unregisterLocalMemory", library.unregisterMemory, missing);
    load(handle, "allocateBatchID", library.allocateBatch, missing);
    load(handle, "submitTransfer", library.submit, missing);
    load(handle, "getTransferStatus", library.status, missing);
    load(handle, "freeBatchID", library.freeBatch, missing);
    std::string optional;
    load(handle, "openSegmentNoCache", library.openSegmentAnew, optional);
    return missing;
}

// Looks for a text in the constants of the module that holds `address`.
struct Search {
    const char* address;
    bool found = false;
};

// Over all constants of a module, and what sanitizers put between them.
__attribute__((no_sanitize("address"))) bool holdsText(const char* begin, size_t size) {
    for (size_t at = 0; at + kAcknowledgesLength <= size; ++at) {
        size_t same = 0;
        while (same < kAcknowledgesLength && begin[at + same] == kAcknowledges[same]) {
            ++same;
        }
        if (same == kAcknowledgesLength) {
            return true;
        }
    }
    return false;
}

int searchModule(dl_phdr_info* module, size_t /*size*/, void* argument) {
    auto* const search = static_cast<Search*>(argument);
    bool holds = false;
    for (int i = 0; i < module->dlpi_phnum; ++i) {
        const ElfW(Phdr)& part = module->dlpi_phdr[i];
        const auto* const begin = reinterpret_cast<const char*>(module->dlpi_addr + part.p_vaddr);
        holds = holds || (part.p_type == PT_LOAD && search->address >= begin &&
                          search->address < begin + part.p_memsz);
    }
    for (int i = 0; holds && i < module->dlpi_phnum; ++i) {
        const ElfW(Phdr)& part = module->dlpi_phdr[i];
        if (part.p_type == PT_LOAD && (part.p_flags & PF_R) != 0 && (part.p_flags & PF_W) == 0) {
            const auto* const begin =
                reinterpret_cast<const char*>(module->dlpi_addr + part.p_vaddr);
            search->found = search->found || holdsText(begin, part.p_filesz);
        }
    }
    return holds ? 1 : 0;
}

bool acknowledges(void* handle, const MooncakeLibrary& library) {
    const std::array<const void*, 2> symbols{reinterpret_cast<const void*>(library.create),
                                             dlsym(handle, kClassSymbol)};
    for (const void* const symbol : symbols) {
        Search search{static_cast<const char*>(symbol)};
        if (symbol != nullptr && (dl_iterate_phdr(searchModule, &search), search.found)) {
            return true;
        }
    }
    return false;
}

std::string wantedPath() {
    const char* const wanted = std::getenv("NIXL_MOONCAKE_LIBRARY");
    if (wanted == nullptr || *wanted == '\0') {
        return kSoname;
    }
    struct stat info {};
    const bool folder = stat(wanted, &info) == 0 && S_ISDIR(info.st_mode);
    return folder ? std::string(wanted) + "/" + kSoname : std::string(wanted);
}

Result<std::unique_ptr<MooncakeLibrary>> tryOpen(const std::string& path) {
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        return Status::notFound("Mooncake's transfer engine cannot be opened (" +
                                (why != nullptr ? std::string(why) : path) + ")" + kInstall);
    }
    auto library = std::make_unique<MooncakeLibrary>();
    library->path = path;
    const std::string missing = loadAll(handle, *library);
    Dl_info where{};
    if (library->create != nullptr &&
        dladdr(reinterpret_cast<void*>(library->create), &where) != 0) {
        library->path = where.dli_fname;
    }
    std::string wrong;
    if (!missing.empty()) {
        wrong = "it is no transfer engine, or too old: it has no " + missing;
    } else if (dlsym(handle, "initTransferEngine") != nullptr) {
        wrong =
            "it is too old: its createTransferEngine takes other arguments (initTransferEngine "
            "stands beside it)";
    } else if (!acknowledges(handle, *library)) {
        wrong =
            "it is too old: its tcp transport tells of a WRITE's end before the bytes are there "
            "(it knows no tcp_proto_version); 0.3.13 does better";
    }
    if (!wrong.empty()) {
        dlclose(handle);
        return Status::mismatch("Mooncake's transfer engine at " + library->path +
                                " cannot be used: " + wrong + kInstall);
    }
    library->gpus = dlsym(handle, "cudaPointerGetAttributes") != nullptr;
    return library;
}

}  // namespace

Result<const MooncakeLibrary*> openMooncake() {
    static constinit ucx::OfProcess<std::map<std::string, const MooncakeLibrary*>> libraries;
    const auto held = libraries.hold();
    const std::string path = wantedPath();
    const MooncakeLibrary*& opened = held.value[path];
    if (opened == nullptr) {
        Result<std::unique_ptr<MooncakeLibrary>> found = tryOpen(path);
        if (!found.ok()) {
            return found.status();
        }
        opened = std::move(found).value().release();  // for the life of the process
    }
    return opened;
}

std::string engineError(int code) {
    // Of the engine's header of errors.
    constexpr std::array<std::pair<int, const char*>, 11> kTexts{{
        {-1, "invalid argument"},
        {-2, "too many requests"},
        {-3, "the address is not registered"},
        {-4, "the batch is busy"},
        {-6, "no such device"},
        {-7, "the memory overlaps what is registered"},
        {-101, "the name cannot be resolved"},
        {-102, "a socket failed"},
        {-104, "the peer refused the handshake"},
        {-200, "no metadata"},
        {-202, "a device's context failed"},
    }};
    for (const auto& [known, text] : kTexts) {
        if (known == code) {
            return std::to_string(code) + ", " + text;
        }
    }
    return std::to_string(code);
}

}  // namespace nixl::mooncake
