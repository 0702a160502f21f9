#!/usr/bin/env bash
# The whole check on a machine with a GPU: build, GPU tests, sanitizers, benchmarks. No network; under ten minutes.
#   benchmarks/gpu_check.sh [OUT] [CMAKE_CUDA_ARCHITECTURES] [PARTS]       results and logs land in OUT (default outputs/gpu)
# PARTS: words out of tests, sanitizers, kernels, flex, image, video; default "tests sanitizers kernels" and a quick look at the rest. Images and videos of
# all sizes fill a run of their own, as does FlexAttention, which compiles: "image video", "flex"; with SAM2_FAST_PEER=official,official-compiled,transformers for whom to compare with.
# Goes on after a failing part, so that one run tells everything; exit status 1 if any part failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-outputs/gpu} architectures=${2:-90a-real} parts=${3:-tests sanitizers kernels quick} python=${PYTHON:-python3}
mkdir -p "$out"
failed=()
wanted() { [[ " $parts " == *" $1 "* ]]; }
part() {  # part NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  local status=$?
  [ $status -eq 0 ] || failed+=("$name")
  printf '%-28s exit %3d  %4ds\n' "$name" $status $((SECONDS - start))
  [ $status -eq 0 ] || tail -n 25 "$out/$name.log"
}

part build 120 "$python" -m pip install --no-build-isolation --no-deps -v -C cmake.define.SAM2_FAST_CUDA=ON \
  -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$architectures" .
# The installed package, not the source tree, holds the native module: tests and benchmarks run beside a copy of themselves.
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp -r tests benchmarks pyproject.toml "$stage/"
here=$PWD out=$(cd "$out" && pwd)
# What videos are compared with, where somebody laid it out: packages in .peers, what drives them in .peers/tools, JPEGs in .peers/video.
export SAM2_FAST_PEERS=${SAM2_FAST_PEERS:-$here/.peers}
[ -d "$SAM2_FAST_PEERS/tools" ] && export SAM2_FAST_PEER_TOOLS=${SAM2_FAST_PEER_TOOLS:-$SAM2_FAST_PEERS/tools}
[ -d "$SAM2_FAST_PEERS/video" ] && export SAM2_FAST_VIDEO=${SAM2_FAST_VIDEO:-$SAM2_FAST_PEERS/video}
cd "$stage" || exit 1
part backends 60 "$python" -m sam2_fast.ops.registry
cat "$out/backends.log"
wanted tests && part gpu_tests 150 "$python" -m pytest -q -p no:cacheprovider -m gpu \
  tests/ops tests/test_masks.py tests/test_waiting.py tests/test_all_in_triton.py tests/video/test_graphs.py

cat >"$stage/small_shapes.py" <<'PY'
import torch
from sam2_fast.ops.connected_components import connected_components, connected_components_reference, small_components
from sam2_fast.ops.hiera_block import hiera_block
from sam2_fast.ops.mask_decoder import mask_decoder
from sam2_fast.ops.mask_postprocess import mask_postprocess
from sam2_fast.ops.memory_encoder import memory_encoder
from sam2_fast.ops.nms import nms
from sam2_fast.ops.preprocess import preprocess_frame
from sam2_fast.ops.rope_attention import rope_attention, rope_table
from sam2_fast.ops.window_attention import window_attention

for shape in ((1, 1, 1), (3, 33, 65), (2, 64, 64), (1, 97, 40), (5, 1, 70), (0, 4, 4)):
    for density in (0.3, 0.6, 1.0):
        masks = (torch.rand(shape) < density).cuda()
        expected = connected_components_reference(masks)
        assert all(torch.equal(a, b) for a, b in zip(connected_components(masks, backend="cuda"), expected)), shape
        for area in (1, 8, 16):
            assert torch.equal(small_components(masks, area, backend="cuda"), (expected[1] > 0) & (expected[1] <= area)), (shape, area)
found = mask_postprocess(torch.randn(3, 9, 11).cuda(), (33, 20), 0.0, 0.5, canvas=(40, 30), origin=(3, 5), backend="triton")
assert len(found.runs) == 3
nms(torch.rand(99, 4).cuda().sort(1).values, torch.rand(99).cuda(), 0.5, backend="triton")
preprocess_frame(torch.randint(0, 256, (37, 50, 3), dtype=torch.uint8).cuda(), 24, (0.5,) * 3, (0.2,) * 3, backend="triton")
q, k, v = (torch.randn(2, n, c, dtype=torch.bfloat16).cuda() for n, c in ((64, 64), (133, 64), (133, 16)))
rope_attention(q, k, v, rope_table(64, 8).cuda(), 5, backend="triton")
for window, pool in ((8, False), (14, False), (4, True), (0, True)):
    qkv, pad = torch.randn(1, 16, 16, 3 * 112, dtype=torch.bfloat16).cuda(), torch.randn(3 * 112, dtype=torch.bfloat16).cuda()
    window_attention(qkv, pad, 2, window, pool, backend="triton")
for dim, out, pool in ((48, 48, False), (48, 96, True)):
    shapes = ((dim,), (dim,), (3 * out, dim), (3 * out,), (out, out), (out,), (out,), (out,), (4 * out, out), (4 * out,), (out, 4 * out), (out,),
              (out, dim), (out,))
    weights = [torch.randn(s, dtype=torch.bfloat16).cuda() for s in shapes[: 14 if pool else 12]]
    hiera_block(torch.randn(1, 16, 12, dim, dtype=torch.bfloat16).cuda(), weights, 2, 4, pool, backend="triton")
tokens, maps = torch.randn(2, 8, 256), (torch.randn(1, 8, 8, 64), torch.randn(1, 16, 16, 32))
linear = lambda *sizes: [x for i, o in sizes for x in (torch.randn(o, i) / 16, torch.randn(o))]
narrow, full, norm = [(256, 128)] * 3 + [(128, 256)], [(256, 256)] * 4, [torch.ones(256), torch.zeros(256)]
layer = lambda: [*linear(*full), *norm, *linear(*narrow), *norm, *linear((256, 64), (64, 256)), *norm, *norm, *linear(*narrow)]
body = [*layer(), *layer(), *linear(*narrow), *norm, torch.randn(256, 256) / 16, *torch.randn(3, 64), torch.randn(128, 64) / 8, torch.randn(32)]
heads = [*linear((256, 64), (64, 64), (64, 4)), *(linear((256, 256), (256, 256), (256, 32)) * 3)]
send = lambda x: x.to("cuda", torch.bfloat16)
mask_decoder(
    *map(send, (torch.randn(1, 4, 4, 256), *maps, torch.randn(16, 256), tokens)), None, [send(w) for w in (*body, *heads)], 8, 3, 1, backend="triton"
)
norm = lambda c: [torch.ones(c), torch.zeros(c)]
convolutions = [x for i, o in ((1, 4), (4, 16), (16, 64), (64, 256)) for x in (torch.randn(o, i, 3, 3) / 9, torch.randn(o), *norm(o))]
pointwise = lambda i, o: [torch.randn(o, i, 1, 1) / 16, torch.randn(o)]
block = [torch.randn(256, 1, 7, 7) / 7, torch.randn(256), *norm(256), *linear((256, 64), (64, 256)), torch.randn(256)]
weights = [*convolutions, *pointwise(256, 256), *pointwise(256, 256), *block, *pointwise(256, 64)]
memory_encoder(send(torch.randn(1, 3, 4, 256)), send(torch.randn(2, 12, 16)), [send(w) for w in weights], False, backend="triton")
torch.cuda.synchronize()
PY
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
if ! wanted sanitizers; then
  :
elif [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck initcheck synccheck; do
    part "$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" small_shapes.py
  done
else
  echo "compute-sanitizer is not here: memcheck, racecheck, initcheck and synccheck were not run"
  part small_shapes 60 "$python" small_shapes.py
fi
stems=(rope_attention window_attention memory_attention hiera_block mask_decoder memory_encoder connected_components mask_postprocess nms preprocess)
wanted kernels && part kernels 120 "$python" -m benchmarks.run "${stems[@]}" --device cuda --json "$out/kernels.json"
wanted quick && part quick 60 "$python" -m benchmarks.run image video --quick --device cuda --json "$out/quick.json"
wanted flex && part flex 500 "$python" -m benchmarks.run window_attention --device cuda --peer flex --json "$out/flex.json"
for name in image video; do
  wanted "$name" && part "$name" 280 "$python" -m benchmarks.run "$name" --device cuda --peer "${SAM2_FAST_PEER:-official}" \
    --json "$out/$name.json"
done
for name in kernels quick flex image video; do
  if wanted "$name"; then cat "$out/$name.log"; fi
done
cd "$here" || exit 1
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all parts passed"
