// The smallest plugin: a table and a backend that refuses to be made, with a reason.
#include <nixl/plugin.h>

namespace {

const nixl::MemType kTypes[] = {nixl::MemType::DRAM};

nixl::Result<std::unique_ptr<nixl::Backend>> create(const nixl::Parameters&,
                                                    nixl::PluginServices&) {
    return nixl::Status::notSupported("OUTSIDE only shows that it can be found");
}

constexpr nixl::PluginTable makeTable() {
    nixl::PluginTable table{};
    table.abi = nixl::kPluginAbi;
    table.kind = nixl::PluginKind::BACKEND;
    table.name = "OUTSIDE";
    table.version = "1";
    table.help = "a plugin built outside the tree";
    table.memoryTypes = kTypes;
    table.memoryTypeCount = 1;
    table.createBackend = create;
    return table;
}

constexpr nixl::PluginTable kTable = makeTable();

}  // namespace

NIXL_EXPORT_PLUGIN(kTable)
