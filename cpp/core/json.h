// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace plumed_cv {

/// A value of JSON (RFC 8259). Headers of model files contain text, whole numbers, lists and
/// objects; the contents of any other value are not kept.
struct Json {
    enum class Kind { other, text, whole, list, object };

    Kind kind = Kind::other;
    std::string text;
    std::uint64_t whole = 0;
    std::vector<Json> list;
    std::map<std::string, Json> members;

    bool is(Kind wanted) const { return kind == wanted; }
    /// The member of an object with this name, or nullptr.
    const Json* find(const std::string& name) const {
        const auto found = members.find(name);
        return found == members.end() ? nullptr : &found->second;
    }
};

/// Reads one value that takes up a whole text.
class JsonParser {
  public:
    explicit JsonParser(std::string_view text) : next_(text.data()), end_(next_ + text.size()) {}

    /// The value; nothing if the text is not JSON, has an object with two members of one name, or
    /// is nested too deeply.
    std::optional<Json> parse() {
        Json value;
        if (!read(value, 0))
            return std::nullopt;
        skip_blanks();
        if (next_ != end_)
            return std::nullopt;
        return value;
    }

  private:
    static constexpr int deepest = 100;

    bool read(Json& value, int depth) {
        skip_blanks();
        if (next_ == end_ || depth > deepest)
            return false;
        switch (*next_) {
        case '{':
            return read_object(value, depth);
        case '[':
            return read_list(value, depth);
        case '"':
            value.kind = Json::Kind::text;
            return read_text(value.text);
        case 't':
            return take("true");
        case 'f':
            return take("false");
        case 'n':
            return take("null");
        default:
            return read_number(value);
        }
    }

    bool read_object(Json& value, int depth) {
        value.kind = Json::Kind::object;
        ++next_;
        skip_blanks();
        if (take("}"))
            return true;
        do {
            skip_blanks();
            std::string name;
            if (!read_text(name))
                return false;
            skip_blanks();
            Json member;
            if (!take(":") || !read(member, depth + 1) ||
                !value.members.emplace(std::move(name), std::move(member)).second)
                return false;
            skip_blanks();
        } while (take(","));
        return take("}");
    }

    bool read_list(Json& value, int depth) {
        value.kind = Json::Kind::list;
        ++next_;
        skip_blanks();
        if (take("]"))
            return true;
        do {
            Json element;
            if (!read(element, depth + 1))
                return false;
            value.list.push_back(std::move(element));
            skip_blanks();
        } while (take(","));
        return take("]");
    }

    bool read_number(Json& value) {
        const bool negative = take("-");
        bool whole = !negative;
        if (!take("0")) {
            if (!is_digit())
                return false;
            for (; is_digit(); ++next_) {
                const auto digit = static_cast<std::uint64_t>(*next_ - '0');
                whole = whole && value.whole <= (most - digit) / 10;
                value.whole = whole ? 10 * value.whole + digit : 0;
            }
        }
        if (take(".")) {
            whole = false;
            if (!skip_digits())
                return false;
        }
        if (take("e") || take("E")) {
            whole = false;
            if (!take("+"))
                take("-");
            if (!skip_digits())
                return false;
        }
        if (whole)
            value.kind = Json::Kind::whole;
        return true;
    }

    bool read_text(std::string& text) {
        if (!take("\""))
            return false;
        while (next_ != end_ && *next_ != '"') {
            const auto byte = static_cast<unsigned char>(*next_);
            if (byte < ' ')
                return false;
            if (byte == '\\' ? !read_escape(text) : !read_character(text))
                return false;
        }
        return take("\"");
    }

    bool read_escape(std::string& text) {
        static constexpr char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
        ++next_;
        if (next_ == end_)
            return false;
        const char name = *next_++;
        if (name != 'u') {
            const char* const found = std::strchr(names, name);
            if (found == nullptr || name == '\0')
                return false;
            text += meanings[found - names];
            return true;
        }
        std::uint32_t code, low;
        if (!read_code(code))
            return false;
        if (code >= 0xd800 && code < 0xdc00) { // the first half of a pair
            if (!take("\\u") || !read_code(low) || low < 0xdc00 || low > 0xdfff)
                return false;
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if (code >= 0xdc00 && code < 0xe000) {
            return false;
        }
        append(text, code);
        return true;
    }

    bool read_code(std::uint32_t& code) {
        code = 0;
        for (int i = 0; i < 4; ++i, ++next_) {
            if (next_ == end_)
                return false;
            const char c = *next_;
            if (c >= '0' && c <= '9')
                code = code << 4 | static_cast<std::uint32_t>(c - '0');
            else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
                code = code << 4 | static_cast<std::uint32_t>((c | ' ') - 'a' + 10);
            else
                return false;
        }
        return true;
    }

    static void append(std::string& text, std::uint32_t code) {
        const auto byte = [&text](std::uint32_t bits) { text += static_cast<char>(bits); };
        const auto rest = [&](int shift) { byte(0x80 | (code >> shift & 0x3f)); };
        if (code < 0x80) {
            byte(code);
        } else if (code < 0x800) {
            byte(0xc0 | code >> 6);
            rest(0);
        } else if (code < 0x10000) {
            byte(0xe0 | code >> 12);
            rest(6);
            rest(0);
        } else {
            byte(0xf0 | code >> 18);
            rest(12);
            rest(6);
            rest(0);
        }
    }

    /// One character in UTF-8, which is in its shortest form and is no half of a pair.
    bool read_character(std::string& text) {
        const auto first = static_cast<unsigned char>(*next_);
        const int more = first < 0x80 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
        if ((first >= 0x80 && first < 0xc2) || first > 0xf4 || end_ - next_ <= more)
            return false;
        std::uint32_t code = more == 0 ? first : first & (0x3fu >> more);
        for (int i = 1; i <= more; ++i) {
            const auto byte = static_cast<unsigned char>(next_[i]);
            if ((byte & 0xc0) != 0x80)
                return false;
            code = code << 6 | (byte & 0x3f);
        }
        const bool half = code >= 0xd800 && code < 0xe000;
        if (half || (more == 2 && code < 0x800) || (more == 3 && code < 0x10000) || code > 0x10ffff)
            return false;
        text.append(next_, static_cast<std::size_t>(more) + 1);
        next_ += more + 1;
        return true;
    }

    bool take(std::string_view word) {
        if (static_cast<std::size_t>(end_ - next_) < word.size() ||
            std::string_view(next_, word.size()) != word)
            return false;
        next_ += word.size();
        return true;
    }

    void skip_blanks() {
        while (next_ != end_ &&
               (*next_ == ' ' || *next_ == '\t' || *next_ == '\n' || *next_ == '\r'))
            ++next_;
    }

    bool is_digit() const { return next_ != end_ && *next_ >= '0' && *next_ <= '9'; }

    bool skip_digits() {
        const char* const begin = next_;
        while (is_digit())
            ++next_;
        return next_ != begin;
    }

    static constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    const char* next_;
    const char* end_;
};

} // namespace plumed_cv
