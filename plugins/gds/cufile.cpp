// Finding the library, and what its error codes mean; see cufile.h.
#include "cufile.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

#include <dlfcn.h>
#include <sys/stat.h>

#include "cufile_search.h"

namespace nixl::gds {

namespace {

constexpr char kSoname[] = "libcufile.so.0";

struct CodeText {
    int code;
    const char* text;
};

constexpr CodeText kCodeTexts[] = {
    {5001, "no nvidia-fs driver, and allow_compat_mode is off in cufile.json"},
    {5002, "a property is invalid"},
    {5003, "a property is out of range"},
    {5004, "the nvidia-fs driver has another version"},
    {5005, "the version of the nvidia-fs driver cannot be read"},
    {5006, "the driver is shutting down"},
    {5007, "this platform is not supported"},
    {5008, "this file is not supported"},
    {5009, "this GPU is not supported"},
    {5010, "the nvidia-fs driver failed"},
    {5011, "the CUDA driver failed"},
    {5012, "the pointer is no memory of a GPU"},
    {5013, "the memory is of a wrong type"},
    {5014, "the range goes beyond its allocation"},
    {5015, "the CUDA context is not the memory's"},
    {5016, "more than can be pinned"},
    {5017, "beyond what is mapped"},
    {5018, "this type of file is not supported"},
    {5019, "the file is not open for it"},
    {5020, "the file is not opened with O_DIRECT"},
    {5022, "an argument is invalid"},
    {5023, "the memory is registered already"},
    {5024, "the memory is not registered"},
    {5025, "permission denied"},
    {5026, "the driver is open already"},
    {5027, "the file is not known to it"},
    {5028, "the descriptor is registered already"},
    {5029, "no such GPU"},
    {5030, "internal error"},
    {5031, "no further descriptor"},
    {5033, "setting up the nvidia-fs driver failed"},
    {5034, "disabled for this file in cufile.json"},
    {5035, "the batch could not be submitted"},
    {5036, "memory of the GPU cannot be pinned"},
    {5037, "the batch is full"},
    {5038, "streams are not supported"},
    {5039, "no batch can be set up for now"},
    {5040, "the batch was refused"},
    {5041, "the batch's status cannot be read for now"},
    {5043, "out of memory"},
    {5044, "input/output error"},
    {5045, "registering the memory failed"},
    {5046, "internal error of a table"},
    {5047, "invalid context"},
    {5048, "internal error of the nvidia-fs driver"},
    {5049, "the batch cannot do without compat mode"},
};

std::string codeText(int code) {
    for (const CodeText& one : kCodeTexts) {
        if (one.code == code) {
            return std::to_string(code) + ", " + one.text;
        }
    }
    return "code " + std::to_string(code);
}

void* openFile(const std::string& path, std::string& tried) {
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const why = dlerror();
        tried += std::string(tried.empty() ? "" : "; ") + (why != nullptr ? why : path);
    }
    return handle;
}

void* openFolders(const std::vector<std::string>& folders, std::string& tried) {
    for (const std::string& folder : folders) {
        const std::string path = folder + "/" + kSoname;
        struct stat info {};
        if (stat(path.c_str(), &info) != 0) {
            tried += std::string(tried.empty() ? "" : "; ") + path + ": not there";
        } else if (void* const handle = openFile(path, tried); handle != nullptr) {
            return handle;
        }
    }
    return nullptr;
}

// Where the CUDA toolkit puts its libraries.
std::vector<std::string> toolkitFolders() {
    std::vector<std::string> folders;
    for (const char* name : {"CUDA_HOME", "CUDA_PATH"}) {
        if (const char* const root = std::getenv(name); root != nullptr && *root != '\0') {
            folders.push_back(std::string(root) + "/lib64");
        }
    }
    folders.emplace_back("/usr/local/cuda/lib64");
    return folders;
}

// `name` is a file or a folder; nothing else is tried.
void* openNamed(const std::string& name, std::string& tried) {
    struct stat info {};
    const bool folder = stat(name.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
    void* const handle = openFile(folder ? name + "/" + kSoname : name, tried);
    if (handle == nullptr) {
        tried = "NIXL_CUFILE_LIBRARY=" + name + ": " + tried;
    }
    return handle;
}

void* openAnywhere(std::string& tried) {
    if (const char* wanted = std::getenv("NIXL_CUFILE_LIBRARY");
        wanted != nullptr && *wanted != '\0') {
        return openNamed(wanted, tried);
    }
    // What the process has loaded already (a framework) is used: there is one driver in it.
    if (void* const loaded = dlopen(kSoname, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD)) {
        return loaded;
    }
    if (void* const handle = openFolders(cuFilePackageFolders(), tried)) {
        return handle;
    }
    if (void* const handle = openFolders(toolkitFolders(), tried)) {
        return handle;
    }
    return openFile(kSoname, tried);
}

template <typename Function>
void load(void* handle, const char* name, Function& function, std::string& missing) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (function == nullptr) {
        missing += std::string(missing.empty() ? "" : " ") + name;
    }
}

std::string loadAll(void* handle, CuFile& cufile) {
    std::string missing;
    load(handle, "cuFileDriverOpen", cufile.driverOpen, missing);
    load(handle, "cuFileDriverGetProperties", cufile.driverGetProperties, missing);
    load(handle, "cuFileHandleRegister", cufile.handleRegister, missing);
    load(handle, "cuFileHandleDeregister", cufile.handleDeregister, missing);
    load(handle, "cuFileBufRegister", cufile.bufRegister, missing);
    load(handle, "cuFileBufDeregister", cufile.bufDeregister, missing);
    load(handle, "cuFileRead", cufile.read, missing);
    load(handle, "cuFileWrite", cufile.write, missing);
    load(handle, "cuFileBatchIOSetUp", cufile.batchSetUp, missing);
    load(handle, "cuFileBatchIOSubmit", cufile.batchSubmit, missing);
    load(handle, "cuFileBatchIOGetStatus", cufile.batchGetStatus, missing);
    load(handle, "cuFileBatchIODestroy", cufile.batchDestroy, missing);
    return missing;
}

std::string versionOf(void* handle) {
    std::string missing;
    CuFileError (*ask)(int*) = nullptr;
    load(handle, "cuFileGetVersion", ask, missing);
    int version = 0;
    if (ask == nullptr || ask(&version).code != 0) {
        return "unknown";
    }
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) + "." +
           std::to_string(version % 10);
}

}  // namespace

std::vector<std::string> cuFilePackageFolders() {
    std::vector<std::string> folders;
    Dl_info self{};
    if (dladdr(reinterpret_cast<void*>(&openCuFile), &self) == 0 || self.dli_fname == nullptr) {
        return folders;
    }
    std::string path = self.dli_fname;
    for (size_t cut = path.rfind('/'); cut != std::string::npos && cut > 0; cut = path.rfind('/')) {
        path.resize(cut);
        for (const char* below : {"/nvidia/cu13/lib", "/nvidia/cufile/lib"}) {
            struct stat info {};
            const std::string candidate = path + below;
            if (stat((candidate + "/" + kSoname).c_str(), &info) == 0) {
                folders.push_back(candidate);
            }
        }
    }
    return folders;
}

Result<std::unique_ptr<CuFile>> findCuFile() {
    std::string tried;
    void* const handle = openAnywhere(tried);
    if (handle == nullptr) {
        return Status::notFound("the library libcufile.so.0 cannot be opened (" + tried +
                                "); install nvidia-cufile (pip) or the CUDA toolkit's libcufile, "
                                "or name it in NIXL_CUFILE_LIBRARY");
    }
    auto cufile = std::make_unique<CuFile>();
    const std::string missing = loadAll(handle, *cufile);
    Dl_info where{};
    if (cufile->read != nullptr && dladdr(reinterpret_cast<void*>(cufile->read), &where) != 0) {
        cufile->path = where.dli_fname;
    }
    if (!missing.empty()) {
        return Status::notFound("the library " + (cufile->path.empty() ? kSoname : cufile->path) +
                                " is no cuFile, or too old: it has no " + missing);
    }
    cufile->version = versionOf(handle);
    return cufile;
}

std::string cuFileText(const CuFileError& error) {
    return codeText(error.code) +
           (error.cuda != 0 ? " (CUDA error " + std::to_string(error.cuda) + ")" : "");
}

std::string cuFileText(ssize_t result, int system_errno) {
    if (result < -1) {
        return codeText(static_cast<int>(-result));
    }
    char buffer[128];
    const char* const text = strerror_r(system_errno, buffer, sizeof(buffer));
    return std::string(text) + " (errno " + std::to_string(system_errno) + ", as cuFile left it)";
}

}  // namespace nixl::gds
