// A plugin for the loader's tests, built several times with something wrong each (TEST_…).
#include "nixl/plugin.h"

namespace {

using nixl::Backend;
using nixl::MemType;
using nixl::Result;
using nixl::Status;

const MemType kTypes[] = {MemType::DRAM};
const char* const kAliases[] = {"TESTALIAS", "4EVER", nullptr};

Result<std::unique_ptr<Backend>> create(const nixl::Parameters&, nixl::PluginServices&) {
    return Status::notSupported("the loader's test plugin moves nothing");
}

#ifdef TEST_MISSING_LIBRARY
extern "C" int nixlTestMissingFunction();
const int kUsed = nixlTestMissingFunction();
#endif

constexpr nixl::PluginTable makeTable() {
    nixl::PluginTable table{};
    table.abi = nixl::kPluginAbi;
    table.kind = nixl::PluginKind::BACKEND;
    table.name = "GOOD";
    table.aliases = kAliases;
    table.version = "1";
    table.help = "for tests";
    table.memoryTypes = kTypes;
    table.memoryTypeCount = 1;
    table.createBackend = create;
#ifdef TEST_BAD_ABI
    table.abi = nixl::kPluginAbi + 1000;
#endif
    return table;
}

const nixl::PluginTable kTable = makeTable();

}  // namespace

#ifdef TEST_NO_SYMBOL
extern "C" NIXL_API const nixl::PluginTable* nixlOtherTable() {
    return &kTable;
}
#elif defined(TEST_NULL)
extern "C" NIXL_API const nixl::PluginTable* nixlPluginTable() {
    return kTable.abi == 0 ? &kTable : nullptr;
}
#else
NIXL_EXPORT_PLUGIN(kTable)
#endif
