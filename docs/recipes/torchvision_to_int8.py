"""From a network of torchvision to a pruned one in int8, saved as an exported program."""

import torch
import torchvision
from torch.export import Dim
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

import fxprune as fp

model = torchvision.models.mobilenet_v2(width_mult=0.35)
images = torch.randn(64, 3, 32, 32)

result = fp.prune(model, images[:2], budget=fp.Budget(flops=0.5), calibration=images, recipe="fast")
quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
prepared = prepare_pt2e(result.program().module(), quantizer)
prepared(images)
int8 = convert_pt2e(prepared)
torch.export.save(torch.export.export(int8, (images[:2],), dynamic_shapes=({0: Dim.AUTO},)), "small_int8.pt2")

calls = sum(str(node.target).startswith("quantized_decomposed.quantize") for node in int8.graph.nodes)
kept = result.report.after["flops"] / result.report.before["flops"]
print(f"{kept:.1%} of the FLOPs, {calls} quantizing calls, saved as small_int8.pt2")
