// Texts of errors, descriptors and operations; see nixl/error.h.
#include "nixl/error.h"

#include <string>

#include <strings.h>

#include "nixl/descriptor.h"
#include "nixl/transfer.h"

namespace nixl {

const char* errorName(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::OK:
            return "NIXL_SUCCESS";
        case ErrorCode::NOT_POSTED:
            return "NIXL_ERR_NOT_POSTED";
        case ErrorCode::INVALID_PARAM:
            return "NIXL_ERR_INVALID_PARAM";
        case ErrorCode::BACKEND:
            return "NIXL_ERR_BACKEND";
        case ErrorCode::NOT_FOUND:
            return "NIXL_ERR_NOT_FOUND";
        case ErrorCode::MISMATCH:
            return "NIXL_ERR_MISMATCH";
        case ErrorCode::NOT_ALLOWED:
            return "NIXL_ERR_NOT_ALLOWED";
        case ErrorCode::REPOST_ACTIVE:
            return "NIXL_ERR_REPOST_ACTIVE";
        case ErrorCode::UNKNOWN:
            return "NIXL_ERR_UNKNOWN";
        case ErrorCode::NOT_SUPPORTED:
            return "NIXL_ERR_NOT_SUPPORTED";
        case ErrorCode::REMOTE_DISCONNECT:
            return "NIXL_ERR_REMOTE_DISCONNECT";
        case ErrorCode::CANCELED:
            return "NIXL_ERR_CANCELED";
        case ErrorCode::NO_TELEMETRY:
            return "NIXL_ERR_NO_TELEMETRY";
        case ErrorCode::TIMEOUT:
            return "NIXL_ERR_TIMEOUT";
    }
    return "NIXL_ERR_UNKNOWN";
}

Error::Error(const Status& status) : Error(status, Context{}) {}

Error::Error(const Status& status, Context context)
    : std::runtime_error(std::string(errorName(status.code())) + ": " + status.message()),
      status_(status),
      context_(std::move(context)) {}

Error::~Error() = default;

const char* memTypeName(MemType type) noexcept {
    switch (type) {
        case MemType::DRAM:
            return "DRAM";
        case MemType::VRAM:
            return "VRAM";
        case MemType::BLOCK:
            return "BLOCK";
        case MemType::OBJECT:
            return "OBJ";
        case MemType::FILE:
            return "FILE";
    }
    return "?";
}

Result<MemType> parseMemType(std::string_view name) {
    struct Name {
        const char* text;
        MemType type;
    };
    static constexpr Name kNames[] = {
        {"DRAM", MemType::DRAM},      {"VRAM", MemType::VRAM},     {"BLOCK", MemType::BLOCK},
        {"OBJ", MemType::OBJECT},     {"FILE", MemType::FILE},     {"cpu", MemType::DRAM},
        {"cuda", MemType::VRAM},      {"BLK", MemType::BLOCK},     {"OBJECT", MemType::OBJECT},
        {"DRAM_SEG", MemType::DRAM},  {"VRAM_SEG", MemType::VRAM}, {"BLK_SEG", MemType::BLOCK},
        {"OBJ_SEG", MemType::OBJECT}, {"FILE_SEG", MemType::FILE}};
    const std::string wanted(name);
    for (const Name& known : kNames) {
        if (strcasecmp(known.text, wanted.c_str()) == 0) {
            return known.type;
        }
    }
    return Status::invalidParam("memory type \"" + wanted +
                                "\" is none of DRAM VRAM BLOCK OBJ FILE (cpu, cuda)");
}

const char* opName(OpType op) noexcept {
    return op == OpType::READ ? "READ" : "WRITE";
}

}  // namespace nixl
