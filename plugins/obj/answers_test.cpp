// What stores answer: XML, heads, ranges, keys from an endpoint; bounded, and nothing believed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "credentials.h"
#include "http.h"
#include "xml.h"

namespace nixl::obj {
namespace {

using ::testing::HasSubstr;

TEST(Xml, Errors) {
    const auto error = parseError(
        "<?xml version=\"1.0\"?>\n<Error><Code>NoSuchKey</Code><Message>it&#39;s not "
        "here</Message><RequestId>7</RequestId></Error>");
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code, "NoSuchKey");
    EXPECT_EQ(error->message, "it's not here");
    EXPECT_EQ(error->requestId, "7");
    EXPECT_TRUE(parseError("<ErrorResponse><Error><Code>X</Code></Error></ErrorResponse>"));
    EXPECT_FALSE(parseError("<html><body>502</body></html>"));
    EXPECT_FALSE(parseError("<Error><Code>"));
    EXPECT_FALSE(parseError(""));
}

TEST(Xml, Listing) {
    const auto page = parseListing("<s3:ListBucketResult xmlns:s3=\"u\"></s3:ListBucketResult>");
    ASSERT_TRUE(page);
    EXPECT_TRUE(page->objects.empty());
    const auto two = parseListing(
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1"
        "</NextContinuationToken><Contents><Key>a&lt;b</Key><Size>5</Size><ETag>&#34;e1&#34;"
        "</ETag><LastModified>2009-10-12T17:50:30.000Z</LastModified></Contents></"
        "ListBucketResult>");
    ASSERT_TRUE(two);
    ASSERT_EQ(two->objects.size(), 1U);
    EXPECT_EQ(two->objects[0].key, "a<b");
    EXPECT_EQ(two->objects[0].size, 5U);
    EXPECT_EQ(two->objects[0].etag, "e1");
    EXPECT_EQ(two->objects[0].mtime, 1255369830);
    EXPECT_TRUE(two->truncated);
    EXPECT_EQ(two->nextToken, "t&1");
    // What cannot be right is no listing.
    EXPECT_FALSE(
        parseListing("<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents>"
                     "</ListBucketResult>"));
    EXPECT_FALSE(
        parseListing("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"));
    EXPECT_FALSE(parseListing(std::string(kMaxXml + 1, ' ')));
}

TEST(Xml, EntitiesDoNotGrow) {
    const std::string bomb =
        "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]>"
        "<Error><Code>&b;</Code></Error>";
    const auto error = parseError(bomb);
    EXPECT_TRUE(!error || error->code == "&b;");
}

TEST(Xml, Uploads) {
    EXPECT_EQ(parseUploadId("<InitiateMultipartUploadResult><UploadId>u-1</UploadId>"
                            "</InitiateMultipartUploadResult>"),
              "u-1");
    EXPECT_FALSE(parseUploadId("<InitiateMultipartUploadResult/>"));
    EXPECT_EQ(parseCompleted("<CompleteMultipartUploadResult><ETag>\"x-2\"</ETag>"
                             "</CompleteMultipartUploadResult>"),
              "x-2");
    EXPECT_FALSE(parseCompleted("<Error><Code>InternalError</Code></Error>"));
    const auto left = parseDeleted(
        "<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code></Error></DeleteResult>");
    ASSERT_TRUE(left);
    ASSERT_EQ(left->size(), 1U);
    EXPECT_EQ(left->front().key, "k");
}

TEST(Xml, Escapes) {
    EXPECT_EQ(xmlEscape("a<b>&\"\r\n\t\x01z"), "a&lt;b&gt;&amp;&quot;&#13;&#10;&#9;z");
}

TEST(Head, LinesAreBounded) {
    HttpAnswer answer;
    size_t bytes = 0;
    EXPECT_TRUE(readHeaderLine("HTTP/1.1 100 Continue\r\n", answer, bytes));
    EXPECT_TRUE(readHeaderLine("HTTP/1.1 206 Partial\r\n", answer, bytes));
    EXPECT_TRUE(readHeaderLine("ETag:  \"e\" \r\n", answer, bytes));
    EXPECT_TRUE(readHeaderLine("no colon\r\n", answer, bytes));
    EXPECT_TRUE(readHeaderLine(": no name\r\n", answer, bytes));
    EXPECT_EQ(answer.status, 206);
    EXPECT_EQ(answer.header("etag"), "\"e\"");
    EXPECT_EQ(answer.headers.size(), 1U);
    EXPECT_FALSE(readHeaderLine(std::string(kMaxHeaderBytes, 'x'), answer, bytes));
}

TEST(Head, ContentRange) {
    uint64_t first = 0;
    uint64_t last = 0;
    uint64_t total = 0;
    ASSERT_TRUE(parseContentRange("bytes 5-9/10", first, last, total));
    EXPECT_EQ(first, 5U);
    EXPECT_EQ(last, 9U);
    EXPECT_EQ(total, 10U);
    EXPECT_TRUE(parseContentRange("bytes 0-0/*", first, last, total));
    EXPECT_EQ(total, UINT64_MAX);
    for (const char* bad :
         {"", "bytes", "bytes 9-5/10", "bytes 5-9/9", "bytes -9/10", "bytes 5-/10", "items 5-9/10",
          "bytes 5-9", "bytes 5/9-1", "bytes */10", "bytes 0-99999999999999999999/1"}) {
        EXPECT_FALSE(parseContentRange(bad, first, last, total)) << bad;
    }
}

TEST(Keys, FromAnEndpoint) {
    auto keys = parseCredentials(R"({"AccessKeyId":"A","SecretAccessKey":"S","Token":"T",)"
                                 R"("Expiration":"2030-01-01T00:00:00Z"})",
                                 "here");
    ASSERT_TRUE(keys.ok()) << keys.status().message();
    EXPECT_EQ(keys.value()->accessKey, "A");
    EXPECT_EQ(keys.value()->secretKey->view(), "S");
    EXPECT_EQ(keys.value()->sessionToken->view(), "T");
    EXPECT_EQ(keys.value()->expires, 1893456000);
    for (const char* bad : {"", "[]", "{}", "{\"AccessKeyId\":1,\"SecretAccessKey\":\"S\"}",
                            R"({"AccessKeyId":"A","SecretAccessKey":"S","Expiration":"soon"})"}) {
        const auto wrong = parseCredentials(bad, "here");
        ASSERT_FALSE(wrong.ok()) << bad;
        EXPECT_THAT(wrong.status().message(), HasSubstr("here"));
    }
}

}  // namespace
}  // namespace nixl::obj
