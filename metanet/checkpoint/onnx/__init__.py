"""What network is in an ONNX file: its weights, and its graph as a torch module that runs?"""

from metanet.checkpoint.onnx.architecture import ONNX, OnnxArchitecture
from metanet.checkpoint.onnx.file import read_onnx, write_onnx
from metanet.checkpoint.onnx.module import OnnxModule
from metanet.checkpoint.onnx.proto import looks_like_onnx
from metanet.checkpoint.onnx.registry import rules

__all__ = ["ONNX", "OnnxArchitecture", "OnnxModule", "looks_like_onnx", "read_onnx", "rules", "write_onnx"]
