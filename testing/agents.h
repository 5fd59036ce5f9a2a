// Agents over the test backends, and expectations about the errors they throw.
// Functions, any thread.
#pragma once

#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "nixl/agent.h"

namespace nixl::testkit {

// A configuration with the test backend MEMORY (or OBJECTS); makes both known to the registry.
AgentConfig memoryConfig(const BackendParams& params = {});
AgentConfig objectsConfig(const BackendParams& params = {});

// The text of the Error of `code` that `call` throws; a failed test where it throws another one
// or none.
template <typename Call>
std::string errorOf(ErrorCode code, Call&& call) {
    try {
        std::forward<Call>(call)();
    } catch (const Error& error) {
        EXPECT_EQ(errorName(error.code()), std::string(errorName(code))) << error.what();
        return error.what();
    } catch (const std::exception& error) {
        ADD_FAILURE() << "threw something else than nixl::Error: " << error.what();
        return {};
    }
    ADD_FAILURE() << "threw nothing, not " << errorName(code);
    return {};
}

}  // namespace nixl::testkit
