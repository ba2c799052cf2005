// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// A test program is one source file that includes this one: TEST("what holds") { CHECK(...); }

#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace plumed_cv {
namespace test {

struct Test {
    const char* name;
    void (*body)();
};

inline std::vector<Test>& all() {
    static std::vector<Test> tests;
    return tests;
}

inline int& failures() {
    static int count = 0;
    return count;
}

struct Register {
    Register(const char* name, void (*body)()) { all().push_back({name, body}); }
};

inline void check(bool passed, const char* file, int line, const std::string& what) {
    if (passed)
        return;
    ++failures();
    std::printf("%s:%d: %s\n", file, line, what.c_str());
}

/// Whether a function throws a sentence that contains `text`; prints any other exception.
template <class Function>
std::pair<bool, std::string> throws(Function&& function, const std::string& text) {
    try {
        function();
    } catch (const std::exception& error) {
        const std::string what = error.what();
        return {what.find(text) != std::string::npos && what.back() == '.', what};
    }
    return {false, "nothing"};
}

} // namespace test
} // namespace plumed_cv

#define TEST_JOIN_(a, b) a##b
#define TEST_JOIN(a, b) TEST_JOIN_(a, b)
#define TEST(name)                                                                                 \
    static void TEST_JOIN(test_, __LINE__)();                                                      \
    static const plumed_cv::test::Register TEST_JOIN(register_,                                    \
                                                     __LINE__)(name, TEST_JOIN(test_, __LINE__));  \
    static void TEST_JOIN(test_, __LINE__)()

#define CHECK(condition) plumed_cv::test::check(condition, __FILE__, __LINE__, #condition)
#define CHECK_CLOSE(a, b, tolerance)                                                               \
    do {                                                                                           \
        const double a_ = (a), b_ = (b);                                                           \
        plumed_cv::test::check(std::abs(a_ - b_) <= (tolerance), __FILE__, __LINE__,               \
                               #a " is " + std::to_string(a_) + " and not " + std::to_string(b_)); \
    } while (false)
#define CHECK_THROWS(expression, text)                                                             \
    do {                                                                                           \
        const auto thrown_ = plumed_cv::test::throws([&] { expression; }, text);                   \
        plumed_cv::test::check(thrown_.first, __FILE__, __LINE__,                                  \
                               #expression " throws: " + thrown_.second);                          \
    } while (false)

int main() {
    for (const auto& test : plumed_cv::test::all()) {
        std::printf("%s\n", test.name);
        try {
            test.body();
        } catch (const std::exception& error) {
            plumed_cv::test::check(false, test.name, 0, error.what());
        }
    }
    std::printf("%d failures\n", plumed_cv::test::failures());
    return plumed_cv::test::failures() != 0;
}
