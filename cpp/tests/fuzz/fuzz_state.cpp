// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers

// States, read as STATE_RFILE of BABF on one CV and on two.

#include "fuzz_table.h"

using namespace plumed_cv;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Babf estimators[] = {test::learned(1), test::learned(2)};
    const std::string text(reinterpret_cast<const char*>(data), size);
    for (const Babf& estimator : estimators)
        fuzz::attempt([&] {
            const BabfLabels labels = test::labels(estimator.dimensions());
            const Table table = parse_table(text, "state");
            const LearnedStep last = learned_step(table, labels, estimator.parameters(), "state");
            Babf babf = restored(table, estimator.parameters(), labels, "state");
            const std::string again = format_table(state_table(babf, labels, last));
            const Table written = parse_table(again, "state");
            const Babf same = restored(written, estimator.parameters(), labels, "state");
            fuzz::require(format_table(state_table(same, labels, last)) == again,
                          "what was read is written and read as the same");
            fuzz::require_bias(babf);
        });
    return 0;
}
