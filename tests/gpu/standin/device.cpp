// A CUDA device made of the CPU's memory, for a torch without CUDA: every operation on it is the CPU's on the same
// memory. Autograd, autocast and the dispatcher are torch's own for CUDA, so what runs above the kernels runs as on a GPU.
//
// Half-precision products multiply in float32 and round once, as Tensor Cores do; a convolution's bias is added to the
// rounded result, as with cuDNN. An operation that mixes this device's tensors with the CPU's fails, as on a GPU.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/ApproximateClock.h>
#include <torch/csrc/profiler/stubs/base.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <set>

using namespace c10;

namespace {

const Device CUDA0(DeviceType::CUDA, 0);

// ---------------------------------------------------------------- memory

std::atomic<int64_t> used{0}, peak{0};

struct Block {
  void* data;
  size_t size;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  used -= block->size;
  free_cpu(block->data);
  delete block;
}

struct Memory final : Allocator {
  DataPtr allocate(size_t size) override {
    auto* block = new Block{size ? alloc_cpu(size) : nullptr, size};
    peak = std::max<int64_t>(peak, used += size);
    return {block->data, block, &release, CUDA0};
  }
  DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }
  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }
} memory;

// ---------------------------------------------------------------- one device with one stream, which never waits

struct Guard final : impl::DeviceGuardImplInterface {
  Stream stream() const { return Stream(Stream::DEFAULT, CUDA0); }
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return CUDA0; }
  Device getDevice() const override { return CUDA0; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return stream(); }
  Stream getDefaultStream(Device) const override { return stream(); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const override { return stream(); }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void record(void** event, const Stream&, const DeviceIndex, const EventFlag) const override { *event = &memory; }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const DataPtr&, const Stream&) const override {}
};

// The name under which torch looks for them.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  void init() const override {}
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool isPinnedPtr(const void*) const override { return false; }
  Allocator* getPinnedMemoryAllocator() const override { return GetCPUAllocator(); }
  Allocator* getCUDADeviceAllocator() const override { return &memory; }
  Device getDeviceFromPtr(void*) const override { return CUDA0; }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  at::Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  void deviceSynchronize(DeviceIndex) const override {}
};

struct ProfilerEvents final : torch::profiler::impl::ProfilerStubs {
  using Event = torch::profiler::impl::ProfilerVoidEventStub;
  void record(DeviceIndex* device, Event* event, int64_t* now) const override {
    if (device)
      *device = 0;
    if (now)
      *now = getTime();
    *event = std::make_shared<int>(0);
  }
  float elapsed(const Event*, const Event*) const override { return 0; }
  void mark(const char*) const override {}
  void rangePush(const char*) const override {}
  void rangePop() const override {}
  bool enabled() const override { return true; }
  void onEachDevice(std::function<void(int)> call) const override { call(0); }
  void synchronize() const override {}
} profiler_events;

// ---------------------------------------------------------------- operations, on the CPU's view of the same memory

void drop(void* storage) {
  delete static_cast<at::Storage*>(storage);
}

at::Storage seen_from(const at::Storage& storage, Device device) {
  DataPtr data(const_cast<void*>(storage.data()), new at::Storage(storage), &drop, device);
  Allocator* allocator = device.is_cpu() ? GetCPUAllocator() : &memory;
  return at::Storage(make_intrusive<StorageImpl>(
      StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, /*resizable=*/true));
}

at::Tensor as_stored(const at::Storage& storage, DispatchKey key, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<TensorImpl>(at::Storage(storage), DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

class Call {
 public:
  bool mixes() const { return on_device_ && on_cpu_; }

  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.layout() != Layout::Strided)
      return tensor;
    if (!tensor.is_cuda()) {
      on_cpu_ |= tensor.dim() > 0 && tensor.numel() > 0;
      return tensor;
    }
    on_device_ = true;
    for (auto& [view, own] : views_)
      if (own.is_same(tensor))
        return view;
    auto [found, is_new] = storages_.try_emplace(tensor.storage().unsafeGetStorageImpl());
    if (is_new) {
      found->second = seen_from(tensor.storage(), Device(DeviceType::CPU));
      own_.emplace(found->second.unsafeGetStorageImpl(), tensor.storage());
    }
    views_.emplace_back(as_stored(found->second, DispatchKey::CPU, tensor), tensor);
    return views_.back().first;
  }

  at::Tensor to_device(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cpu() || tensor.layout() != Layout::Strided)
      return tensor;
    for (auto& [view, own] : views_)
      if (view.is_same(tensor))
        return own;
    return as_stored(own_of(tensor.storage()), DispatchKey::CUDA, tensor);
  }

  // What was written to may have been resized, or given another shape.
  void settle() {
    for (auto& [view, own] : views_) {
      auto storage = own_of(view.storage());
      if (storage.data() != view.storage().data()) {
        auto moved = seen_from(view.storage(), CUDA0);
        storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(moved.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
        storage.unsafeGetStorageImpl()->set_nbytes(view.storage().nbytes());
      }
      auto* tensor = own.unsafeGetTensorImpl();
      if (own.storage().unsafeGetStorageImpl() != storage.unsafeGetStorageImpl())
        tensor->set_storage_keep_dtype(storage);
      if (own.sizes() != view.sizes() || own.strides() != view.strides() || own.storage_offset() != view.storage_offset())
        tensor->set_sizes_and_strides(view.sizes(), view.strides(), view.storage_offset());
    }
  }

  void made_on_device() { on_device_ = true; }

 private:
  at::Storage own_of(const at::Storage& storage) {
    auto [found, is_new] = own_.try_emplace(storage.unsafeGetStorageImpl());
    if (is_new)
      found->second = seen_from(storage, CUDA0);
    return found->second;
  }

  std::vector<std::pair<at::Tensor, at::Tensor>> views_;
  std::map<StorageImpl*, at::Storage> storages_, own_;
  bool on_device_ = false, on_cpu_ = false;
};

template <class Map>
IValue mapped(const IValue& value, Map map) {
  if (value.isTensor())
    return map(value.toTensor());
  if (value.isTensorList()) {
    List<at::Tensor> all;
    for (const at::Tensor& tensor : value.toTensorVector())
      all.push_back(map(tensor));
    return all;
  }
  if (value.isOptionalTensorList()) {
    List<std::optional<at::Tensor>> all;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
      all.push_back(tensor ? std::optional<at::Tensor>(map(*tensor)) : tensor);
    return all;
  }
  return value;
}

const std::set<std::string> MAY_MIX = {
    "aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index",
    "aten::_pack_padded_sequence"};
const std::set<std::string> PRODUCTS = {
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv", "aten::mv", "aten::dot",
    "aten::convolution", "aten::convolution_backward"};

// The CPU's take no half where the result is to be float32.
const std::set<std::string> SOFTMAXES = {
    "aten::_softmax", "aten::_log_softmax", "aten::_softmax_backward_data", "aten::_log_softmax_backward_data"};

bool is_half(const IValue& value) {
  return value.isTensor() && value.toTensor().defined() && value.toTensor().scalar_type() == at::kHalf;
}

// Half operands widened, and the result rounded once: the CPU's own products of float16 are slow and round otherwise.
void compute_wide(const OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  std::vector<std::pair<at::Tensor, at::Tensor>> written;
  auto arguments = stack->end() - schema.arguments().size();
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    if (!is_half(arguments[i]))
      continue;
    auto wide = arguments[i].toTensor().to(at::kFloat);
    if (schema.arguments()[i].alias_info() && schema.arguments()[i].alias_info()->isWrite())
      written.emplace_back(wide, arguments[i].toTensor());
    arguments[i] = wide;
  }
  at::Tensor bias;
  if (schema.name() == "aten::convolution") {
    bias = arguments[2].isTensor() ? arguments[2].toTensor() : at::Tensor();
    arguments[2] = IValue();
  }
  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  for (auto& [wide, own] : written)
    own.copy_(wide);
  for (auto result = stack->end() - schema.returns().size(); result != stack->end(); ++result) {
    if (!result->isTensor() || !result->toTensor().defined())
      continue;
    auto wide = result->toTensor();
    auto own = std::find_if(written.begin(), written.end(), [&](auto& pair) { return pair.first.is_same(wide); });
    if (own != written.end())
      *result = own->second;
    else if (PRODUCTS.count(schema.name()))
      *result = wide.to(at::kHalf);
    if (bias.defined()) {
      std::vector<int64_t> shape(wide.dim(), 1);
      shape[1] = -1;
      result->toTensor().add_(bias.to(at::kHalf).view(shape));
    }
  }
}

void on_cpu(const OperatorHandle& op, DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  Call call;
  auto arguments = stack->end() - schema.arguments().size();
  bool half = false;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    auto& value = arguments[i];
    half |= is_half(value);
    if (schema.arguments()[i].name() == "pin_memory") {
      value = IValue();
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      call.made_on_device();
      value = Device(DeviceType::CPU);
    } else {
      value = mapped(value, [&](const at::Tensor& tensor) { return call.to_cpu(tensor); });
    }
  }
  TORCH_CHECK(
      !call.mixes() || MAY_MIX.count(schema.name()),
      schema.name(), ": Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!");
  bool softmax = SOFTMAXES.count(schema.name());
  for (size_t i = 0; softmax && i < schema.arguments().size(); ++i) {
    if (schema.arguments()[i].name() == "half_to_float")
      arguments[i] = false;
    else if (schema.arguments()[i].name() == "input_dtype")
      arguments[i] = at::kFloat;
  }
  if (half && (softmax || PRODUCTS.count(schema.name())))
    compute_wide(op, stack);
  else
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  call.settle();
  for (auto result = stack->end() - schema.returns().size(); result != stack->end(); ++result)
    *result = mapped(*result, [&](const at::Tensor& tensor) { return call.to_device(tensor); });
}

// ---------------------------------------------------------------- what creates tensors, or changes where they lie

const at::Tensor& resized(const at::Tensor& self, IntArrayRef size, std::optional<MemoryFormat> format) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  if (format)
    tensor->empty_tensor_restride(*format);
  auto* storage = self.storage().unsafeGetStorageImpl();
  size_t needed = (tensor->numel() + tensor->storage_offset()) * tensor->itemsize();
  if (needed > storage->nbytes()) {
    auto larger = memory.allocate(needed);
    std::memcpy(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(larger));
    storage->set_nbytes(needed);
  }
  return self;
}

at::Tensor empty(
    SymIntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>,
    std::optional<bool>, std::optional<MemoryFormat> format) {
  at::Storage storage(make_intrusive<StorageImpl>(StorageImpl::use_byte_size_t(), 0, memory.allocate(0), &memory, true));
  auto type = scalarTypeToTypeMeta(dtype.value_or(at::get_default_dtype_as_scalartype()));
  auto tensor = at::detail::make_tensor<TensorImpl>(std::move(storage), DispatchKeySet(DispatchKey::CUDA), type);
  return resized(tensor, C10_AS_INTARRAYREF_SLOW(size), format);
}

at::Tensor empty_strided(
    SymIntArrayRef size, SymIntArrayRef stride, std::optional<ScalarType> dtype, std::optional<Layout> layout,
    std::optional<Device> device, std::optional<bool> pinned) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size), strides = C10_AS_INTARRAYREF_SLOW(stride);
  int64_t span = 1;
  for (size_t i = 0; i < sizes.size(); ++i)
    span = sizes[i] == 0 || span == 0 ? 0 : span + (sizes[i] - 1) * strides[i];
  SymInt flat(span);
  auto tensor = empty(SymIntArrayRef(&flat, 1), dtype, layout, device, pinned, std::nullopt);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return tensor;
}

at::Tensor& set_strided(at::Tensor& self, at::Storage storage, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(storage));
  tensor->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  if (!stride.empty())
    tensor->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  tensor->set_storage_offset(offset.expect_int());
  return self;
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& other) {
  return set_strided(self, other.storage(), other.sym_storage_offset(), other.sym_sizes(), other.sym_strides());
}

at::Tensor& set_whole(at::Tensor& self, at::Storage storage) {
  SymInt numel(static_cast<int64_t>(storage.nbytes() / self.itemsize()));
  return set_strided(self, storage, 0, SymIntArrayRef(&numel, 1), {});
}

// ---------------------------------------------------------------- attention

// FlashAttention's for half tensors without a mask; what has more is computed by its parts.
int64_t attention_kernel(
    const at::Tensor& query, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>& mask, double dropout,
    bool, std::optional<double>, bool grouped) {
  bool half = query.scalar_type() == at::kHalf || query.scalar_type() == at::kBFloat16;
  return half && query.dim() == 4 && !mask && dropout == 0 && !grouped;
}

// The result in float32, and each row's shares of the values.
std::tuple<at::Tensor, at::Tensor> attention_by_parts(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, bool causal, std::optional<double> scale) {
  return at::_scaled_dot_product_attention_math(
      query.to(at::kFloat), key.to(at::kFloat), value.to(at::kFloat), std::nullopt, 0.0, causal, std::nullopt, scale);
}

using Fused =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, SymInt, SymInt, at::Tensor, at::Tensor, at::Tensor>;

Fused attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double, bool causal, bool,
    std::optional<double> scale) {
  auto result = std::get<0>(attention_by_parts(query, key, value, causal, scale)).to(query.scalar_type());
  auto none = at::empty({0}, query.options());
  return {result, none, none, none, query.size(-2), key.size(-2), none, none, none};
}

// From the result as it is kept, rounded.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(
    const at::Tensor& gradient, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& result, const at::Tensor&, const at::Tensor&, const at::Tensor&, SymInt, SymInt, double,
    bool causal, const at::Tensor&, const at::Tensor&, std::optional<double> scale) {
  auto shares = std::get<1>(attention_by_parts(query, key, value, causal, scale)), given = gradient.to(at::kFloat);
  auto common = (given * result.to(at::kFloat)).sum(-1, true);
  auto inner = shares * (at::matmul(given, value.to(at::kFloat).mT()) - common);
  inner = inner * scale.value_or(1 / std::sqrt(static_cast<double>(query.size(-1))));
  auto type = query.scalar_type();
  return {
      at::matmul(inner, key.to(at::kFloat)).to(type), at::matmul(inner.mT(), query.to(at::kFloat)).to(type),
      at::matmul(shares.mT(), given).to(type)};
}

C10_REGISTER_GUARD_IMPL(CUDA, Guard)
const int registered = [] {
  SetAllocator(DeviceType::CUDA, &memory);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&attention_kernel);
  torch::profiler::impl::registerCUDAMethods(&profiler_events);
  return 0;
}();

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("resize_", resized);
  library.impl("set_.source_Storage_storage_offset", set_strided);
  library.impl("set_.source_Tensor", set_tensor);
  library.impl("set_.source_Storage", set_whole);
  library.impl("_scaled_dot_product_flash_attention", attention);
  library.impl("_scaled_dot_product_flash_attention_backward", attention_backward);
  // These have code for every device, which calls kernels that a torch without CUDA lacks.
  for (auto name :
       {"copy_", "convolution", "convolution_backward", "_foreach_copy_", "masked_fill_.Tensor", "masked_fill_.Scalar",
        "native_layer_norm", "native_layer_norm_backward", "native_group_norm", "native_group_norm_backward"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

} // namespace

using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

extern "C" int64_t standin_used() {
  return used;
}
extern "C" int64_t standin_peak() {
  return peak;
}
extern "C" void standin_reset_peak() {
  peak = used.load();
}
