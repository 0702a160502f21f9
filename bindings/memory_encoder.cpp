// Checks and launch of csrc/memory_encoder.h.
#include "csrc/memory_encoder.h"

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

constexpr size_t kMask = 16, kBlocks = 20,
                 kBlock = 9;  // tensors: of the convolutions, before the blocks, of a block
constexpr size_t kLike = 8;   // the matrix that tells the dtype of all: the third convolution
constexpr int64_t kMaxChannels = 4096, kMaxSide = 16384;
const char* const kNames[] = {"weights"};

void want_even(int64_t channels) {
  if (channels < 2 || channels % 2 != 0 || channels > kMaxChannels)
    refuse("weights", "even widths up to 4096", std::to_string(channels));
}

int64_t rows_of(const Weights& w, size_t i) {
  if (w.views[i].t.ndim != 2)
    refuse("weights", "matrices of two dimensions", std::to_string(w.views[i].t.ndim));
  return w.views[i].t.shape[0];
}

FuserBlock block_of(const Weights& w, size_t at, int64_t dim, int64_t hidden) {
  FuserBlock block{};
  block.depthwise = floats(w.views[at], {dim, 49}), block.bias = w.vector(at + 1, dim);
  block.norm_weight = w.vector(at + 2, dim), block.norm_bias = w.vector(at + 3, dim);
  block.fc1 = w.linear(at + 4, hidden, dim, kLike),
  block.fc2 = w.linear(at + 6, dim, hidden, kLike);
  block.gamma = w.vector(at + 8, dim);
  return block;
}

void convolutions_of(const Weights& w, MemoryEncoderParams* p) {
  for (size_t i = 0; i < 4; ++i) {
    MaskConvolution& c = p->convolutions[i];
    c.channels = rows_of(w, 4 * i);
    want_even(c.channels);
    const int64_t columns = 9 * (i > 0 ? p->convolutions[i - 1].channels : 1);
    if (i < 2)
      c.weight = floats(w.views[4 * i], {c.channels, columns}),
      c.bias = w.vector(4 * i + 1, c.channels);
    else
      c.weight = w.linear(4 * i, c.channels, columns, kLike).weight,
      c.bias = w.vector(4 * i + 1, c.channels);
    c.norm_weight = w.vector(4 * i + 2, c.channels), c.norm_bias = w.vector(4 * i + 3, c.channels);
  }
}

void run(py::handle low_object, py::handle logits_object, const py::sequence& tensors,
         py::handle out_object, bool binarize, double epsilon, int num_threads,
         const std::string& isa_name) {
  const View low("low", low_object), logits("logits", logits_object), out("out", out_object);
  for (const View* view : {&low, &logits, &out}) want_cpu(*view);
  if (low.t.ndim != 4 || logits.t.ndim != 3) refuse("low, logits", "4 and 3 dimensions", "others");
  const Weights w(tensors, kNames, 1);
  if (w.views.size() < kBlocks + kBlock + 2 || (w.views.size() - kBlocks - 2) % kBlock != 0) {
    refuse("weights", "22 tensors and 9 for each block, one or more",
           std::to_string(w.views.size()));
  }
  MemoryEncoderParams p{};
  p.storage = storage_of(low), p.out_storage = storage_of(out),
  p.weights = storage_of(w.views[kLike]);
  p.images = low.t.shape[0], p.height = low.t.shape[1], p.width = low.t.shape[2],
  p.dim = low.t.shape[3];
  p.objects = logits.t.shape[0], p.logit_height = logits.t.shape[1],
  p.logit_width = logits.t.shape[2];
  p.binarize = binarize, p.epsilon = static_cast<float>(epsilon);
  p.hidden = rows_of(w, kBlocks + 4), p.memory_dim = rows_of(w, w.views.size() - 2);
  want_even(p.dim), want_even(p.hidden);
  if (p.memory_dim < 1 || p.memory_dim > kMaxChannels)
    refuse("weights", "widths up to 4096", std::to_string(p.memory_dim));
  if (p.images != 1 && p.images != p.objects)
    refuse("low", "1 image or one an object", std::to_string(p.images));
  for (const int64_t side : {p.height, p.width, p.logit_height, p.logit_width}) {
    if (side > kMaxSide) refuse("low, logits", "sides up to 16384", std::to_string(side));
  }
  convolutions_of(w, &p);
  p.mask_proj = w.linear(kMask, p.dim, p.convolutions[3].channels, kLike),
  p.low_proj = w.linear(kMask + 2, p.dim, p.dim, kLike);
  std::vector<FuserBlock> blocks;
  for (size_t at = kBlocks; at + 2 < w.views.size(); at += kBlock)
    blocks.push_back(block_of(w, at, p.dim, p.hidden));
  p.blocks = blocks.data(), p.num_blocks = static_cast<int64_t>(blocks.size());
  p.out_proj = w.linear(w.views.size() - 2, p.memory_dim, p.dim, kLike);
  out.want_shape3(p.objects, p.height * p.width, p.memory_dim);
  if (out.size() == 0) return;
  if (p.logit_height * p.logit_width == 0) refuse("logits", "a pixel or more", "none");
  p.low = low.data<const void>(),
  p.logits = floats(logits, {p.objects, p.logit_height, p.logit_width}), p.out = out.data<void>();
  const Isa isa = isa_of(isa_name);
  bool done = false;
  {
    py::gil_scoped_release release;
    done = memory_encoder_cpu(p, num_threads < 1 ? 1 : num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace

void register_memory_encoder(py::module_& module) {
  module.def("memory_encoder", &run, py::arg("low"), py::arg("logits"), py::arg("weights"),
             py::arg("out"), py::arg("binarize"), py::arg("epsilon"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
