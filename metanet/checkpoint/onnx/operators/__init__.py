"""How is each ONNX operator computed with torch? One module per class of operator, one small function each."""
