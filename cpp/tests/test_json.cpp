// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

#include "../core/json.h"
#include "check.h"

using namespace plumed_cv;
using Kind = Json::Kind;

namespace {

Json parsed(const std::string& text) {
    const auto value = JsonParser(text).parse();
    CHECK(value.has_value());
    return value.value_or(Json());
}

std::string text_of(const std::string& json) {
    const Json value = parsed(json);
    CHECK(value.is(Kind::text));
    return value.text;
}

} // namespace

TEST("values of each kind") {
    CHECK(parsed("18446744073709551615").whole == 18446744073709551615u);
    CHECK(parsed(" 0 ").is(Kind::whole) && parsed("0").whole == 0);
    for (const char* number : {"-1", "1.5", "1e3", "2E-7", "-0.0e+1", "18446744073709551616"})
        CHECK(parsed(number).is(Kind::other));
    for (const char* word : {"true", "false", "null"})
        CHECK(parsed(word).is(Kind::other));
    const Json value = parsed("{\"a\" : [1, \"b\", {}, []],\n\t\"\" : {\"c\":null} }\r\n");
    CHECK(value.is(Kind::object) && value.members.size() == 2 && value.find("b") == nullptr);
    const std::vector<Json>& list = value.find("a")->list;
    CHECK(list.size() == 4 && list[0].whole == 1 && list[1].text == "b");
    CHECK(list[2].is(Kind::object) && list[3].is(Kind::list));
    CHECK(value.find("")->find("c")->is(Kind::other));
}

TEST("characters") {
    CHECK(text_of("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"") == "\"\\/\b\f\n\r\t");
    CHECK(text_of("\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\"") ==
          "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    const std::string plain = "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f";
    CHECK(text_of("\"" + plain + "\"") == plain);
}

TEST("text that is not JSON") {
    for (const char* text : {"",
                             " ",
                             "{",
                             "[",
                             "\"",
                             "]",
                             "{]",
                             "[}",
                             "[1,]",
                             "[,1]",
                             "[1 2]",
                             "{\"a\"}",
                             "{\"a\":}",
                             "{\"a\":1,}",
                             "{a:1}",
                             "{\"a\":1 \"b\":2}",
                             "{\"a\":1,\"a\":1}",
                             "1 1",
                             "{}x",
                             "tru",
                             "nulll",
                             "nan",
                             "01",
                             "-",
                             "+1",
                             ".5",
                             "1.",
                             "1e",
                             "1e+",
                             "0x1",
                             "'a'",
                             "\"\\x\"",
                             "\"\\\"",
                             "\"\\u12\"",
                             "\"\\u123g\"",
                             "\"\\ud83d\"",
                             "\"\\ud83d\\u0041\"",
                             "\"\\ude00\"",
                             "\"\n\"",
                             "\"\xff\"",
                             "\"\xc3\"",
                             "\"\xc0\x80\"",
                             "\"\xe0\x80\x80\"",
                             "\"\xed\xa0\x80\"",
                             "\"\xf0\x80\x80\x80\"",
                             "\"\xf4\x90\x80\x80\"",
                             "\"\x80\"",
                             "//",
                             "\xef\xbb\xbf{}"})
        CHECK(!JsonParser(text).parse());
    CHECK(!JsonParser(std::string("\"\0\"", 3)).parse());
    CHECK(!JsonParser(std::string(1000000, '[')).parse());
    parsed(std::string(100, '[') + std::string(100, ']'));
}
