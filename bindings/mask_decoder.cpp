// Checks and launch of csrc/mask_decoder.h.
#include "csrc/mask_decoder.h"

#include "bindings/storage.h"

namespace sam2_fast {
namespace {

constexpr size_t kLayer = 36, kBody = 2 * kLayer + 16,
                 kHead = 6;  // tensors: of a layer, before the heads, of a head
constexpr int64_t kMaxHead = 64, kMaxChannels = 4096;
const char* const kNames[] = {"weights"};

Attention attention(const Weights& w, size_t at, int64_t dim, int64_t inner) {
  return {w.linear(at, inner, dim, 0), w.linear(at + 2, inner, dim, 0),
          w.linear(at + 4, inner, dim, 0), w.linear(at + 6, dim, inner, 0)};
}

Norm norm(const Weights& w, size_t at, int64_t channels) {
  return {w.vector(at, channels), w.vector(at + 1, channels)};
}

TwoWayLayer layer(const Weights& w, size_t at, int64_t dim, int64_t hidden) {
  TwoWayLayer l{};
  l.self = attention(w, at, dim, dim), l.norm1 = norm(w, at + 8, dim);
  l.to_image = attention(w, at + 10, dim, dim / 2), l.norm2 = norm(w, at + 18, dim);
  l.fc1 = w.linear(at + 20, hidden, dim, 0), l.fc2 = w.linear(at + 22, dim, hidden, 0);
  l.norm3 = norm(w, at + 24, dim), l.norm4 = norm(w, at + 26, dim);
  l.to_tokens = attention(w, at + 28, dim, dim / 2);
  return l;
}

// A matrix whose rows are places and channels, and a bias of the channels alone.
Linear upscaling(const Weights& w, size_t at, int64_t rows, int64_t columns) {
  const View& x = w.views[at];
  if (x.t.ndim != 2 || x.t.shape[0] != rows || x.t.shape[1] != columns ||
      storage_of(x) != storage_of(w.views[0])) {
    refuse("weights",
           "an upscaling of [" + std::to_string(rows) + ", " + std::to_string(columns) + "]",
           "another shape or dtype");
  }
  return {x.data<const void>(), w.vector(at + 1, rows / 4)};
}

void want_shape(const View& x, std::initializer_list<int64_t> shape) {
  bool fits = x.t.ndim == static_cast<int32_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = x.t.shape[i] == shape.begin()[i];
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "[" : ", ") + std::to_string(size);
  if (!fits) refuse(x.name, wanted + "]", "another shape");
}

void run(py::handle image_object, py::handle mid_object, py::handle high_object,
         py::handle position_object, py::handle prompts_object, const py::object& present_object,
         const py::sequence& tensors, int64_t heads, int64_t first_mask_token, int64_t iou_token,
         bool best, py::handle logits_object, py::handle tokens_object, py::handle quality_object,
         int num_threads, const std::string& isa_name) {
  const View image("image", image_object), mid("mid", mid_object), high("high", high_object),
      position("position", position_object);
  const View prompts("prompts", prompts_object), logits("logits", logits_object),
      tokens("tokens", tokens_object);
  const View quality("quality", quality_object);
  for (const View* view : {&image, &mid, &high, &position, &prompts, &logits, &tokens, &quality})
    want_cpu(*view);
  if (image.t.ndim != 4 || mid.t.ndim != 4 || high.t.ndim != 4)
    refuse("image, mid, high", "4 dimensions", "others");
  if (prompts.t.ndim != 3 || logits.t.ndim != 4)
    refuse("prompts, logits", "3 and 4 dimensions", "others");
  const Weights w(tensors, kNames, 1);
  if (w.views.size() < kBody + 2 * kHead || (w.views.size() - kBody) % kHead != 0) {
    refuse("weights", "94 tensors and 6 for each mask", std::to_string(w.views.size()));
  }
  if (w.views[20].t.ndim != 2 || w.views[kBody].t.ndim != 2 || w.views[kBody + 4].t.ndim != 2)
    refuse("weights", "matrices of two dimensions", "others");
  MaskDecoderParams p{};
  p.storage = storage_of(image), p.weights = storage_of(w.views[0]);
  p.images = image.t.shape[0], p.height = image.t.shape[1], p.width = image.t.shape[2],
  p.dim = image.t.shape[3];
  p.frames = mid.t.shape[0], p.objects = prompts.t.shape[0], p.prompt_tokens = prompts.t.shape[1];
  p.hidden = w.views[20].t.shape[0], p.heads = heads, p.first_mask_token = first_mask_token;
  p.masks = static_cast<int64_t>((w.views.size() - kBody) / kHead) - 1, p.iou_token = iou_token,
  p.best = best;
  p.iou_hidden = w.views[kBody].t.shape[0], p.iou_values = w.views[kBody + 4].t.shape[0];
  if (p.dim < 16 || p.dim % 16 != 0 || p.dim > kMaxChannels)
    refuse("image", "channels in sixteens up to 4096", std::to_string(p.dim));
  for (const int64_t hidden : {p.hidden, p.iou_hidden}) {
    if (hidden < 2 || hidden % 2 != 0 || hidden > kMaxChannels)
      refuse("weights", "an even hidden width up to 4096", std::to_string(hidden));
  }
  const int64_t inner = p.dim / 2;
  if (heads < 1 || inner % heads != 0 || inner / heads % 2 != 0 || inner / heads > kMaxHead) {
    refuse("heads", "an even number of channels up to 64 each", std::to_string(heads));
  }
  if ((p.images != 1 && p.images != p.objects) || (p.frames != 1 && p.frames != p.objects)) {
    refuse("image, mid", "1 or one an object",
           std::to_string(p.images) + " and " + std::to_string(p.frames));
  }
  for (const View* view : {&mid, &high}) {
    if (storage_of(*view) != p.storage) refuse(view->name, "the dtype of image", "another dtype");
  }
  want_shape(mid, {p.frames, 2 * p.height, 2 * p.width, p.dim / 4});
  want_shape(high, {p.frames, 4 * p.height, 4 * p.width, p.dim / 8});
  p.position = floats(position, {p.height * p.width, p.dim});
  p.prompts = floats(prompts, {p.objects, p.prompt_tokens, p.dim});
  p.logits = const_cast<float*>(
      floats(logits, {p.objects, best ? 1 : p.masks, 4 * p.height, 4 * p.width}));
  p.tokens = const_cast<float*>(floats(tokens, {p.objects, p.prompt_tokens, p.dim}));
  p.quality = const_cast<float*>(floats(quality, {p.objects, p.iou_values}));
  if (p.masks > p.dim || first_mask_token < 0 || first_mask_token + p.masks > p.prompt_tokens) {
    refuse("first_mask_token", "a prompt token for every mask", std::to_string(first_mask_token));
  }
  if (iou_token < 0 || iou_token >= first_mask_token ||
      first_mask_token + p.masks - iou_token - 1 > p.iou_values || p.iou_values > kMaxChannels) {
    refuse("iou_token", "a token before the masks' with a value for each",
           std::to_string(iou_token));
  }
  if (!present_object.is_none()) {
    const View present("present", present_object);
    want_cpu(present);
    present.want_byte();
    want_shape(present, {p.objects, p.prompt_tokens});
    p.present = present.data<const uint8_t>();
    for (int64_t o = 0; o < p.objects; ++o) {
      for (int64_t t = 0; t < first_mask_token + p.masks; ++t) {
        if (p.present[o * p.prompt_tokens + t] == 0)
          refuse("present", "the first tokens of every object", "one that does not exist");
      }
    }
  }
  for (size_t i = 0; i < 2; ++i) p.layers[i] = layer(w, i * kLayer, p.dim, p.hidden);
  const size_t at = 2 * kLayer;
  p.last = attention(w, at, p.dim, inner), p.last_norm = norm(w, at + 8, p.dim);
  p.up1 = upscaling(w, at + 10, p.dim, p.dim), p.up_norm = norm(w, at + 12, p.dim / 4);
  p.up2 = upscaling(w, at + 14, p.dim / 2, p.dim / 4);
  p.iou[0] = w.linear(kBody, p.iou_hidden, p.dim, 0),
  p.iou[1] = w.linear(kBody + 2, p.iou_hidden, p.iou_hidden, 0);
  p.iou[2] = w.linear(kBody + 4, p.iou_values, p.iou_hidden, 0);
  std::vector<Linear> hyper;
  for (size_t i = kBody + kHead; i < w.views.size(); i += 2) {
    hyper.push_back(w.linear(i, (i - kBody) % kHead == 4 ? p.dim / 8 : p.dim, p.dim, 0));
  }
  p.hyper = hyper.data();
  if (p.objects == 0 || p.height * p.width == 0) return;
  p.image = image.data<const void>(), p.mid = mid.data<const void>(),
  p.high = high.data<const void>();
  const Isa isa = isa_of(isa_name);
  bool done = false;
  {
    py::gil_scoped_release release;
    done = mask_decoder_cpu(p, num_threads < 1 ? 1 : num_threads, isa);
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace

void register_mask_decoder(py::module_& module) {
  module.def("mask_decoder", &run, py::arg("image"), py::arg("mid"), py::arg("high"),
             py::arg("position"), py::arg("prompts"), py::arg("present"), py::arg("weights"),
             py::arg("heads"), py::arg("first_mask_token"), py::arg("iou_token"), py::arg("best"),
             py::arg("logits"), py::arg("tokens"), py::arg("quality"), py::arg("num_threads"),
             py::arg("isa"));
}

}  // namespace sam2_fast
