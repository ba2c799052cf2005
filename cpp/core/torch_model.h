// SPDX-License-Identifier: LGPL-3.0-or-later
// Copyright (c) 2026 The plumed_cv developers
#pragma once

// A TorchScript model evaluated inside a process that belongs to somebody else: an engine with
// threads of its own, perhaps started from Python, perhaps with Python's torch imported.

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/cuda.h>
#include <torch/script.h>
#include <torch/version.h>

#include <dlfcn.h>
#ifdef __linux__
#include <link.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace plumed_cv {

namespace torch_detail {

/// Lets go of Python's interpreter lock while it lives, if the calling thread holds it.
///
/// Once a process has imported Python's torch, autograd refuses to run for a thread with the lock,
/// and on a GPU its own threads would wait for it forever. PLUMED's Python bindings hold it during
/// a step. Python is found at run time, for most engines have none.
class WithoutInterpreterLock {
  public:
    WithoutInterpreterLock() {
        static int (*initialized)() = nullptr;
        static int (*held)() = nullptr;
        static void* (*save)() = nullptr;
        // Repeated until it succeeds: an engine may load Python after its first steps.
        if (!restore()) {
            initialized = find<int (*)()>("Py_IsInitialized");
            held = find<int (*)()>("PyGILState_Check");
            save = find<void* (*)()>("PyEval_SaveThread");
            if (initialized && held && save)
                restore() = find<void (*)(void*)>("PyEval_RestoreThread");
        }
        if (restore() && initialized() && held())
            state_ = save();
    }
    ~WithoutInterpreterLock() {
        if (state_)
            restore()(state_);
    }
    WithoutInterpreterLock(const WithoutInterpreterLock&) = delete;
    WithoutInterpreterLock& operator=(const WithoutInterpreterLock&) = delete;

  private:
    template <class Function>
    static Function find(const char* name) {
        return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    }
    static void (*&restore())(void*) {
        static void (*function)(void*) = nullptr;
        return function;
    }

    void* state_ = nullptr;
};

/// Path of the libtorch that this process has loaded.
inline std::string library_path() {
    Dl_info info;
    const auto* address = reinterpret_cast<const void*>(&at::set_num_threads);
    return dladdr(address, &info) && info.dli_fname ? info.dli_fname : "";
}

/// Gives torch as many threads as asked for while it lives, and the engine its own number back.
///
/// torch's number is that of an OpenMP runtime for the calling thread, and the engine's loops may
/// run by the same one. Which one torch uses, of several in a process, depends on who loaded it;
/// so the numbers of all are kept.
class Threads {
  public:
    explicit Threads(int wanted) {
        for (auto& [get, set] : runtimes())
            before_.push_back(get());
        torch_before_ = at::get_num_threads(); // in each thread the first such call sets the number
        at::set_num_threads(wanted);
    }
    ~Threads() {
        at::set_num_threads(torch_before_);
        for (std::size_t i = 0; i < before_.size(); ++i)
            runtimes()[i].second(before_[i]);
    }
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

  private:
    using Get = int (*)();
    using Set = void (*)(int);

    static const std::vector<std::pair<Get, Set>>& runtimes() {
        static const auto found = find();
        return found;
    }

    static std::vector<std::pair<Get, Set>> find() {
        std::vector<std::string> names;
#ifdef __linux__
        dl_iterate_phdr(
            [](dl_phdr_info* info, std::size_t, void* list) {
                const std::string name = info->dlpi_name;
                if (name.find("omp", name.rfind('/') + 1) != std::string::npos)
                    static_cast<std::vector<std::string>*>(list)->push_back(name);
                return 0;
            },
            &names);
#endif
        std::vector<void*> libraries{RTLD_DEFAULT}; // one may be part of the program itself
        for (const auto& name : names)
            if (void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD))
                libraries.push_back(library);
        std::vector<std::pair<Get, Set>> found;
        for (void* library : libraries) {
            const std::pair<Get, Set> pair{
                reinterpret_cast<Get>(dlsym(library, "omp_get_max_threads")),
                reinterpret_cast<Set>(dlsym(library, "omp_set_num_threads"))};
            if (pair.first && pair.second &&
                std::find(found.begin(), found.end(), pair) == found.end())
                found.push_back(pair);
        }
        return found;
    }

    std::vector<int> before_;
    int torch_before_; // also that of its linear algebra
};

/// The message of torch, without the stacks of C++ and of the model's own code.
inline std::string reason(const std::exception& failure) {
    const auto* error = dynamic_cast<const c10::Error*>(&failure);
    std::string text = error ? error->what_without_backtrace() : failure.what();
    // The model's own stack ends with the reason.
    const auto last = text.rfind("Error: ");
    if (last != std::string::npos)
        text = text.substr(last + 7);
    const auto end = text.find_first_of("\n");
    text = text.substr(0, end);
    text = text.substr(0, text.find(". ")); // what follows is advice for programmers
    while (!text.empty() && (text.back() == '.' || text.back() == ' '))
        text.pop_back();
    return text.empty() ? "torch does not say why" : text;
}

} // namespace torch_detail

/// d numbers, and their derivatives, of n arguments or of N atoms in a cell, by TorchScript.
///
/// `forward` takes the arguments, shape (1, n), or the positions, shape (N, 3), and perhaps the
/// cell, shape (3, 3), and returns d numbers in any shape. Derivatives are by autograd, unless the
/// model has a method `value_and_gradient` that takes the same and returns the values (d), their
/// gradients (d, n) or (d, N, 3), and if it takes the cell those with respect to it (d, 3, 3).
class TorchModel {
  public:
    /// Reads a file. Throws std::runtime_error with a sentence that names it.
    TorchModel(const std::string& file, const std::string& device, int threads)
        : file_(file), threads_(threads), device_(at::kCPU) {
        check_library();
        const Surroundings here(threads_);
        device_ = find_device(device);
        std::error_code ignored;
        if (!std::filesystem::is_regular_file(file, ignored))
            fail("there is no such file");
        try {
            module_ = torch::jit::load(file, device_);
            module_.eval();
        } catch (const std::exception& error) {
            fail("this is no TorchScript file that libtorch " TORCH_VERSION " reads (" +
                 torch_detail::reason(error) +
                 "); write it by torch.jit.script or torch.jit.trace, and save()");
        }
        for (auto parameter : module_.parameters())
            parameter.requires_grad_(false);
        if (!module_.find_method("forward"))
            fail("the model has no method forward");
        own_gradient_ = module_.find_method("value_and_gradient").has_value();
    }

    /// Prepares for n arguments. Throws if the model does not take them.
    void take_arguments(std::size_t n) {
        shape_ = {1, static_cast<std::int64_t>(n)};
        takes_cell_ = false;
        if (tensors_wanted("forward") != 1)
            fail("forward takes several tensors, so it is a model of atoms; give ATOMS and not "
                 "ARG");
        inputs_ = std::to_string(n) + (n == 1 ? " argument" : " arguments");
        probe(std::vector<double>(n, 0.0));
    }

    /// Prepares for N atoms. Throws if the model does not take them.
    void take_atoms(std::size_t n) {
        shape_ = {static_cast<std::int64_t>(n), 3};
        const auto wanted = tensors_wanted("forward");
        if (wanted != 1 && wanted != 2)
            fail("forward takes " + std::to_string(wanted) +
                 " tensors; a model of atoms takes the positions and perhaps the cell");
        atoms_ = true;
        takes_cell_ = wanted == 2;
        inputs_ = std::to_string(n) + (n == 1 ? " atom" : " atoms");
        std::vector<double> positions(3 * n);
        const auto side = static_cast<std::size_t>(std::ceil(std::cbrt(static_cast<double>(n))));
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t a = 0, rest = i; a < 3; ++a, rest /= side)
                positions[3 * i + a] = 1.5 * static_cast<double>(rest % side);
        probe(positions);
    }

    std::size_t outputs() const { return values_.size(); }
    bool takes_cell() const { return takes_cell_; }
    bool has_own_gradient() const { return own_gradient_; }
    std::string description() const {
        return std::string(dtype_ == at::kDouble ? "float64" : "float32") + " on " + device_.str();
    }

    /// Evaluates at `input` (n arguments, or 3 N coordinates in angstrom) and `cell` (angstrom).
    void evaluate(const double* input, const double* cell, bool derivatives) {
        const Surroundings here(threads_);
        try {
            compute(input, cell, derivatives);
        } catch (const Refused&) {
            throw;
        } catch (const std::exception& error) {
            fail("the model failed: " + torch_detail::reason(error));
        }
        check_finite(input, derivatives);
    }

    double value(std::size_t k) const { return values_[k]; }
    /// Derivatives of output k with respect to the input, as many as it has numbers.
    const double* gradient(std::size_t k) const { return gradients_.data() + k * size(); }
    /// Derivatives of output k with respect to the cell, nine.
    const double* cell_gradient(std::size_t k) const { return cell_gradients_.data() + 9 * k; }

  private:
    /// An error with a message for the user; other exceptions are those of torch.
    struct Refused : std::runtime_error {
        using std::runtime_error::runtime_error;
    };

    /// What must hold around every call of torch, and nowhere else.
    struct Surroundings {
        explicit Surroundings(int threads) : threads_(threads), optimizer_(false) {}

      private:
        torch_detail::WithoutInterpreterLock lock_;
        torch_detail::Threads threads_;
        // The optimiser of TorchScript changes the order of operations after some calls, and so
        // the last digits in the middle of a run.
        torch::jit::GraphOptimizerEnabledGuard optimizer_;
    };

    [[noreturn]] void fail(const std::string& sentence) const {
        throw Refused(file_ + ": " + sentence + ".");
    }

    static void check_library() {
#ifdef PLUMED_CV_TORCH_LIBRARY
        const std::string loaded = torch_detail::library_path();
        std::error_code unknown;
        if (!std::filesystem::equivalent(loaded, PLUMED_CV_TORCH_LIBRARY, unknown) && !unknown)
            throw Refused("this process has loaded the libtorch " + loaded +
                          " and this plugin was built for " PLUMED_CV_TORCH_LIBRARY
                          "; use one of the two for both.");
#endif
    }

    /// The device of a name, tried: one that is there may still not be of use to this torch.
    static c10::Device find_device(const std::string& name) {
        if (name == "auto")
            return torch::cuda::is_available() ? at::kCUDA : at::kCPU;
        std::optional<c10::Device> device;
        try {
            device.emplace(name);
        } catch (const std::exception&) {
        }
        if (!device || !(device->is_cuda() || device->is_cpu()))
            throw Refused("DEVICE=" + name + ": there are cpu, cuda (or cuda:1, ...) and auto.");
        const std::string here =
            "DEVICE=" + name + ": libtorch (" + torch_detail::library_path() + ") ";
        if (device->is_cuda() && !torch::cuda::is_available())
            throw Refused(here + "finds no CUDA device; use DEVICE=cpu, or a torch and a machine "
                                 "with CUDA.");
        try {
            at::zeros({1}, *device);
        } catch (const std::exception& error) {
            throw Refused(here + "cannot compute there (" + torch_detail::reason(error) + ").");
        }
        return *device;
    }

    std::size_t size() const {
        return static_cast<std::size_t>(shape_[0] * shape_[1]);
    }

    /// How many tensors a method must be given.
    std::size_t tensors_wanted(const char* method) const {
        const auto& arguments = module_.get_method(method).function().getSchema().arguments();
        std::size_t wanted = 0;
        for (std::size_t i = 1; i < arguments.size(); ++i) // the first is the module itself
            wanted += arguments[i].default_value() ? 0 : 1;
        return wanted;
    }

    /// The number type of the parameters, or of the buffers; undefined if there are none.
    c10::ScalarType stored_type() const {
        for (const auto& tensor : module_.parameters())
            if (tensor.is_floating_point() || tensor.is_complex())
                return tensor.scalar_type();
        for (const auto& tensor : module_.buffers())
            if (tensor.is_floating_point() || tensor.is_complex())
                return tensor.scalar_type();
        return c10::ScalarType::Undefined;
    }

    /// Finds out the number type and how many outputs there are, from an arbitrary input.
    void probe(const std::vector<double>& input) {
        const std::vector<double> cell{100, 0, 0, 0, 100, 0, 0, 0, 100};
        const auto stored = stored_type();
        if (stored != c10::ScalarType::Undefined && stored != at::kDouble && stored != at::kFloat)
            fail("its numbers are of type " + std::string(c10::toString(stored)) +
                 " and must be float32 or float64; convert the model by .float() or .double() and "
                 "save it again");
        std::vector<c10::ScalarType> types{stored};
        // A function without parameters has no number type of its own: it may take either.
        if (stored == c10::ScalarType::Undefined)
            types = {at::kDouble, at::kFloat};
        const Surroundings here(threads_);
        std::string complaint;
        for (const auto type : types) {
            dtype_ = type;
            try {
                compute(input.data(), cell.data(), true);
                return;
            } catch (const Refused&) {
                throw;
            } catch (const std::exception& error) {
                complaint = torch_detail::reason(error);
            }
        }
        fail("the model does not take " + inputs_ + " (" + complaint +
             "); give those it was made for, in their order");
    }

    at::Tensor tensor(const double* numbers, at::IntArrayRef shape) const {
        const auto view = at::from_blob(const_cast<double*>(numbers), shape, at::kDouble);
        return view.to(at::TensorOptions().dtype(dtype_).device(device_), false, true);
    }

    static std::vector<double> numbers(const at::Tensor& tensor) {
        const auto plain = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
        const double* data = plain.const_data_ptr<double>();
        return std::vector<double>(data, data + plain.numel());
    }

    void compute(const double* input, const double* cell, bool derivatives) {
        const bool autograd = derivatives && !own_gradient_;
        const at::AutoGradMode mode(autograd);
        std::vector<at::Tensor> x{tensor(input, shape_)};
        if (takes_cell_)
            x.push_back(tensor(cell, {3, 3}));
        for (auto& part : x)
            part.set_requires_grad(autograd);
        const std::vector<c10::IValue> inputs(x.begin(), x.end());

        if (own_gradient_ && derivatives) {
            take_over(module_.get_method("value_and_gradient")(inputs));
            return;
        }
        const auto output = module_.forward(inputs);
        if (!output.isTensor() || !output.toTensor().is_floating_point())
            fail("forward returns " + output.type()->str() + " and not a tensor of real numbers");
        const auto y = output.toTensor().reshape({-1});
        values_ = numbers(y);
        if (values_.empty())
            fail("forward returns an empty tensor");
        if (!autograd)
            return;
        if (!y.requires_grad())
            fail("the output has no derivatives with respect to the input; the model must compute "
                 "it with torch alone, without detach() and no_grad()");
        gradients_.clear();
        cell_gradients_.clear();
        const auto d = static_cast<std::int64_t>(values_.size());
        for (std::int64_t k = 0; k < d; ++k) {
            const auto gradient = torch::autograd::grad({y[k]}, x, {}, k + 1 < d, false, true);
            append(gradients_, gradient[0], size());
            if (takes_cell_)
                append(cell_gradients_, gradient[1], 9);
        }
    }

    /// Output k may not depend on one of the inputs at all.
    static void append(std::vector<double>& all, const at::Tensor& gradient, std::size_t count) {
        const auto more = gradient.defined() ? numbers(gradient) : std::vector<double>(count, 0.0);
        all.insert(all.end(), more.begin(), more.end());
    }

    /// Reads what value_and_gradient returns.
    void take_over(const c10::IValue& answer) {
        const std::size_t parts = takes_cell_ ? 3 : 2;
        std::vector<at::Tensor> tensors;
        if (answer.isTuple())
            for (const auto& element : answer.toTupleRef().elements())
                if (element.isTensor())
                    tensors.push_back(element.toTensor());
        if (tensors.size() != parts)
            fail("value_and_gradient returns " + answer.type()->str() + " and not a tuple of " +
                 std::to_string(parts) + " tensors");
        values_ = numbers(tensors[0]);
        gradients_ = numbers(tensors[1]);
        cell_gradients_ = takes_cell_ ? numbers(tensors[2]) : std::vector<double>();
        if (values_.empty() || gradients_.size() != values_.size() * size() ||
            (takes_cell_ && cell_gradients_.size() != 9 * values_.size()))
            fail("value_and_gradient returns " + std::to_string(values_.size()) + " values and " +
                 std::to_string(gradients_.size()) + " derivatives for " + inputs_);
    }

    void check_finite(const double* input, bool derivatives) const {
        const auto finite = [](double number) { return std::isfinite(number); };
        const auto all_finite = [&](const std::vector<double>& numbers) {
            return std::all_of(numbers.begin(), numbers.end(), finite);
        };
        const bool sound =
            all_finite(values_) &&
            (!derivatives || (all_finite(gradients_) && all_finite(cell_gradients_)));
        if (sound)
            return;
        std::string place = " here";
        if (!atoms_) {
            place = " for";
            for (std::size_t i = 0; i < size(); ++i)
                place += (i ? ", " : " ") + std::to_string(input[i]);
        }
        for (std::size_t k = 0; k < values_.size(); ++k)
            if (!finite(values_[k]))
                fail("node-" + std::to_string(k) + " is " + std::to_string(values_[k]) + place);
        fail("a derivative is not a finite number" + place);
    }

    std::string file_;
    std::string inputs_; // how many of what, for messages
    int threads_;
    c10::Device device_;
    torch::jit::Module module_;
    std::vector<std::int64_t> shape_;
    c10::ScalarType dtype_ = at::kDouble;
    bool atoms_ = false;
    bool takes_cell_ = false;
    bool own_gradient_ = false;
    std::vector<double> values_, gradients_, cell_gradients_;
};

} // namespace plumed_cv
