"""What runs: tokenizer, pretrain, align, sft, eval, over one shared substrate."""

__ghostvis__ = True
