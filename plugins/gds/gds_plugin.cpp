// Plugin GDS: its table. Threads: none.
#include "gds_tables.h"

NIXL_EXPORT_PLUGIN(nixl::gds::kGdsTable)
