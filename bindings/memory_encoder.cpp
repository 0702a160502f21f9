// Checks the arguments of the kernels in csrc/memory_encoder.h and runs them.
#include "csrc/memory_encoder.h"

#include "bindings/weights.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxChannels = 4096, kMaxSide = 16384;

FuserBlockWeights block_of(const WeightFields& fields, int64_t dim, int64_t hidden) {
  const WeightFields depthwise = fields.fields("depthwise");
  FuserBlockWeights block{};
  block.depthwise.weight = depthwise.float_matrix("weight", dim, 49);
  block.depthwise.bias = depthwise.vector("bias", dim);
  block.norm = fields.norm("norm", dim);
  block.fc1 = fields.linear("fc1", hidden, dim);
  block.fc2 = fields.linear("fc2", dim, hidden);
  block.gamma = fields.vector("gamma", dim);
  return block;
}

// `is_float`: the weight is float32, independent of the dtype of the matrices.
MaskConvolutionWeights convolution_of(const WeightFields& fields, int64_t channels_before,
                                      bool is_float) {
  MaskConvolutionWeights layer{};
  layer.channels = fields.even_rows("weight", kMaxChannels);
  const int64_t columns = 9 * channels_before;
  if (is_float) {
    layer.weight = fields.float_matrix("weight", layer.channels, columns);
  } else {
    layer.weight = fields.matrix("weight", layer.channels, columns);
  }
  layer.bias = fields.vector("bias", layer.channels);
  layer.norm = fields.norm("norm", layer.channels);
  return layer;
}

// Checked weights, and references to the tensors that store them.
struct MemoryEncoderWeightsOwner {
  WeightTensors tensors;
  std::vector<FuserBlockWeights> blocks;
  MemoryEncoderWeights weights{};

  explicit MemoryEncoderWeightsOwner(const py::object& object) {
    const WeightFields fields(object, "weights", tensors);
    int64_t channels = 1;
    const std::vector<WeightFields> convolutions = fields.sequence_of("convolutions", 4);
    for (size_t i = 0; i < convolutions.size(); ++i) {
      weights.convolutions[i] = convolution_of(convolutions[i], channels, i < 2);
      channels = weights.convolutions[i].channels;
    }
    const std::vector<WeightFields> block_fields = fields.sequence("blocks", 1);
    weights.dim = fields.fields("low_proj").even_rows("weight", kMaxChannels);
    weights.hidden = block_fields.front().fields("fc1").even_rows("weight", kMaxChannels);
    weights.memory_dim = fields.fields("out_proj").rows("weight", kMaxChannels);
    weights.mask_proj = fields.linear("mask_proj", weights.dim, channels);
    weights.low_proj = fields.linear("low_proj", weights.dim, weights.dim);
    for (const WeightFields& block : block_fields) {
      blocks.push_back(block_of(block, weights.dim, weights.hidden));
    }
    weights.blocks = blocks.data();
    weights.num_blocks = static_cast<int64_t>(blocks.size());
    weights.out_proj = fields.linear("out_proj", weights.memory_dim, weights.dim);
    weights.storage = tensors.storage;
  }
};

void run(py::handle low_object, py::handle logits_object, const MemoryEncoderWeightsOwner& owner,
         py::handle out_object, bool binarize, double epsilon, int num_threads,
         const std::string& isa_name) {
  const View low("low", low_object), logits("logits", logits_object), out("out", out_object);
  for (const View* view : {&low, &logits, &out}) require_contiguous_on_cpu(*view);
  low.require_dimensions(4);
  logits.require_dimensions(3);
  MemoryEncoderParams params{};
  params.weights = owner.weights;
  params.storage = storage_of(low);
  params.out_storage = storage_of(out);
  params.images = low.t.shape[0];
  params.height = low.t.shape[1];
  params.width = low.t.shape[2];
  params.objects = logits.t.shape[0];
  params.logit_height = logits.t.shape[1];
  params.logit_width = logits.t.shape[2];
  params.binarize = binarize;
  params.epsilon = static_cast<float>(epsilon);
  low.require_shape({params.images, params.height, params.width, owner.weights.dim});
  require_one_or_each(low, params.objects);
  for (const View* view : {&low, &logits}) {
    if (std::max(view->t.shape[1], view->t.shape[2]) > kMaxSide) {
      refuse(view->name, "sides up to " + std::to_string(kMaxSide), text_of_sizes(view->sizes()));
    }
  }
  out.require_shape({params.objects, params.height * params.width, owner.weights.memory_dim});
  if (out.size() == 0) return;
  if (params.logit_height * params.logit_width == 0) {
    refuse("logits", "1 pixel or more", text_of_sizes(logits.sizes()));
  }
  params.logits = floats(logits, {params.objects, params.logit_height, params.logit_width});
  require_output(out, {&low, &logits});
  params.low = low.data<const void>();
  params.out = out.data<void>();
  run_on_cpu(&memory_encoder_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_memory_encoder(py::module_& module) {
  typedef MemoryEncoderWeightsOwner Owner;
  const std::string doc =
      std::string(
          R"(Weights of the memory encoder, read from the attributes of an object:
convolutions: four convolutions, each with weight [C_i, 9 C_(i-1)], bias and norm. Columns
    of a weight are ordered by position, then by channel. The first two are float32.
mask_proj [C, C_4], low_proj [C, C], out_proj [M, C].
blocks: a sequence of blocks, each with depthwise [C, 49] in float32, norm [C], fc1 [F, C],
    fc2 [C, F] and the tensor gamma [C].
)") + kWeightsDoc;
  py::class_<Owner>(module, "MemoryEncoderWeights", doc.c_str())
      .def(py::init<const py::object&>(), py::arg("weights"))
      .def_property_readonly("dim", [](const Owner& owner) { return owner.weights.dim; })
      .def_property_readonly("hidden", [](const Owner& owner) { return owner.weights.hidden; })
      .def_property_readonly("memory_dim",
                             [](const Owner& owner) { return owner.weights.memory_dim; })
      .def_property_readonly("num_blocks",
                             [](const Owner& owner) { return owner.weights.num_blocks; });
  module.def("memory_encoder", &run, py::arg("low"), py::arg("logits"), py::arg("weights"),
             py::arg("out"), py::arg("binarize"), py::arg("epsilon"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
