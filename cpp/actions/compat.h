// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// What PLUMED 2.9, 2.10 and 2.11 call differently.

#include "core/Action.h"
#include "core/PlumedMain.h"
#include "core/Value.h"
#include "tools/Keywords.h"
#include "tools/Units.h"

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if __has_include("core/Atoms.h") // left in 2.10, with the object that held units and kT
#include "core/Atoms.h"
#define PLUMED_CV_BEFORE_2_10 1
#else
#include "core/ActionForInterface.h"
#include "core/ActionSet.h"
#define PLUMED_CV_BEFORE_2_10 0
#endif

namespace plumed_cv {
namespace compat {

// The actions give PLUMED pointers and formats for these types.
static_assert(std::is_same_v<decltype(std::declval<PLMD::Value&>().get()), double>);
static_assert(std::is_same_v<decltype(std::declval<PLMD::Action&>().getStep()), long long>);

// Components and arguments have types from 2.11 on. Of each pair below the second is the worse match
// for an int, so it is taken only where the first does not compile.
template <class K>
auto add_component(K& keys, const std::string& name, const std::string& description, int)
    -> decltype(keys.addOutputComponent(name, "default", "scalar", description)) {
    keys.addOutputComponent(name, "default", "scalar", description);
}
template <class K>
void add_component(K& keys, const std::string& name, const std::string& description, long) {
    keys.addOutputComponent(name, "default", description);
}

/// Documents a scalar component of an action.
inline void add_component(PLMD::Keywords& keys, const std::string& name,
                          const std::string& description) {
    add_component(keys, name, description, 0);
}

/// Gives an action the keyword ARG where its base class only reserves it, up to 2.10.
inline void use_arg(PLMD::Keywords& keys) {
    if (keys.reserved("ARG"))
        keys.use("ARG");
}

template <class K>
auto add_scalar_input(K& keys, const std::string& key, const std::string& description, int)
    -> decltype(keys.addInputKeyword("optional", key, "scalar", description)) {
    keys.addInputKeyword("optional", key, "scalar", description);
}
template <class K>
void add_scalar_input(K& keys, const std::string& key, const std::string& description, long) {
    keys.add("optional", key, description);
}

/// Gives an action an optional keyword that names scalars.
inline void add_scalar_input(PLMD::Keywords& keys, const std::string& key,
                             const std::string& description) {
    add_scalar_input(keys, key, description, 0);
}

template <class K>
auto add_doi(K& keys, const std::string& doi, int) -> decltype(keys.addDOI(doi)) {
    keys.addDOI(doi);
}
template <class K>
void add_doi(K&, const std::string&, long) {}

/// Names an article on the method in the manual, from 2.11 on.
inline void add_doi(PLMD::Keywords& keys, const std::string& doi) {
    add_doi(keys, doi, 0);
}

/// The number of dimensions of a value: 0 for a single number, up to 2.9 of every value.
inline unsigned rank(const PLMD::Value& value) {
#if PLUMED_CV_BEFORE_2_10
    static_cast<void>(value);
    return 0;
#else
    return value.getRank();
#endif
}

/// Whether another action has put a force on a value in this step, be it zero.
inline bool is_forced(const PLMD::Value& value, std::vector<double>& derivatives) {
#if PLUMED_CV_BEFORE_2_10
    return value.applyForce(derivatives);
#else
    static_cast<void>(derivatives);
    return value.forcesWereAdded();
#endif
}

/// Gives an action the names of the functions below whatever the version: `Compat<Colvar>` or
/// `Compat<bias::Bias>` instead of the base class itself.
template <class Base>
class Compat : public Base {
  public:
    explicit Compat(const PLMD::ActionOptions& options) : PLMD::Action(options), Base(options) {}

    /// Without PLUMED's threads: starting them takes longer than clearing a few components.
#if PLUMED_CV_BEFORE_2_10
    void clearDerivatives() override {
#else
    void clearDerivatives(const bool& = false) override {
#endif
        const int components = static_cast<int>(this->getNumberOfComponents());
        for (int i = 0; i < components; ++i)
            this->getPntrToComponent(i)->clearDerivatives();
    }

  protected:
    /// kT that the engine passes, in PLUMED's energy unit; 0 if it passes none.
    double engine_kT() {
#if PLUMED_CV_BEFORE_2_10
        return this->plumed.getAtoms().getKbT();
#else
        const auto* passed =
            this->plumed.getActionSet().template selectWithLabel<PLMD::ActionForInterface*>("kBT");
        return passed != nullptr ? passed->copyOutput(0)->get() : 0;
#endif
    }

#if PLUMED_CV_BEFORE_2_10
    const PLMD::Units& getUnits() {
        return this->plumed.getAtoms().getUnits();
    }
    bool usingNaturalUnits() {
        return this->plumed.getAtoms().usingNaturalUnits();
    }

    /// kT in PLUMED's energy unit: of TEMP if given, else of the engine; 0 if neither is known.
    double getkBT() {
        double temperature = -1;
        this->parse("TEMP", temperature);
        return temperature >= 0 ? temperature * this->plumed.getAtoms().getKBoltzmann()
                                : this->plumed.getAtoms().getKbT();
    }
#endif
};

} // namespace compat
} // namespace plumed_cv
