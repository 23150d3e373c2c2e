"""Cut mediapipe's face_landmark_with_attention.tflite into the two networks that lipstream runs.

Between them the original has operations of mediapipe's own, which LiteRT lacks and
`lipstream.face.mediapipe.lips` does in numpy; the heads of the eyes are left out:
python tools/cut_attention_mesh.py FILE FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

# Tensors by name: what goes in and what comes out.
_PARTS = {
    "attention_mesh.tflite": (["input_1"], ["output_mesh_identity", "conv_faceflag", "p_re_lu_3"]),
    "attention_lips.tflite": (["transform_tensor_bilinear_v2"], ["reshape_1"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    for name, (inputs, outputs) in _PARTS.items():
        (args.folder / name).write_bytes(part(args.file.read_bytes(), inputs, outputs))


def part(model: bytes, inputs: list[str], outputs: list[str]) -> bytes:
    """Return the model that holds only what `outputs` need, starting from `inputs`."""
    whole = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = whole.subgraphs[0]
    index = {tensor.name.decode(): position for position, tensor in enumerate(graph.tensors)}
    given, needed = {index[name] for name in inputs}, {index[name] for name in outputs}
    operators = []
    for operator in reversed(graph.operators):
        if needed & set(operator.outputs) - given:
            operators.insert(0, operator)
            needed |= {tensor for tensor in operator.inputs if tensor >= 0}
    used = sorted(given | {t for operator in operators for t in [*operator.inputs, *operator.outputs] if t >= 0})
    place = {tensor: position for position, tensor in enumerate(used)}
    buffers = [schema.BufferT()]
    for tensor in used:
        contents = whole.buffers[graph.tensors[tensor].buffer]
        has_data = contents.data is not None and len(contents.data) > 0
        graph.tensors[tensor].buffer = len(buffers) if has_data else 0
        buffers += [contents] if has_data else []
    codes = sorted({operator.opcodeIndex for operator in operators})
    for operator in operators:
        operator.inputs = [place.get(tensor, -1) for tensor in operator.inputs]
        operator.outputs = [place[tensor] for tensor in operator.outputs]
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    graph.tensors, graph.operators = [graph.tensors[tensor] for tensor in used], operators
    graph.inputs, graph.outputs = ([place[index[name]] for name in names] for names in (inputs, outputs))
    whole.operatorCodes, whole.buffers = [whole.operatorCodes[code] for code in codes], buffers
    whole.metadata = whole.metadataBuffer = whole.signatureDefs = None
    builder = flatbuffers.Builder()
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


if __name__ == "__main__":
    main()
