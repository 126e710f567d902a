"""The model registrar: from an uploaded file to variants that may be selected.

Nothing in the controller's process reads ONNX: a subprocess checks and adapts the upload (`inspect`), so that a
malformed or hostile file costs a child, never the controller.
"""
