"""Files: adapters, training states and plain LoRA, all safetensors, nothing pickled."""
