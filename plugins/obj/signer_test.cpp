// Signing against the examples that AWS publishes: four for S3, and the general test suite's.
#include "signer.h"

#include <gtest/gtest.h>

#include "crypto.h"

namespace nixl::obj {
namespace {

constexpr const char* kEmpty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

// "Examples: signature calculations" of S3's API reference.
class S3Examples : public ::testing::Test {
  protected:
    std::string signatureOf(SignRequest request) {
        request.time = "20130524T000000Z";
        request.region = "us-east-1";
        request.headers.emplace_back("host", "examplebucket.s3.amazonaws.com");
        request.headers.emplace_back("x-amz-date", request.time);
        request.headers.emplace_back("x-amz-content-sha256", request.payloadHash);
        return sign(request, "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
            .signature;
    }
};

TEST_F(S3Examples, GetObjectWithRange) {
    EXPECT_EQ(signatureOf({.method = "GET",
                           .path = "/test.txt",
                           .headers = {{"range", "bytes=0-9"}},
                           .payloadHash = kEmpty}),
              "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

TEST_F(S3Examples, PutObject) {
    EXPECT_EQ(signatureOf({.method = "PUT",
                           .path = "/" + uriEncode("test$file.text", true),
                           .headers = {{"date", "Fri, 24 May 2013 00:00:00 GMT"},
                                       {"x-amz-storage-class", "REDUCED_REDUNDANCY"}},
                           .payloadHash = hex(sha256("Welcome to Amazon S3."))}),
              "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
}

TEST_F(S3Examples, GetBucketLifecycle) {
    EXPECT_EQ(
        signatureOf(
            {.method = "GET", .path = "/", .query = {{"lifecycle", ""}}, .payloadHash = kEmpty}),
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
}

TEST_F(S3Examples, ListObjects) {
    EXPECT_EQ(signatureOf({.method = "GET",
                           .path = "/",
                           .query = {{"prefix", "J"}, {"max-keys", "2"}},
                           .payloadHash = kEmpty}),
              "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

// "aws-sig-v4-test-suite".
std::string suite(SignRequest request) {
    request.time = "20150830T123600Z";
    request.region = "us-east-1";
    request.service = "service";
    request.path = "/";
    request.payloadHash = kEmpty;
    request.headers.emplace_back("host", "example.amazonaws.com");
    request.headers.emplace_back("x-amz-date", request.time);
    return sign(request, "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY").signature;
}

TEST(SignSuite, GetVanilla) {
    EXPECT_EQ(suite({.method = "GET"}),
              "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
}

TEST(SignSuite, GetVanillaQueryOrderKeyCase) {
    EXPECT_EQ(suite({.method = "GET", .query = {{"Param2", "value2"}, {"Param1", "value1"}}}),
              "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500");
}

TEST(SignSuite, GetHeaderValueTrim) {
    EXPECT_EQ(suite({.method = "GET",
                     .headers = {{"my-header1", " value1"}, {"my-header2", " \"a   b   c\""}}}),
              "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736");
}

TEST(SignSuite, PostVanilla) {
    EXPECT_EQ(suite({.method = "POST"}),
              "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b");
}

TEST(Signer, TimeAndEncoding) {
    EXPECT_EQ(signingTime(1369353600), "20130524T000000Z");
    EXPECT_EQ(uriEncode("a/b c~_-.+\xc3\xa4", true), "a/b%20c~_-.%2B%C3%A4");
    EXPECT_EQ(uriEncode("a/b", false), "a%2Fb");
    EXPECT_EQ(base64("any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw==");
    EXPECT_EQ(base64(0xe3069283U), "4waSgw==");
}

}  // namespace
}  // namespace nixl::obj
