// Checks the arguments of the kernels in csrc/mask_decoder.h and runs them.
#include "csrc/mask_decoder.h"

#include "bindings/weights.h"

namespace sam2_fast {
namespace {

constexpr int64_t kMaxHead = 64, kMaxChannels = 4096;

AttentionWeights attention_of(const WeightFields& fields, int64_t dim, int64_t inner) {
  AttentionWeights attention{};
  attention.q = fields.linear("q", inner, dim);
  attention.k = fields.linear("k", inner, dim);
  attention.v = fields.linear("v", inner, dim);
  attention.out = fields.linear("out", dim, inner);
  return attention;
}

TwoWayLayerWeights layer_of(const WeightFields& fields, int64_t dim, int64_t hidden) {
  TwoWayLayerWeights layer{};
  layer.self_attention = attention_of(fields.fields("self_attention"), dim, dim);
  layer.norm1 = fields.norm("norm1", dim);
  layer.token_to_image = attention_of(fields.fields("token_to_image"), dim, dim / 2);
  layer.norm2 = fields.norm("norm2", dim);
  layer.fc1 = fields.linear("fc1", hidden, dim);
  layer.fc2 = fields.linear("fc2", dim, hidden);
  layer.norm3 = fields.norm("norm3", dim);
  layer.norm4 = fields.norm("norm4", dim);
  layer.image_to_token = attention_of(fields.fields("image_to_token"), dim, dim / 2);
  return layer;
}

MlpWeights mlp_of(const WeightFields& fields, int64_t dim, int64_t hidden, int64_t out) {
  MlpWeights mlp{};
  mlp.linear1 = fields.linear("linear1", hidden, dim);
  mlp.linear2 = fields.linear("linear2", hidden, hidden);
  mlp.linear3 = fields.linear("linear3", out, hidden);
  return mlp;
}

// Weights of an upscaling layer: the rows of the matrix are ordered by position, then by channel;
// the bias has one value for each channel.
Linear upscaling_of(const WeightFields& fields, int64_t channels, int64_t columns) {
  return {fields.matrix("weight", 4 * channels, columns), fields.vector("bias", channels)};
}

// Checked weights, and references to the tensors that store them.
struct MaskDecoderWeightsOwner {
  WeightTensors tensors;
  std::vector<MlpWeights> masks;
  MaskDecoderWeights weights{};

  explicit MaskDecoderWeightsOwner(const py::object& object) {
    const WeightFields fields(object, "weights", tensors);
    const std::vector<WeightFields> layers = fields.sequence_of("layers", 2);
    const WeightFields& first = layers.front();
    const WeightFields first_q = first.fields("self_attention").fields("q");
    const int64_t dim = first_q.rows("weight", kMaxChannels, 16);
    weights.dim = dim;
    weights.hidden = first.fields("fc1").even_rows("weight", kMaxChannels);
    for (size_t i = 0; i < layers.size(); ++i) {
      weights.layers[i] = layer_of(layers[i], dim, weights.hidden);
    }
    weights.final_attention = attention_of(fields.fields("final_attention"), dim, dim / 2);
    weights.final_norm = fields.norm("final_norm", dim);
    weights.up1 = upscaling_of(fields.fields("up1"), dim / 4, dim);
    weights.up_norm = fields.norm("up_norm", dim / 4);
    weights.up2 = upscaling_of(fields.fields("up2"), dim / 8, dim / 4);
    const WeightFields iou = fields.fields("iou");
    weights.iou_hidden = iou.fields("linear1").even_rows("weight", kMaxChannels);
    weights.iou_values = iou.fields("linear3").rows("weight", kMaxChannels);
    weights.iou = mlp_of(iou, dim, weights.iou_hidden, weights.iou_values);
    for (const WeightFields& mask : fields.sequence("masks", 1)) {
      masks.push_back(mlp_of(mask, dim, dim, dim / 8));
    }
    if (static_cast<int64_t>(masks.size()) > dim) {
      refuse("weights.masks", std::to_string(dim) + " or fewer", std::to_string(masks.size()));
    }
    weights.masks = masks.data();
    weights.num_masks = static_cast<int64_t>(masks.size());
    weights.storage = tensors.storage;
  }
};

void check_heads(const MaskDecoderParams& params) {
  const int64_t inner = params.weights.dim / 2, heads = params.heads;
  if (heads < 1 || inner % heads != 0 || inner / heads % 2 != 0 || inner / heads > kMaxHead) {
    refuse("heads",
           "a number that divides " + std::to_string(inner) +
               " channels into heads of an even number up to 64 each",
           std::to_string(heads));
  }
}

void check_tokens(const MaskDecoderParams& params) {
  const int64_t masks = params.weights.num_masks, values = params.weights.iou_values;
  if (params.first_mask_token < 0 || params.first_mask_token > params.prompt_tokens - masks) {
    refuse("first_mask_token",
           std::to_string(masks) + " mask tokens among " + std::to_string(params.prompt_tokens) +
               " prompt tokens",
           std::to_string(params.first_mask_token));
  }
  const int64_t end = params.first_mask_token + masks;
  if (params.iou_token < 0 || params.iou_token >= params.first_mask_token ||
      end - params.iou_token - 1 > values) {
    refuse("iou_token",
           "a token before " + std::to_string(params.first_mask_token) + " with " +
               std::to_string(values) + " values for the masks after it",
           std::to_string(params.iou_token));
  }
}

const uint8_t* present_of(py::handle object, const MaskDecoderParams& params) {
  const View present("present", object);
  require_contiguous_on_cpu(present);
  present.require_byte();
  present.require_shape({params.objects, params.prompt_tokens});
  const uint8_t* const data = present.data<const uint8_t>();
  const int64_t always = params.first_mask_token + params.weights.num_masks;
  for (int64_t o = 0; o < params.objects; ++o) {
    for (int64_t t = 0; t < always; ++t) {
      if (data[o * params.prompt_tokens + t] != 0) continue;
      refuse("present", "the first " + std::to_string(always) + " tokens of every object",
             "no token " + std::to_string(t) + " of object " + std::to_string(o));
    }
  }
  return data;
}

void run(py::handle image_object, py::handle mid_object, py::handle high_object,
         py::handle position_object, py::handle prompts_object, const py::object& present_object,
         const MaskDecoderWeightsOwner& owner, int64_t heads, int64_t first_mask_token,
         int64_t iou_token, bool best, py::handle logits_object, py::handle tokens_object,
         py::handle quality_object, int num_threads, const std::string& isa_name) {
  const View image("image", image_object), mid("mid", mid_object), high("high", high_object);
  const View position("position", position_object), prompts("prompts", prompts_object);
  const View logits("logits", logits_object), tokens("tokens", tokens_object);
  const View quality("quality", quality_object);
  for (const View* view : {&image, &mid, &high, &position, &prompts, &logits, &tokens, &quality}) {
    require_contiguous_on_cpu(*view);
  }
  for (const View* view : {&image, &mid, &high}) view->require_dimensions(4);
  prompts.require_dimensions(3);
  const MaskDecoderWeights& weights = owner.weights;
  MaskDecoderParams params{};
  params.weights = weights;
  params.storage = storage_of(image);
  params.images = image.t.shape[0];
  params.height = image.t.shape[1];
  params.width = image.t.shape[2];
  params.frames = mid.t.shape[0];
  params.objects = prompts.t.shape[0];
  params.prompt_tokens = prompts.t.shape[1];
  params.heads = heads;
  params.first_mask_token = first_mask_token;
  params.iou_token = iou_token;
  params.best = best;
  const int64_t height = params.height, width = params.width, dim = weights.dim;
  image.require_shape({params.images, height, width, dim});
  check_heads(params);
  for (const View* view : {&image, &mid}) require_one_or_each(*view, params.objects);
  mid.require_dtype_of(image);
  high.require_dtype_of(image);
  mid.require_shape({params.frames, 2 * height, 2 * width, dim / 4});
  high.require_shape({params.frames, 4 * height, 4 * width, dim / 8});
  params.position = floats(position, {height * width, dim});
  params.prompts = floats(prompts, {params.objects, params.prompt_tokens, dim});
  const int64_t num_outputs = best ? 1 : weights.num_masks;
  params.logits = floats(logits, {params.objects, num_outputs, 4 * height, 4 * width});
  params.tokens = floats(tokens, {params.objects, params.prompt_tokens, dim});
  params.quality = floats(quality, {params.objects, weights.iou_values});
  check_tokens(params);
  if (!present_object.is_none()) params.present = present_of(present_object, params);
  if (params.objects == 0 || height * width == 0) return;
  require_output(logits, {&image, &mid, &high, &position, &prompts, &tokens, &quality});
  require_output(tokens, {&image, &mid, &high, &position, &prompts, &quality});
  require_output(quality, {&image, &mid, &high, &position, &prompts});
  params.image = image.data<const void>();
  params.mid_features = mid.data<const void>();
  params.high_features = high.data<const void>();
  run_on_cpu(&mask_decoder_cpu, params, num_threads, isa_name);
}

}  // namespace

void register_mask_decoder(py::module_& module) {
  typedef MaskDecoderWeightsOwner Owner;
  const std::string doc = std::string(
                              R"(Weights of the mask decoder, read from the attributes of an object:
layers: two layers, each with self_attention, norm1, token_to_image, norm2, fc1 [F, C],
    fc2 [C, F], norm3, norm4 and image_to_token.
final_attention, final_norm.
up1 [C, C], up_norm [C / 4], up2 [C / 2, C / 4]: rows of up1 and up2 are ordered by
    position, then by channel; their biases are [C / 4] and [C / 8].
iou: linear1 [H, C], linear2 [H, H], linear3 [K, H].
masks: a sequence of MLPs like iou, with C hidden and C / 8 output channels.
An attention has q, k, v [I, C] and out [C, I]; I is C in self_attention, else C / 2.
)") + kWeightsDoc;
  py::class_<Owner>(module, "MaskDecoderWeights", doc.c_str())
      .def(py::init<const py::object&>(), py::arg("weights"))
      .def_property_readonly("dim", [](const Owner& owner) { return owner.weights.dim; })
      .def_property_readonly("hidden", [](const Owner& owner) { return owner.weights.hidden; })
      .def_property_readonly("iou_hidden",
                             [](const Owner& owner) { return owner.weights.iou_hidden; })
      .def_property_readonly("iou_values",
                             [](const Owner& owner) { return owner.weights.iou_values; })
      .def_property_readonly("num_masks",
                             [](const Owner& owner) { return owner.weights.num_masks; });
  module.def("mask_decoder", &run, py::arg("image"), py::arg("mid"), py::arg("high"),
             py::arg("position"), py::arg("prompts"), py::arg("present"), py::arg("weights"),
             py::arg("heads"), py::arg("first_mask_token"), py::arg("iou_token"), py::arg("best"),
             py::arg("logits"), py::arg("tokens"), py::arg("quality"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
